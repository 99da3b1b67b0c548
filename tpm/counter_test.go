package tpm

import (
	"errors"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func openCounting(t *testing.T, s *tpmtest.TPM, dir string) *Token {
	t.Helper()
	tok, err := Open(t.Context(), Options{Device: s.Device(), StateDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestCounter(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, dir := tpmtest.Start(t), t.TempDir()
	tok := openCounting(t, s, dir)
	if _, err := tok.ReadCounter(ctx); !errors.Is(err, token.ErrNotFound) {
		t.Errorf("ReadCounter at first: %v, want ErrNotFound", err)
	}
	first, err := tok.IncrementCounter(ctx)
	if err != nil || first == 0 {
		t.Fatalf("IncrementCounter: %d, %v", first, err)
	}
	want := func(tok *Token, value uint64) {
		t.Helper()
		if got, err := tok.ReadCounter(ctx); got != value || err != nil {
			t.Errorf("ReadCounter: %d, %v, want %d", got, err, value)
		}
	}
	want(tok, first)
	if next, err := tok.IncrementCounter(ctx); next != first+1 || err != nil {
		t.Errorf("IncrementCounter: %d, %v, want %d", next, err, first+1)
	}
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	tok = openCounting(t, s, dir)
	want(tok, first+1)
	if err := tok.Close(); err != nil {
		t.Fatal(err)
	}
	// Another folder has a counter of its own.
	other := openCounting(t, s, t.TempDir())
	if _, err := other.IncrementCounter(ctx); err != nil {
		t.Errorf("second counter: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	tok = openCounting(t, s, dir)
	defer tok.Close()
	want(tok, first+1)
}

// TestCounterOnce runs the step twice, as happens when the connection broke.
func TestCounterOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tok := openCounting(t, tpmtest.Start(t), t.TempDir())
	defer tok.Close()
	first, err := tok.IncrementCounter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	index, err := tok.state.counter()
	if err != nil {
		t.Fatal(err)
	}
	step := &increment{index: index}
	for range 2 {
		if value, err := do(ctx, tok, "test", step.run); value != first+1 || err != nil {
			t.Errorf("step: %d, %v, want %d", value, err, first+1)
		}
	}
}

// TestCounterRedefined removes the counter and defines it again, as an attacker would who wants
// it lower.
func TestCounterRedefined(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tok := openCounting(t, tpmtest.Start(t), t.TempDir())
	defer tok.Close()
	var last uint64
	for range 3 {
		var err error
		if last, err = tok.IncrementCounter(ctx); err != nil {
			t.Fatal(err)
		}
	}
	index, err := tok.state.counter()
	if err != nil {
		t.Fatal(err)
	}
	_, err = do(ctx, tok, "redefine", func(d *device) (struct{}, error) {
		c, err := d.findCounter(index)
		if err != nil {
			return struct{}{}, err
		}
		owner := tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}
		if _, err := run(d, tpm2.NVUndefineSpace{AuthHandle: d.auth(owner, nil, clearly), NVIndex: c.NamedHandle}); err != nil {
			return struct{}{}, err
		}
		_, err = run(d, tpm2.NVDefineSpace{AuthHandle: d.auth(owner, nil, clearly), PublicInfo: tpm2.New2B(counterArea(index))})
		return struct{}{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.ReadCounter(ctx); !errors.Is(err, token.ErrNotFound) {
		t.Errorf("ReadCounter: %v, want ErrNotFound", err)
	}
	if value, err := tok.IncrementCounter(ctx); value <= last || err != nil {
		t.Errorf("the counter is %d after %d, %v", value, last, err)
	}
}

func TestCounterRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := tpmtest.Start(t)
	tok := openCounting(t, s, t.TempDir())
	defer tok.Close()
	index, err := tok.state.counter()
	if err != nil {
		t.Fatal(err)
	}
	_, err = do(ctx, tok, "define", func(d *device) (struct{}, error) {
		owner := tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}
		area := counterArea(index)
		area.Attributes.NT = tpm2.TPMNTOrdinary
		_, err := run(d, tpm2.NVDefineSpace{AuthHandle: d.auth(owner, nil, clearly), PublicInfo: tpm2.New2B(area)})
		return struct{}{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.ReadCounter(ctx); !errors.Is(err, token.ErrReplaced) {
		t.Errorf("index of another program: %v, want ErrReplaced", err)
	}
	if _, err := tok.IncrementCounter(ctx); !errors.Is(err, token.ErrReplaced) {
		t.Errorf("index of another program: %v, want ErrReplaced", err)
	}
	without, err := Open(ctx, Options{Device: tpmtest.Start(t).Device()})
	if err != nil {
		t.Fatal(err)
	}
	defer without.Close()
	if _, err := without.IncrementCounter(ctx); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("no state folder: %v, want ErrUnsupported", err)
	}
}

// TestCounterNoRoom has other programs take all memory of the TPM: an increment says so, and there is one when there is room.
func TestCounterNoRoom(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device(), StateDir: t.TempDir()})
	last, err := do(t.Context(), tok, "fill", func(d *device) (last nvCounter, err error) {
		// A TPM keeps some memory for counters.
		for kind, area := range []tpm2.TPMSNVPublic{{
			NameAlg: tpm2.TPMAlgSHA256, DataSize: 2048, Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true},
		}, counterArea(0)} {
			for n := 0; err == nil; n++ {
				area.NVIndex = tpm2.TPMHandle(ownerIndexes + kind<<16 + n)
				_, err = run(d, tpm2.NVDefineSpace{
					AuthHandle: d.auth(tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}, nil, clearly),
					PublicInfo: tpm2.New2B(area),
				})
			}
			if !errors.Is(err, tpm2.TPMRCNVSpace) {
				return last, err
			}
			err = nil
			last.Handle = area.NVIndex - 1
		}
		return d.findCounter(last.Handle)
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.IncrementCounter(t.Context()); !errors.Is(err, errNVFull) {
		t.Errorf("IncrementCounter without room: %v, want errNVFull", err)
	}
	_, err = do(t.Context(), tok, "make room", func(d *device) (struct{}, error) {
		_, err := run(d, tpm2.NVUndefineSpace{
			AuthHandle: d.auth(tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}, nil, clearly), NVIndex: last.NamedHandle,
		})
		return struct{}{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := tok.IncrementCounter(t.Context()); err != nil {
		t.Errorf("IncrementCounter with room: %d, %v", n, err)
	}
}
