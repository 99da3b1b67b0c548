package piv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/token"
)

// straggler is a connection to pcscd that was given up while pcscd was at something for it that nothing can stop: it
// waits for another program's transaction to end, to connect us to the card, or for the card. Until then its thread in pcscd
// is taken, of which there are 200 for all programs: so the card is not asked for again before.
type straggler struct {
	client *pcsc.Client
	had    bool          // the card, which is silent; not another program
	over   chan struct{} // closed when pcscd is done
}

// abandon gives up the connection to pcscd while it is at something at a reader, as err says; card is nil if that is connecting.
func (w *worker) abandon(reader string, card *pcsc.Card, err error) {
	had := card != nil && !errors.Is(err, pcsc.SharingViolation)
	s := &straggler{client: w.client, had: had, over: make(chan struct{})}
	w.client = nil
	w.stragglers[reader] = s
	again := !w.again
	w.abandoned.Go(func() {
		s.client.Abandon(card)
		close(s.over)
		if again {
			select {
			case w.freed <- struct{}{}:
			default:
			}
		}
	})
}

// awaitStraggler waits for what was given up at a reader before.
func (w *worker) awaitStraggler(ctx context.Context, reader string) error {
	s := w.stragglers[reader]
	if s == nil {
		return nil
	}
	select {
	case <-s.over:
		delete(w.stragglers, reader)
		return nil
	case <-ctx.Done():
		return w.overdue(ctx, reader, ctx.Err())
	}
}

// overdue explains the error of a call at a reader that was given up because its time was over, by what
// it waited for. Other errors it returns as they are.
func (w *worker) overdue(ctx context.Context, reader string, err error) error {
	s := w.stragglers[reader]
	switch {
	case err == nil || context.Cause(ctx) != ErrSilent: // done, or the caller has gone
		return err
	case errors.Is(err, pcsc.SharingViolation):
		return fmt.Errorf("%w: %w", token.ErrAbsent, ErrBusy)
	case !errors.Is(err, ctx.Err()):
		return err
	case s != nil && s.had:
		return fmt.Errorf("%w: %w", token.ErrAbsent, ErrSilent)
	}
	return whyNotConnected(w.life, w.token.options.Socket, reader)
}

// whyNotConnected tells why pcscd did not connect us to a card in time. While another program is in a transaction it has that wait
// without end (winscard.c: SCardConnect). If nobody uses the card it does not come up.
func whyNotConnected(ctx context.Context, socket, reader string) error {
	ctx, cancel := context.WithTimeout(ctx, closeGrace)
	defer cancel()
	readers, err := readersOf(ctx, socket)
	used := slices.ContainsFunc(readers, func(r pcsc.Reader) bool { return r.Name == reader && r.Users > 0 })
	reason := ErrSilent
	switch {
	case ctx.Err() != nil:
		reason = ErrServiceSilent
	case err != nil:
		return err
	case used:
		reason = ErrBusy
	}
	return fmt.Errorf("%w: %w", token.ErrAbsent, reason)
}

// readersOf lists the readers by a connection of its own.
func readersOf(ctx context.Context, socket string) ([]pcsc.Reader, error) {
	client, err := pcsc.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Readers(ctx)
}

// forgetStragglers drops those that pcscd is done with, and reports whether there are any.
func (w *worker) forgetStragglers() bool {
	before := len(w.stragglers)
	maps.DeleteFunc(w.stragglers, func(_ string, s *straggler) bool {
		select {
		case <-s.over:
			return true
		default:
			return false
		}
	})
	return len(w.stragglers) < before
}

// dismiss ends the waiting for pcscd. It goes on alone.
func (w *worker) dismiss() {
	for _, s := range w.stragglers {
		_ = s.client.Close()
	}
	w.abandoned.Wait()
}
