package montgomery

import (
	"encoding/binary"
	"math/bits"

	fp "github.com/cloudflare/circl/math/fp448"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// curve448 is v^2 = u^3 + 156326*u^2 + u over the field of 2^448 - 2^224 - 1, which is 3
// modulo 4. The cofactor is 4, and the points of order dividing 4 form a cyclic group.
type curve448 struct{}

var _ curve[fp.Elt] = curve448{}

// Constants of Curve448. Nothing writes to them.
var (
	one448   = fp.Elt{1}
	two448   = fp.Elt{2}
	a448     = fp.Elt{0xa6, 0x62, 0x02} // 156326
	base448U = fp.Elt{5}
	base448V = fp.Elt{
		0x1a, 0x5b, 0x7b, 0x45, 0x3d, 0x22, 0xd7, 0x6f, 0xf7, 0x7a, 0x67, 0x50, 0xb1, 0xc4,
		0x12, 0x13, 0x21, 0x0d, 0x43, 0x46, 0x23, 0x7e, 0x02, 0xb8, 0xed, 0xf6, 0xf3, 0x8d,
		0xc2, 0x5d, 0xf7, 0x60, 0xd0, 0x45, 0x55, 0xf5, 0x34, 0x5d, 0xae, 0xcb, 0xce, 0x6f,
		0x32, 0x58, 0x6e, 0xab, 0x98, 0x6c, 0xf6, 0xb1, 0xf5, 0x95, 0x12, 0x5d, 0x23, 0x7d,
	}
)

func (curve448) octets(x *fp.Elt) []byte  { fp.Modp(x); return x[:] }
func (curve448) one() fp.Elt              { return one448 }
func (curve448) coefficient() fp.Elt      { return a448 }
func (curve448) add(z, x, y *fp.Elt)      { fp.Add(z, x, y) }
func (curve448) sub(z, x, y *fp.Elt)      { fp.Sub(z, x, y) }
func (curve448) mul(z, x, y *fp.Elt)      { fp.Mul(z, x, y) }
func (curve448) inv(z, x *fp.Elt)         { fp.Inv(z, x) }
func (curve448) cmov(z, x *fp.Elt, b int) { fp.Cmov(z, x, uint(b)) }

// ladder is as that of curve25519.
func (curve448) ladder(r *ladder[fp.Elt], k []byte, u *fp.Elt) {
	var t0, t1 fp.Elt
	r.x2, r.z2, r.x3, r.z3 = one448, fp.Elt{}, *u, one448
	previous := uint(0)
	for i := 8*fp.Size - 1; i >= 0; i-- {
		bit := uint(k[i/8]>>(i%8)) & 1
		step448(r, &t0, &t1, u, bit^previous)
		previous = bit
	}
	fp.Cswap(&r.x2, &r.x3, previous)
	fp.Cswap(&r.z2, &r.z3, previous)
}

// step448 is as step25519.
func step448(r *ladder[fp.Elt], t0, t1, u *fp.Elt, swap uint) {
	fp.AddSub(&r.x2, &r.z2)
	fp.AddSub(&r.x3, &r.z3)
	fp.Mul(t0, &r.x2, &r.z3)
	fp.Mul(t1, &r.x3, &r.z2)
	fp.Cmov(&r.x2, &r.x3, swap)
	fp.Cmov(&r.z2, &r.z3, swap)
	fp.Sqr(&r.x2, &r.x2)
	fp.Sqr(&r.z2, &r.z2)
	fp.AddSub(t0, t1)
	fp.Sqr(&r.x3, t0)
	fp.Sqr(&r.z3, t1)
	fp.Sub(t0, &r.x2, &r.z2)
	fp.Mul(&r.x2, &r.x2, &r.z2)
	mulAdd448(t1, &r.z2, t0)
	fp.Mul(&r.z3, &r.z3, u)
	fp.Mul(&r.z2, t0, t1)
}

// mulAdd448 sets z = x + y*(A+2)/4.
func mulAdd448(z, x, y *fp.Elt) {
	const a24 = (156326 + 2) / 4
	h0, l0 := bits.Mul64(binary.LittleEndian.Uint64(y[0:]), a24)
	h1, l1 := bits.Mul64(binary.LittleEndian.Uint64(y[8:]), a24)
	h2, l2 := bits.Mul64(binary.LittleEndian.Uint64(y[16:]), a24)
	h3, l3 := bits.Mul64(binary.LittleEndian.Uint64(y[24:]), a24)
	h4, l4 := bits.Mul64(binary.LittleEndian.Uint64(y[32:]), a24)
	h5, l5 := bits.Mul64(binary.LittleEndian.Uint64(y[40:]), a24)
	h6, l6 := bits.Mul64(binary.LittleEndian.Uint64(y[48:]), a24)

	l1, c := bits.Add64(l1, h0, 0)
	l2, c = bits.Add64(l2, h1, c)
	l3, c = bits.Add64(l3, h2, c)
	l4, c = bits.Add64(l4, h3, c)
	l5, c = bits.Add64(l5, h4, c)
	l6, c = bits.Add64(l6, h5, c)
	h6 += c

	l0, c = bits.Add64(l0, binary.LittleEndian.Uint64(x[0:]), 0)
	l1, c = bits.Add64(l1, binary.LittleEndian.Uint64(x[8:]), c)
	l2, c = bits.Add64(l2, binary.LittleEndian.Uint64(x[16:]), c)
	l3, c = bits.Add64(l3, binary.LittleEndian.Uint64(x[24:]), c)
	l4, c = bits.Add64(l4, binary.LittleEndian.Uint64(x[32:]), c)
	l5, c = bits.Add64(l5, binary.LittleEndian.Uint64(x[40:]), c)
	l6, c = bits.Add64(l6, binary.LittleEndian.Uint64(x[48:]), c)
	h6 += c // the sum is h6*2^448 + l, and 2^448 = 2^224 + 1 modulo p; h6 is below 2^17

	l0, c = bits.Add64(l0, h6, 0)
	l1, c = bits.Add64(l1, 0, c)
	l2, c = bits.Add64(l2, 0, c)
	l3, c = bits.Add64(l3, h6<<32, c)
	l4, c = bits.Add64(l4, 0, c)
	l5, c = bits.Add64(l5, 0, c)
	l6, c = bits.Add64(l6, 0, c)

	l0, d := bits.Add64(l0, c, 0) // after a carry l is below h6*(2^224 + 1)
	l1, d = bits.Add64(l1, 0, d)
	l2, d = bits.Add64(l2, 0, d)
	l3 += c<<32 + d

	binary.LittleEndian.PutUint64(z[0:], l0)
	binary.LittleEndian.PutUint64(z[8:], l1)
	binary.LittleEndian.PutUint64(z[16:], l2)
	binary.LittleEndian.PutUint64(z[24:], l3)
	binary.LittleEndian.PutUint64(z[32:], l4)
	binary.LittleEndian.PutUint64(z[40:], l5)
	binary.LittleEndian.PutUint64(z[48:], l6)
}

func (curve448) lift(v, u *fp.Elt) error       { return lift448(v, u, isSquare448) }
func (curve448) liftSecret(v, u *fp.Elt) error { return lift448(v, u, isSquareSecret448) }

// lift448 takes two exponentiations, for the square roots w of u and s of g = u^2 + A*u + 1, of which
// v is the product. One of u and g alone being a square means a twist.
//
// The rational points form a cyclic group of 4*L elements, so P has order L if and only if it is
// four times a rational point. P is twice a rational point R if and only if u is a square:
// that is the image of an isogeny of degree 2, of index 2 as is the set of doubles. R is to be
// twice a rational point too; its u-coordinate, r, is to be a square. By the doubling formula
//
//	r + 1/r = t with t^2 - 4*u*t - 4 - 4*u*A = 0, so t = 2*(u + s) or t = 2*(u - s)
//
// A t belongs to a rational r if t^2 - 4 is a square, and this is 4*u*(t + A), so if t + A is
// a square. Then r is a square if t + 2 is, which is (r + 1)^2 / r. The product of t + A for
// both t is A^2 - 4, not a square; the product of t + 2 is 4*u*(2 - A), not a square either. So
// for one t, t + A is a square, and to ask for t + 2 is to ask whether (t + 2)*(t + A) is a square;
// for the other t both factors change, and the answer is the same. The factors are not 0, for P
// would then have order 1 or 2.
//
// But for isSquare it takes the same time for all points of prime order.
func lift448(v, u *fp.Elt, isSquare func(*fp.Elt) bool) error {
	var g, w, s, t fp.Elt
	if isLowOrder448(u) {
		return badpoint.ErrLowOrder
	}
	fp.Add(&g, u, &a448)
	fp.Mul(&g, &g, u)
	fp.Add(&g, &g, &one448)
	gIsSquare := fp.InvSqrt(&s, &g, &one448)
	uIsSquare := fp.InvSqrt(&w, u, &one448)
	if gIsSquare != uIsSquare {
		return badpoint.ErrTwist
	}
	fp.Mul(v, &w, &s)
	fp.Add(&t, u, &s)
	fp.Add(&t, &t, &t)
	fp.Add(&g, &t, &two448)
	fp.Add(&t, &t, &a448)
	fp.Mul(&t, &t, &g)
	if !uIsSquare || !isSquare(&t) {
		return badpoint.ErrTorsion
	}
	return nil
}

// isLowOrder448 tells whether the points with this u have order 2, u = 0, or order 4, u = -1.
func isLowOrder448(u *fp.Elt) bool {
	var t fp.Elt
	fp.Add(&t, u, &one448)
	return *u == fp.Elt{} || fp.IsZero(&t)
}

// isSquareSecret448 tells whether x is a square, by an exponentiation.
func isSquareSecret448(x *fp.Elt) bool {
	var root fp.Elt
	return fp.InvSqrt(&root, x, &one448)
}

// isSquare448 tells whether x, which is not 0, is a square. It takes time that depends on x.
func isSquare448(x *fp.Elt) bool {
	fp.Modp(x)
	p := fp.P()
	if symbol := legendre(x[:], p[:]); symbol != 0 {
		return symbol > 0
	}
	var root fp.Elt
	return fp.InvSqrt(&root, x, &one448)
}
