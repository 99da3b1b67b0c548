// Package hsmtest makes PKCS #11 tokens for tests: of SoftHSM 2 and of NSS, whose modules must be
// installed (scripts/install-test-deps.sh), and of a fake module that fails on command, built
// with the C compiler. What is missing fails the test.
//
// The package does not load modules: package hsm does, in its helper process.
package hsmtest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// PIN is the user PIN of every token made here, SOPIN that of its security officer.
const (
	PIN   = "1234-5678"
	SOPIN = "8765-4321"
)

// Setup is what a module needs to be loaded; its fields are those of hsm.ModuleOptions.
type Setup struct {
	Path        string
	Arguments   string
	Environment []string
	// Label is that of the token.
	Label string
	// Dir holds the token's files.
	Dir string
}

var softHSMPaths = []string{
	"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so",
}

// SoftHSM makes a SoftHSM 2 installation with one token.
func SoftHSM(t testing.TB) Setup {
	t.Helper()
	dir := t.TempDir()
	tokens := filepath.Join(dir, "tokens")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "softhsm2.conf")
	text := "directories.tokendir = " + tokens + "\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := Setup{
		Path: first(t, softHSMPaths), Environment: []string{"SOFTHSM2_CONF=" + conf}, Dir: dir,
	}
	s.Label = "test"
	s.AddToken(t, s.Label)
	return s
}

// AddToken makes another token in a SoftHSM installation.
func (s Setup) AddToken(t testing.TB, label string) {
	t.Helper()
	run(t, s.Environment, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SOPIN)
}

var nssPaths = []string{
	"/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/x86_64-linux-gnu/nss/libsoftokn3.so",
	"/usr/lib/aarch64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/nss/libsoftokn3.so",
	"/usr/lib64/libsoftokn3.so", "/usr/lib/libsoftokn3.so",
}

// NSS makes an NSS database, which is a token.
func NSS(t testing.TB) Setup {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "pin")
	if err := os.WriteFile(file, []byte(PIN+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "certutil", "-N", "-d", "sql:"+dir, "-f", file)
	return nssIn(t, dir)
}

// NSSWithoutPIN makes a database of NSS whose keys no PIN protects.
func NSSWithoutPIN(t testing.TB) Setup {
	t.Helper()
	dir := t.TempDir()
	run(t, nil, "certutil", "-N", "-d", "sql:"+dir, "--empty-password")
	return nssIn(t, dir)
}

func nssIn(t testing.TB, dir string) Setup {
	t.Helper()
	return Setup{
		Path:      first(t, nssPaths),
		Arguments: "configdir='sql:" + dir + "' certPrefix='' keyPrefix='' secmod='secmod.db' flags=",
		Label:     "NSS Certificate DB", Dir: dir,
	}
}

func first(t testing.TB, paths []string) string {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Fatalf("none of %v is installed: run scripts/install-test-deps.sh", paths)
	return ""
}

func run(t testing.TB, environment []string, name string, args ...string) {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), environment...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		t.Fatalf("%s: %v (run scripts/install-test-deps.sh)\n%s", name, err, out.Bytes())
	}
}
