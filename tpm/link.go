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

// parseDevice reads Options.Device.
func parseDevice(device string) (dialer, error) {
	if path, ok := strings.CutPrefix(device, "swtpm:"); ok && path != "" {
		return func(ctx context.Context) (stream, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}, nil
	}
	if filepath.IsAbs(device) {
		return func(context.Context) (stream, error) { return openDeviceFile(device) }, nil
	}
	return nil, fmt.Errorf("tpm: device %q is neither the path of a device nor swtpm:PATH", device)
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
	life    context.Context // its end ends the command in flight
	buffer  [maxResponse]byte
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
	if err := l.stream.SetDeadline(deadline); err != nil {
		return nil, broken("set deadline", err)
	}
	stop := context.AfterFunc(l.life, func() { l.stream.SetDeadline(time.Unix(1, 0)) })
	defer stop()
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
