package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// TestHangUp has an agent that hangs up, as one does on other users, or when it does not start.
func TestHangUp(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	var stderr bytes.Buffer
	code := run(context.Background(), []string{"key", "list", "--socket", path},
		world{strings.NewReader(""), io.Discard, &stderr, func(string) string { return "" }})
	if want := "mesh-agent: key list: the agent at " + path + " hung up\nhint: "; code != 1 || !strings.HasPrefix(stderr.String(), want) {
		t.Errorf("exit status %d, %q, want 1, %q", code, stderr.String(), want)
	}
}
