package hsm

import (
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestTriesLeft reads from the token's flags that one try is left, and from nothing else.
func TestTriesLeft(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	fake.Do(t, "tries", "3")
	tok := openLocked(t, newTestModule(t, fake.Setup), fake.Setup)
	for i, want := range []int{token.TriesUnknown, token.TriesUnknown, 1} {
		if left, err := tok.TriesLeft(t.Context()); err != nil || left != want {
			t.Errorf("after %d wrong PINs: %d left, %v; want %d", i, left, err, want)
		}
		if err := tok.Unlock(t.Context(), wrongPIN(i)); err == nil {
			t.Error("a wrong PIN was taken")
		}
	}
	if left, err := tok.TriesLeft(t.Context()); left != 0 || !errors.Is(err, token.ErrLockedOut) {
		t.Errorf("blocked: %d, %v", left, err)
	}
	if n := fake.Logins(t); n != 3 {
		t.Errorf("%d logins, want 3", n)
	}
}
