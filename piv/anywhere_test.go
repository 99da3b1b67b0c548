package piv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestAnywhere has each fault happen at each request to pcscd in turn that an operation makes, from finding the card on. The operation
// works or fails by a known error; then the next one works with the PIN, no try was used up, and nothing is held.
func TestAnywhere(t *testing.T) {
	t.Parallel()
	codes := []pivtest.Code{
		pivtest.InternalError, pivtest.InvalidValue, pivtest.NoSmartcard, pivtest.CommError, pivtest.ReaderUnavailable,
		pivtest.ResetCard, pivtest.RemovedCard, pivtest.UnpoweredCard,
	}
	faults := map[string]func(b *bench, cancel context.CancelFunc) pivtest.Code{
		"caller goes": func(_ *bench, cancel context.CancelFunc) pivtest.Code { cancel(); return pivtest.Success },
		"reset":       func(b *bench, _ context.CancelFunc) pivtest.Code { b.reader.ResetByOther(); return pivtest.Success },
		"reinserted":  func(b *bench, _ context.CancelFunc) pivtest.Code { b.reader.Insert(b.card); return pivtest.Success },
		"replugged": func(b *bench, _ context.CancelFunc) pivtest.Code {
			b.reader.Unplug()
			b.reader.Plug()
			return pivtest.Success
		},
		"pcscd restarts": func(b *bench, _ context.CancelFunc) pivtest.Code {
			done := make(chan struct{})
			go func() { // after the request that this happens at
				b.daemon.Stop()
				b.daemon.Start()
				close(done)
			}()
			b.restarted = done
			return pivtest.Success
		},
	}
	for _, code := range codes {
		faults[fmt.Sprintf("code %08x", uint32(code))] = func(*bench, context.CancelFunc) pivtest.Code { return code }
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pivtest.Config{}, Options{})
			k, created := b.signer(t, token.Policy{})
			agree := b.made(t, token.P256, token.UseAgree, token.Policy{}).(token.PointAgreer)
			auth := token.Auth{PIN: []byte(testPIN)}
			operations := map[string]func(context.Context) error{
				"sign": func(ctx context.Context) error { return sign(ctx, k, auth) },
				"agree": func(ctx context.Context) error {
					_, err := agree.AgreePoint(ctx, token.AgreeRequest{Peer: created.Public.Octets, Auth: auth})
					return err
				},
				"unlock": func(ctx context.Context) error { return b.token.Unlock(ctx, []byte(testPIN)) },
				"lock": func(ctx context.Context) error {
					err := b.token.Lock(ctx)
					if err == nil && !strings.HasPrefix(name, "code") && knowsPIN(b.card) { // a code may be a lie
						t.Error("locked, and the card knows the PIN")
					}
					return err
				},
			}
			for what, operation := range operations {
				for at := 1; b.faultAt(t, at, fault, operation); at++ {
					if t.Failed() {
						t.Fatalf("%s, request %d", what, at)
					}
					if err := operation(t.Context()); err != nil {
						t.Fatalf("%s after the fault at request %d: %v", what, at, err)
					}
					b.unlock(t)
				}
			}
		})
	}
}

// faultAt has the fault happen at the request of an operation that has this number, and reports whether there was one.
func (b *bench) faultAt(t *testing.T, at int, fault func(*bench, context.CancelFunc) pivtest.Code, operation func(context.Context) error) bool {
	t.Helper()
	b.idle(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex // guards n and over; held while the fault happens
	n, over := 0, false
	b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
		switch c.Command {
		case pivtest.CommandWaitChange, pivtest.CommandStopWaiting: // the watcher's
			return pivtest.Success
		}
		mu.Lock()
		defer mu.Unlock()
		if n++; n != at || over {
			return pivtest.Success
		}
		return fault(b, cancel)
	})
	err := operation(ctx)
	b.daemon.Inject(nil)
	mu.Lock()
	over = true
	reached := n >= at
	mu.Unlock()
	if b.restarted != nil {
		<-b.restarted
		b.restarted = nil
	}
	known := []error{token.ErrAbsent, token.ErrAuthNeeded, token.ErrFault, context.Canceled}
	if err != nil && !errors.Is(err, known[0]) && !errors.Is(err, known[1]) && !errors.Is(err, known[2]) && !errors.Is(err, known[3]) {
		t.Errorf("error %v", err)
	}
	if left, err := b.token.TriesLeft(t.Context()); err != nil || left != 3 {
		t.Errorf("%d tries left, %v", left, err)
	}
	b.idle(t)
	return reached
}
