package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// stream is an open connection to a TPM: octets of commands in, octets of responses out.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

type dialer func(context.Context) (stream, error)

// errDevice says that Options.Device names no TPM.
var errDevice = errors.New("none of device:/PATH, swtpm:PATH and tcp:HOST:PORT")

// parseDevice reads Options.Device. Errors: errDevice.
func parseDevice(device string) (dialer, error) {
	kind, rest, _ := strings.Cut(device, ":")
	switch {
	case kind == "swtpm" && rest != "":
		return func(ctx context.Context) (stream, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", rest)
		}, nil
	case kind == "tcp":
		if host, port, err := net.SplitHostPort(rest); err == nil && host != "" && port != "" {
			return func(ctx context.Context) (stream, error) { return dialSimulator(ctx, rest) }, nil
		}
	case kind == "device" && filepath.IsAbs(rest):
		return func(context.Context) (stream, error) { return openDeviceFile(rest) }, nil
	case filepath.IsAbs(device):
		return func(context.Context) (stream, error) { return openDeviceFile(device) }, nil
	}
	return nil, fmt.Errorf("tpm: device %q is %w", device, errDevice)
}

// simulatorStream frames commands and responses as Microsoft's TPM simulator has it on its
// TPM command port (TpmTcpProtocol.h): a command after its code 8, locality and length, a response
// after its length and before four octets of status.
type simulatorStream struct {
	net.Conn
	left uint32 // octets of the response that are not read yet
}

func dialSimulator(ctx context.Context, address string) (stream, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &simulatorStream{Conn: c}, nil
}

// Write sends one whole command.
func (s *simulatorStream) Write(b []byte) (int, error) {
	const sendCommand, locality = 8, 0
	frame := binary.BigEndian.AppendUint32(nil, sendCommand)
	frame = append(frame, locality)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(b)))
	if _, err := s.Conn.Write(append(frame, b...)); err != nil {
		return 0, err
	}
	s.left = 0
	return len(b), nil
}

// Read reads from one response.
func (s *simulatorStream) Read(b []byte) (int, error) {
	var word [4]byte
	if s.left == 0 {
		if _, err := io.ReadFull(s.Conn, word[:]); err != nil {
			return 0, err
		}
		if s.left = binary.BigEndian.Uint32(word[:]); s.left == 0 || s.left > maxResponse {
			return 0, fmt.Errorf("response of %d octets", s.left)
		}
	}
	n, err := s.Conn.Read(b[:min(len(b), int(s.left))])
	s.left -= uint32(n)
	if s.left == 0 && err == nil {
		if _, err = io.ReadFull(s.Conn, word[:]); err == nil && word != [4]byte{} {
			err = fmt.Errorf("status %x after the response", word)
		}
	}
	return n, err
}

// deviceFile is a TPM device of Linux, opened non-blocking: a command is written at
// once and the file becomes readable when the response is there (tpm-dev-common.c).
// Until then a read returns no octets, which os.File would take for the end of the file.
type deviceFile struct {
	*os.File
	raw syscall.RawConn
}

func openDeviceFile(path string) (stream, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return newDeviceFile(fd, path)
}

func newDeviceFile(fd int, path string) (*deviceFile, error) {
	f := os.NewFile(uintptr(fd), path)
	if err := f.SetDeadline(time.Time{}); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is no TPM device: %w", path, err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &deviceFile{f, raw}, nil
}

// Read waits until the response is there or the deadline has passed. The device
// gives a whole response to one read.
func (f *deviceFile) Read(b []byte) (n int, err error) {
	waitErr := f.raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b)
		return err != syscall.EAGAIN && err != syscall.EINTR && (n != 0 || err != nil)
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return max(n, 0), err
}

// linkError says that the TPM could not be reached, broke off, talked nonsense or
// did not answer in time.
type linkError struct {
	op  string
	err error
}

func (e *linkError) Error() string { return e.op + ": " + e.err.Error() }
func (e *linkError) Unwrap() error { return e.err }

// broken is a link error that connecting again may mend.
func broken(op string, err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &linkError{op, err}
	}
	return &linkError{op, fmt.Errorf("%w: %w", errStale, err)}
}

// link sends commands over a stream, one at a time.
type link struct {
	stream  stream
	timeout time.Duration
	life    context.Context // of the operation; its end ends the command in flight
	stop    func() bool     // ends the watch of life; false if life has ended
	failed  error           // the first failure: what comes after it may answer an earlier command
	buffer  [maxResponse]byte
}

func newLink(life context.Context, s stream, timeout time.Duration) *link {
	l := &link{stream: s, timeout: timeout}
	l.watch(life)
	return l
}

// watch ends the command in flight when life ends, until stop.
func (l *link) watch(life context.Context) {
	l.life = life
	l.stop = context.AfterFunc(life, func() { l.stream.SetDeadline(past()) })
}

func past() time.Time { return time.Unix(1, 0) }

func (l *link) close() {
	l.stop()
	l.stream.Close()
}

var _ transport.TPM = (*link)(nil)

// maxResponse is TPM2_MAX_RESPONSE_SIZE, 4096 octets (TCG PC Client Platform TPM Profile).
const maxResponse = 4096

const headerLen = 10 // tag, size, response code

// Send gives one command and returns its response. It repeats a command that the
// TPM was too busy to start (TPM 2.0 Part 1, 39.4), within the timeout.
func (l *link) Send(command []byte) ([]byte, error) {
	deadline := time.Now().Add(l.timeout)
	for wait := time.Millisecond; ; wait *= 2 {
		response, err := l.exchange(command, deadline)
		if err != nil || !busy(response) {
			return response, err
		}
		if time.Now().Add(wait).After(deadline) || wait > maxBusyWait {
			return response, nil
		}
		select {
		case <-time.After(wait):
		case <-l.life.Done():
			return nil, broken("wait for busy TPM", l.life.Err())
		}
	}
}

const maxBusyWait = time.Second

func busy(response []byte) bool {
	switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
	case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		return true
	}
	return false
}

func (l *link) exchange(command []byte, deadline time.Time) ([]byte, error) {
	if l.failed != nil {
		return nil, l.failed
	}
	response, err := l.roundTrip(command, deadline)
	l.failed = err
	return response, err
}

func (l *link) roundTrip(command []byte, deadline time.Time) ([]byte, error) {
	if err := l.stream.SetDeadline(deadline); err != nil {
		return nil, broken("set deadline", err)
	}
	if l.life.Err() != nil { // perhaps before the deadline was set
		l.stream.SetDeadline(past())
	}
	if _, err := l.stream.Write(command); err != nil {
		return nil, broken("send command", err)
	}
	response, err := l.receive()
	if err != nil {
		return nil, broken("receive response", err)
	}
	return response, nil
}

// receive reads one response, which a device gives in one piece and a socket in any.
func (l *link) receive() ([]byte, error) {
	n, err := io.ReadAtLeast(l.stream, l.buffer[:], headerLen)
	if err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(l.buffer[2:])
	if size < headerLen || size > maxResponse || uint32(n) > size {
		return nil, fmt.Errorf("response of %d octets with size %d", n, size)
	}
	if _, err := io.ReadFull(l.stream, l.buffer[n:size]); err != nil {
		return nil, err
	}
	return append([]byte(nil), l.buffer[:size]...), nil
}
