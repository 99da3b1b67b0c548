package prompt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a program has to end after it was told to.
const grace = time.Second

// passed are the variables that a program gets from the agent's environment: what it takes to
// find the person's screen or terminal, and nothing else.
var passed = [...]string{
	"DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS",
	"TERM", "LANG", "PATH", "HOME", "GPG_TTY",
}

func (p *Prompter) environment(more ...string) []string {
	env := []string{} // never nil, which would stand for the agent's own
	for _, name := range passed {
		if value := p.options.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return append(env, more...)
}

// process is a program that runs. It is the leader of a session, so that neither the agent's
// terminal stops it nor a process that it started is left.
type process struct {
	command *exec.Cmd
	in, out *os.File
	noise   tail
	stop    func() bool // ends the watch over the context
	restore func()      // the terminal, as it was
	done    chan struct{}
	err     error // of Wait; to be read when done is closed

	mu    sync.Mutex
	ended bool // guarded by mu: it has been waited for
}

// start runs the program. When ctx ends, it is told to end and its output is closed. The
// caller calls finish.
func (p *Prompter) start(ctx context.Context, arguments, env []string) (*process, error) {
	r := &process{command: exec.Command(p.options.Program, arguments...), done: make(chan struct{})}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childIn.Close()
	out, childOut, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer childOut.Close()
	r.in, r.out = in, out
	c := r.command
	c.Stdin, c.Stdout, c.Stderr = childIn, childOut, &r.noise
	c.Env = env
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	c.WaitDelay = grace // for standard error, if somebody else has it still
	r.restore = keepTerminal(p.options.Getenv("GPG_TTY"))
	if err := c.Start(); err != nil {
		in.Close()
		out.Close()
		return nil, p.broken(err, "see whether it can be run at all")
	}
	go r.wait()
	r.stop = context.AfterFunc(ctx, func() {
		r.signal(unix.SIGTERM)
		r.out.Close()
	})
	return r, nil
}

func (r *process) wait() {
	err := r.command.Wait()
	r.mu.Lock()
	r.ended, r.err = true, err
	r.mu.Unlock()
	close(r.done)
}

// signal reaches the program and what it started, while its number is its own.
func (r *process) signal(s syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ended {
		_ = unix.Kill(-r.command.Process.Pid, s)
	}
}

// finish lets the program end by itself if it was not told to, makes it, and returns how
// it ended.
func (r *process) finish() error {
	r.in.Close()
	if told := !r.stop(); told {
		defer r.restore()
	}
	defer r.out.Close()
	for _, s := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		if r.within(grace) {
			return r.err
		}
		r.signal(s)
	}
	<-r.done
	return r.err
}

func (r *process) within(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-r.done:
		return true
	case <-timer.C:
		return false
	}
}

// broken is the error of a program that does not do its part.
func (p *Prompter) broken(err error, mend string) error {
	return &ProgramError{Program: p.options.Program, Err: err, Mend: mend}
}

// explain adds to err how the program ended and what it complained of. It has ended.
func (r *process) explain(err error) error {
	if exit := (*exec.ExitError)(nil); errors.As(r.err, &exit) {
		err = fmt.Errorf("%w (%v)", err, exit)
	}
	if said := r.noise.String(); said != "" {
		err = fmt.Errorf("%w: it says: %s", err, said)
	}
	return err
}

// tail keeps the end of what a program writes to standard error.
type tail struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

// maxTail is how much is kept, in octets.
const maxTail = 200

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if more := len(t.text) - maxTail; more > 0 {
		t.text = append(t.text[:0], t.text[more:]...)
	}
	return len(b), nil
}

// String returns the last line, fit for a log.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := splitLines(string(t.text))
	if len(lines) == 0 {
		return ""
	}
	return Line(lines[len(lines)-1])
}
