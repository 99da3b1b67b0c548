package keyshare

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
)

// Agreements equal those of independent implementations. These clamp, so the scalar here
// is that of the seed.
func TestAgreeEqualsECDH(t *testing.T) {
	t.Parallel()
	tests := []struct {
		curve Curve
		ecdh  ecdh.Curve
	}{{X25519, ecdh.X25519()}, {P256, ecdh.P256()}, {P384, ecdh.P384()}, {P521, ecdh.P521()}}
	for _, tt := range tests {
		for range 8 {
			peer, err := tt.ecdh.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			private, err := tt.ecdh.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			want, err := private.ECDH(peer.PublicKey())
			if err != nil {
				t.Fatal(err)
			}
			s, err := ParseScalar(tt.curve, private.Bytes())
			if tt.curve == X25519 {
				s, _, err = ExpandSeed(X25519, private.Bytes())
			}
			if err != nil {
				t.Fatal(err)
			}
			public := private.PublicKey().Bytes()
			wantOctets(t, "public key", s.Public().Bytes()[:len(public)], public)
			got, err := Agree(s, mustPoint(t, tt.curve, peer.PublicKey().Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			wantOctets(t, tt.curve.String(), got.SharedSecret(), want)
		}
	}
}

func TestAgreeEqualsCirclX448(t *testing.T) {
	t.Parallel()
	for range 8 {
		var seed, public, want x448.Key
		copy(seed[:], mustRandom(t, X448).Bytes())
		peer := x448.Key(mustRandom(t, X448).Public().Bytes()[:56])
		x448.KeyGen(&public, &seed)
		if !x448.Shared(&want, &seed, &peer) {
			t.Fatal("circl refuses the point")
		}
		s, _, err := ExpandSeed(X448, seed[:])
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "public key", s.Public().Bytes()[:56], public[:])
		got, err := Agree(s, mustPoint(t, X448, peer[:]))
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "agreement", got.SharedSecret(), want[:])
	}
}

// Small multiples and those next to L, where formulas have exceptions, with their signs.
func TestAgreeAtTheEdges(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			order := orderOf(c)
			p := mustRandom(t, c).Public()
			multiple := p
			for k := int64(1); k <= 18; k++ {
				s := mustScalar(t, c, octets(c, big.NewInt(k)))
				if got, err := Agree(s, p); err != nil || !got.Equal(multiple) {
					t.Errorf("%d*P is wrong (%v)", k, err)
				}
				s = mustScalar(t, c, octets(c, new(big.Int).Sub(order, big.NewInt(k))))
				if got, err := Agree(s, p); err != nil || !got.Equal(multiple.Negate()) {
					t.Errorf("(L-%d)*P is wrong (%v)", k, err)
				}
				next, err := multiple.Add(p)
				if err != nil {
					t.Fatal(err)
				}
				multiple = next
			}
		})
	}
}

func TestAgreeRefusesMixedCurves(t *testing.T) {
	t.Parallel()
	s, other := mustRandom(t, X25519), mustRandom(t, Ed25519)
	if _, err := Agree(s, other.Public()); err == nil {
		t.Error("agreed over two curves")
	}
	if _, err := PartialAgreement(s, other, s.Public()); err == nil {
		t.Error("multiplied over two curves")
	}
}

// The partial agreements of sufficient share holders add up to the agreement of the whole key,
// however the key was split.
func TestSharesAgreeLikeTheWhole(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			s, peer := mustRandom(t, c), mustRandom(t, c).Public()
			want, err := Agree(s, peer)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{2, 3, 5} {
				shares, err := SplitDirect(s, n, nil)
				if err != nil {
					t.Fatal(err)
				}
				checkShares(t, s, peer, want, shares)
			}
			shares, err := SplitShamir(s, 3, 5, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, set := range [][]int{{0, 1, 2}, {2, 3, 4}, {4, 0, 2}, {0, 1, 2, 3, 4}} {
				var chosen []Share
				for _, i := range set {
					chosen = append(chosen, shares[i])
				}
				checkShares(t, s, peer, want, chosen)
			}
			if shares, err = SplitShamir(s, 2, MaxShares, nil); err != nil {
				t.Fatal(err)
			}
			checkShares(t, s, peer, want, []Share{shares[MaxShares-1], shares[0]})
		})
	}
}

// checkShares combines points, public keys and scalars of the shares.
func checkShares(t *testing.T, s *Scalar, peer, want *Point, shares []Share) {
	t.Helper()
	var xs []int
	for _, sh := range shares {
		xs = append(xs, sh.X)
	}
	var partials, publics []*Point
	var sum *Scalar
	for i, sh := range shares {
		var coefficient *Scalar
		scaled := sh.Scalar
		if sh.X != 0 {
			var err error
			if coefficient, err = Coefficient(s.Curve(), xs, i); err != nil {
				t.Fatal(err)
			}
			scaled = sh.Scalar.Multiply(coefficient)
		}
		partial, err := PartialAgreement(sh.Scalar, coefficient, peer)
		if err != nil {
			t.Fatal(err)
		}
		partials = append(partials, partial)
		publics = append(publics, scaled.Public())
		if sum == nil {
			sum = scaled
		} else if sum, err = sum.Add(scaled); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Combine(partials...); err != nil || !got.Equal(want) {
		t.Errorf("x = %v: partial agreements do not add up (%v)", xs, err)
	}
	if got, err := Combine(publics...); err != nil || !got.Equal(s.Public()) {
		t.Errorf("x = %v: public keys do not add up (%v)", xs, err)
	}
	if !bytes.Equal(sum.Bytes(), s.Bytes()) {
		t.Errorf("x = %v: shares do not add up", xs)
	}
}

func TestTooFewSharesAreNotEnough(t *testing.T) {
	t.Parallel()
	s := mustRandom(t, X448)
	shares, err := SplitShamir(s, 3, 4, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum := mustScalar(t, X448, octets(X448, big.NewInt(1)))
	for i := range 2 {
		c, err := Coefficient(X448, []int{1, 2}, i)
		if err != nil {
			t.Fatal(err)
		}
		if sum, err = sum.Add(shares[i].Scalar.Multiply(c)); err != nil {
			t.Fatal(err)
		}
	}
	if one, err := s.Add(mustScalar(t, X448, octets(X448, big.NewInt(1)))); err != nil || bytes.Equal(sum.Bytes(), one.Bytes()) {
		t.Errorf("two of three shares recover the scalar (%v)", err)
	}
}

func TestSplitNumbersShares(t *testing.T) {
	t.Parallel()
	s := mustRandom(t, P256)
	direct, err := SplitDirect(s, MaxShares, nil)
	if err != nil || len(direct) != MaxShares {
		t.Fatalf("%d shares, %v", len(direct), err)
	}
	shamir, err := SplitShamir(s, 4, 4, nil)
	if err != nil || len(shamir) != 4 {
		t.Fatalf("%d shares, %v", len(shamir), err)
	}
	for i := range shamir {
		if direct[i].X != 0 || shamir[i].X != i+1 {
			t.Errorf("share %d has x = %d, %d", i, direct[i].X, shamir[i].X)
		}
	}
	if s.n.IsZero() == 1 {
		t.Error("splitting wiped the scalar")
	}
}

func TestSplitRefuses(t *testing.T) {
	t.Parallel()
	s := mustRandom(t, X25519)
	for _, n := range []int{-1, 0, 1, 256} {
		if _, err := SplitDirect(s, n, nil); err == nil {
			t.Errorf("split into %d", n)
		}
	}
	for _, tn := range [][2]int{{0, 3}, {1, 3}, {4, 3}, {-1, -1}, {2, 256}, {256, 256}} {
		if _, err := SplitShamir(s, tn[0], tn[1], nil); err == nil {
			t.Errorf("split %d of %d", tn[0], tn[1])
		}
	}
	short := func() *bytes.Reader { return bytes.NewReader(octets(X25519, big.NewInt(5))) }
	if _, err := SplitDirect(s, 3, short()); err == nil {
		t.Error("split without randomness")
	}
	if _, err := SplitShamir(s, 3, 3, short()); err == nil {
		t.Error("split without randomness")
	}
}

// Splittings that hit zero are drawn again.
func TestSplitRedraws(t *testing.T) {
	t.Parallel()
	c := X448
	rand := bytes.NewReader(slices.Concat(octets(c, big.NewInt(7)), octets(c, big.NewInt(3))))
	shares, err := SplitDirect(mustScalar(t, c, octets(c, big.NewInt(7))), 2, rand)
	if err != nil {
		t.Fatal(err)
	}
	wantOctets(t, "direct share", shares[1].Scalar.Bytes(), octets(c, big.NewInt(4)))
	// f(x) = 6 + a*x with a = L-3 has f(2) = 0.
	rand = bytes.NewReader(slices.Concat(octets(c, new(big.Int).Sub(orderOf(c), big.NewInt(3))), octets(c, big.NewInt(5))))
	if shares, err = SplitShamir(mustScalar(t, c, octets(c, big.NewInt(6))), 2, 3, rand); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{11, 16, 21} {
		wantOctets(t, "Shamir share", shares[i].Scalar.Bytes(), octets(c, big.NewInt(want)))
	}
}

func TestCoefficient(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		order := orderOf(c)
		tests := []struct {
			xs   []int
			i    int
			want *big.Rat
		}{
			{[]int{1}, 0, big.NewRat(1, 1)},
			{[]int{1, 2}, 0, big.NewRat(2, 1)},
			{[]int{1, 2}, 1, big.NewRat(-1, 1)},
			{[]int{1, 2, 3}, 0, big.NewRat(3, 1)},
			{[]int{1, 2, 3}, 1, big.NewRat(-3, 1)},
			{[]int{1, 3}, 0, big.NewRat(3, 2)},
			{[]int{255, 254}, 0, big.NewRat(-254, 1)},
		}
		for _, tt := range tests {
			got, err := Coefficient(c, tt.xs, tt.i)
			if err != nil {
				t.Fatal(err)
			}
			want := new(big.Int).ModInverse(tt.want.Denom(), order)
			want.Mul(want, tt.want.Num()).Mod(want, order)
			wantOctets(t, fmt.Sprintf("%v: coefficient %d of %v", c, tt.i, tt.xs), got.Bytes(), octets(c, want))
		}
	}
	bad := []struct {
		xs []int
		i  int
	}{{nil, 0}, {[]int{1, 2}, 2}, {[]int{1, 2}, -1}, {[]int{0, 1}, 0}, {[]int{1, 256}, 0}, {[]int{1, -1}, 0}, {[]int{2, 1, 2}, 1}, {[]int{3, 3}, 0}}
	for _, tt := range bad {
		if _, err := Coefficient(X25519, tt.xs, tt.i); err == nil {
			t.Errorf("coefficient %d of %v", tt.i, tt.xs)
		}
	}
	if _, err := Coefficient(0, []int{1, 2}, 0); err == nil {
		t.Error("coefficient on no curve")
	}
}

// Points and scalars may be used by several goroutines at once; go test -race looks.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	for _, c := range Curves() {
		s, p := mustRandom(t, c), mustRandom(t, c).Public()
		want, err := Agree(s, p)
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error)
		for range 4 {
			go func() {
				got, err := Agree(s, p)
				if err == nil && !got.Equal(want) {
					err = errors.New("wrong result")
				}
				if _, errAdd := p.Add(want); errAdd != nil {
					err = errAdd
				}
				results <- err
			}()
		}
		for range 4 {
			if err := <-results; err != nil {
				t.Errorf("%v: %v", c, err)
			}
		}
	}
}
