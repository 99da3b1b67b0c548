package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// recorder dials a device and records the command codes that go over its streams.
type recorder struct {
	dial dialer

	mu       sync.Mutex
	commands []tpm2.TPMCC // guarded by mu, as all below
	dials    int
	streams  []*recordedStream
}

type recordedStream struct {
	stream
	recorder *recorder
}

func newRecorder(t testing.TB, device string) *recorder {
	t.Helper()
	dial, err := parseDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	return &recorder{dial: dial}
}

func (r *recorder) open(ctx context.Context) (stream, error) {
	s, err := r.dial(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dials++
	rs := &recordedStream{s, r}
	r.streams = append(r.streams, rs)
	return rs, nil
}

func (s *recordedStream) Write(b []byte) (int, error) {
	s.recorder.mu.Lock()
	s.recorder.commands = append(s.recorder.commands, tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])))
	s.recorder.mu.Unlock()
	return s.stream.Write(b)
}

// take returns the commands since it was last called.
func (r *recorder) take() []tpm2.TPMCC {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.commands
	r.commands = nil
	return out
}

func (r *recorder) wantCommands(t *testing.T, what string, want ...tpm2.TPMCC) {
	t.Helper()
	if got := r.take(); !slices.Equal(got, want) {
		t.Errorf("%s took commands %#x, want %#x", what, got, want)
	}
}

func open(t testing.TB, o Options) *Token {
	t.Helper()
	tok, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	return tok
}

func generate(t testing.TB, tok *Token, a token.Algorithm, u token.Use) token.OpenRequest {
	t.Helper()
	c, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: a, Use: u})
	if err != nil {
		t.Fatal(err)
	}
	return openRequest(c, u)
}

func openRequest(c token.Created, u token.Use) token.OpenRequest {
	return token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: u}
}

func openKey(t testing.TB, tok *Token, req token.OpenRequest) token.Key {
	t.Helper()
	k, err := tok.Open(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, k token.Key) {
	t.Helper()
	req := tokentest.DefaultSignRequest(k.Public().Algorithm, []byte("message"))
	sig, err := k.(token.Signer).Sign(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if err := tokentest.Verify(k.Public(), req, sig); err != nil {
		t.Fatal(err)
	}
}

func agree(t testing.TB, k token.Key) {
	t.Helper()
	c, err := keyshare.ParseCurve(string(k.Public().Algorithm))
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.(token.PointAgreer).AgreePoint(t.Context(), token.AgreeRequest{Peer: keyshare.BasePoint(c).Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(k.Public().Octets) { // b * G
		t.Fatalf("agreement with the base point is %x, want the public key %x", got, k.Public().Octets)
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	m := newMiscomputer(t, tpmtest.Start(t).Device())
	tokentest.Run(t, tokentest.Harness{
		Open: func(t *testing.T) token.Token {
			tok := open(t, Options{dial: m.open})
			m.learn(t, tok)
			return tok
		},
		Supports: func(_ token.Algorithm, u token.Use) bool { return u != token.UseSplit },
		Corrupt:  m.corrupt,
	})
}

// miscomputer is a TPM that signs wrong when it is told to, and sends that with a right HMAC.
type miscomputer struct {
	dial  dialer
	key   []byte // of the session
	wrong atomic.Bool
}

func newMiscomputer(t *testing.T, device string) *miscomputer {
	t.Helper()
	dial, err := parseDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	return &miscomputer{dial: dial}
}

func (m *miscomputer) open(ctx context.Context) (stream, error) {
	st, err := m.dial(ctx)
	return &miscomputedStream{stream: st, m: m}, err
}

// learn takes the session key of a token that has just been opened.
func (m *miscomputer) learn(t *testing.T, tok *Token) {
	t.Helper()
	var err error
	m.key, err = do(t.Context(), tok, "session key", func(d *device) ([]byte, error) { return bytes.Clone(d.session.key), nil })
	if err != nil {
		t.Fatal(err)
	}
}

func (m *miscomputer) corrupt(*testing.T) (heal func()) {
	m.wrong.Store(true)
	return func() { m.wrong.Store(false) }
}

type miscomputedStream struct {
	stream
	m       *miscomputer
	command []byte
}

func (s *miscomputedStream) Write(b []byte) (int, error) {
	s.command = bytes.Clone(b)
	return s.stream.Write(b)
}

func (s *miscomputedStream) Read(b []byte) (int, error) {
	n, err := s.stream.Read(b)
	cc := tpm2.TPMCC(binary.BigEndian.Uint32(s.command[6:]))
	if err != nil || cc != tpm2.TPMCCSign || !s.m.wrong.Load() {
		return n, err
	}
	const at = headerLen + 4
	parameters := b[at : at+int(binary.BigEndian.Uint32(b[headerLen:]))]
	parameters[len(parameters)-1] ^= 1
	entry := b[at+len(parameters) : n] // nonce, attributes, HMAC
	caller := s.command[headerLen+4+4+4+2:][:nonceLen]
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint32(make([]byte, 4), uint32(cc)), parameters...))
	a := &authorization{session: &session{key: s.m.key}}
	a.mac(entry[:len(entry)-sha256.Size], sum[:], entry[2:2+nonceLen], caller, nil, entry[2+nonceLen])
	return n, err
}

func TestInfo(t *testing.T) {
	t.Parallel()
	info := open(t, Options{Device: tpmtest.Start(t).Device()}).Info()
	want := []token.Algorithm{token.P256, token.P384, token.P521, token.RSA2048, token.RSA3072}
	if info.Name != "tpm" || info.Parallel != 1 || info.Protection != token.ProtectionToken || !slices.Equal(info.Algorithms, want) {
		t.Errorf("unexpected %+v", info)
	}
	t.Log(info.Description)
}

// TestCommands fixes the number of TPM commands: a warm operation is one.
func TestCommands(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, tpmtest.Start(t).Device())
	tok := open(t, Options{dial: r.open})
	if n := count(r.take(), tpm2.TPMCCCreatePrimary); n != 1 {
		t.Errorf("start took %d CreatePrimary, want 1", n)
	}
	signer := generate(t, tok, token.P256, token.UseSign)
	r.wantCommands(t, "Generate", tpm2.TPMCCCreate)
	agreer := generate(t, tok, token.P384, token.UseAgree)
	r.wantCommands(t, "Generate", tpm2.TPMCCCreate)

	s := openKey(t, tok, signer)
	r.wantCommands(t, "Open", tpm2.TPMCCLoad)
	a := openKey(t, tok, agreer)
	r.wantCommands(t, "Open", tpm2.TPMCCLoad)
	for range 10 {
		sign(t, s)
		r.wantCommands(t, "warm Sign", tpm2.TPMCCSign)
		agree(t, a)
		r.wantCommands(t, "warm AgreePoint", tpm2.TPMCCECDHZGen)
	}
	third := openKey(t, tok, generate(t, tok, token.P256, token.UseSSH))
	r.take()
	agree(t, a)
	r.wantCommands(t, "warm AgreePoint", tpm2.TPMCCECDHZGen)
	sign(t, s)
	r.wantCommands(t, "Sign with the key that had to make room",
		tpm2.TPMCCFlushContext, tpm2.TPMCCLoad, tpm2.TPMCCSign)
	agree(t, a)
	sign(t, s)
	r.wantCommands(t, "the two keys used last", tpm2.TPMCCECDHZGen, tpm2.TPMCCSign)
	sign(t, third)
	r.wantCommands(t, "Sign with the key used before them",
		tpm2.TPMCCFlushContext, tpm2.TPMCCLoad, tpm2.TPMCCSign)
}

func count(commands []tpm2.TPMCC, c tpm2.TPMCC) int {
	n := 0
	for _, x := range commands {
		if x == c {
			n++
		}
	}
	return n
}

// persist makes the ECC or RSA storage root key persistent.
func persist(t *testing.T, s *tpmtest.TPM, template tpm2.TPMTPublic) {
	t.Helper()
	d := raw(t, s)
	defer d.abandon()
	defer d.flushStale()
	primary, err := d.createPrimary(tpm2.TPMRHOwner, template)
	if err != nil {
		t.Fatal(err)
	}
	evict(t, d, primary.NamedHandle, persistentSRK)
}

func evict(t *testing.T, d *device, h tpm2.NamedHandle, persistent tpm2.TPMHandle) {
	t.Helper()
	_, err := run(d, tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &h, PersistentHandle: persistent})
	if err != nil {
		t.Fatal(err)
	}
}

// raw is a connection to a TPM that nobody else is connected to.
func raw(t *testing.T, s *tpmtest.TPM) *device {
	t.Helper()
	dial, err := parseDevice(s.Device())
	if err != nil {
		t.Fatal(err)
	}
	d, err := openDevice(t.Context(), Options{dial: dial, Timeout: defaultTimeout})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPersistentSRK(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	early := open(t, Options{Device: s.Device()})
	old := generate(t, early, token.P256, token.UseSign) // under the owner's storage root key
	early.Close()
	persist(t, s, tpm2.ECCSRKTemplate)

	r := newRecorder(t, s.Device())
	tok := open(t, Options{dial: r.open})
	if n := count(r.take(), tpm2.TPMCCCreatePrimary); n != 0 {
		t.Errorf("start took %d CreatePrimary, want none", n)
	}
	keys := make([]token.Key, slots-1)
	for i := range keys {
		keys[i] = openKey(t, tok, generate(t, tok, token.P256, token.UseSign))
	}
	r.take()
	for _, k := range keys {
		sign(t, k)
	}
	r.wantCommands(t, "loaded keys", tpm2.TPMCCSign, tpm2.TPMCCSign)
	sign(t, openKey(t, tok, old))
	for _, k := range keys {
		sign(t, k)
	}
}

func TestForeignPersistentKey(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	persist(t, s, tpm2.RSASRKTemplate)
	tok := open(t, Options{Device: s.Device()})
	sign(t, openKey(t, tok, generate(t, tok, token.P256, token.UseSign)))
}

// TestManyKeys uses more keys than there are slots, in an order that evicts all the time.
func TestManyKeys(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	var signers, agreers []token.Key
	for range 4 {
		signers = append(signers, openKey(t, tok, generate(t, tok, token.P256, token.UseSign)))
		agreers = append(agreers, openKey(t, tok, generate(t, tok, token.P256, token.UseDecrypt)))
	}
	for range 3 {
		for i := range signers {
			sign(t, signers[i])
			agree(t, agreers[len(agreers)-1-i])
		}
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tok := open(t, Options{Device: s.Device()})
	signer, agreer := generate(t, tok, token.P256, token.UseSign), generate(t, tok, token.P521, token.UseAgree)
	sk, ak := openKey(t, tok, signer), openKey(t, tok, agreer)
	for range 3 {
		s.Restart()
		sign(t, sk)
		agree(t, ak)
		s.Restart()
		openKey(t, tok, signer)
		s.Restart()
		generate(t, tok, token.P384, token.UseSSH)
	}
	s.Kill()
	if _, err := sk.(token.Signer).Sign(t.Context(), tokentest.DefaultSignRequest(token.P256, nil)); !errors.Is(err, token.ErrAbsent) {
		t.Errorf("Sign without TPM: %v, want ErrAbsent", err)
	}
	if state := tok.Info().State; state != token.StateAbsent {
		t.Errorf("state is %s, want absent", state)
	}
	s.Restart()
	agree(t, ak)
	if state := tok.Info().State; state != token.StateReady {
		t.Errorf("state is %s, want ready", state)
	}
}

// TestRestartUnderLoad restarts the TPM again and again in mid-operation: each operation succeeds or
// finds no TPM.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tok := open(t, Options{Device: s.Device()})
	keys := []token.Key{
		openKey(t, tok, generate(t, tok, token.P256, token.UseSign)),
		openKey(t, tok, generate(t, tok, token.P256, token.UseSSH)),
		openKey(t, tok, generate(t, tok, token.P256, token.UseSign)),
	}
	stop := make(chan struct{})
	var group sync.WaitGroup
	for _, k := range keys {
		group.Go(func() {
			for {
				_, err := k.(token.Signer).Sign(t.Context(), tokentest.DefaultSignRequest(token.P256, nil))
				if err != nil && !errors.Is(err, token.ErrAbsent) {
					t.Errorf("Sign: %v, want ErrAbsent", err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 10 {
		s.Restart()
	}
	close(stop)
	group.Wait()
	for _, k := range keys {
		sign(t, k)
	}
}

// TestStaleOwnHandle makes a handle stale behind the back of the connection, as a TPM reset does.
func TestStaleOwnHandle(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	r := newRecorder(t, s.Device())
	tok := open(t, Options{dial: r.open})
	k := openKey(t, tok, generate(t, tok, token.P256, token.UseSign))
	sign(t, k)
	_, err := do(t.Context(), tok, "flush behind the back", func(d *device) (struct{}, error) {
		return struct{}{}, d.flush(d.loaded[0].Handle)
	})
	if err != nil {
		t.Fatal(err)
	}
	sign(t, k)
	if r.dials != 2 {
		t.Errorf("%d connections, want 2", r.dials)
	}
}

func TestReplaced(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tok := open(t, Options{Device: s.Device()})
	req := generate(t, tok, token.P256, token.UseSign)
	k := openKey(t, tok, req)
	s.Replace()
	for range 2 {
		if _, err := k.(token.Signer).Sign(t.Context(), tokentest.DefaultSignRequest(token.P256, nil)); !errors.Is(err, token.ErrReplaced) {
			t.Errorf("Sign with another TPM: %v, want ErrReplaced", err)
		}
		if state := tok.Info().State; state != token.StateReplaced {
			t.Errorf("state is %s, want replaced", state)
		}
	}
	tok.Close()
	other := open(t, Options{Device: s.Device()})
	if _, err := other.Open(t.Context(), req); !errors.Is(err, token.ErrReplaced) {
		t.Errorf("Open of a key of another TPM: %v, want ErrReplaced", err)
	}
}

// TestStaleHandles fills the TPM as a dead client may have left it.
func TestStaleHandles(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	d := raw(t, s)
	for range slots {
		_, err := run(d, tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := tpm2.HMACSession(d.link, tpm2.TPMAlgSHA256, 16); err != nil {
			t.Fatal(err)
		}
	}
	d.abandon()
	tok := open(t, Options{Device: s.Device()})
	sign(t, openKey(t, tok, generate(t, tok, token.P256, token.UseSign)))
	left, err := do(t.Context(), tok, "list sessions", func(d *device) ([]tpm2.TPMHandle, error) { return d.handles(0x02000000) })
	if err != nil || len(left) != 1 {
		t.Errorf("sessions %#x are left, want the connection's own, error %v", left, err)
	}
}

// TestObjectMemory leaves the TPM less room than it should have.
func TestObjectMemory(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	a, b := generate(t, tok, token.P256, token.UseSign), generate(t, tok, token.P256, token.UseSign)
	_, err := do(t.Context(), tok, "take a slot", func(d *device) (struct{}, error) {
		_, err := run(d, tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)})
		return struct{}{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	ka, kb := openKey(t, tok, a), openKey(t, tok, b)
	for range 3 {
		sign(t, ka)
		sign(t, kb)
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, tpmtest.Start(t).Device())
	tok := open(t, Options{dial: r.open})
	k := openKey(t, tok, generate(t, tok, token.P256, token.UseAgree)).(token.PointAgreer)
	r.take()
	const goroutines, each = 8, 5
	errs := make(chan error)
	for range goroutines {
		go func() {
			var err error
			for range each {
				_, e := k.AgreePoint(t.Context(), token.AgreeRequest{Peer: keyshare.BasePoint(keyshare.P256).Bytes()})
				err = errors.Join(err, e)
			}
			errs <- err
		}()
	}
	for range goroutines {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := r.take(); len(got) != goroutines*each {
		t.Errorf("%d commands, want %d", len(got), goroutines*each)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	s.Kill()
	for _, device := range []string{s.Device(), "swtpm:/no/such/socket", "/no/such/device", "/dev/null", "device:/dev/null"} {
		if _, err := Open(t.Context(), Options{Device: device}); !errors.Is(err, token.ErrAbsent) {
			t.Errorf("Open of %s: %v, want ErrAbsent", device, err)
		}
	}
	for _, device := range []string{"swtpm:", "tpm0", "tcp:", "tcp:localhost", "tcp::2321", "tcp:localhost:", "device:tpm0", "device:", ":", "x:/dev/tpm0"} {
		if _, err := Open(t.Context(), Options{Device: device}); err == nil || errors.Is(err, token.ErrAbsent) {
			t.Errorf("Open of %q: %v, want an error about its form", device, err)
		}
	}
}

// script is a TPM that answers as a test says.
func script(t *testing.T, answer func(command []byte) []byte) dialer {
	return func(context.Context) (stream, error) {
		here, there := net.Pipe()
		t.Cleanup(func() { there.Close() })
		go func() {
			buffer := make([]byte, maxResponse)
			for {
				n, err := there.Read(buffer)
				if err != nil {
					return
				}
				if a := answer(buffer[:n]); a == nil {
					io.Copy(io.Discard, there)
				} else if _, err := there.Write(a); err != nil {
					return
				}
			}
		}()
		return here, nil
	}
}

func response(rc tpm2.TPMRC) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, uint32(rc))
}

func TestNonsense(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string][]byte{
		"too short":      {0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0},
		"too long":       {0x80, 1, 0, 1, 0, 0, 0, 0, 0, 0},
		"longer than it": {0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0},
		"empty success":  response(0),
		"failure":        response(tpm2.TPMRCFailure),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(t.Context(), Options{dial: script(t, func([]byte) []byte { return answer })})
			if !errors.Is(err, token.ErrAbsent) {
				t.Errorf("Open: %v, want ErrAbsent", err)
			}
		})
	}
}

// TestBusy has a TPM that asks for patience a few times, and one that never stops asking.
func TestBusy(t *testing.T) {
	t.Parallel()
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded, tpm2.TPMRCNVRate} {
		synctest.Test(t, func(t *testing.T) {
			left := 5
			dial := script(t, func([]byte) []byte {
				if left--; left >= 0 {
					return response(rc)
				}
				return response(tpm2.TPMRCSuccess)
			})
			s, err := dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l := newLink(t.Context(), s, time.Minute)
			defer l.close()
			got, err := l.Send(make([]byte, headerLen))
			if err != nil || string(got) != string(response(tpm2.TPMRCSuccess)) {
				t.Errorf("Send: %x, %v", got, err)
			}
		})
	}
	for _, timeout := range []time.Duration{time.Nanosecond, time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			dial := script(t, func([]byte) []byte { return response(tpm2.TPMRCRetry) })
			_, err := Open(t.Context(), Options{dial: dial, Timeout: timeout})
			if !errors.Is(err, token.ErrAbsent) {
				t.Errorf("Open of a TPM that is always busy: %v, want ErrAbsent", err)
			}
			if timeout > time.Millisecond && !errors.Is(err, tpm2.TPMRCRetry) {
				t.Errorf("Open of a TPM that is always busy: %v, want TPM_RC_RETRY", err)
			}
		})
	}
}

// TestSilent has a TPM that does not answer: the timeout and the caller's context
// each end the wait, in their time.
func TestSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		_, err := Open(t.Context(), Options{dial: script(t, silence), Timeout: 3 * time.Second})
		if !errors.Is(err, token.ErrAbsent) || time.Since(begin) != 3*time.Second {
			t.Errorf("Open after %v: %v, want ErrAbsent after 3 s", time.Since(begin), err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		_, err := Open(ctx, Options{dial: script(t, silence)})
		if want := time.Second + abandonAfter; !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != want {
			t.Errorf("Open after %v: %v, want DeadlineExceeded after %v", time.Since(begin), err, want)
		}
	})
}

// TestCloseSilent closes a token whose TPM stopped answering in mid-operation.
func TestCloseSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tok, err := newToken(Options{dial: script(t, silence), Timeout: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		result := make(chan error)
		go func() {
			_, err := do(t.Context(), tok, "wait", func(*device) (struct{}, error) { return struct{}{}, nil })
			result <- err
		}()
		synctest.Wait()
		begin := time.Now()
		if err := tok.Close(); err != nil || time.Since(begin) != closeGrace {
			t.Errorf("Close after %v: %v, want nil after %v", time.Since(begin), err, closeGrace)
		}
		if err := <-result; !errors.Is(err, token.ErrAbsent) {
			t.Errorf("operation: %v, want ErrAbsent", err)
		}
	})
}

func silence([]byte) []byte { return nil }

// TestAbandon ends the context of two operations: the one whose command is under way has its end, because the TPM
// does what it was told, and the one that waits is free at once.
func TestAbandon(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	k := openKey(t, tok, generate(t, tok, token.P256, token.UseSign))
	ctx, cancel := context.WithCancel(t.Context())
	entered, release := make(chan struct{}), make(chan struct{})
	result := make(chan error)
	go func() {
		_, err := do(ctx, tok, "wait", func(*device) (struct{}, error) {
			close(entered)
			<-release
			return struct{}{}, nil
		})
		result <- err
	}()
	<-entered
	waiting := make(chan error)
	go func() {
		_, err := k.(token.Signer).Sign(ctx, tokentest.DefaultSignRequest(token.P256, nil))
		waiting <- err
	}()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting: %v, want Canceled", err)
	}
	close(release)
	if err := <-result; err != nil {
		t.Errorf("under way: %v", err)
	}
	sign(t, k)
}

// TestAbandonSilent ends the context of an operation whose TPM has stopped answering: the caller is free after
// abandonAfter, and the next operation connects anew.
func TestAbandonSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		never := script(t, silence)
		tok, err := newToken(Options{Timeout: time.Hour, dial: func(ctx context.Context) (stream, error) {
			dials++
			return never(ctx)
		}})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begin := time.Now()
			_, err := do(ctx, tok, "wait", func(*device) (struct{}, error) { return struct{}{}, nil })
			if want := time.Second + abandonAfter; !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != want {
				t.Errorf("after %v: %v, want DeadlineExceeded after %v", time.Since(begin), err, want)
			}
			if dials != i+1 {
				t.Errorf("connected %d times, want %d", dials, i+1)
			}
			cancel()
		}
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for _, a := range []token.Algorithm{token.P256, token.P384, token.P521} {
		b.Run(string(a), func(b *testing.B) {
			r, k := benchmarkKey(b, a, token.UseSign)
			req := tokentest.DefaultSignRequest(a, []byte("message"))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.(token.Signer).Sign(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(r.take()))/float64(b.N), "commands/op")
		})
	}
}

func BenchmarkAgreePoint(b *testing.B) {
	for _, a := range []token.Algorithm{token.P256, token.P384, token.P521} {
		b.Run(string(a), func(b *testing.B) {
			r, k := benchmarkKey(b, a, token.UseAgree)
			req := token.AgreeRequest{Peer: k.Public().Octets}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.(token.PointAgreer).AgreePoint(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(r.take()))/float64(b.N), "commands/op")
		})
	}
}

func BenchmarkGenerate(b *testing.B) {
	tok := open(b, Options{Device: tpmtest.Start(b).Device()})
	b.ReportAllocs()
	for b.Loop() {
		generate(b, tok, token.P256, token.UseSign)
	}
}

func BenchmarkOpen(b *testing.B) {
	tok := open(b, Options{Device: tpmtest.Start(b).Device()})
	req := generate(b, tok, token.P256, token.UseSign)
	b.ReportAllocs()
	for b.Loop() {
		openKey(b, tok, req)
	}
}

func benchmarkKey(b *testing.B, a token.Algorithm, u token.Use) (*recorder, token.Key) {
	b.Helper()
	r := newRecorder(b, tpmtest.Start(b).Device())
	tok := open(b, Options{dial: r.open})
	k := openKey(b, tok, generate(b, tok, a, u))
	r.take()
	return r, k
}

// tamperer changes the responses to one command.
type tamperer struct {
	stream
	command tpm2.TPMCC
	tamper  func(response []byte)
	last    tpm2.TPMCC
}

func (s *tamperer) Write(b []byte) (int, error) {
	s.last = tpm2.TPMCC(binary.BigEndian.Uint32(b[6:]))
	return s.stream.Write(b)
}

func (s *tamperer) Read(b []byte) (int, error) {
	n, err := s.stream.Read(b)
	if err == nil && s.last == s.command {
		s.tamper(b[:n])
	}
	return n, err
}

// tampered dials a device whose responses to one command are changed on their way.
func tampered(t testing.TB, device string, cc tpm2.TPMCC, tamper func([]byte)) dialer {
	t.Helper()
	dial, err := parseDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	return interpose(dial, cc, tamper)
}

// interpose changes the responses to one command of what is dialled.
func interpose(dial dialer, cc tpm2.TPMCC, tamper func([]byte)) dialer {
	return func(ctx context.Context) (stream, error) {
		st, err := dial(ctx)
		return &tamperer{stream: st, command: cc, tamper: tamper}, err
	}
}

// cutter breaks a connection when the response to one command comes.
type cutter struct {
	mu      sync.Mutex
	command tpm2.TPMCC // guarded by mu; zero for none
}

func (c *cutter) after(cc tpm2.TPMCC) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.command = cc
}

func (c *cutter) take(cc tpm2.TPMCC) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	hit := c.command == cc
	if hit {
		c.command = 0
	}
	return hit
}

func (c *cutter) wrap(dial dialer) dialer {
	return func(ctx context.Context) (stream, error) {
		st, err := dial(ctx)
		return &cutStream{stream: st, cutter: c}, err
	}
}

type cutStream struct {
	stream
	cutter *cutter
	last   tpm2.TPMCC
}

func (s *cutStream) Write(b []byte) (int, error) {
	s.last = tpm2.TPMCC(binary.BigEndian.Uint32(b[6:]))
	return s.stream.Write(b)
}

func (s *cutStream) Read(b []byte) (int, error) {
	n, err := s.stream.Read(b)
	if s.cutter.take(s.last) {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// TestFault has a TPM, or something between, return wrong results.
func TestFault(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	plain := open(t, Options{Device: s.Device()})
	signer, agreer := generate(t, plain, token.P256, token.UseSign), generate(t, plain, token.P256, token.UseAgree)
	plain.Close()
	middle := func(b []byte) { b[30] ^= 1 }
	for _, c := range []struct {
		name    string
		command tpm2.TPMCC
		tamper  func([]byte)
		operate func(*Token) error
	}{
		{"signature", tpm2.TPMCCSign, middle, func(tok *Token) error {
			_, err := openKey(t, tok, signer).(token.Signer).Sign(t.Context(), tokentest.DefaultSignRequest(token.P256, nil))
			return err
		}},
		{"point", tpm2.TPMCCECDHZGen, middle, func(tok *Token) error {
			req := token.AgreeRequest{Peer: keyshare.BasePoint(keyshare.P256).Bytes()}
			_, err := openKey(t, tok, agreer).(token.PointAgreer).AgreePoint(t.Context(), req)
			return err
		}},
		{"Name", tpm2.TPMCCLoad, middle, func(tok *Token) error {
			_, err := tok.Open(t.Context(), signer)
			return err
		}},
		{"attributes of a new key", tpm2.TPMCCCreate, func(b []byte) {
			i := bytes.Index(b, []byte{0, 0x23, 0, 0x0b}) // TPM_ALG_ECC, TPM_ALG_SHA256
			b[i+5] ^= 6                                   // sign instead of decrypt
		}, func(tok *Token) error {
			_, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseAgree})
			return err
		}},
	} {
		tok := open(t, Options{dial: tampered(t, s.Device(), c.command, c.tamper)})
		if err := c.operate(tok); !errors.Is(err, token.ErrFault) {
			t.Errorf("wrong %s: %v, want ErrFault", c.name, err)
		}
		tok.Close()
	}
}

// TestSignRefusals has the TPM refuse to sign for each of several reasons.
func TestSignRefusals(t *testing.T) {
	t.Parallel()
	for rc, want := range map[tpm2.TPMRC]error{
		tpm2.TPMRCHash:     token.ErrUnsupported,
		tpm2.TPMRCScheme:   token.ErrUnsupported,
		tpm2.TPMRCLockout:  token.ErrLockedOut,
		tpm2.TPMRCBadAuth:  token.ErrAuthNeeded,
		tpm2.TPMRCAuthFail: token.ErrAuthNeeded,
		tpm2.TPMRCFailure:  token.ErrAbsent,
	} {
		tok := open(t, Options{dial: tampered(t, tpmtest.Start(t).Device(), tpm2.TPMCCSign, func(b []byte) {
			copy(b, response(rc))
			clear(b[headerLen:])
			binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
		})})
		k := openKey(t, tok, generate(t, tok, token.P256, token.UseSign))
		_, err := k.(token.Signer).Sign(t.Context(), tokentest.DefaultSignRequest(token.P256, nil))
		if !errors.Is(err, want) || !errors.Is(err, rc) {
			t.Errorf("Sign answered with 0x%x: %v, want %v", uint32(rc), err, want)
		}
	}
}
