package piv

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/token"
)

// How long to wait before looking again for a pcscd that does not run.
const (
	watchFirst = 100 * time.Millisecond
	watchMost  = 5 * time.Second
)

// watch follows the readers until ctx ends: a card that goes loses its PIN at once, and one that comes is
// looked at. It touches no card itself.
func watch(ctx context.Context, t *Token) {
	pause := watchFirst
	for ctx.Err() == nil {
		if follow(ctx, t) {
			pause = watchFirst
		}
		if t.bound.Load() != nil && ctx.Err() == nil {
			t.lost()
		}
		if pcsc.Pause(ctx, pause) != nil {
			return
		}
		pause = min(2*pause, watchMost)
	}
}

// follow follows the readers until the connection breaks, and reports whether there was one.
func follow(ctx context.Context, t *Token) bool {
	client, err := pcsc.Dial(ctx, t.options.Socket)
	if err != nil {
		return false
	}
	defer client.Close()
	known, err := client.Readers(ctx)
	var others []pcsc.Reader // those among which our card was not
	for err == nil {
		others = observe(ctx, t, known, others)
		known, err = client.WaitChange(ctx, known)
	}
	return true
}

// observe compares the readers with where our card was. It looks for the card unless it was not among the same cards, so
// that whoever uses these is left alone, and returns the readers if it is not among them.
func observe(ctx context.Context, t *Token, readers, others []pcsc.Reader) []pcsc.Reader {
	p := t.bound.Load()
	if p != nil && p.in(readers) {
		return nil
	}
	if p != nil {
		t.lost()
	}
	if !slices.ContainsFunc(readers, func(r pcsc.Reader) bool { return r.Present }) {
		return nil
	}
	if others != nil && pcsc.SameCards(readers, others) {
		return others
	}
	r := &request{ctx: ctx, timeout: min(orDefault(t.options.Timeout, defaultTimeout), openTimeout)}
	if _, err := perform[struct{}](t, "look", r, nil); errors.Is(err, token.ErrReplaced) { // its outcome is in Info too
		return readers
	}
	return nil
}

// lost notes that the card was taken away.
func (t *Token) lost() {
	t.bound.Store(nil)
	t.setState(token.StateAbsent)
	select {
	case t.gone <- struct{}{}:
	default:
	}
}
