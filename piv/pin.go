package piv

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/internal/secret"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// pin is what is known of the card's PIN. Only the worker uses it.
type pin struct {
	cached   secret.Bytes // verified; nil if there is none
	verified bool         // the card took a PIN from here, and may know it still
	owed     bool         // the card is to forget it before anything else
	salt     []byte
	refused  [][]byte // salted hashes of the PINs that the card refused since it took one
	left     int      // how many tries there were after the last of these
}

func newPIN() pin {
	salt := make([]byte, 32)
	rand.Read(salt)
	return pin{salt: salt}
}

func (p *pin) forget() {
	p.cached.Wipe()
	p.cached, p.verified = nil, false
}

func (p *pin) keep(b []byte) {
	p.forget()
	p.cached, p.verified = append(secret.Bytes{}, b...), true
}

func (p *pin) hash(b []byte) []byte {
	h := hmac.New(sha256.New, p.salt)
	h.Write(b)
	return h.Sum(nil)
}

func (p *pin) isRefused(b []byte) bool {
	sum := p.hash(b)
	return slices.ContainsFunc(p.refused, func(r []byte) bool { return hmac.Equal(r, sum) })
}

func needed(tries int) error {
	return &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: tries}
}

// present gives a PIN to the card, once. It gives no PIN that the card refused before, unless the tries are more
// than there were then: the card was given its PIN by another program, and it may be this one again. It
// does not use up the last try unless told to.
func (s *session) present(ctx context.Context, pin []byte, last tryPolicy) error {
	p := &s.worker.pin
	verified, tries, err := s.PINStatus(ctx)
	if err == nil && (verified || tries > p.left) {
		p.refused = nil
	}
	switch {
	case err == nil && p.isRefused(pin):
		return &token.AuthError{Reason: token.ErrAuthWrong, Kind: "PIN", TriesLeft: tries, Detail: token.ErrRefused}
	case err != nil:
		return err
	case !verified && tries == 0:
		return fmt.Errorf("%w: the PIN is blocked", token.ErrLockedOut)
	case !verified && tries == 1 && last != spendLast:
		return fmt.Errorf("%w: %w", needed(1), ErrLastTry)
	}
	err = s.verify(ctx, pin)
	switch {
	case err == nil:
		p.refused, p.verified = nil, true
	case errors.Is(err, token.ErrAuthWrong), errors.Is(err, token.ErrLockedOut):
		p.refused, p.left = append(p.refused, p.hash(pin)), triesLeft(err)
		if hmac.Equal(p.cached, pin) {
			p.forget()
		}
	case stale(err):
		s.request.changed = true // whether the card took it is not known: not again
	}
	return err
}

// verify waits for the card even if the caller goes away, to know what came of the PIN.
func (s *session) verify(ctx context.Context, pin []byte) error {
	ctx, cancel := outlive(ctx)
	defer cancel()
	return s.Verify(ctx, pin)
}

// outlive returns a context for a command that is not given up when the caller goes away.
func outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), closeGrace)
}

// triesLeft returns the tries that a refusal leaves.
func triesLeft(err error) int {
	var auth *token.AuthError
	if errors.As(err, &auth) {
		return auth.TriesLeft
	}
	return 0
}

// tryPolicy says whether the card's last try may be used up.
type tryPolicy int

const (
	keepLast tryPolicy = iota
	spendLast
)

// login makes the card know the PIN: that of auth, or the one kept from Unlock.
func (s *session) login(ctx context.Context, auth token.Auth) error {
	verified, tries, err := s.PINStatus(ctx)
	if err != nil || verified {
		return err
	}
	return s.loginTries(ctx, auth, tries)
}

// loginTries is login for a card that wants its PIN and has so many tries left.
func (s *session) loginTries(ctx context.Context, auth token.Auth, tries int) error {
	switch cached := s.worker.pin.cached; {
	case tries == 0:
		return fmt.Errorf("%w: the PIN is blocked", token.ErrLockedOut)
	case len(auth.PIN) > 0:
		return s.present(ctx, auth.PIN, keepLast)
	case cached == nil:
		return needed(tries)
	default:
		err := s.present(ctx, cached, keepLast)
		if errors.Is(err, token.ErrAuthWrong) { // it was changed meanwhile
			s.worker.pin.forget()
			return needed(max(tries-1, 0))
		}
		return err
	}
}

// Unlock presents the PIN once and keeps it until the card is removed. With one try left it
// returns ErrLastTry instead. Errors as token.Unlocker; token.ErrAbsent, token.ErrReplaced.
func (t *Token) Unlock(ctx context.Context, pin []byte) error {
	return t.unlock(ctx, pin, keepLast)
}

// UnlockLastTry is Unlock that uses up the last try if it must: if pin is wrong, only the PUK
// helps.
func (t *Token) UnlockLastTry(ctx context.Context, pin []byte) error {
	return t.unlock(ctx, pin, spendLast)
}

func (t *Token) unlock(ctx context.Context, pin []byte, last tryPolicy) error {
	_, err := do(ctx, t, "unlock", func(ctx context.Context, s *session) (struct{}, error) {
		err := s.present(ctx, pin, last)
		if err == nil {
			s.worker.pin.keep(pin)
		}
		return struct{}{}, err
	})
	return err
}

// Lock forgets the PIN, here and on the card. A card that is not there has forgotten it. One that another program holds, or
// that does not answer, forgets it before it does anything else for this token; until then that is not so, and the error
// says why: ErrBusy or ErrSilent, for example, inside token.ErrAbsent.
func (t *Token) Lock(ctx context.Context) error {
	_, err := perform[struct{}](t, "lock", &request{ctx: ctx, lock: true}, nil)
	for _, gone := range []error{
		token.ErrReplaced, ErrNoReader, ErrNoCard, ErrRemoved, ErrReset, ErrPower, ErrNoService, ErrServiceLost,
	} {
		if errors.Is(err, gone) {
			return nil
		}
	}
	if errors.Is(err, token.ErrAbsent) {
		return fmt.Errorf("%w; the agent has forgotten the PIN, the card has not yet", err)
	}
	return err
}

// SetPIN changes the PIN. A PIV card always has one: without old the error is token.ErrAuthNeeded.
// Errors as token.PINSetter; with one try left, ErrLastTry.
func (t *Token) SetPIN(ctx context.Context, old, pin []byte) error {
	_, err := do(ctx, t, "set PIN", func(ctx context.Context, s *session) (struct{}, error) {
		if len(old) == 0 {
			_, tries, err := s.PINStatus(ctx)
			return struct{}{}, errors.Join(needed(tries), err)
		}
		if err := s.present(ctx, old, keepLast); err != nil { // counts tries as Unlock does
			return struct{}{}, err
		}
		return struct{}{}, s.setPIN(ctx, pin, func(ctx context.Context) error { return s.Change(ctx, applet.PIN, old, pin) })
	})
	return err
}

// setPIN has the card take a new PIN, and keeps that. The card has it even if the caller goes away meanwhile.
func (s *session) setPIN(ctx context.Context, pin []byte, set func(context.Context) error) error {
	s.request.changed = true
	lasting, cancel := outlive(ctx)
	defer cancel()
	if err := set(lasting); err != nil {
		return err
	}
	s.worker.pin.refused = nil
	s.worker.pin.keep(pin)
	return s.verify(ctx, pin)
}

// Unblock sets a new PIN by the PUK, once. Errors: *token.AuthError about the PUK with its tries
// left; token.ErrLockedOut; ErrLastTry; token.ErrBadRequest; token.ErrAbsent, token.ErrReplaced.
func (t *Token) Unblock(ctx context.Context, puk, pin []byte) error {
	_, err := do(ctx, t, "unblock PIN", func(ctx context.Context, s *session) (struct{}, error) {
		if err := s.sparePUK(ctx); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, s.setPIN(ctx, pin, func(ctx context.Context) error { return s.Applet.Unblock(ctx, puk, pin) })
	})
	return err
}

// SetPUK changes the PUK, once. Errors as Unblock.
func (t *Token) SetPUK(ctx context.Context, old, puk []byte) error {
	_, err := do(ctx, t, "set PUK", func(ctx context.Context, s *session) (struct{}, error) {
		if err := s.sparePUK(ctx); err != nil {
			return struct{}{}, err
		}
		s.request.changed = true
		return struct{}{}, s.Change(ctx, applet.PUK, old, puk)
	})
	return err
}

// sparePUK refuses to use up the PUK's last try, on cards that tell.
func (s *session) sparePUK(ctx context.Context) error {
	if !applet.HasMetadata(s.worker.version) {
		return nil
	}
	c, err := s.Credential(ctx, applet.PUK)
	switch {
	case err != nil:
		return err
	case c.Tries == 0:
		return fmt.Errorf("%w: the PUK is blocked", token.ErrLockedOut)
	case c.Tries == 1:
		return fmt.Errorf("%w: %w", &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PUK", TriesLeft: 1}, ErrLastTry)
	}
	return nil
}
