package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// The statuses of results and replies beside mesh.StatusOK.
const (
	statusMalformed   = 400
	statusAuth        = 401
	statusForbidden   = 403
	statusNotFound    = 404
	statusNoTouch     = 408
	statusState       = 409
	statusBadPoint    = 422
	statusLockedOut   = 423
	statusTooMany     = 429
	statusCancelled   = 499
	statusInternal    = 500
	statusUnsupported = 501
	statusUnavailable = 503
)

// failure is an error whose status and text are decided already.
type failure struct {
	status int
	text   string
}

func (f *failure) Error() string { return f.text }

// malformed refuses a member of a request. The text starts with its name.
func malformed(member, format string, args ...any) error {
	return &failure{statusMalformed, member + ": " + fmt.Sprintf(format, args...)}
}

// forbidden refuses by rule: "use", "policy" or "share".
func forbidden(rule, format string, args ...any) error {
	return &failure{statusForbidden, rule + ": " + fmt.Sprintf(format, args...)}
}

// badPoint refuses a point of member. The text starts with the reason, which is
// how the texts of keyshare start.
func badPoint(member string, err error) error {
	return &failure{statusBadPoint, fmt.Sprintf("%v in %s", err, member)}
}

// row says how one error is answered. A nil text answers with the error's own.
type row struct {
	err    error
	status int
	text   func(err error) string
}

func fixed(text string) func(error) string { return func(error) string { return text } }

// rows is the one table that maps errors to replies, the first match counts. What is
// not in it is an incident.
var rows = [...]row{
	{context.Canceled, statusCancelled, fixed("cancelled")},
	{context.DeadlineExceeded, statusUnavailable, fixed("token did not answer in time")},
	{keyshare.ErrLength, statusBadPoint, fixed("length")},
	{keyshare.ErrSignOctet, statusBadPoint, fixed("sign octet")},
	{keyshare.ErrNonCanonical, statusBadPoint, fixed("non-canonical")},
	{keyshare.ErrTwist, statusBadPoint, fixed("twist")},
	{keyshare.ErrLowOrder, statusBadPoint, fixed("low order")},
	{keyshare.ErrTorsion, statusBadPoint, fixed("torsion")},
	{keyshare.ErrIdentity, statusBadPoint, fixed("identity")},
	{keyring.ErrRollback, statusState, rollbackText},
	{keyring.ErrUse, statusForbidden, useText},
	{token.ErrAuthNeeded, statusAuth, authText},
	{token.ErrAuthWrong, statusAuth, authText},
	{token.ErrLockedOut, statusLockedOut, lockoutText},
	{token.ErrTouchTimeout, statusNoTouch, fixed("no touch in time")},
	{token.ErrReplaced, statusUnavailable, nil},
	{token.ErrClosed, statusUnavailable, nil},
	{token.ErrAbsent, statusUnavailable, nil},
	{token.ErrFault, statusUnavailable, fixed("token returned a wrong result")},
	{token.ErrNotFound, statusNotFound, fixed("no such key")},
	{token.ErrCorrupt, statusState, nil},
	{token.ErrPCR, statusState, pcrText},
	{token.ErrDecrypt, statusMalformed, fixed("Recipient: decryption failed")},
	{token.ErrBadPoint, statusBadPoint, nil},
	{token.ErrBadKey, statusMalformed, fixed("Key: not a valid key")},
	{token.ErrBadRequest, statusMalformed, nil},
	{token.ErrUnsupported, statusUnsupported, nil},
	{syscall.ENOSPC, statusUnavailable, fixed("no space left on the agent's disk")},
	{syscall.EDQUOT, statusUnavailable, fixed("no space left on the agent's disk")},
}

func useText(err error) string {
	var conflict *keyring.ConflictError
	if errors.As(err, &conflict) {
		return conflict.Error()
	}
	return "use: the key's does not permit this"
}

func authText(err error) string {
	var auth *token.AuthError
	switch {
	case errors.As(err, &auth):
		return auth.Error()
	case errors.Is(err, token.ErrAuthWrong):
		return token.ErrAuthWrong.Error()
	}
	return token.ErrAuthNeeded.Error()
}

func rollbackText(err error) string {
	var rollback *keyring.RollbackError
	if errors.As(err, &rollback) {
		return rollback.Error()
	}
	return keyring.ErrRollback.Error()
}

func pcrText(err error) string {
	var pcr *token.PCRError
	if errors.As(err, &pcr) {
		return pcr.Error()
	}
	return token.ErrPCR.Error()
}

func lockoutText(err error) string {
	var lockout *token.LockoutError
	if errors.As(err, &lockout) {
		return fmt.Sprintf("%d s until the token takes a PIN again", int((lockout.RetryAfter+time.Second-1)/time.Second))
	}
	return token.ErrLockedOut.Error()
}

// answerTo returns the failure that answers err. What the table does not know is logged under
// a random incident number, which is all that the client learns.
func (a *Agent) answerTo(err error) *failure {
	var decided *failure
	var record *devicestate.RecordError
	switch {
	case errors.As(err, &decided):
		return decided
	case errors.As(err, &record):
		a.log.Error("a record cannot be read", "record", record.Name, "err", record.Err)
		return &failure{statusUnavailable, "device: " + record.Error() + "; " + recordMend}
	}
	for _, r := range rows {
		switch {
		case !errors.Is(err, r.err):
		case r.text == nil:
			return &failure{r.status, err.Error()}
		default:
			return &failure{r.status, r.text(err)}
		}
	}
	incident := incidentID()
	a.log.Error("request failed", "incident", incident, "err", err)
	return &failure{statusInternal, "incident " + incident}
}

// recordMend is what to do about a record of the device or of an account that cannot be read.
const recordMend = "put the file back from a backup of the state folder"

func incidentID() string {
	var id [8]byte
	rand.Read(id[:]) // never fails: crypto/rand
	return hex.EncodeToString(id[:])
}
