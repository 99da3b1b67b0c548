package tokentest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

// SealHarness tells RunSealer about the token under test.
type SealHarness struct {
	// Open returns the token under test, ready for use, which is a token.Sealer. It is called
	// twice, the second time after the first token was closed, and must return the same
	// device again: what was sealed before must open.
	Open func(t *testing.T) token.Token
	// PINs are the policies that the token can seal to, with Auth where they need a PIN.
	// Nil means PINNever.
	PINs []token.PINPolicy
	// PCRs is a selection that the token can seal to, with PINNever and while the suite runs.
	// Empty means that it has no PCRs.
	PCRs string
	// Auth goes with every request.
	Auth token.Auth
}

// RunSealer tests a token.Sealer against the contract of package token. Its subtests run one after
// another on one device.
func RunSealer(t *testing.T, h SealHarness) {
	if h.PINs == nil {
		h.PINs = []token.PINPolicy{token.PINNever}
	}
	s := &sealSuite{h: h, tok: h.Open(t)}
	t.Cleanup(func() { s.tok.Close() })
	var ok bool
	if s.sealer, ok = s.tok.(token.Sealer); !ok {
		t.Fatal("the token is no token.Sealer")
	}
	t.Run("Lengths", s.lengths)
	t.Run("Associated", s.associated)
	t.Run("Broken", s.broken)
	t.Run("Unsupported", s.unsupported)
	t.Run("Concurrent", s.concurrent)
	t.Run("Cancelled", s.cancelled)
	earlier := s.seal(t, s.requests()[0])
	if err := s.tok.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	s.tok = h.Open(t)
	s.sealer = s.tok.(token.Sealer)
	t.Run("Reopen", func(t *testing.T) { s.check(t, earlier) })
	t.Run("Closed", func(t *testing.T) { s.closed(t, earlier) })
}

type sealSuite struct {
	h      SealHarness
	tok    token.Token
	sealer token.Sealer
}

// sealed is a sealed secret with what it takes to open it.
type sealed struct {
	request token.SealRequest
	blob    []byte
}

// requests are one for each way to seal.
func (s *sealSuite) requests() []token.SealRequest {
	var out []token.SealRequest
	base := token.SealRequest{Secret: []byte("secret of " + rand.Text()), Associated: associated, Auth: s.h.Auth}
	for _, p := range s.h.PINs {
		base.PIN = p
		out = append(out, base)
	}
	if s.h.PCRs != "" {
		base.PIN, base.PCRs = token.PINNever, s.h.PCRs
		out = append(out, base)
	}
	return out
}

func describeSeal(r token.SealRequest) string {
	return fmt.Sprintf("of %d octets with PIN %q and PCRs %q", len(r.Secret), r.PIN, r.PCRs)
}

func (s *sealSuite) seal(t *testing.T, r token.SealRequest) sealed {
	t.Helper()
	before := bytes.Clone(r.Secret)
	got, err := s.sealer.Seal(t.Context(), r)
	if err != nil {
		t.Fatalf("Seal %s: %v", describeSeal(r), err)
	}
	if !bytes.Equal(r.Secret, before) {
		t.Error("Seal changed the secret")
	}
	want := token.GuardMachine
	switch {
	case r.PCRs != "":
		want = token.GuardPCR
	case r.PIN == token.PINOnce:
		want = token.GuardPIN
	}
	if got.Guard != want {
		t.Errorf("Seal %s: guard is %q, want %q", describeSeal(r), got.Guard, want)
	}
	if (len(got.Recovery) != 0) != (r.PCRs != "") {
		t.Errorf("Seal %s: recovery secret of %d octets", describeSeal(r), len(got.Recovery))
	}
	return sealed{r, got.Blob}
}

func (x sealed) unseal() token.UnsealRequest {
	return token.UnsealRequest{Blob: x.blob, Associated: x.request.Associated, Auth: x.request.Auth}
}

func (s *sealSuite) check(t *testing.T, x sealed) {
	t.Helper()
	for range 2 {
		got, err := s.sealer.Unseal(t.Context(), x.unseal())
		if err != nil {
			t.Fatalf("Unseal %s: %v", describeSeal(x.request), err)
		}
		if !bytes.Equal(got, x.request.Secret) {
			t.Fatalf("Unseal %s returned something else", describeSeal(x.request))
		}
		clear(got) // as its owner does: the second time must not be affected
	}
}

func (s *sealSuite) lengths(t *testing.T) {
	for _, r := range s.requests() {
		for _, n := range []int{0, 1, 31, 32, 33, 128, 129, 1000, 1 << 17} {
			r.Secret = make([]byte, n)
			rand.Read(r.Secret)
			x := s.seal(t, r)
			s.check(t, x)
			if n > 16 && bytes.Contains(x.blob, r.Secret[:16]) {
				t.Error("the blob holds the secret in the clear")
			}
			if again := s.seal(t, r); bytes.Equal(x.blob, again.blob) {
				t.Error("the same secret is sealed to the same blob twice")
			}
		}
	}
}

func (s *sealSuite) associated(t *testing.T) {
	for _, r := range s.requests() {
		x := s.seal(t, r)
		for _, a := range [][]byte{nil, []byte("other"), associated[:len(associated)-1], append(bytes.Clone(associated), 0)} {
			req := x.unseal()
			req.Associated = a
			s.wantRefused(t, req, "other associated data")
		}
		r.Associated = nil
		x = s.seal(t, r)
		s.check(t, x)
		req := x.unseal()
		req.Associated = associated
		s.wantRefused(t, req, "associated data where there was none")
	}
}

func (s *sealSuite) broken(t *testing.T) {
	noise := make([]byte, 300)
	rand.Read(noise)
	for _, r := range s.requests() {
		x := s.seal(t, r)
		blobs := [][]byte{nil, {}, {0}, {0x30, 0x80}, noise, append(bytes.Clone(x.blob), 0)}
		for i := 0; i < len(x.blob); i += 1 + len(x.blob)/96 {
			flipped := bytes.Clone(x.blob)
			flipped[i] ^= 1 << (i % 8)
			blobs = append(blobs, x.blob[:i], flipped)
		}
		last := bytes.Clone(x.blob)
		last[len(last)-1] ^= 0x80
		for _, b := range append(blobs, last) {
			req := x.unseal()
			req.Blob = b
			s.wantRefused(t, req, "a broken blob")
		}
		s.check(t, x)
	}
}

func (s *sealSuite) wantRefused(t *testing.T, req token.UnsealRequest, what string) {
	t.Helper()
	got, err := s.sealer.Unseal(t.Context(), req)
	wantError(t, "Unseal with "+what, err, token.ErrCorrupt)
	if got != nil {
		t.Errorf("Unseal with %s returned octets", what)
	}
}

func (s *sealSuite) unsupported(t *testing.T) {
	r := s.requests()[0]
	for _, p := range []token.PINPolicy{token.PINAlways, "no-such-policy"} {
		r.PIN = p
		_, err := s.sealer.Seal(t.Context(), r)
		wantError(t, "Seal with PIN policy "+string(p), err, token.ErrUnsupported)
	}
	if s.h.PCRs == "" {
		r = s.requests()[0]
		r.PCRs = "sha256:7"
		_, err := s.sealer.Seal(t.Context(), r)
		wantError(t, "Seal to PCRs", err, token.ErrUnsupported)
	}
}

func (s *sealSuite) concurrent(t *testing.T) {
	type outcome struct {
		got []byte
		err error
	}
	for _, r := range s.requests() {
		x := s.seal(t, r)
		done := make(chan outcome, 4)
		for range cap(done) {
			go func() {
				got, err := s.sealer.Unseal(t.Context(), x.unseal())
				done <- outcome{got, err}
			}()
		}
		for range cap(done) {
			if o := <-done; o.err != nil || !bytes.Equal(o.got, r.Secret) {
				t.Errorf("Unseal with others: %v", o.err)
			}
		}
	}
}

func (s *sealSuite) cancelled(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	r := s.requests()[0]
	_, err := s.sealer.Seal(ended, r)
	wantError(t, "Seal with an ended context", err, context.Canceled)
	_, err = s.sealer.Unseal(ended, s.seal(t, r).unseal())
	wantError(t, "Unseal with an ended context", err, context.Canceled)
}

func (s *sealSuite) closed(t *testing.T, x sealed) {
	if err := s.tok.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	_, err := s.sealer.Seal(t.Context(), x.request)
	wantError(t, "Seal after Close", err, token.ErrClosed)
	_, err = s.sealer.Unseal(t.Context(), x.unseal())
	wantError(t, "Unseal after Close", err, token.ErrClosed)
}
