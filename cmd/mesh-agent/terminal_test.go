package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a terminal: that of the person, and that of the program.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

func echoes(t *testing.T, terminal *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// waitFor reads from a terminal until a text has come, and returns all up to it.
func waitFor(t *testing.T, from *bufio.Reader, text string) string {
	t.Helper()
	var seen strings.Builder
	for !strings.HasSuffix(seen.String(), text) {
		b, err := from.ReadByte()
		if err != nil {
			t.Fatalf("%v; wanted %q, saw %q", err, text, seen.String())
		}
		seen.WriteByte(b)
	}
	return seen.String()
}

func TestAsk(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", longestLine-2)
	for _, c := range []struct {
		name, typed, want string
		err               error
	}{
		{name: "line", typed: "123456\n", want: "123456"},
		{name: "carriage return", typed: "123456\r", want: "123456"},
		{name: "corrected", typed: "13\x7f23456\n", want: "123456"},
		{name: "empty", typed: "\n", want: ""},
		{name: "in two pieces", typed: "123\x04456\n", want: "123456"},
		{name: "long", typed: long + "\n", want: long},
		{name: "end of input", typed: "\x04", err: io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			person, program := openTerminal(t)
			if _, err := io.WriteString(person, c.typed); err != nil {
				t.Fatal(err)
			}
			a := &app{world: world{stderr: io.Discard}}
			got, err := a.ask(t.Context(), program, "PIN")
			if string(got) != c.want || !errors.Is(err, c.err) {
				t.Errorf("%q, %v; want %q, %v", got, err, c.want, c.err)
			}
			if !echoes(t, program) {
				t.Error("the terminal does not echo any more")
			}
		})
	}
}

// TestAskStopped has a person stop the program in the middle of a PIN and continue it, and end others.
func TestAskStopped(t *testing.T) {
	t.Parallel()
	const prompt = "PIN of soft: "
	start := func(person, program *os.File) (*exec.Cmd, *bufio.Reader) {
		c := exec.Command("mesh-agent", "token", "unlock", "soft", "--socket", "nowhere.sock")
		c.Stdin, c.Stdout, c.Stderr = program, program, program
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill() })
		screen := bufio.NewReader(person)
		waitFor(t, screen, prompt)
		if echoes(t, program) {
			t.Error("the terminal echoes while it is asked for a PIN")
		}
		return c, screen
	}

	person, program := openTerminal(t)
	c, screen := start(person, program)
	c.Process.Signal(syscall.SIGTSTP) // as the terminal sends it for ^Z
	var status unix.WaitStatus
	if _, err := unix.Wait4(c.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("wait until it is stopped: %v, %v", status, err)
	}
	if !echoes(t, program) {
		t.Error("a stopped program leaves the terminal without echo")
	}
	c.Process.Signal(syscall.SIGCONT)
	waitFor(t, screen, prompt)
	if echoes(t, program) {
		t.Error("the terminal echoes after the program goes on")
	}
	io.WriteString(person, "123456\n")
	if seen := waitFor(t, screen, "no agent answers"); strings.Contains(seen, "123456") {
		t.Errorf("the PIN is on the screen: %q", seen)
	}
	c.Wait()

	for _, end := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM} {
		person, program := openTerminal(t)
		c, screen := start(person, program)
		c.Process.Signal(end)
		waitFor(t, screen, "mesh-agent: token unlock: interrupted")
		var exit *exec.ExitError
		if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
			t.Errorf("%v: %v, want exit status 1", end, err)
		}
		if !echoes(t, program) {
			t.Errorf("%v leaves the terminal without echo", end)
		}
	}
}
