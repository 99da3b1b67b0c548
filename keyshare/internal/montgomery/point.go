// Package montgomery has the points of Curve25519 and Curve448 (RFC 7748) with both
// coordinates: what X25519 and X448 need when results are to be added, as in threshold
// key agreement (draft-hallambaker-threshold-06, section 5).
//
// A point of this package is always in the prime-order subgroup and never the identity: the
// decoders check it, and the group operations refuse the identity.
//
// Scalar multiplication takes the same time for all scalars and all points. Decoding takes
// time that depends on the point, which comes from outside and is public. Adding takes the
// same time except when the points are equal or opposite.
//
// The package neither clamps nor reduces scalars and draws no randomness; keyshare does.
package montgomery

import (
	"bytes"
	"crypto/subtle"
	"fmt"

	"github.com/cloudflare/circl/math/fp25519"
	"github.com/cloudflare/circl/math/fp448"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// Point25519 is a point of Curve25519: signed encoding 33 octets, u and scalars 32.
type Point25519 = Point[fp25519.Elt, curve25519]

// Point448 is a point of Curve448: signed encoding 57 octets, u and scalars 56.
type Point448 = Point[fp448.Elt, curve448]

// Point is a point (u, v) of prime order on the Montgomery curve C, v^2 = u^3 + A*u^2 + u,
// over the field with elements E. Points are immutable. The zero value is not a point.
type Point[E any, C curve[E]] struct {
	u, v E // reduced
}

// curve is a curve and the arithmetic of its field. Implementations are empty structs.
// Field operations take the same time for all values, and their arguments may overlap.
type curve[E any] interface {
	// octets reduces x to below p and returns its octets, which are x's own memory.
	octets(x *E) []byte
	one() E
	coefficient() E // A

	add(z, x, y *E)
	sub(z, x, y *E)
	mul(z, x, y *E)
	inv(z, x *E)         // 0 for x = 0
	cmov(z, x *E, b int) // z = x if b is 1

	// ladder sets r to k*P and (k+1)*P, for P with this u-coordinate, which is not 0.
	// k has as many octets as a field element.
	ladder(r *ladder[E], k []byte, u *E)

	// lift sets v to one of the two v-coordinates that belong to u. It fails, with the
	// reason, unless the points with this u are of prime order. u is reduced.
	lift(v, u *E) error
	// liftSecret is lift, and takes the same time for all u of prime order.
	liftSecret(v, u *E) error
}

// ladder holds the result of a Montgomery ladder in projective u-coordinates:
// k*P is (x2 : z2) and (k+1)*P is (x3 : z3).
type ladder[E any] struct{ x2, z2, x3, z3 E }

// Base25519 returns the base point of Curve25519, u = 9, with the v of RFC 7748, section 4.1.
func Base25519() *Point25519 { return &Point25519{u: base25519U, v: base25519V} }

// Base448 returns the base point of Curve448, u = 5, with the v of RFC 7748, section 4.2.
func Base448() *Point448 { return &Point448{u: base448U, v: base448V} }

// Decode25519 decodes and checks a point of Curve25519: 33 octets, which are u in little
// endian and then 0x00 if v is even, 0x80 if it is odd (draft-hallambaker-threshold-06,
// section 5.2.2); or 32 octets, u alone, which stand for the point with even v.
//
// The error wraps the first reason of package badpoint that applies and starts with its text.
func Decode25519(b []byte) (*Point25519, error) { return decode[fp25519.Elt, curve25519](b) }

// Decode448 does for Curve448 what [Decode25519] does for Curve25519; 57 and 56 octets.
func Decode448(b []byte) (*Point448, error) { return decode[fp448.Elt, curve448](b) }

func decode[E any, C curve[E]](b []byte) (*Point[E, C], error) {
	var c C
	p := new(Point[E, C])
	u := c.octets(&p.u)
	sign := byte(0)
	switch len(b) {
	case len(u):
	case len(u) + 1:
		sign = b[len(u)]
	default:
		return nil, fmt.Errorf("%w: %d octets, want %d or %d", badpoint.ErrLength, len(b), len(u)+1, len(u))
	}
	if sign != 0 && sign != 0x80 {
		return nil, fmt.Errorf("%w: %#02x, want 0x00 or 0x80", badpoint.ErrSignOctet, sign)
	}
	// A^2 - 4 is not a square, so v = 0 belongs to u = 0 alone.
	if sign != 0 && isZero(b[:len(u)]) == 1 {
		return nil, fmt.Errorf("%w: 0x80, but v = 0", badpoint.ErrSignOctet)
	}
	copy(u, b)
	if !bytes.Equal(c.octets(&p.u), b[:len(u)]) {
		return nil, fmt.Errorf("%w: u is not below the field prime", badpoint.ErrNonCanonical)
	}
	if err := c.lift(&p.v, &p.u); err != nil {
		return nil, err
	}
	if c.octets(&p.v)[0]&1 != sign>>7 {
		return p.Negate(), nil
	}
	return p, nil
}

// Bytes returns the signed encoding of p: u in little endian, then 0x00 or 0x80.
func (p *Point[E, C]) Bytes() []byte {
	var c C
	v := p.v
	return append(p.U(), c.octets(&v)[0]<<7)
}

// U returns the u-coordinate of p in little endian, the result of X25519 or X448. It has
// room for one more octet.
func (p *Point[E, C]) U() []byte {
	var c C
	u := p.u
	b := c.octets(&u)
	return append(make([]byte, 0, len(b)+1), b...)
}

// Equal tells, in constant time, whether p and q are the same point.
func (p *Point[E, C]) Equal(q *Point[E, C]) bool {
	return subtle.ConstantTimeCompare(p.Bytes(), q.Bytes()) == 1
}

// Negate returns -p.
func (p *Point[E, C]) Negate() *Point[E, C] {
	var c C
	var zero E
	n := &Point[E, C]{u: p.u}
	c.sub(&n.v, &zero, &p.v)
	c.octets(&n.v)
	return n
}

// Add returns p + q. The error is badpoint.ErrIdentity if q is -p.
func (p *Point[E, C]) Add(q *Point[E, C]) (*Point[E, C], error) {
	var c C
	var numerator, denominator E
	c.sub(&denominator, &q.u, &p.u)
	c.sub(&numerator, &q.v, &p.v)
	if isZero(c.octets(&denominator)) == 1 {
		if isZero(c.octets(&numerator)) == 0 {
			return nil, badpoint.ErrIdentity
		}
		p.tangent(&numerator, &denominator)
	}
	var slope, t E
	a := c.coefficient()
	c.inv(&slope, &denominator)
	c.mul(&slope, &slope, &numerator)

	r := new(Point[E, C])
	c.mul(&r.u, &slope, &slope) // u = slope^2 - A - p.u - q.u
	c.sub(&r.u, &r.u, &a)
	c.sub(&r.u, &r.u, &p.u)
	c.sub(&r.u, &r.u, &q.u)
	c.sub(&t, &p.u, &r.u) // v = slope*(p.u - u) - p.v
	c.mul(&t, &t, &slope)
	c.sub(&r.v, &t, &p.v)
	c.octets(&r.u)
	c.octets(&r.v)
	return r, nil
}

// tangent sets the slope of the tangent at p, (3*u^2 + 2*A*u + 1) / (2*v).
func (p *Point[E, C]) tangent(numerator, denominator *E) {
	var c C
	var t E
	a, one := c.coefficient(), c.one()
	c.add(&t, &p.u, &p.u)
	c.add(numerator, &t, &p.u)
	c.add(&t, &a, &a)
	c.add(numerator, numerator, &t)
	c.mul(numerator, numerator, &p.u)
	c.add(numerator, numerator, &one)
	c.add(denominator, &p.v, &p.v)
}

// ScalarMult returns k*p for k in little endian, of 32 or 56 octets and any value: it is
// neither clamped nor reduced. The error is badpoint.ErrIdentity if k is a multiple of the order of p.
// k remains the caller's, who wipes it.
func (p *Point[E, C]) ScalarMult(k []byte) (*Point[E, C], error) {
	var c C
	a := c.coefficient()
	if len(k) != len(c.octets(&a)) {
		return nil, fmt.Errorf("multiply point: scalar of %d octets", len(k))
	}
	var l ladder[E]
	c.ladder(&l, k, &p.u)
	return p.recoverV(&l)
}

// recoverV returns (l.x2 : l.z2) with the v that belongs to it, given that (l.x3 : l.z3) is
// its sum with p: Okeya and Sakurai, "Efficient Elliptic Curve Cryptosystems from a Scalar
// Multiplication Algorithm with Recovery of the y-Coordinate on a Montgomery-Form Elliptic
// Curve", CHES 2001. v(p) is not 0, for p is not of order 2; so the formula fails for z2 = 0,
// the identity, which is refused, and for z3 = 0, where the result is -p.
func (p *Point[E, C]) recoverV(l *ladder[E]) (*Point[E, C], error) {
	var c C
	var t1, t2, t3, az2, w, x, y, z E
	a := c.coefficient()

	c.mul(&t1, &p.u, &l.z2) // t3 = (x2 - u*z2)^2 * x3
	c.add(&t2, &l.x2, &t1)
	c.sub(&t3, &l.x2, &t1)
	c.mul(&t3, &t3, &t3)
	c.mul(&t3, &t3, &l.x3)
	c.add(&az2, &a, &a) // y = ((x2 + u*z2 + 2*A*z2) * (u*x2 + z2) - 2*A*z2^2) * z3 - t3
	c.mul(&az2, &az2, &l.z2)
	c.add(&t2, &t2, &az2)
	c.mul(&y, &p.u, &l.x2)
	c.add(&y, &y, &l.z2)
	c.mul(&y, &y, &t2)
	c.mul(&t1, &az2, &l.z2)
	c.sub(&y, &y, &t1)
	c.mul(&y, &y, &l.z3)
	c.sub(&y, &y, &t3)
	c.add(&w, &p.v, &p.v) // w = 2*v*z2*z3, x = w*x2, z = w*z2
	c.mul(&w, &w, &l.z2)
	c.mul(&w, &w, &l.z3)
	c.mul(&x, &w, &l.x2)
	c.mul(&z, &w, &l.z2)

	minusP, one := p.Negate(), c.one()
	isMinusP := isZero(c.octets(&l.z3))
	c.cmov(&x, &minusP.u, isMinusP)
	c.cmov(&y, &minusP.v, isMinusP)
	c.cmov(&z, &one, isMinusP)
	if isZero(c.octets(&z)) == 1 {
		return nil, badpoint.ErrIdentity
	}
	r := new(Point[E, C])
	c.inv(&z, &z)
	c.mul(&r.u, &x, &z)
	c.mul(&r.v, &y, &z)
	c.octets(&r.u)
	c.octets(&r.v)
	return r, nil
}

// isZero returns, in constant time, 1 if all octets are 0, otherwise 0.
func isZero(b []byte) int {
	var or byte
	for _, x := range b {
		or |= x
	}
	return subtle.ConstantTimeByteEq(or, 0)
}
