package keyshare

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
)

var recoverable = []Curve{X25519, X448, P256, P384, P521}

// xOracle answers as a device that holds b and counts the points it was asked for.
func xOracle(b *Scalar, count *int) XOracle {
	return func(points ...*Point) ([][]byte, error) {
		var out [][]byte
		for _, p := range points {
			*count++
			r, err := Agree(b, p)
			if err != nil {
				return nil, err
			}
			out = append(out, r.SharedSecret())
		}
		return out, nil
	}
}

// The recovered point is that of software, octet by octet, and so is its sum with a share.
func TestRecoverPoint(t *testing.T) {
	t.Parallel()
	for _, c := range recoverable {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			for range 64 {
				a, b, peer := mustRandom(t, c), mustRandom(t, c), mustRandom(t, c).Public()
				queries := 0
				got, err := RecoverPoint(b.Public(), peer, xOracle(b, &queries))
				if err != nil {
					t.Fatal(err)
				}
				want, err := Agree(b, peer)
				if err != nil {
					t.Fatal(err)
				}
				wantOctets(t, "point", got.Bytes(), want.Bytes())
				if queries != 2 {
					t.Fatalf("%d queries, want 2", queries)
				}
				sum, err := a.Add(b)
				if err != nil {
					t.Fatal(err)
				}
				part, _ := Agree(a, peer)
				combined, err := Combine(part, got)
				if err != nil {
					t.Fatal(err)
				}
				whole, _ := Agree(sum, peer)
				wantOctets(t, "sum", combined.Bytes(), whole.Bytes())
			}
		})
	}
}

// On Montgomery curves the other sign of the public key gives the other sign of the point.
func TestRecoverPointOtherSign(t *testing.T) {
	t.Parallel()
	for _, c := range []Curve{X25519, X448} {
		b, peer := mustRandom(t, c), mustRandom(t, c).Public()
		queries := 0
		got, err := RecoverPoint(b.Public().Negate(), peer, xOracle(b, &queries))
		if err != nil {
			t.Fatal(err)
		}
		want, _ := Agree(b, peer)
		wantOctets(t, c.String(), got.Bytes(), want.Negate().Bytes())
	}
}

// Small multiples of the base point and of the public key, where formulas have exceptions.
func TestRecoverPointAtTheEdges(t *testing.T) {
	t.Parallel()
	for _, c := range recoverable {
		b := mustRandom(t, c)
		public, base := b.Public(), BasePoint(c)
		double, _ := base.Add(base)
		triple, _ := double.Add(base)
		publicDouble, _ := public.Add(public)
		beside, _ := public.Add(base)
		points := []*Point{base, double, triple, public, publicDouble, beside}
		for i, p := range points {
			for _, peer := range []*Point{p, p.Negate()} {
				queries, want := 0, 2
				if i == 0 {
					want = 1
				}
				got, err := RecoverPoint(public, peer, xOracle(b, &queries))
				if err != nil {
					t.Fatalf("%s, point %d: %v", c, i, err)
				}
				software, _ := Agree(b, peer)
				wantOctets(t, fmt.Sprintf("%s, point %d", c, i), got.Bytes(), software.Bytes())
				if queries != want {
					t.Errorf("%s, point %d: %d queries, want %d", c, i, queries, want)
				}
			}
		}
	}
}

// The private keys 1 and -1, and those with which an answer meets the public key's coordinate.
func TestRecoverPointSmallKeys(t *testing.T) {
	t.Parallel()
	for _, c := range recoverable {
		one := make([]byte, c.ScalarLen())
		one[0] = 1
		if c.IsNIST() {
			slices.Reverse(one)
		}
		for n := byte(1); n < 4; n++ {
			k := slices.Clone(one)
			for i := range k {
				k[i] *= n
			}
			b, err := ParseScalar(c, k)
			if err != nil {
				t.Fatal(err)
			}
			for _, peer := range []*Point{mustRandom(t, c).Public(), BasePoint(c), BasePoint(c).Negate()} {
				queries := 0
				got, err := RecoverPoint(b.Public(), peer, xOracle(b, &queries))
				if err != nil {
					t.Fatalf("%s, key %d: %v", c, n, err)
				}
				want, _ := Agree(b, peer)
				wantOctets(t, c.String(), got.Bytes(), want.Bytes())
			}
		}
	}
}

func TestRecoverPointRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range recoverable {
		b, other, peer := mustRandom(t, c), mustRandom(t, c), mustRandom(t, c).Public()
		queries := 0
		honest := xOracle(b, &queries)
		edit := func(f func(answers [][]byte) [][]byte) XOracle {
			return func(points ...*Point) ([][]byte, error) {
				answers, err := honest(points...)
				return f(answers), err
			}
		}
		size := len(peer.SharedSecret())
		middle := size / 2
		for name, oracle := range map[string]XOracle{
			"other key":         xOracle(other, &queries),
			"first bit flipped": edit(func(a [][]byte) [][]byte { a[0][middle] ^= 1; return a }),
			"last bit flipped":  edit(func(a [][]byte) [][]byte { a[len(a)-1][middle] ^= 1; return a }),
			"same answer":       edit(func(a [][]byte) [][]byte { copy(a[len(a)-1], a[0]); a[0][middle] ^= byte(2 - len(a)); return a }),
			"public key twice": edit(func(a [][]byte) [][]byte {
				for i := range a {
					a[i] = b.Public().SharedSecret()
				}
				a[0][middle] ^= byte(2 - len(a))
				return a
			}),
			"public key, then its double": edit(func(a [][]byte) [][]byte {
				double, _ := b.Public().Add(b.Public())
				a[0] = b.Public().SharedSecret()
				a[len(a)-1] = double.SharedSecret()
				return a
			}),
			"zero":         edit(func(a [][]byte) [][]byte { clear(a[0]); return a }),
			"zero second":  edit(func(a [][]byte) [][]byte { clear(a[len(a)-1]); return a }),
			"above prime":  edit(func(a [][]byte) [][]byte { copy(a[0], bytes.Repeat([]byte{0xff}, size)); return a }),
			"short":        edit(func(a [][]byte) [][]byte { a[0] = a[0][1:]; return a }),
			"long":         edit(func(a [][]byte) [][]byte { a[0] = append(a[0], 0); return a }),
			"short second": edit(func(a [][]byte) [][]byte { a[len(a)-1] = a[len(a)-1][1:]; return a }),
			"no answers":   func(...*Point) ([][]byte, error) { return nil, nil },
			"one too many": edit(func(a [][]byte) [][]byte { return append(a, a[0]) }),
		} {
			for _, p := range []*Point{peer, BasePoint(c), BasePoint(c).Negate()} {
				got, err := RecoverPoint(b.Public(), p, oracle)
				if got != nil || !errors.Is(err, ErrRecovery) {
					t.Errorf("%s, %s: %v, %v, want ErrRecovery", c, name, got, err)
				}
			}
		}
	}
}

// Points of small order and with a component of it, from a device that does not clear it.
func TestRecoverPointTorsion(t *testing.T) {
	t.Parallel()
	b := mustRandom(t, X25519)
	for _, u := range [][]byte{{1}, {0}, {2}} { // order 4, order 2, on the twist
		oracle := func(points ...*Point) ([][]byte, error) {
			out := make([][]byte, len(points))
			for i := range out {
				out[i] = append(slices.Clone(u), make([]byte, 31)...)
			}
			return out, nil
		}
		if _, err := RecoverPoint(b.Public(), mustRandom(t, X25519).Public(), oracle); !errors.Is(err, ErrRecovery) {
			t.Errorf("u = %d: %v, want ErrRecovery", u, err)
		}
	}
}

func TestRecoverPointErrors(t *testing.T) {
	t.Parallel()
	broken := errors.New("device unplugged")
	oracle := func(...*Point) ([][]byte, error) { return nil, broken }
	for _, c := range recoverable {
		for _, peer := range []*Point{mustRandom(t, c).Public(), BasePoint(c)} {
			if _, err := RecoverPoint(mustRandom(t, c).Public(), peer, oracle); !errors.Is(err, broken) || errors.Is(err, ErrRecovery) {
				t.Errorf("%s: %v, want the oracle's error", c, err)
			}
		}
	}
	for _, c := range []Curve{Ed25519, Ed448} {
		if _, err := RecoverPoint(BasePoint(c), BasePoint(c), oracle); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", c, err)
		}
	}
	if _, err := RecoverPoint(BasePoint(P256), BasePoint(P384), oracle); err == nil || errors.Is(err, broken) {
		t.Errorf("points of two curves: %v", err)
	}
}

// The answers are secrets, and are wiped.
func TestRecoverPointWipes(t *testing.T) {
	t.Parallel()
	for _, c := range recoverable {
		b := mustRandom(t, c)
		queries := 0
		var kept [][]byte
		oracle := func(points ...*Point) (answers [][]byte, err error) {
			kept, err = xOracle(b, &queries)(points...)
			return kept, err
		}
		if _, err := RecoverPoint(b.Public(), mustRandom(t, c).Public(), oracle); err != nil {
			t.Fatal(err)
		}
		for _, k := range kept {
			if !bytes.Equal(k, make([]byte, len(k))) {
				t.Errorf("%s: an answer is left in memory", c)
			}
		}
	}
}

func BenchmarkRecoverPoint(b *testing.B) {
	for _, c := range recoverable {
		b.Run(c.String(), func(b *testing.B) {
			s, err := RandomScalar(c, nil)
			if err != nil {
				b.Fatal(err)
			}
			o, _ := RandomScalar(c, nil)
			peer, public, queries := o.Public(), s.Public(), 0
			answers, err := xOracle(s, &queries)(peer, mustAdd(b, peer, BasePoint(c)))
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				oracle := func(...*Point) ([][]byte, error) {
					return [][]byte{bytes.Clone(answers[0]), bytes.Clone(answers[1])}, nil
				}
				if _, err := RecoverPoint(public, peer, oracle); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func mustAdd(tb testing.TB, p, q *Point) *Point {
	tb.Helper()
	sum, err := p.Add(q)
	if err != nil {
		tb.Fatal(err)
	}
	return sum
}

// A device that clamps multiplies by the scalar, up to its sign, which recovery finds.
func TestClamped(t *testing.T) {
	t.Parallel()
	for _, c := range []Curve{X25519, X448} {
		for range 64 {
			s := mustRandom(t, c)
			k, err := s.Clamped()
			if err != nil {
				t.Fatal(err)
			}
			device, _, err := ExpandSeed(c, k)
			if err != nil {
				t.Fatal(err)
			}
			clamp := slices.Clone(k)
			if c == X25519 {
				clamp[0] &= 248
				clamp[31] = clamp[31]&127 | 64
			} else {
				clamp[0] &= 252
				clamp[55] |= 128
			}
			wantOctets(t, c.String()+" clamped", k, clamp)
			peer, queries := mustRandom(t, c).Public(), 0
			got, err := RecoverPoint(s.Public(), peer, xOracle(device, &queries))
			if err != nil {
				t.Fatal(err)
			}
			want, _ := Agree(s, peer)
			wantOctets(t, c.String(), got.Bytes(), want.Bytes())
		}
	}
	for _, c := range []Curve{Ed25519, Ed448, P256} {
		if _, err := mustRandom(t, c).Clamped(); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, want ErrUnsupported", c, err)
		}
	}
	one := make([]byte, 32)
	one[0] = 8 // 8 and -8 modulo L are below 2^254 or need bit 255
	s, err := ParseScalar(X25519, one)
	if err != nil {
		t.Fatal(err)
	}
	if k, err := s.Clamped(); err == nil {
		t.Errorf("a clamped key for 8: %x", k)
	}
}
