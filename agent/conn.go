package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/peercred"
	"github.com/mesh-agent/mesh-agent/internal/policy"
)

// conn is one connection. One goroutine serves it, a request at a time, so that answers
// come in the order of requests; what a client sends ahead waits in the socket.
type conn struct {
	server *server
	net    net.Conn
	kind   socketKind
	peer   peercred.Credentials
	frames *frameReader
	reply  []byte // the frame being written, kept for its memory

	mu      sync.Mutex
	busy    bool      // guarded by mu: a request is worked on
	closing bool      // guarded by mu: no further request
	idle    time.Time // guarded by mu: since when nothing has come; zero while something has, and until it is answered
}

func newConn(s *server, nc net.Conn, kind socketKind, peer peercred.Credentials) *conn {
	c := &conn{server: s, net: nc, kind: kind, peer: peer, frames: newFrameReader(nc, s.limits.Frame), idle: time.Now()}
	c.frames.begun = c.hear
	return c
}

// serve answers requests until the client goes, breaks the framing, or finish is called.
func (c *conn) serve() {
	defer c.net.Close()
	defer c.frames.wipe()
	for {
		message, err := c.frames.next()
		if err != nil {
			c.logEnd(err)
			return
		}
		if !c.begin() {
			return
		}
		err = c.answer(message)
		if more := c.end(); err != nil || !more {
			c.logEnd(err)
			return
		}
	}
}

// logEnd tells of connections that did not end as they should.
func (c *conn) logEnd(err error) {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return
	}
	c.server.log.Debug("connection ended", "pid", c.peer.PID, "err", err)
}

// answer works on one message and writes the reply.
func (c *conn) answer(message []byte) error {
	ctx, cancel := context.WithCancel(c.server.work)
	defer cancel()
	stop := c.server.hangups.watch(c.net, cancel)
	r := &request{Agent: c.server.Agent, kind: c.kind, peer: policy.Peer{UID: c.peer.UID}, pid: c.peer.PID, owner: c}
	c.reply = r.answer(ctx, append(c.reply[:0], 0, 0, 0, 0), message)
	stop()
	err := writeFrame(c.net, c.reply, c.server.limits.Write)
	clear(c.reply)
	if cap(c.reply) > keepBuffer {
		c.reply = nil
	}
	return err
}

// begin marks the connection busy, unless it is to end.
func (c *conn) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = !c.closing
	return c.busy
}

// end marks the connection idle and reports whether it goes on.
func (c *conn) end() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.busy = false
	if !c.frames.ahead() {
		c.idle = time.Now()
	}
	return !c.closing
}

// hear notes that the first octet of a request is there.
func (c *conn) hear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = time.Time{}
}

// idleSince says since when nothing has come, if that is so.
func (c *conn) idleSince() (since time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idle, !c.idle.IsZero() && !c.closing
}

// giveWay ends the connection if nothing is under way, not even unread in the socket, and reports whether it did.
func (c *conn) giveWay() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle.IsZero() || c.closing {
		return false
	}
	if unread(c.net) {
		c.idle = time.Time{}
		return false
	}
	c.closing = true
	c.net.Close()
	return true
}

// finish ends the connection: now if it is idle, else after the request it works on.
func (c *conn) finish() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closing = true
	if !c.busy {
		c.net.Close()
	}
}
