package tpm

import (
	"io"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// TestKeyClose closes keys with and without the TPM.
func TestKeyClose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := tpmtest.Start(t)
	tok, err := Open(ctx, Options{Device: s.Device()})
	if err != nil {
		t.Fatal(err)
	}
	created, err := tok.Generate(ctx, token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign})
	if err != nil {
		t.Fatal(err)
	}
	key, err := tok.Open(ctx, token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: token.UseSign})
	if err != nil {
		t.Fatal(err)
	}
	loaded := func() int {
		t.Helper()
		n, err := do(ctx, tok, "count", func(d *device) (int, error) { return len(d.loaded), nil })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if loaded() != 1 {
		t.Errorf("%d keys are loaded", loaded())
	}
	for range 2 {
		if err := key.(io.Closer).Close(); err != nil {
			t.Error(err)
		}
	}
	if loaded() != 0 {
		t.Errorf("%d keys are loaded after Close", loaded())
	}
	if _, err := key.(token.Signer).Sign(ctx, tokentest.DefaultSignRequest(token.P256, []byte("message"))); err != nil {
		t.Errorf("Sign: %v", err)
	}
	s.Kill()
	if err := key.(io.Closer).Close(); err != nil {
		t.Errorf("Close without TPM: %v", err)
	}
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	if err := key.(io.Closer).Close(); err != nil {
		t.Errorf("Close after the token's: %v", err)
	}
}
