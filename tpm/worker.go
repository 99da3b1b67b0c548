package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// request is work for the goroutine that owns the TPM.
type request struct {
	ctx  context.Context
	run  func(*device) error // may be run twice
	done chan error          // has room for one
}

// do runs f on the goroutine that owns the TPM and returns its result. When ctx ends it
// returns at once: a request that waits is dropped; a command in flight, which a TPM cannot
// cancel, runs to its end and nobody hears of it.
func do[T any](ctx context.Context, t *Token, what string, f func(*device) (T, error)) (T, error) {
	var result, none T
	r := &request{ctx: ctx, done: make(chan error, 1)}
	r.run = func(d *device) (err error) {
		result, err = f(d)
		return err
	}
	err := t.submit(ctx, r)
	if err == nil {
		select {
		case err = <-r.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return none, fmt.Errorf("tpm: %s: %w", what, err)
	}
	return result, nil
}

func (t *Token) submit(ctx context.Context, r *request) error {
	select {
	case <-t.quit:
		return token.ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case t.requests <- r:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.quit:
		return token.ErrClosed
	}
}

// worker owns the connection to the TPM and everything loaded in it.
type worker struct {
	token   *Token
	options Options
	life    context.Context // ends the command in flight
	device  *device         // nil if not connected
	pinned  []byte          // Name of the storage root key when first seen
}

func (w *worker) loop() {
	defer close(w.token.done)
	defer w.leave()
	for {
		select {
		case <-w.token.quit:
			return
		case r := <-w.token.requests:
			err := r.ctx.Err()
			if err == nil {
				err = w.serve(r.run)
			}
			r.done <- err
		}
	}
}

// serve runs a request. If the connection broke or the TPM was reset since it was last
// used, it connects, loads and tries once more: no command here changes the TPM, so none is
// harmed by being given twice. A command that timed out is not given again.
func (w *worker) serve(run func(*device) error) error {
	err := w.attempt(run)
	if errors.Is(err, errStale) {
		err = w.attempt(run)
	}
	err = explain(err)
	switch {
	case err == nil:
		w.setState(token.StateReady)
	case w.device == nil && errors.Is(err, token.ErrAbsent):
		w.setState(token.StateAbsent)
	}
	return err
}

func (w *worker) attempt(run func(*device) error) error {
	if w.device == nil {
		if err := w.connect(); err != nil {
			return err
		}
	}
	err := w.device.lockout(run(w.device))
	if lost(err) {
		w.device.abandon()
		w.device = nil
	}
	return err
}

// connect opens the device and checks that it is the TPM it was before.
func (w *worker) connect() error {
	d, err := openDevice(w.life, w.options)
	if err != nil {
		return err
	}
	info, err := d.start(w.pinned)
	if err == nil && w.pinned == nil {
		err = w.pin(d.srk.Name.Buffer)
	}
	if err != nil {
		d.abandon()
		if info != nil && errors.Is(err, token.ErrReplaced) {
			info.State = token.StateReplaced
			info.Description = "TPM replaced, cleared or interposed; there is now: " + info.Description
			w.token.info.Store(info)
		}
		return err
	}
	w.token.info.Store(info)
	w.device = d
	return nil
}

// pin makes the TPM that is there the one that must be there from now on.
func (w *worker) pin(name []byte) error {
	if err := w.token.state.pin(name); err != nil {
		return fmt.Errorf("keep Name of the storage root key: %w", err)
	}
	w.pinned = name
	return nil
}

func (w *worker) setState(s token.State) {
	info := *w.token.info.Load()
	if info.State != s {
		info.State = s
		w.token.info.Store(&info)
	}
}

// leave unloads what is loaded and closes the connection.
func (w *worker) leave() {
	if w.device != nil {
		w.device.leave()
		w.device = nil
	}
}

// errStale says that the TPM lost what was loaded, or the connection broke, and that
// connecting again may help.
var errStale = errors.New("connection or loaded keys lost")

// errFull says that other users of the TPM have taken its room.
var errFull = fmt.Errorf("%w: no room in the TPM, other programs have left objects or sessions in it", token.ErrAbsent)

// lost reports whether the connection is of no more use.
func lost(err error) bool {
	var link *linkError
	return errors.As(err, &link) || errors.Is(err, errStale) || errors.Is(err, errForged)
}

// explain puts the error of the vocabulary, if there is one, before the device's own.
func explain(err error) error {
	var link *linkError
	var rc tpm2.TPMRC
	switch {
	case err == nil:
		return nil
	case errors.As(err, &link):
		return fmt.Errorf("%w: %w", token.ErrAbsent, err)
	case errors.Is(err, errForged):
		return fmt.Errorf("%w: %w", token.ErrFault, err)
	case !errors.As(err, &rc):
		return err
	}
	switch kind := vocabulary(rc); {
	case kind == nil || known(err):
		return err
	default:
		return fmt.Errorf("%w: %w", kind, err)
	}
}

// known reports whether an error has a place in the vocabulary already.
func known(err error) bool {
	return slices.ContainsFunc(token.Errors(), func(e error) bool { return errors.Is(err, e) })
}

// vocabulary returns what a response code means whatever the command was.
// TPM 2.0 Part 2, 6.6.3.
func vocabulary(rc tpm2.TPMRC) error {
	switch {
	case rc.Is(tpm2.TPMRCLockout):
		return token.ErrLockedOut
	case rc.Is(tpm2.TPMRCAuthFail), rc.Is(tpm2.TPMRCBadAuth):
		// No authorization value was offered: the owner or the storage root key has one.
		return &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "owner password", TriesLeft: token.TriesUnknown}
	case rc.Is(tpm2.TPMRCObjectMemory), rc.Is(tpm2.TPMRCSessionMemory), rc.Is(tpm2.TPMRCObjectHandles),
		rc.Is(tpm2.TPMRCSessionHandles), rc.Is(tpm2.TPMRCContextGap):
		return errFull
	case rc.IsWarning(), rc.Is(tpm2.TPMRCFailure), rc.Is(tpm2.TPMRCInitialize):
		return token.ErrAbsent // busy, out of memory, failed: it does not answer
	}
	return nil
}
