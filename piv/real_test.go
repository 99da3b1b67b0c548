package piv

import (
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestRealPcscd uses a card behind the real pcscd: keys, removal, another card, a restart of
// pcscd. The rest of the tests have a pcscd of our own, which does more to a card.
func TestRealPcscd(t *testing.T) {
	t.Parallel()
	p := pivtest.StartPcscd(t)
	b := &bench{card: pivtest.NewCard(pivtest.Config{})}
	p.Insert(0, b.card)
	var err error
	if b.token, err = Open(t.Context(), Options{Serial: b.card.Serial(), Socket: p.Socket, Timeout: 20 * time.Second, State: b.states.note}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.token.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := b.token.Setup(t.Context(), SetupRequest{PIN: []byte(testPIN), PUK: []byte(testPUK)}); err != nil {
		t.Fatal(err)
	}
	k, _ := b.signer(t, token.Policy{})
	works := func(what string, auth token.Auth) {
		t.Helper()
		if err := sign(t.Context(), k, auth); err != nil {
			t.Errorf("sign %s: %v", what, err)
		}
	}
	pin := token.Auth{PIN: []byte(testPIN)}
	works("at first", token.Auth{})
	peer := b.made(t, token.X25519, token.UseAgree, token.Policy{}).Public().Octets
	agree := b.made(t, token.X25519, token.UseAgree, token.Policy{}).(token.PointAgreer)
	if _, err := agree.AgreePoint(t.Context(), token.AgreeRequest{Peer: peer}); err != nil {
		t.Errorf("agree: %v", err)
	}

	p.Remove(0)
	b.await(t, token.StateAbsent)
	wantAll(t, "sign without a card", sign(t.Context(), k, token.Auth{}), token.ErrAbsent, ErrNoCard)
	p.Insert(1, pivtest.NewCard(pivtest.Config{Serial: 99}))
	b.await(t, token.StateReplaced)
	wantAll(t, "sign with another card", sign(t.Context(), k, token.Auth{}), token.ErrReplaced, ErrOtherCard)
	p.Insert(0, b.card)
	b.await(t, token.StateLocked)
	wantAll(t, "sign without the PIN", sign(t.Context(), k, token.Auth{}), token.ErrAuthNeeded)
	works("after reinsertion", pin)

	p.Kill()
	b.await(t, token.StateAbsent)
	wantAll(t, "sign without pcscd", sign(t.Context(), k, pin), token.ErrAbsent, ErrNoService)
	p.Start()
	p.Insert(0, b.card)
	b.await(t, token.StateLocked)
	works("after a restart", pin)

	p.Pull(0) // pcscd believes for a moment that it is there
	wantAll(t, "sign with a card pulled just now", sign(t.Context(), k, pin), token.ErrAbsent)
}
