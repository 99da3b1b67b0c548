// Package applet gives the commands of the PIV card application (NIST SP 800-73-4, Part 2)
// and of Yubico's extensions to it, one function each, and decodes their answers strictly.
//
// It runs inside a transaction of its caller, keeps no state and retries nothing. It does not
// decide when a PIN is presented, choose slots, pad for RSA, or check what a card computes.
package applet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
)

// Applet is the PIV application of a card.
type Applet struct {
	card apdu.Transmitter
}

// New returns the application of a card. Select it first.
func New(card apdu.Transmitter) Applet { return Applet{card} }

// The instructions. From insMoveKey on they are Yubico's.
const (
	insVerify          = 0x20
	insChangeReference = 0x24
	insResetRetry      = 0x2C
	insGenerate        = 0x47
	insAuthenticate    = 0x87
	insSelect          = 0xA4
	insGetData         = 0xCB
	insPutData         = 0xDB
	insMoveKey         = 0xF6
	insMetadata        = 0xF7
	insSerial          = 0xF8
	insAttest          = 0xF9
	insSetRetries      = 0xFA
	insReset           = 0xFB
	insVersion         = 0xFD
	insImport          = 0xFE
	insSetManagement   = 0xFF
)

// ErrNoApplet says that the card has no PIV application.
var ErrNoApplet = errors.New("card has no PIV application")

func pivAID() []byte { return []byte{0xA0, 0x00, 0x00, 0x03, 0x08} }
func otpAID() []byte { return []byte{0xA0, 0x00, 0x00, 0x05, 0x27, 0x20, 0x01, 0x01} }

func (a Applet) send(ctx context.Context, ins, p1, p2 byte, data []byte) ([]byte, error) {
	return apdu.Send(ctx, a.card, apdu.Command{INS: ins, P1: p1, P2: p2, Data: data})
}

// Select selects the application (Part 2, 3.1.1). Selecting it again keeps its security status;
// another application selected before means that it is lost. Errors: ErrNoApplet.
func (a Applet) Select(ctx context.Context) error {
	_, err := a.send(ctx, insSelect, 4, 0, pivAID())
	return selected(err)
}

// Via returns the application where transmit sends the first command. It is for one use.
func (a Applet) Via(transmit func(context.Context, []byte) ([]byte, error)) Applet {
	return Applet{&first{transmit, a.card}}
}

func selected(err error) error {
	var status apdu.Status
	if errors.As(err, &status) {
		return fmt.Errorf("%w: select: %w", ErrNoApplet, err)
	}
	return err
}

// first is a card whose first command goes another way.
type first struct {
	transmit func(context.Context, []byte) ([]byte, error) // nil afterwards
	card     apdu.Transmitter
}

// Transmit sends a command.
func (f *first) Transmit(ctx context.Context, command []byte) ([]byte, error) {
	transmit := f.transmit
	if transmit == nil {
		return f.card.Transmit(ctx, command)
	}
	f.transmit = nil
	return transmit(ctx, command)
}

// Version is a firmware version.
type Version struct{ Major, Minor, Patch byte }

// AtLeast reports whether v is major.minor or later.
func (v Version) AtLeast(major, minor byte) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// String returns "5.7.1".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Version returns the firmware version.
func (a Applet) Version(ctx context.Context) (Version, error) {
	b, err := a.send(ctx, insVersion, 0, 0, nil)
	if err != nil {
		return Version{}, fmt.Errorf("read version: %w", err)
	}
	if len(b) != 3 {
		return Version{}, fmt.Errorf("read version: %w: %d octets", apdu.ErrMalformed, len(b))
	}
	return Version{b[0], b[1], b[2]}, nil
}

// Serial returns the serial number. Cards before version 5 tell it in another application, and
// selecting that loses the PIN.
func (a Applet) Serial(ctx context.Context, v Version) (uint32, error) {
	serial, err := a.serial(ctx, v)
	if err != nil {
		return 0, fmt.Errorf("read serial number: %w", err)
	}
	if len(serial) != 4 {
		return 0, fmt.Errorf("read serial number: %w: %d octets", apdu.ErrMalformed, len(serial))
	}
	return binary.BigEndian.Uint32(serial), nil
}

func (a Applet) serial(ctx context.Context, v Version) ([]byte, error) {
	if v.AtLeast(5, 0) {
		return a.send(ctx, insSerial, 0, 0, nil)
	}
	const insOTPSerial, serialSlot = 0x01, 0x10
	if _, err := a.send(ctx, insSelect, 4, 0, otpAID()); err != nil {
		return nil, err
	}
	serial, err := a.send(ctx, insOTPSerial, serialSlot, 0, nil)
	if err != nil {
		return nil, err
	}
	return serial, a.Select(ctx)
}

// Reset wipes the application; the card allows it when PIN and PUK are both blocked.
func (a Applet) Reset(ctx context.Context) error {
	_, err := a.send(ctx, insReset, 0, 0, nil)
	return explain("reset", err)
}

func explain(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
