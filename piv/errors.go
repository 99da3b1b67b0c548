package piv

import (
	"context"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/token"
)

// The reasons for which a card is not there. Each is inside token.ErrAbsent, but ErrOtherCard
// inside token.ErrReplaced; the next call after the reason has gone works.
var (
	// ErrNoService says that pcscd does not run.
	ErrNoService = errors.New("pcscd does not run")
	// ErrForbidden says that pcscd does not let this user use its cards, or is just ending.
	ErrForbidden = errors.New("pcscd does not let this user use cards")
	// ErrServiceLost says that pcscd ended, or restarted, in the middle of a call.
	ErrServiceLost = errors.New("pcscd has gone")
	// ErrServiceSilent says that pcscd did not answer in time.
	ErrServiceSilent = errors.New("pcscd does not answer")
	// ErrNoReader says that there is no card reader, or that ours was unplugged.
	ErrNoReader = errors.New("no card reader")
	// ErrNoCard says that no reader has a card in it.
	ErrNoCard = errors.New("no card")
	// ErrRemoved says that the card was taken away in the middle of a call.
	ErrRemoved = errors.New("card removed")
	// ErrOtherCard says that there are cards, and none has our serial number.
	ErrOtherCard = errors.New("another card")
	// ErrBusy says that another program has the card for itself, or is in a transaction that does not end.
	ErrBusy = errors.New("another program holds the card")
	// ErrReset says that another program reset the card in the middle of a call.
	ErrReset = errors.New("card reset")
	// ErrPower says that the card lost its power, or does not come up.
	ErrPower = errors.New("card without power")
	// ErrSilent says that the card did not answer in time.
	ErrSilent = errors.New("card does not answer")
	// ErrBadCard says that the card answers what no PIV card may.
	ErrBadCard = errors.New("card breaks the protocol")
)

// ErrLastTry says that the PIN has one try left, which only UnlockLastTry uses up. It is
// inside a *token.AuthError.
var ErrLastTry = errors.New("one try left, which is not used up without being told to")

// ErrOccupied says that a slot holds a key or certificate already.
var ErrOccupied = errors.New("slot is occupied")

// ErrFull says that no slot is free.
var ErrFull = errors.New("all slots are occupied")

// reasons maps what pcscd says to a reason.
func reasons() map[pcsc.Error]error {
	return map[pcsc.Error]error{
		pcsc.NoService:         ErrNoService,
		pcsc.ServiceStopped:    ErrServiceLost,
		pcsc.NoReaders:         ErrNoReader,
		pcsc.UnknownReader:     ErrNoReader,
		pcsc.ReaderUnavailable: ErrNoReader,
		pcsc.InvalidHandle:     ErrNoReader,
		pcsc.InvalidValue:      ErrNoReader,
		pcsc.NoSmartcard:       ErrNoCard,
		pcsc.CardRemoved:       ErrRemoved,
		pcsc.NotTransacted:     ErrRemoved,
		pcsc.CommDataLost:      ErrRemoved,
		pcsc.CommunicationFail: ErrRemoved,
		pcsc.SharingViolation:  ErrBusy,
		pcsc.CardReset:         ErrReset,
		pcsc.SecurityViolation: ErrForbidden,
		pcsc.Unpowered:         ErrPower,
		pcsc.Unresponsive:      ErrPower,
		pcsc.Timeout:           ErrSilent,
	}
}

// explain puts the error of the vocabulary and the reason, if there are any, before pcscd's
// or the card's own.
func explain(err error) error {
	var code pcsc.Error
	var status apdu.Status
	switch {
	case err == nil, errors.Is(err, token.ErrAbsent), errors.Is(err, token.ErrReplaced),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &code):
		if reason := reasons()[code]; reason != nil {
			return fmt.Errorf("%w: %w: %w", token.ErrAbsent, reason, err)
		}
		return fmt.Errorf("%w: %w", token.ErrAbsent, err)
	case errors.Is(err, pcsc.ErrRefused):
		return fmt.Errorf("%w: %w: %w", token.ErrAbsent, ErrForbidden, err)
	case errors.Is(err, pcsc.ErrBroken):
		return fmt.Errorf("%w: %w: %w", token.ErrAbsent, ErrServiceLost, err)
	case errors.Is(err, pcsc.ErrProtocol):
		return fmt.Errorf("%w: %w", token.ErrAbsent, err)
	case errors.Is(err, apdu.ErrMalformed):
		return fmt.Errorf("%w: %w: %w", token.ErrFault, ErrBadCard, err)
	case errors.Is(err, applet.ErrNoApplet):
		return fmt.Errorf("%w: %w: %w", token.ErrAbsent, ErrBadCard, err)
	case errors.As(err, &status):
		return explainStatus(status, err)
	}
	return err
}

func explainStatus(status apdu.Status, err error) error {
	for _, known := range []error{
		token.ErrAuthNeeded, token.ErrAuthWrong, token.ErrLockedOut, token.ErrTouchTimeout,
		token.ErrNotFound, token.ErrUnsupported, token.ErrBadRequest, token.ErrDecrypt, token.ErrFault,
	} {
		if errors.Is(err, known) {
			return err
		}
	}
	switch status {
	case apdu.FunctionMissing, apdu.InstructionMissing, apdu.ClassMissing:
		return fmt.Errorf("%w: %w", token.ErrUnsupported, err)
	}
	return fmt.Errorf("%w: %w", token.ErrFault, err)
}

// stale reports whether an error says that a connection to a card is of no more use and that
// connecting again may help.
func stale(err error) bool {
	var code pcsc.Error
	if !errors.As(err, &code) {
		return errors.Is(err, pcsc.ErrBroken)
	}
	switch code {
	case pcsc.NoService, pcsc.SharingViolation, pcsc.NoSmartcard, pcsc.UnknownReader, pcsc.Timeout, pcsc.SecurityViolation:
		return false
	}
	return true
}
