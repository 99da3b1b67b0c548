package piv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/token"
)

// request is work for the goroutine that owns the connection to the card.
type request struct {
	ctx     context.Context
	timeout time.Duration
	// run works in a transaction, with the application selected. It may be run twice, unless it
	// set changed. A nil run looks whether the card is there.
	run     func(context.Context, *session) error
	changed bool
	done    chan error // has room for one
}

// do runs f in a transaction and returns its result. While it waits for its turn it returns when ctx
// ends; in a transaction it gives up the connection and then returns, so that what f uses is
// the caller's again.
func do[T any](ctx context.Context, t *Token, what string, f func(context.Context, *session) (T, error)) (T, error) {
	var result, none T
	r := &request{ctx: ctx, timeout: orDefault(t.options.Timeout, defaultTimeout)}
	if f != nil {
		r.run = func(ctx context.Context, s *session) (err error) {
			result, err = f(ctx, s)
			return err
		}
	}
	if err := t.submit(r); err != nil {
		return none, fmt.Errorf("%s: %s: %w", Name(t.options.Serial), what, err)
	}
	return result, nil
}

// submit hands a request to the worker and waits for its end.
func (t *Token) submit(r *request) error {
	r.done = make(chan error, 1)
	select {
	case <-t.quit:
		return token.ErrClosed
	default:
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	select {
	case t.requests <- r:
		return <-r.done
	case <-r.ctx.Done():
		return r.ctx.Err()
	case <-t.quit:
		return token.ErrClosed
	}
}

// worker owns the connection to pcscd and the card, and the PIN.
type worker struct {
	token   *Token
	life    context.Context // ends with the token
	client  *pcsc.Client    // nil if not connected to pcscd
	session *session        // nil if not connected to the card
	open    bool            // the session's transaction of a request that went well is open still
	pin     pin
	version applet.Version // of our card, once known
}

// session is a connection to our card. Only the worker uses it.
type session struct {
	applet.Applet
	worker  *worker
	request *request
	card    *pcsc.Card
	since   time.Time
	checked map[applet.Slot]applet.Metadata // what was seen in slots since connecting
}

func newWorker(t *Token, life context.Context) *worker {
	return &worker{token: t, life: life, pin: newPIN()}
}

func (w *worker) loop() {
	defer w.leave()
	linger := time.NewTimer(time.Hour)
	defer linger.Stop()
	for {
		select {
		case <-w.token.quit:
			return
		case r := <-w.token.requests:
			r.done <- w.serve(r)
			w.end()
			linger.Reset(w.token.options.Linger)
		case <-linger.C:
			w.release()
		case <-w.token.gone:
			w.forgetPIN()
		}
	}
}

// serve runs a request. If the connection turns out to be stale, or goes stale before the
// card has changed, it connects and tries once more.
func (w *worker) serve(r *request) error {
	ctx, cancel := context.WithTimeoutCause(r.ctx, r.timeout, ErrSilent)
	defer cancel()
	stop := context.AfterFunc(w.life, cancel)
	defer stop()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := w.attempt(ctx, r)
	if stale(err) && !r.changed && ctx.Err() == nil {
		err = w.attempt(ctx, r)
	}
	switch {
	case err == nil:
	case r.ctx.Err() != nil:
		err = r.ctx.Err()
	case w.life.Err() != nil:
		err = token.ErrClosed
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", token.ErrAbsent, ErrSilent)
	default:
		err = explain(err)
	}
	w.note(err)
	return err
}

// note keeps Info up to date.
func (w *worker) note(err error) {
	switch {
	case errors.Is(err, ErrBusy), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case errors.Is(err, token.ErrReplaced):
		w.forgetPIN()
		w.token.setState(token.StateReplaced)
	case errors.Is(err, token.ErrAbsent):
		w.token.setState(token.StateAbsent)
	case w.token.bound.Load() == nil:
		w.token.setState(token.StateAbsent)
	case w.pin.cached == nil:
		w.token.setState(token.StateLocked)
	default:
		w.token.setState(token.StateReady)
	}
}

// attempt runs a request in one transaction.
func (w *worker) attempt(ctx context.Context, r *request) error {
	err := w.begin(ctx)
	if err != nil {
		w.drop(err)
		return err
	}
	s := w.session
	s.request = r
	if r.run != nil {
		err = r.run(ctx, s)
	}
	s.request = nil
	if w.client.Broken() || stale(err) {
		w.drop(err)
		return err
	}
	if err == nil {
		w.open = true // the result need not wait for end
		return nil
	}
	if endErr := s.card.End(ctx, pcsc.LeaveCard); endErr != nil {
		w.drop(endErr)
		if stale(endErr) { // the card was reset under it
			return fmt.Errorf("%w: %w", endErr, err)
		}
	}
	return err
}

// end ends the transaction of a request that went well, and lets the card go if it was held
// long enough.
func (w *worker) end() {
	if !w.open {
		return
	}
	w.open = false
	ctx, cancel := context.WithTimeout(w.life, closeGrace)
	defer cancel()
	if err := w.session.card.End(ctx, pcsc.LeaveCard); err != nil {
		w.drop(err)
	} else if time.Since(w.session.since) > maxHold {
		w.release()
	}
}

// begin begins a transaction with our card and selects the application.
func (w *worker) begin(ctx context.Context) error {
	if w.session != nil {
		err := w.session.SelectIn(ctx, w.session.card.BeginTransmit)
		if err == nil {
			return nil
		}
		w.drop(err)
		if !stale(err) {
			return err
		}
	}
	return w.connect(ctx)
}

// drop gives up the connection to the card, and to pcscd if that broke.
func (w *worker) drop(err error) {
	if errors.Is(err, pcsc.CardRemoved) || errors.Is(err, pcsc.ReaderUnavailable) {
		w.forgetPIN()
	}
	if s := w.session; s != nil && w.client != nil && !w.client.Broken() {
		ctx, cancel := context.WithTimeout(w.life, closeGrace)
		_ = s.card.Disconnect(ctx, pcsc.LeaveCard) // it may be gone
		cancel()
	}
	w.session = nil
	if w.client != nil && w.client.Broken() {
		_ = w.client.Close()
		w.client = nil
	}
}

// release lets the card go, so that other programs may have it for themselves.
func (w *worker) release() {
	if w.session != nil {
		w.drop(nil)
	}
}

// leave ends everything.
func (w *worker) leave() {
	w.release()
	if w.client != nil {
		_ = w.client.Close()
		w.client = nil
	}
	w.pin.forget()
	clear(w.token.options.ManagementKey)
	w.token.interrupt()
}

func (w *worker) forgetPIN() {
	w.pin.forget()
	if w.token.info.Load().State == token.StateReady {
		w.token.setState(token.StateLocked)
	}
}
