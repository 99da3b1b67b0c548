package keyshare

import (
	"bytes"
	"fmt"
	"math/big"
	"sync"

	"filippo.io/edwards25519"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/fixedbase"
)

// ECDSAVerifier verifies the ECDSA signatures of one public key, in a fraction of the time of crypto/ecdsa, with
// tables of the key that are computed when it is used first (1 to 5 milliseconds) and take 64 to 144
// kilobytes. It is meant for one who verifies what a device signs before releasing it. Its time depends on signature
// and digest, which are public. It may be used from several goroutines at once.
type ECDSAVerifier struct {
	order *big.Int
	base  func() fixedbase.Base
}

// NewECDSAVerifier returns the verifier of a key on P-256, P-384 or P-521.
func NewECDSAVerifier(public *Point) (*ECDSAVerifier, error) {
	kind, ok := map[Curve]struct {
		order string
		base  func(x, y *big.Int) fixedbase.Base
	}{
		P256: {orderP256, fixedbase.NewP256}, P384: {orderP384, fixedbase.NewP384}, P521: {orderP521, fixedbase.NewP521},
	}[public.Curve()]
	if !ok {
		return nil, fmt.Errorf("no ECDSA on %v", public.Curve())
	}
	octets := public.Bytes()[1:] // x and y
	x, y := new(big.Int).SetBytes(octets[:len(octets)/2]), new(big.Int).SetBytes(octets[len(octets)/2:])
	return &ECDSAVerifier{
		order: new(big.Int).SetBytes(unhex(kind.order)),
		base:  sync.OnceValue(func() fixedbase.Base { return kind.base(x, y) }),
	}, nil
}

// Verify reports whether (r, s), big endian, is a signature over the digest. FIPS 186-5, 6.4.2.
func (v *ECDSAVerifier) Verify(digest, r, s []byte) bool {
	ri, si := new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)
	if ri.Sign() == 0 || si.Sign() == 0 || ri.Cmp(v.order) >= 0 || si.Cmp(v.order) >= 0 {
		return false
	}
	e := new(big.Int).SetBytes(digest)
	if excess := 8*len(digest) - v.order.BitLen(); excess > 0 {
		e.Rsh(e, uint(excess)) // the leftmost bits
	}
	w := si.ModInverse(si, v.order)
	u1 := e.Mod(e.Mul(e, w), v.order)
	u2 := w.Mod(w.Mul(w, ri), v.order)
	return v.base().Matches(u1, u2, ri)
}

// Ed25519Verifier verifies the Ed25519 signatures of one public key as Verify does, in a fraction of the time of
// crypto/ed25519, with tables as ECDSAVerifier has them. It may be used from several goroutines at once.
type Ed25519Verifier struct {
	public *Point
	minus  func() *fixedbase.Edwards25519 // the negated public key
}

// NewEd25519Verifier returns the verifier of a key on Ed25519.
func NewEd25519Verifier(public *Point) (*Ed25519Verifier, error) {
	e, ok := public.element.(ed25519Element)
	if !ok || public.Curve() != Ed25519 {
		return nil, fmt.Errorf("no Ed25519 on %v", public.Curve())
	}
	minus := new(edwards25519.Point).Negate(e.p)
	return &Ed25519Verifier{public, sync.OnceValue(func() *fixedbase.Edwards25519 { return fixedbase.NewEdwards25519(minus) })}, nil
}

// Verify reports whether signature is one over the message, in a mode. RFC 8032, 5.1.7, without
// multiplying by the cofactor.
func (v *Ed25519Verifier) Verify(mode Mode, message, signature []byte) bool {
	q, ok := readSignature(v.public, mode, message, signature)
	return ok && bytes.Equal(v.minus().Encode(q.s.Bytes(), q.k.Bytes()), q.r)
}

// MarshalECDSA writes r and s, big endian, as Ecdsa-Sig-Value (RFC 3279, Section 2.2.3).
func MarshalECDSA(r, s []byte) []byte {
	body := appendInteger(make([]byte, 0, len(r)+len(s)+6), r)
	body = appendInteger(body, s)
	out := make([]byte, 0, len(body)+3)
	if len(body) < 0x80 {
		out = append(out, 0x30, byte(len(body)))
	} else { // up to 138 octets on P-521
		out = append(out, 0x30, 0x81, byte(len(body)))
	}
	return append(out, body...)
}

// appendInteger appends a number, big endian and below 2^528, as INTEGER.
func appendInteger(b, n []byte) []byte {
	for len(n) > 1 && n[0] == 0 {
		n = n[1:]
	}
	if n[0]&0x80 != 0 {
		return append(append(b, 2, byte(len(n)+1), 0), n...)
	}
	return append(append(b, 2, byte(len(n))), n...)
}
