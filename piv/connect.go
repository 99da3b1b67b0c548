package piv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/token"
)

// connect finds our card among the readers' and leaves it in a transaction with the
// application selected. What was known of slots is forgotten; the PIN too if the card was away.
func (w *worker) connect(ctx context.Context) error {
	readers, err := w.readers(ctx)
	if err != nil {
		if context.Cause(ctx) == ErrSilent {
			return fmt.Errorf("%w: %w", token.ErrAbsent, ErrServiceSilent)
		}
		return err
	}
	if p := w.token.bound.Load(); p != nil && !p.in(readers) {
		w.unbind()
	}
	if len(readers) == 0 {
		return fmt.Errorf("%w: %w", token.ErrAbsent, ErrNoReader)
	}
	var s search
	if err := w.search(ctx, w.order(readers), &s); err != nil || s.found {
		return err
	}
	switch {
	case len(s.failures) > 0:
		return s.failures[0]
	case s.others > 0:
		w.unbind()
		return fmt.Errorf("%w: %w, not %d", token.ErrReplaced, ErrOtherCard, w.token.options.Serial)
	}
	return fmt.Errorf("%w: %w", token.ErrAbsent, ErrNoCard)
}

// search is what became of a search for our card.
type search struct {
	found    bool
	others   int     // cards that are not ours
	failures []error // of cards that may be
}

// search tries the cards one after another. A card that is not where ours was seen keeps the others waiting for some
// seconds only: if ours is none of them, it is its turn again, as long as ctx lasts. Errors: ctx's, and those of pcscd.
func (w *worker) search(ctx context.Context, readers []pcsc.Reader, s *search) error {
	for len(readers) > 0 {
		var late []pcsc.Reader
		for _, r := range readers {
			ours, err := w.tryFor(ctx, r, w.patience(r, readers))
			switch {
			case ours:
				s.found = true
				w.bind(w.session.seen.place)
				return nil
			case err == nil:
				s.others++
			case ctx.Err() != nil, w.client != nil && w.client.Broken():
				return err
			case w.stragglers[r.Name] != nil:
				late = append(late, r)
			default:
				s.failures = append(s.failures, err)
			}
		}
		readers = late
	}
	return nil
}

// patience is how long to wait for the card in a reader, as long as there is time if 0.
func (w *worker) patience(r pcsc.Reader, among []pcsc.Reader) time.Duration {
	if p := w.token.bound.Load(); len(among) == 1 || p != nil && p.reader == r.Name {
		return 0
	}
	return askTimeout
}

// tryFor is try that ends in time. Zero is as long as ctx lasts.
func (w *worker) tryFor(ctx context.Context, r pcsc.Reader, limit time.Duration) (ours bool, err error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, ErrSilent)
		defer cancel()
	}
	return w.try(ctx, r)
}

// readers lists the readers, after connecting to pcscd if need be.
func (w *worker) readers(ctx context.Context) ([]pcsc.Reader, error) {
	if w.client != nil && !w.client.Broken() {
		readers, err := w.client.Readers(ctx)
		if err == nil || ctx.Err() != nil {
			return readers, err
		}
		w.drop(err) // pcscd was restarted
	}
	if err := w.dial(ctx); err != nil {
		return nil, err
	}
	return w.client.Readers(ctx)
}

func (w *worker) dial(ctx context.Context) error {
	client, err := pcsc.Dial(ctx, w.token.options.Socket)
	if err == nil {
		w.client = client
	}
	return err
}

// order lists the readers with cards: that of our card first, those at which pcscd is at something for us still last.
func (w *worker) order(readers []pcsc.Reader) []pcsc.Reader {
	readers = slices.DeleteFunc(readers, func(r pcsc.Reader) bool { return !r.Present })
	p := w.token.bound.Load()
	rank := func(r pcsc.Reader) int {
		switch {
		case p != nil && r.Name == p.reader:
			return 0
		case w.stragglers[r.Name] == nil:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(readers, func(a, b pcsc.Reader) int { return rank(a) - rank(b) })
	return readers
}

// in reports whether a card has been there all the time.
func (p *place) in(readers []pcsc.Reader) bool {
	return slices.ContainsFunc(readers, func(r pcsc.Reader) bool {
		return r.Present && r.Name == p.reader && r.Events == p.events
	})
}

// bind notes where our card is. A card that was away has no PIN.
func (w *worker) bind(p place) {
	if old := w.token.bound.Swap(&p); old == nil || *old != p {
		w.forgetPIN()
	}
}

func (w *worker) unbind() {
	if w.token.bound.Swap(nil) != nil {
		w.forgetPIN()
	}
}

// try connects to the card in a reader and reports whether it is ours; then it is the
// session, in a transaction. A card without PIV or serial number is not ours.
func (w *worker) try(ctx context.Context, r pcsc.Reader) (ours bool, err error) {
	if err := w.awaitStraggler(ctx, r.Name); err != nil {
		return false, err
	}
	if w.client == nil {
		if err := w.dial(ctx); err != nil {
			return false, err
		}
	}
	card, err := w.patiently(ctx, r.Name)
	if err != nil {
		if w.client.GaveUp() {
			w.abandon(r.Name, nil, err)
		}
		return false, w.overdue(ctx, r.Name, err)
	}
	s := &session{
		Applet: applet.New(card), worker: w, card: card, since: time.Now(),
		seen: sighting{place: place{r.Name, r.Events}, since: time.Now(), checked: map[applet.Slot]applet.Metadata{}},
	}
	if err = card.Begin(ctx); err == nil {
		if ours, err = w.identify(ctx, s); ours {
			w.session = s
			return true, nil
		}
	}
	w.letGo(s, err) // ends the transaction
	return false, w.overdue(ctx, r.Name, err)
}

// patiently connects, waiting for a program that has the card for itself.
func (w *worker) patiently(ctx context.Context, reader string) (*pcsc.Card, error) {
	const pause = 5 * time.Millisecond
	busy := false
	for end := time.Now().Add(w.token.options.Patience); ; busy = true {
		card, err := w.client.Connect(ctx, reader)
		switch {
		case busy && ctx.Err() != nil && errors.Is(err, ctx.Err()): // before it was refused once more
			return nil, fmt.Errorf("%w: %w", err, pcsc.SharingViolation)
		case !errors.Is(err, pcsc.SharingViolation) || time.Now().After(end):
			return card, err
		}
		if ctxErr := pcsc.Pause(ctx, pause); ctxErr != nil {
			return nil, fmt.Errorf("%w: %w", ctxErr, err)
		}
	}
}

// identify selects the application and compares the serial number, unless it was seen just now.
func (w *worker) identify(ctx context.Context, s *session) (bool, error) {
	if err := s.Select(ctx); err != nil {
		return false, notOurs(err)
	}
	if w.left.holds(s.seen.place) {
		s.seen = w.left
		return true, nil
	}
	version := w.version
	if version == (applet.Version{}) {
		var err error
		if version, err = s.Version(ctx); err != nil {
			return false, notOurs(err)
		}
	}
	serial, err := s.Serial(ctx, version)
	if err != nil || serial != w.token.options.Serial {
		return false, notOurs(err)
	}
	if w.version != version {
		w.version = version
		w.token.setFirmware(version)
	}
	return true, nil
}

// notOurs drops errors that say what kind of card it is rather than that it failed.
func notOurs(err error) error {
	var status apdu.Status
	if errors.As(err, &status) || errors.Is(err, apdu.ErrMalformed) {
		return nil
	}
	return err
}
