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
		return err
	}
	if p := w.token.bound.Load(); p != nil && !p.in(readers) {
		w.unbind()
	}
	if len(readers) == 0 {
		return fmt.Errorf("%w: %w", token.ErrAbsent, ErrNoReader)
	}
	var failures []error
	others := 0
	for _, r := range w.order(readers) {
		ours, err := w.try(ctx, r)
		switch {
		case ours:
			w.bind(w.session.seen.place)
			return nil
		case err == nil:
			others++
		case w.client.Broken() || ctx.Err() != nil:
			return err
		default:
			failures = append(failures, err)
		}
	}
	switch {
	case len(failures) > 0:
		return failures[0]
	case others > 0:
		w.unbind()
		return fmt.Errorf("%w: %w, not %d", token.ErrReplaced, ErrOtherCard, w.token.options.Serial)
	}
	return fmt.Errorf("%w: %w", token.ErrAbsent, ErrNoCard)
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
	client, err := pcsc.Dial(ctx, w.token.options.Socket)
	if err != nil {
		return nil, err
	}
	w.client = client
	return client.Readers(ctx)
}

// order lists the readers with cards, that of our card first.
func (w *worker) order(readers []pcsc.Reader) []pcsc.Reader {
	readers = slices.DeleteFunc(readers, func(r pcsc.Reader) bool { return !r.Present })
	if p := w.token.bound.Load(); p != nil {
		slices.SortStableFunc(readers, func(a, b pcsc.Reader) int {
			switch {
			case a.Name == p.reader:
				return -1
			case b.Name == p.reader:
				return 1
			}
			return 0
		})
	}
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
	card, err := w.patiently(ctx, r.Name)
	if err != nil {
		return false, err
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
	if w.client.Broken() {
		return false, err
	}
	return false, errors.Join(err, card.Disconnect(ctx, pcsc.LeaveCard)) // ends the transaction
}

// patiently connects, waiting for a program that has the card for itself.
func (w *worker) patiently(ctx context.Context, reader string) (*pcsc.Card, error) {
	const pause = 5 * time.Millisecond
	for end := time.Now().Add(w.token.options.Patience); ; {
		card, err := w.client.Connect(ctx, reader)
		if !errors.Is(err, pcsc.SharingViolation) || time.Now().After(end) {
			return card, err
		}
		if err := pcsc.Pause(ctx, pause); err != nil {
			return nil, err
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
