package softkey

import (
	"bytes"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// summable is what SumWith wants of a key.
type summable interface {
	token.Signer
	SumWith(others ...token.Key) (token.Key, error)
	Close() error
}

func TestSumWith(t *testing.T) {
	t.Parallel()
	open := func(a token.Algorithm, n int, fill byte) summable {
		k, err := NewKey(&token.PrivateKey{Algorithm: a, Seed: bytes.Repeat([]byte{fill}, n)}, token.UseSign)
		if err != nil {
			t.Fatal(err)
		}
		return k.(summable)
	}
	one, two, other := open(token.Ed448, 57, 1), open(token.Ed448, 56, 2), open(token.Ed25519, 32, 3)
	sum, err := one.SumWith(two)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("message")
	signature, err := sum.(token.Signer).Sign(t.Context(), token.SignRequest{Scheme: token.SchemeEdDSA, Message: message})
	if err != nil {
		t.Fatal(err)
	}
	var points []*keyshare.Point
	for _, k := range []token.Key{one, two} {
		p, err := keyshare.ParsePoint(keyshare.Ed448, k.Public().Octets)
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p)
	}
	public, err := keyshare.Combine(points...)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sum.Public().Octets, public.Bytes()) || !keyshare.Verify(public, keyshare.ModePure, message, signature) {
		t.Error("the sum is not that of the keys")
	}
	agreement, err := NewKey(&token.PrivateKey{Algorithm: token.Ed448, Seed: bytes.Repeat([]byte{4}, 57)}, token.UseAgree)
	if err != nil {
		t.Fatal(err)
	}
	for name, k := range map[string]token.Key{"another curve": other, "another use": agreement} {
		if _, err := one.SumWith(k); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := one.SumWith(two); !errors.Is(err, token.ErrClosed) {
		t.Errorf("a closed key: %v", err)
	}
}
