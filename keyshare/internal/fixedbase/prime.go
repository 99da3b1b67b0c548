package fixedbase

import (
	"math/big"
	"math/bits"
)

//go:generate go run generate.go

// element is a number below p, least significant word first, in Montgomery form but for P-521.
type element interface {
	[4]uint64 | [6]uint64 | [9]uint64
}

// prime is arithmetic modulo a prime p. In all functions z may be x or y.
type prime[E element] struct {
	p             *big.Int
	mul, add, sub func(z, x, y *E)
	zero, one     E // 1 in this form
	shifted       E // what a number is multiplied with to be in this form
}

func newPrime[E element](p string, mul, add, sub func(z, x, y *E), montgomery bool) *prime[E] {
	f := &prime[E]{mul: mul, add: add, sub: sub}
	f.p, _ = new(big.Int).SetString(p, 16)
	r := big.NewInt(1)
	if montgomery {
		r.Lsh(r, uint(f.p.BitLen()))
	}
	f.one = toElement[E](new(big.Int).Mod(r, f.p))
	f.shifted = toElement[E](r.Mod(r.Mul(r, r), f.p))
	return f
}

// toElement returns a number that has no more words than E.
func toElement[E element](n *big.Int) (e E) {
	for i, w := range words(n, len(e)) {
		e[i] = w
	}
	return e
}

// from returns a number below p in the form of f.
func (f *prime[E]) from(n *big.Int) (e E) {
	e = toElement[E](n)
	f.mul(&e, &e, &f.shifted)
	return e
}

// invert sets z to 1/x by Fermat's little theorem; 0 stays 0.
func (f *prime[E]) invert(z, x *E) {
	power, out := *x, f.one
	e := new(big.Int).Sub(f.p, big.NewInt(2))
	for i := range e.BitLen() {
		if e.Bit(i) != 0 {
			f.mul(&out, &out, &power)
		}
		f.mul(&power, &power, &power)
	}
	*z = out
}

// reduce256 sets z to t, with the word hi above it, modulo p. It is below 2p.
func reduce256(z, t *[4]uint64, hi uint64) {
	r0, b := bits.Sub64(t[0], 0xffffffffffffffff, 0)
	r1, b := bits.Sub64(t[1], 0x00000000ffffffff, b)
	r2, b := bits.Sub64(t[2], 0, b)
	r3, b := bits.Sub64(t[3], 0xffffffff00000001, b)
	_, b = bits.Sub64(hi, 0, b)
	keep := -b // all ones if t is below p
	z[0] = r0 ^ (r0^t[0])&keep
	z[1] = r1 ^ (r1^t[1])&keep
	z[2] = r2 ^ (r2^t[2])&keep
	z[3] = r3 ^ (r3^t[3])&keep
}

func add256(z, x, y *[4]uint64) {
	var t [4]uint64
	var c uint64
	t[0], c = bits.Add64(x[0], y[0], 0)
	t[1], c = bits.Add64(x[1], y[1], c)
	t[2], c = bits.Add64(x[2], y[2], c)
	t[3], c = bits.Add64(x[3], y[3], c)
	reduce256(z, &t, c)
}

func sub256(z, x, y *[4]uint64) {
	t0, b := bits.Sub64(x[0], y[0], 0)
	t1, b := bits.Sub64(x[1], y[1], b)
	t2, b := bits.Sub64(x[2], y[2], b)
	t3, b := bits.Sub64(x[3], y[3], b)
	m := -b // then p is added
	var c uint64
	z[0], c = bits.Add64(t0, m, 0)
	z[1], c = bits.Add64(t1, m&0x00000000ffffffff, c)
	z[2], c = bits.Add64(t2, 0, c)
	z[3], _ = bits.Add64(t3, m&0xffffffff00000001, c)
}

// reduce384 sets z to t, with the word hi above it, modulo p. It is below 2p.
func reduce384(z, t *[6]uint64, hi uint64) {
	r0, b := bits.Sub64(t[0], 0x00000000ffffffff, 0)
	r1, b := bits.Sub64(t[1], 0xffffffff00000000, b)
	r2, b := bits.Sub64(t[2], 0xfffffffffffffffe, b)
	r3, b := bits.Sub64(t[3], 0xffffffffffffffff, b)
	r4, b := bits.Sub64(t[4], 0xffffffffffffffff, b)
	r5, b := bits.Sub64(t[5], 0xffffffffffffffff, b)
	_, b = bits.Sub64(hi, 0, b)
	keep := -b // all ones if t is below p
	z[0] = r0 ^ (r0^t[0])&keep
	z[1] = r1 ^ (r1^t[1])&keep
	z[2] = r2 ^ (r2^t[2])&keep
	z[3] = r3 ^ (r3^t[3])&keep
	z[4] = r4 ^ (r4^t[4])&keep
	z[5] = r5 ^ (r5^t[5])&keep
}

func add384(z, x, y *[6]uint64) {
	var t [6]uint64
	var c uint64
	t[0], c = bits.Add64(x[0], y[0], 0)
	t[1], c = bits.Add64(x[1], y[1], c)
	t[2], c = bits.Add64(x[2], y[2], c)
	t[3], c = bits.Add64(x[3], y[3], c)
	t[4], c = bits.Add64(x[4], y[4], c)
	t[5], c = bits.Add64(x[5], y[5], c)
	reduce384(z, &t, c)
}

func sub384(z, x, y *[6]uint64) {
	t0, b := bits.Sub64(x[0], y[0], 0)
	t1, b := bits.Sub64(x[1], y[1], b)
	t2, b := bits.Sub64(x[2], y[2], b)
	t3, b := bits.Sub64(x[3], y[3], b)
	t4, b := bits.Sub64(x[4], y[4], b)
	t5, b := bits.Sub64(x[5], y[5], b)
	m := -b // then p is added
	var c uint64
	z[0], c = bits.Add64(t0, m&0x00000000ffffffff, 0)
	z[1], c = bits.Add64(t1, m&0xffffffff00000000, c)
	z[2], c = bits.Add64(t2, m&0xfffffffffffffffe, c)
	z[3], c = bits.Add64(t3, m, c)
	z[4], c = bits.Add64(t4, m, c)
	z[5], _ = bits.Add64(t5, m, c)
}

// P-521 has p = 2^521-1, so that what is above bit 521 is added at the bottom, and no other form is
// needed.

const top521 = 1<<(521-8*64) - 1 // bits of the highest word

func mul521(z, x, y *[9]uint64) {
	var t [18]uint64
	for i, v := range x {
		var carry uint64
		for j, w := range y {
			hi, lo := bits.Mul64(v, w)
			lo, c := bits.Add64(lo, t[i+j], 0)
			hi += c
			t[i+j], c = bits.Add64(lo, carry, 0)
			carry = hi + c
		}
		t[i+9] = carry
	}
	var low, high [9]uint64
	copy(low[:], t[:9])
	low[8] &= top521
	for i := range high {
		high[i] = t[i+8]>>9 | t[i+9]<<55
	}
	add521(z, &low, &high)
}

// add521 takes x and y up to p.
func add521(z, x, y *[9]uint64) {
	var t [9]uint64
	var c uint64
	for i := range t {
		t[i], c = bits.Add64(x[i], y[i], c)
	}
	c, t[8] = t[8]>>9, t[8]&top521
	all := uint64(top521) ^ t[8]
	for i := range t {
		t[i], c = bits.Add64(t[i], 0, c)
		if i < 8 {
			all |= ^t[i]
		}
	}
	if all == 0 { // p itself is 0
		t = [9]uint64{}
	}
	*z = t
}

func sub521(z, x, y *[9]uint64) {
	var minus [9]uint64 // p - y
	for i, v := range y {
		minus[i] = ^v
	}
	minus[8] &= top521
	add521(z, x, &minus)
}
