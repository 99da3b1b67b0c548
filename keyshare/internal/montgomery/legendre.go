package montgomery

import (
	"encoding/binary"
	"math/bits"
)

// legendre returns the Legendre symbol of x modulo the prime p, or 0 if it did not find it.
// Both are little endian, of at most 56 octets; x is below p. It takes time that depends on x.
//
// This is the binary algorithm of Bernstein and Yang, "Fast constant-time gcd computation and
// modular inversion", in the form of libsecp256k1 that keeps f and g from becoming negative:
// 62 steps at a time look only at the lowest limbs and collect a matrix, which is then
// applied to f and g. Each step keeps the Jacobi symbol (g/f), up to the sign that it notes.
// That form need not end, but it does for all but a negligible part of the x.
func legendre(x, p []byte) int {
	var f, g [7]uint64
	n := len(p) / 8
	for i := range n {
		f[i] = binary.LittleEndian.Uint64(p[8*i:])
		g[i] = binary.LittleEndian.Uint64(x[8*i:])
	}
	s := steps{eta: -1}
	for range len(p) {
		s.run(f[0], g[0])
		s.apply(f[:n], g[:n])
		for n > 1 && f[n-1]|g[n-1] == 0 {
			n--
		}
		if n == 1 && f[0] == 1 {
			return 1 - 2*int(s.flips&1)
		}
	}
	return 0
}

// steps is the state between batches of steps, and the matrix of the last batch: 2^62 times
// the new f is u*f + v*g, 2^62 times the new g is q*f + r*g.
type steps struct {
	eta        int
	flips      uint64 // its lowest bit counts changes of sign
	u, v, q, r uint64
}

// run does 62 steps on f and g, given their lowest limbs.
func (s *steps) run(f, g uint64) {
	u, v, q, r := uint64(1), uint64(0), uint64(0), uint64(1)
	eta, flips := s.eta, s.flips
	for left := 62; ; {
		zeros := bits.TrailingZeros64(g | ^uint64(0)<<left)
		g >>= zeros
		u <<= zeros
		v <<= zeros
		eta -= zeros
		left -= zeros
		flips ^= uint64(zeros) & (f>>1 ^ f>>2) // (2/f) = -1 for f = 3, 5 modulo 8
		if left == 0 {
			break
		}
		var w uint64 // cancels up to 6 or 4 low bits of g
		if eta < 0 {
			eta = -eta
			flips ^= f & g >> 1 // (g/f) = -(f/g) for f = g = 3 modulo 4
			f, g = g, f
			u, q = q, u
			v, r = r, v
			w = f * g * (f*f - 2) & 63
		} else {
			w = -(f + (f+1)&4<<1) * g & 15
		}
		w &= 1<<min(eta+1, left) - 1
		g += f * w
		q += u * w
		r += v * w
	}
	*s = steps{eta, flips, u, v, q, r}
}

// apply sets f and g to the new f and g.
func (s *steps) apply(f, g []uint64) {
	var fh, gh uint64 // what is carried to the next limb
	var fl, gl uint64 // the limb before, to be shifted
	for i := range f {
		a, b := f[i], g[i]
		var x, y uint64
		x, fh = mulAdd2(s.u, a, s.v, b, fh)
		y, gh = mulAdd2(s.q, a, s.r, b, gh)
		if i > 0 {
			f[i-1] = fl>>62 | x<<2
			g[i-1] = gl>>62 | y<<2
		}
		fl, gl = x, y
	}
	f[len(f)-1] = fl>>62 | fh<<2
	g[len(g)-1] = gl>>62 | gh<<2
}

// mulAdd2 returns u*a + v*b + c, for u + v at most 2^62.
func mulAdd2(u, a, v, b, c uint64) (lo, hi uint64) {
	h1, l1 := bits.Mul64(u, a)
	h2, l2 := bits.Mul64(v, b)
	l1, carry := bits.Add64(l1, l2, 0)
	h1 += h2 + carry
	l1, carry = bits.Add64(l1, c, 0)
	return l1, h1 + carry
}
