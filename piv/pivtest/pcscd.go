package pivtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// vpcdDriver is where the package vsmartcard-vpcd puts the driver of the virtual reader.
const vpcdDriver = "/usr/lib/pcsc/drivers/serial/libifdvpcd.so"

// pcscdSlots is how many readers one vpcd driver makes.
const pcscdSlots = 2

// startTime bounds how long pcscd may take to start, and to notice a card.
const startTime = 30 * time.Second

// Pcscd is a private instance of the real pcscd with two virtual readers. It has a socket and
// configuration of its own and does not touch the machine's pcscd, if there is one. A machine
// without the packages fails the test; nothing is skipped. It cannot unplug a reader, only a card.
// Its methods are called by one goroutine at a time.
type Pcscd struct {
	// Socket is the path of the socket, short enough for sun_path.
	Socket string

	tb       testing.TB
	dir      string
	port     int // of the first reader; the second has the next one
	listener *net.UnixListener
	cancel   context.CancelFunc
	exited   chan struct{}
	log      *bytes.Buffer // read after exited is closed
	links    [pcscdSlots]*link
}

// link is a card in a virtual reader.
type link struct {
	conn *net.TCPConn
	wg   sync.WaitGroup
}

// StartPcscd starts a pcscd that lives until the test ends. It answers when StartPcscd returns.
func StartPcscd(tb testing.TB) *Pcscd {
	tb.Helper()
	dir, err := os.MkdirTemp("", "pcscd") // tb.TempDir may be too long for a socket's path
	if err != nil {
		tb.Fatal(err)
	}
	p := &Pcscd{Socket: filepath.Join(dir, "pcscd.comm"), tb: tb, dir: dir}
	tb.Cleanup(func() {
		p.Kill()
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	p.Start()
	return p
}

// Env returns the environment variable by which libpcsclite finds this pcscd.
func (p *Pcscd) Env() string { return "PCSCLITE_CSOCK_NAME=" + p.Socket }

// ReaderName returns the name of reader 0 or 1.
func (p *Pcscd) ReaderName(slot int) string {
	return fmt.Sprintf("Yubico YubiKey Virtual 00 %02X", slot)
}

// Insert puts a card into reader 0 or 1 and returns when pcscd has noticed it.
func (p *Pcscd) Insert(slot int, device Device) {
	p.tb.Helper()
	p.Remove(slot)
	conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", p.port+slot))
	if err != nil {
		p.tb.Fatal(err)
	}
	l := &link{conn: conn.(*net.TCPConn)}
	l.wg.Go(func() {
		serveVPCD(l.conn, device) // ends with the connection, whoever ends it
		l.conn.Close()
	})
	p.links[slot] = l
	p.awaitCard(slot, true)
}

// Remove takes the card out and returns when pcscd has noticed it.
func (p *Pcscd) Remove(slot int) {
	p.tb.Helper()
	if p.Pull(slot) {
		p.awaitCard(slot, false)
	}
}

// Pull takes the card out and does not wait: for up to 0.4 seconds pcscd believes it is there.
// It returns whether there was a card.
func (p *Pcscd) Pull(slot int) bool {
	l := p.links[slot]
	if l == nil {
		return false
	}
	l.conn.Close()
	l.wg.Wait()
	p.links[slot] = nil
	return true
}

// Kill ends the process at once. The cards lose their power.
func (p *Pcscd) Kill() {
	for slot := range p.links {
		p.Pull(slot)
	}
	if p.exited == nil {
		return
	}
	p.cancel()
	<-p.exited
	p.exited = nil
	p.listener.Close() // removes the socket
}

// Start starts pcscd again after Kill, at the same socket, with empty readers.
func (p *Pcscd) Start() {
	p.tb.Helper()
	program := p.find("/usr/sbin/pcscd", "pcscd")
	p.find(vpcdDriver, "vsmartcard-vpcd")
	p.configure()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.Socket, Net: "unix"})
	if err != nil {
		p.tb.Fatal(err)
	}
	p.listener = listener
	file, err := listener.File()
	if err != nil {
		p.tb.Fatal(err)
	}
	defer file.Close()
	p.run(program, file)
	p.awaitReaders()
}

func (p *Pcscd) find(path, pkg string) string {
	p.tb.Helper()
	if _, err := os.Stat(path); err != nil {
		p.tb.Fatalf("%s is needed (Debian and Ubuntu: apt-get install %s): %v", path, pkg, err)
	}
	return path
}

// configure writes reader.conf with two free ports in a row.
func (p *Pcscd) configure() {
	p.tb.Helper()
	port, err := freePorts()
	if err != nil {
		p.tb.Fatal(err)
	}
	p.port = port
	conf := fmt.Sprintf("FRIENDLYNAME \"Yubico YubiKey Virtual\"\nDEVICENAME /dev/null:0x%X\nLIBPATH %s\nCHANNELID 0x%X\n",
		port, vpcdDriver, port)
	dir := filepath.Join(p.dir, "conf")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "reader.conf"), []byte(conf), 0o600)); err != nil {
		p.tb.Fatal(err)
	}
}

// freePorts returns the first of two ports in a row that nobody listens on. They are below
// the range from which outgoing connections get theirs.
func freePorts() (int, error) {
	var err error
	for range 100 {
		port := 12000 + 2*rand.IntN(10000)
		if err = errors.Join(tryPort(port), tryPort(port+1)); err == nil {
			return port, nil
		}
	}
	return 0, err
}

func tryPort(port int) error {
	listener, err := net.Listen("tcp4", fmt.Sprintf(":%d", port)) // vpcd listens on all addresses
	if err != nil {
		return err
	}
	return listener.Close()
}

// run starts the process with the listening socket as systemd would pass it: pcscd's own
// socket has a fixed path. LISTEN_PID must be its pid, hence the shell that becomes pcscd.
func (p *Pcscd) run(program string, socket *os.File) {
	p.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.exited, p.log = cancel, make(chan struct{}), new(bytes.Buffer)
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`,
		program, "--foreground", "--config", filepath.Join(p.dir, "conf"))
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	exited := p.exited
	go func() {
		runtime.LockOSThread() // Pdeathsig acts when the thread that started the process ends
		defer runtime.UnlockOSThread()
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // killed: the error says nothing
		}
	}()
	if err := <-started; err != nil {
		p.tb.Fatalf("start pcscd: %v", err)
	}
}

// awaitReaders returns when pcscd lists its readers, which means that their ports are open.
func (p *Pcscd) awaitReaders() {
	p.tb.Helper()
	p.await("list its readers", func(states []byte) bool {
		_, ok := readerState(states, p.ReaderName(pcscdSlots-1))
		return ok
	})
}

func (p *Pcscd) awaitCard(slot int, present bool) {
	p.tb.Helper()
	p.await("notice the card", func(states []byte) bool {
		state, _ := readerState(states, p.ReaderName(slot))
		return state&statePresent != 0 == present
	})
}

// await watches the readers' states until ok, or fails the test with what pcscd wrote.
func (p *Pcscd) await(what string, ok func(states []byte) bool) {
	p.tb.Helper()
	watched := make(chan error, 1)
	go func() { watched <- watch(p.Socket, ok) }() // ends with pcscd's socket
	var err error
	select {
	case err = <-watched:
	case <-p.exited:
		err = errors.New("it ended")
	}
	if err == nil {
		return
	}
	p.cancel()
	<-p.exited
	p.tb.Fatalf("pcscd does not %s: %v (without root it needs the directory /run/pcscd)\n%s", what, err, p.log)
}

// watch is a client of pcscd that returns when the readers' states are as wanted.
func watch(socket string, ok func(states []byte) bool) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(startTime)); err != nil {
		return err
	}
	version := make(body, 12)
	version.setWord(0, protocolMajor)
	version.setWord(4, protocolMinor)
	if err := request(conn, CommandVersion, version, 12); err != nil {
		return err
	}
	states := make([]byte, maxReaders*readerStateSize)
	for {
		if err := request(conn, CommandWaitChange, nil, 0); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, states); err != nil {
			return err
		}
		if ok(states) {
			return nil
		}
		if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
			return err
		}
	}
}

// request sends a request and reads a reply of n bytes into the body.
func request(conn net.Conn, command Command, b body, n int) error {
	header := binary.NativeEndian.AppendUint32(nil, uint32(len(b)))
	header = binary.NativeEndian.AppendUint32(header, uint32(command))
	if _, err := conn.Write(append(header, b...)); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, b[:n])
	return err
}

// readerState finds a reader in the list by its name.
func readerState(states []byte, name string) (uint32, bool) {
	for ; len(states) >= readerStateSize; states = states[readerStateSize:] {
		found, _, _ := bytes.Cut(states[:readerNameSize], []byte{0})
		if string(found) == name {
			return body(states).word(readerNameSize + 4), true
		}
	}
	return 0, false
}
