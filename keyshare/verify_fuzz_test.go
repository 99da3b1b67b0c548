package keyshare

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/binary"
	"math/big"
	"testing"

	"filippo.io/edwards25519"
)

// chosen makes a number from 0 to n-1 of words that choice names: tables meet, and carries show, with words of all zeros and all
// ones.
func chosen(choice []byte, n *big.Int) *big.Int {
	octets := make([]byte, 72)
	for i := range min(len(choice), 9) {
		w := [4]uint64{0, ^uint64(0), 1, 0x9e3779b97f4a7c15 * uint64(choice[i])}[choice[i]%4]
		binary.BigEndian.PutUint64(octets[64-8*i:], w)
	}
	k := new(big.Int).SetBytes(octets)
	return k.Mod(k, n)
}

// FuzzECDSAVerifier compares with crypto/ecdsa. A signature is made backwards, from the numbers u1 and u2 that its
// verification multiplies with, so that these can be any; then it is any other.
func FuzzECDSAVerifier(f *testing.F) {
	f.Add(uint8(0), []byte{2}, []byte{2}, []byte{2}, []byte{1}, []byte{1}, []byte{1})
	f.Add(uint8(1), []byte{1, 1, 1, 1, 1, 1}, []byte{}, []byte{2}, []byte{}, []byte{}, []byte{1})
	f.Add(uint8(2), []byte{7, 11}, []byte{1, 0, 1}, []byte{1, 1, 1, 1, 1, 1, 1, 1, 1}, bytes.Repeat([]byte{0xff}, 100), bytes.Repeat([]byte{0xff}, 66), []byte{1})
	f.Fuzz(func(t *testing.T, curve uint8, key, first, second, digest, r, s []byte) {
		if len(digest) > 200 || len(r) > 200 || len(s) > 200 {
			return
		}
		c := []Curve{P256, P384, P521}[curve%3]
		n := ecdsaCurves[c].Params().N
		d, u1, u2 := chosen(key, n), chosen(first, n), chosen(second, n)
		if d.Sign() == 0 {
			return
		}
		k, err := ecdsa.ParseRawPrivateKey(ecdsaCurves[c], d.FillBytes(make([]byte, c.ScalarLen())))
		if err != nil {
			t.Fatal(err)
		}
		v := verifierOf(t, c, &k.PublicKey)
		compare := func(digest []byte, r, s *big.Int) bool {
			want := ecdsa.Verify(&k.PublicKey, digest, r, s)
			if got := v.Verify(digest, r.Bytes(), s.Bytes()); got != want {
				t.Errorf("%v, key %x, digest %x, signature (%x, %x): %v, want %v", c, d, digest, r, s, got, want)
			}
			return want
		}
		compare(digest, new(big.Int).SetBytes(r), new(big.Int).SetBytes(s))
		if e, r, s := backwards(t, c, n, d, u1, u2); s.Sign() != 0 && !compare(e, r, s) {
			t.Errorf("%v, key %x, u1 %x, u2 %x: crypto/ecdsa refuses the signature made of them", c, d, u1, u2)
		}
	})
}

// backwards returns the digest and the signature by the key d whose verification computes u1*G + u2*Q. s is zero if there
// is none.
func backwards(t *testing.T, c Curve, n, d, u1, u2 *big.Int) (digest []byte, r, s *big.Int) {
	t.Helper()
	r, s = new(big.Int), new(big.Int)
	k := new(big.Int).Mul(u2, d)
	k.Mod(k.Add(k, u1), n)
	if u2.Sign() == 0 || k.Sign() == 0 {
		return nil, r, s
	}
	nist := map[Curve]ecdh.Curve{P256: ecdh.P256(), P384: ecdh.P384(), P521: ecdh.P521()}[c]
	sum, err := nist.NewPrivateKey(k.FillBytes(make([]byte, c.ScalarLen())))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBytes(sum.PublicKey().Bytes()[1 : 1+c.ScalarLen()])
	r.Mod(r, n)
	s.Mod(s.Mul(r, s.ModInverse(u2, n)), n)
	e := new(big.Int).Mul(u1, s)
	e.Mod(e, n).Lsh(e, uint(8*c.ScalarLen()-n.BitLen()))
	return e.FillBytes(make([]byte, c.ScalarLen())), r, s
}

// FuzzEd25519Verifier compares with crypto/ed25519: signatures with any nonce, to whose point one of small order is added, and
// any others.
func FuzzEd25519Verifier(f *testing.F) {
	f.Add([]byte{2}, []byte{}, uint8(0), []byte("message"), make([]byte, 64))
	f.Add([]byte{1, 1, 1, 1}, []byte{2}, uint8(1), []byte{}, bytes.Repeat([]byte{0xff}, 64))
	f.Add([]byte{7}, []byte{1, 3}, uint8(4), []byte{1}, []byte{1})
	order, _ := new(big.Int).SetString(order25519, 16)
	f.Fuzz(func(t *testing.T, key, nonce []byte, torsion uint8, message, signature []byte) {
		a, r := chosen(key, order), chosen(nonce, order)
		if a.Sign() == 0 {
			return
		}
		public := new(edwards25519.Point).ScalarBaseMult(scalarOf(t, a)).Bytes()
		p, err := ParsePoint(Ed25519, public)
		if err != nil {
			t.Fatal(err)
		}
		v, err := NewEd25519Verifier(p)
		if err != nil {
			t.Fatal(err)
		}
		compare := func(signature []byte) bool {
			want := ed25519.Verify(public, message, signature)
			if got := v.Verify(ModePure, message, signature); got != want {
				t.Errorf("key %x, message %x, signature %x: %v, want %v", public, message, signature, got, want)
			}
			if got := Verify(p, ModePure, message, signature); got != want {
				t.Errorf("key %x, message %x, signature %x: Verify says %v, want %v", public, message, signature, got, want)
			}
			return want
		}
		if len(signature) == 64 { // ed25519.Verify has an opinion on others, too, and the same
			compare(signature)
		}
		point := new(edwards25519.Point).ScalarBaseMult(scalarOf(t, r))
		point.Add(point, smallOrder(t, torsion))
		encoded := point.Bytes()
		h := sha512.Sum512(bytes.Join([][]byte{encoded, public, message}, nil))
		k, err := edwards25519.NewScalar().SetUniformBytes(h[:])
		if err != nil {
			t.Fatal(err)
		}
		s := edwards25519.NewScalar().MultiplyAdd(k, scalarOf(t, a), scalarOf(t, r))
		if good := compare(append(encoded, s.Bytes()...)); good != (torsion%8 == 0) {
			t.Errorf("key %x, nonce %x, torsion %d: crypto/ed25519 says %v", a, r, torsion%8, good)
		}
	})
}

// scalarOf returns a scalar of the package edwards25519.
func scalarOf(t *testing.T, n *big.Int) *edwards25519.Scalar {
	t.Helper()
	octets := n.FillBytes(make([]byte, 32))
	for i, j := 0, 31; i < j; i, j = i+1, j-1 {
		octets[i], octets[j] = octets[j], octets[i]
	}
	s, err := edwards25519.NewScalar().SetCanonicalBytes(octets)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// smallOrder returns a multiple of a point of order 8.
func smallOrder(t *testing.T, n uint8) *edwards25519.Point {
	t.Helper()
	p, err := new(edwards25519.Point).SetBytes(unhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))
	if err != nil {
		t.Fatal(err)
	}
	sum := edwards25519.NewIdentityPoint()
	for range n % 8 {
		sum.Add(sum, p)
	}
	return sum
}
