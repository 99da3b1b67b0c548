package montgomery

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
	"github.com/cloudflare/circl/math/fp25519"
	"github.com/cloudflare/circl/math/fp448"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// suite is what the tests of both curves have in common.
type suite[E any, C curve[E]] struct {
	*reference
	base   *Point[E, C]
	decode func([]byte) (*Point[E, C], error)
	// agree is another implementation of X25519 or X448.
	agree func(t *testing.T, k, u []byte) []byte
}

func suite25519() suite[fp25519.Elt, curve25519] {
	return suite[fp25519.Elt, curve25519]{reference25519(), Base25519(), Decode25519, agree25519}
}

func suite448() suite[fp448.Elt, curve448] {
	return suite[fp448.Elt, curve448]{reference448(), Base448(), Decode448, agree448}
}

func agree25519(t *testing.T, k, u []byte) []byte {
	t.Helper()
	private, err := ecdh.X25519().NewPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ecdh.X25519().NewPublicKey(u)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := private.ECDH(public)
	if err != nil {
		t.Fatal(err)
	}
	return shared
}

func agree448(t *testing.T, k, u []byte) []byte {
	t.Helper()
	var shared, private, public x448.Key
	copy(private[:], k)
	copy(public[:], u)
	if !x448.Shared(&shared, &private, &public) {
		t.Fatal("circl refuses the point")
	}
	return shared[:]
}

// clamp is what RFC 7748, section 5, does to a secret of 32 or 56 octets.
func clamp(k []byte) {
	if len(k) == 32 {
		k[0] &= 0xf8
		k[31] = k[31]&0x7f | 0x40
		return
	}
	k[0] &= 0xfc
	k[55] |= 0x80
}

// both runs a test on both curves.
func both(t *testing.T, on25519 func(*testing.T, suite[fp25519.Elt, curve25519]), on448 func(*testing.T, suite[fp448.Elt, curve448])) {
	t.Parallel()
	t.Run("Curve25519", func(t *testing.T) { t.Parallel(); on25519(t, suite25519()) })
	t.Run("Curve448", func(t *testing.T) { t.Parallel(); on448(t, suite448()) })
}

func (s suite[E, C]) mustDecode(t *testing.T, b []byte) *Point[E, C] {
	t.Helper()
	p, err := s.decode(b)
	if err != nil {
		t.Fatalf("decode %x: %v", b, err)
	}
	return p
}

func (s suite[E, C]) mustAdd(t *testing.T, p, q *Point[E, C]) *Point[E, C] {
	t.Helper()
	sum, err := p.Add(q)
	if err != nil {
		t.Fatalf("add %x and %x: %v", p.Bytes(), q.Bytes(), err)
	}
	return sum
}

func (s suite[E, C]) mustMultiply(t *testing.T, k *big.Int, p *Point[E, C]) *Point[E, C] {
	t.Helper()
	q, err := p.ScalarMult(s.littleEndian(k))
	if err != nil {
		t.Fatalf("multiply %x by %x: %v", p.Bytes(), k, err)
	}
	return q
}

// limit is the number of scalars that ScalarMult takes.
func (s suite[E, C]) limit() *big.Int { return new(big.Int).Lsh(big.NewInt(1), uint(8*s.size)) }

func TestBase(t *testing.T) {
	both(t, testBase[fp25519.Elt, curve25519], testBase[fp448.Elt, curve448])
}

func testBase[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	p := s.mustDecode(t, s.base.Bytes())
	if !p.Equal(s.base) {
		t.Errorf("decoded base point is %x, want %x", p.Bytes(), s.base.Bytes())
	}
}

func TestScalarMultAgainstReference(t *testing.T) {
	both(t, testScalarMult[fp25519.Elt, curve25519], testScalarMult[fp448.Elt, curve448])
}

func testScalarMult[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	rnd := newRandom(1)
	for _, k := range s.scalars() {
		point := s.randomPrimeOrder(rnd)
		p := s.mustDecode(t, s.encode(point))
		got, err := p.ScalarMult(s.littleEndian(k))
		want := s.multiply(k, point)
		switch {
		case want == nil:
			if err != badpoint.ErrIdentity {
				t.Errorf("%x times %x: got %v, want identity", k, p.Bytes(), err)
			}
		case err != nil:
			t.Errorf("%x times %x: %v", k, p.Bytes(), err)
		case !bytes.Equal(got.Bytes(), s.encode(want)):
			t.Errorf("%x times %x is %x, want %x", k, p.Bytes(), got.Bytes(), s.encode(want))
		default:
			s.checkCoordinates(t, "product", got, want)
		}
	}
}

// checkCoordinates looks inside, for Bytes shows only the sign of v.
func (s suite[E, C]) checkCoordinates(t *testing.T, name string, p *Point[E, C], want *affine) {
	t.Helper()
	var c C
	pu, pv := p.u, p.v
	u, v := c.octets(&pu), c.octets(&pv)
	if !bytes.Equal(u, s.littleEndian(want.u)) || !bytes.Equal(v, s.littleEndian(want.v)) {
		t.Errorf("%s is (%x, %x), want (%x, %x)", name, u, v, want.u, want.v)
	}
}

// scalars are random ones, small ones, and all small distances from the multiples of the order
// and from the greatest scalar.
func (s suite[E, C]) scalars() []*big.Int {
	var list []*big.Int
	rnd := newRandom(2)
	for range 10 {
		list = append(list, below(rnd, s.l), below(rnd, s.limit()))
	}
	centers := []*big.Int{s.limit()}
	for i := range s.cofactor + 1 {
		centers = append(centers, new(big.Int).Mul(s.l, big.NewInt(i)))
	}
	for _, center := range centers {
		for d := int64(-3); d <= 3; d++ {
			list = append(list, new(big.Int).Add(center, big.NewInt(d)))
		}
	}
	return slices.DeleteFunc(list, func(k *big.Int) bool { return k.Sign() < 0 || k.Cmp(s.limit()) >= 0 })
}

func TestScalarMultAgainstOthers(t *testing.T) {
	both(t, testOthers[fp25519.Elt, curve25519], testOthers[fp448.Elt, curve448])
}

func testOthers[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	rnd := newRandom(3)
	p := s.base
	for range 100 {
		k := s.littleEndian(below(rnd, s.limit()))
		clamp(k)
		q, err := p.ScalarMult(k)
		if err != nil {
			t.Fatal(err)
		}
		if want := s.agree(t, k, p.U()); !bytes.Equal(q.U(), want) {
			t.Fatalf("%x times %x is %x, want %x", k, p.U(), q.U(), want)
		}
		p = s.mustDecode(t, q.Bytes())
	}
}

func TestScalarMultRefusesLength(t *testing.T) {
	both(t, testScalarLength[fp25519.Elt, curve25519], testScalarLength[fp448.Elt, curve448])
}

func testScalarLength[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	for _, n := range []int{0, 1, s.size - 1, s.size + 1} {
		if _, err := s.base.ScalarMult(bytes.Repeat([]byte{1}, n)); err == nil {
			t.Errorf("scalar of %d octets accepted", n)
		}
	}
}

func TestGroupLaws(t *testing.T) {
	both(t, testGroupLaws[fp25519.Elt, curve25519], testGroupLaws[fp448.Elt, curve448])
}

func testGroupLaws[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	rnd := newRandom(4)
	for range 10 {
		p := s.mustMultiply(t, below(rnd, s.l), s.base)
		q := s.mustMultiply(t, below(rnd, s.l), s.base)
		r := s.mustMultiply(t, below(rnd, s.l), s.base)
		k, m := below(rnd, s.l), below(rnd, s.l)
		equal := func(law string, x, y *Point[E, C]) {
			t.Helper()
			if !x.Equal(y) {
				t.Errorf("%s: %x and %x", law, x.Bytes(), y.Bytes())
			}
			s.mustDecode(t, x.Bytes())
		}
		pq := s.mustAdd(t, p, q)
		equal("p+q = q+p", pq, s.mustAdd(t, q, p))
		equal("(p+q)+r = p+(q+r)", s.mustAdd(t, pq, r), s.mustAdd(t, p, s.mustAdd(t, q, r)))
		equal("(p+q)-q = p", s.mustAdd(t, pq, q.Negate()), p)
		equal("p+p = 2p", s.mustAdd(t, p, p), s.mustMultiply(t, big.NewInt(2), p))
		equal("-(-p) = p", p.Negate().Negate(), p)
		equal("-p = (L-1)p", p.Negate(), s.mustMultiply(t, new(big.Int).Sub(s.l, big.NewInt(1)), p))
		equal("k(p+q) = kp+kq", s.mustMultiply(t, k, pq), s.mustAdd(t, s.mustMultiply(t, k, p), s.mustMultiply(t, k, q)))
		sum := new(big.Int).Add(k, m)
		equal("(k+m)p = kp+mp", s.mustMultiply(t, sum.Mod(sum, s.l), p), s.mustAdd(t, s.mustMultiply(t, k, p), s.mustMultiply(t, m, p)))
		if _, err := p.Add(p.Negate()); err != badpoint.ErrIdentity {
			t.Errorf("p-p: got %v, want identity", err)
		}
		if p.Equal(p.Negate()) || p.Equal(q) {
			t.Error("different points are equal")
		}
	}
}

func TestDecodeLiftsToEvenV(t *testing.T) {
	both(t, testLift[fp25519.Elt, curve25519], testLift[fp448.Elt, curve448])
}

func testLift[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	rnd := newRandom(5)
	for range 10 {
		point := s.randomPrimeOrder(rnd)
		if point.v.Bit(0) == 1 {
			point = s.negate(point)
		}
		p := s.mustDecode(t, s.littleEndian(point.u))
		s.checkCoordinates(t, "lifted point", p, point)
		minus := s.negate(point)
		s.checkCoordinates(t, "signed point", s.mustDecode(t, s.encode(minus)), minus)
	}
}

// TestDecodeSubgroup decodes a point of every class modulo the subgroup of prime order, many times.
func TestDecodeSubgroup(t *testing.T) {
	both(t, testSubgroup[fp25519.Elt, curve25519], testSubgroup[fp448.Elt, curve448])
}

func testSubgroup[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	rnd := newRandom(6)
	torsion := s.torsion(rnd)
	if int64(len(torsion)) != s.cofactor {
		t.Fatalf("%d torsion points, want %d", len(torsion), s.cofactor)
	}
	for range 30 {
		good := s.randomPrimeOrder(rnd)
		s.mustDecode(t, s.encode(good))
		for i, small := range torsion[1:] {
			bad := s.add(good, small)
			if s.multiply(s.l, bad) == nil {
				t.Fatal("the reference finds prime order")
			}
			if _, err := s.decode(s.encode(bad)); !errors.Is(err, badpoint.ErrTorsion) {
				t.Errorf("class %d, %x: got %v, want torsion", i+1, s.encode(bad), err)
			}
		}
	}
}

// TestDecodeAgainstReference takes any u whatsoever.
func TestDecodeAgainstReference(t *testing.T) {
	both(t, testAnyU[fp25519.Elt, curve25519], testAnyU[fp448.Elt, curve448])
}

func testAnyU[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	rnd := newRandom(7)
	seen := map[error]bool{}
	for i := range int64(200) {
		u := below(rnd, s.p)
		switch i % 4 {
		case 1:
			u.SetInt64(i)
		case 2:
			u.Sub(s.p, big.NewInt(i))
		}
		want := s.classify(u)
		seen[want] = true
		if _, err := s.decode(s.littleEndian(u)); !errors.Is(err, want) {
			t.Errorf("u = %x: got %v, want %v", u, err, want)
		}
	}
	for _, reason := range []error{nil, badpoint.ErrTwist, badpoint.ErrTorsion} {
		if !seen[reason] {
			t.Errorf("no u gave %v", reason)
		}
	}
}

// classify says why the points with this u are refused, or nil.
func (s suite[E, C]) classify(u *big.Int) error {
	point := s.lift(u)
	switch {
	case point == nil:
		return badpoint.ErrTwist
	case s.multiply(big.NewInt(s.cofactor), point) == nil:
		return badpoint.ErrLowOrder
	case s.multiply(s.l, point) != nil:
		return badpoint.ErrTorsion
	}
	return nil
}

func TestDecodeRefuses(t *testing.T) {
	both(t, testRefuses[fp25519.Elt, curve25519], testRefuses[fp448.Elt, curve448])
}

func testRefuses[E any, C curve[E]](t *testing.T, s suite[E, C]) {
	good := s.base.Bytes()
	zero := make([]byte, s.size)
	withSign := func(u []byte, sign byte) []byte { return append(bytes.Clone(u), sign) }
	all := bytes.Repeat([]byte{0xff}, s.size)
	p := s.littleEndian(s.p)
	plus := func(n int64) []byte { return s.littleEndian(new(big.Int).Add(s.p, big.NewInt(n))) }
	tests := []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, badpoint.ErrLength},
		{"one octet short", good[:s.size-1], badpoint.ErrLength},
		{"one octet long", append(bytes.Clone(good), 0), badpoint.ErrLength},
		{"twice", append(bytes.Clone(good), good...), badpoint.ErrLength},
		{"sign 01", withSign(good[:s.size], 0x01), badpoint.ErrSignOctet},
		{"sign 40", withSign(good[:s.size], 0x40), badpoint.ErrSignOctet},
		{"sign 81", withSign(good[:s.size], 0x81), badpoint.ErrSignOctet},
		{"sign ff", withSign(good[:s.size], 0xff), badpoint.ErrSignOctet},
		{"sign 01 before non-canonical", withSign(p, 0x01), badpoint.ErrSignOctet},
		{"v = 0 with sign 80", withSign(zero, 0x80), badpoint.ErrSignOctet},
		{"v = 0", zero, badpoint.ErrLowOrder},
		{"v = 0 with sign 00", withSign(zero, 0x00), badpoint.ErrLowOrder},
		{"p", p, badpoint.ErrNonCanonical},
		{"p, signed", withSign(p, 0x00), badpoint.ErrNonCanonical},
		{"p, sign 80", withSign(p, 0x80), badpoint.ErrNonCanonical},
		{"p + 1", plus(1), badpoint.ErrNonCanonical},
		{"p + u of the base point", s.littleEndian(new(big.Int).Add(s.p, s.fromLittleEndian(s.base.U()))), badpoint.ErrNonCanonical},
		{"all bits", all, badpoint.ErrNonCanonical},
		{"all bits, signed", withSign(all, 0x80), badpoint.ErrNonCanonical},
		{"2", s.littleEndian(big.NewInt(2)), s.classify(big.NewInt(2))},
	}
	if s.size == 32 {
		high := bytes.Clone(good)
		high[31] |= 0x80
		tests = append(tests, struct {
			name string
			in   []byte
			want error
		}{"bit 255", high, badpoint.ErrNonCanonical})
	}
	for _, tt := range tests {
		s.wantRefusal(t, tt.name, tt.in, tt.want)
	}
	for _, point := range s.torsion(newRandom(8))[1:] {
		s.wantRefusal(t, "order divides the cofactor", s.encode(point), badpoint.ErrLowOrder)
	}
}

func (s suite[E, C]) wantRefusal(t *testing.T, name string, in []byte, want error) {
	t.Helper()
	p, err := s.decode(in)
	if p != nil || !errors.Is(err, want) || !strings.HasPrefix(err.Error(), want.Error()) {
		t.Errorf("%s, %x: got %v, %v, want %v", name, in, p, err, want)
	}
}

func FuzzDecode25519(f *testing.F) { fuzzDecode(f, suite25519()) }

func FuzzDecode448(f *testing.F) { fuzzDecode(f, suite448()) }

func fuzzDecode[E any, C curve[E]](f *testing.F, s suite[E, C]) {
	rnd := newRandom(9)
	f.Add([]byte{})
	f.Add(make([]byte, s.size))
	f.Add(s.littleEndian(s.p))
	f.Add(s.base.Bytes())
	f.Add(s.base.U())
	for _, small := range s.torsion(rnd)[1:] {
		f.Add(s.encode(small))
		f.Add(s.encode(s.add(small, s.randomPrimeOrder(rnd))))
	}
	for range 4 {
		f.Add(s.encode(s.randomPrimeOrder(rnd)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := s.decode(b)
		if len(b) == s.size || len(b) == s.size+1 {
			s.checkVerdict(t, b, err)
		}
		if err != nil {
			return
		}
		want := b
		if len(b) == s.size {
			want = append(bytes.Clone(b), 0)
		}
		if !bytes.Equal(p.Bytes(), want) || !bytes.Equal(p.U(), b[:s.size]) {
			t.Errorf("%x became %x", b, p.Bytes())
		}
	})
}

// checkVerdict compares the decision on the u-coordinate with the reference.
func (s suite[E, C]) checkVerdict(t *testing.T, b []byte, err error) {
	t.Helper()
	u := s.fromLittleEndian(b[:s.size])
	if u.Cmp(s.p) >= 0 || errors.Is(err, badpoint.ErrSignOctet) {
		if err == nil {
			t.Errorf("%x accepted", b)
		}
		return
	}
	if want := s.classify(u); !errors.Is(err, want) {
		t.Errorf("%x: got %v, want %v", b, err, want)
	}
}
