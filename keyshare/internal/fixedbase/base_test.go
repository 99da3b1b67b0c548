package fixedbase

import (
	"bytes"
	"crypto/ecdh"
	"crypto/elliptic"
	"crypto/rand"
	"math/big"
	"testing"

	"filippo.io/edwards25519"
)

// curves has, for each curve, crypto/elliptic's, and this package's.
var curves = []struct {
	std  elliptic.Curve
	ecdh ecdh.Curve
	base func(x, y *big.Int) Base
}{
	{elliptic.P256(), ecdh.P256(), NewP256},
	{elliptic.P384(), ecdh.P384(), NewP384},
	{elliptic.P521(), ecdh.P521(), NewP521},
}

// multiple returns k*G.
func multiple(t testing.TB, c ecdh.Curve, k *big.Int, size int) (x, y *big.Int) {
	t.Helper()
	private, err := c.NewPrivateKey(k.FillBytes(make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	octets := private.PublicKey().Bytes()
	return new(big.Int).SetBytes(octets[1 : 1+size]), new(big.Int).SetBytes(octets[1+size:])
}

// TestMatches compares with multiples of the generator: u1*G + u2*(b*G) is (u1 + u2*b)*G. Scalars are such that tables
// meet: sums are doublings, infinity on the way or at the end.
func TestMatches(t *testing.T) {
	t.Parallel()
	for _, c := range curves {
		t.Run(c.std.Params().Name, func(t *testing.T) {
			t.Parallel()
			n := c.std.Params().N
			size := (n.BitLen() + 7) / 8
			near := []*big.Int{big.NewInt(0), big.NewInt(1), big.NewInt(2), new(big.Int).Sub(n, big.NewInt(1)), new(big.Int).Rsh(n, 1), random(t, n), random(t, n)}
			for _, b := range near[1:] {
				base := c.base(multiple(t, c.ecdh, b, size))
				for _, u1 := range near {
					for _, u2 := range near {
						k := new(big.Int).Mul(u2, b)
						k.Mod(k.Add(k, u1), n)
						if k.Sign() == 0 {
							if base.Matches(u1, u2, big.NewInt(0)) {
								t.Errorf("b %x, u1 %x, u2 %x: infinity matches", b, u1, u2)
							}
							continue
						}
						x, _ := multiple(t, c.ecdh, k, size)
						x.Mod(x, n)
						if !base.Matches(u1, u2, x) {
							t.Errorf("b %x, u1 %x, u2 %x: no match", b, u1, u2)
						}
						other := new(big.Int).Xor(x, big.NewInt(1))
						if base.Matches(u1, u2, other) {
							t.Errorf("b %x, u1 %x, u2 %x: another x matches", b, u1, u2)
						}
					}
				}
			}
		})
	}
}

// TestMatchesAboveOrder has a sum whose x-coordinate is not below the order: that is so rare that the point is
// looked for by its coordinate.
func TestMatchesAboveOrder(t *testing.T) {
	t.Parallel()
	for _, c := range curves {
		p := c.std.Params()
		x := new(big.Int).Set(p.N)
		y := new(big.Int)
		for { // x^3 - 3x + b is a square for every other x
			x.Add(x, big.NewInt(1))
			right := new(big.Int).Exp(x, big.NewInt(3), p.P)
			right.Sub(right, new(big.Int).Mul(x, big.NewInt(3)))
			right.Mod(right.Add(right, p.B), p.P)
			if x.Cmp(p.P) >= 0 {
				break
			}
			if y.ModSqrt(right, p.P) != nil {
				break
			}
			y = new(big.Int)
		}
		if x.Cmp(p.P) >= 0 {
			t.Errorf("%s: no point", p.Name)
			continue
		}
		base := c.base(x, y)
		if !base.Matches(big.NewInt(0), big.NewInt(1), new(big.Int).Sub(x, p.N)) {
			t.Errorf("%s: x above the order does not match", p.Name)
		}
	}
}

func random(t testing.TB, n *big.Int) *big.Int {
	t.Helper()
	k, err := rand.Int(rand.Reader, n)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestEntries proves what newComb relies on: no sum of rows is a multiple of the order, so that none is infinity, and
// none but the trivial ones meet.
func TestEntries(t *testing.T) {
	t.Parallel()
	for _, c := range curves {
		n := c.std.Params().N
		columns := uint((n.BitLen() + teeth - 1) / teeth)
		block := (columns + blocks - 1) / blocks
		for b := range uint(blocks) {
			for index := 1; index < 1<<teeth; index++ {
				sum := new(big.Int)
				for i := range uint(teeth) {
					sum.SetBit(sum, int(b*block+i*columns), uint(index>>i&1))
				}
				if sum.Mod(sum, n).Sign() == 0 {
					t.Errorf("%s: entry %x of block %d is infinity", c.std.Params().Name, index, b)
				}
			}
		}
	}
}

func BenchmarkMatches(b *testing.B) {
	for _, c := range curves {
		n := c.std.Params().N
		base := c.base(multiple(b, c.ecdh, random(b, n), (n.BitLen()+7)/8))
		u1, u2, x := random(b, n), random(b, n), random(b, n)
		b.Run(c.std.Params().Name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				base.Matches(u1, u2, x)
			}
		})
	}
}

// TestEncode compares with filippo.io/edwards25519.
func TestEncode(t *testing.T) {
	t.Parallel()
	one := make([]byte, 32)
	one[0] = 1
	small := new(edwards25519.Scalar)
	if _, err := small.SetCanonicalBytes(one); err != nil {
		t.Fatal(err)
	}
	scalars := []*edwards25519.Scalar{edwards25519.NewScalar(), small, new(edwards25519.Scalar).Negate(small), scalar25519(t), scalar25519(t)}
	for _, b := range scalars {
		p := new(edwards25519.Point).ScalarBaseMult(b)
		base := NewEdwards25519(p)
		for _, s := range scalars {
			for _, k := range scalars {
				want := new(edwards25519.Point).VarTimeDoubleScalarBaseMult(k, p, s).Bytes()
				if got := base.Encode(s.Bytes(), k.Bytes()); !bytes.Equal(got, want) {
					t.Errorf("b %x, s %x, k %x: %x, want %x", b.Bytes(), s.Bytes(), k.Bytes(), got, want)
				}
			}
		}
	}
}

func scalar25519(t testing.TB) *edwards25519.Scalar {
	t.Helper()
	var wide [64]byte
	rand.Read(wide[:])
	s, err := new(edwards25519.Scalar).SetUniformBytes(wide[:])
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCurves(t *testing.T) {
	t.Parallel()
	compareCurve(t, p256(), elliptic.P256())
	compareCurve(t, p384(), elliptic.P384())
	compareCurve(t, p521(), elliptic.P521())
}

// compareCurve compares the constants with those of crypto/elliptic.
func compareCurve[E element](t *testing.T, c *curve[E], std elliptic.Curve) {
	p := std.Params()
	g := c.generator.tables[0][1]
	if c.p.Cmp(p.P) != 0 || c.order.Cmp(p.N) != 0 || g.x != c.from(p.Gx) || g.y != c.from(p.Gy) {
		t.Errorf("%s: p %x, order %x, generator (%x, %x)", p.Name, c.p, c.order, g.x, g.y)
	}
}
