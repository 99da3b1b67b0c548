package montgomery

import (
	"math/big"
	"math/rand/v2"
	"slices"
)

// reference is a Montgomery curve in big integers and affine coordinates, written for
// obviousness. A nil *affine is the identity.
type reference struct {
	p, a, l  *big.Int
	cofactor int64
	size     int // octets of a coordinate
}

type affine struct{ u, v *big.Int }

func parseInt(decimal string) *big.Int {
	n, ok := new(big.Int).SetString(decimal, 10)
	if !ok {
		panic("not a number: " + decimal)
	}
	return n
}

func reference25519() *reference {
	p := new(big.Int).Lsh(big.NewInt(1), 255)
	l := new(big.Int).Lsh(big.NewInt(1), 252)
	return &reference{
		p:        p.Sub(p, big.NewInt(19)),
		a:        big.NewInt(486662),
		l:        l.Add(l, parseInt("27742317777372353535851937790883648493")),
		cofactor: 8,
		size:     32,
	}
}

func reference448() *reference {
	p := new(big.Int).Lsh(big.NewInt(1), 448)
	p.Sub(p, new(big.Int).Lsh(big.NewInt(1), 224))
	l := new(big.Int).Lsh(big.NewInt(1), 446)
	return &reference{
		p:        p.Sub(p, big.NewInt(1)),
		a:        big.NewInt(156326),
		l:        l.Sub(l, parseInt("13818066809895115352007386748515426880336692474882178609894547503885")),
		cofactor: 4,
		size:     56,
	}
}

func (r *reference) mod(x *big.Int) *big.Int { return x.Mod(x, r.p) }

// rhs is u^3 + A*u^2 + u.
func (r *reference) rhs(u *big.Int) *big.Int {
	t := new(big.Int).Add(u, r.a)
	t.Mul(t, u).Add(t, big.NewInt(1)).Mul(t, u)
	return r.mod(t)
}

// lift returns the point with this u and even v, or nil if there is none.
func (r *reference) lift(u *big.Int) *affine {
	v := new(big.Int).ModSqrt(r.rhs(u), r.p)
	if v == nil {
		return nil
	}
	if v.Bit(0) == 1 {
		v.Sub(r.p, v)
	}
	return &affine{u, v}
}

func (r *reference) negate(p *affine) *affine {
	return &affine{p.u, r.mod(new(big.Int).Neg(p.v))}
}

func (r *reference) add(p, q *affine) *affine {
	if p == nil {
		return q
	}
	if q == nil {
		return p
	}
	numerator := new(big.Int).Sub(q.v, p.v)
	denominator := new(big.Int).Sub(q.u, p.u)
	if denominator.Sign() == 0 {
		if p.v.Cmp(q.v) != 0 || p.v.Sign() == 0 {
			return nil
		}
		numerator.Mul(p.u, big.NewInt(3))
		numerator.Add(numerator, r.a).Add(numerator, r.a).Mul(numerator, p.u)
		numerator.Add(numerator, big.NewInt(1))
		denominator.Lsh(p.v, 1)
	}
	slope := denominator.ModInverse(r.mod(denominator), r.p)
	r.mod(slope.Mul(slope, numerator))
	u := new(big.Int).Mul(slope, slope)
	r.mod(u.Sub(u, r.a).Sub(u, p.u).Sub(u, q.u))
	v := new(big.Int).Sub(p.u, u)
	r.mod(v.Mul(v, slope).Sub(v, p.v))
	return &affine{u, v}
}

func (r *reference) multiply(k *big.Int, p *affine) *affine {
	var sum *affine
	for i := k.BitLen() - 1; i >= 0; i-- {
		sum = r.add(sum, sum)
		if k.Bit(i) == 1 {
			sum = r.add(sum, p)
		}
	}
	return sum
}

// encode is the signed encoding.
func (r *reference) encode(p *affine) []byte {
	b := r.littleEndian(p.u)
	return append(b, byte(p.v.Bit(0)<<7))
}

func (r *reference) littleEndian(x *big.Int) []byte {
	b := x.FillBytes(make([]byte, r.size))
	slices.Reverse(b)
	return b
}

func (r *reference) fromLittleEndian(b []byte) *big.Int {
	b = slices.Clone(b)
	slices.Reverse(b)
	return new(big.Int).SetBytes(b)
}

// newRandom returns reproducible randomness: a test that fails, fails again.
func newRandom(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// below returns a random number below n.
func below(rnd *rand.Rand, n *big.Int) *big.Int {
	b := make([]byte, n.BitLen()/8+16)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	x := new(big.Int).SetBytes(b)
	return x.Mod(x, n)
}

// randomPoint returns a random point of the whole curve, with the cofactor.
func (r *reference) randomPoint(rnd *rand.Rand) *affine {
	for {
		if p := r.lift(below(rnd, r.p)); p != nil {
			if rnd.IntN(2) == 1 {
				return r.negate(p)
			}
			return p
		}
	}
}

// randomPrimeOrder returns a random point of the prime-order subgroup.
func (r *reference) randomPrimeOrder(rnd *rand.Rand) *affine {
	for {
		if p := r.multiply(big.NewInt(r.cofactor), r.randomPoint(rnd)); p != nil {
			return p
		}
	}
}

// torsion returns the points whose order divides the cofactor; the multiples of one of
// them, beginning with the identity.
func (r *reference) torsion(rnd *rand.Rand) []*affine {
	for {
		t := r.multiply(r.l, r.randomPoint(rnd))
		if t == nil || r.multiply(big.NewInt(r.cofactor/2), t) == nil {
			continue
		}
		points := []*affine{nil}
		for next := t; next != nil; next = r.add(next, t) {
			points = append(points, next)
		}
		return points
	}
}
