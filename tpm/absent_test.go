package tpm

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// TestMayBeAbsent opens a TPM that is not there, and uses it when it is.
func TestMayBeAbsent(t *testing.T) {
	t.Parallel()
	simulator := tpmtest.Start(t)
	real, err := parseDevice(simulator.Device())
	if err != nil {
		t.Fatal(err)
	}
	var there atomic.Bool
	dial := func(ctx context.Context) (stream, error) {
		if !there.Load() {
			return nil, &net.OpError{Op: "dial", Err: errors.New("no TPM")}
		}
		return real(ctx)
	}
	if _, err := Open(t.Context(), Options{dial: dial}); !errors.Is(err, token.ErrAbsent) {
		t.Fatalf("Open: %v, want ErrAbsent", err)
	}
	tok, err := Open(t.Context(), Options{dial: dial, MayBeAbsent: true})
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if s := tok.Info().State; s != token.StateAbsent {
		t.Errorf("state is %q", s)
	}
	request := token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign}
	if _, err := tok.Generate(t.Context(), request); !errors.Is(err, token.ErrAbsent) {
		t.Errorf("Generate: %v, want ErrAbsent", err)
	}
	there.Store(true)
	if _, err := tok.Generate(t.Context(), request); err != nil {
		t.Errorf("Generate: %v", err)
	}
	if s := tok.Info().State; s != token.StateReady {
		t.Errorf("state is %q", s)
	}
}
