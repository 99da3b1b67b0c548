package pcsc

import (
	"bytes"
	"context"
	"fmt"
	"slices"
)

// The shape of the reader list: an array of READER_STATE (eventhandler.h).
const (
	maxReaders  = 16
	stateLen    = 184
	nameLen     = 128
	maxATR      = 33
	flagPresent = 0x0004
	exclusive   = -1
)

// Reader is the state of a reader.
type Reader struct {
	Name string
	// Events counts insertions and removals since the reader was plugged in.
	Events uint32
	// Present says that a card is in it.
	Present bool
	// Users is the number of connections to the card.
	Users int
	// Exclusive says that one of them keeps all others out.
	Exclusive bool
	// ATR is the card's answer to reset, up to 33 octets.
	ATR []byte
}

// Readers returns the readers that are plugged in.
func (c *Client) Readers(ctx context.Context) ([]Reader, error) {
	release, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return c.readers(ctx, cmdReaderStates)
}

// readers sends a command that is answered by the reader list.
func (c *Client) readers(ctx context.Context, command uint32) ([]Reader, error) {
	if err := c.send(ctx, command, nil, nil); err != nil {
		return nil, err
	}
	b := make([]byte, maxReaders*stateLen)
	if err := c.read(ctx, b); err != nil {
		return nil, err
	}
	readers, err := parseReaders(b)
	if err != nil {
		return nil, c.fail(err)
	}
	return readers, nil
}

// WaitChange returns the readers as soon as they are not as known, which Readers or WaitChange
// returned: a reader or card came or went. It may return without a change. The call has
// nothing to do with cards of this client; it lasts until ctx ends.
func (c *Client) WaitChange(ctx context.Context, known []Reader) ([]Reader, error) {
	release, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	now, err := c.readers(ctx, cmdWaitChange)
	if err != nil {
		return nil, err
	}
	changed := !SameCards(now, known)
	if changed {
		if err := c.send(ctx, cmdStopWaiting, nil, nil); err != nil {
			return nil, err
		}
	}
	event := make([]byte, 8) // struct wait_reader_state_change: timeout and result
	if err := c.read(ctx, event); err != nil {
		return nil, err
	}
	if changed {
		return now, nil
	}
	if err := check(word(event, 1)); err != nil {
		return nil, err
	}
	return c.readers(ctx, cmdReaderStates)
}

// SameCards reports whether no reader or card has come or gone between two lists.
func SameCards(a, b []Reader) bool { return slices.EqualFunc(a, b, Reader.sameCard) }

func (r Reader) sameCard(s Reader) bool {
	return r.Name == s.Name && r.Events == s.Events && r.Present == s.Present
}

// parseReaders decodes the reader list strictly. Unused places have an empty name.
func parseReaders(b []byte) ([]Reader, error) {
	if len(b) != maxReaders*stateLen {
		return nil, fmt.Errorf("%w: reader list of %d octets", ErrProtocol, len(b))
	}
	var readers []Reader
	for entry := range slices.Chunk(b, stateLen) {
		if entry[0] == 0 {
			continue
		}
		r, err := parseReader(entry)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(readers, func(s Reader) bool { return s.Name == r.Name }) {
			return nil, fmt.Errorf("%w: reader %q listed twice", ErrProtocol, r.Name)
		}
		readers = append(readers, r)
	}
	return readers, nil
}

func parseReader(b []byte) (Reader, error) {
	name, _, ok := bytes.Cut(b[:nameLen], []byte{0})
	if !ok {
		return Reader{}, fmt.Errorf("%w: endless reader name", ErrProtocol)
	}
	numbers := b[nameLen:]
	events, state, sharing := word(numbers, 0), word(numbers, 1), int32(word(numbers, 2))
	atrLen := word(numbers[3*4+maxATR+3:], 0)
	if atrLen > maxATR {
		return Reader{}, fmt.Errorf("%w: ATR of %d octets", ErrProtocol, atrLen)
	}
	if sharing < exclusive {
		return Reader{}, fmt.Errorf("%w: reader with %d users", ErrProtocol, sharing)
	}
	r := Reader{
		Name: string(name), Events: events, Present: state&flagPresent != 0,
		Users: int(sharing), Exclusive: sharing == exclusive,
		ATR: bytes.Clone(numbers[3*4:][:atrLen]),
	}
	if r.Exclusive {
		r.Users = 1
	}
	return r, nil
}
