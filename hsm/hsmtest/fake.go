package hsmtest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Fake is a module that is SoftHSM but for what it is told to do wrong.
type Fake struct {
	Setup
	dir string
}

// NewFake compiles the fake module and makes its token.
func NewFake(t testing.TB) Fake {
	t.Helper()
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("no source file")
	}
	dir := t.TempDir()
	library := filepath.Join(dir, "fake.so")
	run(t, nil, "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library,
		filepath.Join(filepath.Dir(here), "testdata", "fake.c"), "-ldl", "-lpthread")
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

// Logins returns how often a PIN was presented.
func (f Fake) Logins(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(f.dir, "logins"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return len(b)
}
