package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// manager plays the service manager of one daemon, which tells it when it is ready
// (sd_notify(3)).
type manager struct {
	conn *net.UnixConn
	path string
}

// newManager listens in a folder.
func newManager(dir string) (*manager, error) {
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	return &manager{conn, path}, err
}

// env is the environment variable for the daemon.
func (m *manager) env() string { return "NOTIFY_SOCKET=" + m.path }

// ready waits until the daemon is ready or has ended.
func (m *manager) ready(ended <-chan struct{}) error {
	heard := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		n, err := m.conn.Read(buf) // until close at the latest
		if err == nil && string(buf[:n]) != "READY=1" {
			err = fmt.Errorf("notified %q", buf[:n])
		}
		heard <- err
	}()
	select {
	case err := <-heard:
		return err
	case <-ended:
		return errors.New("it ended")
	}
}

func (m *manager) close() error { return errors.Join(m.conn.Close(), os.Remove(m.path)) }
