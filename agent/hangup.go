package agent

import (
	"context"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// hangupAfter is how long an operation runs before anybody looks whether its client
// is still there. Most are done by then and pay for a timer only.
const hangupAfter = 5 * time.Millisecond

// watchHangup calls cancel when the peer of conn has gone while a request of its is
// worked on. It reads nothing: requests that a client sent ahead stay in the socket. A
// client that has closed only its sending side still gets its answers. The
// returned function ends the watch and waits for it; nobody may read conn before.
func watchHangup(conn net.Conn, cancel context.CancelFunc) (stop func()) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return func() {}
	}
	var watch sync.WaitGroup
	watch.Add(1)
	timer := time.AfterFunc(hangupAfter, func() {
		defer watch.Done()
		raw, err := sc.SyscallConn()
		if err != nil {
			return
		}
		// Read waits for the next event of the socket each time hungUp says false, and ends
		// with an error at the read deadline.
		if err := raw.Read(hungUp); err == nil {
			cancel()
		}
	})
	return func() {
		if timer.Stop() {
			return
		}
		conn.SetReadDeadline(time.Unix(1, 0)) // an error shows at the next read
		watch.Wait()
		conn.SetReadDeadline(time.Time{})
	}
}

// hungUp reports whether both directions of the socket are closed.
func hungUp(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}
