package tpm

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// TestCancellations has very many operations, of which more keys take part than there is room for, end when their callers
// feel like it. Afterwards nothing is in the TPM but what the connection knows of.
func TestCancellations(t *testing.T) {
	t.Parallel()
	const workers, each = 8, 250
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	setPIN(t, tok, nil, testPIN())
	operations := operations(t, tok)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(20*time.Millisecond))
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
	wantOwnHandles(t, tok)
}

// operations returns things to do with a token that is unlocked.
func operations(t *testing.T, tok *Token) (all []func(context.Context) error) {
	t.Helper()
	for _, open := range []token.OpenRequest{
		generate(t, tok, token.P256, token.UseSign), generate(t, tok, token.P384, token.UseSign),
		generatePIN(t, tok, token.P256, token.UseSign), generatePIN(t, tok, token.P384, token.UseSign),
	} {
		k := openKey(t, tok, open).(token.Signer)
		all = append(all, func(ctx context.Context) error {
			_, err := k.Sign(ctx, tokentest.DefaultSignRequest(k.Public().Algorithm, []byte("message")))
			return err
		}, func(ctx context.Context) error {
			_, err := tok.Open(ctx, open)
			return err
		})
	}
	for _, req := range []token.SealRequest{{PIN: token.PINOnce}, {PCRs: "sha256:16"}} {
		req.Secret = []byte("secret")
		sealed := seal(t, tok, req)
		all = append(all, func(ctx context.Context) error {
			_, err := tok.Unseal(ctx, token.UnsealRequest{Blob: sealed.Blob})
			return err
		})
		if sealed.Recovery != nil {
			all = append(all, func(ctx context.Context) error {
				_, err := tok.Unseal(ctx, token.UnsealRequest{Blob: sealed.Blob, Recovery: sealed.Recovery})
				return err
			})
		}
	}
	return append(all, func(ctx context.Context) error { return tok.Unlock(ctx, testPIN()) })
}

// wantOwnHandles wants the objects and sessions in the TPM to be those that the connection knows.
func wantOwnHandles(t *testing.T, tok *Token) {
	t.Helper()
	_, err := do(t.Context(), tok, "look", func(d *device) (struct{}, error) {
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			handles, err := d.handles(first)
			if err != nil {
				return struct{}{}, err
			}
			for _, h := range handles {
				if !d.owns(h) {
					t.Errorf("handle 0x%x is nobody's", uint32(h))
				}
			}
		}
		return struct{}{}, nil
	})
	if err != nil {
		t.Error(err)
	}
}
