// Package prompttest has a prompt program for tests: a process of its own, started as any other, whose every
// line a test sees and answers, so that nothing has to wait for time to pass.
package prompttest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const programName = "prompttest-program"

// hello is what the program says of itself, before the lines of its standard input.
type hello struct {
	Args, Env []string
	PID       int
}

// order is what a test has the program do.
type order struct {
	Out      []byte // for standard output
	Noise    string // for standard error
	Exit     *int
	Stubborn bool // do not end by SIGTERM, nor with standard input
}

// Main is to be called first by TestMain. In a process that is the program it does not return.
func Main() {
	if filepath.Base(os.Args[0]) != programName {
		return
	}
	fmt.Fprintln(os.Stderr, run())
	syscall.Exit(70) // at once, also with -race
}

// run does what the test says. It returns if that cannot be heard.
func run() error {
	c, err := net.Dial("unix", filepath.Join(filepath.Dir(os.Args[0]), "control"))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	out := json.NewEncoder(c)
	say := func(v any) error {
		mu.Lock()
		defer mu.Unlock()
		return out.Encode(v)
	}
	if err := say(hello{os.Args, os.Environ(), os.Getpid()}); err != nil {
		return err
	}
	var stubborn atomic.Bool
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			_ = say(in.Text())
		}
		_ = say(nil)
		if !stubborn.Load() {
			syscall.Exit(0)
		}
	}()
	for orders := json.NewDecoder(c); ; {
		var o order
		if err := orders.Decode(&o); err != nil {
			return err
		}
		if o.Stubborn {
			stubborn.Store(true)
			signal.Ignore(syscall.SIGTERM)
			_ = say(hanging)
		}
		fmt.Fprint(os.Stderr, o.Noise)
		if _, err := os.Stdout.Write(o.Out); err != nil {
			return err
		}
		if o.Exit != nil {
			syscall.Exit(*o.Exit)
		}
	}
}

// Programs receives the programs that are started by one path.
type Programs struct {
	// Path is the program, for the configuration.
	Path     string
	listener *net.UnixListener
	tb       testing.TB
}

// patience is how long a test waits for what must come, so that it does not hang if that never does.
const patience = time.Minute

// New returns programs of a folder of their own. The test's TestMain must call Main.
func New(tb testing.TB) *Programs {
	tb.Helper()
	self, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "prompt") // a socket's path is short
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	p := &Programs{Path: filepath.Join(dir, programName), tb: tb}
	if err := os.Symlink(self, p.Path); err != nil {
		tb.Fatal(err)
	}
	if p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "control")}); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { p.listener.Close() })
	return p
}

// Program is one that runs.
type Program struct {
	Args, Env []string
	PID       int
	// Told are the commands that it got and answered, but for options.
	Told []string
	conn net.Conn
	in   *json.Decoder
	tb   testing.TB
}

// Next waits until a program is started.
func (p *Programs) Next() *Program {
	p.tb.Helper()
	p.listener.SetDeadline(time.Now().Add(patience))
	c, err := p.listener.Accept()
	if err != nil {
		p.tb.Fatal("no prompt program was started: ", err)
	}
	p.tb.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	g := &Program{conn: c, in: json.NewDecoder(c), tb: p.tb}
	var h hello
	if err := g.in.Decode(&h); err != nil {
		p.tb.Fatal("a prompt program that says nothing: ", err)
	}
	g.Args, g.Env, g.PID = h.Args, h.Env, h.PID
	return g
}

// None fails the test if a program has been started.
func (p *Programs) None() {
	p.tb.Helper()
	p.listener.SetDeadline(time.Now())
	if c, err := p.listener.Accept(); err == nil {
		c.Close()
		p.tb.Error("a prompt program was started")
	}
}

// order sends an order. A program that has been ended takes none.
func (g *Program) order(o order) {
	_ = json.NewEncoder(g.conn).Encode(o)
}

// Write has it write to standard output.
func (g *Program) Write(text string) { g.order(order{Out: []byte(text)}) }

// Complain has it write to standard error.
func (g *Program) Complain(text string) { g.order(order{Noise: text}) }

// Exit has it end.
func (g *Program) Exit(status int) { g.order(order{Exit: &status}) }

// Hang has it go on until it is killed.
func (g *Program) Hang() {
	g.tb.Helper()
	g.order(order{Stubborn: true})
	for line := ""; line != hanging; line, _ = g.Line() {
	}
}

// hanging is what a program says that goes on until it is killed.
const hanging = "hanging"

// Line returns the next line of its standard input; false at the end.
func (g *Program) Line() (string, bool) {
	g.tb.Helper()
	var line *string
	if err := g.in.Decode(&line); err != nil {
		g.tb.Fatal("prompt program: ", err)
	}
	if line == nil {
		return "", false
	}
	return *line, true
}

// Until greets as a pinentry and answers OK to everything, up to a command that it leaves to the
// test.
func (g *Program) Until(command string) *Program {
	g.tb.Helper()
	g.Write("OK Pleased to meet you\n")
	for {
		line, ok := g.Line()
		switch {
		case !ok:
			g.tb.Fatalf("the client ended before %s, after %q", command, g.Told)
		case line == command:
			return g
		case !strings.HasPrefix(line, "OPTION "):
			g.Told = append(g.Told, line)
		}
		g.Write("OK\n")
	}
}

// Text returns what the commands before were about, with escapes undone: "SETDESC", for instance.
func (g *Program) Text(command string) string {
	for _, line := range g.Told {
		if text, ok := strings.CutPrefix(line, command+" "); ok {
			return strings.NewReplacer("%0A", "\n", "%25", "%").Replace(text)
		}
	}
	return ""
}

// Gone waits until the program has ended.
func (g *Program) Gone() {
	g.tb.Helper()
	for {
		var line any
		switch err := g.in.Decode(&line); {
		case err == io.EOF || err != nil && !os.IsTimeout(err):
			return
		case err != nil:
			g.tb.Fatal("the prompt program goes on: ", err)
		}
	}
}
