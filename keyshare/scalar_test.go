package keyshare

import (
	"bytes"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"
)

func TestCurves(t *testing.T) {
	t.Parallel()
	tests := []struct {
		curve                  Curve
		name                   string
		scalar, point, derived int
	}{
		{X25519, "X25519", 32, 33, 32},
		{X448, "X448", 56, 57, 56},
		{Ed25519, "Ed25519", 32, 32, 32},
		{Ed448, "Ed448", 56, 57, 56},
		{P256, "P256", 32, 65, 40},
		{P384, "P384", 48, 97, 56},
		{P521, "P521", 66, 133, 74},
	}
	for _, tt := range tests {
		c := tt.curve
		if got, err := ParseCurve(tt.name); err != nil || got != c || c.String() != tt.name {
			t.Errorf("%s: parsed %v, %v; prints %v", tt.name, got, err, c)
		}
		if c.ScalarLen() != tt.scalar || c.PointLen() != tt.point || c.DeriveLen() != tt.derived {
			t.Errorf("%v: lengths %d %d %d", c, c.ScalarLen(), c.PointLen(), c.DeriveLen())
		}
	}
	for _, name := range []string{"", "x25519", "P-256", "X448z", "RSA2048"} {
		if c, err := ParseCurve(name); err == nil {
			t.Errorf("%q parsed as %v", name, c)
		}
	}
	for _, c := range []Curve{0, P521 + 1} {
		if c.ScalarLen() != 0 || c.PointLen() != 0 || c.DeriveLen() != 0 || !strings.HasPrefix(c.String(), "Curve(") {
			t.Errorf("%v is a curve", c)
		}
	}
}

// The orders as crypto/elliptic has them, and as L*G = identity shows them.
func TestOrders(t *testing.T) {
	t.Parallel()
	for c, std := range map[Curve]elliptic.Curve{P256: elliptic.P256(), P384: elliptic.P384(), P521: elliptic.P521()} {
		if orderOf(c).Cmp(std.Params().N) != 0 {
			t.Errorf("%v: wrong order", c)
		}
	}
	for _, c := range Curves() {
		minusOne := mustScalar(t, c, octets(c, new(big.Int).Sub(orderOf(c), big.NewInt(1))))
		if !minusOne.Public().Equal(BasePoint(c).Negate()) {
			t.Errorf("%v: (L-1)*G is not -G", c)
		}
	}
}

func TestParseScalar(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			order, n := orderOf(c), c.ScalarLen()
			limit := new(big.Int).Lsh(big.NewInt(1), uint(8*n))
			for _, v := range []*big.Int{
				big.NewInt(1), new(big.Int).Sub(order, big.NewInt(1)), new(big.Int).Add(order, big.NewInt(1)),
				new(big.Int).Sub(limit, big.NewInt(1)), new(big.Int).Rsh(limit, 1),
			} {
				s, err := ParseScalar(c, octets(c, v))
				if err != nil {
					t.Errorf("%v: %v", v, err)
					continue
				}
				wantOctets(t, "reduced scalar", s.Bytes(), octets(c, new(big.Int).Mod(v, order)))
			}
			largest := new(big.Int).Sub(limit, big.NewInt(1))
			largest.Sub(largest, new(big.Int).Mod(largest, order))
			for _, v := range []*big.Int{new(big.Int), order, largest} {
				if _, err := ParseScalar(c, octets(c, v)); !errors.Is(err, ErrZeroScalar) {
					t.Errorf("%v, a multiple of L: %v", v, err)
				}
			}
			for _, length := range []int{0, n - 1, n + 1} {
				if _, err := ParseScalar(c, make([]byte, length)); !errors.Is(err, ErrScalarLength) {
					t.Errorf("%d octets: %v", length, err)
				}
				if _, err := ParseCoefficient(c, make([]byte, length)); !errors.Is(err, ErrScalarLength) {
					t.Errorf("coefficient of %d octets: %v", length, err)
				}
			}
			for _, v := range []*big.Int{new(big.Int), order, new(big.Int).Add(order, big.NewInt(1)), new(big.Int).Sub(limit, big.NewInt(1))} {
				if _, err := ParseCoefficient(c, octets(c, v)); !errors.Is(err, ErrScalarRange) {
					t.Errorf("coefficient %v: %v", v, err)
				}
			}
			for _, v := range []*big.Int{big.NewInt(1), new(big.Int).Sub(order, big.NewInt(1))} {
				s, err := ParseCoefficient(c, octets(c, v))
				if err != nil {
					t.Fatal(err)
				}
				wantOctets(t, "coefficient", s.Bytes(), octets(c, v))
			}
		})
	}
	for _, parse := range []func(Curve, []byte) (*Scalar, error){ParseScalar, ParseCoefficient} {
		if _, err := parse(0, nil); err == nil {
			t.Error("a scalar of no curve was parsed")
		}
	}
}

// Arithmetic against math/big.
func TestScalarArithmetic(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		order := orderOf(c)
		value := func(s *Scalar) *big.Int {
			b := s.Bytes()
			if !c.IsNIST() {
				slices.Reverse(b)
			}
			return new(big.Int).SetBytes(b)
		}
		for range 20 {
			s, r := mustRandom(t, c), mustRandom(t, c)
			sum, err := s.Add(r)
			if err != nil {
				t.Fatal(err)
			}
			want := new(big.Int).Add(value(s), value(r))
			wantOctets(t, "sum", sum.Bytes(), octets(c, want.Mod(want, order)))
			want.Mul(value(s), value(r)).Mod(want, order)
			wantOctets(t, "product", s.Multiply(r).Bytes(), octets(c, want))
			want.Sub(order, value(s))
			if _, err := s.Add(mustScalar(t, c, octets(c, want))); !errors.Is(err, ErrZeroScalar) {
				t.Errorf("%v: s + (-s): %v", c, err)
			}
		}
	}
	if _, err := mustRandom(t, X25519).Add(mustRandom(t, Ed25519)); err == nil {
		t.Error("scalars of two curves were added")
	}
}

func TestReduceOfAnyLength(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		order := orderOf(c)
		for n := range 140 {
			b := bytes.Repeat([]byte{0xff}, n)
			want := new(big.Int).Mod(new(big.Int).SetBytes(b), order)
			wantOctets(t, fmt.Sprintf("%v: %d octets", c, n), c.group().reduceOctets(b).Bytes(c.group().order), want.FillBytes(make([]byte, c.ScalarLen())))
		}
	}
}

type constantReader byte

func (r constantReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r)
	}
	return len(b), nil
}

func TestRandomScalar(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		if a, b := mustRandom(t, c), mustRandom(t, c); bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("%v: the same scalar twice", c)
		}
		for _, r := range []io.Reader{constantReader(0), constantReader(0xff), bytes.NewReader(nil), bytes.NewReader(make([]byte, c.ScalarLen()-1))} {
			if s, err := RandomScalar(c, r); err == nil {
				t.Errorf("%v: scalar %x from a bad source", c, s.Bytes())
			}
		}
		// The first draw in range is taken as it is.
		b := append(make([]byte, c.ScalarLen()), octets(c, big.NewInt(258))...)
		s, err := RandomScalar(c, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "scalar", s.Bytes(), octets(c, big.NewInt(258)))
	}
	if _, err := RandomScalar(0, nil); err == nil {
		t.Error("a scalar of no curve was drawn")
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		s, p := mustRandom(t, c), mustRandom(t, c).Public()
		kept := s.clone()
		s.Wipe()
		if !bytes.Equal(s.Bytes(), make([]byte, c.ScalarLen())) {
			t.Errorf("%v: wiped scalar is %x", c, s.Bytes())
		}
		if kept.n.IsZero() == 1 {
			t.Errorf("%v: a copy was wiped", c)
		}
		if _, err := Agree(s, p); !errors.Is(err, ErrIdentity) {
			t.Errorf("%v: agreement of a wiped scalar: %v", c, err)
		}
	}
}

func TestScalarDoesNotPrint(t *testing.T) {
	t.Parallel()
	s := mustScalar(t, P256, octets(P256, big.NewInt(0x1234567)))
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if got := fmt.Sprintf(format, s); got != "P256 scalar" {
			t.Errorf("%s prints %s", format, got)
		}
	}
}

func TestExpandSeedRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		for n := range 80 {
			_, _, err := ExpandSeed(c, make([]byte, n))
			allowed := !c.IsNIST() && (n == c.DeriveLen() || c == Ed448 && n == 57)
			if (err == nil) != allowed {
				t.Errorf("%v: seed of %d octets: %v", c, n, err)
			}
			if err != nil && !c.IsNIST() && !errors.Is(err, ErrScalarLength) {
				t.Errorf("%v: seed of %d octets: %v", c, n, err)
			}
		}
	}
	if _, _, err := ExpandSeed(0, make([]byte, 32)); err == nil {
		t.Error("a seed of no curve was expanded")
	}
}

// The keys of draft-hallambaker-mesh-udf-13, Section 4.4.3, by the rule of production software
// and modulo n-1, as computed from the draft's seeds by another program.
func TestDeriveNIST(t *testing.T) {
	t.Parallel()
	tests := []struct {
		curve  Curve
		secret string // specifier and secret of the seed
		want   string
	}{
		{P256, "0005ac2ee038459587227fbbd4a6fbf3daff", "92357634728628358775291723673241019002017064144220295763061216437421460515491"},
		{P384, "0006bd6837f3bb147a3053e739ad22e6e61c", "2138836303554468661574686791793253975598288093758472779542258456615134232591778834334188459782149846951810020476031"},
		{P521, "0007c042c16b35c6cffb299326bb3aefa4be", "2312695933151566069050092340835650923078016653174322597543451937867824010106578000107662646198113291758782482475019120361367319299899697767370843915083105068"},
	}
	for _, tt := range tests {
		ikm := unhex(tt.secret)
		okm, err := hkdf.Key(sha512.New, ikm, nil, string(ikm[:2]), tt.curve.DeriveLen())
		if err != nil {
			t.Fatal(err)
		}
		s, err := DeriveNIST(tt.curve, okm)
		if err != nil {
			t.Fatal(err)
		}
		want, _ := new(big.Int).SetString(tt.want, 10)
		wantOctets(t, tt.curve.String(), s.Bytes(), octets(tt.curve, want))
	}
	for _, c := range []Curve{P256, P384, P521} {
		// (n-1) mod (n-1) + 1 = 1, and n-2 gives n-1.
		less := new(big.Int).Sub(orderOf(c), big.NewInt(1))
		for okm, want := range map[*big.Int]*big.Int{less: big.NewInt(1), new(big.Int).Sub(less, big.NewInt(1)): less, new(big.Int): big.NewInt(1)} {
			s, err := DeriveNIST(c, okm.FillBytes(make([]byte, c.DeriveLen())))
			if err != nil {
				t.Fatal(err)
			}
			wantOctets(t, c.String(), s.Bytes(), octets(c, want))
		}
		if _, err := DeriveNIST(c, make([]byte, c.ScalarLen())); !errors.Is(err, ErrScalarLength) {
			t.Errorf("%v: %v", c, err)
		}
	}
	for _, c := range []Curve{0, X25519, X448, Ed25519, Ed448} {
		if _, err := DeriveNIST(c, make([]byte, c.DeriveLen())); err == nil {
			t.Errorf("%v: derived", c)
		}
	}
}

func FuzzParseScalar(f *testing.F) {
	for _, c := range Curves() {
		f.Add(uint8(c), octets(c, big.NewInt(1)))
		f.Add(uint8(c), octets(c, orderOf(c)))
		f.Add(uint8(c), bytes.Repeat([]byte{0xff}, c.ScalarLen()))
	}
	f.Fuzz(func(t *testing.T, curve uint8, b []byte) {
		c := Curve(curve)
		s, err := ParseScalar(c, b)
		coefficient, errRange := ParseCoefficient(c, b)
		if err != nil {
			if errRange == nil {
				t.Fatal("a coefficient that is no scalar")
			}
			return
		}
		value := slices.Clone(b)
		if !c.IsNIST() {
			slices.Reverse(value)
		}
		want := new(big.Int).SetBytes(value)
		canonical := want.Cmp(orderOf(c)) < 0
		if canonical != (errRange == nil) || canonical && !bytes.Equal(coefficient.Bytes(), b) {
			t.Fatalf("%v: coefficient %x: %v", c, b, errRange)
		}
		if !bytes.Equal(s.Bytes(), octets(c, want.Mod(want, orderOf(c)))) {
			t.Fatalf("%v: %x reduces to %x", c, b, s.Bytes())
		}
	})
}
