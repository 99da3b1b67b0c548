package prompt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mesh-agent/mesh-agent/internal/prompt"
)

// terminal is a pseudo-terminal, at which a test sits.
type terminal struct {
	*os.File
	name string
	seen bytes.Buffer
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	tt := &terminal{File: os.NewFile(uintptr(fd), "ptmx")} // with deadlines
	t.Cleanup(func() { tt.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100})
	}
	if err != nil {
		t.Fatal(err)
	}
	tt.name = fmt.Sprintf("/dev/pts/%d", n)
	slave, err := os.OpenFile(tt.name, os.O_RDWR|unix.O_NOCTTY, 0) // somebody has it always
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return tt
}

// until reads until the terminal shows all these texts.
func (tt *terminal) until(t *testing.T, texts ...string) {
	t.Helper()
	tt.seen.Reset()
	buf := make([]byte, 4096)
	if err := tt.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for missing := true; missing; {
		n, err := tt.Read(buf)
		tt.seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v; the terminal shows %q, want %q", err, tt.seen.String(), texts)
		}
		missing = false
		for _, text := range texts {
			missing = missing || !bytes.Contains(tt.seen.Bytes(), []byte(text))
		}
	}
}

func (tt *terminal) write(t *testing.T, text string) {
	t.Helper()
	if _, err := tt.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// echoes reports whether the terminal shows what is typed.
func (tt *terminal) echoes(t *testing.T) bool {
	t.Helper()
	slave, err := os.OpenFile(tt.name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	settings, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return settings.Lflag&unix.ECHO != 0
}

// TestRealPinentry asks by the programs that Debian has for terminals.
func TestRealPinentry(t *testing.T) {
	t.Parallel()
	for program, keys := range map[string]struct{ enter, cancel, asks, yes, no string }{
		"/usr/bin/pinentry-curses": {"\r", "\t\t\r", "<No>", "\r", "\t\r"},
		"/usr/bin/pinentry-tty":    {"\n", "\x04", "[yn]", "y", "n"},
	} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			tt := newTerminal(t)
			p := prompt.New(prompt.Options{Kind: prompt.Pinentry, Program: program, Limit: time.Minute, Getenv: func(name string) string {
				return map[string]string{"GPG_TTY": tt.name, "TERM": "xterm", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}[name]
			}})
			defer p.Close()
			if about, err := p.Test(t.Context()); err != nil {
				t.Errorf("%q, %v", about, err)
			}
			q := prompt.Question{Title: "mesh-agent", Text: "Token <piv> 50% of " + prompt.Line("evil\nGETPIN"), Prompt: "PIN", Error: "That was wrong."}

			done := asks(t.Context(), p, q)
			tt.until(t, "Token <piv> 50% of evil?GETPIN", "That was wrong.", "PIN")
			tt.write(t, "12%4 6"+keys.enter)
			if got := <-done; got.err != nil || got.pin != "12%4 6" {
				t.Errorf("PIN: %q, %v", got.pin, got.err)
			}
			q.Error = ""
			done = asks(t.Context(), p, q)
			tt.until(t, "Token", "PIN")
			tt.write(t, keys.cancel)
			if got := <-done; !errors.Is(got.err, prompt.ErrRefused) {
				t.Errorf("cancelled: %q, %v", got.pin, got.err)
			}

			yes := confirms(t.Context(), p, q)
			tt.until(t, "Token", keys.asks)
			tt.write(t, keys.yes)
			if err := <-yes; err != nil {
				t.Errorf("yes: %v", err)
			}
			no := confirms(t.Context(), p, q)
			tt.until(t, "Token", keys.asks)
			tt.write(t, keys.no)
			if err := <-no; !errors.Is(err, prompt.ErrRefused) {
				t.Errorf("no: %v", err)
			}

			down := p.Notice(t.Context(), prompt.Question{Title: "mesh-agent", Text: "Touch the token."})
			tt.until(t, "Touch the token.")
			down()

			ctx, cancel := context.WithCancel(t.Context())
			done = asks(ctx, p, q)
			tt.until(t, "Token", "PIN")
			cancel()
			if got := <-done; !errors.Is(got.err, context.Canceled) {
				t.Errorf("hung up: %q, %v", got.pin, got.err)
			}
			if !tt.echoes(t) {
				t.Error("the terminal is left without echo")
			}
		})
	}
}
