package agent

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hangupAfter is how long an operation runs, once or twice, before anybody looks whether its client is still there.
// Most are done by then. A timer that fires sooner has the netpoller woken more often, to sleep less long.
const hangupAfter = 20 * time.Millisecond

// hangups cancels the requests of clients that have gone. One timer serves all connections, and runs only while
// there are requests: one for each request would wake a thread that sleeps in the netpoller, to have it sleep until
// then, and that takes as long as many an operation.
type hangups struct {
	mu      sync.Mutex
	young   map[*watch]struct{} // guarded by mu, as all below: requests whose clients nobody looks for yet
	timer   *time.Timer
	running bool // the timer
}

// watch is one request. Its fields are guarded by hangups.mu.
type watch struct {
	conn   net.Conn
	raw    syscall.RawConn
	cancel context.CancelFunc
	aged   bool          // the timer has fired once since it began
	ended  chan struct{} // closed when nobody looks for the client any more; nil if nobody has
}

func newHangups() *hangups {
	h := &hangups{young: make(map[*watch]struct{})}
	h.timer = time.AfterFunc(hangupAfter, h.sweep)
	h.timer.Stop()
	return h
}

// watch calls cancel when the peer of conn has gone while a request of its is
// worked on. It reads nothing: requests that a client sent ahead stay in the socket. A
// client that has closed only its sending side still gets its answers. The
// returned function ends the watch and waits for it; nobody may read conn before.
func (h *hangups) watch(conn net.Conn, cancel context.CancelFunc) (stop func()) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return func() {}
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func() {}
	}
	w := &watch{conn: conn, raw: raw, cancel: cancel}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.young[w] = struct{}{}
	if !h.running {
		h.running = true
		h.timer.Reset(hangupAfter)
	}
	return func() { h.end(w) }
}

// sweep begins to look for the clients of those requests that it sees for the second time.
func (h *hangups) sweep() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.young {
		if !w.aged {
			w.aged = true
			continue
		}
		delete(h.young, w)
		w.ended = make(chan struct{})
		go w.look()
	}
	h.running = len(h.young) > 0
	if h.running {
		h.timer.Reset(hangupAfter)
	}
}

// look waits for the client to go, or for the read deadline.
func (w *watch) look() {
	defer close(w.ended)
	// Read waits for the next event of the socket each time hungUp says false, and ends
	// with an error at the read deadline.
	if err := w.raw.Read(hungUp); err == nil {
		w.cancel()
	}
}

func (h *hangups) end(w *watch) {
	h.mu.Lock()
	delete(h.young, w)
	ended := w.ended
	h.mu.Unlock()
	if ended == nil {
		return
	}
	w.conn.SetReadDeadline(time.Unix(1, 0)) // an error shows at the next read
	<-ended
	w.conn.SetReadDeadline(time.Time{})
}

// unread reports whether a socket has octets that nobody has read yet.
func unread(c net.Conn) (yes bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) { // fails if the socket is closed already
		n, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		yes = err == nil && n > 0
	})
	return yes
}

// hungUp reports whether both directions of the socket are closed.
func hungUp(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}
