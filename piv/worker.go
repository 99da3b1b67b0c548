package piv

import (
	"context"
	"errors"
	"fmt"
	"sync"
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
	// blind says that run does no harm, and presents no PIN, in whatever application is selected.
	blind bool
	// lock says that the PIN is forgotten first: here in any case, and by the card before it does anything else.
	lock bool
	// single says that run of a blind request is one command with a short answer, mostly.
	single bool
	done   chan error // has room for one
}

// do runs f in a transaction and returns its result. While it waits for its turn it returns when ctx
// ends; in a transaction it gives up the connection and then returns, so that what f uses is
// the caller's again.
func do[T any](ctx context.Context, t *Token, what string, f func(context.Context, *session) (T, error)) (T, error) {
	return perform(t, what, &request{ctx: ctx}, f)
}

// perform is do with a request that says more.
func perform[T any](t *Token, what string, r *request, f func(context.Context, *session) (T, error)) (T, error) {
	var result, none T
	if r.timeout == 0 {
		r.timeout = orDefault(t.options.Timeout, defaultTimeout)
	}
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
	left    sighting       // where the card was let go for a moment

	stragglers map[string]*straggler // by reader
	abandoned  sync.WaitGroup        // theirs
	freed      chan struct{}         // has room for one: pcscd is done with a straggler
	again      bool                  // the card is looked at because of that
}

// session is a connection to our card. Only the worker uses it.
type session struct {
	applet.Applet
	worker  *worker
	request *request
	card    *pcsc.Card
	since   time.Time
	seen    sighting
	// unsure says that another application may be selected: there was no SELECT in this transaction.
	unsure bool
}

// sighting is what was seen of our card.
type sighting struct {
	place   place
	since   time.Time // when its serial number was read
	last    time.Time // when it was let go
	checked map[applet.Slot]applet.Metadata
}

// How long a sighting holds in all, and after the card was let go: too short to put another card in
// its place. What another program changes in slots meanwhile is noticed by what the card
// computes, which is verified.
const (
	sightingLasts = 5 * time.Second
	sightingGap   = 50 * time.Millisecond
)

// holds reports whether a card in this place is ours, by what was seen of it.
func (g sighting) holds(p place) bool {
	return g.place == p && time.Since(g.since) < sightingLasts && time.Since(g.last) < sightingGap
}

func newWorker(t *Token, life context.Context) *worker {
	return &worker{token: t, life: life, pin: newPIN(), stragglers: map[string]*straggler{}, freed: make(chan struct{}, 1)}
}

func (w *worker) loop() {
	defer w.leave()
	linger := time.NewTimer(time.Hour)
	defer linger.Stop()
	for {
		select {
		case <-w.token.quit:
			w.logout()
			return
		case r := <-w.token.requests:
			r.done <- w.serve(r)
			w.end()
			linger.Reset(w.token.options.Linger)
		case <-linger.C:
			w.release()
		case <-w.token.gone:
			w.lost()
		case <-w.freed:
			w.lookAgain()
			linger.Reset(w.token.options.Linger)
		}
	}
}

// lookAgain looks at a card that could not be had, or was silent, when that may have changed: once, so that a card
// that is silent for good is left alone.
func (w *worker) lookAgain() {
	if !w.forgetStragglers() || w.token.info.Load().State != token.StateAbsent {
		return
	}
	w.again = true
	_ = w.serve(&request{ctx: w.life, timeout: openTimeout}) // its outcome is in Info
	w.again = false
	w.end()
}

// logout takes the PIN back from the card, which would go on without it for whoever comes next. It is a courtesy: a
// card that is gone has forgotten it, one that is busy keeps it.
func (w *worker) logout() {
	if w.pin.verified || w.pin.owed {
		_ = w.serve(&request{ctx: w.life, timeout: closeGrace / 2, lock: true})
		w.end()
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
	if r.lock {
		w.forgetPIN()
		w.pin.owed = true
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
	case ctx.Err() != nil && errors.Is(err, pcsc.SharingViolation):
		err = fmt.Errorf("%w: %w", token.ErrAbsent, ErrBusy)
	case !errors.Is(err, token.ErrAbsent) && (ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded)):
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
	if done, err := w.trySingle(ctx, r); done {
		return err
	}
	began, err := w.tryBlind(ctx, r)
	if !began && err == nil {
		if err = w.begin(ctx); err == nil {
			began, err = true, w.run(ctx, r)
		}
	}
	if !began || w.client.Broken() || stale(err) {
		w.drop(err)
		return err
	}
	if err == nil {
		w.open = true // the result need not wait for end
		return nil
	}
	if endErr := w.session.card.End(ctx, pcsc.LeaveCard); endErr != nil {
		w.drop(endErr)
		if stale(endErr) { // the card was reset under it
			return fmt.Errorf("%w: %w", endErr, err)
		}
	}
	return err
}

// run runs a request in a transaction that has begun.
func (w *worker) run(ctx context.Context, r *request) error {
	s := w.session
	s.request = r
	defer func() { s.request = nil }()
	if w.pin.owed {
		if err := s.Logout(ctx); err != nil {
			return err
		}
		w.pin.forget()
		w.pin.owed = false
	}
	if r.run == nil {
		return nil
	}
	return r.run(ctx, s)
}

// tryBlind runs a request without a SELECT before it if it may: mostly nobody has selected
// another application since, and a command is spared. If it fails, it runs once more after a
// SELECT. began is false if nothing was done.
func (w *worker) tryBlind(ctx context.Context, r *request) (began bool, err error) {
	s := w.session
	if s == nil || !r.blind || r.single || w.pin.owed {
		return false, nil
	}
	known := s.Applet
	s.unsure = true
	s.Applet = known.Via(func(ctx context.Context, command []byte) (response []byte, err error) {
		response, err = s.card.BeginTransmit(ctx, command)
		began = err == nil
		return response, err
	})
	err = w.run(ctx, r)
	s.unsure, s.Applet = false, known
	switch {
	case !began && stale(err):
		w.drop(err)
		return false, nil
	case err == nil, !began, w.client.Broken(), stale(err):
		return began, err
	}
	if err := s.Select(ctx); err != nil {
		return true, err
	}
	return true, w.run(ctx, r)
}

// trySingle is tryBlind for a request of one command: the transaction has begun, given it to the
// card and ended in one round trip. done is false if that was not enough, and nothing was changed.
func (w *worker) trySingle(ctx context.Context, r *request) (done bool, err error) {
	s := w.session
	if s == nil || !r.single || w.pin.owed {
		return false, nil
	}
	known := s.Applet
	s.unsure, s.Applet = true, applet.New(&single{card: s.card})
	err = w.run(ctx, r)
	s.unsure, s.Applet = false, known
	switch {
	case w.client.Broken(), stale(err):
		w.drop(err)
		return ctx.Err() != nil, err
	}
	return err == nil || ctx.Err() != nil, err
}

// single is a card that takes one command, in a transaction of its own.
type single struct {
	card *pcsc.Card
	used bool
}

// errSingle says that one command was not enough.
var errSingle = errors.New("one command is not enough")

// Transmit sends a command.
func (c *single) Transmit(ctx context.Context, command []byte) ([]byte, error) {
	if c.used {
		return nil, errSingle
	}
	c.used = true
	return c.card.Exchange(ctx, command)
}

// end ends the transaction of a request that went well, and lets the card go if it was held
// long enough.
func (w *worker) end() {
	if w.open {
		w.open = false
		ctx, cancel := context.WithTimeout(w.life, closeGrace)
		defer cancel()
		if err := w.session.card.End(ctx, pcsc.LeaveCard); err != nil {
			w.drop(err)
		}
	}
	if w.session != nil && time.Since(w.session.since) > w.token.options.hold {
		w.yield()
	}
}

// begin begins a transaction with our card and selects the application.
func (w *worker) begin(ctx context.Context) error {
	if w.session != nil {
		err := w.session.Via(w.session.card.BeginTransmit).Select(ctx)
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
	switch {
	case errors.Is(err, pcsc.ErrBroken): // pcscd has ended, and taken the power from the card
		w.unbind()
		w.token.setState(token.StateAbsent)
	case errors.Is(err, pcsc.CardRemoved), errors.Is(err, pcsc.ReaderUnavailable), errors.Is(err, pcsc.InvalidValue):
		w.forgetPIN()
	}
	if w.session != nil {
		w.letGo(w.session, err)
	}
	w.left = sighting{}
	w.session = nil
	if w.client != nil && w.client.Broken() {
		_ = w.client.Close()
		w.client = nil
	}
}

// letGo ends a connection to a card, and its transaction, because of err if that is not nil. The time of a request does not matter here.
func (w *worker) letGo(s *session, err error) {
	switch {
	case w.client == nil:
	case w.client.GaveUp():
		w.abandon(s.seen.place.reader, s.card, err)
	case !w.client.Broken():
		ctx, cancel := context.WithTimeout(w.life, closeGrace)
		defer cancel()
		_ = s.card.Disconnect(ctx, pcsc.LeaveCard) // it may be gone
	}
}

// release lets the card go, so that other programs may have it for themselves.
func (w *worker) release() {
	if w.session != nil {
		w.drop(nil)
	}
}

// yield is release where the card is wanted again at once.
func (w *worker) yield() {
	seen := w.session.seen
	w.release()
	w.left, w.left.last = seen, time.Now()
}

// leave ends everything.
func (w *worker) leave() {
	w.release()
	if w.client != nil {
		_ = w.client.Close()
		w.client = nil
	}
	w.dismiss()
	w.pin.forget()
	clear(w.token.options.ManagementKey)
	w.token.interrupt()
}

// lost forgets the PIN of a card that was seen to go, unless it was found again since: then that is done.
func (w *worker) lost() {
	if w.token.bound.Load() == nil {
		w.forgetPIN()
	}
}

func (w *worker) forgetPIN() {
	w.pin.forget()
	if w.token.info.Load().State == token.StateReady {
		w.token.setState(token.StateLocked)
	}
}
