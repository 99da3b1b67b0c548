package keyshare

import (
	"bytes"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"filippo.io/edwards25519"
	"filippo.io/nistec"
)

// ECDSAVerifier verifies the ECDSA signatures of one public key, several times as fast as
// crypto/ecdsa, with tables that are computed once for the key (about a millisecond) and take
// some 100 kilobytes. It is meant for one who verifies what a device signs before releasing
// it. Its time depends on signature and digest, which are public. It may be used from several
// goroutines at once.
type ECDSAVerifier struct {
	order  *big.Int
	verify func(u1, u2 *big.Int) (x []byte, err error) // x of u1*G + u2*Q
}

// NewECDSAVerifier computes the tables of a key on P-256, P-384 or P-521.
func NewECDSAVerifier(public *Point) (*ECDSAVerifier, error) {
	var err error
	v := &ECDSAVerifier{}
	switch public.Curve() {
	case P256:
		v.order, v.verify, err = newCombs(orderP256, nil, nistec.NewP256Point, public)
	case P384:
		v.order, v.verify, err = newCombs(orderP384, generator384, nistec.NewP384Point, public)
	case P521:
		v.order, v.verify, err = newCombs(orderP521, generator521, nistec.NewP521Point, public)
	default:
		err = fmt.Errorf("no ECDSA on %v", public.Curve())
	}
	if err != nil {
		return nil, err
	}
	return v, nil
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
	x, err := v.verify(u1, u2)
	if err != nil {
		return false // infinity
	}
	xi := new(big.Int).SetBytes(x)
	return xi.Mod(xi, v.order).Cmp(ri) == 0
}

// Ed25519Verifier verifies the Ed25519 signatures of one public key as Verify does, in less than half the
// time of crypto/ed25519, with tables as ECDSAVerifier has them. It may be used from several
// goroutines at once.
type Ed25519Verifier struct {
	public *Point
	minus  *comb[*edwardsPoint] // of the negated public key
}

// NewEd25519Verifier computes the tables of a key on Ed25519.
func NewEd25519Verifier(public *Point) (*Ed25519Verifier, error) {
	e, ok := public.element.(ed25519Element)
	if !ok || public.Curve() != Ed25519 {
		return nil, fmt.Errorf("no Ed25519 on %v", public.Curve())
	}
	minus := newEdwardsPoint()
	minus.Negate(e.p)
	return &Ed25519Verifier{public, newComb(newEdwardsPoint, minus, 253)}, nil
}

// Verify reports whether signature is one over the message, in a mode. RFC 8032, 5.1.7, without
// multiplying by the cofactor.
func (v *Ed25519Verifier) Verify(mode Mode, message, signature []byte) bool {
	q, ok := readSignature(v.public, mode, message, signature)
	if !ok {
		return false
	}
	sum := newEdwardsPoint()
	addCombs(sum, []*comb[*edwardsPoint]{generator25519(), v.minus}, integer(q.s), integer(q.k))
	return bytes.Equal(sum.Bytes(), q.r)
}

// integer returns a scalar of Curve25519 as an integer.
func integer(s *Scalar) *big.Int {
	octets := s.Bytes()
	slices.Reverse(octets)
	return new(big.Int).SetBytes(octets)
}

// edwardsPoint is a point of edwards25519 in a comb.
type edwardsPoint struct{ edwards25519.Point }

func newEdwardsPoint() *edwardsPoint {
	p := new(edwardsPoint)
	p.Point.Set(edwards25519.NewIdentityPoint())
	return p
}

func (p *edwardsPoint) Set(q *edwardsPoint) *edwardsPoint { p.Point.Set(&q.Point); return p }
func (p *edwardsPoint) Add(q, r *edwardsPoint) *edwardsPoint {
	p.Point.Add(&q.Point, &r.Point)
	return p
}
func (p *edwardsPoint) Double(q *edwardsPoint) *edwardsPoint { return p.Add(q, q) }

// combPoint is a point in a table.
type combPoint[P any] interface {
	Set(P) P
	Add(P, P) P
	Double(P) P
}

// ecdsaPoint is a nistPoint that is in tables and has an x-coordinate.
type ecdsaPoint[P any] interface {
	nistPoint[P]
	combPoint[P]
	BytesX() ([]byte, error)
}

// comb is the fixed-base table of Lim and Lee ("More Flexible Exponentiation with
// Precomputation", CRYPTO '94) with eight teeth and two blocks: the bits of a scalar are
// arranged in eight rows, and a table entry is the sum for one column of bits.
type comb[P combPoint[P]] struct {
	columns int
	block   int // columns of a block
	tables  [2][1 << teeth]P
}

const teeth = 8

func newComb[P combPoint[P]](newPoint func() P, p P, bits int) *comb[P] {
	c := &comb[P]{columns: (bits + teeth - 1) / teeth}
	c.block = (c.columns + 1) / 2
	var rows [2][teeth]P
	next := newPoint().Set(p)
	for i := range teeth {
		for j := range c.columns {
			switch j {
			case 0:
				rows[0][i] = newPoint().Set(next)
			case c.block:
				rows[1][i] = newPoint().Set(next)
			}
			next.Double(next)
		}
	}
	for b := range rows {
		c.tables[b][0] = newPoint()
		for i := range teeth {
			for j := range 1 << i {
				c.tables[b][1<<i+j] = newPoint().Add(c.tables[b][j], rows[b][i])
			}
		}
	}
	return c
}

// add adds to sum the table entries of a column in each block, for the scalar k.
func (c *comb[P]) add(sum P, k *big.Int, column int) {
	for b := range c.tables {
		at := column + b*c.block
		if at >= c.columns {
			continue
		}
		index := uint(0)
		for i := range teeth {
			index |= k.Bit(at+i*c.columns) << i
		}
		if index != 0 {
			sum.Add(sum, c.tables[b][index])
		}
	}
}

// Tables of the generators, made when first used. That of P-256 is nistec's own, with faster
// additions than it exports.
var (
	generator384 = sync.OnceValue(func() *comb[*nistec.P384Point] { return generatorComb(nistec.NewP384Point, 384) })
	generator521 = sync.OnceValue(func() *comb[*nistec.P521Point] { return generatorComb(nistec.NewP521Point, 521) })

	generator25519 = sync.OnceValue(func() *comb[*edwardsPoint] {
		return newComb(newEdwardsPoint, &edwardsPoint{*edwards25519.NewGeneratorPoint()}, 253)
	})
)

func generatorComb[P ecdsaPoint[P]](newPoint func() P, bits int) *comb[P] {
	return newComb(newPoint, newPoint().SetGenerator(), bits)
}

// addCombs adds, for each comb, its point times the scalar of the same place to sum, the identity. The
// combs have the same size.
func addCombs[P combPoint[P]](sum P, combs []*comb[P], scalars ...*big.Int) {
	for column := combs[0].block - 1; column >= 0; column-- {
		sum.Double(sum)
		for i, c := range combs {
			c.add(sum, scalars[i], column)
		}
	}
}

func newCombs[P ecdsaPoint[P]](order string, generator func() *comb[P], newPoint func() P, public *Point) (
	*big.Int, func(u1, u2 *big.Int) ([]byte, error), error,
) {
	p, err := newPoint().SetBytes(public.Bytes())
	if err != nil {
		return nil, nil, err
	}
	n := new(big.Int).SetBytes(unhex(order))
	key := newComb(newPoint, p, n.BitLen())
	if generator == nil {
		return n, func(u1, u2 *big.Int) ([]byte, error) {
			sum := newPoint()
			addCombs(sum, []*comb[P]{key}, u2)
			base, err := newPoint().ScalarBaseMult(u1.FillBytes(make([]byte, (n.BitLen()+7)/8)))
			if err != nil {
				return nil, err
			}
			return sum.Add(sum, base).BytesX()
		}, nil
	}
	combs := []*comb[P]{generator(), key}
	return n, func(u1, u2 *big.Int) ([]byte, error) {
		sum := newPoint()
		addCombs(sum, combs, u1, u2)
		return sum.BytesX()
	}, nil
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
