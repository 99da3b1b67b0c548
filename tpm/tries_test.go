package tpm

import (
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// TestTriesLeft counts the tries of the PIN without using one up.
func TestTriesLeft(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, tpmtest.Start(t).Device())
	tok := open(t, Options{dial: r.open})
	r.take()
	if _, err := tok.TriesLeft(t.Context()); !errors.Is(err, ErrNoPIN) || !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("without a PIN: %v", err)
	}
	r.wantCommands(t, "without a PIN")
	setPIN(t, tok, nil, testPIN())
	want := func(n int) {
		t.Helper()
		for range 2 {
			if left, err := tok.TriesLeft(t.Context()); err != nil || left != n {
				t.Errorf("%d left, %v; want %d", left, err, n)
			}
		}
	}
	r.take()
	want(3)
	r.wantCommands(t, "TriesLeft twice", tpm2.TPMCCGetCapability, tpm2.TPMCCGetCapability)
	tok.Lock(t.Context())
	for i, pin := range []string{"wrong 1", "wrong 2"} {
		wantTries(t, "Unlock", tok.Unlock(t.Context(), []byte(pin)), 2-i)
		want(2 - i)
	}
	wantTries(t, "Unlock", tok.Unlock(t.Context(), []byte("wrong 3")), 0)
	var lockout *token.LockoutError
	if left, err := tok.TriesLeft(t.Context()); left != 0 || !errors.As(err, &lockout) || lockout.RetryAfter <= 0 {
		t.Errorf("locked out: %d, %v", left, err)
	}
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tok.TriesLeft(t.Context()); !errors.Is(err, token.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
