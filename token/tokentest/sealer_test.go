package tokentest

import (
	"bytes"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

func TestSealingFake(t *testing.T) {
	t.Parallel()
	f := NewSealingFake(FakeOptions{Algorithms: []token.Algorithm{token.P256}})
	Run(t, Harness{Open: func(*testing.T) token.Token { return f.Reopen() }})
	RunSealer(t, SealHarness{Open: func(*testing.T) token.Token { return f.Reopen() }, PCRs: "sha256:7"})
}

func TestSealingFakePIN(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := NewSealingFake(FakeOptions{})
	seal := token.SealRequest{Secret: []byte("secret"), PIN: token.PINOnce}
	_, err := f.Seal(ctx, seal)
	wantError(t, "Seal without PIN", err, token.ErrAuthNeeded)
	_, err = f.Seal(ctx, token.SealRequest{PIN: token.PINAlways})
	wantError(t, "Seal with PIN always", err, token.ErrUnsupported)
	if err := f.SetPIN(ctx, nil, []byte("1234")); err != nil {
		t.Fatal(err)
	}
	wantError(t, "SetPIN without the old one", f.SetPIN(ctx, nil, []byte("5678")), token.ErrAuthNeeded)
	wantError(t, "SetPIN with a wrong one", f.SetPIN(ctx, []byte("9999"), []byte("5678")), token.ErrAuthWrong)
	sealed, err := f.Seal(ctx, seal)
	if err != nil || sealed.Guard != token.GuardPIN {
		t.Fatalf("Seal: guard %q, %v", sealed.Guard, err)
	}
	unseal := token.UnsealRequest{Blob: sealed.Blob}
	if err := f.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = f.Unseal(ctx, unseal)
	wantError(t, "Unseal when locked", err, token.ErrAuthNeeded)
	if err := f.Unlock(ctx, []byte("1234")); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Unseal(ctx, unseal); err != nil || string(got) != "secret" {
		t.Errorf("Unseal: %q, %v", got, err)
	}
}

func TestSealingFakePCRs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := NewSealingFake(FakeOptions{})
	sealed, err := f.Seal(ctx, token.SealRequest{Secret: []byte("secret"), PIN: token.PINNever, PCRs: "sha256:7"})
	if err != nil || sealed.Guard != token.GuardPCR || len(sealed.Recovery) == 0 {
		t.Fatalf("Seal: guard %q, %d octets of recovery, %v", sealed.Guard, len(sealed.Recovery), err)
	}
	f.SetPCRs("updated")
	_, err = f.Unseal(ctx, token.UnsealRequest{Blob: sealed.Blob})
	var pcr *token.PCRError
	if !errors.As(err, &pcr) || pcr.PCRs != "sha256:7" {
		t.Errorf("Unseal after an update: %v", err)
	}
	got, err := f.Unseal(ctx, token.UnsealRequest{Blob: sealed.Blob, Recovery: sealed.Recovery})
	if err != nil || !bytes.Equal(got, []byte("secret")) {
		t.Errorf("Unseal with recovery: %q, %v", got, err)
	}
}

func TestSealingFakeCounter(t *testing.T) {
	t.Parallel()
	f := NewSealingFake(FakeOptions{})
	_, err := f.ReadCounter(t.Context())
	wantError(t, "ReadCounter at first", err, token.ErrNotFound)
	first, err := f.IncrementCounter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Reopen().ReadCounter(t.Context()); got != first || err != nil {
		t.Errorf("ReadCounter: %d, %v, want %d", got, err, first)
	}
}
