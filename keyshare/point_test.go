package keyshare

import (
	"bytes"
	"crypto/elliptic"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/ecc/goldilocks"
)

// The fields and curves again, as big integers: slow, simple, independent.
var (
	p25519   = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	p448     = new(big.Int).Sub(new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 448), new(big.Int).Lsh(big.NewInt(1), 224)), big.NewInt(1))
	standard = map[Curve]elliptic.Curve{P256: elliptic.P256(), P384: elliptic.P384(), P521: elliptic.P521()}
)

func orderOf(c Curve) *big.Int {
	g := c.group()
	return new(big.Int).SetBytes(g.order.Nat().Bytes(g.order))
}

// montgomeryCurve is v^2 = u^3 + a*u^2 + u modulo p.
type montgomeryCurve struct{ p, a *big.Int }

var montgomeryCurves = map[Curve]montgomeryCurve{
	X25519: {p25519, big.NewInt(486662)},
	X448:   {p448, big.NewInt(156326)},
}

// lift returns a v for u, nil if u is on the twist.
func (m montgomeryCurve) lift(u *big.Int) *big.Int {
	v := new(big.Int).Add(u, m.a)
	v.Mul(v, u).Add(v, big.NewInt(1)).Mul(v, u).Mod(v, m.p)
	return v.ModSqrt(v, m.p)
}

// add adds affine points whose u differ.
func (m montgomeryCurve) add(u1, v1, u2, v2 *big.Int) (u, v *big.Int) {
	lambda := new(big.Int).Sub(u2, u1)
	lambda.ModInverse(lambda.Mod(lambda, m.p), m.p)
	lambda.Mul(lambda, new(big.Int).Sub(v2, v1))
	u = new(big.Int).Mul(lambda, lambda)
	u.Sub(u, m.a).Sub(u, u1).Sub(u, u2).Mod(u, m.p)
	v = new(big.Int).Sub(u1, u)
	v.Mul(v, lambda).Sub(v, v1).Mod(v, m.p)
	return u, v
}

// encode writes a number little endian, with an octet for the sign of v.
func (m montgomeryCurve) encode(u, v *big.Int) []byte {
	return append(m.octets(u), byte(v.Bit(0)<<7))
}

func (m montgomeryCurve) octets(u *big.Int) []byte {
	b := u.FillBytes(make([]byte, (m.p.BitLen()+7)/8))
	slices.Reverse(b)
	return b
}

// decode is the inverse of encode.
func (m montgomeryCurve) decode(b []byte) (u, v *big.Int) {
	r := slices.Clone(b[:len(b)-1])
	slices.Reverse(r)
	u = new(big.Int).SetBytes(r)
	v = m.lift(u)
	if byte(v.Bit(0)<<7) != b[len(b)-1] {
		v.Sub(m.p, v)
	}
	return u, v
}

type badPoint struct {
	name   string
	octets []byte
	want   error
}

func badPoints(t *testing.T, c Curve) []badPoint {
	t.Helper()
	good := mustRandom(t, c).Public().Bytes()
	bad := []badPoint{
		{"empty", nil, ErrLength},
		{"one octet", []byte{0}, ErrLength},
		{"one octet short", good[:len(good)-1], ErrLength},
		{"one octet long", append(bytes.Clone(good), 0), ErrLength},
	}
	switch c {
	case X25519, X448:
		// Without the sign the encoding is complete, so one octet less again is short.
		bad[2].octets = good[:len(good)-2]
		return append(bad, badMontgomery(montgomeryCurves[c], good)...)
	case Ed25519:
		return append(bad, badEd25519(t)...)
	case Ed448:
		return append(bad, badEd448(t)...)
	default:
		return append(bad, badNIST(standard[c], good)...)
	}
}

func badMontgomery(m montgomeryCurve, good []byte) []badPoint {
	n := len(good) - 1
	bit := func(last byte) []byte { return append(bytes.Clone(good[:n]), last) }
	one, p1 := big.NewInt(1), new(big.Int).Add(m.p, big.NewInt(1))
	bad := []badPoint{
		{"sign octet 01", bit(0x01), ErrSignOctet},
		{"sign octet 81", bit(0x81), ErrSignOctet},
		{"sign octet 40", bit(0x40), ErrSignOctet},
		{"v = 0 with sign", m.encode(new(big.Int), one), ErrSignOctet},
		{"u = p", m.encode(m.p, new(big.Int)), ErrNonCanonical},
		{"u = p, unsigned", m.octets(m.p), ErrNonCanonical},
		{"u = p+1", m.encode(p1, one), ErrNonCanonical},
		{"all ones", append(bytes.Repeat([]byte{0xff}, n), 0), ErrNonCanonical},
		{"all ones, unsigned", bytes.Repeat([]byte{0xff}, n), ErrNonCanonical},
		{"order 2", m.encode(new(big.Int), new(big.Int)), ErrLowOrder},
		{"order 2, unsigned", m.octets(new(big.Int)), ErrLowOrder},
	}
	if m.p == p25519 {
		// The base point's u with bit 255 set.
		b := m.octets(big.NewInt(9))
		b[31] |= 0x80
		bad = append(bad, badPoint{"bit 255", append(bytes.Clone(b), 0), ErrNonCanonical}, badPoint{"bit 255, unsigned", b, ErrNonCanonical})
	}
	// Twist: the first small u that does not lift.
	for u := int64(2); ; u++ {
		if n := big.NewInt(u); m.lift(n) == nil {
			bad = append(bad, badPoint{"twist", m.encode(n, n), ErrTwist}, badPoint{"twist, unsigned", m.octets(n), ErrTwist})
			break
		}
	}
	// Order 4: u = 1 or u = -1, whichever is on the curve.
	minus1 := new(big.Int).Sub(m.p, one)
	for _, u := range []*big.Int{one, minus1} {
		v := m.lift(u)
		if v == nil {
			bad = append(bad, badPoint{"order 4 of the twist", m.encode(u, u), ErrTwist})
			continue
		}
		gu, gv := m.decode(good)
		tu, tv := m.add(gu, gv, u, v)
		bad = append(bad,
			badPoint{"order 4", m.encode(u, v), ErrLowOrder},
			badPoint{"order 4, negative", m.encode(u, new(big.Int).Sub(m.p, v)), ErrLowOrder},
			badPoint{"good + order 4", m.encode(tu, tv), ErrTorsion},
			badPoint{"good + order 4, unsigned", m.octets(tu), ErrTorsion})
	}
	gu, gv := m.decode(good)
	tu, tv := m.add(gu, gv, new(big.Int), new(big.Int))
	bad = append(bad, badPoint{"good + order 2", m.encode(tu, tv), ErrTorsion})
	if m.p == p25519 {
		bad = append(bad, badOrder8(m, gu, gv)...)
	}
	return bad
}

// badOrder8 has the points of order 8 of curve25519.
func badOrder8(m montgomeryCurve, gu, gv *big.Int) (bad []badPoint) {
	for _, s := range []string{
		"325606250916557431795983626356110631294008115727848805560023387167927233504",
		"39382357235489614581723060781553021112529911719440698176882885853963445705823",
	} {
		u, _ := new(big.Int).SetString(s, 10)
		v := m.lift(u)
		tu, tv := m.add(gu, gv, u, v)
		bad = append(bad, badPoint{"order 8", m.encode(u, v), ErrLowOrder}, badPoint{"order 8, unsigned", m.octets(u), ErrLowOrder},
			badPoint{"good + order 8", m.encode(tu, tv), ErrTorsion}, badPoint{"good + order 8, unsigned", m.octets(tu), ErrTorsion})
	}
	return bad
}

// torsion25519 returns the eight points whose order divides 8, the identity first.
func torsion25519(t *testing.T) []*edwards25519.Point {
	t.Helper()
	t8, err := new(edwards25519.Point).SetBytes(unhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"))
	if err != nil {
		t.Fatal(err)
	}
	points := []*edwards25519.Point{edwards25519.NewIdentityPoint()}
	for range 7 {
		points = append(points, new(edwards25519.Point).Add(points[len(points)-1], t8))
	}
	if points[4].Equal(points[0]) == 1 || new(edwards25519.Point).Add(points[7], t8).Equal(points[0]) != 1 {
		t.Fatal("the generator of the torsion has not order 8")
	}
	return points
}

func badEd25519(t *testing.T) []badPoint {
	edge := func(n int64, sign byte) []byte {
		b := new(big.Int).Add(p25519, big.NewInt(n)).FillBytes(make([]byte, 32))
		slices.Reverse(b)
		b[31] |= sign
		return b
	}
	minus1 := edge(-1, 0)
	bad := []badPoint{
		{"y = p", edge(0, 0), ErrNonCanonical},
		{"y = p, sign", edge(0, 0x80), ErrNonCanonical},
		{"y = p+1", edge(1, 0), ErrNonCanonical},
		{"y = p+1, sign", edge(1, 0x80), ErrNonCanonical},
		{"y = p+18", edge(18, 0), ErrNonCanonical},
		{"all ones", bytes.Repeat([]byte{0xff}, 32), ErrNonCanonical},
		{"x = 0 with sign", append(append([]byte{1}, make([]byte, 30)...), 0x80), ErrSignOctet},
		{"x = 0 with sign, y = -1", edge(-1, 0x80), ErrSignOctet},
		{"identity", append([]byte{1}, make([]byte, 31)...), ErrIdentity},
		{"order 2", minus1, ErrLowOrder},
		{"order 4", make([]byte, 32), ErrLowOrder},
	}
	for y := byte(2); ; y++ {
		if b := append([]byte{y}, make([]byte, 31)...); func() bool { _, err := new(edwards25519.Point).SetBytes(b); return err != nil }() {
			bad = append(bad, badPoint{"not on the curve", b, ErrTwist})
			break
		}
	}
	k := mustRandom(t, Ed25519)
	g := new(edwards25519.Point).ScalarBaseMult(scalar25519(k))
	for _, low := range torsion25519(t)[1:] {
		bad = append(bad, badPoint{"low order", low.Bytes(), ErrLowOrder},
			badPoint{"good + low order", new(edwards25519.Point).Add(g, low).Bytes(), ErrTorsion})
	}
	return bad
}

// torsion448 returns the four points whose order divides 4, the identity first.
func torsion448(t *testing.T) []goldilocks.Point {
	t.Helper()
	t4, err := goldilocks.FromBytes(make([]byte, 57)) // y = 0, x = +-1
	if err != nil {
		t.Fatal(err)
	}
	points := []goldilocks.Point{*goldilocks.Curve{}.Identity()}
	for range 3 {
		next := points[len(points)-1]
		next.Add(t4)
		points = append(points, next)
	}
	return points
}

func badEd448(t *testing.T) []badPoint {
	edge := func(n int64, last byte) []byte {
		b := new(big.Int).Add(p448, big.NewInt(n)).FillBytes(make([]byte, 56))
		slices.Reverse(b)
		return append(b, last)
	}
	small := func(n, last byte) []byte { return append(append([]byte{n}, make([]byte, 55)...), last) }
	bad := []badPoint{
		{"last octet 01", small(3, 0x01), ErrSignOctet},
		{"last octet c0", small(3, 0xc0), ErrSignOctet},
		{"x = 0 with sign", small(1, 0x80), ErrSignOctet},
		{"x = 0 with sign, y = -1", edge(-1, 0x80), ErrSignOctet},
		{"y = p", edge(0, 0), ErrNonCanonical},
		{"y = p+1", edge(1, 0), ErrNonCanonical},
		{"all ones", append(bytes.Repeat([]byte{0xff}, 56), 0x80), ErrNonCanonical},
		{"identity", small(1, 0), ErrIdentity},
		{"order 2", edge(-1, 0), ErrLowOrder},
		{"order 4", small(0, 0), ErrLowOrder},
		{"order 4, sign", small(0, 0x80), ErrLowOrder},
	}
	for y := byte(2); ; y++ {
		if _, err := goldilocks.FromBytes(small(y, 0)); err != nil {
			bad = append(bad, badPoint{"not on the curve", small(y, 0), ErrTwist})
			break
		}
	}
	k := scalar448(mustRandom(t, Ed448))
	for _, low := range torsion448(t)[1:] {
		sum := *goldilocks.Curve{}.ScalarBaseMult(&k)
		sum.Add(&low)
		bad = append(bad, badPoint{"low order", ed448Element{low}.encode(), ErrLowOrder},
			badPoint{"good + low order", ed448Element{sum}.encode(), ErrTorsion})
	}
	return bad
}

func badNIST(curve elliptic.Curve, good []byte) []badPoint {
	n := len(good) / 2
	tagged := func(tag byte) []byte { return append([]byte{tag}, good[1:]...) }
	encode := func(x, y *big.Int) []byte {
		b := append([]byte{4}, make([]byte, 2*n)...)
		x.FillBytes(b[1 : 1+n])
		y.FillBytes(b[1+n:])
		return b
	}
	x, y := new(big.Int).SetBytes(good[1:1+n]), new(big.Int).SetBytes(good[1+n:])
	p := curve.Params().P
	offCurve := bytes.Clone(good)
	offCurve[len(offCurve)-1] ^= 1
	return []badPoint{
		{"compressed", append([]byte{2 + byte(y.Bit(0))}, good[1:1+n]...), ErrLength},
		{"tag 00", tagged(0), ErrSignOctet},
		{"tag 02", tagged(2), ErrSignOctet},
		{"hybrid", tagged(6 + byte(y.Bit(0))), ErrSignOctet},
		{"x = p", encode(p, y), ErrNonCanonical},
		{"y = p", encode(x, p), ErrNonCanonical},
		{"all ones", append([]byte{4}, bytes.Repeat([]byte{0xff}, 2*n)...), ErrNonCanonical},
		{"not on the curve", offCurve, ErrTwist},
		{"zero", encode(new(big.Int), new(big.Int)), ErrTwist},
	}
}

func TestParsePointRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			reasons := map[error]bool{}
			for _, bad := range badPoints(t, c) {
				p, err := ParsePoint(c, bad.octets)
				if p != nil || !errors.Is(err, bad.want) {
					t.Errorf("%s: %x: got %v, want %v", bad.name, bad.octets, err, bad.want)
					continue
				}
				if !strings.HasPrefix(err.Error(), bad.want.Error()) {
					t.Errorf("%s: text %q does not start with the reason", bad.name, err)
				}
				reasons[bad.want] = true
			}
			want := 4 // the NIST groups have prime order
			switch c {
			case X25519, X448: // the Montgomery form cannot write the identity
				want = 6
			case Ed25519, Ed448:
				want = 7
			}
			if len(reasons) != want {
				t.Errorf("%d reasons exercised, want %d: %v", len(reasons), want, reasons)
			}
		})
	}
	if _, err := ParsePoint(0, make([]byte, 32)); err == nil {
		t.Error("a point of no curve was parsed")
	}
}

// The subgroup tests against multiplication by L, on every coset of the subgroup and on
// points found by their encoding.
func TestSubgroup25519(t *testing.T) {
	t.Parallel()
	minusOne := scalar25519(mustScalar(t, Ed25519, octets(Ed25519, new(big.Int).Sub(orderOf(Ed25519), big.NewInt(1)))))
	check := func(p *edwards25519.Point) bool {
		t.Helper()
		multiple := new(edwards25519.Point).ScalarMult(minusOne, p)
		want := multiple.Add(multiple, p).Equal(edwards25519.NewIdentityPoint()) == 1
		if got := inSubgroup25519(p); got != want {
			t.Errorf("%x: got %v, want %v", p.Bytes(), got, want)
		}
		return want
	}
	torsion := torsion25519(t)
	for range 16 {
		p := new(edwards25519.Point).ScalarBaseMult(scalar25519(mustRandom(t, Ed25519)))
		for j, low := range torsion {
			// Decoded, so that Z = 1.
			sum, err := new(edwards25519.Point).SetBytes(new(edwards25519.Point).Add(p, low).Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if check(sum) != (j == 0) {
				t.Errorf("coset %d: wrong expectation", j)
			}
		}
	}
	in, out := 0, 0
	for y := byte(2); y < 200; y++ {
		p, err := new(edwards25519.Point).SetBytes(append([]byte{y}, make([]byte, 31)...))
		if err != nil {
			continue
		}
		if check(p) {
			in++
		} else {
			out++
		}
	}
	if in == 0 || out == 0 {
		t.Errorf("%d points in, %d out of the subgroup", in, out)
	}
}

func TestSubgroup448(t *testing.T) {
	t.Parallel()
	order := orderOf(Ed448)
	// Double and add, because goldilocks.Curve.ScalarMult drops torsion.
	multiplyByOrder := func(p goldilocks.Point) goldilocks.Point {
		q := *goldilocks.Curve{}.Identity()
		for i := order.BitLen() - 1; i >= 0; i-- {
			q.Double()
			if order.Bit(i) == 1 {
				q.Add(&p)
			}
		}
		q.ToAffine()
		return q
	}
	check := func(p goldilocks.Point) bool {
		t.Helper()
		multiple := multiplyByOrder(p)
		want := multiple.IsIdentity()
		x, y := p.ToAffine()
		if got := inSubgroup448(&x, &y); got != want {
			t.Errorf("%x: got %v, want %v", ed448Element{p}.encode(), got, want)
		}
		return want
	}
	for range 16 {
		k := scalar448(mustRandom(t, Ed448))
		for j, low := range torsion448(t) {
			sum := *goldilocks.Curve{}.ScalarBaseMult(&k)
			sum.Add(&low)
			if check(sum) != (j == 0) {
				t.Errorf("coset %d: wrong expectation", j)
			}
		}
	}
	in, out := 0, 0
	for y := byte(2); y < 100; y++ {
		p, err := goldilocks.FromBytes(append([]byte{y}, make([]byte, 56)...))
		if err != nil {
			continue
		}
		if check(*p) {
			in++
		} else {
			out++
		}
	}
	if in == 0 || out == 0 {
		t.Errorf("%d points in, %d out of the subgroup", in, out)
	}
}

// Were a point with a component of small order to slip in, the product must not show it.
func TestMultiplicationDropsTorsion(t *testing.T) {
	t.Parallel()
	k, s := mustRandom(t, Ed25519), mustRandom(t, Ed25519)
	for _, low := range torsion25519(t) {
		p := ed25519Element{new(edwards25519.Point).Add(k.Public().element.(ed25519Element).p, low)}
		got, err := p.mult(s)
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "Ed25519 product", got.encode(), k.Multiply(s).Public().Bytes())
	}
	k, s = mustRandom(t, Ed448), mustRandom(t, Ed448)
	for _, low := range torsion448(t) {
		p := k.Public().element.(ed448Element)
		p.p.Add(&low)
		got, err := p.mult(s)
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "Ed448 product", got.encode(), k.Multiply(s).Public().Bytes())
	}
}

// The scalar that the Montgomery ladders get is a multiple of the cofactor, and
// congruent to the one meant, also where it has 256 bits.
func TestCleanedScalar(t *testing.T) {
	t.Parallel()
	for _, c := range []Curve{X25519, X448} {
		order := orderOf(c)
		h := big.NewInt(8)
		if c == X448 {
			h = big.NewInt(4)
		}
		values := []*big.Int{big.NewInt(1), big.NewInt(2), new(big.Int).Sub(order, big.NewInt(1))}
		// s = h*t, where t is at the edge of the range and of 2^252.
		for _, t := range []*big.Int{new(big.Int).Sub(order, big.NewInt(1)), new(big.Int).Sub(order, big.NewInt(2)),
			new(big.Int).Lsh(big.NewInt(1), 252), new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 252), big.NewInt(1))} {
			values = append(values, t.Mul(t, h).Mod(t, order))
		}
		for range 20 {
			values = append(values, new(big.Int).SetBytes(bigEndian(mustRandom(t, c).Bytes())))
		}
		for _, want := range values {
			s := mustScalar(t, c, octets(c, want))
			k := new(big.Int).SetBytes(bigEndian(s.cleaned()))
			if new(big.Int).Mod(k, h).Sign() != 0 {
				t.Errorf("%v: cleaned %v of %v", c, k, want)
			}
			if k.Mod(k, order).Cmp(want) != 0 {
				t.Errorf("%v: cleaned scalar is congruent to %v, want %v", c, k, want)
			}
			// The same by another way: s*G = (s-1)*G + G.
			sum, err := s.Public().Add(BasePoint(c).Negate())
			if want.Cmp(big.NewInt(1)) == 0 {
				if !errors.Is(err, ErrIdentity) {
					t.Errorf("%v: G - G: %v", c, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			less := mustScalar(t, c, octets(c, new(big.Int).Sub(want, big.NewInt(1))))
			if !sum.Equal(less.Public()) {
				t.Errorf("%v: s*G - G differs from (s-1)*G for s = %v", c, want)
			}
		}
	}
}

// bigEndian turns little-endian octets around.
func bigEndian(b []byte) []byte {
	slices.Reverse(b)
	return b
}

func TestPointArithmetic(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			s, r := mustRandom(t, c), mustRandom(t, c)
			p, q := s.Public(), r.Public()
			if p.Curve() != c || len(p.Bytes()) != c.PointLen() {
				t.Errorf("point of %v with %d octets", p.Curve(), len(p.Bytes()))
			}
			if !mustPoint(t, c, p.Bytes()).Equal(p) || p.Equal(q) || p.Equal(p.Negate()) {
				t.Error("Equal is wrong")
			}
			if !p.Negate().Negate().Equal(p) {
				t.Error("-(-P) is not P")
			}
			sum, err := s.Add(r)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := p.Add(q); err != nil || !got.Equal(sum.Public()) {
				t.Errorf("P + Q: %v", err)
			}
			double, err := s.Add(s)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := p.Add(p); err != nil || !got.Equal(double.Public()) {
				t.Errorf("P + P: %v", err)
			}
			if got, err := p.Add(p.Negate()); got != nil || !errors.Is(err, ErrIdentity) || !strings.HasPrefix(err.Error(), "identity") {
				t.Errorf("P - P: %v", err)
			}
			other := Ed25519
			if c == Ed25519 {
				other = X25519
			}
			if _, err := p.Add(BasePoint(other)); err == nil {
				t.Error("points of two curves were added")
			}
			if BasePoint(other).Equal(p) {
				t.Error("points of two curves are equal")
			}
		})
	}
}

func TestCombine(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		p, q := mustRandom(t, c).Public(), mustRandom(t, c).Public()
		if got, err := Combine(p); err != nil || !got.Equal(p) {
			t.Errorf("%v: one point: %v", c, err)
		}
		// A partial sum may be the identity, the whole may not.
		if got, err := Combine(p, p.Negate(), q); err != nil || !got.Equal(q) {
			t.Errorf("%v: P - P + Q: %v", c, err)
		}
		if _, err := Combine(p, q, p.Negate(), q.Negate()); !errors.Is(err, ErrIdentity) {
			t.Errorf("%v: P + Q - P - Q: %v", c, err)
		}
	}
	if _, err := Combine(); err == nil {
		t.Error("no points have a sum")
	}
	p := BasePoint(P256)
	if _, err := Combine(p, p.Negate(), BasePoint(P384)); err == nil {
		t.Error("points of two curves were combined")
	}
}

func TestUnsignedInputLiftsToEven(t *testing.T) {
	t.Parallel()
	for _, c := range []Curve{X25519, X448} {
		for range 4 {
			p := mustRandom(t, c).Public().Bytes()
			n := len(p) - 1
			want := append(bytes.Clone(p[:n]), 0)
			wantOctets(t, "lifted point", mustPoint(t, c, p[:n]).Bytes(), want)
		}
	}
}

func TestSharedSecretLength(t *testing.T) {
	t.Parallel()
	want := map[Curve]int{X25519: 32, X448: 56, Ed25519: 32, Ed448: 57, P256: 32, P384: 48, P521: 66}
	for _, c := range Curves() {
		if got := len(BasePoint(c).SharedSecret()); got != want[c] {
			t.Errorf("%v: %d octets, want %d", c, got, want[c])
		}
	}
}

func TestBytesAreCopies(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		p := BasePoint(c)
		clear(p.Bytes())
		clear(p.SharedSecret())
		if !p.Equal(BasePoint(c)) {
			t.Errorf("%v: a point was changed through its octets", c)
		}
	}
}

func FuzzParsePoint(f *testing.F) {
	for _, c := range Curves() {
		p := BasePoint(c).Bytes()
		f.Add(uint8(c), p)
		f.Add(uint8(c), p[:len(p)-1])
		f.Add(uint8(c), BasePoint(c).Negate().Bytes())
		f.Add(uint8(c), make([]byte, len(p)))
		f.Add(uint8(c), bytes.Repeat([]byte{0xff}, len(p)))
	}
	f.Fuzz(func(t *testing.T, curve uint8, b []byte) {
		c := Curve(curve)
		p, err := ParsePoint(c, b)
		if err != nil {
			if p != nil {
				t.Fatal("both a point and an error")
			}
			return
		}
		want := b
		if len(b) == c.PointLen()-1 {
			want = append(bytes.Clone(b), 0)
		}
		if !bytes.Equal(p.Bytes(), want) {
			t.Fatalf("%v: %x encodes as %x", c, b, p.Bytes())
		}
		if !mustPoint(t, c, p.Negate().Bytes()).Negate().Equal(p) {
			t.Fatalf("%v: -(-P) is not P for %x", c, b)
		}
	})
}
