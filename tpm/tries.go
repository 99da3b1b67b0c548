package tpm

import (
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/mesh-agent/mesh-agent/token"
)

var _ token.TryCounter = (*Token)(nil)

// TriesLeft returns how many wrong PINs the TPM takes before it locks, for all of its users
// together. Errors: as token.TryCounter; ErrNoPIN.
func (t *Token) TriesLeft(ctx context.Context) (int, error) {
	if !t.pin.isSet() {
		return 0, fmt.Errorf("tpm: %w: %w", pinError(token.ErrAuthNeeded, token.TriesUnknown), ErrNoPIN)
	}
	return do(ctx, t, "read tries of PIN", func(d *device) (int, error) {
		left, err := d.countTries()
		if err == nil && left == 0 {
			err = d.lockout(tpm2.TPMRCLockout)
		}
		return left, err
	})
}
