package keyshare

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"github.com/cloudflare/circl/sign/ed448"
)

var eddsaCurves = []Curve{Ed25519, Ed448}

func randomOctets(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func mustSigningKey(t testing.TB, c Curve, seed []byte) *SigningKey {
	t.Helper()
	key, err := NewSigningKey(c, seed)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustSign(t testing.TB, key *SigningKey, mode Mode, message []byte) []byte {
	t.Helper()
	signature, err := key.Sign(nil, mode, message)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

func TestPureEqualsStandardEd25519(t *testing.T) {
	t.Parallel()
	for n := range 32 {
		seed, message := randomOctets(32), randomOctets(7*n)
		want := ed25519.NewKeyFromSeed(seed)
		key := mustSigningKey(t, Ed25519, seed)
		public := want.Public().(ed25519.PublicKey)
		wantOctets(t, "public key", key.Public().Bytes(), public)
		signature := mustSign(t, key, ModePure, message)
		wantOctets(t, "signature", signature, ed25519.Sign(want, message))
		if !Verify(key.Public(), ModePure, message, signature) {
			t.Error("signature does not verify")
		}
		signature[n] ^= 1
		if got, want := Verify(key.Public(), ModePure, message, signature), ed25519.Verify(public, message, signature); got || want {
			t.Errorf("changed signature: %v, crypto/ed25519 %v", got, want)
		}
	}
}

func TestEd448EqualsCircl(t *testing.T) {
	t.Parallel()
	for n := range 16 {
		seed, message := randomOctets(57), randomOctets(11*n)
		want := ed448.NewKeyFromSeed(seed)
		key := mustSigningKey(t, Ed448, seed)
		wantOctets(t, "public key", key.Public().Bytes(), want[57:])
		signature := mustSign(t, key, ModePure, message)
		wantOctets(t, "signature", signature, ed448.Sign(want, message, ""))
		if !Verify(key.Public(), ModeMesh, message, signature) {
			t.Error("signature does not verify")
		}
	}
}

// RFC 8032, Section 7.4, "Blank" and "1 octet".
func TestRFC8032Ed448(t *testing.T) {
	t.Parallel()
	tests := []struct{ seed, public, message, signature string }{
		{
			"6c82a562cb808d10d632be89c8513ebf6c929f34ddfa8c9f63c9960ef6e348a3528c8a3fcc2f044e39a3fc5b94492f8f032e7549a20098f95b",
			"5fd7449b59b461fd2ce787ec616ad46a1da1342485a70e1f8a0ea75d80e96778edf124769b46c7061bd6783df1e50f6cd1fa1abeafe8256180",
			"",
			"533a37f6bbe457251f023c0d88f976ae2dfb504a843e34d2074fd823d41a591f2b233f034f628281f2fd7a22ddd47d7828c59bd0a21bfd3980ff0d2028d4b18a9df63e006c5d1c2d345b925d8dc00b4104852db99ac5c7cdda8530a113a0f4dbb61149f05a7363268c71d95808ff2e652600",
		},
	}
	for _, tt := range tests {
		key := mustSigningKey(t, Ed448, unhex(tt.seed))
		wantOctets(t, "public key", key.Public().Bytes(), unhex(tt.public))
		wantOctets(t, "signature", mustSign(t, key, ModePure, unhex(tt.message)), unhex(tt.signature))
	}
}

func TestNewSigningKeyRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []Curve{0, X25519, X448, P256} {
		if _, err := NewSigningKey(c, make([]byte, max(1, c.DeriveLen()))); err == nil {
			t.Errorf("%v: signing key", c)
		}
	}
	if _, err := NewCompositeSigningKey(mustRandom(t, X448)); err == nil {
		t.Error("signing key on X448")
	}
	for _, n := range []int{0, 31, 33, 56} {
		if _, err := NewSigningKey(Ed25519, make([]byte, n)); !errors.Is(err, ErrScalarLength) {
			t.Errorf("%d octets: %v", n, err)
		}
	}
	s := mustRandom(t, Ed448)
	s.Wipe()
	if _, err := NewCompositeSigningKey(s); !errors.Is(err, ErrZeroScalar) {
		t.Errorf("wiped scalar: %v", err)
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range eddsaCurves {
		key, err := NewCompositeSigningKey(mustRandom(t, c))
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range []Mode{0, ModeMesh + 1} {
			if _, err := key.Sign(nil, mode, nil); err == nil {
				t.Errorf("%v: signed in mode %d", c, mode)
			}
			if Verify(key.Public(), mode, nil, mustSign(t, key, ModePure, nil)) {
				t.Errorf("%v: verified in mode %d", c, mode)
			}
		}
		if _, err := key.Sign(bytes.NewReader(make([]byte, 31)), ModePure, nil); err == nil {
			t.Errorf("%v: signed without randomness", c)
		}
		key.Wipe()
		if _, err := key.Sign(nil, ModePure, nil); err == nil {
			t.Errorf("%v: a wiped key signed", c)
		}
	}
}

// Composite keys: the sum of two seeds' scalars signs for the sum of their public keys, and the
// nonce is the documented hash.
func TestCompositeSigning(t *testing.T) {
	t.Parallel()
	for _, c := range eddsaCurves {
		a, _, err := ExpandSeed(c, randomOctets(c.DeriveLen()))
		if err != nil {
			t.Fatal(err)
		}
		b := mustRandom(t, c)
		sum, err := a.Add(b)
		if err != nil {
			t.Fatal(err)
		}
		public, err := a.Public().Add(b.Public())
		if err != nil {
			t.Fatal(err)
		}
		key, err := NewCompositeSigningKey(sum)
		if err != nil {
			t.Fatal(err)
		}
		if !key.Public().Equal(public) {
			t.Errorf("%v: wrong public key", c)
		}
		message, fresh := []byte("message"), randomOctets(32)
		for _, mode := range []Mode{ModePure, ModeMesh} {
			one, two := mustSign(t, key, mode, message), mustSign(t, key, mode, message)
			if !Verify(public, mode, message, one) || !Verify(public, mode, message, two) || bytes.Equal(one, two) {
				t.Errorf("%v, mode %d: signatures are wrong or not hedged", c, mode)
			}
			signature, err := key.Sign(bytes.NewReader(fresh), mode, message)
			if err != nil {
				t.Fatal(err)
			}
			n := compositeNonce(t, c, mode, sum.Bytes(), fresh, message)
			wantOctets(t, "R", signature[:c.PointLen()], n.Public().Bytes())
		}
		sum.Wipe()
		if !Verify(public, ModeMesh, message, mustSign(t, key, ModeMesh, message)) {
			t.Errorf("%v: the key depends on the caller's scalar", c)
		}
	}
}

func compositeNonce(t *testing.T, c Curve, mode Mode, s, fresh, message []byte) *Scalar {
	t.Helper()
	var digest []byte
	if c == Ed25519 {
		dom, prefix := "", sha256.Sum256(s)
		if mode == ModeMesh {
			dom = "SigEd25519 no Ed25519 collisions\x00\x00"
		}
		h := sha512.Sum512(slices.Concat([]byte(dom), prefix[:], fresh, message))
		digest = h[:]
	} else {
		digest = sha3.SumSHAKE256(slices.Concat([]byte("SigEd448\x00\x00"), sha3.SumSHAKE256(s, 57), fresh, message), 114)
	}
	slices.Reverse(digest)
	n := new(big.Int).SetBytes(digest)
	return mustScalar(t, c, octets(c, n.Mod(n, orderOf(c))))
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range eddsaCurves {
		key, message, n := mustSigningKey(t, c, randomOctets(c.DeriveLen())), []byte("message"), c.PointLen()
		good := mustSign(t, key, ModeMesh, message)
		if !Verify(key.Public(), ModeMesh, message, good) {
			t.Fatalf("%v: signature does not verify", c)
		}
		// S + L is congruent, and fits.
		s := new(big.Int).SetBytes(bigEndian(bytes.Clone(good[n:])))
		malleable := s.Add(s, orderOf(c)).FillBytes(make([]byte, n))
		bad := map[string][]byte{
			"empty":      nil,
			"short":      good[:2*n-1],
			"long":       append(bytes.Clone(good), 0),
			"S + L":      append(bytes.Clone(good[:n]), bigEndian(malleable)...),
			"zero S":     append(bytes.Clone(good[:n]), make([]byte, n)...),
			"all zero":   make([]byte, 2*n),
			"last octet": append(bytes.Clone(good[:2*n-1]), good[2*n-1]|0x80),
		}
		for i := range good {
			changed := bytes.Clone(good)
			changed[i] ^= 1 << (i % 8)
			bad[fmt.Sprintf("octet %d", i)] = changed
		}
		for name, signature := range bad {
			if Verify(key.Public(), ModeMesh, message, signature) {
				t.Errorf("%v: %s verifies", c, name)
			}
		}
		if Verify(key.Public(), ModeMesh, message[1:], good) || Verify(key.Public().Negate(), ModeMesh, message, good) {
			t.Errorf("%v: another message or key verifies", c)
		}
		if Verify(BasePoint(P256), ModeMesh, message, good) {
			t.Errorf("%v: a P-256 key verifies", c)
		}
	}
}

// FuzzVerify compares with crypto/ed25519, which is as strict about S and R.
func FuzzVerify(f *testing.F) {
	seed := bytes.Repeat([]byte{7}, 32)
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	point := mustPoint(f, Ed25519, public)
	key := mustSigningKey(f, Ed25519, seed)
	f.Add([]byte("message"), mustSign(f, key, ModePure, []byte("message")))
	f.Add([]byte(nil), mustSign(f, key, ModePure, nil))
	f.Add([]byte(nil), make([]byte, 64))
	f.Fuzz(func(t *testing.T, message, signature []byte) {
		if got, want := Verify(point, ModePure, message, signature), ed25519.Verify(public, message, signature); got != want {
			t.Fatalf("got %v, crypto/ed25519 %v", got, want)
		}
	})
}
