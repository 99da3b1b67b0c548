package hsmtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Fake is a module that is SoftHSM but for what it is told to do wrong.
type Fake struct {
	Setup
	dir string
}

// compiled is the fake module, which is compiled once.
var compiled = sync.OnceValues(func() (library []byte, err error) {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return nil, errors.New("no source file")
	}
	dir, err := os.MkdirTemp("", "fake")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "fake.so")
	source := filepath.Join(filepath.Dir(here), "testdata", "fake.c")
	out, err := exec.Command("cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", path, source, "-ldl", "-lpthread").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("cc: %w (run scripts/install-test-deps.sh)\n%s", err, out)
	}
	return os.ReadFile(path)
})

// NewFake makes a token of the fake module.
func NewFake(t testing.TB) Fake {
	t.Helper()
	dir := t.TempDir()
	library := filepath.Join(dir, "fake.so")
	octets, err := compiled()
	if err == nil {
		err = os.WriteFile(library, octets, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := SoftHSM(t)
	s.Environment = append(s.Environment, "FAKE_PKCS11_REAL="+s.Path, "FAKE_PKCS11_DIR="+dir)
	s.Path = library
	return Fake{s, dir}
}

// Do gives a function of the module a command; see testdata/fake.c. The change is atomic.
func (f Fake) Do(t testing.TB, function, command string) {
	t.Helper()
	path := filepath.Join(f.dir, function)
	if err := os.WriteFile(path+".new", []byte(command), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// Heal takes a command back.
func (f Fake) Heal(t testing.TB, function string) {
	t.Helper()
	if err := os.Remove(filepath.Join(f.dir, function)); err != nil {
		t.Fatal(err)
	}
}

// Hold makes a function wait in the module. await returns when it is called, release lets it go on; both once.
func (f Fake) Hold(t testing.TB, function string) (await, release func()) {
	t.Helper()
	path := filepath.Join(f.dir, function+".wait")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	f.Do(t, function, "wait")
	open := func(mode int) func() {
		return func() {
			t.Helper()
			file, err := os.OpenFile(path, mode, 0)
			if err != nil {
				t.Fatal(err)
			}
			file.Close()
		}
	}
	return open(os.O_RDONLY), open(os.O_WRONLY)
}

// Shared returns which functions were called in a session while another one was there.
func (f Fake) Shared(t testing.TB) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "shared"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(b), func(c rune) bool { return c == '\n' })
}

// Logins returns how often a PIN was presented.
func (f Fake) Logins(t testing.TB) int { return f.noted(t, "logins") }

// Opened returns how many sessions were opened.
func (f Fake) Opened(t testing.TB) int { return f.noted(t, "opened") }

// Finalized returns how often the module was finalized.
func (f Fake) Finalized(t testing.TB) int { return f.noted(t, "finalized") }

func (f Fake) noted(t testing.TB, name string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(b)
}
