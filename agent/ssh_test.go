package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/token"
)

var sshAlgorithms = []token.Algorithm{token.Ed25519, token.P256, token.P384, token.P521, token.RSA2048}

// sshKeySet makes one ssh key of each algorithm, and keys of other uses that SSH must not see.
func sshKeySet(t testing.TB, a *Agent) map[token.Algorithm]*keyring.Entry {
	t.Helper()
	keys := make(map[token.Algorithm]*keyring.Entry)
	for _, alg := range sshAlgorithms {
		e, err := a.ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: "t", Algorithm: alg, Use: token.UseSSH, Label: "my " + string(alg)})
		if err != nil {
			t.Fatal(err)
		}
		keys[alg] = e
	}
	generate(t, a, "t", token.Ed25519, token.UseSign)
	generate(t, a, "t", token.P256, token.UseDecrypt)
	return keys
}

func signRequestMessage(blob, data []byte, flags uint32) []byte {
	m := appendString(appendString([]byte{sshSignRequest}, blob), data)
	return binary.BigEndian.AppendUint32(m, flags)
}

func TestSSHMessages(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	keys := sshKeySet(t, a)
	blob := func(e *keyring.Entry) []byte {
		b, err := sshBlob(e.Public)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	ed, rsa := blob(keys[token.Ed25519]), blob(keys[token.RSA2048])
	signKey := generate(t, a, "t", token.Ed25519, token.UseSign)
	good := signRequestMessage(ed, []byte("data"), 0)
	extension := func(name, contents string) []byte {
		return append(appendString([]byte{sshExtension}, name), contents...)
	}
	failure, malformed := []byte{sshFailure}, []byte{sshExtensionFailure}
	query := appendString([]byte{sshExtensionResponse}, "query")

	cases := []struct {
		name      string
		message   []byte
		mesh, ssh []byte // nil: another answer than failure, looked at elsewhere
	}{
		{"list", listMessage, nil, nil},
		{"list with more", []byte{sshRequestIdentities, 0}, failure, failure},
		{"sign", good, nil, nil},
		{"sign, cut", good[:len(good)-1], failure, failure},
		{"sign with more", append(slices.Clone(good), 0), failure, failure},
		{"sign without contents", []byte{sshSignRequest}, failure, failure},
		{"sign, key too long", []byte{sshSignRequest, 0xff, 0xff, 0xff, 0xff, 1}, failure, failure},
		{"sign with flag 1", signRequestMessage(ed, nil, 1), failure, failure},
		{"sign with an undefined flag", signRequestMessage(ed, nil, 8), failure, failure},
		{"sign with RSA flags and another key", signRequestMessage(ed, nil, 4), nil, nil},
		{"sign with RSA and SHA-1", signRequestMessage(rsa, nil, 0), failure, failure},
		{"sign with RSA and SHA-256", signRequestMessage(rsa, nil, 2), nil, nil},
		{"sign with RSA and SHA-512", signRequestMessage(rsa, nil, 4), nil, nil},
		{"sign with an unknown key", signRequestMessage(ed[:len(ed)-1], nil, 0), failure, failure},
		{"sign with a key of use sign", signRequestMessage(blob(signKey), nil, 0), failure, failure},
		{"answer instead of request", []byte{sshIdentitiesAnswer, 0, 0, 0, 0}, failure, failure},
		{"version 1 list", []byte{1}, failure, failure},
		{"add identity", []byte{17, 0, 0, 0, 0}, failure, failure},
		{"remove identity", appendString([]byte{18}, ed), failure, failure},
		{"remove all", []byte{19}, failure, failure},
		{"add smartcard key", []byte{20, 0, 0, 0, 0, 0, 0, 0, 0}, failure, failure},
		{"lock", appendString([]byte{22}, "passphrase"), failure, failure},
		{"unlock", appendString([]byte{23}, "passphrase"), failure, failure},
		{"add constrained", []byte{25, 0}, failure, failure},
		{"unknown message", []byte{200}, failure, failure},
		{"extension without name", []byte{sshExtension}, failure, failure},
		{"extension, name too long", []byte{sshExtension, 0, 0, 0, 9, 'q'}, failure, failure},
		{"extension with an empty name", extension("", ""), failure, failure},
		{"unknown extension", extension("frob@example.com", "x"), failure, failure},
		{"session-bind", extension("session-bind@openssh.com", ""), failure, failure},
		{"query", extension("query", ""), appendString(slices.Clone(query), extensionOperate), query},
		{"query with contents", extension("query", "x"), malformed, malformed},
		{"operate without contents", extension(extensionOperate, ""), malformed, failure},
		{"operate with text", extension(extensionOperate, "hello"), malformed, failure},
		{"operate", extension(extensionOperate, `{"HelloRequest":{}}`), nil, failure},
	}
	for _, c := range cases {
		for kind, want := range map[socketKind][]byte{meshAndSSH: c.mesh, sshOnly: c.ssh} {
			got := a.exchange(t.Context(), kind, c.message)
			switch {
			case want != nil && !bytes.Equal(got, want):
				t.Errorf("%s on socket %d: %x, want %x", c.name, kind, got, want)
			case want == nil && (bytes.Equal(got, failure) || bytes.Equal(got, malformed)):
				t.Errorf("%s on socket %d: %x", c.name, kind, got)
			}
		}
	}
}

// TestSSHClient has the client of x/crypto list and sign.
func TestSSHClient(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	keys := sshKeySet(t, a)
	s := serve(t, a)
	for _, path := range []string{s.mesh, s.ssh} {
		client := sshagent.NewClient(dial(t, path))
		list, err := client.List()
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != len(keys) {
			t.Fatalf("%d keys listed, want %d", len(list), len(keys))
		}
		for _, k := range list {
			if !strings.HasPrefix(k.Comment, "my ") {
				t.Errorf("comment %q", k.Comment)
			}
			if k.Format == ssh.KeyAlgoRSA {
				continue
			}
			checkSSHSignature(t, client, k, 0, k.Format)
		}
		i := slices.IndexFunc(list, func(k *sshagent.Key) bool { return k.Format == ssh.KeyAlgoRSA })
		checkSSHSignature(t, client, list[i], sshagent.SignatureFlagRsaSha256, ssh.KeyAlgoRSASHA256)
		checkSSHSignature(t, client, list[i], sshagent.SignatureFlagRsaSha512, ssh.KeyAlgoRSASHA512)
		if _, err := client.Sign(list[i], []byte("data")); err == nil {
			t.Error("an ssh-rsa signature, which uses SHA-1, was made")
		}
		if _, err := client.Extension("session-bind@openssh.com", nil); !errors.Is(err, sshagent.ErrExtensionUnsupported) {
			t.Errorf("session-bind: %v", err)
		}
		for what, err := range map[string]error{
			"lock": client.Lock([]byte("x")), "unlock": client.Unlock([]byte("x")),
			"remove": client.Remove(list[0]), "remove all": client.RemoveAll(),
		} {
			if err == nil {
				t.Errorf("%s was acknowledged", what)
			}
		}
	}
}

func checkSSHSignature(t *testing.T, client sshagent.ExtendedAgent, key *sshagent.Key, flags sshagent.SignatureFlags, format string) {
	t.Helper()
	data := make([]byte, 1000)
	rand.Read(data)
	sig, err := client.SignWithFlags(key, data, flags)
	if err != nil {
		t.Errorf("sign with %s: %v", key.Format, err)
		return
	}
	if sig.Format != format {
		t.Errorf("format %s, want %s", sig.Format, format)
	}
	if err := key.Verify(data, sig); err != nil {
		t.Errorf("verify %s: %v", format, err)
	}
}

// TestSSHListFollowsTheRing makes sure that keys appear and vanish.
func TestSSHListFollowsTheRing(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	count := func() uint32 {
		return binary.BigEndian.Uint32(a.exchange(t.Context(), sshOnly, listMessage)[1:])
	}
	if n := count(); n != 0 {
		t.Errorf("%d keys at first", n)
	}
	e := generate(t, a, "t", token.Ed25519, token.UseSSH)
	if n := count(); n != 1 {
		t.Errorf("%d keys after one was made", n)
	}
	if got := a.exchange(t.Context(), sshOnly, listMessage); !bytes.HasSuffix(got, []byte(e.Udf)) {
		t.Error("a key without label does not have its UDF as comment")
	}
	if _, err := a.ring.Delete(t.Context(), nil, e.Udf); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 0 {
		t.Errorf("%d keys after it was deleted", n)
	}
}

// TestOpenSSH has OpenSSH's own tools list the keys, sign with them and verify.
func TestOpenSSH(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	keys := sshKeySet(t, a)
	s := serve(t, a)
	for _, path := range []string{s.mesh, s.ssh} {
		run := func(stdin string, name string, args ...string) string {
			t.Helper()
			cmd := exec.Command(name, args...)
			cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+path)
			cmd.Stdin = strings.NewReader(stdin)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s %v: %v\n%s", name, args, err, out)
			}
			return string(out)
		}
		fingerprints, public := run("", "ssh-add", "-l"), run("", "ssh-add", "-L")
		for alg, e := range keys {
			blob, err := sshBlob(e.Public)
			if err != nil {
				t.Fatal(err)
			}
			key, err := ssh.ParsePublicKey(blob)
			if err != nil {
				t.Fatal(err)
			}
			line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
			if !strings.Contains(fingerprints, ssh.FingerprintSHA256(key)) || !strings.Contains(public, line+" my "+string(alg)) {
				t.Errorf("ssh-add does not list the %s key:\n%s%s", alg, fingerprints, public)
			}
			dir := t.TempDir()
			write(t, filepath.Join(dir, "key.pub"), line)
			write(t, filepath.Join(dir, "allowed"), "me "+line)
			write(t, filepath.Join(dir, "data"), "some data")
			run("", "ssh-keygen", "-Y", "sign", "-f", filepath.Join(dir, "key.pub"), "-n", "file", filepath.Join(dir, "data"))
			run("some data\n", "ssh-keygen", "-Y", "verify", "-f", filepath.Join(dir, "allowed"), "-I", "me", "-n", "file", "-s", filepath.Join(dir, "data.sig"))
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzSignRequest(f *testing.F) {
	f.Add(signRequestMessage([]byte("key"), []byte("data"), 2)[1:])
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, contents []byte) {
		ask, ok := parseSignRequest(contents)
		if !ok {
			return
		}
		if again := signRequestMessage(ask.key, ask.data, ask.flags)[1:]; !bytes.Equal(again, contents) {
			t.Errorf("%x decodes and encodes to %x", contents, again)
		}
	})
}

// FuzzMessage gives any message to both sockets: there is an answer, it fits a frame, and only
// what is listed is ever acknowledged.
func FuzzMessage(f *testing.F) {
	a := newAgent(f, Limits{}, newFake("t"))
	generate(f, a, "t", token.Ed25519, token.UseSSH)
	f.Add([]byte{sshRequestIdentities})
	f.Add([]byte{22, 0, 0, 0, 0})
	f.Add(appendString([]byte{sshExtension}, "query"))
	f.Add(operateMessage(`{"HelloRequest":{}}`))
	f.Add(signRequestMessage([]byte("key"), []byte("data"), 0))
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) == 0 {
			return
		}
		for _, kind := range []socketKind{sshOnly, meshAndSSH} {
			reply := a.exchange(t.Context(), kind, message)
			if len(reply) == 0 || len(reply) > maxFrame {
				t.Fatalf("reply of %d octets", len(reply))
			}
			want := map[byte][]byte{
				sshRequestIdentities: {sshIdentitiesAnswer},
				sshSignRequest:       {sshSignResponse},
				sshExtension:         {sshExtensionResponse, sshExtensionFailure},
			}[message[0]]
			if reply[0] != sshFailure && !slices.Contains(want, reply[0]) {
				t.Errorf("message %d was answered with %d", message[0], reply[0])
			}
		}
	})
}
