package tpm

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// pair is a device file whose other end the test holds.
func pair(t *testing.T) (*deviceFile, *os.File) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	there := os.NewFile(uintptr(fds[1]), "other end")
	t.Cleanup(func() { there.Close() })
	here, err := newDeviceFile(fds[0], "device")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	return here, there
}

// TestDeviceFile gives commands over a file that is read as a TPM device is: it has nothing
// to read until the response is there.
func TestDeviceFile(t *testing.T) {
	t.Parallel()
	here, there := pair(t)
	l := newLink(t.Context(), here, time.Minute)
	go func() {
		command := make([]byte, maxResponse)
		for range 3 {
			n, err := there.Read(command)
			if err != nil || n != headerLen {
				t.Errorf("other end read %d octets: %v", n, err)
			}
			there.Write(response(tpm2.TPMRCSuccess))
		}
	}()
	for range 3 {
		got, err := l.Send(make([]byte, headerLen))
		if err != nil || string(got) != string(response(tpm2.TPMRCSuccess)) {
			t.Fatalf("Send: %x, %v", got, err)
		}
	}
}

func TestDeviceFileDeadline(t *testing.T) {
	t.Parallel()
	here, _ := pair(t)
	l := newLink(t.Context(), here, time.Millisecond)
	if _, err := l.Send(make([]byte, headerLen)); !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, errStale) {
		t.Errorf("Send: %v, want ErrDeadlineExceeded and no second try", err)
	}
}

// TestLateResponse has a response come after its time: the next command must not take it for its own.
func TestLateResponse(t *testing.T) {
	t.Parallel()
	here, there := pair(t)
	l := newLink(t.Context(), here, time.Millisecond)
	if _, err := l.Send(make([]byte, headerLen)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Send: %v, want ErrDeadlineExceeded", err)
	}
	if _, err := there.Write(response(tpm2.TPMRCSuccess)); err != nil {
		t.Fatal(err)
	}
	l.timeout = time.Minute
	if got, err := l.Send(make([]byte, headerLen)); err == nil {
		t.Errorf("Send after a timeout returned %x", got)
	}
}
