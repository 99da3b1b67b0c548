package montgomery

import (
	"encoding/binary"
	"math/bits"

	fp "github.com/cloudflare/circl/math/fp25519"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// curve25519 is v^2 = u^3 + 486662*u^2 + u over the field of 2^255 - 19, which is 5 modulo 8.
// The cofactor is 8, and the points of order dividing 8 form a cyclic group.
type curve25519 struct{}

var _ curve[fp.Elt] = curve25519{}

// Constants of Curve25519. Nothing writes to them.
var (
	one25519   = fp.Elt{1}
	a25519     = fp.Elt{0x06, 0x6d, 0x07} // 486662
	base25519U = fp.Elt{9}
	base25519V = fp.Elt{
		0xd9, 0xd3, 0xce, 0x7e, 0xa2, 0xc5, 0xe9, 0x29, 0xb2, 0x61, 0x7c, 0x6d, 0x7e, 0x4d, 0x3d, 0x92,
		0x4c, 0xd1, 0x48, 0x77, 0x2c, 0xdd, 0x1e, 0xe0, 0xb4, 0x86, 0xa0, 0xb8, 0xa1, 0x19, 0xae, 0x20,
	}
	// i25519 is a square root of -1.
	i25519 = fp.Elt{
		0xb0, 0xa0, 0x0e, 0x4a, 0x27, 0x1b, 0xee, 0xc4, 0x78, 0xe4, 0x2f, 0xad, 0x06, 0x18, 0x43, 0x2f,
		0xa7, 0xd7, 0xfb, 0x3d, 0x99, 0x00, 0x4d, 0x2b, 0x0b, 0xdf, 0xc1, 0x4f, 0x80, 0x24, 0x83, 0x2b,
	}
	// order4V25519 is a square root of A + 2; the points of order 4 are (1, v) and (1, -v).
	order4V25519 = fp.Elt{
		0x15, 0x44, 0x88, 0x9c, 0xef, 0x48, 0xa2, 0xe9, 0x63, 0x93, 0x4a, 0x28, 0xc7, 0x11, 0x5a, 0x63,
		0xef, 0xa6, 0xf4, 0xd7, 0x7a, 0xa7, 0x1f, 0xc2, 0xaf, 0xc2, 0xa9, 0xf9, 0x97, 0xf4, 0xe4, 0x6b,
	}
)

func (curve25519) octets(x *fp.Elt) []byte  { fp.Modp(x); return x[:] }
func (curve25519) one() fp.Elt              { return one25519 }
func (curve25519) coefficient() fp.Elt      { return a25519 }
func (curve25519) add(z, x, y *fp.Elt)      { fp.Add(z, x, y) }
func (curve25519) sub(z, x, y *fp.Elt)      { fp.Sub(z, x, y) }
func (curve25519) mul(z, x, y *fp.Elt)      { fp.Mul(z, x, y) }
func (curve25519) inv(z, x *fp.Elt)         { fp.Inv(z, x) }
func (curve25519) cmov(z, x *fp.Elt, b int) { fp.Cmov(z, x, uint(b)) }

// ladder is the Montgomery ladder of RFC 7748, section 5, over all bits of k. It is written once
// for each field: through the curve interface it would take a tenth longer.
func (curve25519) ladder(r *ladder[fp.Elt], k []byte, u *fp.Elt) {
	var t0, t1 fp.Elt
	r.x2, r.z2, r.x3, r.z3 = one25519, fp.Elt{}, *u, one25519
	previous := uint(0)
	for i := 8*fp.Size - 1; i >= 0; i-- {
		bit := uint(k[i/8]>>(i%8)) & 1
		step25519(r, &t0, &t1, u, bit^previous)
		previous = bit
	}
	fp.Cswap(&r.x2, &r.x3, previous)
	fp.Cswap(&r.z2, &r.z3, previous)
}

// step25519 adds the two points of r and doubles one of them, the second if swap is 1. The
// double becomes the first point, the sum the second. Where RFC 7748 swaps the points, this
// selects the one to double: the sum does not depend on their order.
//
// The addition and the doubling are interleaved, for the processor to work on both at once.
func step25519(r *ladder[fp.Elt], t0, t1, u *fp.Elt, swap uint) {
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
	mulAdd25519(t1, &r.z2, t0)
	fp.Mul(&r.z3, &r.z3, u)
	fp.Mul(&r.z2, t0, t1)
}

// mulAdd25519 sets z = x + y*(A+2)/4.
func mulAdd25519(z, x, y *fp.Elt) {
	const a24 = (486662 + 2) / 4
	h0, l0 := bits.Mul64(binary.LittleEndian.Uint64(y[0:]), a24)
	h1, l1 := bits.Mul64(binary.LittleEndian.Uint64(y[8:]), a24)
	h2, l2 := bits.Mul64(binary.LittleEndian.Uint64(y[16:]), a24)
	h3, l3 := bits.Mul64(binary.LittleEndian.Uint64(y[24:]), a24)

	l1, c := bits.Add64(l1, h0, 0)
	l2, c = bits.Add64(l2, h1, c)
	l3, c = bits.Add64(l3, h2, c)
	h3 += c

	l0, c = bits.Add64(l0, binary.LittleEndian.Uint64(x[0:]), 0)
	l1, c = bits.Add64(l1, binary.LittleEndian.Uint64(x[8:]), c)
	l2, c = bits.Add64(l2, binary.LittleEndian.Uint64(x[16:]), c)
	l3, c = bits.Add64(l3, binary.LittleEndian.Uint64(x[24:]), c)
	h3 += c // the sum is h3*2^256 + l, and 2^256 = 38 modulo p

	l0, c = bits.Add64(l0, 38*h3, 0)
	l1, c = bits.Add64(l1, 0, c)
	l2, c = bits.Add64(l2, 0, c)
	l3, c = bits.Add64(l3, 0, c)
	l0 += 38 & -c // after a carry l0 is below 38*h3

	binary.LittleEndian.PutUint64(z[0:], l0)
	binary.LittleEndian.PutUint64(z[8:], l1)
	binary.LittleEndian.PutUint64(z[16:], l2)
	binary.LittleEndian.PutUint64(z[24:], l3)
}

func (curve25519) lift(v, u *fp.Elt) error       { return lift25519(v, u, isSquare25519) }
func (curve25519) liftSecret(v, u *fp.Elt) error { return lift25519(v, u, isSquareSecret25519) }

// lift25519 takes two exponentiations, one for v and one in isPrimeOrder25519. But for
// isSquare it takes the same time for all points of prime order.
func lift25519(v, u *fp.Elt, isSquare func(*fp.Elt) bool) error {
	if isLowOrder25519(u) {
		return badpoint.ErrLowOrder
	}
	var t fp.Elt
	rhs25519(&t, u)
	if !sqrt25519(v, &t) {
		return badpoint.ErrTwist
	}
	if !isPrimeOrder25519(u, v, isSquare) {
		return badpoint.ErrTorsion
	}
	return nil
}

// rhs25519 sets z = u^3 + A*u^2 + u.
func rhs25519(z, u *fp.Elt) {
	var t fp.Elt
	fp.Add(&t, u, &a25519)
	fp.Mul(&t, &t, u)
	fp.Add(&t, &t, &one25519)
	fp.Mul(z, &t, u)
}

// isLowOrder25519 tells whether the points with this u have order 2, u = 0; order 4, u = 1;
// or order 8, where the double has u-coordinate 1: (u^2 - 1)^2 = 4*(u^3 + A*u^2 + u).
func isLowOrder25519(u *fp.Elt) bool {
	var f, d fp.Elt
	rhs25519(&f, u)
	fp.Add(&f, &f, &f)
	fp.Add(&f, &f, &f)
	fp.Sqr(&d, u)
	fp.Sub(&d, &d, &one25519)
	fp.Sqr(&d, &d)
	fp.Sub(&d, &d, &f)
	return *u == fp.Elt{} || *u == one25519 || fp.IsZero(&d)
}

// isPrimeOrder25519 tells whether P = (u, v), whose order does not divide 8, has prime order.
//
// The rational points form a cyclic group of 8*L elements. So P has order L if and only if it
// is 8 times a rational point, and that is decided in two descents. Let V^2 = A + 2, i^2 = -1.
//
// First, is P four times a rational point? The curve has an isogeny to its quotient E4 by
// the points of order 4, (1, V) and (1, -V), and the dual isogeny leads back; together they
// multiply by 4. The kernel of the dual has four points, all rational because p is 1 modulo 4,
// so its image has index 4 and is what we look for. By the Tate pairing with (1, V) the image
// consists of the P for which
//
//	a^4 = (v - V*u)^2 / u
//
// has a solution, and the solutions a are the preimages of P. As p - 1 is 4 times an odd number,
// m, a fourth power x has the fourth root x^((m+1)/4), (m+1)/4 = 2^251 - 1.
//
// Second, is one of these preimages twice a rational point of E4, up to the kernel? With
// y = a + (u-1)/a and y' = a - (u-1)/a, E4 is
//
//	y'^2 * (y^2 + A + 2) = (A + 2) * (y^2 + 4),
//
// on which the function y has degree 2 and ramifies where y is 2i, -2i, iV and -iV. So
// h = (y - 2i)*(y + iV) has a divisor that is twice another one, and is itself a square at the
// identity, y = infinity: modulo squares, h is a homomorphism from E4 to {1, -1}. It is 1 on
// the kernel, so that all a give the same result, and it is a homomorphism from the multiples
// of 4 on the curve. It is not 1 everywhere (with the other sign of V it would not be 1 on
// the kernel); the tests have points with either value. Hence it is 1 exactly on the multiples of 8.
//
// Below, alpha = a*u, which avoids divisions; it changes a^4 and h by squares of squares and squares.
func isPrimeOrder25519(u, v *fp.Elt, isSquare func(*fp.Elt) bool) bool {
	var phi, alpha, t, u2, au, b, l fp.Elt
	fp.Sqr(&u2, u)
	fp.Mul(&t, &order4V25519, u) // phi = (v - V*u)^2 * u^3
	fp.Sub(&phi, v, &t)
	fp.Sqr(&phi, &phi)
	fp.Mul(&phi, &phi, u)
	fp.Mul(&phi, &phi, &u2)

	pow250(&alpha, &t, &phi) // alpha = phi^(2^251 - 1)
	fp.Sqr(&alpha, &alpha)
	fp.Mul(&alpha, &alpha, &phi)
	fp.Sqr(&b, &alpha)
	fp.Sqr(&t, &b)
	fp.Sub(&t, &t, &phi)
	if !fp.IsZero(&t) {
		return false
	}
	// y = b / (alpha*u), where b = alpha^2 + (u-1)*u^2
	fp.Sub(&t, u, &one25519)
	fp.Mul(&t, &t, &u2)
	fp.Add(&b, &b, &t)
	fp.Mul(&au, &alpha, u)
	fp.Mul(&au, &au, &i25519)
	fp.Mul(&l, &au, &order4V25519)
	fp.Add(&l, &l, &b)
	fp.Sub(&b, &b, &au)
	fp.Sub(&b, &b, &au)
	fp.Mul(&b, &b, &l)
	return isSquare(&b)
}

// sqrt25519 sets z to a square root of x, if there is one.
func sqrt25519(z, x *fp.Elt) bool {
	var t, r fp.Elt
	pow250(&r, &t, x) // r = x^(2^252 - 2) = x^((p+3)/8)
	fp.Sqr(&r, &r)
	fp.Mul(&r, &r, x)
	fp.Sqr(&r, &r)
	fp.Sqr(&t, &r)
	fp.Sub(&t, &t, x)
	fp.Modp(&t) // if not 0, r^2 is -x, or x has no root
	isRoot := isZero(t[:])
	fp.Mul(&t, &r, &i25519)
	fp.Cmov(&r, &t, uint(1-isRoot))
	fp.Sqr(&t, &r)
	fp.Sub(&t, &t, x)
	*z = r
	return fp.IsZero(&t)
}

// isSquareSecret25519 tells whether x is a square, by an exponentiation.
func isSquareSecret25519(x *fp.Elt) bool {
	var root fp.Elt
	return sqrt25519(&root, x)
}

// isSquare25519 tells whether x, which is not 0, is a square. It takes time that depends on x.
func isSquare25519(x *fp.Elt) bool {
	fp.Modp(x)
	p := fp.P()
	if symbol := legendre(x[:], p[:]); symbol != 0 {
		return symbol > 0
	}
	var root fp.Elt
	return sqrt25519(&root, x)
}

// pow250 sets z = x^(2^250 - 1) and x11 = x^11.
func pow250(z, x11, x *fp.Elt) {
	var t, s fp.Elt
	sqrs := func(z, x *fp.Elt, n int) {
		fp.Sqr(z, x)
		for range n - 1 {
			fp.Sqr(z, z)
		}
	}
	fp.Sqr(&t, x)       // 2
	sqrs(&s, &t, 2)     // 8
	fp.Mul(&s, &s, x)   // 9
	fp.Mul(x11, &s, &t) // 11
	fp.Sqr(&t, x11)     // 22
	fp.Mul(&s, &s, &t)  // 31 = 2^5 - 1
	sqrs(&t, &s, 5)     // 2^10 - 2^5
	fp.Mul(&s, &t, &s)  // 2^10 - 1
	sqrs(&t, &s, 10)    //
	fp.Mul(&t, &t, &s)  // 2^20 - 1
	sqrs(z, &t, 20)     //
	fp.Mul(&t, z, &t)   // 2^40 - 1
	sqrs(&t, &t, 10)    //
	fp.Mul(&s, &t, &s)  // 2^50 - 1
	sqrs(&t, &s, 50)    //
	fp.Mul(&t, &t, &s)  // 2^100 - 1
	sqrs(z, &t, 100)    //
	fp.Mul(&t, z, &t)   // 2^200 - 1
	sqrs(&t, &t, 50)    //
	fp.Mul(z, &t, &s)   // 2^250 - 1
}
