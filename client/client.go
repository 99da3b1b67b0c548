// Package client talks to a mesh-agent over its socket. Every method is one round trip; the
// messages are those of package mesh, specified in docs/protocol.md.
//
// The package starts no agent, asks nobody for a PIN, and knows nothing of the SSH side: for
// that, golang.org/x/crypto/ssh/agent works on the same sockets.
package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// MaxRequest is the largest request in octets of JSON: what a frame of 262144 octets
// holds beside the name of the extension.
const MaxRequest = maxFrame - headerLen

const (
	maxFrame  = 256 << 10
	extension = "operate@mathmesh.com"
	headerLen = 1 + 4 + len(extension)

	msgFailure           = 5
	msgExtension         = 27
	msgExtensionFailure  = 28
	msgExtensionResponse = 29
)

var (
	// ErrNoSocket says that DefaultSocket found no place to look.
	ErrNoSocket = errors.New("no socket: set MESH_AGENT_SOCK or XDG_RUNTIME_DIR")
	// ErrTooLarge says that a request does not fit a frame. Nothing was sent.
	ErrTooLarge = errors.New("request too large")
	// ErrNotMesh says that the agent does not know the Mesh extension: it is another SSH
	// agent, or the socket is the one for SSH alone.
	ErrNotMesh = errors.New("the agent does not speak " + extension + " on this socket: is it ssh.sock, or an agent of another kind?")
	// ErrMalformed says that the agent found no message in the request.
	ErrMalformed = errors.New("the agent found the request malformed: not strict JSON, or not a message it knows")
	// ErrProtocol says that the reply is not one. The client is of no further use.
	ErrProtocol = errors.New("reply is malformed")
	// ErrClosed says that the client was closed, or that an earlier call ended before
	// its reply, so that the connection is of no further use.
	ErrClosed = errors.New("client is closed")
)

// StatusError is a reply or a result whose Status is not 201.
type StatusError struct {
	// Status is one of the table in docs/protocol.md: 400 to 503.
	Status int
	// Text says why, and for some statuses starts with a word to be relied on.
	Text string
}

// Error returns the text, or the number if there is none.
func (e *StatusError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("status %d", e.Status)
	}
	return e.Text
}

// DefaultSocket returns where to look for the agent: $MESH_AGENT_SOCK, else
// mesh-agent/agent.sock in $XDG_RUNTIME_DIR. Never $SSH_AUTH_SOCK, which may be somebody else's agent,
// forwarded. Errors: ErrNoSocket.
func DefaultSocket() (string, error) {
	if path := os.Getenv("MESH_AGENT_SOCK"); path != "" {
		return path, nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "mesh-agent", "agent.sock"), nil
	}
	return "", ErrNoSocket
}

// Client is a connection to an agent. Its methods may be called from several goroutines;
// they take turns.
type Client struct {
	turn chan struct{} // holds one value while nobody talks

	mu     sync.Mutex
	conn   net.Conn
	closed bool // guarded by mu
}

// Dial connects to the agent at path, which DefaultSocket returns for the usual place.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to agent: %w", err)
	}
	c := &Client{turn: make(chan struct{}, 1), conn: conn}
	c.turn <- struct{}{}
	return c, nil
}

// Close ends the connection and with it what the agent does for it. A call under way fails.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	return c.conn.Close()
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// RawOperate sends one Mesh message in JSON, such as {"OperateRequest":{...}}, and returns
// the reply as it came; a Status in it is not looked at. When ctx ends before the reply, the
// agent is told by closing the connection, and the client is of no further use.
// Errors: ErrTooLarge, ErrNotMesh, ErrMalformed, ErrProtocol, ErrClosed, ctx's error.
func (c *Client) RawOperate(ctx context.Context, json []byte) ([]byte, error) {
	if len(json) > MaxRequest {
		return nil, fmt.Errorf("%w: %d octets of JSON, at most %d fit: split the batch", ErrTooLarge, len(json), MaxRequest)
	}
	select {
	case <-c.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { c.turn <- struct{}{} }()
	if c.isClosed() {
		return nil, ErrClosed
	}
	frame, err := c.exchange(ctx, json)
	if err != nil {
		closed := c.isClosed()
		c.Close()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case closed:
			return nil, ErrClosed
		}
		return nil, fmt.Errorf("talk to agent: %w", err)
	}
	reply, err := parseReply(frame)
	if errors.Is(err, ErrProtocol) {
		c.Close()
	}
	return reply, err
}

// exchange writes one frame and reads one.
func (c *Client) exchange(ctx context.Context, json []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Unix(1, 0)) })
	reply, err := c.roundTrip(json)
	if !stop() { // the deadline is set, or will be: the connection is of no further use
		return nil, ctx.Err()
	}
	return reply, err
}

func (c *Client) roundTrip(json []byte) ([]byte, error) {
	frame := appendFrame(make([]byte, 0, 4+headerLen+len(json)), json)
	_, err := c.conn.Write(frame)
	clear(frame)
	if err != nil {
		return nil, err
	}
	return readFrame(c.conn)
}

// appendFrame appends the frame of a Mesh message.
func appendFrame(dst, json []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(headerLen+len(json)))
	dst = append(dst, msgExtension)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(extension)))
	dst = append(dst, extension...)
	return append(dst, json...)
}

// readFrame reads a frame. A client has one request under way, so nothing may follow it.
func readFrame(r io.Reader) ([]byte, error) {
	var first [1 << 10]byte // most replies as a whole: one read takes them
	got, err := io.ReadAtLeast(r, first[:], 4)
	if err != nil {
		return nil, unexpected(err)
	}
	defer clear(first[:got])
	n := int(binary.BigEndian.Uint32(first[:]))
	if n == 0 || n > maxFrame || got-4 > n {
		return nil, fmt.Errorf("%w: frame of %d octets", ErrProtocol, n)
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(r, frame[copy(frame, first[4:got]):]); err != nil {
		return nil, unexpected(err)
	}
	return frame, nil
}

// unexpected makes every end of the stream one before the reply was complete.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseReply returns the JSON of a reply message.
func parseReply(message []byte) ([]byte, error) {
	switch {
	case len(message) == 1 && message[0] == msgFailure:
		return nil, ErrNotMesh
	case len(message) == 1 && message[0] == msgExtensionFailure:
		return nil, ErrMalformed
	case len(message) < headerLen || message[0] != msgExtensionResponse,
		binary.BigEndian.Uint32(message[1:]) != uint32(len(extension)),
		string(message[5:headerLen]) != extension:
		return nil, ErrProtocol
	}
	return message[headerLen:], nil
}

// fetch sends body under the request tag and decodes the body of the response, an R. A
// Status that is not 201 is a *StatusError.
func fetch[R any](ctx context.Context, c *Client, request string, body any, response string) (*R, error) {
	data, err := strictjson.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	defer clear(data)
	return ask[R](ctx, c, request, data, response)
}

// ask is fetch with a body that is JSON already.
func ask[R any](ctx context.Context, c *Client, request string, body []byte, response string) (*R, error) {
	message := appendTagged(make([]byte, 0, len(request)+len(body)+len(`{"":}`)), request, body)
	defer clear(message)
	reply, err := c.RawOperate(ctx, message)
	if err != nil {
		return nil, err
	}
	defer clear(reply) // what is decoded is a copy
	answer, err := cutReply(reply, response)
	if err != nil {
		return nil, err
	}
	if !succeeded(answer) {
		var status mesh.Reply
		if err := lenient(answer, &status); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if status.Status != mesh.StatusOK {
			return nil, &StatusError{Status: status.Status, Text: status.StatusDescription}
		}
	}
	out := new(R)
	if err := strictjson.Unmarshal(answer, out); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return out, nil
}

// appendTagged appends {"tag":body}. tag is one of the protocol's, which need no quoting.
func appendTagged(dst []byte, tag string, body []byte) []byte {
	dst = append(append(dst, `{"`...), tag...)
	return append(append(append(dst, `":`...), body...), '}')
}

// cutReply returns the body of a reply, which must have this tag. If the reply begins and ends as
// the agent writes it, what is between is not read here: whoever decodes it finds whether it is one value.
func cutReply(reply []byte, tag string) (strictjson.Value, error) {
	const open, colon, end = `{"`, `":`, `}`
	body, ok := bytes.CutPrefix(reply, []byte(open+tag+colon))
	if ok {
		if body, ok = bytes.CutSuffix(body, []byte(end)); ok {
			return body, nil
		}
	}
	var answer mesh.Tagged
	if err := strictjson.Unmarshal(reply, &answer); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if answer.Tag != tag {
		return nil, fmt.Errorf("%w: %q instead of %q", ErrProtocol, answer.Tag, tag)
	}
	return answer.Body, nil
}

// succeeded reports whether a body begins as the agent's do if all went well. Then it need not be
// read twice; a second Status in it is an error for Decode.
func succeeded(body strictjson.Value) bool {
	return bytes.HasPrefix(body, []byte(`{"Status":201,`))
}
