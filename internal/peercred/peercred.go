// Package peercred asks the kernel who is at the other end of a Unix socket. It does
// not decide whether they may be there, and it knows nothing of process names: a
// process number may have been given to another program by the time it is looked at.
package peercred

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// Credentials are those of the process that connected, as they were when it did.
type Credentials struct {
	UID uint32
	GID uint32
	PID int32
}

// ErrNotUnix says that a connection is not a Unix socket, so nobody vouches for its peer.
var ErrNotUnix = errors.New("not a unix socket")

// Of returns the credentials of the peer of conn (SO_PEERCRED, unix(7)). Errors:
// ErrNotUnix, errors.ErrUnsupported on systems without SO_PEERCRED.
func Of(conn net.Conn) (Credentials, error) {
	if _, ok := conn.RemoteAddr().(*net.UnixAddr); !ok {
		return Credentials{}, fmt.Errorf("read peer credentials: %w", ErrNotUnix)
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return Credentials{}, fmt.Errorf("read peer credentials: %w", ErrNotUnix)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Credentials{}, fmt.Errorf("read peer credentials: %w", err)
	}
	var found Credentials
	var inner error
	if err := raw.Control(func(fd uintptr) { found, inner = ofDescriptor(int(fd)) }); err != nil {
		return Credentials{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if inner != nil {
		return Credentials{}, fmt.Errorf("read peer credentials: %w", inner)
	}
	return found, nil
}
