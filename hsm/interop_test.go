package hsm

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// program runs a program of a Debian package on the module of a setup.
func program(t *testing.T, s hsmtest.Setup, name string, args ...string) []byte {
	t.Helper()
	c := exec.Command(name, args...)
	c.Env = append(os.Environ(), append(s.Environment, "GNUTLS_PIN="+hsmtest.PIN)...)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v (run scripts/install-test-deps.sh)\n%s", name, err, out)
	}
	return out
}

// Keys that OpenSC's and GnuTLS's tools make are adopted; OpenSC writes the names of Edwards curves where others
// write their identifiers.
func TestAdoptFromTools(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	opensc := func(label, id, kind string) {
		program(t, s, "pkcs11-tool", "--module", s.Path, "--token-label", s.Label, "--login", "--pin", hsmtest.PIN,
			"--keypairgen", "--key-type", kind, "--label", label, "--id", id)
	}
	opensc("P-256", "01", "EC:prime256v1")
	opensc("Ed25519", "02", "EC:edwards25519")
	opensc("RSA", "03", "rsa:2048")
	program(t, s, "p11tool", "--provider", s.Path, "--login", "--generate-privkey=ecdsa", "--curve", "secp384r1", "--label", "GnuTLS", "pkcs11:token="+s.Label)
	tok := openUnlocked(t, newTestModule(t, s), s)
	for label, want := range map[string]token.Algorithm{"P-256": token.P256, "Ed25519": token.Ed25519, "RSA": token.RSA2048, "GnuTLS": token.P384} {
		created, err := tok.Adopt(t.Context(), token.AdoptRequest{Slot: label, Use: token.UseSign})
		if err != nil || created.Public.Algorithm != want {
			t.Errorf("%s: %v, %v", label, created.Public.Algorithm, err)
			continue
		}
		k, err := tok.Open(t.Context(), token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: token.UseSign, Imported: true})
		if err != nil {
			t.Fatal(err)
		}
		wantSign(t, label, k.(token.Signer), nil)
	}
	// And they see ours, with what protects it.
	signKeyFor(t, tok, token.P521)
	list := program(t, s, "p11tool", "--provider", s.Path, "--login", "--list-privkeys", "pkcs11:token="+s.Label+";object=mesh-agent%20P521%20sign")
	if !bytes.Contains(list, []byte("SECP521R1")) || !bytes.Contains(list, []byte("CKA_NEVER_EXTRACTABLE; CKA_SENSITIVE")) {
		t.Errorf("p11tool says of a key:\n%s", list)
	}
}

// A token that is elsewhere, behind p11-kit's remote module, signs.
func TestRemote(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	dir, err := os.MkdirTemp("", "p11") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	server := exec.CommandContext(t.Context(), "p11-kit", "server", "--foreground", "--provider", s.Path, "-n", filepath.Join(dir, "socket"), "pkcs11:token="+s.Label)
	server.Env = append(os.Environ(), s.Environment...)
	out, err := server.StdoutPipe()
	if err == nil {
		err = server.Start()
	}
	if err != nil {
		t.Fatalf("p11-kit: %v (run scripts/install-test-deps.sh)", err)
	}
	t.Cleanup(func() { server.Wait() }) // killed when the test is over
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("p11-kit says %q, %v", line, err) // once it listens: how to reach it
	}
	remote := s
	remote.Path = p11KitClient(t)
	remote.Environment = []string{"P11_KIT_SERVER_ADDRESS=unix:path=" + filepath.Join(dir, "socket")}
	tok := openUnlocked(t, newTestModule(t, remote), remote)
	wantSign(t, "P-256", signKeyFor(t, tok, token.P256), nil)
	if _, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseAgree}); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("a key to agree: %v, want ErrUnsupported", err)
	}
}

func p11KitClient(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/*/pkcs11/p11-kit-client.so")
	if err != nil || len(found) == 0 {
		t.Fatalf("p11-kit-client.so is not there (run scripts/install-test-deps.sh): %v", err)
	}
	return found[0]
}

// A token that makes no keys holds those that are in it, and takes others in.
func TestKindsWithoutGeneration(t *testing.T) {
	t.Parallel()
	var got []token.Algorithm
	m := mechanisms{ckmECDSA: 384, ckmRSAPKCS: 2048, ckmEDDSA: 255, ckmECDH1Derive: 384}
	for _, k := range kinds("", m) {
		got = append(got, k.algorithm)
		if k.makes || k.sign == 0 {
			t.Errorf("%s: %+v", k.algorithm, k)
		}
	}
	if want := []token.Algorithm{token.Ed25519, token.P256, token.P384, token.RSA2048}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	tok := &Token{}
	for _, k := range kinds("", m) {
		if _, err := tok.generate(t.Context(), nil, k, token.UseSign, token.Policy{}, nil, ""); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("generate %s: %v, want ErrUnsupported", k.algorithm, err)
		}
	}
}
