package montgomery

import (
	"bytes"
	"math/big"
	"testing"

	"github.com/cloudflare/circl/math/fp25519"
	"github.com/cloudflare/circl/math/fp448"
)

func TestMulAdd(t *testing.T) {
	both(t,
		func(t *testing.T, s suite[fp25519.Elt, curve25519]) { s.testMulAdd(t, mulAdd25519) },
		func(t *testing.T, s suite[fp448.Elt, curve448]) { s.testMulAdd(t, mulAdd448) })
}

// testMulAdd uses all values that elements take, not only those below p.
func (s suite[E, C]) testMulAdd(t *testing.T, mulAdd func(z, x, y *E)) {
	var c C
	a24 := new(big.Int).Add(s.a, big.NewInt(2))
	a24.Rsh(a24, 2)
	for _, x := range s.elements() {
		for _, y := range s.elements() {
			ex, ey, z := s.element(x), s.element(y), *new(E)
			mulAdd(&z, &ex, &ey)
			want := new(big.Int).Mul(y, a24)
			want = s.mod(want.Add(want, x))
			if got := c.octets(&z); !bytes.Equal(got, s.littleEndian(want)) {
				t.Errorf("%x + a24*%x is %x, want %x", x, y, got, want)
			}
			mulAdd(&ex, &ex, &ey)
			mulAdd(&ey, &ey, &ey)
			if !bytes.Equal(c.octets(&ex), c.octets(&z)) {
				t.Errorf("%x + a24*%x depends on where it is stored", x, y)
			}
		}
	}
}

// element returns x, which need not be reduced, as an element.
func (s suite[E, C]) element(x *big.Int) E {
	var c C
	var e E
	copy(c.octets(&e), s.littleEndian(x))
	return e
}

// elements are random values and those near 0, the multiples of p, and the greatest.
func (s suite[E, C]) elements() []*big.Int {
	rnd := newRandom(12)
	limit := s.limit()
	var list []*big.Int
	for range 10 {
		list = append(list, below(rnd, limit))
	}
	for _, center := range []*big.Int{new(big.Int), s.p, new(big.Int).Lsh(s.p, 1), limit, new(big.Int).Rsh(limit, 1)} {
		for d := int64(-40); d <= 40; d += 4 {
			x := new(big.Int).Add(center, big.NewInt(d))
			if x.Sign() >= 0 && x.Cmp(limit) < 0 {
				list = append(list, x)
			}
		}
	}
	return list
}

func TestLegendre(t *testing.T) {
	both(t,
		func(t *testing.T, s suite[fp25519.Elt, curve25519]) { s.testLegendre(t, isSquare25519) },
		func(t *testing.T, s suite[fp448.Elt, curve448]) { s.testLegendre(t, isSquare448) })
}

func (s suite[E, C]) testLegendre(t *testing.T, isSquare func(*E) bool) {
	p := s.littleEndian(s.p)
	rnd := newRandom(10)
	for i := range int64(1000) {
		x := below(rnd, s.p)
		switch i % 4 {
		case 1:
			x.SetInt64(i)
		case 2:
			x.Sub(s.p, big.NewInt(i))
		case 3:
			x.SetBit(x.Rsh(x, uint(i)%uint(s.p.BitLen()-1)), 0, 1)
		}
		want := big.Jacobi(x, s.p)
		if got := legendre(s.littleEndian(x), p); got != want {
			t.Errorf("(%x / p) is %d, want %d", x, got, want)
		}
		if e := s.element(x); isSquare(&e) != (want == 1) {
			t.Errorf("isSquare(%x) is %t", x, want != 1)
		}
	}
	// 0 is what legendre says nothing about, and isSquare finds the root.
	var zero E
	if got := legendre(make([]byte, s.size), p); got != 0 {
		t.Errorf("(0 / p) is %d, want 0", got)
	}
	if !isSquare(&zero) {
		t.Error("0 is not a square")
	}
}
