package piv

import (
	"bytes"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

func TestSealContract(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	tokentest.RunSealer(t, tokentest.SealHarness{
		Open: func(t *testing.T) token.Token {
			if b.token != nil {
				if err := b.token.Close(); err != nil {
					t.Fatal(err)
				}
			}
			b.token = b.open(t, Options{})
			b.unlock(t)
			return b.token
		},
		PINs: []token.PINPolicy{token.PINOnce, token.PINNever},
	})
}

// TestSealKey follows the key that secrets are sealed to.
func TestSealKey(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	secret := []byte("secret")
	seal := func(p token.PINPolicy) token.Sealed {
		t.Helper()
		sealed, err := b.token.Seal(ctx, token.SealRequest{Secret: secret, PIN: p})
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	open := func(s token.Sealed) error {
		got, err := b.token.Unseal(ctx, token.UnsealRequest{Blob: s.Blob})
		if err == nil && !bytes.Equal(got, secret) {
			t.Error("another secret was opened")
		}
		return err
	}
	first, machine := seal(token.PINOnce), seal(token.PINNever)
	for slot, s := range map[string]token.Sealed{"9d": first, "82": machine} {
		if got := applet.Slot(s.Blob[1+8]).String(); got != slot {
			t.Errorf("sealed to slot %s, want %s", got, slot)
		}
	}
	if _, err := b.token.Adopt(ctx, token.AdoptRequest{Slot: "9d", Use: token.UseAgree}); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("adopt the sealing key: %v", err)
	}

	if err := b.token.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	wantAll(t, "unseal without the PIN", open(first), token.ErrAuthNeeded)
	if err := open(machine); err != nil {
		t.Errorf("unseal what the PIN does not guard: %v", err)
	}
	seal(token.PINOnce) // needs no PIN once there is a key
	b.unlock(t)

	// Another key in the slot, whatever the note says.
	if _, err := b.card.Generate(0x9D, pivtest.AlgP256, pivtest.PINPolicyOnce, pivtest.TouchPolicyNever); err != nil {
		t.Fatal(err)
	}
	b.idle(t)
	wantAll(t, "unseal by a lost key", open(first), token.ErrCorrupt)
	if got := applet.Slot(seal(token.PINOnce).Blob[1+8]).String(); got != "83" {
		t.Errorf("sealed to slot %s, beside a key that is not ours", got)
	}

	// A note that is none, and one that points to an imported key.
	b.card.SetObject(uint32(applet.ObjectSealing), []byte{0x80, 0x80})
	if got := applet.Slot(seal(token.PINOnce).Blob[1+8]).String(); got != "84" {
		t.Errorf("sealed to slot %s by a broken note", got)
	}
	if err := open(machine); err != nil {
		t.Error(err)
	}
}

// TestSealNote is a note by somebody who knows the management key, pointing to a key that he knows.
func TestSealNote(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	c, err := b.token.Import(t.Context(), token.ImportRequest{
		Private: &token.PrivateKey{Algorithm: token.P256, Scalar: bytes.Repeat([]byte{1}, 32)}, Use: token.UseSeal,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.card.SetObject(uint32(applet.ObjectSealing), append([]byte{0x80, byte(handleLen)}, c.Handle...))
	sealed, err := b.token.Seal(t.Context(), token.SealRequest{Secret: []byte("x"), PIN: token.PINOnce})
	if err != nil || sealed.Blob[1+8] == c.Handle[8] {
		t.Errorf("sealed to an imported key: %v", err)
	}
}

func TestSealOldFirmware(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{Version: [3]byte{5, 2, 7}}, Options{})
	_, err := b.token.Seal(t.Context(), token.SealRequest{Secret: []byte("x"), PIN: token.PINOnce})
	wantAll(t, "seal with firmware 5.2", err, token.ErrUnsupported)
}
