package keyshare

import (
	"github.com/cloudflare/circl/ecc/goldilocks"
	fp "github.com/cloudflare/circl/math/fp448"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// ed448Element is a point of edwards448 (Goldilocks). Methods work on copies, because
// those of goldilocks.Point, even ToBytes, write to their receiver.
type ed448Element struct{ p goldilocks.Point }

// parseEd448 decodes as RFC 8032, Section 5.2.3.
func parseEd448(b []byte) (element, error) {
	if err := checkLength(b, 57); err != nil {
		return nil, err
	}
	if b[56]&0x7f != 0 {
		return nil, badpoint.ErrSignOctet
	}
	y := fp.Elt(b[:56])
	reduced := y
	fp.Modp(&reduced)
	if reduced != y {
		return nil, badpoint.ErrNonCanonical
	}
	x, ok := recoverX448(&y)
	if !ok {
		return nil, badpoint.ErrTwist
	}
	if b[56] == 0x80 && fp.IsZero(&x) {
		return nil, badpoint.ErrSignOctet
	}
	if x[0]&1 != b[56]>>7 {
		fp.Neg(&x, &x)
		fp.Modp(&x)
	}
	p, err := goldilocks.FromAffine(&x, &y)
	if err != nil {
		return nil, badpoint.ErrTwist
	}
	switch four := quadruple448(p); {
	case fp.IsZero(&x) && fp.IsOne(&y):
		return nil, badpoint.ErrIdentity
	case four.IsIdentity():
		return nil, badpoint.ErrLowOrder
	case !inSubgroup448(&x, &y):
		return nil, badpoint.ErrTorsion
	}
	return ed448Element{*p}, nil
}

// recoverX448 returns a reduced square root of (1-y^2)/(1-d*y^2), if there is one.
func recoverX448(y *fp.Elt) (x fp.Elt, ok bool) {
	one := fp.One()
	var u, v fp.Elt
	fp.Sqr(&u, y)
	fp.Mul(&v, &u, &minusD448)
	fp.Add(&v, &v, &one)
	fp.Sub(&u, &one, &u)
	ok = fp.InvSqrt(&x, &u, &v)
	fp.Modp(&x)
	return x, ok
}

// quadruple448 returns 4p and leaves p alone.
func quadruple448(p *goldilocks.Point) goldilocks.Point {
	q := *p
	q.Double()
	q.Double()
	q.ToAffine()
	return q
}

// Constants of edwards448, x^2 + y^2 = 1 + d*x^2*y^2, d = -39081.
var (
	minusD448        = small448(39081)
	oneMinusD448     = small448(39082)
	minusTwoPlusTwoD = small448(2 * 39080) // -2*(1+d)
	sqrtMinus16D448  = fp.Elt(unhex("2763a3eac243f4a6b5c67c572510327fb684440a2c6496f115adcfa5fca1746dd2aa1c691d6139787d55764137ca25105f226c5310749a74"))
)

func small448(n uint32) fp.Elt {
	return fp.Elt{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
}

// inSubgroup448 reports whether the affine point (x, y), whose order does not divide 4,
// has order L. It is not constant time: the point is public.
//
// The rational points of 2-power order form a cyclic group of order 4, so the question is
// whether the point is in 4E. The method is that of inSubgroup25519, on the image
//
//	Y^2 = X(X^2 + a*X + b),  X = (1-d)*(1+y)/(1-y),  Y = 2*X/x,  a = 2*(1+d),  b = (1-d)^2
//
// scaled by lambda = x*(1-y), except that the half need only be in 2E: its X be a square.
func inSubgroup448(x, y *fp.Elt) bool {
	one := fp.One()
	var minus, plus, lambda, lambda2, X, r fp.Elt
	fp.Sub(&minus, &one, y)
	fp.Add(&plus, &one, y)
	fp.Mul(&lambda, x, &minus)
	fp.Sqr(&lambda2, &lambda)
	fp.Sqr(&X, x)
	fp.Mul(&X, &X, &minus)
	fp.Mul(&X, &X, &plus)
	fp.Mul(&X, &X, &oneMinusD448)
	if !fp.InvSqrt(&r, &X, &one) {
		return false
	}
	// yr is Y/r = r*Y/X, and Y/X = 2*lambda/x.
	var yr, prime, t, s fp.Elt
	fp.Mul(&yr, &minus, &r)
	fp.Add(&yr, &yr, &yr)
	// prime is x' = a*lambda^2 + 2X + 2Y/r.
	fp.Add(&prime, &X, &yr)
	fp.Add(&prime, &prime, &prime)
	fp.Mul(&t, &lambda2, &minusTwoPlusTwoD)
	fp.Sub(&prime, &prime, &t)
	if fp.InvSqrt(&s, &one, &prime) {
		fp.Mul(&s, &s, &prime)
	} else {
		// s is the root of -1/x'; the other candidate is (a^2-4b)*lambda^4/x', a^2-4b = 16d.
		fp.Mul(&s, &s, &sqrtMinus16D448)
		fp.Mul(&s, &s, &lambda2)
		fp.Neg(&r, &r)
		fp.Neg(&yr, &yr)
	}
	// t is the X of a half.
	fp.Mul(&s, &r, &s)
	fp.Add(&t, &X, &yr)
	fp.Sub(&t, &t, &s)
	return fp.InvSqrt(&r, &t, &one)
}

func baseEd448() element { return ed448Element{*goldilocks.Curve{}.Generator()} }

func baseMultEd448(s *Scalar) (element, error) {
	k := scalar448(s)
	defer clear(k[:])
	return checkedEd448(goldilocks.Curve{}.ScalarBaseMult(&k))
}

func checkedEd448(p *goldilocks.Point) (element, error) {
	p.ToAffine()
	if p.IsIdentity() {
		return nil, badpoint.ErrIdentity
	}
	return ed448Element{*p}, nil
}

func (e ed448Element) encode() []byte {
	b := make([]byte, 57)
	if err := e.p.ToBytes(b); err != nil { // e is a copy
		panic("keyshare: " + err.Error())
	}
	return b
}

func (e ed448Element) negate() element {
	e.p.Neg() // e is a copy
	e.p.ToAffine()
	return e
}

func (e ed448Element) add(q element) (element, error) {
	sum := e.p
	other := q.(ed448Element).p
	sum.Add(&other)
	return checkedEd448(&sum)
}

// mult relies on goldilocks.Curve.ScalarMult going through the 4-isogenous curve with
// k/4, which drops a component of small order as the cleaned scalar does elsewhere.
func (e ed448Element) mult(s *Scalar) (element, error) {
	k := scalar448(s)
	defer clear(k[:])
	return checkedEd448(goldilocks.Curve{}.ScalarMult(&k, &e.p))
}

func scalar448(s *Scalar) goldilocks.Scalar {
	b := s.Bytes()
	defer clear(b)
	return goldilocks.Scalar(b)
}
