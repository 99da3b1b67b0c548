package piv

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// short is how long the calls of these tests take that wait for what does not come before they end. On a machine on which
// they do not even begin to wait within that time, they get more: see overdue.
const short = 50 * time.Millisecond

// look does nothing with the card but getting it, for a short time.
func (b *bench) look(ctx context.Context, timeout time.Duration) error {
	_, err := perform[struct{}](b.token, "look", &request{ctx: ctx, timeout: timeout}, nil)
	return err
}

// overdue wants a call whose time is over to say what it waited for. If it says something else it may have waited for
// nothing yet, and gets twice the time. It reports whether the first call was right.
func overdue(t *testing.T, what string, call func(time.Duration) error, want ...error) (atOnce bool) {
	t.Helper()
	right := func(err error) bool {
		return !slices.ContainsFunc(want, func(w error) bool { return !errors.Is(err, w) })
	}
	for timeout := short; ; timeout *= 2 {
		err := call(timeout)
		if right(err) || timeout > 10*time.Second {
			wantAll(t, what, err, want...)
			return timeout == short
		}
	}
}

// lookOverdue looks at a card that cannot be had, for the reason that is wanted.
func (b *bench) lookOverdue(t *testing.T, want error) (atOnce bool) {
	t.Helper()
	look := func(timeout time.Duration) error { return b.look(t.Context(), timeout) }
	return overdue(t, "look", look, token.ErrAbsent, want)
}

// holder is another program that is connected to a card.
type holder struct {
	client *pcsc.Client
	card   *pcsc.Card
}

func newHolder(tb testing.TB, socket, reader string) holder {
	tb.Helper()
	client, err := pcsc.Dial(tb.Context(), socket)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { client.Close() })
	card, err := client.Connect(tb.Context(), reader)
	if err != nil {
		tb.Fatal(err)
	}
	return holder{client, card}
}

func (h holder) begin(tb testing.TB) {
	tb.Helper()
	if err := h.card.Begin(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

// end ends the transaction, in which nothing happened to the card that the holder did not do.
func (h holder) end(tb testing.TB) {
	tb.Helper()
	if err := h.card.End(tb.Context(), pcsc.LeaveCard); err != nil {
		tb.Errorf("the other program's transaction: %v", err)
	}
}

// TestHeld has another program be in a transaction that does not end, while the token has let the card go, when pcscd keeps
// who connects waiting, and while it is connected, when pcscd refuses. Either way it says so, and has not more than one thread of
// pcscd wait; the other program notices nothing.
func TestHeld(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{"let go": {}, "connected": kept()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pivtest.Config{}, o)
			k, _ := b.signer(t, token.Policy{})
			if name == "let go" {
				b.idle(t)
			}
			h := newHolder(t, b.daemon.Socket, b.reader.Name())
			h.begin(t)
			atOnce := true
			for range 5 {
				atOnce = b.lookOverdue(t, ErrBusy) && atOnce
			}
			if !b.daemon.AwaitClients(4, patience) { // the watcher's, the holder's, one that waits, one for more
				t.Errorf("pcscd has %d connections", b.daemon.Clients())
			}
			if s := b.token.Info().State; atOnce && s != token.StateReady { // else there was another reason at first
				t.Errorf("state is %q", s)
			}
			done := make(chan error)
			go func() { done <- sign(t.Context(), k, token.Auth{}) }()
			h.end(t)
			if err := <-done; err != nil {
				t.Errorf("sign when it is let go: %v", err)
			}
			h.begin(t)
			h.end(t)
		})
	}
}

// TestSilentCard has the card not answer. The connection that waits for it in pcscd is the token's own: no other program is
// blamed for that. When the card answers, the token is ready by itself, and the other program's connection is as it was.
func TestSilentCard(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{})
	b.idle(t)
	h := newHolder(t, b.daemon.Socket, b.reader.Name())
	b.reader.Silence()
	for range 5 {
		b.lookOverdue(t, ErrSilent)
	}
	if !b.daemon.AwaitClients(4, patience) {
		t.Errorf("pcscd has %d connections", b.daemon.Clients())
	}
	b.await(t, token.StateAbsent)
	b.reader.Speak()
	b.await(t, token.StateReady)
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Errorf("sign when it answers: %v", err)
	}
	h.begin(t)
	h.end(t)
}

// TestOpenHeld opens the token of a card that another program holds: when it is let go, the token has it, without being asked.
func TestOpenHeld(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{})
	b.idle(t)
	h := newHolder(t, b.daemon.Socket, b.reader.Name())
	h.begin(t)
	second := &bench{card: b.card, daemon: b.daemon}
	second.token = second.open(t, Options{})
	if s := second.token.Info().State; s != token.StateAbsent {
		t.Errorf("state is %q", s)
	}
	second.lookOverdue(t, ErrBusy)
	h.end(t)
	second.await(t, token.StateLocked)
}

// TestOtherCardInTheWay looks for our card behind one that is silent and one that another program holds.
func TestOtherCardInTheWay(t *testing.T) {
	t.Parallel()
	b := &bench{card: pivtest.NewCard(pivtest.Config{}), daemon: pivtest.StartDaemon(t)}
	held := b.daemon.AddReader("Held Yubikey 00 00", pivtest.NewCard(pivtest.Config{Serial: 98}))
	b.daemon.AddReader("Silent Yubikey 01 00", pivtest.NewCard(pivtest.Config{Serial: 99})).Silence()
	h := newHolder(t, b.daemon.Socket, held.Name())
	h.begin(t)
	b.reader = b.daemon.AddReader("Yubico YubiKey 02 00", b.card)
	b.token = b.open(t, Options{})
	wantTries(t, "unlock", b.token.Unlock(t.Context(), []byte("000000")), token.ErrAuthWrong, 2)
	h.end(t)
	b.idle(t)
}

// TestLateCard has our card, not yet found among others, be held until the time for one that may be another's is over: it gets
// another turn. The worker is alone, without a watcher that looks for the card too.
func TestLateCard(t *testing.T) {
	t.Parallel()
	b := &bench{card: pivtest.NewCard(pivtest.Config{}), daemon: pivtest.StartDaemon(t)}
	b.reader = b.daemon.AddReader("Yubico YubiKey 00 00", b.card)
	b.daemon.AddReader("Another Yubikey 01 00", pivtest.NewCard(pivtest.Config{Serial: 99}))
	h := newHolder(t, b.daemon.Socket, b.reader.Name())
	h.begin(t)
	lists := make(chan struct{}, 100)
	b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandReaders {
			lists <- struct{}{}
		}
		return pivtest.Success
	})
	w := b.alone(t)
	done := make(chan error)
	go func() { done <- w.serve(&request{ctx: t.Context(), timeout: time.Minute}) }()
	<-lists // to begin with
	<-lists // to find out who holds the card, when the time is over
	h.end(t)
	if err := <-done; err != nil {
		t.Errorf("look: %v", err)
	}
	w.end()
}

// TestOthersLeftAlone has another program use another card while ours is not there. The token looks at that card once.
func TestOthersLeftAlone(t *testing.T) {
	t.Parallel()
	d := pivtest.StartDaemon(t)
	other := pivtest.NewCard(pivtest.Config{Serial: 99})
	r := d.AddReader("Another Yubikey 01 00", other)
	b := &bench{card: pivtest.NewCard(pivtest.Config{}), daemon: d}
	b.token = b.open(t, Options{})
	client, err := pcsc.Dial(t.Context(), d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	use := func() {
		t.Helper()
		card, err := client.Connect(t.Context(), r.Name())
		if err == nil {
			err = card.Disconnect(t.Context(), pcsc.LeaveCard)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	waits := make(chan struct{}, 100)
	d.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandWaitChange {
			waits <- struct{}{}
		}
		return pivtest.Success
	})
	woken := func() {
		for use(); len(waits) == 0; use() {
		}
		<-waits // the watcher has seen what went before
	}
	woken()
	before := other.Commands()
	for range 5 {
		woken()
	}
	if n := other.Commands() - before; n != 0 {
		t.Errorf("the other card got %d commands", n)
	}
}

// TestBeginOverdue has the time of a request be over between connecting and the transaction: the handle is
// given back although the request has no time for it.
func TestBeginOverdue(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	b.idle(t)
	b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandBegin {
			return pivtest.SharingViolation
		}
		return pivtest.Success
	})
	for range 3 {
		b.lookOverdue(t, ErrBusy)
		b.idle(t)
	}
	ctx, cancel := context.WithTimeout(t.Context(), short)
	defer cancel()
	wantAll(t, "look until the caller goes", b.look(ctx, patience), context.DeadlineExceeded)
	b.idle(t)
}

// TestExclusiveOverdue is the same for a program that has the card for itself.
func TestExclusiveOverdue(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{Patience: time.Hour})
	b.idle(t)
	b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandConnect {
			return pivtest.SharingViolation
		}
		return pivtest.Success
	})
	b.lookOverdue(t, ErrBusy)
}

// TestServiceSilent has pcscd not answer at all.
func TestServiceSilent(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	b.idle(t)
	release := make(chan struct{})
	b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandReaders {
			<-release
		}
		return pivtest.Success
	})
	b.lookOverdue(t, ErrServiceSilent)
	close(release)
	b.daemon.Inject(nil)
	b.unlock(t)
}

// TestLockHeld locks a token whose card another program holds: that is not done, and said; the card forgets the PIN before it does
// anything else.
func TestLockHeld(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{})
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Fatal(err)
	}
	b.idle(t)
	h := newHolder(t, b.daemon.Socket, b.reader.Name())
	h.begin(t)
	atOnce := overdue(t, "lock", func(timeout time.Duration) error {
		_, err := perform[struct{}](b.token, "lock", &request{ctx: t.Context(), timeout: timeout, lock: true}, nil)
		return err
	}, token.ErrAbsent, ErrBusy)
	if s := b.token.Info().State; atOnce && s != token.StateLocked { // else there was another reason at first
		t.Errorf("state is %q", s)
	}
	if !knowsPIN(b.card) {
		t.Fatal("the card has forgotten the PIN already")
	}
	h.end(t)
	wantTries(t, "sign", sign(t.Context(), k, token.Auth{}), token.ErrAuthNeeded, 3)
	if knowsPIN(b.card) {
		t.Error("the card knows the PIN still")
	}
	b.unlock(t)
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Errorf("sign when unlocked: %v", err)
	}
}

// TestTouchGivenUp hangs up while the card waits for a touch: the card is not reset for that, so that whoever else uses it loses
// nothing, nor does the agent.
func TestTouchGivenUp(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{Touch: token.TouchAlways})
	b.idle(t)
	h := newHolder(t, b.daemon.Socket, b.reader.Name())
	b.card.SetTouch(pivtest.TouchAwaited)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- sign(ctx, k, token.Auth{}) }()
	<-b.card.TouchWaits()
	cancel()
	wantAll(t, "sign", <-done, context.Canceled)
	b.lookOverdue(t, ErrSilent)
	b.card.SetTouch(pivtest.TouchGiven)
	b.card.Answer(false)
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Errorf("sign afterwards: %v", err)
	}
	if !knowsPIN(b.card) {
		t.Error("the card was reset")
	}
	h.begin(t)
	h.end(t)
}

// TestCloseWithStraggler closes the token while pcscd is still at something for it.
func TestCloseWithStraggler(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	b.idle(t)
	b.reader.Silence()
	b.lookOverdue(t, ErrSilent)
	if err := b.token.Close(); err != nil {
		t.Error(err)
	}
	b.reader.Speak()
	b.idle(t)
	if !b.daemon.AwaitClients(0, patience) {
		t.Errorf("%d connections are left", b.daemon.Clients())
	}
}
