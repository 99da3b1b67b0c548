package token

import (
	"errors"
	"fmt"
	"time"
)

// The errors of the vocabulary. A backend returns them wrapped with what it knows
// ("%w: %w" with the device's own code); the agent maps each to one reply.
var (
	// ErrUnsupported is errors.ErrUnsupported: this token or key cannot do that.
	ErrUnsupported = errors.ErrUnsupported
	// ErrAuthNeeded says that a PIN or passphrase is needed and none was offered. Nothing
	// has reached the device or the user. Usually inside an *AuthError.
	ErrAuthNeeded = errors.New("pin needed")
	// ErrAuthWrong says that the offered PIN was wrong. Usually inside an *AuthError.
	ErrAuthWrong = errors.New("pin wrong")
	// ErrLockedOut says that the token refuses PINs: dictionary-attack lockout, PIN blocked.
	// Inside a *LockoutError if the seconds are known.
	ErrLockedOut = errors.New("token locked out")
	// ErrTouchTimeout says that nobody touched the token in time.
	ErrTouchTimeout = errors.New("no touch in time")
	// ErrAbsent says that the token is not there or does not answer.
	ErrAbsent = errors.New("token absent")
	// ErrReplaced says that another device, or a cleared one, is in the token's place.
	ErrReplaced = errors.New("token replaced")
	// ErrClosed says that the token was closed by this program.
	ErrClosed = errors.New("token closed")
	// ErrNotFound says that there is no such key.
	ErrNotFound = errors.New("no such key")
	// ErrCorrupt says that a stored handle does not open, or is not what its record says.
	ErrCorrupt = errors.New("stored key is damaged or was changed")
	// ErrBadKey says that a private or public key is not a valid one.
	ErrBadKey = errors.New("bad key")
	// ErrBadPoint says that a point was refused.
	ErrBadPoint = errors.New("bad point")
	// ErrBadRequest says that a parameter is out of range.
	ErrBadRequest = errors.New("bad request")
	// ErrDecrypt says that a ciphertext does not open, and never why.
	ErrDecrypt = errors.New("decryption failed")
	// ErrPCR says that the platform's measured state is not the one sealed to. Inside a *PCRError.
	ErrPCR = errors.New("platform state has changed")
	// ErrFault says that the device returned a result that does not verify.
	ErrFault = errors.New("token returned a wrong result")
)

// Errors returns every error of the vocabulary, so that a table of replies can be
// tested for completeness.
func Errors() []error {
	return []error{
		ErrUnsupported, ErrAuthNeeded, ErrAuthWrong, ErrLockedOut, ErrTouchTimeout, ErrAbsent,
		ErrReplaced, ErrClosed, ErrNotFound, ErrCorrupt, ErrBadKey, ErrBadPoint, ErrBadRequest,
		ErrDecrypt, ErrPCR, ErrFault,
	}
}

// TriesUnknown is AuthError.TriesLeft where the device does not tell.
const TriesUnknown = -1

// AuthError is ErrAuthNeeded or ErrAuthWrong with what is known about the PIN.
type AuthError struct {
	// Reason is ErrAuthNeeded or ErrAuthWrong.
	Reason error
	// Kind is what is asked for: "PIN", "passphrase".
	Kind string
	// TriesLeft before lockout, or TriesUnknown.
	TriesLeft int
	// Detail is what else is known; nil for nothing.
	Detail error
}

// ErrRefused is the AuthError.Detail of a PIN that is not presented because the device refused it before.
var ErrRefused = errors.New("refused before, and not presented again")

// ErrEachTime is the AuthError.Detail of a PIN that comes with each request to use the key: that the token is
// unlocked is not enough.
var ErrEachTime = errors.New("this key asks for it each time")

// Error says what is needed, how many tries are left, if known, and the detail.
func (e *AuthError) Error() string {
	text := fmt.Sprintf("%v (%s)", e.Reason, e.Kind)
	if e.TriesLeft >= 0 {
		text = fmt.Sprintf("%v, %d left", e.Reason, e.TriesLeft)
	}
	if e.Detail != nil {
		text += ": " + e.Detail.Error()
	}
	return text
}

// Unwrap returns Reason and Detail.
func (e *AuthError) Unwrap() []error {
	if e.Detail == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Detail}
}

// LockoutError is ErrLockedOut with the time until PINs are taken again.
type LockoutError struct {
	RetryAfter time.Duration
}

// Error says for how many seconds the token refuses PINs.
func (e *LockoutError) Error() string {
	return fmt.Sprintf("%v for %d s", ErrLockedOut, int(e.RetryAfter.Round(time.Second).Seconds()))
}

// Unwrap returns ErrLockedOut.
func (e *LockoutError) Unwrap() error { return ErrLockedOut }

// PCRError is ErrPCR with the selection that did not match.
type PCRError struct {
	PCRs string // as in SealRequest.PCRs
}

// Error names the PCRs.
func (e *PCRError) Error() string { return fmt.Sprintf("%v: PCRs %s", ErrPCR, e.PCRs) }

// Unwrap returns ErrPCR.
func (e *PCRError) Unwrap() error { return ErrPCR }
