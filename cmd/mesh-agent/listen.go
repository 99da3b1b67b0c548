package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
)

// sockets are the two listeners of the daemon; either may be nil.
type sockets struct {
	mesh, ssh net.Listener
}

// Close closes both, which removes the files of those that this program made.
func (s sockets) Close() error {
	var errs []error
	for _, l := range []net.Listener{s.mesh, s.ssh} {
		if l == nil {
			continue
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// address returns the whole path of a socket, "" if there is none.
func address(l net.Listener) string {
	if l == nil {
		return ""
	}
	path, err := filepath.Abs(l.Addr().String())
	if err != nil { // no working directory any more
		return l.Addr().String()
	}
	return path
}

// activatedSockets takes the sockets that the service manager passed, if it did. One that
// is called "ssh", by its unit or by its file, speaks the SSH agent protocol alone.
func activatedSockets() (s sockets, ok bool, err error) {
	named, err := activation.ListenersWithNames()
	if err != nil {
		return s, false, fmt.Errorf("take sockets of the service manager: %w", err)
	}
	for name, listeners := range named {
		for _, l := range listeners {
			if l == nil || l.Addr().Network() != "unix" {
				err = errors.Join(err, fmt.Errorf("socket %q of the service manager is not a unix stream socket", name))
				continue
			}
			place := &s.mesh
			if name == "ssh" || (name != "agent" && filepath.Base(address(l)) == "ssh.sock") {
				place = &s.ssh
			}
			if *place != nil {
				err = errors.Join(err, fmt.Errorf("socket %s of the service manager has the same part as %s", address(l), address(*place)),
					l.Close())
				continue
			}
			*place = l
		}
	}
	if err != nil {
		return sockets{}, false, errors.Join(err, s.Close())
	}
	return s, len(named) != 0, nil
}

// openSockets makes the two sockets.
func openSockets(meshPath, sshPath string) (s sockets, err error) {
	if s.mesh, err = listen(meshPath); err != nil {
		return s, err
	}
	if s.ssh, err = listen(sshPath); err != nil {
		return sockets{}, errors.Join(err, s.Close())
	}
	return s, nil
}

const longestSocketPath = 107 // sun_path of unix(7), less its zero

func errSocketPath(path string) error {
	return hint(fmt.Errorf("the path of socket %s is longer than %d octets", path, longestSocketPath), "choose a shorter one")
}

// listen makes a socket that only this user may connect to. It takes the place of a
// file that a dead agent left, never that of a living one.
func listen(path string) (net.Listener, error) {
	if len(path) > longestSocketPath {
		return nil, errSocketPath(path)
	}
	if err := prepareFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// prepareFolder makes the folder of a socket if it is missing and refuses one in which
// others could put a socket of their own.
func prepareFolder(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create socket folder: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("check socket folder: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return hint(fmt.Errorf("others may write to the socket folder %s (mode %04o)", dir, mode), "chmod go-w "+dir+", or choose a folder of your own")
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return hint(fmt.Errorf("the socket folder %s belongs to user %d", dir, owner), "choose a folder of your own")
	}
	return nil
}

// removeStale removes a socket on which nobody answers.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("check socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return hint(fmt.Errorf("%s is there and is not a socket", path), "choose another path")
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return hint(fmt.Errorf("another agent answers at %s", path), "stop it, or choose another path by --socket and --ssh-socket")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("check socket: %w", err)
	}
	return os.Remove(path)
}
