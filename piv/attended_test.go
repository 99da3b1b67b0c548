package piv

import (
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestTriesLeft counts the tries of a PIN without using one up, whether the card knows it or not.
func TestTriesLeft(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		firmware [3]byte
		known    int // what is told of a PIN that the card knows
	}{{[3]byte{5, 7, 1}, 3}, {[3]byte{5, 2, 4}, token.TriesUnknown}} {
		b := newBench(t, pivtest.Config{Version: test.firmware}, Options{})
		ctx := t.Context()
		want := func(what string, n int) {
			t.Helper()
			for range 2 {
				if left, err := b.token.TriesLeft(ctx); err != nil || left != n {
					t.Errorf("%v: %s: %d left, %v; want %d", test.firmware, what, left, err, n)
				}
			}
		}
		b.unlock(t)
		want("unlocked", test.known)
		if err := b.token.Lock(ctx); err != nil {
			t.Fatal(err)
		}
		want("locked", 3)
		wantTries(t, "wrong PIN", b.token.Unlock(ctx, []byte("000000")), token.ErrAuthWrong, 2)
		want("after a wrong one", 2)
		wantTries(t, "wrong PIN", b.token.Unlock(ctx, []byte("000001")), token.ErrAuthWrong, 1)
		want("after two", 1)
		if err := b.token.UnlockLastTry(ctx, []byte("000002")); err == nil {
			t.Error("a wrong PIN was taken")
		}
		if left, err := b.token.TriesLeft(ctx); left != 0 || !errors.Is(err, token.ErrLockedOut) {
			t.Errorf("blocked: %d, %v", left, err)
		}
		b.reader.Unplug()
		if _, err := b.token.TriesLeft(ctx); !errors.Is(err, token.ErrAbsent) {
			t.Errorf("unplugged: %v", err)
		}
	}
}

// TestTouches says how many touches an operation may take, before it does.
func TestTouches(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	b.unlock(t)
	for _, test := range []struct {
		use   token.Use
		touch token.TouchPolicy
		want  int
	}{
		{token.UseSign, token.TouchNever, 0}, {token.UseSign, token.TouchCached, 1}, {token.UseSign, token.TouchAlways, 1},
		{token.UseAgree, token.TouchNever, 0}, {token.UseAgree, token.TouchCached, 1}, {token.UseAgree, token.TouchAlways, 2},
	} {
		policy := token.Policy{PIN: token.PINOnce, Touch: test.touch}
		key, ok := b.made(t, token.P256, test.use, policy).(token.Attended)
		if !ok || key.Touches() != test.want || key.Policy() != policy {
			t.Errorf("%s, %s: %d touches, policy %+v", test.use, test.touch, key.Touches(), key.Policy())
		}
	}
}
