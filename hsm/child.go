package hsm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a helper process as the agent sees it. It has one socket pair for each of its threads: a
// call takes a socket that is free, writes and reads, and so no call waits for another, and
// no goroutine stands between the caller and the thread that works for it.
type child struct {
	cmd     *exec.Cmd
	started time.Time
	all     []*line
	free    chan struct{} // holds one value for each line that no call uses
	mu      sync.Mutex
	idle    []*line       // guarded by mu: these, the last used last, whose thread is the warmest
	dead    chan struct{} // closed when the process has ended; then err and endedAt are set
	err     error
	endedAt time.Time
	reason  atomic.Pointer[error] // why the agent ended it
	ending  sync.Once
}

// line is one socket to the helper. It has one user at a time.
type line struct {
	conn   net.Conn
	frames *frames
	out    []byte
}

// firstFD is the first descriptor of the helper's ends of the socket pairs.
const firstFD = 3

// lines returns how many sockets a helper gets: for each session one that works and one that waits
// for it, and some for calls that need no session, and for one that hangs.
func (o ModuleOptions) lines() int { return 2*o.Sessions + 3 }

// startChild starts a helper and has it load the module.
func startChild(o ModuleOptions) (*child, error) {
	c := &child{dead: make(chan struct{}), free: make(chan struct{}, o.lines())}
	theirs, err := c.connect(cap(c.free))
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	if err != nil {
		c.hangUp()
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	c.cmd = &exec.Cmd{
		Path: o.Helper[0], Args: o.Helper, Env: append([]string{}, o.Environment...), Dir: "/",
		ExtraFiles: theirs, Stderr: o.stderr(),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // the terminal's signals are for the agent
	}
	c.started = time.Now()
	if err := c.cmd.Start(); err != nil {
		c.hangUp()
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	go c.wait()
	if err := c.load(o); err != nil {
		c.stop()
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	for _, l := range c.all {
		c.release(l)
	}
	return c, nil
}

// take returns the line that was used last. The caller has a value of c.free.
func (c *child) take() *line {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.idle[len(c.idle)-1]
	c.idle = c.idle[:len(c.idle)-1]
	return l
}

func (c *child) release(l *line) {
	c.mu.Lock()
	c.idle = append(c.idle, l)
	c.mu.Unlock()
	c.free <- struct{}{}
}

// connect makes n socket pairs and returns the helper's ends.
func (c *child) connect(n int) (theirs []*os.File, err error) {
	for range n {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, os.NewFile(uintptr(fds[1]), "helper"))
		ours := os.NewFile(uintptr(fds[0]), "helper")
		conn, err := net.FileConn(ours)
		if err = errors.Join(err, ours.Close()); err != nil {
			return theirs, err
		}
		c.all = append(c.all, &line{conn: conn, frames: newFrames(conn)})
	}
	return theirs, nil
}

func (c *child) hangUp() {
	for _, l := range c.all {
		l.conn.Close()
	}
}

// stderr avoids an interface that holds a nil pointer.
func (o ModuleOptions) stderr() io.Writer {
	if o.Stderr == nil {
		return nil
	}
	return o.Stderr
}

// load has the helper load the module, which it does before it looks at the other sockets.
func (c *child) load(o ModuleOptions) error {
	request := &call{op: opInit, data: [][]byte{[]byte(o.Path), []byte(o.Arguments)}, limit: uint64(o.Sessions), other: uint64(cap(c.free))}
	r, err := c.exchange(c.all[0], request, o.Timeout)
	switch {
	case err != nil:
		return err
	case r.text != "":
		return errors.New(r.text)
	case r.code != ckrOK:
		return r.code
	}
	return nil
}

// wait waits for the end of the process.
func (c *child) wait() {
	state := c.cmd.Wait()
	c.endedAt = time.Now()
	if reason := c.reason.Load(); reason != nil {
		c.err = *reason
	} else if state != nil {
		c.err = fmt.Errorf("%w: %w", ErrCrashed, state)
	} else {
		c.err = fmt.Errorf("%w: exit status 0", ErrCrashed)
	}
	close(c.dead)
	c.hangUp()
}

func (c *child) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return c.reason.Load() == nil
	}
}

// call sends a request and waits for its answer, for ctx or for the end of the process. When ctx
// ends first, the call goes on without its caller, and so does its time.
func (c *child) call(ctx context.Context, request *call, timeout time.Duration) (*reply, error) {
	select {
	case <-c.free:
	case <-c.dead:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l := c.take()
	if ctx.Done() == nil {
		r, err := c.exchange(l, request, timeout)
		c.release(l)
		return r, err
	}
	return c.callUntil(ctx, l, request, timeout)
}

// callUntil is call with a context that may end. The reading is interrupted then, by a deadline in
// the past, and is taken up again by a goroutine that throws the answer away.
func (c *child) callUntil(ctx context.Context, l *line, request *call, timeout time.Duration) (*reply, error) {
	deadline := time.Now().Add(timeout)
	err := c.send(l, request, deadline)
	if err != nil {
		return nil, c.broken(err)
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.conn.SetReadDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	frame, err := l.frames.next()
	if !stop() {
		<-interrupted
	}
	switch {
	case err == nil:
		c.release(l)
		return decodeReply(frame)
	case ctx.Err() == nil || !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(deadline):
		return nil, c.broken(err)
	}
	go c.discard(l, deadline)
	return nil, ctx.Err()
}

// discard reads an answer that nobody waits for.
func (c *child) discard(l *line, deadline time.Time) {
	err := l.conn.SetReadDeadline(deadline)
	var frame []byte
	if err == nil {
		frame, err = l.frames.next()
	}
	if err != nil {
		c.broken(err)
		return
	}
	clear(frame)
	c.release(l)
}

// exchange writes a request and reads its answer.
func (c *child) exchange(l *line, request *call, timeout time.Duration) (*reply, error) {
	if err := c.send(l, request, time.Now().Add(timeout)); err != nil {
		return nil, c.broken(err)
	}
	frame, err := l.frames.next()
	if err != nil {
		return nil, c.broken(err)
	}
	return decodeReply(frame)
}

func (c *child) send(l *line, request *call, deadline time.Time) error {
	if err := l.conn.SetDeadline(deadline); err != nil {
		return err
	}
	l.out = appendCall(l.out[:0], request)
	_, err := l.conn.Write(l.out)
	clear(l.out) // PINs and keys pass through it
	if cap(l.out) > 64<<10 {
		l.out = nil
	}
	return err
}

// broken ends the process because a socket failed, and returns why it ended.
func (c *child) broken(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.end(ErrHangs)
	case errors.Is(err, errFrame):
		c.end(fmt.Errorf("%w: %w", ErrCrashed, err))
	default: // it has ended or is about to; if not, this makes sure
		timer := time.AfterFunc(closedGrace, func() { c.end(fmt.Errorf("%w: %w", ErrCrashed, err)) })
		defer timer.Stop()
	}
	<-c.dead
	return c.err
}

// closedGrace is the time between the end of a process's sockets and its own.
const closedGrace = 100 * time.Millisecond

// end ends the process for a reason that its callers will get.
func (c *child) end(reason error) {
	c.reason.CompareAndSwap(nil, &reason)
	c.ending.Do(func() { c.cmd.Process.Kill() })
}

// stop ends the process and waits for it. The helper ends by itself when its sockets are
// closed, but a module may hold it up.
func (c *child) stop() {
	c.end(fmt.Errorf("%w: stopped", ErrCrashed))
	<-c.dead
}

// retire waits until the process has nothing to do, but not longer than grace, and ends it.
func (c *child) retire(grace time.Duration) {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	reason := errRetired
	for range c.all {
		select {
		case <-c.free:
		case <-timer.C:
			reason = ErrHangs
		case <-c.dead:
		}
		if reason != errRetired || !c.alive() {
			break
		}
	}
	c.end(reason)
	<-c.dead
}

// errRetired says that an operation came to a helper that was being replaced. It did not begin.
var errRetired = fmt.Errorf("%w: replaced", ErrCrashed)
