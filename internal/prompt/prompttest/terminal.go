package prompttest

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal, at which a test sits.
type Terminal struct {
	// Name is what GPG_TTY has.
	Name string
	file *os.File
	seen bytes.Buffer
	tb   testing.TB
}

// NewTerminal returns a terminal of 40 lines of 100 characters.
func NewTerminal(tb testing.TB) *Terminal {
	tb.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	t := &Terminal{file: os.NewFile(uintptr(fd), "ptmx"), tb: tb} // with deadlines
	tb.Cleanup(func() { t.file.Close() })
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100})
	}
	if err != nil {
		tb.Fatal(err)
	}
	t.Name = fmt.Sprintf("/dev/pts/%d", n)
	slave, err := os.OpenFile(t.Name, os.O_RDWR|unix.O_NOCTTY, 0) // somebody has it always
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { slave.Close() })
	return t
}

// Until reads until the terminal shows all these texts.
func (t *Terminal) Until(texts ...string) {
	t.tb.Helper()
	t.seen.Reset()
	buf := make([]byte, 4096)
	if err := t.file.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.tb.Fatal(err)
	}
	for missing := true; missing; {
		n, err := t.file.Read(buf)
		t.seen.Write(buf[:n])
		if err != nil {
			t.tb.Fatalf("%v; the terminal shows %q, want %q", err, t.seen.String(), texts)
		}
		missing = false
		for _, text := range texts {
			missing = missing || !bytes.Contains(t.seen.Bytes(), []byte(text))
		}
	}
}

// Type types.
func (t *Terminal) Type(text string) {
	t.tb.Helper()
	if _, err := t.file.WriteString(text); err != nil {
		t.tb.Fatal(err)
	}
}

// Echoes reports whether the terminal shows what is typed.
func (t *Terminal) Echoes() bool {
	t.tb.Helper()
	slave, err := os.OpenFile(t.Name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.tb.Fatal(err)
	}
	defer slave.Close()
	settings, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.tb.Fatal(err)
	}
	return settings.Lflag&unix.ECHO != 0
}
