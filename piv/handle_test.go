package piv

import (
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestHandlePolicies has a handle keep each pair of policies, and what a card tells go before that.
func TestHandlePolicies(t *testing.T) {
	t.Parallel()
	told := token.Policy{PIN: token.PINNever, Touch: token.TouchAlways}
	for _, pin := range []token.PINPolicy{token.PINDefault, token.PINNever, token.PINOnce, token.PINAlways} {
		for _, touch := range []token.TouchPolicy{token.TouchDefault, token.TouchNever, token.TouchCached, token.TouchAlways} {
			h := handle{serial: 1, slot: applet.SlotSignature, found: true, policy: token.Policy{PIN: pin, Touch: touch}}
			again, err := decodeHandle(h.encode())
			if err != nil || again != h {
				t.Errorf("%+v is read as %+v, %v", h, again, err)
			}
			if got := h.policyOr(told); got != told {
				t.Errorf("the card tells %+v, the key has %+v", told, got)
			}
		}
	}
	bare := handle{slot: applet.SlotSignature}
	if got := bare.policyOr(token.Policy{}); got.PIN != token.PINAlways || got.Touch != token.TouchNever {
		t.Errorf("nobody tells, and the key in slot 9c has %+v", got)
	}
}
