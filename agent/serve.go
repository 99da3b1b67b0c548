package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/peercred"
)

type credentialFunc func(net.Conn) (peercred.Credentials, error)

// socketKind says what a socket speaks.
type socketKind uint8

const (
	sshOnly    socketKind = iota // the zero value is the smaller one
	meshAndSSH                   // and the extension operate@mathmesh.com
)

// server is one call of Serve.
type server struct {
	*Agent
	work    context.Context // of the requests; ends when the time for shutting down is over
	hangups *hangups

	mu       sync.Mutex
	conns    map[*conn]struct{} // guarded by mu
	closing  bool               // guarded by mu
	refusing bool               // guarded by mu: the last connection was one too many
	running  sync.WaitGroup     // one for each of conns
}

// Serve accepts connections on both sockets until ctx ends, then lets requests finish for
// Limits.Shutdown, cancels the others, and returns nil when all is quiet. Either listener
// may be nil. Serve closes them. A permanent error of a listener ends
// everything and is returned; when the system is short of descriptors or memory, Serve waits and goes on.
func (a *Agent) Serve(ctx context.Context, meshListener, sshListener net.Listener) error {
	return newServer(a).serve(ctx, meshListener, sshListener)
}

func newServer(a *Agent) *server {
	return &server{Agent: a, conns: make(map[*conn]struct{}), hangups: newHangups()}
}

// serve is Serve.
func (s *server) serve(ctx context.Context, meshListener, sshListener net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	s.work = work

	var accepting sync.WaitGroup
	var errs [2]error
	for i, l := range []net.Listener{meshListener, sshListener} {
		if l == nil {
			continue
		}
		kind := sshOnly
		if i == 0 {
			kind = meshAndSSH
		}
		stop := context.AfterFunc(ctx, func() { l.Close() })
		accepting.Go(func() {
			defer stop()
			errs[i] = s.accept(ctx, l, kind)
			if errs[i] != nil {
				l.Close()
			}
			cancel(errs[i])
		})
	}
	accepting.Wait()
	s.shutdown(stopWork)
	s.hangups.timer.Stop()
	return errors.Join(errs[:]...)
}

// accept serves one listener. It returns nil when ctx has ended.
func (s *server) accept(ctx context.Context, l net.Listener, kind socketKind) error {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	pause := firstPause
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = firstPause
			s.admit(c, kind)
		case ctx.Err() != nil:
			return nil
		case !temporary(err):
			return fmt.Errorf("accept connection: %w", err)
		default:
			s.log.Warn("accepting connections is paused", "pause", pause, "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil
			}
			pause = min(2*pause, longestPause)
		}
	}
}

// temporary reports whether accepting may succeed later: accept(2) on a shortage, or a
// client that was gone before it was accepted.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// admit checks who connects and starts to serve them.
func (s *server) admit(nc net.Conn, kind socketKind) {
	peer, err := s.creds(nc)
	if err != nil {
		s.log.Warn("connection refused: peer unknown", "err", err)
		nc.Close()
		return
	}
	if peer.UID != s.uid {
		s.log.Warn("connection refused: another user", "uid", peer.UID, "pid", peer.PID)
		nc.Close()
		return
	}
	c := newConn(s, nc, kind, peer)
	if !s.register(c) {
		nc.Close()
		return
	}
	go func() {
		defer s.running.Done()
		defer s.unregister(c)
		c.serve()
	}()
}

func (s *server) register(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	if len(s.conns) >= s.limits.Connections && !s.makeRoomLocked() {
		if !s.refusing {
			s.log.Warn("connections refused: too many, and a request is under way on each", "limit", s.limits.Connections)
		}
		s.refusing = true
		return false
	}
	s.refusing = false
	s.conns[c] = struct{}{}
	s.running.Add(1)
	return true
}

// makeRoomLocked ends a connection on which nothing is under way: of the process that has most of them, the one that has
// been idle longest. It reports whether there was one.
func (s *server) makeRoomLocked() bool {
	for {
		c := longestIdle(s.conns)
		if c == nil {
			return false
		}
		if c.giveWay() {
			s.log.Debug("idle connection closed to make room", "pid", c.peer.PID)
			delete(s.conns, c)
			return true
		}
	}
}

// longestIdle chooses the connection that makes room for another; nil if none is idle.
func longestIdle(conns map[*conn]struct{}) *conn {
	type idle struct {
		conn  *conn
		since time.Time
	}
	of := make(map[int32][]idle) // by process
	most := 0
	for c := range conns {
		if since, ok := c.idleSince(); ok {
			of[c.peer.PID] = append(of[c.peer.PID], idle{c, since})
			most = max(most, len(of[c.peer.PID]))
		}
	}
	var first idle
	for _, conns := range of {
		for _, i := range conns {
			if len(conns) == most && (first.conn == nil || i.since.Before(first.since)) {
				first = i
			}
		}
	}
	return first.conn
}

func (s *server) unregister(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// shutdown ends idle connections at once, the others when their request is done and its
// answer taken or the time for that is over, and waits for all of them.
func (s *server) shutdown(stopWork context.CancelFunc) {
	s.mu.Lock()
	s.closing = true
	for c := range s.conns {
		c.finish()
	}
	s.mu.Unlock()
	cancelled := time.AfterFunc(s.limits.Shutdown, stopWork)
	defer cancelled.Stop()
	dropped := time.AfterFunc(s.limits.Shutdown+lastWords, s.drop)
	defer dropped.Stop()
	s.running.Wait()
}

// lastWords is the time in which clients must take the answers of cancelled requests.
const lastWords = time.Second

// drop ends the connections of clients that take no answer.
func (s *server) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.net.Close()
	}
}
