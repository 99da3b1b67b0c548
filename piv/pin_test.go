package piv

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

const insVerify = 0x20

func wantTries(tb testing.TB, what string, err error, reason error, tries int) {
	tb.Helper()
	var auth *token.AuthError
	if !errors.As(err, &auth) || auth.Reason != reason || auth.TriesLeft != tries {
		tb.Errorf("%s: %v, want %v with %d tries left", what, err, reason, tries)
	}
}

// TestWrongPIN counts down to the last try, which is spared.
func TestWrongPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	if err := b.token.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	wantTries(t, "wrong PIN", b.token.Unlock(ctx, []byte("000000")), token.ErrAuthWrong, 2)
	wantTries(t, "the same PIN", b.token.Unlock(ctx, []byte("000000")), token.ErrAuthWrong, 2)
	wantTries(t, "the same PIN once more", b.token.Unlock(ctx, []byte("000000")), token.ErrAuthWrong, 2) // it was not given
	wantAll(t, "and once more", b.token.Unlock(ctx, []byte("000000")), token.ErrRefused)
	wantTries(t, "another wrong PIN", b.token.Unlock(ctx, []byte("000001")), token.ErrAuthWrong, 1)
	err := b.token.Unlock(ctx, []byte(testPIN))
	wantTries(t, "last try", err, token.ErrAuthNeeded, 1)
	wantAll(t, "last try", err, ErrLastTry)
	wantAll(t, "last try of a change", b.token.SetPIN(ctx, []byte(testPIN), []byte("918273")), ErrLastTry)
	if err := b.token.UnlockLastTry(ctx, []byte(testPIN)); err != nil {
		t.Errorf("last try with permission: %v", err)
	}
	if s := b.token.Info().State; s != token.StateReady {
		t.Errorf("state is %q", s)
	}
}

// TestAbandonedPIN has a caller that goes away while the card has its wrong PIN: nobody presents that PIN again.
func TestAbandonedPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	if err := b.token.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
		if apdu[1] == 0x20 && len(apdu) > 5 { // VERIFY with a PIN
			cancel()
		}
		return card(apdu)
	})
	if err := b.token.Unlock(ctx, []byte("000000")); err == nil {
		t.Error("a wrong PIN unlocks")
	}
	b.card.OnAPDU(nil)
	err := b.token.Unlock(t.Context(), []byte("000000"))
	wantTries(t, "the same PIN again", err, token.ErrAuthWrong, 2)
	wantAll(t, "the same PIN again", err, token.ErrRefused)
}

// TestAbandonedChange has a caller that goes away while the card changes its PIN: the agent keeps the new one, and wastes no try
// on the old one.
func TestAbandonedChange(t *testing.T) {
	t.Parallel()
	for ins, set := range map[byte]func(*Token, context.Context) error{
		0x24: func(tok *Token, ctx context.Context) error { return tok.SetPIN(ctx, []byte(testPIN), []byte("918273")) },
		0x2C: func(tok *Token, ctx context.Context) error {
			return tok.Unblock(ctx, []byte(testPUK), []byte("918273"))
		},
	} {
		b := newBench(t, pivtest.Config{}, Options{})
		k, _ := b.signer(t, token.Policy{})
		ctx, cancel := context.WithCancel(t.Context())
		b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
			if apdu[1] == ins {
				cancel()
			}
			return card(apdu)
		})
		_ = set(b.token, ctx) // what comes of it the caller does not see
		b.card.OnAPDU(nil)
		b.reader.ResetByOther()
		if err := sign(t.Context(), k, token.Auth{}); err != nil {
			t.Errorf("instruction %02x: %v", ins, err)
		}
	}
}

// alone returns a worker for the card, without a token's goroutines: nothing happens between its requests.
func (b *bench) alone(t *testing.T) *worker {
	o := Options{Serial: b.card.Serial(), Socket: b.daemon.Socket}
	w := newWorker(describe(o.withDefaults(), func() {}), t.Context())
	t.Cleanup(w.leave)
	return w
}

func (w *worker) unlock(t *testing.T) {
	t.Helper()
	err := w.serve(&request{ctx: t.Context(), timeout: patience, run: func(ctx context.Context, s *session) error {
		err := s.present(ctx, []byte(testPIN), keepLast)
		s.worker.pin.keep([]byte(testPIN))
		return err
	}})
	w.end()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRestartForgetsPIN has pcscd restart between two requests, with everything as before: the card had no power meanwhile, and may have been
// anywhere. It does not take the watcher to notice that.
func TestRestartForgetsPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	w := b.alone(t)
	w.unlock(t)
	b.daemon.Stop()
	b.daemon.Start()
	if err := w.serve(&request{ctx: t.Context(), timeout: patience}); err != nil || w.pin.cached != nil {
		t.Errorf("look: %v; the PIN is kept: %t", err, w.pin.cached != nil)
	}
	w.end()
}

// TestLateLoss has the worker hear late that the card had gone, when it is back and unlocked again: it stays unlocked.
func TestLateLoss(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	w := b.alone(t)
	w.unlock(t)
	w.release()
	w.token.lost()
	w.unlock(t)
	<-w.token.gone
	if w.lost(); w.pin.cached == nil {
		t.Error("the PIN is forgotten")
	}
	w.token.lost()
	if w.lost(); w.pin.cached != nil {
		t.Error("the PIN is kept")
	}
}

// TestPINAgain has the card refuse a PIN that another program makes right again: it is given then.
func TestPINAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	other := b.open(t, Options{})
	if err := other.SetPIN(ctx, []byte(testPIN), []byte("918273")); err != nil {
		t.Fatal(err)
	}
	if err := b.token.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	wantTries(t, "PIN that was changed", b.token.Unlock(ctx, []byte(testPIN)), token.ErrAuthWrong, 2)
	if err := other.SetPIN(ctx, []byte("918273"), []byte(testPIN)); err != nil {
		t.Fatal(err)
	}
	if err := other.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.token.Unlock(ctx, []byte(testPIN)); err != nil {
		t.Errorf("PIN that was changed back: %v", err)
	}
}

// TestWrongPINsInTurn gives wrong PINs again, not only the last one: none of them costs a second try, not even the last.
func TestWrongPINsInTurn(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	for i, wrong := range []string{"000000", "111111"} {
		wantTries(t, "wrong PIN", b.token.Unlock(ctx, []byte(wrong)), token.ErrAuthWrong, 2-i)
	}
	for _, wrong := range []string{"000000", "111111", "000000"} {
		err := b.token.UnlockLastTry(ctx, []byte(wrong))
		wantTries(t, "wrong PIN again", err, token.ErrAuthWrong, 1)
		wantAll(t, "wrong PIN again", err, token.ErrRefused)
	}
	if err := b.token.UnlockLastTry(ctx, []byte(testPIN)); err != nil {
		t.Errorf("the right PIN: %v", err)
	}
}

func TestBlockedPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{})
	ctx := t.Context()
	if err := b.token.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	b.card.BlockPIN()
	wantAll(t, "unlock", b.token.Unlock(ctx, []byte(testPIN)), token.ErrLockedOut)
	wantAll(t, "sign", sign(ctx, k, token.Auth{PIN: []byte(testPIN)}), token.ErrLockedOut)
	wantTries(t, "wrong PUK", b.token.Unblock(ctx, []byte("00000000"), []byte("918273")), token.ErrAuthWrong, 2)
	if err := b.token.Unblock(ctx, []byte(testPUK), []byte("918273")); err != nil {
		t.Fatalf("unblock: %v", err)
	}
	if err := sign(ctx, k, token.Auth{}); err != nil {
		t.Errorf("sign after unblocking: %v", err)
	}
	b.card.BlockPUK()
	wantAll(t, "blocked PUK", b.token.Unblock(ctx, []byte(testPUK), []byte(testPIN)), token.ErrLockedOut)
	wantAll(t, "change of blocked PUK", b.token.SetPUK(ctx, []byte(testPUK), []byte("55554444")), token.ErrLockedOut)
}

func TestSetPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	wantAll(t, "without the old PIN", b.token.SetPIN(ctx, nil, []byte("918273")), token.ErrAuthNeeded)
	wantAll(t, "too short", b.token.SetPIN(ctx, []byte(testPIN), []byte("12345")), token.ErrBadRequest)
	wantAll(t, "too long", b.token.SetPIN(ctx, []byte(testPIN), []byte("123456789")), token.ErrBadRequest)
	wantTries(t, "wrong old PIN", b.token.SetPIN(ctx, []byte("000000"), []byte("918273")), token.ErrAuthWrong, 2)
	if err := b.token.SetPIN(ctx, []byte(testPIN), []byte("918273")); err != nil {
		t.Fatal(err)
	}
	if err := b.token.SetPUK(ctx, []byte(testPUK), []byte("55554444")); err != nil {
		t.Fatal(err)
	}
	if err := b.token.Lock(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.token.Unlock(ctx, []byte("918273")); err != nil {
		t.Errorf("unlock with the new PIN: %v", err)
	}
}

// TestChangedPIN has another program change the PIN: what was kept is given once and forgotten.
func TestChangedPIN(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{})
	other := b.open(t, Options{})
	if err := other.SetPIN(t.Context(), []byte(testPIN), []byte("918273")); err != nil {
		t.Fatal(err)
	}
	b.reader.ResetByOther()
	before := b.card.Count(insVerify)
	wantTries(t, "sign", sign(t.Context(), k, token.Auth{}), token.ErrAuthNeeded, 2)
	given := b.card.Count(insVerify) - before
	wantTries(t, "sign again", sign(t.Context(), k, token.Auth{}), token.ErrAuthNeeded, 2)
	if n := b.card.Count(insVerify) - before - given; n != 1 { // asking for the tries
		t.Errorf("%d VERIFY commands for the second signature", n)
	}
	if s := b.token.Info().State; s != token.StateLocked {
		t.Errorf("state is %q", s)
	}
	if err := sign(t.Context(), k, token.Auth{PIN: []byte("918273")}); err != nil {
		t.Errorf("sign with the new PIN: %v", err)
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{})
	if err := b.token.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantTries(t, "sign", sign(t.Context(), k, token.Auth{}), token.ErrAuthNeeded, 3)
	if s := b.token.Info().State; s != token.StateLocked {
		t.Errorf("state is %q", s)
	}
	b.reader.Unplug()
	if err := b.token.Lock(t.Context()); err != nil {
		t.Errorf("lock without the card: %v", err)
	}
}

// TestCloseLocks has a card that no longer knows the PIN after the token was closed, whether the PIN was kept or given
// with one operation.
func TestCloseLocks(t *testing.T) {
	t.Parallel()
	for _, kept := range []bool{true, false} {
		b := newBench(t, pivtest.Config{}, Options{})
		ctx := t.Context()
		k, _ := b.signer(t, token.Policy{PIN: token.PINOnce})
		if err := b.token.Lock(ctx); err != nil {
			t.Fatal(err)
		}
		if kept {
			if err := b.token.Unlock(ctx, []byte(testPIN)); err != nil {
				t.Fatal(err)
			}
		} else if err := sign(ctx, k, token.Auth{PIN: []byte(testPIN)}); err != nil {
			t.Fatal(err)
		}
		if !knowsPIN(b.card) {
			t.Fatalf("kept %t: the card does not know the PIN", kept)
		}
		if err := b.token.Close(); err != nil {
			t.Fatal(err)
		}
		if knowsPIN(b.card) {
			t.Errorf("kept %t: the card knows the PIN of a token that is closed", kept)
		}
	}
}

// knowsPIN asks the card whether its PIN was verified (SP 800-73-4, part 2, 3.2.1: VERIFY without data).
func knowsPIN(c *pivtest.Card) bool {
	return bytes.Equal(c.Transmit([]byte{0x00, 0x20, 0x00, 0x80}), []byte{0x90, 0x00})
}

// TestPolicies counts, for each policy, the commands of a signature on a connected card.
func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy token.Policy
		auth   token.Auth
		count  int // GENERAL AUTHENTICATE, SELECT where something may be asked, and what the PIN needs
	}{
		{token.Policy{PIN: token.PINNever}, token.Auth{}, 1},
		{token.Policy{PIN: token.PINOnce}, token.Auth{}, 1},
		{token.Policy{PIN: token.PINAlways}, token.Auth{PIN: []byte(testPIN)}, 4},
		{token.Policy{PIN: token.PINNever, Touch: token.TouchAlways}, token.Auth{}, 2},
		{token.Policy{PIN: token.PINOnce, Touch: token.TouchCached}, token.Auth{}, 3},
	} {
		b := newBench(t, pivtest.Config{}, kept())
		k, _ := b.signer(t, c.policy)
		if got := k.(interface{ Policy() token.Policy }).Policy(); got != policyOr(c.policy) {
			t.Errorf("policy is %v, want %v", got, policyOr(c.policy))
		}
		if c.policy.PIN == token.PINAlways {
			wantAll(t, "sign without the PIN", sign(t.Context(), k, token.Auth{}), token.ErrAuthNeeded)
		}
		for range 5 {
			before := b.card.Commands()
			if err := sign(t.Context(), k, c.auth); err != nil {
				t.Errorf("%v: %v", c.policy, err)
			}
			if n := b.card.Commands() - before; n != c.count {
				t.Errorf("%v: %d commands, want %d", c.policy, n, c.count)
			}
		}
	}
}

// touchLog collects what a token says of touches.
type touchLog struct {
	mu     sync.Mutex
	events []TouchEvent // guarded by mu
}

func (l *touchLog) add(_ context.Context, e TouchEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

func (l *touchLog) take() []TouchEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.events
	l.events = nil
	return out
}

func TestTouch(t *testing.T) {
	t.Parallel()
	var log touchLog
	b := newBench(t, pivtest.Config{}, Options{Touch: log.add})
	k, _ := b.signer(t, token.Policy{Touch: token.TouchAlways})
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Fatal(err)
	}
	want := []TouchEvent{
		{Token: "piv:5700001", Slot: "9c", Waiting: true, Touches: 1},
		{Token: "piv:5700001", Slot: "9c"},
	}
	if got := log.take(); !slices.Equal(got, want) {
		t.Errorf("said %v, want %v", got, want)
	}
	b.card.SetTouch(pivtest.TouchRefused)
	wantAll(t, "no touch", sign(t.Context(), k, token.Auth{}), token.ErrTouchTimeout)
	if got := log.take(); !slices.Equal(got, want) {
		t.Errorf("said %v, want %v", got, want)
	}
}

// TestTouchTwice agrees, which takes two touches, and says so before.
func TestTouchTwice(t *testing.T) {
	t.Parallel()
	var log touchLog
	b := newBench(t, pivtest.Config{}, Options{Touch: log.add})
	req := token.GenerateRequest{Algorithm: token.P256, Use: token.UseAgree, Policy: token.Policy{Touch: token.TouchAlways}}
	c, err := b.token.Generate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	k, err := b.token.Open(t.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: req.Use})
	if err != nil {
		t.Fatal(err)
	}
	other, _ := b.signer(t, token.Policy{})
	if _, err := k.(token.PointAgreer).AgreePoint(t.Context(), token.AgreeRequest{Peer: other.Public().Octets}); err != nil {
		t.Fatal(err)
	}
	var touches []int
	for _, e := range log.take() {
		touches = append(touches, e.Touches)
	}
	if !slices.Equal(touches, []int{2, 0, 1, 0}) || b.card.Touches() != 2 {
		t.Errorf("announced %v, touched %d times", touches, b.card.Touches())
	}
}

// TestTouchCancelled hangs up while the card waits for a touch. The card is given up at once,
// and works when it is done.
func TestTouchCancelled(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{Touch: token.TouchAlways})
	b.card.SetTouch(pivtest.TouchAwaited)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- sign(ctx, k, token.Auth{}) }()
	<-b.card.TouchWaits()
	cancel()
	wantAll(t, "sign", <-done, context.Canceled)
	b.card.SetTouch(pivtest.TouchGiven)
	b.card.Answer(false) // the card's own time limit
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Errorf("sign afterwards: %v", err)
	}
}

// TestSlots fills the card and meets occupied slots.
func TestSlots(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	generate := func(u token.Use, p token.Place) (token.Created, error) {
		return b.token.Generate(ctx, token.GenerateRequest{Algorithm: token.P256, Use: u, Place: p})
	}
	slotOf := func(c token.Created) string { return applet.Slot(c.Handle[8]).String() }
	for _, c := range []struct {
		use  token.Use
		slot string
	}{{token.UseSSH, "9a"}, {token.UseSign, "9c"}, {token.UseAgree, "9d"}, {token.UseDecrypt, "82"}, {token.UseSSH, "83"}} {
		created, err := generate(c.use, token.Place{})
		if err != nil || slotOf(created) != c.slot {
			t.Errorf("%s: in slot %s, %v, want %s", c.use, slotOf(created), err, c.slot)
		}
	}
	_, err := generate(token.UseSSH, token.Place{Slot: "9c"})
	wantAll(t, "occupied slot", err, token.ErrBadRequest, ErrOccupied)
	_, err = generate(token.UseSSH, token.Place{Slot: "96"})
	wantAll(t, "no slot", err, token.ErrBadRequest)
	b.card.SetObject(0x5FC10F, []byte{0x70, 1, 0}) // a certificate of sorts in slot 84
	if c, err := generate(token.UseSign, token.Place{}); err != nil || slotOf(c) != "85" {
		t.Errorf("beside a certificate: in slot %s, %v, want 85", slotOf(c), err)
	}
	if c, err := generate(token.UseSSH, token.Place{Slot: "9c", Overwrite: true}); err != nil || slotOf(c) != "9c" {
		t.Errorf("overwriting: in slot %s, %v", slotOf(c), err)
	}
	for range 16 {
		if _, err := generate(token.UseSSH, token.Place{}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = generate(token.UseSSH, token.Place{})
	wantAll(t, "full card", err, ErrFull)
}

// TestFirmware uses cards of several firmware versions, which can do less.
func TestFirmware(t *testing.T) {
	t.Parallel()
	for _, version := range [][3]byte{{4, 3, 5}, {5, 2, 7}, {5, 3, 0}, {5, 4, 3}, {5, 7, 1}} {
		t.Run(applet.Version{Major: version[0], Minor: version[1], Patch: version[2]}.String(), func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pivtest.Config{Version: version}, Options{})
			ctx := t.Context()
			req := token.GenerateRequest{Algorithm: token.P384, Use: token.UseSSH}
			c, err := b.token.Generate(ctx, req)
			if !applet.HasMetadata(applet.Version{Major: version[0], Minor: version[1]}) {
				wantAll(t, "generate without naming a slot", err, ErrFull)
				req.Place = token.Place{Slot: "9a", Overwrite: true}
				c, err = b.token.Generate(ctx, req)
			}
			if err != nil {
				t.Fatal(err)
			}
			k, err := b.token.Open(ctx, token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: req.Use})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := sign(ctx, k.(token.Signer), token.Auth{}); err != nil {
					t.Error(err)
				}
				b.idle(t)
			}
			if err := b.token.Delete(ctx, c.Handle); err != nil {
				t.Errorf("delete: %v", err)
			}
			wantAll(t, "second delete", b.token.Delete(ctx, c.Handle), token.ErrNotFound)
			wantAll(t, "sign with a deleted key", sign(ctx, k.(token.Signer), token.Auth{}), token.ErrNotFound)
			if version[0] == 5 && version[1] == 4 {
				if c, err := b.token.Generate(ctx, req); err != nil || c.Handle[8] != 0x9A {
					t.Errorf("generate in a slot that was emptied: slot %02x, %v", c.Handle[8], err)
				}
			}
		})
	}
}

func TestAttest(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	_, c := b.signer(t, token.Policy{})
	id, err := b.token.AttestIdentity(ctx)
	if err != nil {
		t.Fatal(err)
	}
	req := token.AttestRequest{
		Key:        token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSign},
		Qualifying: make([]byte, 32),
	}
	e, err := b.token.Attest(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(e.AttestationKey, id.AttestationKey) || len(e.Key) == 0 || len(e.Signature) == 0 {
		t.Error("the evidence is not complete")
	}
	req.PCRs = "sha256:0"
	_, err = b.token.Attest(ctx, req)
	wantAll(t, "PCRs", err, token.ErrUnsupported)
	req.PCRs, req.Key.Use = "", token.UseSSH
	_, err = b.token.Attest(ctx, req)
	wantAll(t, "another use", err, token.ErrCorrupt)

	// A card that answers for another slot is found out.
	if _, err := b.card.Generate(0x9A, 0x11, 2, 1); err != nil {
		t.Fatal(err)
	}
	b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
		if apdu[1] == 0xF9 {
			apdu[2] = 0x9A
		}
		return card(apdu)
	})
	req.Key.Use = token.UseSign
	_, err = b.token.Attest(ctx, req)
	wantAll(t, "statement of another slot", err, token.ErrFault)
}
