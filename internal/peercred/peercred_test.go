package peercred

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestOf(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	want := Credentials{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: int32(os.Getpid())}
	if got, err := Of(server); err != nil || got != want {
		t.Errorf("Of = %+v, %v; want %+v", got, err, want)
	}
}

func TestOfRefuses(t *testing.T) {
	t.Parallel()
	pipe, other := net.Pipe()
	defer other.Close()
	defer pipe.Close()
	if got, err := Of(pipe); !errors.Is(err, ErrNotUnix) || got != (Credentials{}) {
		t.Errorf("a pipe: %+v, %v", got, err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	if got, err := Of(tcp); !errors.Is(err, ErrNotUnix) || got != (Credentials{}) {
		t.Errorf("TCP: %+v, %v", got, err)
	}
}

func TestOfClosed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	if got, err := Of(client); err == nil || got != (Credentials{}) {
		t.Errorf("a closed socket: %+v, %v", got, err)
	}
}
