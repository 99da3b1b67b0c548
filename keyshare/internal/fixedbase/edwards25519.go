package fixedbase

import (
	"encoding/binary"
	"sync"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"
)

// Edwards25519 is a point of edwards25519 with tables of its multiples, which take 120 kilobytes. It may be used from
// several goroutines at once.
type Edwards25519 struct{ comb *comb[niels] }

// NewEdwards25519 computes the tables of a point.
func NewEdwards25519(p *edwards25519.Point) *Edwards25519 { return &Edwards25519{nielsComb(p)} }

// generator25519 has the tables of the generator, made when first used.
var generator25519 = sync.OnceValue(func() *comb[niels] { return nielsComb(edwards25519.NewGeneratorPoint()) })

// Encode returns the encoding (RFC 8032, 5.1.2) of s*G + k*B with the generator G and this point B. Scalars are
// 32 octets, little-endian, below 2^253.
func (b *Edwards25519) Encode(s, k []byte) []byte {
	generator := generator25519()
	ks, kk := littleEndian(s), littleEndian(k)
	sum := newEdwardsSum()
	terms := make([]niels, 0, 2*blocks)
	for column := b.comb.block - 1; column >= 0; column-- {
		terms = b.comb.append(generator.append(terms[:0], column, ks[:]), column, kk[:])
		sum.double()
		for i := range terms {
			sum.plus(&terms[i])
		}
	}
	return sum.encode()
}

func littleEndian(b []byte) (w [4]uint64) {
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return w
}

// niels is a point (x, y) in the form in which adding it is fastest: y+x, y-x, 2dxy. Hisil, Wong, Carter, Dawson,
// "Twisted Edwards Curves Revisited", 2008; no case is exceptional, as d is no square.
type niels struct{ plus, minus, xy2d field.Element }

// nielsComb computes the tables of a point.
func nielsComb(p *edwards25519.Point) *comb[niels] {
	t := newComb[niels](253)
	next := new(edwards25519.Point).Set(p)
	rows := heads(t.columns, t.block, func() *edwards25519.Point {
		q := new(edwards25519.Point).Set(next)
		next.Add(next, next)
		return q
	})
	t.fill(toNiels(sums(edwards25519.NewIdentityPoint(), rows, func(p, q *edwards25519.Point) *edwards25519.Point {
		return new(edwards25519.Point).Add(p, q)
	})))
	return t
}

// toNiels inverts once for all points (Montgomery's trick).
func toNiels(points []*edwards25519.Point) []niels {
	out := make([]niels, len(points))
	product := new(field.Element).One()
	for i, p := range points {
		_, _, z, _ := p.ExtendedCoordinates()
		out[i].plus.Set(product)
		product.Multiply(product, z)
	}
	d2 := twoD()
	inverse := product.Invert(product)
	for i := len(points) - 1; i >= 0; i-- {
		x, y, z, _ := points[i].ExtendedCoordinates()
		var zInverse field.Element
		zInverse.Multiply(inverse, &out[i].plus)
		inverse.Multiply(inverse, z)
		x.Multiply(x, &zInverse)
		y.Multiply(y, &zInverse)
		out[i].plus.Add(y, x)
		out[i].minus.Subtract(y, x)
		out[i].xy2d.Multiply(x, y)
		out[i].xy2d.Multiply(&out[i].xy2d, d2)
	}
	return out
}

// twoD returns 2d, d = -121665/121666 (RFC 8032, 5.1).
func twoD() *field.Element {
	one := new(field.Element).One()
	d := new(field.Element).Mult32(one, 121666)
	d.Multiply(d.Invert(d), new(field.Element).Mult32(one, 121665))
	d.Negate(d)
	return d.Add(d, d)
}

// edwardsSum is a point (x/z, y/z) with t = xy/z.
type edwardsSum struct{ x, y, z, t field.Element }

func newEdwardsSum() *edwardsSum {
	s := new(edwardsSum)
	s.y.One()
	s.z.One()
	return s
}

// plus adds p.
func (s *edwardsSum) plus(p *niels) {
	var a, b, c, d, e, f, g, h field.Element
	a.Multiply(a.Subtract(&s.y, &s.x), &p.minus)
	b.Multiply(b.Add(&s.y, &s.x), &p.plus)
	c.Multiply(&s.t, &p.xy2d)
	d.Add(&s.z, &s.z)
	e.Subtract(&b, &a)
	f.Subtract(&d, &c)
	g.Add(&d, &c)
	h.Add(&b, &a)
	s.take(&e, &f, &g, &h)
}

// double doubles s.
func (s *edwardsSum) double() {
	var a, b, c, e, f, g, h field.Element
	a.Square(&s.x)
	b.Square(&s.y)
	c.Square(&s.z)
	c.Add(&c, &c)
	h.Add(&a, &b)
	e.Square(e.Add(&s.x, &s.y))
	e.Subtract(&h, &e)
	g.Subtract(&a, &b)
	f.Add(&c, &g)
	s.take(&e, &f, &g, &h)
}

// take sets the coordinates from the products that addition and doubling end in.
func (s *edwardsSum) take(e, f, g, h *field.Element) {
	s.x.Multiply(e, f)
	s.y.Multiply(g, h)
	s.t.Multiply(e, h)
	s.z.Multiply(f, g)
}

func (s *edwardsSum) encode() []byte {
	var inverse, x, y field.Element
	inverse.Invert(&s.z)
	x.Multiply(&s.x, &inverse)
	out := y.Multiply(&s.y, &inverse).Bytes()
	out[31] |= byte(x.IsNegative()) << 7
	return out
}
