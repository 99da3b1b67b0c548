// Package fixedbase adds multiples of two points of a NIST curve that are known beforehand, with tables of both: what
// verifying ECDSA takes, in a third of the time that general point arithmetic needs.
//
// Its time depends on points and scalars. It is for public values only, and holds no secret.
package fixedbase

import (
	"math/big"
	"sync"
)

// Base is a point with tables of its multiples, which take 64 to 144 kilobytes. It may be used from several
// goroutines at once.
type Base interface {
	// Matches reports whether x is the affine x-coordinate, modulo the order of the group, of
	// u1*G + u2*B with the curve's generator G and this point B. u1, u2 and x are below the order. It is
	// false if the sum is infinity.
	Matches(u1, u2, x *big.Int) bool
}

// NewP256 computes the tables of the point (x, y), which must be one of P-256.
func NewP256(x, y *big.Int) Base { return newBase(p256(), x, y) }

// NewP384 is NewP256 for P-384.
func NewP384(x, y *big.Int) Base { return newBase(p384(), x, y) }

// NewP521 is NewP256 for P-521.
func NewP521(x, y *big.Int) Base { return newBase(p521(), x, y) }

// The curves with the tables of their generators, made when first used. SP 800-186, 3.2.1.
var (
	p256 = sync.OnceValue(func() *curve[[4]uint64] {
		return newCurve(newPrime("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff", mul256, add256, sub256, true),
			"ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551",
			"6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
			"4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
	})
	p384 = sync.OnceValue(func() *curve[[6]uint64] {
		return newCurve(newPrime("fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffffff", mul384, add384, sub384, true),
			"ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
			"aa87ca22be8b05378eb1c71ef320ad746e1d3b628ba79b9859f741e082542a385502f25dbf55296c3a545e3872760ab7",
			"3617de4a96262c6f5d9e98bf9292dc29f8f41dbd289a147ce9da3113b5f0b8c00a60b1ce1d7e819d7a431d7c90ea0e5f")
	})
	p521 = sync.OnceValue(func() *curve[[9]uint64] {
		return newCurve(newPrime("1ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", mul521, add521, sub521, false),
			"1fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409",
			"c6858e06b70404e9cd9e3ecb662395b4429c648139053fb521f828af606b4d3dbaa14b5e77efe75928fe1dc127a2ffa8de3348b3c1856a429bf97e7e31c2e5bd66",
			"11839296a789a3bc0045c8a5fb42c7d1bd998f54449579b446817afbd17273e662c97ee72995ef42640c550b9013fad0761353c7086a272c24088be94769fd16650")
	})
)

// curve is y^2 = x^3 - 3x + b. No formula needs b.
type curve[E element] struct {
	*prime[E]
	order     *big.Int
	generator *comb[affine[E]]
}

func newCurve[E element](f *prime[E], order, x, y string) *curve[E] {
	c := &curve[E]{prime: f}
	n := [3]*big.Int{}
	for i, s := range []string{order, x, y} {
		n[i], _ = new(big.Int).SetString(s, 16)
	}
	c.order = n[0]
	c.generator = c.newComb(n[1], n[2])
	return c
}

// newComb computes the tables of a point.
func (c *curve[E]) newComb(x, y *big.Int) *comb[affine[E]] {
	t := newComb[affine[E]](c.order.BitLen())
	p := sum[E]{prime: c.prime}
	p.plus(&affine[E]{c.from(x), c.from(y)})
	rows := normalize(c.prime, heads(t.columns, t.block, func() sum[E] {
		s := p
		p.double()
		return s
	}))
	t.fill(normalize(c.prime, sums(sum[E]{prime: c.prime}, rows, func(s sum[E], p affine[E]) sum[E] {
		s.plus(&p)
		return s
	})))
	return t
}

// base is a Base of one curve.
type base[E element] struct {
	curve *curve[E]
	comb  *comb[affine[E]]
}

func newBase[E element](c *curve[E], x, y *big.Int) *base[E] { return &base[E]{c, c.newComb(x, y)} }

// Matches compares in Jacobian coordinates, x*z^2 with the sum's x, which saves an inversion. As x is only
// known modulo the order, x plus the order is a candidate, too, if it is below p.
func (b *base[E]) Matches(u1, u2, x *big.Int) bool {
	c := b.curve
	s := &sum[E]{prime: c.prime}
	k1, k2 := words(u1, len(s.x)), words(u2, len(s.x))
	terms := make([]affine[E], 0, 2*blocks)
	for column := b.comb.block - 1; column >= 0; column-- {
		terms = b.comb.append(c.generator.append(terms[:0], column, k1), column, k2)
		s.double()
		for i := range terms {
			s.plus(&terms[i])
		}
	}
	if s.infinite() {
		return false
	}
	var zz E
	c.mul(&zz, &s.z, &s.z)
	for candidate := new(big.Int).Set(x); candidate.Cmp(c.p) < 0; candidate.Add(candidate, c.order) {
		e := c.from(candidate)
		c.mul(&e, &e, &zz)
		if e == s.x {
			return true
		}
	}
	return false
}

// affine is a point that is not infinity.
type affine[E element] struct{ x, y E }

// sum is a point in Jacobian coordinates, (x/z^2, y/z^3), infinity where z is 0, and room for what is computed on the way:
// variables would be allocated each time, because the functions of prime are not known here.
type sum[E element] struct {
	*prime[E]
	x, y, z E
	t       [6]E
}

func (s *sum[E]) infinite() bool { return s.z == s.zero }

// double doubles s: dbl-2001-b of the Explicit-Formulas Database, for curves with a = -3.
func (s *sum[E]) double() {
	if s.infinite() {
		return
	}
	delta, gamma, beta, alpha, u := &s.t[0], &s.t[1], &s.t[2], &s.t[3], &s.t[4]
	s.mul(delta, &s.z, &s.z)
	s.mul(gamma, &s.y, &s.y)
	s.mul(beta, &s.x, gamma)
	s.sub(alpha, &s.x, delta)
	s.add(u, &s.x, delta)
	s.mul(alpha, alpha, u)
	s.add(u, alpha, alpha)
	s.add(alpha, u, alpha)
	s.mul(&s.z, &s.y, &s.z)
	s.add(&s.z, &s.z, &s.z)
	s.add(beta, beta, beta)
	s.add(beta, beta, beta)
	s.mul(&s.x, alpha, alpha)
	s.sub(&s.x, &s.x, beta)
	s.sub(&s.x, &s.x, beta)
	s.sub(beta, beta, &s.x)
	s.mul(&s.y, alpha, beta)
	s.mul(gamma, gamma, gamma)
	for range 3 {
		s.add(gamma, gamma, gamma)
	}
	s.sub(&s.y, &s.y, gamma)
}

// plus adds p to s (Hankerson, Menezes, Vanstone, "Guide to Elliptic Curve Cryptography", algorithm 3.22).
func (s *sum[E]) plus(p *affine[E]) {
	if s.infinite() {
		s.x, s.y, s.z = p.x, p.y, s.one
		return
	}
	zz, h, r, hh, hhh, v := &s.t[0], &s.t[1], &s.t[2], &s.t[3], &s.t[4], &s.t[5]
	s.mul(zz, &s.z, &s.z)
	s.mul(h, &p.x, zz)
	s.sub(h, h, &s.x)
	s.mul(r, &p.y, zz)
	s.mul(r, r, &s.z)
	s.sub(r, r, &s.y)
	if *h == s.zero {
		if *r == s.zero {
			s.double() // they are equal
		} else {
			s.z = s.zero // they are opposite
		}
		return
	}
	s.mul(hh, h, h)
	s.mul(hhh, hh, h)
	s.mul(v, &s.x, hh)
	s.mul(&s.z, &s.z, h)
	s.mul(&s.x, r, r)
	s.sub(&s.x, &s.x, hhh)
	s.sub(&s.x, &s.x, v)
	s.sub(&s.x, &s.x, v)
	s.sub(v, v, &s.x)
	s.mul(v, r, v)
	s.mul(hhh, &s.y, hhh)
	s.sub(&s.y, v, hhh)
}

// normalize returns the points with z = 1, with one inversion for all of them (Montgomery's trick). Infinity
// becomes (0, 0).
func normalize[E element](f *prime[E], points []sum[E]) []affine[E] {
	out := make([]affine[E], len(points))
	before := f.one // product of all z so far
	for i := range points {
		out[i].x = before
		if !points[i].infinite() {
			f.mul(&before, &before, &points[i].z)
		}
	}
	var inverse, z, zz E
	f.invert(&inverse, &before)
	for i := len(points) - 1; i >= 0; i-- {
		p := &points[i]
		f.mul(&z, &inverse, &out[i].x)
		out[i] = affine[E]{}
		if p.infinite() {
			continue
		}
		f.mul(&inverse, &inverse, &p.z)
		f.mul(&zz, &z, &z)
		f.mul(&out[i].x, &p.x, &zz)
		f.mul(&zz, &zz, &z)
		f.mul(&out[i].y, &p.y, &zz)
	}
	return out
}
