package piv

import (
	"context"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

var (
	_ token.Attended   = (*key)(nil)
	_ token.TryCounter = (*Token)(nil)
)

// Touches returns 1 unless the key needs none.
func (k *key) Touches() int {
	if k.policy.Touch == token.TouchNever {
		return 0
	}
	return 1
}

// Touches returns 2 if the key asks each time: an agreement takes two operations of the card.
func (k *agreeKey) Touches() int {
	if k.policy.Touch == token.TouchAlways {
		return 2
	}
	return k.key.Touches()
}

// TriesLeft asks the card how often a wrong PIN may be presented. A card that knows the PIN and has
// no metadata does not tell.
func (t *Token) TriesLeft(ctx context.Context) (int, error) {
	return do(ctx, t, "read tries of PIN", func(ctx context.Context, s *session) (int, error) {
		verified, tries, err := s.PINStatus(ctx)
		switch {
		case err != nil:
			return 0, err
		case !verified && tries == 0:
			return 0, fmt.Errorf("%w: the PIN is blocked", token.ErrLockedOut)
		case !verified || !applet.HasMetadata(s.worker.version):
			return tries, nil
		}
		c, err := s.Credential(ctx, applet.PIN)
		return c.Tries, err
	})
}
