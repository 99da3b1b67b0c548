package main

import (
	"slices"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// TestAttempts tries first what may open an envelope: a PIN is tried once only.
func TestAttempts(t *testing.T) {
	t.Parallel()
	const mine, other = "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA", "MBBB-BBBB-BBBB-BBBB-BBBB-BBBB-BBBB"
	entry := func(kid, curve string) mesh.Recipient {
		r := mesh.Recipient{KeyID: kid}
		if curve != "" {
			r.EphemeralKey.PublicKeyECDH = &mesh.PublicKeyECDH{Curve: curve}
		} else {
			r.EphemeralKey.Other = strictjson.Value(`{"PublicKeyMLKEM":{}}`)
		}
		return r
	}
	recipients := []mesh.Recipient{entry(mine, ""), entry(mine, "X25519"), entry(other, ""), entry(other, "P256"), entry(other, "X448"), entry(mine, "X448")}
	var order []int
	for _, try := range attempts(recipients, []mesh.KeyInfo{{Udf: mine, Algorithm: "X448"}}) {
		order = append(order, slices.IndexFunc(recipients, func(r mesh.Recipient) bool {
			return r.KeyID == try.recipient.KeyID && r.EphemeralKey.PublicKeyECDH == try.recipient.EphemeralKey.PublicKeyECDH
		}))
	}
	if want := []int{5, 4, 0, 1}; !slices.Equal(order, want) {
		t.Errorf("entries are tried in the order %v, want %v", order, want)
	}
}
