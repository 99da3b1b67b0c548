package hsm

import (
	"context"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

var _ token.TryCounter = (*Token)(nil)

// TriesLeft returns 1 if the token says that one try is left, else token.TriesUnknown: PKCS #11 has
// no number.
func (t *Token) TriesLeft(ctx context.Context) (left int, err error) {
	left = token.TriesUnknown
	err = t.again(ctx, t.bind, func(b *binding) error {
		now, err := t.still(ctx, b)
		if err != nil {
			return err
		}
		err = pinError(token.ErrAuthNeeded, now.flags)
		var auth *token.AuthError
		if !errors.As(err, &auth) {
			return err
		}
		left = auth.TriesLeft
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("pkcs11: read tries of PIN: %w", err)
	}
	return left, nil
}
