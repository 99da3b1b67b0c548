package tpm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func TestRandom(t *testing.T) {
	t.Parallel()
	tok, err := Open(t.Context(), Options{Device: tpmtest.Start(t).Device()})
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	for _, n := range []int{1, 32, maxRandom} {
		one, err := tok.Random(t.Context(), n)
		if err != nil || len(one) != n {
			t.Fatalf("Random(%d): %d octets, %v", n, len(one), err)
		}
		two, err := tok.Random(t.Context(), n)
		if err != nil || n > 8 && bytes.Equal(one, two) {
			t.Errorf("Random(%d): the same twice, %v", n, err)
		}
	}
	for _, n := range []int{-1, 0, maxRandom + 1} {
		if _, err := tok.Random(t.Context(), n); !errors.Is(err, token.ErrBadRequest) {
			t.Errorf("Random(%d): %v", n, err)
		}
	}
}
