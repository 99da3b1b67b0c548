package tokentest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

// Sealing is the contract of a token.Sealer for secrets without PIN and PCRs: every length
// comes back, and nothing opens that was changed. Run includes it.
func Sealing(t *testing.T, sealer token.Sealer) {
	sealingAs(t, sealer, token.PINNever, token.GuardMachine)
}

func sealingAs(t *testing.T, sealer token.Sealer, pin token.PINPolicy, guard token.Guard) {
	for _, n := range []int{1, 32, 57, 128, 129, 2400} {
		t.Run(fmt.Sprintf("%d octets", n), func(t *testing.T) {
			secret := make([]byte, n)
			rand.Read(secret)
			given := bytes.Clone(secret)
			sealed, err := sealer.Seal(t.Context(), token.SealRequest{Secret: given, Associated: associated, PIN: pin})
			if err != nil {
				t.Fatalf("Seal: %v", err)
			}
			if sealed.Guard != guard || len(sealed.Recovery) != 0 {
				t.Errorf("sealed with guard %q and %d octets of recovery", sealed.Guard, len(sealed.Recovery))
			}
			if n >= 32 && bytes.Contains(sealed.Blob, secret) {
				t.Error("the blob holds the secret")
			}
			clear(given) // the token keeps nothing of the caller's
			got, err := sealer.Unseal(t.Context(), token.UnsealRequest{Blob: sealed.Blob, Associated: associated})
			if err != nil || !bytes.Equal(got, secret) {
				t.Fatalf("Unseal: %d octets, %v", len(got), err)
			}
			refuseChanged(t, sealer, sealed.Blob)
		})
	}
}

func refuseChanged(t *testing.T, sealer token.Sealer, blob []byte) {
	t.Helper()
	refuse := func(what string, blob, associated []byte) {
		t.Helper()
		got, err := sealer.Unseal(t.Context(), token.UnsealRequest{Blob: blob, Associated: associated})
		wantError(t, "Unseal of "+what, err, token.ErrCorrupt)
		if got != nil {
			t.Errorf("Unseal of %s returns %d octets", what, len(got))
		}
	}
	refuse("other associated data", blob, append(bytes.Clone(associated), 0))
	refuse("no associated data", blob, nil)
	refuse("an empty blob", nil, associated)
	refuse("half a blob", blob[:len(blob)/2], associated)
	refuse("a longer blob", append(bytes.Clone(blob), 0), associated)
	for _, at := range []int{0, len(blob) / 3, len(blob) / 2, len(blob) - 1} {
		changed := bytes.Clone(blob)
		changed[at] ^= 1
		refuse(fmt.Sprintf("a blob changed at %d of %d", at, len(blob)), changed, associated)
	}
}

func (s *suite) seals(t *testing.T) {
	sealer, ok := s.tok.(token.Sealer)
	switch {
	case !ok:
	case s.h.SealsByPIN:
		sealingAs(t, sealer, token.PINOnce, token.GuardPIN)
	default:
		Sealing(t, sealer)
	}
}
