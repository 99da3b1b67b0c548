package hsm

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/secret"
	"github.com/mesh-agent/mesh-agent/token"
)

// What a token says about its PIN tries (CK_TOKEN_INFO, flags CKF_USER_PIN_COUNT_LOW and
// CKF_USER_PIN_FINAL_TRY). Errors about the PIN wrap these where the token says so; a locked PIN
// is token.ErrLockedOut.
var (
	ErrPINCountLow = errors.New("a wrong PIN was entered since the last right one")
	ErrPINFinalTry = errors.New("one PIN try is left")
)

// rejected remembers the PINs that a token refused, as keyed hashes, so that each costs one try
// however often it is offered.
type rejected struct {
	key     []byte
	sums    [][]byte
	flagged bool // the token showed by its flags that a try was lost
}

// maxRejected bounds the memory of refused PINs; a token takes fewer before it locks, if it ever does.
const maxRejected = 32

func (r *rejected) is(pin []byte) bool {
	sum := r.hash(pin)
	return slices.ContainsFunc(r.sums, func(s []byte) bool { return hmac.Equal(s, sum) })
}

func (r *rejected) remember(pin []byte, flags uint64) {
	if r.key == nil {
		r.key = make([]byte, 32)
		rand.Read(r.key)
	}
	r.flagged = flags&pinFlags != 0
	if r.is(pin) {
		return
	}
	if len(r.sums) == maxRejected {
		r.sums = r.sums[1:]
	}
	r.sums = append(r.sums, r.hash(pin))
}

// forget is for when a PIN was right, or the token says that it was set anew.
func (r *rejected) forget() { r.sums = nil }

func (r *rejected) hash(pin []byte) []byte {
	h := hmac.New(sha256.New, r.key)
	h.Write(pin)
	return h.Sum(nil)
}

const pinFlags = ckfPINCountLow | ckfPINFinalTry | ckfPINLocked

// Unlock logs in. A PIN that the token has refused is refused again here, and on a
// token that is unlocked the PIN is compared with the one that unlocked it, a few times: neither costs a
// try. Errors: token.ErrAuthWrong, with ErrPINCountLow or ErrPINFinalTry where the token says so;
// token.ErrLockedOut; token.ErrAbsent, token.ErrReplaced.
func (t *Token) Unlock(ctx context.Context, pin []byte) error {
	err := t.again(ctx, t.bind, func(b *binding) error {
		_, err := t.still(ctx, b)
		return err
	})
	if err == nil {
		err = t.login(ctx, pin) // once
	}
	if err != nil {
		return fmt.Errorf("pkcs11: unlock: %w", err)
	}
	return nil
}

// login logs in and keeps the PIN.
func (t *Token) login(ctx context.Context, pin []byte) error {
	if err := t.take(ctx); err != nil {
		return err
	}
	defer func() { <-t.lock }()
	b := t.bound.Load()
	if b == nil {
		return token.ErrAbsent
	}
	if !b.needsLogin() {
		return t.compareLocked(b, pin)
	}
	if err := t.presentLocked(ctx, b, pin); err != nil {
		if lost(err) {
			t.lose(b)
		}
		return err
	}
	t.pin.Wipe()
	t.pin, t.mismatches = secret.Bytes(append([]byte(nil), pin...)), 0
	in := *b
	in.loggedIn = true
	ctx, end := t.outlasting(ctx)
	defer end()
	t.probeLocked(ctx, &in)
	t.publishLocked(&in)
	return nil
}

// maxMismatches is how many wrong PINs are compared with the one that unlocked a token. Nobody counts them but this package, so
// that a program could find the PIN by trying all.
const maxMismatches = 3

var errMismatches = errors.New("too many wrong ones since the token was unlocked; lock it first")

// compareLocked answers for a token that is unlocked, or has no PIN.
func (t *Token) compareLocked(b *binding, pin []byte) error {
	wrong := &token.AuthError{Reason: token.ErrAuthWrong, Kind: "PIN", TriesLeft: token.TriesUnknown}
	switch {
	case !b.loggedIn:
		return nil
	case t.mismatches == maxMismatches:
		wrong.Detail = errMismatches
		return wrong
	case subtle.ConstantTimeCompare(pin, t.pin) == 1:
		return nil
	}
	t.mismatches++
	return wrong
}

// presentLocked presents a PIN to the token, once. What comes of it is waited for and noted even if the
// caller goes away.
func (t *Token) presentLocked(ctx context.Context, b *binding, pin []byte) error {
	if err := t.checkTriesLocked(ctx, b, pin); err != nil {
		return err
	}
	ctx, end := t.outlasting(ctx)
	defer end()
	_, err := t.module.call(ctx, b.child, &call{op: opLogin, slot: b.info.slot, pin: pin})
	return t.loginResultLocked(ctx, b, pin, err)
}

// outlasting returns the context of what is waited for even if the caller goes away. It ends a while after Close began.
func (t *Token) outlasting(ctx context.Context) (outlasting context.Context, end func()) {
	outlasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(t.life, func() { time.AfterFunc(retireGrace, cancel) })
	return outlasting, func() {
		stop()
		cancel()
	}
}

// checkTriesLocked refuses a PIN that the token would refuse.
func (t *Token) checkTriesLocked(ctx context.Context, b *binding, pin []byte) error {
	if len(pin) == 0 {
		return &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: token.TriesUnknown}
	}
	now, err := t.still(ctx, b)
	if err != nil {
		return err
	}
	if now.flags&ckfPINLocked != 0 {
		return pinError(token.ErrAuthWrong, now.flags)
	}
	if t.rejected.flagged && now.flags&pinFlags == 0 {
		t.rejected.forget() // the PIN was right elsewhere, or was set anew
	}
	if t.rejected.is(pin) {
		return pinErrorOf(&token.AuthError{Reason: token.ErrAuthWrong, Detail: token.ErrRefused}, now.flags)
	}
	return nil
}

// loginResultLocked interprets what C_Login returned.
func (t *Token) loginResultLocked(ctx context.Context, b *binding, pin []byte, err error) error {
	switch codeOf(err) {
	case ckrPINIncorrect, ckrPINInvalid, ckrPINLenRange, ckrPINLocked:
		flags := uint64(0)
		if now, err := t.tokenInfo(ctx, b.child, b.info.slot); err == nil {
			flags = now.flags
		}
		if codeOf(err) == ckrPINLocked {
			flags |= ckfPINLocked
		}
		t.rejected.remember(pin, flags)
		if flags&ckfPINLocked != 0 { // this was the last try: locked out goes before wrong
			return fmt.Errorf("%w (%v)", pinError(token.ErrAuthWrong, flags), err)
		}
		return fmt.Errorf("%w: %w", pinError(token.ErrAuthWrong, flags), err)
	}
	switch {
	case err == nil:
		t.rejected.forget()
	case deviceLost(err):
		return fmt.Errorf("%w: %w", err, errPresented)
	}
	return err
}

// errPresented says that a device was lost while it had a PIN.
var errPresented = errors.New("the PIN may have been counted, and is not presented again")

// pinError says what a token's flags mean.
func pinError(reason error, flags uint64) error {
	return pinErrorOf(&token.AuthError{Reason: reason}, flags)
}

// pinErrorOf completes an error with what a token's flags mean.
func pinErrorOf(e *token.AuthError, flags uint64) error {
	e.Kind, e.TriesLeft = "PIN", token.TriesUnknown
	add := func(detail error) {
		if e.Detail != nil {
			detail = fmt.Errorf("%w; %w", e.Detail, detail)
		}
		e.Detail = detail
	}
	switch {
	case flags&ckfPINLocked != 0:
		return fmt.Errorf("%w: the PIN is blocked; its administrator (SO) can set it anew", token.ErrLockedOut)
	case flags&ckfPINFinalTry != 0:
		e.TriesLeft = 1
		add(ErrPINFinalTry)
	case flags&ckfPINCountLow != 0:
		add(ErrPINCountLow)
	}
	return e
}

// pinNeeded is the answer to an operation without a PIN, from what is known already.
func (t *Token) pinNeeded(b *binding) error { return pinError(token.ErrAuthNeeded, b.info.flags) }

// loginAgainLocked logs in after the module's process was replaced. It does not use up the last
// try: then the user is asked. A PIN that is wrong now is forgotten.
func (t *Token) loginAgainLocked(ctx context.Context, b *binding) *binding {
	if !b.needsLogin() || t.pin == nil || b.info.flags&(ckfPINFinalTry|ckfPINLocked) != 0 {
		return b
	}
	err := t.presentLocked(ctx, b, t.pin)
	if errors.Is(err, token.ErrAuthWrong) || errors.Is(err, token.ErrLockedOut) {
		t.pin.Wipe()
		t.pin = nil
	}
	if err != nil {
		return b
	}
	in := *b
	in.loggedIn = true
	return &in
}
