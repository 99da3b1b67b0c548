// Package apdu sends commands to a smart card and reads the answers (ISO 7816-4): command
// chaining, GET RESPONSE, status words, and BER-TLV data objects, strictly.
//
// It knows nothing of applications on the card and of readers, and does not use extended
// length or secure messaging.
package apdu

import (
	"context"
	"errors"
	"fmt"
)

// Transmitter is a card in a transaction.
type Transmitter interface {
	// Transmit sends one short command APDU and returns the response with its status word.
	// It does not keep command.
	Transmit(ctx context.Context, command []byte) ([]byte, error)
}

// Command is a command to a card. Data longer than 255 octets is sent in a chain.
type Command struct {
	INS, P1, P2 byte
	Data        []byte
}

// ErrMalformed says that the card's answer is not what the standards allow.
var ErrMalformed = errors.New("malformed response of the card")

const (
	maxData = 255
	// maxResponse is the most octets that an answer in parts is taken to have. The longest
	// that PIV has are certificates of some kilobytes.
	maxResponse  = 1 << 16
	maxParts     = 512
	chained      = 0x10 // class byte: more of the command follows
	getResponse  = 0xC0
	statusMore   = 0x61
	statusWrongL = 0x6C
)

// Send sends a command and returns the data of the answer. A status other than 9000 is
// a Status. What it copied of the command's data is wiped.
func Send(ctx context.Context, t Transmitter, c Command) ([]byte, error) {
	data := c.Data
	for len(data) > maxData {
		r, err := c.transmit(ctx, t, chained, data[:maxData])
		if err != nil {
			return nil, err
		}
		if r.status != statusOK {
			return nil, r.status
		}
		data = data[maxData:]
	}
	r, err := c.transmit(ctx, t, 0, data)
	if err != nil {
		return nil, err
	}
	return collect(ctx, t, r)
}

// transmit sends one APDU.
func (c Command) transmit(ctx context.Context, t Transmitter, class byte, data []byte) (response, error) {
	b := make([]byte, 0, 5+maxData)
	b = append(b, class, c.INS, c.P1, c.P2, byte(len(data)))
	b = append(b, data...)
	defer clear(b)
	return exchange(ctx, t, b)
}

type response struct {
	data   []byte
	status Status
}

// exchange sends an APDU, again with the length that the card asks for if it does.
func exchange(ctx context.Context, t Transmitter, b []byte) (response, error) {
	r, err := split(t.Transmit(ctx, b))
	if err == nil && r.status.high() == statusWrongL && len(b) == 5 {
		b[4] = r.status.low()
		r, err = split(t.Transmit(ctx, b))
	}
	return r, err
}

func split(b []byte, err error) (response, error) {
	if err != nil {
		return response{}, err
	}
	if len(b) < 2 || len(b) > 256+2 {
		return response{}, fmt.Errorf("%w: %d octets", ErrMalformed, len(b))
	}
	n := len(b) - 2
	return response{b[:n:n], Status(b[n])<<8 | Status(b[n+1])}, nil
}

// collect fetches the parts of an answer.
func collect(ctx context.Context, t Transmitter, r response) ([]byte, error) {
	out := r.data
	for range maxParts {
		switch {
		case r.status == statusOK:
			return out, nil
		case r.status.high() != statusMore:
			return nil, r.status
		case len(out) > maxResponse:
			return nil, fmt.Errorf("%w: endless", ErrMalformed)
		}
		var err error
		if r, err = exchange(ctx, t, []byte{0, getResponse, 0, 0, r.status.low()}); err != nil {
			return nil, err
		}
		out = append(out, r.data...)
	}
	return nil, fmt.Errorf("%w: endless", ErrMalformed)
}

// Status is a status word other than 9000.
type Status uint16

// The status words that PIV tells apart (SP 800-73-4 Part 2, Table 2; ISO 7816-4, 5.6).
const (
	statusOK Status = 0x9000

	SecurityStatus     Status = 0x6982 // PIN or management key not presented, or no touch in time
	Blocked            Status = 0x6983
	ConditionsOfUse    Status = 0x6985
	BadData            Status = 0x6A80
	FunctionMissing    Status = 0x6A81
	NotFound           Status = 0x6A82
	NoSpace            Status = 0x6A84
	BadParameters      Status = 0x6A86
	BadParametersB     Status = 0x6B00 // what YubiKeys say for it
	ReferenceMissing   Status = 0x6A88
	WrongLength        Status = 0x6700
	InstructionMissing Status = 0x6D00
	ClassMissing       Status = 0x6E00
)

// Error describes the status.
func (s Status) Error() string {
	text := map[Status]string{
		SecurityStatus:     "security status not satisfied",
		Blocked:            "blocked",
		ConditionsOfUse:    "conditions of use not satisfied",
		BadData:            "bad data",
		FunctionMissing:    "function not supported",
		NotFound:           "not found",
		NoSpace:            "no space",
		BadParameters:      "bad parameters",
		BadParametersB:     "bad parameters",
		ReferenceMissing:   "referenced data not found",
		WrongLength:        "wrong length",
		InstructionMissing: "no such instruction",
		ClassMissing:       "no such class",
	}[s]
	if tries, ok := s.Tries(); ok {
		text = fmt.Sprintf("not verified, %d tries left", tries)
	}
	if text == "" {
		text = "card error"
	}
	return fmt.Sprintf("%s (%04x)", text, uint16(s))
}

// Tries returns x of status 63Cx: the tries that a PIN has left.
func (s Status) Tries() (int, bool) {
	return int(s & 0xF), s&0xFFF0 == 0x63C0
}

func (s Status) high() byte { return byte(s >> 8) }
func (s Status) low() byte  { return byte(s) }
