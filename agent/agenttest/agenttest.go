// Package agenttest runs an agent in a test's own process, so that backends can measure
// what the way through the socket costs.
package agenttest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/mesh-agent/mesh-agent/agent"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/token"
)

// Serve runs an agent with these tokens and an empty store until the test ends, and
// returns its Mesh socket. The agent's keyring closes the tokens.
func Serve(tb testing.TB, tokens ...token.Token) (socket string) {
	tb.Helper()
	return ServeWith(tb, agent.Config{}, tokens...)
}

// ServeWith is Serve with a configuration, whose Keyring it makes.
func ServeWith(tb testing.TB, config agent.Config, tokens ...token.Token) (socket string) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	records, err := store.Open(filepath.Join(dir, "state"))
	if err != nil {
		tb.Fatal(err)
	}
	ring, err := keyring.Open(records, tokens...)
	if err != nil {
		tb.Fatal(err)
	}
	socket = filepath.Join(dir, "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	config.Keyring = ring
	go func() { done <- agent.New(config).Serve(ctx, listener, nil) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
		if err := ring.Close(); err != nil {
			tb.Error(err)
		}
	})
	return socket
}
