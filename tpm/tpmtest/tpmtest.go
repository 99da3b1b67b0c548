// Package tpmtest starts real software TPMs (swtpm) for tests. A machine without swtpm
// fails these tests; nothing is skipped. It does not talk to the TPM.
package tpmtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TPM is a swtpm process of a test. It has one data socket and serves one
// connection at a time: a second one waits until the first is closed.
// Its methods are called by one goroutine at a time.
type TPM struct {
	// Socket is the path of the data socket, short enough for sun_path.
	Socket string

	// address is HOST:PORT of the data socket instead, if not empty.
	address string

	tb     testing.TB
	dir    string
	cancel context.CancelFunc
	exited chan struct{}
	stderr *bytes.Buffer // read after exited is closed
}

// Start starts a fresh TPM that lives until the test ends. It answers when Start returns.
func Start(tb testing.TB) *TPM {
	tb.Helper()
	t := newTPM(tb)
	t.start()
	return t
}

// StartTCP is Start for a TPM whose data socket is a TCP port of the loopback interface.
func StartTCP(tb testing.TB) *TPM {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") // finds a free port
	if err != nil {
		tb.Fatal(err)
	}
	t := newTPM(tb)
	t.address = l.Addr().String()
	if err := l.Close(); err != nil {
		tb.Fatal(err)
	}
	t.start()
	return t
}

// newTPM returns a TPM that is not started yet and ends with the test.
func newTPM(tb testing.TB) *TPM {
	tb.Helper()
	dir, err := os.MkdirTemp("", "tpm") // tb.TempDir may be too long for a socket's path.
	if err != nil {
		tb.Fatal(err)
	}
	t := &TPM{Socket: filepath.Join(dir, "sock"), tb: tb, dir: dir}
	tb.Cleanup(func() {
		t.Kill()
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return t
}

// Device returns the name by which tpm.Open and $MESH_AGENT_TPM know this TPM.
func (t *TPM) Device() string {
	if t.address != "" {
		return "tcp:" + t.address
	}
	return "swtpm:" + t.Socket
}

// Reset resets the TPM without breaking its connection, by CMD_INIT on swtpm's control
// socket (swtpm_ioctls(3)). It then awaits TPM2_Startup.
func (t *TPM) Reset() {
	t.tb.Helper()
	c, err := net.Dial("unix", t.Socket+".ctrl")
	if err != nil {
		t.tb.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte{0, 0, 0, 2, 0, 0, 0, 0}); err != nil {
		t.tb.Fatal(err)
	}
	var result [4]byte
	if _, err := io.ReadFull(c, result[:]); err != nil || result != [4]byte{} {
		t.tb.Fatalf("reset: result %x, %v", result, err)
	}
}

// server is where swtpm listens, in its words and in those of net.Dial.
func (t *TPM) server() (option, network, address string) {
	if t.address == "" {
		return "type=unixio,path=" + t.Socket + ",mode=0600", "unix", t.Socket
	}
	host, port, err := net.SplitHostPort(t.address)
	if err != nil {
		t.tb.Fatal(err)
	}
	return "type=tcp,port=" + port + ",bindaddr=" + host, "tcp", t.address
}

// Kill ends the process at once, as a loss of power does. The TPM's state stays.
func (t *TPM) Kill() {
	if t.exited == nil {
		return
	}
	t.cancel()
	<-t.exited
	t.exited = nil
}

// Restart kills the process if it runs and starts it again on the same state: a TPM reset.
func (t *TPM) Restart() {
	t.tb.Helper()
	t.Kill()
	t.start()
}

// Replace kills the process and starts a factory-new TPM at the same socket.
func (t *TPM) Replace() {
	t.tb.Helper()
	t.Kill()
	if err := os.RemoveAll(t.state()); err != nil {
		t.tb.Fatal(err)
	}
	t.start()
}

func (t *TPM) state() string { return filepath.Join(t.dir, "state") }

func (t *TPM) start() {
	t.tb.Helper()
	program, err := exec.LookPath("swtpm")
	if err != nil {
		t.tb.Fatalf("swtpm is needed (Debian and Ubuntu: apt-get install swtpm): %v", err)
	}
	if err := os.MkdirAll(t.state(), 0o700); err != nil {
		t.tb.Fatal(err)
	}
	server, _, _ := t.server()
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel, t.exited, t.stderr = cancel, make(chan struct{}), new(bytes.Buffer)
	cmd := exec.CommandContext(ctx, program, "socket", "--tpm2",
		"--tpmstate", "dir="+t.state()+",mode=0600",
		"--server", server,
		"--ctrl", "type=unixio,path="+t.Socket+".ctrl,mode=0600",
		"--flags", "not-need-init,startup-clear")
	cmd.Stdout, cmd.Stderr = t.stderr, t.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig acts when the thread that started the process ends.
		defer runtime.UnlockOSThread()
		defer close(t.exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // killed: the error says nothing
		}
	}()
	if err := <-started; err != nil {
		t.tb.Fatalf("start swtpm: %v", err)
	}
	t.wait()
}

// wait returns when the socket takes connections.
func (t *TPM) wait() {
	t.tb.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	_, network, address := t.server()
	for {
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
			return
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EAGAIN) {
			t.tb.Fatalf("connect to swtpm: %v", err)
		}
		select {
		case <-t.exited:
			t.tb.Fatalf("swtpm ended: %s", t.stderr)
		case <-deadline.C:
			t.tb.Fatalf("swtpm does not listen: %v", err)
		case <-poll.C:
		}
	}
}
