package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// do runs f with the TPM, on the caller's goroutine: to hand work to another one wakes a processor that finds nothing
// to do, which costs more than the hand-off itself. f may be run twice.
//
// When ctx ends do returns at once while it waits for its turn. A command in flight, which a TPM cannot cancel, has
// abandonAfter to end; after that the connection is given up.
func do[T any](ctx context.Context, t *Token, what string, f func(*device) (T, error)) (T, error) {
	var result, none T
	err := t.enter(ctx)
	if err == nil {
		defer func() { <-t.turn }()
		err = t.connection.use(ctx, func(d *device) (err error) {
			result, err = f(d)
			return err
		})
	}
	if err != nil {
		return none, fmt.Errorf("tpm: %s: %w", what, err)
	}
	return result, nil
}

// enter waits for the turn.
func (t *Token) enter(ctx context.Context) error {
	select {
	case <-t.quit:
		return token.ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.quit:
		return token.ErrClosed
	}
}

// abandonAfter is how long a command in flight may go on after the context of its caller has ended.
const abandonAfter = 2 * time.Second

// connection is the connection to the TPM and everything loaded in it. Only who has the turn uses it.
type connection struct {
	token   *Token
	options Options
	life    context.Context // ends the command in flight
	device  *device         // nil if not connected
	pinned  []byte          // Name of the storage root key when first seen
}

// use runs an operation for a caller whose context is ctx.
func (c *connection) use(ctx context.Context, run func(*device) error) error {
	life, end := context.WithCancel(c.life)
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(abandonAfter, end) })()
	err := c.serve(life, run)
	if err != nil && life.Err() != nil && ctx.Err() != nil && !errors.Is(err, token.ErrAuthWrong) {
		return ctx.Err()
	}
	return err // what the TPM said counts, even if nobody waits for it any more: it may be about a PIN
}

// serve runs a request. If the connection broke or the TPM was reset since it was last
// used, it connects, loads and tries once more: no command here changes the TPM, so none is
// harmed by being given twice. A command that timed out is not given again, nor is a PIN that was refused. The end of life ends it.
func (c *connection) serve(life context.Context, run func(*device) error) error {
	err := c.attempt(life, run)
	if errors.Is(err, errStale) && !errors.Is(err, token.ErrAuthWrong) {
		err = c.attempt(life, run)
	}
	err = explain(err)
	switch {
	case err == nil:
		c.setState(token.StateReady)
	case life.Err() != nil: // it had no time to answer
	case c.device == nil && errors.Is(err, token.ErrAbsent):
		c.setState(token.StateAbsent)
	}
	return err
}

func (c *connection) attempt(life context.Context, run func(*device) error) error {
	if c.device == nil {
		if err := c.connect(life); err != nil {
			return err
		}
	} else {
		c.device.link.watch(life)
	}
	err := c.device.lockout(run(c.device))
	if interrupted := !c.device.link.stop(); interrupted || lost(err) {
		c.device.abandon()
		c.device = nil
	}
	return err
}

// connect opens the device and checks that it is the TPM it was before.
func (c *connection) connect(life context.Context) error {
	d, err := openDevice(life, c.options)
	if err != nil {
		return err
	}
	info, err := d.start(c.pinned)
	if err == nil && c.pinned == nil {
		err = c.pin(d.srk.Name.Buffer)
	}
	if err != nil {
		d.abandon()
		if info != nil && errors.Is(err, token.ErrReplaced) {
			info.State = token.StateReplaced
			info.Description = "TPM replaced, cleared or interposed; there is now: " + info.Description
			c.token.info.Store(info)
		}
		return err
	}
	c.token.info.Store(info)
	c.device = d
	return nil
}

// pin makes the TPM that is there the one that must be there from now on.
func (c *connection) pin(name []byte) error {
	if err := c.token.state.pin(name); err != nil {
		return fmt.Errorf("keep Name of the storage root key: %w", err)
	}
	c.pinned = name
	return nil
}

func (c *connection) setState(s token.State) {
	info := *c.token.info.Load()
	if info.State != s {
		info.State = s
		c.token.info.Store(&info)
	}
}

// leave unloads what is loaded and closes the connection.
func (c *connection) leave() {
	if c.device != nil {
		c.device.link.watch(c.life)
		c.device.leave()
		c.device = nil
	}
}

// errStale says that the TPM lost what was loaded, or the connection broke, and that
// connecting again may help.
var errStale = errors.New("connection or loaded keys lost")

// errFull says that other users of the TPM have taken its room.
var errFull = fmt.Errorf("%w: no room in the TPM, other programs have left objects or sessions in it", token.ErrAbsent)

// errNVFull says that the TPM's own memory is full.
var errNVFull = fmt.Errorf("%w: no room in the NV memory of the TPM, other programs have their indexes in it", token.ErrAbsent)

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
	case rc.Is(tpm2.TPMRCNVSpace):
		return errNVFull
	case rc.IsWarning(), rc.Is(tpm2.TPMRCFailure), rc.Is(tpm2.TPMRCInitialize):
		return token.ErrAbsent // busy, out of memory, failed: it does not answer
	}
	return nil
}
