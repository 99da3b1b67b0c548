package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// TestMain has the tests' folders be this user's alone, as a state folder must be, whatever the umask is.
func TestMain(m *testing.M) {
	syscall.Umask(0o077)
	os.Exit(m.Run())
}

// newFake returns a token of its kind's name that has keys of every algorithm.
func newFake(name string) *tokentest.Fake {
	return tokentest.NewFake(tokentest.FakeOptions{Name: name, Algorithms: token.Algorithms()})
}

// newAgent returns an agent over tokens and an empty store.
func newAgent(t testing.TB, limits Limits, tokens ...token.Token) *Agent {
	t.Helper()
	st, err := store.Open(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.OpenConfig(keyring.Config{Store: st, Tokens: tokens, Software: software()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(Config{Keyring: ring, Build: "test", Limits: limits})
}

// software makes keys in memory by a fake, as this package knows no backend.
func software() keyring.Software {
	memory := newFake("memory")
	return keyring.Software{
		NewPrivate: func(a token.Algorithm, _ token.Use) (*token.PrivateKey, error) {
			curve, err := keyshare.ParseCurve(string(a))
			if err != nil {
				return nil, err
			}
			s, err := keyshare.RandomScalar(curve, rand.Reader)
			if err != nil {
				return nil, err
			}
			return &token.PrivateKey{Algorithm: a, Scalar: s.Bytes()}, nil
		},
		NewKey: func(private *token.PrivateKey, use token.Use) (token.Key, error) {
			created, err := memory.Import(context.Background(), token.ImportRequest{Private: private, Use: use})
			if err != nil {
				return nil, err
			}
			return memory.Open(context.Background(), token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: use})
		},
	}
}

// generate makes a key and returns its entry.
func generate(t testing.TB, a *Agent, tokenName string, alg token.Algorithm, use token.Use, shareTo ...token.PublicKey) *keyring.Entry {
	t.Helper()
	e, err := a.ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: tokenName, Algorithm: alg, Use: use, ShareTo: shareTo})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sockets are where a served agent listens.
type sockets struct{ mesh, ssh string }

// serve runs the agent until the test ends.
func serve(t testing.TB, a *Agent) sockets {
	t.Helper()
	return newServer(a).run(t)
}

// run serves until the test ends.
func (srv *server) run(t testing.TB) sockets {
	t.Helper()
	s, listeners := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.serve(ctx, listeners[0], listeners[1]) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("Serve:", err)
		}
	})
	return s
}

// listen makes the two sockets in a folder with a short name, as their address is limited.
func listen(t testing.TB) (sockets, [2]net.Listener) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ma")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := sockets{filepath.Join(dir, "agent.sock"), filepath.Join(dir, "ssh.sock")}
	var out [2]net.Listener
	for i, path := range []string{s.mesh, s.ssh} {
		if out[i], err = net.Listen("unix", path); err != nil {
			t.Fatal(err)
		}
	}
	return s, out
}

func dial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

func frameOf(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}

func operateMessage(json string) []byte {
	return append(appendString([]byte{sshExtension}, extensionOperate), json...)
}

func send(t testing.TB, c net.Conn, message []byte) {
	t.Helper()
	if _, err := c.Write(frameOf(message)); err != nil {
		t.Fatal("write:", err)
	}
}

func receive(t testing.TB, c net.Conn) []byte {
	t.Helper()
	message, err := readMessage(c)
	if err != nil {
		t.Fatal("read:", err)
	}
	return message
}

func readMessage(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

// exchange gives one message to the agent without a socket.
func (a *Agent) exchange(ctx context.Context, kind socketKind, message []byte) []byte {
	r := &request{Agent: a, kind: kind, peer: policy.Peer{UID: a.uid}, owner: new(int)}
	return r.answer(ctx, nil, message)
}

// operateJSON gives one Mesh message to the agent and returns the JSON of the reply.
func operateJSON(t testing.TB, a *Agent, json string) string {
	t.Helper()
	return replyJSON(t, a.exchange(t.Context(), meshAndSSH, operateMessage(json)))
}

func replyJSON(t testing.TB, reply []byte) string {
	t.Helper()
	prefix := appendString([]byte{sshExtensionResponse}, extensionOperate)
	if len(reply) < len(prefix) || string(reply[:len(prefix)]) != string(prefix) {
		t.Fatalf("reply %q", reply)
	}
	json := reply[len(prefix):]
	if err := strictjson.Valid(json); err != nil {
		t.Fatalf("reply %s: %v", json, err)
	}
	return string(json)
}

// body returns what is under the one tag of a JSON object.
func body(t testing.TB, json, tag string) strictjson.Value {
	t.Helper()
	got, value, err := cutTagged([]byte(json))
	if err != nil || got != tag {
		t.Fatalf("%s: tag %q, %v; want %q", json, got, err, tag)
	}
	return value
}

// reply is the common part of all response bodies, result that of all results.
type reply struct {
	Status            int
	StatusDescription string
	Results           []strictjson.Tagged
}

type result struct {
	Status int
	Error  string
}

// operateResult does one operation and returns its result, tag and body.
func operateResult(t testing.TB, a *Agent, operation string) strictjson.Tagged {
	t.Helper()
	json := operateJSON(t, a, `{"OperateRequest":{"Operations":[`+operation+`]}}`)
	var r reply
	if err := strictjson.Unmarshal(body(t, json, "OperateResponse"), &r); err != nil {
		t.Fatalf("%s: %v", json, err)
	}
	if r.Status != 201 || len(r.Results) != 1 {
		t.Fatalf("%s: one result expected", json)
	}
	return r.Results[0]
}
