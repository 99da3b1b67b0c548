package hsm

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// Very many operations end when their callers feel like it. Afterwards no call is under way, no session was opened
// beyond those that there may be, and none was in use twice.
func TestCancellations(t *testing.T) {
	t.Parallel()
	const workers, each = 16, 200
	fake := hsmtest.NewFake(t)
	m := newTestModule(t, fake.Setup)
	tok := openUnlocked(t, m, fake.Setup)
	signer := signKeyFor(t, tok, token.P256)
	agreer := openFor(t, tok, token.P256, token.UseAgree).(token.PointAgreer)
	process, before := m.running(), fake.Opened(t) // of which those in which something was refused are closed
	operations := []func(context.Context) error{
		func(ctx context.Context) error { return signOnce(ctx, signer, token.Auth{}) },
		func(ctx context.Context) error {
			_, err := agreer.AgreePoint(ctx, token.AgreeRequest{Peer: keyshare.BasePoint(keyshare.P256).Bytes()})
			return err
		},
		func(ctx context.Context) error { return tok.Unlock(ctx, []byte(hsmtest.PIN)) },
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(5*time.Millisecond))
				err := operations[rand.N(len(operations))](ctx)
				cancel()
				if err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i, f := range operations {
		if err := f(t.Context()); err != nil {
			t.Errorf("operation %d afterwards: %v", i, err)
		}
	}
	for range cap(process.slots) { // each is given back when a call has ended
		process.slots <- struct{}{}
	}
	process.mu.Lock()
	defer process.mu.Unlock()
	if n := len(process.pending); n != 0 || m.running() != process {
		t.Errorf("%d calls are pending, in a process that was replaced: %v", n, m.running() != process)
	}
	if n := fake.Opened(t) - before; n > m.options.Sessions {
		t.Errorf("%d sessions were opened, want %d at most", n, m.options.Sessions)
	}
	if shared := fake.Shared(t); len(shared) != 0 {
		t.Errorf("in one session at once: %q", shared)
	}
}
