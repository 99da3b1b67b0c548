// Package pcsc talks to pcscd, the PC/SC daemon, over its Unix socket, in the protocol that
// libpcsclite and pcscd share since version 1.8.24 (winscard_msg.h, protocol 4.4). It needs
// no C library, and every call ends when its context does: where a card does not answer, the
// connection is given up and pcscd is left to wait alone.
//
// It has what an application of short transactions needs: reader states and waiting for their
// change, shared connections, transactions, transmission of short APDUs. It does not
// interpret APDUs, opens no card exclusively, and has no attributes and control codes.
package pcsc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// DefaultSocket is where pcscd listens.
const DefaultSocket = "/run/pcscd/pcscd.comm"

// SocketPath returns $PCSCLITE_CSOCK_NAME, which libpcsclite honours too, or DefaultSocket.
func SocketPath() string {
	if path := os.Getenv("PCSCLITE_CSOCK_NAME"); path != "" {
		return path
	}
	return DefaultSocket
}

// The protocol version spoken. pcscd 1.8.24 to 1.9 and 2.0 have it; later ones are
// compatible with it.
const (
	versionMajor = 4
	versionMinor = 4
)

// The commands (enum pcsc_msg_commands).
const (
	cmdEstablishContext = 0x01
	cmdConnect          = 0x04
	cmdDisconnect       = 0x06
	cmdBegin            = 0x07
	cmdEnd              = 0x08
	cmdTransmit         = 0x09
	cmdVersion          = 0x11
	cmdReaderStates     = 0x12
	cmdWaitChange       = 0x13
	cmdStopWaiting      = 0x14
)

// Disposition says what happens to the card at the end of a connection or transaction.
type Disposition uint32

// The dispositions.
const (
	LeaveCard Disposition = 0
	ResetCard Disposition = 1
)

// ErrProtocol says that pcscd sent what the protocol does not allow. The connection is of no
// more use.
var ErrProtocol = errors.New("pcscd breaks the protocol")

// ErrBroken says that the connection to pcscd was lost, or given up before.
var ErrBroken = errors.New("connection to pcscd lost")

// ErrRefused says that pcscd closed the connection without a word: it does not let this user in
// (polkit, org.debian.pcsc-lite.access_pcsc), or is just ending.
var ErrRefused = errors.New("pcscd closes the connection at once")

// bufferLen has room for the longest requests: connecting, or beginning a transaction and
// transmitting.
const bufferLen = 1024

// Client is a connection to pcscd with one context. It is used by one goroutine at a time. After
// ErrProtocol, ErrBroken or the end of a context it is of no more use; Close it, or Abandon it.
type Client struct {
	conn    net.Conn
	context uint32
	broken  error          // why, if so
	torn    bool           // a request was sent in part
	buffer  []byte         // of requests; wiped after each
	cutting sync.WaitGroup // what ends a call whose context ended
}

// Dial connects to pcscd and establishes a context. An error that is not the context's wraps
// ErrBroken, ErrRefused, or NoService if nobody listens.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if errors.Is(err, context.DeadlineExceeded) {
		<-ctx.Done() // the dialer looks at the clock, which is a little ahead of the context
	}
	if ctx.Err() != nil {
		if err == nil {
			conn.Close()
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", NoService, err)
	}
	c := &Client{conn: conn}
	err = c.handshake(ctx)
	switch {
	case err == nil:
		err = c.establish(ctx)
	case errors.Is(err, ErrBroken):
		err = fmt.Errorf("%w: %v", ErrRefused, err) // not ErrBroken: connecting again does not help
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// handshake compares versions (struct version_struct).
func (c *Client) handshake(ctx context.Context) error {
	reply, err := c.call(ctx, cmdVersion, words(versionMajor, versionMinor, 0))
	if err != nil {
		return fmt.Errorf("compare versions: %w", err)
	}
	major, minor, rv := word(reply, 0), word(reply, 1), word(reply, 2)
	if rv != 0 || major != versionMajor || minor < versionMinor {
		return c.fail(fmt.Errorf("%w: it speaks version %d.%d, not %d.%d (result %08x)",
			ErrProtocol, major, minor, versionMajor, versionMinor, rv))
	}
	return nil
}

// establish makes the context (struct establish_struct).
func (c *Client) establish(ctx context.Context) error {
	const scopeSystem = 2
	reply, err := c.result(ctx, cmdEstablishContext, words(scopeSystem, 0, 0))
	if err != nil {
		return fmt.Errorf("establish context: %w", err)
	}
	c.context = word(reply, 1)
	return nil
}

// Close ends the connection. pcscd disconnects the cards, and resets one whose transaction
// is still open.
func (c *Client) Close() error {
	if errors.Is(c.broken, net.ErrClosed) {
		return nil
	}
	c.broken = net.ErrClosed
	return c.conn.Close()
}

// Broken reports whether the client is of no more use.
func (c *Client) Broken() bool { return c.broken != nil }

// GaveUp reports whether it is so because a context ended: pcscd may be at work for it still.
func (c *Client) GaveUp() bool {
	return errors.Is(c.broken, context.Canceled) || errors.Is(c.broken, context.DeadlineExceeded)
}

// Abandon waits until pcscd has done what a client that gave up had asked for, which nothing can stop, and leaves the
// card that the client was connected to, nil for none, without the reset that Close would end a transaction with. Then,
// and when the connection is lost or another goroutine calls Close, it returns, and the connection is closed.
func (c *Client) Abandon(k *Card) {
	defer c.conn.Close()
	if err := c.conn.SetDeadline(time.Time{}); err != nil {
		return
	}
	if k != nil && !c.torn {
		c.buffer = c.buffer[:0]
		if c.queue(cmdDisconnect, words(k.handle, uint32(LeaveCard), 0), nil) != nil {
			return
		}
		if _, err := c.conn.Write(c.buffer); err != nil {
			return
		}
	}
	if half, ok := c.conn.(interface{ CloseWrite() error }); !ok || half.CloseWrite() != nil {
		return
	}
	_, _ = io.Copy(io.Discard, c.conn) // until pcscd has read to the end
}

// call sends a request of a structure and octets that follow it, and reads a reply of the
// structure's length.
func (c *Client) call(ctx context.Context, command uint32, structure []byte, more ...byte) ([]byte, error) {
	release, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := c.send(ctx, command, structure, more); err != nil {
		return nil, err
	}
	reply := make([]byte, len(structure))
	return reply, c.read(ctx, reply)
}

// result is call for a structure whose last word is the result.
func (c *Client) result(ctx context.Context, command uint32, structure []byte, more ...byte) ([]byte, error) {
	reply, err := c.call(ctx, command, structure, more...)
	if err != nil {
		return nil, err
	}
	return reply, check(word(reply, len(reply)/4-1))
}

// begin ties the connection to ctx until release is called.
func (c *Client) begin(ctx context.Context) (release func(), err error) {
	if c.broken != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, c.broken)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if ctx.Done() == nil {
		return func() {}, nil
	}
	c.cutting.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer c.cutting.Done()
		_ = c.conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if stop() {
			c.cutting.Done()
			return
		}
		c.cutting.Wait()
		_ = c.fail(ctx.Err()) // if it was the last moment: the connection cannot be used again
	}, nil
}

// send sends a request.
func (c *Client) send(ctx context.Context, command uint32, structure, more []byte) error {
	if err := c.queue(command, structure, more); err != nil {
		return err
	}
	return c.flush(ctx)
}

// flush sends what is queued.
func (c *Client) flush(ctx context.Context) error {
	n, err := c.conn.Write(c.buffer)
	c.torn = err != nil && n > 0
	clear(c.buffer) // may hold a PIN
	c.buffer = c.buffer[:0]
	return c.transport(ctx, err)
}

// queue appends a request to what flush sends.
func (c *Client) queue(command uint32, structure, more []byte) error {
	if c.buffer == nil {
		c.buffer = make([]byte, 0, bufferLen)
	}
	b := binary.NativeEndian.AppendUint32(c.buffer, uint32(len(structure)))
	b = binary.NativeEndian.AppendUint32(b, command)
	c.buffer = append(append(b, structure...), more...)
	if cap(c.buffer) != bufferLen { // copies of PINs stay behind where a slice grows
		return c.fail(fmt.Errorf("request of %d octets", len(c.buffer)))
	}
	return nil
}

func (c *Client) read(ctx context.Context, b []byte) error {
	_, err := c.readFull(ctx, b)
	return err
}

// readFull is read that tells how many octets came.
func (c *Client) readFull(ctx context.Context, b []byte) (int, error) {
	n, err := io.ReadFull(c.conn, b)
	return n, c.transport(ctx, err)
}

// transport makes an error of the socket this package's, and the client broken.
func (c *Client) transport(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return c.fail(ctx.Err())
	}
	return c.fail(fmt.Errorf("%w: %w", ErrBroken, err))
}

// fail makes the client broken.
func (c *Client) fail(err error) error {
	if c.broken == nil {
		c.broken = err
	}
	return err
}

// words encodes numbers in the byte order of the host, as the protocol wants.
func words(values ...uint32) []byte {
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// word returns the number at 4*i.
func word(b []byte, i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }
