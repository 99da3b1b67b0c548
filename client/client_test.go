package client_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mesh-agent/mesh-agent/agent"
	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// start runs an agent with one fake token until the test ends.
func start(t testing.TB, o tokentest.FakeOptions) (fake *tokentest.Fake, meshPath, sshPath string) {
	t.Helper()
	st, err := store.Open(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	fake = tokentest.NewFake(o)
	ring, err := keyring.Open(st, fake)
	if err != nil {
		t.Fatal(err)
	}
	dir := socketFolder(t)
	meshPath, sshPath = filepath.Join(dir, "agent.sock"), filepath.Join(dir, "ssh.sock")
	meshListener, sshListener := listen(t, meshPath), listen(t, sshPath)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	a := agent.New(agent.Config{Keyring: ring, Build: "test", Socket: meshPath})
	go func() { done <- a.Serve(ctx, meshListener, sshListener) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, ring.Close()); err != nil {
			t.Error(err)
		}
	})
	return fake, meshPath, sshPath
}

// socketFolder has a short name, as the address of a socket is limited.
func socketFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ma")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listen(t testing.TB, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dial(t testing.TB, path string) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestManagement(t *testing.T) {
	t.Parallel()
	_, path, _ := start(t, tokentest.FakeOptions{Name: "t", PIN: []byte("1234")})
	c, ctx := dial(t, path), t.Context()

	hello, err := c.Hello(ctx)
	if err != nil || hello.Build != "test" || !slices.Contains(hello.Operations, mesh.TagOperationSign) {
		t.Errorf("hello: %+v, %v", hello, err)
	}
	generate := mesh.KeyGenerateRequest{Home: mesh.Home{Token: "t"}, Algorithm: "Ed25519", Use: "sign", Label: "l"}
	wantStatus(t, "generate while locked", 401, second(c.KeyGenerate(ctx, generate)))
	wantStatus(t, "wrong PIN", 401, c.TokenUnlock(ctx, "t", []byte("0000")))
	wantStatus(t, "unknown token", 404, c.TokenUnlock(ctx, "u", []byte("0000")))
	if err := c.TokenUnlock(ctx, "t", []byte("1234")); err != nil {
		t.Fatal(err)
	}
	made, err := c.KeyGenerate(ctx, generate)
	if err != nil || made.Key.Label != "l" || made.Key.Imported {
		t.Fatalf("generate: %+v, %v", made, err)
	}
	seed := bytes.Repeat([]byte{7}, 32)
	file := []byte(`{"PrivateKeyECDH":{"crv":"Ed25519","Private":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc"}}`)
	imported, err := c.KeyImport(ctx, mesh.KeyImportRequest{Home: mesh.Home{Token: "t"}, Use: "sign", Key: file})
	if err != nil || imported.Existed || !imported.Key.Imported {
		t.Fatalf("import: %+v, %v", imported, err)
	}
	again, err := c.KeyImport(ctx, mesh.KeyImportRequest{Home: mesh.Home{Token: "t"}, Use: "sign", Key: file})
	if err != nil || !again.Existed || again.Key.Udf != imported.Key.Udf {
		t.Errorf("import again: %+v, %v", again, err)
	}
	wantStatus(t, "another use", 403, second(c.KeyImport(ctx, mesh.KeyImportRequest{Home: mesh.Home{Token: "t"}, Use: "ssh", Key: file})))

	signature, err := c.Sign(ctx, imported.Key.Udf, nil, "pure")
	if err != nil || !ed25519.Verify(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey), nil, signature) {
		t.Errorf("sign: %v", err)
	}
	keys, err := c.KeyList(ctx)
	if err != nil || len(keys) != 2 {
		t.Errorf("list: %+v, %v", keys, err)
	}
	one, err := c.KeyShow(ctx, strings.ToLower(made.Key.Udf))
	if err != nil || one.Udf != made.Key.Udf {
		t.Errorf("show: %+v, %v", one, err)
	}
	wantStatus(t, "show nothing", 400, second(c.KeyShow(ctx, "")))
	tokens, err := c.TokenList(ctx)
	if err != nil || len(tokens) != 1 || tokens[0].Name != "t" || tokens[0].State != "ready" {
		t.Errorf("tokens: %+v, %v", tokens, err)
	}
	status, err := c.Status(ctx)
	if err != nil || status.Keys != 2 || status.PID != os.Getpid() || status.Socket != path {
		t.Errorf("status: %+v, %v", status, err)
	}
	if gone, err := c.KeyDelete(ctx, made.Key.Udf); err != nil || gone.Key.Udf != made.Key.Udf {
		t.Errorf("delete: %+v, %v", gone, err)
	}
	wantStatus(t, "delete again", 404, second(c.KeyDelete(ctx, made.Key.Udf)))
	wantStatus(t, "show what is gone", 404, second(c.KeyShow(ctx, made.Key.Udf)))
}

func second[T any](_ T, err error) error { return err }

func wantStatus(t *testing.T, what string, status int, err error) {
	t.Helper()
	var e *client.StatusError
	if !errors.As(err, &e) || e.Status != status || e.Error() == "" {
		t.Errorf("%s: %v, want status %d", what, err, status)
	}
}

// TestKeyListPages has more keys than fit a frame.
func TestKeyListPages(t *testing.T) {
	t.Parallel()
	_, path, _ := start(t, tokentest.FakeOptions{Name: "t"})
	c := dial(t, path)
	const n = 450
	for range n {
		req := mesh.KeyGenerateRequest{Home: mesh.Home{Token: "t"}, Algorithm: "P521", Use: "sign", Label: strings.Repeat("é", 128)}
		if _, err := c.KeyGenerate(t.Context(), req); err != nil {
			t.Fatal(err)
		}
	}
	first, err := c.RawOperate(t.Context(), []byte(`{"KeyListRequest":{}}`))
	if err != nil || !bytes.HasSuffix(first, []byte(`],"More":true}}`)) {
		t.Fatalf("the first page does not say that there are more: %v", err)
	}
	keys, err := c.KeyList(t.Context())
	if err != nil || len(keys) != n {
		t.Fatalf("%d keys, %v; want %d", len(keys), err, n)
	}
	if !slices.IsSortedFunc(keys, func(a, b mesh.KeyInfo) int { return strings.Compare(a.Udf, b.Udf) }) {
		t.Error("not sorted by UDF")
	}
	limited, err := c.RawOperate(t.Context(), []byte(`{"KeyListRequest":{"Limit":1,"After":"`+keys[5].Udf+`"}}`))
	if err != nil || !bytes.Contains(limited, []byte(keys[6].Udf)) || bytes.Contains(limited, []byte(keys[7].Udf)) || !bytes.Contains(limited, []byte(`"More":true`)) {
		t.Errorf("one key after the sixth: %s, %v", limited, err)
	}
	last, err := c.RawOperate(t.Context(), []byte(`{"KeyListRequest":{"After":"`+keys[n-2].Udf+`"}}`))
	if err != nil || bytes.Contains(last, []byte("More")) {
		t.Errorf("the last page: %s, %v", last, err)
	}
}

func TestAgreeDecryptShare(t *testing.T) {
	t.Parallel()
	_, path, _ := start(t, tokentest.FakeOptions{Name: "t"})
	c, ctx := dial(t, path), t.Context()
	a, err := c.Generate(ctx, mesh.OperationGenerate{Algorithm: "X25519", Use: "agree", Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Generate(ctx, mesh.OperationGenerate{Algorithm: "X25519", Use: "agree", Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	ab, err := c.Agree(ctx, a.KeyId, b.PublicKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	ba, err := c.Agree(ctx, b.KeyId, a.PublicKey, append([]byte{1}, make([]byte, 31)...))
	if err != nil || ab.Curve != "X25519" || !bytes.Equal(ab.Result, ba.Result) || len(ab.Result) != 33 {
		t.Errorf("%+v and %+v, %v", ab, ba, err)
	}
	bad := mesh.PublicParameters{PublicKeyECDH: &mesh.PublicKeyECDH{Curve: "X25519", Public: make([]byte, 32)}}
	wantStatus(t, "bad point", 422, second(c.Agree(ctx, a.KeyId, bad, nil)))
	wantStatus(t, "empty coefficient", 400, second(c.Agree(ctx, a.KeyId, b.PublicKey, []byte{})))
	wantStatus(t, "share of a key that is not for it", 403, second(c.Share(ctx, a.KeyId, 2, 2)))
	wantStatus(t, "decrypt nonsense", 400, second(c.Decrypt(ctx, mesh.OperationDecrypt{
		KeyId: a.KeyId, Recipient: &mesh.DecryptRecipient{EphemeralKey: b.PublicKey, WrappedKey: make([]byte, 40)}})))
	wantStatus(t, "unknown use", 400, second(c.Generate(ctx, mesh.OperationGenerate{Algorithm: "X25519", Use: "x", Token: "t"})))
}

func TestOperateRefused(t *testing.T) {
	t.Parallel()
	_, path, sshPath := start(t, tokentest.FakeOptions{Name: "t"})
	c := dial(t, path)
	wantStatus(t, "an empty batch", 400, second(c.Operate(t.Context(), &mesh.OperateRequest{})))
	if _, err := c.RawOperate(t.Context(), []byte(`{"Frob":{}}`)); !errors.Is(err, client.ErrMalformed) {
		t.Errorf("an unknown message: %v", err)
	}
	large := make([]byte, client.MaxRequest+1)
	if _, err := c.RawOperate(t.Context(), large); !errors.Is(err, client.ErrTooLarge) {
		t.Errorf("a large message: %v", err)
	}
	if _, err := c.RawOperate(t.Context(), large[1:]); !errors.Is(err, client.ErrMalformed) {
		t.Errorf("the largest message: %v", err)
	}
	if _, err := c.Hello(t.Context()); err != nil {
		t.Errorf("after all this: %v", err)
	}
	if _, err := dial(t, sshPath).Hello(t.Context()); !errors.Is(err, client.ErrNotMesh) {
		t.Errorf("on the SSH socket: %v", err)
	}
}

// TestContext ends a call by its context, which the agent notices.
func TestContext(t *testing.T) {
	t.Parallel()
	fake, path, _ := start(t, tokentest.FakeOptions{Name: "t"})
	c, other := dial(t, path), dial(t, path)
	key, err := c.Generate(t.Context(), mesh.OperationGenerate{Algorithm: "P256", Use: "sign", Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	hold := fake.Hold(tokentest.OpSign)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-hold.Entered()
		cancel()
	}()
	if _, err := c.Sign(ctx, key.KeyId, nil, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := c.Hello(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("afterwards: %v", err)
	}
	go func() {
		<-hold.Entered() // the agent has given up the first one
		hold.Release()
	}()
	if _, err := other.Sign(t.Context(), key.KeyId, nil, ""); err != nil {
		t.Errorf("another client: %v", err)
	}
	if _, err := other.Sign(ctx, key.KeyId, nil, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
}

func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	_, path, _ := start(t, tokentest.FakeOptions{Name: "t"})
	c := dial(t, path)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := c.TokenList(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if _, err := c.TokenList(t.Context()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestDialFails(t *testing.T) {
	t.Parallel()
	if _, err := client.Dial(t.Context(), filepath.Join(socketFolder(t), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestBadReplies has a server answer with what is no reply.
func TestBadReplies(t *testing.T) {
	t.Parallel()
	name := "operate@mathmesh.com"
	extension := func(number byte, name, json string) []byte {
		m := append(binary.BigEndian.AppendUint32([]byte{number}, uint32(len(name))), name...)
		return append(m, json...)
	}
	frame := func(m []byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(m))), m...)
	}
	cases := []struct {
		name  string
		reply []byte
		want  error
	}{
		{"nothing", nil, io.ErrUnexpectedEOF},
		{"half a length", []byte{0, 0}, io.ErrUnexpectedEOF},
		{"half a frame", []byte{0, 0, 0, 9, 29}, io.ErrUnexpectedEOF},
		{"empty frame", []byte{0, 0, 0, 0}, client.ErrProtocol},
		{"large frame", []byte{0, 4, 0, 1}, client.ErrProtocol},
		{"failure", frame([]byte{5}), client.ErrNotMesh},
		{"failure with more", frame([]byte{5, 0}), client.ErrProtocol},
		{"extension failure", frame([]byte{28}), client.ErrMalformed},
		{"another message", frame(extension(12, name, "")), client.ErrProtocol},
		{"another extension", frame(extension(29, "operate@mathmesh.org", "{}")), client.ErrProtocol},
		{"a longer name", frame(extension(29, name+"x", "{}")), client.ErrProtocol},
		{"no JSON", frame(extension(29, name, "")), client.ErrProtocol},
		{"another tag", frame(extension(29, name, `{"StatusResponse":{"Status":201}}`)), client.ErrProtocol},
		{"two tags", frame(extension(29, name, `{"A":{},"B":{}}`)), client.ErrProtocol},
		{"status of another kind", frame(extension(29, name, `{"MeshHelloResponse":{"Status":"x"}}`)), client.ErrProtocol},
		{"status twice", frame(extension(29, name, `{"MeshHelloResponse":{"Status":201,"Status":400}}`)), client.ErrProtocol},
		{"unknown member", frame(extension(29, name, `{"MeshHelloResponse":{"Status":201,"x":1}}`)), client.ErrProtocol},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(socketFolder(t), "s")
			l := listen(t, path)
			defer l.Close()
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				conn.Read(make([]byte, 1000))
				conn.Write(c.reply)
			}()
			if _, err := dial(t, path).Hello(t.Context()); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestDefaultSocket(t *testing.T) {
	cases := []struct{ sock, runtime, want string }{
		{"/a/b", "/run/user/1", "/a/b"},
		{"", "/run/user/1", "/run/user/1/mesh-agent/agent.sock"},
		{"", "", ""},
	}
	t.Setenv("SSH_AUTH_SOCK", "/somebody/else")
	for _, c := range cases {
		t.Setenv("MESH_AGENT_SOCK", c.sock)
		t.Setenv("XDG_RUNTIME_DIR", c.runtime)
		got, err := client.DefaultSocket()
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q, %v; want %q", got, err, c.want)
		}
	}
}

func BenchmarkSign(b *testing.B) {
	_, path, _ := start(b, tokentest.FakeOptions{Name: "t"})
	c := dial(b, path)
	key, err := c.Generate(b.Context(), mesh.OperationGenerate{Algorithm: string(token.Ed25519), Use: "sign", Token: "t"})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Sign(b.Context(), key.KeyId, []byte("data"), ""); err != nil {
			b.Fatal(err)
		}
	}
}
