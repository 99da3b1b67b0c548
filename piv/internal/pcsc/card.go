package pcsc

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The longest short APDUs (ISO 7816-4).
const (
	maxCommand  = 4 + 1 + 255 + 1
	maxResponse = 256 + 2
)

// How long to wait before asking again for a card that another program uses.
const (
	pollFirst = time.Millisecond
	pollMost  = 50 * time.Millisecond
)

// Card is a shared connection to the card in a reader. It is used by the goroutine that uses
// its client.
type Card struct {
	client   *Client
	handle   uint32
	protocol uint32
}

// Connect connects to the card in a reader, together with other programs. SharingViolation
// says that another program keeps all others out.
func (c *Client) Connect(ctx context.Context, reader string) (*Card, error) {
	const shareShared, protocolAny = 2, 3
	if len(reader) == 0 || len(reader) >= nameLen {
		return nil, UnknownReader
	}
	// struct connect_struct
	var name [nameLen]byte
	copy(name[:], reader)
	b := append(words(c.context), name[:]...)
	b = append(b, words(shareShared, protocolAny, 0, 0, 0)...)
	reply, err := c.result(ctx, cmdConnect, b)
	if err != nil {
		return nil, fmt.Errorf("connect to card: %w", err)
	}
	tail := reply[4+nameLen:]
	card := &Card{client: c, handle: word(tail, 2), protocol: word(tail, 3)}
	if card.protocol != 1 && card.protocol != 2 {
		return nil, c.fail(fmt.Errorf("%w: connected by protocol %d", ErrProtocol, card.protocol))
	}
	return card, nil
}

// Disconnect ends the connection to the card. CardReset from here says that somebody else
// had reset it, and is not an error.
func (k *Card) Disconnect(ctx context.Context, d Disposition) error {
	_, err := k.client.result(ctx, cmdDisconnect, words(k.handle, uint32(d), 0))
	if err != nil && !errors.Is(err, CardReset) {
		return fmt.Errorf("disconnect card: %w", err)
	}
	return nil
}

// Begin begins a transaction: until End no other program reaches the card. While another
// program is in one, Begin waits; the error of one that waited too long wraps SharingViolation and ctx's. CardReset and CardRemoved say that this is not the card, or
// not its state, that was connected to.
func (k *Card) Begin(ctx context.Context) error {
	_, err := await(ctx, func() ([]byte, bool, error) {
		_, err := k.client.result(ctx, cmdBegin, words(k.handle, 0))
		return nil, err == nil, err
	})
	return err
}

// await calls begin until it began a transaction, or failed otherwise than because another
// program is in one. A begin that was not answered when ctx ended waits for that too.
func await(ctx context.Context, begin func() (response []byte, began bool, err error)) ([]byte, error) {
	for pause := pollFirst; ; pause = min(2*pause, pollMost) {
		response, began, err := begin()
		busy := errors.Is(err, SharingViolation)
		switch {
		case began:
			return response, err
		case ctx.Err() != nil && (busy || errors.Is(err, ctx.Err())):
			return nil, fmt.Errorf("begin transaction: %w: %w", ctx.Err(), SharingViolation)
		case !busy:
			return nil, fmt.Errorf("begin transaction: %w", err)
		}
		_ = Pause(ctx, pause) // the next begin looks whether ctx has ended
	}
}

// End ends the transaction.
func (k *Card) End(ctx context.Context, d Disposition) error {
	if _, err := k.client.result(ctx, cmdEnd, words(k.handle, uint32(d), 0)); err != nil {
		return fmt.Errorf("end transaction: %w", err)
	}
	return nil
}

// BeginTransmit is Begin and then Transmit, in one round trip. The command may be given to the card
// without a transaction if another program ends one at that moment: it must be one that does
// no harm then, as SELECT.
func (k *Card) BeginTransmit(ctx context.Context, command []byte) ([]byte, error) {
	return await(ctx, func() ([]byte, bool, error) { return k.exchange(ctx, command, nil) })
}

// Exchange is BeginTransmit and then End, in one round trip: a transaction of one command. If it
// fails the card may have had the command, and no transaction is open.
func (k *Card) Exchange(ctx context.Context, command []byte) ([]byte, error) {
	end := words(k.handle, uint32(LeaveCard), 0)
	return await(ctx, func() ([]byte, bool, error) { return k.exchange(ctx, command, end) })
}

// exchange begins a transaction, transmits a command and, unless end is nil, ends the transaction.
// began is false if it did not begin.
func (k *Card) exchange(ctx context.Context, command, end []byte) (response []byte, began bool, err error) {
	release, err := k.client.begin(ctx)
	if err != nil {
		return nil, false, err
	}
	defer release()
	begin := words(k.handle, 0)
	err = errors.Join(k.client.queue(cmdBegin, begin, nil), k.queueTransmit(command))
	if err == nil && end != nil {
		err = k.client.queue(cmdEnd, end, nil)
	}
	if err == nil {
		err = k.client.flush(ctx)
	}
	if err != nil {
		return nil, false, err
	}
	// One read for all that has a fixed length, one for the rest.
	fixed := make([]byte, len(begin)+transmitLen)
	if n, err := k.client.readFull(ctx, fixed); err != nil {
		return nil, n >= len(begin) && word(fixed, 1) == 0, err // where it began the card is silent, not busy
	}
	response, err = k.readResponse(ctx, fixed[len(begin):], end)
	if failed := check(word(fixed, 1)); failed != nil && !k.client.Broken() {
		return nil, false, failed
	}
	if err == nil && end != nil {
		if err = check(word(end, 2)); err != nil {
			return nil, true, fmt.Errorf("end transaction: %w", err)
		}
	}
	return response, true, err
}

// Transmit sends a short command APDU and returns the response, 2 to 258 octets.
func (k *Card) Transmit(ctx context.Context, command []byte) ([]byte, error) {
	release, err := k.client.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := k.queueTransmit(command); err != nil {
		return nil, err
	}
	if err := k.client.flush(ctx); err != nil {
		return nil, err
	}
	reply := make([]byte, transmitLen)
	if err := k.client.read(ctx, reply); err != nil {
		return nil, err
	}
	return k.readResponse(ctx, reply, nil)
}

// transmitLen is the length of struct transmit_struct: handle, two protocol headers of two words
// with the length of an APDU after each, and the result. The APDU follows it.
const transmitLen = 8 * 4

func (k *Card) queueTransmit(command []byte) error {
	if len(command) < 4 || len(command) > maxCommand {
		return k.client.fail(fmt.Errorf("transmit: command of %d octets", len(command)))
	}
	const pciLen = 16 // sizeof(SCARD_IO_REQUEST); pcscd does not look at it
	request := words(k.handle, k.protocol, pciLen, uint32(len(command)), k.protocol, pciLen, maxResponse, 0)
	return k.client.queue(cmdTransmit, request, command)
}

// readResponse reads the response that follows reply, a transmit_struct, and then as many octets as
// after has: the reply that comes next.
func (k *Card) readResponse(ctx context.Context, reply, after []byte) ([]byte, error) {
	n := word(reply, 6)
	failed := check(word(reply, 7))
	if failed != nil {
		n = 0 // no octets follow (winscard_svc.c)
	}
	if n > maxResponse || word(reply, 0) != k.handle {
		return nil, k.client.fail(fmt.Errorf("%w: response of %d octets from handle %x", ErrProtocol, n, word(reply, 0)))
	}
	b := make([]byte, int(n)+len(after))
	if err := k.client.read(ctx, b); err != nil {
		return nil, err
	}
	copy(after, b[n:])
	switch {
	case failed != nil:
		return nil, fmt.Errorf("transmit: %w", failed)
	case n < 2:
		return nil, fmt.Errorf("transmit: response of %d octets: %w", n, NotTransacted)
	}
	return b[:n:n], nil
}

// Pause waits, no longer than ctx lasts.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
