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

// TestRealPcscdHeld has another program be in a transaction that does not end, and then the card be silent, behind the real pcscd.
func TestRealPcscdHeld(t *testing.T) {
	t.Parallel()
	p := pivtest.StartPcscd(t)
	b := &bench{card: pivtest.NewCard(pivtest.Config{})}
	p.Insert(0, b.card)
	var err error
	if b.token, err = Open(t.Context(), Options{Serial: b.card.Serial(), Socket: p.Socket, State: b.states.note}); err != nil {
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
	h := newHolder(t, p.Socket, p.ReaderName(0))
	h.begin(t)
	for range 3 {
		b.lookOverdue(t, ErrBusy)
	}
	h.end(t)
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Errorf("sign when it is let go: %v", err)
	}

	speak, asked := make(chan struct{}), make(chan struct{}, 100)
	b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
		asked <- struct{}{}
		<-speak
		return card(apdu)
	})
	for range 3 {
		b.lookOverdue(t, ErrSilent)
	}
	if n := len(asked); n != 1 {
		t.Errorf("the card was asked %d times", n)
	}
	close(speak) // whereupon the token is ready by itself, which is TestSilentCard's
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Errorf("sign when it answers: %v", err)
	}
	h.begin(t) // the card was not reset
	h.end(t)
}
