package montgomery

import (
	"math/big"
	"testing"
)

// TestDescent25519 checks, in big integers, what the argument of isPrimeOrder25519 leaves to
// tests: that the homomorphism h does not depend on which of the four roots a is taken, and
// takes both values. One point of each kind would do.
func TestDescent25519(t *testing.T) {
	t.Parallel()
	r := reference25519()
	rnd := newRandom(13)
	i, v4 := r.fromLittleEndian(i25519[:]), r.fromLittleEndian(order4V25519[:])
	if r.square(i).Cmp(new(big.Int).Sub(r.p, big.NewInt(1))) != 0 {
		t.Error("i^2 is not -1")
	}
	if r.square(v4).Cmp(new(big.Int).Add(r.a, big.NewInt(2))) != 0 {
		t.Error("V^2 is not A + 2")
	}
	seen := map[int]int{}
	for range 20 {
		p := r.multiply(big.NewInt(4), r.randomPoint(rnd))
		if p == nil || r.multiply(big.NewInt(2), p) == nil {
			continue
		}
		want := -1
		if r.multiply(r.l, p) == nil {
			want = 1
		}
		seen[want]++
		for root, a := range r.fourthRoots25519(p, i, v4) {
			if h := r.descent25519(p.u, a, i, v4); h != want {
				t.Errorf("h(%x, root %d) is %d, want %d", p.u, root, h, want)
			}
		}
	}
	if seen[1] == 0 || seen[-1] == 0 {
		t.Errorf("points of each kind: %v", seen)
	}
}

func (r *reference) square(x *big.Int) *big.Int { return r.mod(new(big.Int).Mul(x, x)) }

// fourthRoots25519 returns the a with a^4 = (v - V*u)^2 / u.
func (r *reference) fourthRoots25519(p *affine, i, v4 *big.Int) []*big.Int {
	x := new(big.Int).Mul(v4, p.u)
	x = r.square(x.Sub(p.v, x))
	r.mod(x.Mul(x, new(big.Int).ModInverse(p.u, r.p)))
	a := new(big.Int).ModSqrt(x, r.p)
	a.ModSqrt(a, r.p) // a square with its negative, as -1 is a square
	roots := []*big.Int{a}
	for range 3 {
		a = r.mod(new(big.Int).Mul(a, i))
		roots = append(roots, a)
	}
	return roots
}

// descent25519 is h = (y - 2i)*(y + iV) modulo squares, where y = a + (u-1)/a.
func (r *reference) descent25519(u, a, i, v4 *big.Int) int {
	y := new(big.Int).Sub(u, big.NewInt(1))
	y.Mul(y, new(big.Int).ModInverse(a, r.p)).Add(y, a)
	left := new(big.Int).Sub(y, new(big.Int).Lsh(i, 1))
	right := new(big.Int).Mul(i, v4)
	right.Add(right, y)
	return big.Jacobi(r.mod(left.Mul(left, right)), r.p)
}
