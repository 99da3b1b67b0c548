package piv

import (
	"context"
	"crypto"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// signer makes a P-256 key on the card and opens it.
func (b *bench) signer(tb testing.TB, p token.Policy) (token.Signer, token.Created) {
	tb.Helper()
	req := token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Policy: p}
	c, err := b.token.Generate(tb.Context(), req)
	if err != nil {
		tb.Fatal(err)
	}
	k, err := b.token.Open(tb.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: req.Use})
	if err != nil {
		tb.Fatal(err)
	}
	return k.(token.Signer), c
}

func sign(ctx context.Context, k token.Signer, auth token.Auth) error {
	req := token.SignRequest{Scheme: token.SchemeECDSA, Hash: crypto.SHA256, Message: []byte("message"), Auth: auth}
	sig, err := k.Sign(ctx, req)
	if err != nil {
		return err
	}
	return tokentest.Verify(k.Public(), req, sig)
}

func wantAll(tb testing.TB, what string, err error, want ...error) {
	tb.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			tb.Errorf("%s: %v, want %v", what, err, w)
		}
	}
}

// TestHeals has each fault happen to a card in use: it has its own error, and when it is
// over the same key works, without anything being opened again.
func TestHeals(t *testing.T) {
	t.Parallel()
	other := func() *pivtest.Card { return pivtest.NewCard(pivtest.Config{Serial: 99}) }
	for _, c := range []struct {
		name  string
		harm  func(*bench)
		want  []error // nil if the call heals itself
		mend  func(*bench)
		keeps bool        // the PIN
		state token.State // found out without a call

		options Options // that end a wait sooner
	}{
		{"unplugged", func(b *bench) { b.reader.Unplug() }, []error{token.ErrAbsent, ErrNoReader}, func(b *bench) { b.reader.Plug() }, false, token.StateAbsent, Options{}},
		{"replugged", func(b *bench) { b.reader.Unplug(); b.reader.Plug() }, []error{token.ErrAuthNeeded}, func(b *bench) {}, false, "", Options{}},
		{"removed", func(b *bench) { b.reader.Remove() }, []error{token.ErrAbsent, ErrNoCard}, func(b *bench) { b.reader.Insert(b.card) }, false, token.StateAbsent, Options{}},
		{"other card", func(b *bench) { b.reader.Insert(other()) }, []error{token.ErrReplaced, ErrOtherCard}, func(b *bench) { b.reader.Insert(b.card) }, false, token.StateReplaced, Options{}},
		{"second card", func(b *bench) { b.daemon.AddReader("Another Yubikey 01 00", other()) }, nil, func(b *bench) {}, true, "", Options{}},
		{"other reader", func(b *bench) {
			b.reader.Insert(other())
			b.daemon.AddReader("Another Yubikey 01 00", b.card)
		}, []error{token.ErrAuthNeeded}, func(b *bench) {}, false, token.StateLocked, Options{}},
		{"pcscd stopped", func(b *bench) { b.daemon.Stop() }, []error{token.ErrAbsent, ErrNoService}, func(b *bench) { b.daemon.Start() }, false, token.StateAbsent, Options{}},
		{"pcscd refuses", func(b *bench) { b.daemon.Stop(); b.daemon.Refuse(true); b.daemon.Start() }, []error{token.ErrAbsent, ErrForbidden},
			func(b *bench) { b.daemon.Refuse(false) }, false, token.StateAbsent, Options{}},
		{"card refused", func(b *bench) {
			b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
				if c.Command == pivtest.CommandConnect {
					return 0x8010006A
				}
				return pivtest.Success
			})
		}, []error{token.ErrAbsent, ErrForbidden}, func(b *bench) { b.daemon.Inject(nil) }, true, "", Options{}},
		{"reset", func(b *bench) { b.reader.ResetByOther() }, nil, func(b *bench) {}, true, "", Options{}},
		{"power", func(b *bench) { b.reader.PowerDown() }, []error{token.ErrAbsent, ErrPower}, func(b *bench) { b.reader.PowerUp() }, true, "", Options{}},
		{"silent", func(b *bench) { b.reader.Silence() }, []error{token.ErrAbsent, ErrSilent}, func(b *bench) { b.reader.Speak() }, true, "",
			Options{Timeout: 10 * time.Second}}, // for the rest, too
		{"held", func(b *bench) {
			b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
				if c.Command == pivtest.CommandConnect {
					return pivtest.SharingViolation
				}
				return pivtest.Success
			})
		}, []error{token.ErrAbsent, ErrBusy}, func(b *bench) { b.daemon.Inject(nil) }, true, "", Options{Patience: 20 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pivtest.Config{}, c.options)
			k, _ := b.signer(t, token.Policy{})
			if err := sign(t.Context(), k, token.Auth{}); err != nil {
				t.Fatal(err)
			}
			b.idle(t)
			c.harm(b)
			if c.state != "" {
				b.await(t, c.state)
			}
			err := sign(t.Context(), k, token.Auth{})
			if c.want == nil && err != nil {
				t.Errorf("sign: %v", err)
			}
			wantAll(t, "sign", err, c.want...)
			c.mend(b)
			if !c.keeps {
				b.await(t, token.StateLocked)
			}
			auth := token.Auth{}
			if !c.keeps {
				wantAll(t, "sign without the PIN", sign(t.Context(), k, auth), token.ErrAuthNeeded)
				auth.PIN = []byte(testPIN)
			}
			if err := sign(t.Context(), k, auth); err != nil {
				t.Errorf("sign when mended: %v", err)
			}
		})
	}
}

// idle waits until the token has let the card go.
func (b *bench) idle(tb testing.TB) {
	tb.Helper()
	if !b.reader.AwaitFree(patience) {
		tb.Fatal("the card is held while idle")
	}
}

// TestPowerDownWhenIdle has the reader take the power from the card whenever nobody uses it, as pcscd does: the card
// forgets the PIN, and the agent presents it again. Whoever locks the token has locked it.
func TestPowerDownWhenIdle(t *testing.T) {
	t.Parallel()
	for _, version := range [][3]byte{{5, 7, 1}, {4, 3, 5}} {
		b := newBench(t, pivtest.Config{Version: version}, Options{})
		c, err := b.token.Generate(t.Context(), token.GenerateRequest{
			Algorithm: token.P256, Use: token.UseSign, Place: token.Place{Slot: "9c", Overwrite: true},
		})
		if err != nil {
			t.Fatal(err)
		}
		k, err := b.token.Open(t.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSign})
		if err != nil {
			t.Fatal(err)
		}
		b.reader.PowerDownWhenIdle()
		for range 3 {
			if err := sign(t.Context(), k.(token.Signer), token.Auth{}); err != nil {
				t.Errorf("firmware %v: %v", version, err)
			}
			b.idle(t)
		}
		if err := b.token.Lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.idle(t)
		wantTries(t, "sign when locked", sign(t.Context(), k.(token.Signer), token.Auth{}), token.ErrAuthNeeded, 3)
		if err := sign(t.Context(), k.(token.Signer), token.Auth{PIN: []byte(testPIN)}); err != nil {
			t.Errorf("firmware %v: with the PIN: %v", version, err)
		}
		b.idle(t)
		wantTries(t, "sign after that", sign(t.Context(), k.(token.Signer), token.Auth{}), token.ErrAuthNeeded, 3)
	}
}

// TestMidOperation has each fault happen while the card computes a signature.
func TestMidOperation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		at   byte // the instruction with which it happens
		harm func(*bench)
		want []error // nil if the call heals itself
	}{
		{"unplugged", 0x87, func(b *bench) { b.reader.Unplug() }, []error{token.ErrAbsent, ErrNoReader}},
		{"removed", 0x87, func(b *bench) { b.reader.Remove() }, []error{token.ErrAbsent, ErrNoCard}},
		{"other card", 0x87, func(b *bench) { b.reader.Insert(pivtest.NewCard(pivtest.Config{Serial: 99})) }, []error{token.ErrReplaced, ErrOtherCard}},
		{"reset", 0x87, func(b *bench) { b.reader.ResetByOther() }, nil},
		{"power", 0x87, func(b *bench) { b.reader.PowerDown() }, []error{token.ErrAbsent, ErrPower}},
		{"silent", 0xA4, func(b *bench) { b.reader.Silence() }, []error{token.ErrAbsent, ErrSilent}},
		{"pcscd stopped", 0x87, (*bench).kill, []error{token.ErrAbsent, ErrNoService}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var o Options
			if slices.Contains(c.want, error(ErrSilent)) {
				o.Timeout = 10 * time.Second // for the rest, too
			}
			b := newBench(t, pivtest.Config{}, o)
			k, _ := b.signer(t, token.Policy{})
			var once sync.Once
			b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
				if apdu[1] == c.at {
					once.Do(func() { c.harm(b) })
				}
				return card(apdu)
			})
			b.idle(t) // so that the application is selected
			err := sign(t.Context(), k, token.Auth{})
			if c.want == nil && err != nil {
				t.Errorf("sign: %v", err)
			}
			wantAll(t, "sign", err, c.want...)
		})
	}
}

// kill stops the daemon in the middle of a command, for which Stop would wait.
func (b *bench) kill() {
	go b.daemon.Stop()
	for err := error(nil); err == nil; {
		var conn net.Conn
		if conn, err = net.Dial("unix", b.daemon.Socket); err == nil {
			conn.Close()
		}
	}
	b.daemon.Clients() // returns when all connections are closed
}

// TestSecondUser has another client use the card all the time.
func TestSecondUser(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, created := b.signer(t, token.Policy{})
	second := b.open(t, Options{})
	if err := second.Unlock(t.Context(), []byte(testPIN)); err != nil {
		t.Fatal(err)
	}
	key, err := second.Open(t.Context(), token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: token.UseSign})
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 100
	failed := make(chan error, 2)
	for _, k := range []token.Signer{k, key.(token.Signer)} {
		go func() {
			for range rounds {
				if err := sign(t.Context(), k, token.Auth{}); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range 2 {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	b.idle(t)
}
