package keyshare

import (
	"bytes"
	"errors"
	"testing"
)

func TestSumSigningKeys(t *testing.T) {
	t.Parallel()
	for _, c := range []Curve{Ed25519, Ed448} {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			n := c.DeriveLen()
			a, err := NewSigningKey(c, bytes.Repeat([]byte{1}, n))
			if err != nil {
				t.Fatal(err)
			}
			b, err := NewSigningKey(c, bytes.Repeat([]byte{2}, n))
			if err != nil {
				t.Fatal(err)
			}
			sum, err := SumSigningKeys(a, b)
			if err != nil {
				t.Fatal(err)
			}
			want, err := Combine(a.Public(), b.Public())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(sum.Public().Bytes(), want.Bytes()) {
				t.Error("the sum's public key is not that of the public keys")
			}
			one, err := sum.Sign(nil, ModeMesh, []byte("m"))
			if err != nil {
				t.Fatal(err)
			}
			two, err := sum.Sign(nil, ModeMesh, []byte("m"))
			if err != nil {
				t.Fatal(err)
			}
			if !Verify(want, ModeMesh, []byte("m"), one) || !Verify(want, ModeMesh, []byte("m"), two) {
				t.Error("signature does not verify")
			}
			if bytes.Equal(one, two) {
				t.Error("the nonce is not fresh")
			}
			if _, err := SumSigningKeys(a); err == nil {
				t.Error("one key was added up")
			}
			b.Wipe()
			if _, err := SumSigningKeys(a, b); err == nil {
				t.Error("a wiped key was added")
			}
		})
	}
}

func TestSumSigningKeysCancel(t *testing.T) {
	t.Parallel()
	a, err := NewSigningKey(Ed448, bytes.Repeat([]byte{1}, 56))
	if err != nil {
		t.Fatal(err)
	}
	minus, err := NewCompositeSigningKey(&Scalar{a.scalar.group, a.scalar.group.reduceOctets(nil).Sub(a.scalar.n, a.scalar.group.order)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SumSigningKeys(a, minus); !errors.Is(err, ErrZeroScalar) {
		t.Errorf("keys that cancel out: %v", err)
	}
}
