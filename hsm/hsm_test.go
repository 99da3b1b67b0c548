package hsm

import (
	"fmt"
	"os"
	"testing"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// What the test binary is called with to be the helper process, or a client for benchmarks.
const (
	helperArgument = "pkcs11-helper-of-the-tests"
	clientArgument = "client-of-the-benchmarks"
	madArgument    = "helper-out-of-its-mind"
)

func TestMain(m *testing.M) {
	switch args := os.Args[1:]; {
	case len(args) == 1 && args[0] == helperArgument:
		exit(ServeModule())
	case len(args) == 2 && args[0] == madArgument:
		exit(babble(args[1]))
	case len(args) == 5 && args[0] == clientArgument:
		exit(signAsClient(args[1], args[2], args[3], args[4]))
	}
	os.Exit(tokentest.Main(m))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// newTestModule returns a module that is closed with the test.
func newTestModule(t testing.TB, s hsmtest.Setup, edit ...func(*ModuleOptions)) *Module {
	t.Helper()
	o := ModuleOptions{
		Path: s.Path, Arguments: s.Arguments, Environment: s.Environment,
		Helper: []string{executable(t), helperArgument}, Stderr: os.Stderr,
	}
	for _, f := range edit {
		f(&o)
	}
	m, err := NewModule(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func executable(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// openLocked opens the token of a setup.
func openLocked(t testing.TB, m *Module, s hsmtest.Setup) *Token {
	t.Helper()
	tok, err := Open(t.Context(), Options{Module: m, URI: URI{Token: s.Label}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	if state := tok.Info().State; state != token.StateLocked {
		t.Fatalf("state is %q, want locked", state)
	}
	return tok
}

func openUnlocked(t testing.TB, m *Module, s hsmtest.Setup) *Token {
	t.Helper()
	tok := openLocked(t, m, s)
	if err := tok.Unlock(t.Context(), []byte(hsmtest.PIN)); err != nil {
		t.Fatal(err)
	}
	return tok
}

// supports is what all PKCS #11 tokens have in common.
func supports(a token.Algorithm, u token.Use) bool {
	switch {
	case u == token.UseSplit:
		return false
	case a == token.Ed25519 || a == token.Ed448:
		return u.Signs()
	}
	return true
}

func contract(t *testing.T, s hsmtest.Setup) {
	m := newTestModule(t, s)
	tokentest.Run(t, tokentest.Harness{
		Open:        func(t *testing.T) token.Token { return openUnlocked(t, m, s) },
		Supports:    supports,
		OnlySeeds:   func(a token.Algorithm) bool { return a == token.Ed25519 || a == token.Ed448 },
		NoMeshSeeds: true,
		SealsByPIN:  true,
	})
}

func TestContractSoftHSM(t *testing.T) {
	t.Parallel()
	contract(t, hsmtest.SoftHSM(t))
}

func TestContractNSS(t *testing.T) {
	t.Parallel()
	contract(t, hsmtest.NSS(t))
}
