package keyshare

import (
	"fmt"
	"io"
	"math/big"
	"slices"
)

// MaxShares is the largest number of shares of one scalar, and the largest X.
const MaxShares = 255

// Share is a part of a split scalar.
type Share struct {
	// X is where Shamir's polynomial was evaluated, 1 to MaxShares; 0 in an additive share.
	X      int
	Scalar *Scalar
}

// SplitDirect splits s into n additive shares, 2 <= n <= MaxShares, whose sum modulo L is
// s; all are needed (draft-hallambaker-threshold-06, Section 4.1). Each proper subset is
// uniform and says nothing about s. Randomness as in RandomScalar. The caller wipes the shares.
func SplitDirect(s *Scalar, n int, rand io.Reader) ([]Share, error) {
	if n < 2 || n > MaxShares {
		return nil, fmt.Errorf("split scalar: %d shares (2 to %d)", n, MaxShares)
	}
	for {
		rest := s.clone()
		shares := make([]Share, 0, n)
		for range n - 1 {
			r, err := RandomScalar(s.Curve(), rand)
			if err != nil {
				rest.Wipe()
				wipeShares(shares)
				return nil, fmt.Errorf("split scalar: %w", err)
			}
			rest.subtract(r)
			shares = append(shares, Share{Scalar: r})
		}
		if rest.n.IsZero() == 0 {
			return append(shares, Share{Scalar: rest}), nil
		}
		wipeShares(shares)
	}
}

// SplitShamir splits s into n shares with X = 1 to n of which any threshold recover it:
// values of a random polynomial of degree threshold-1 with f(0) = s modulo L
// (draft-hallambaker-threshold-06, Section 4.2, with the degree corrected).
// 2 <= threshold <= n <= MaxShares. Randomness as in RandomScalar. The caller wipes the shares.
func SplitShamir(s *Scalar, threshold, n int, rand io.Reader) ([]Share, error) {
	if threshold < 2 || threshold > n || n > MaxShares {
		return nil, fmt.Errorf("split scalar: threshold %d of %d shares (2 <= threshold <= shares <= %d)", threshold, n, MaxShares)
	}
	for {
		polynomial, err := randomPolynomial(s, threshold, rand)
		if err != nil {
			return nil, fmt.Errorf("split scalar: %w", err)
		}
		shares := evaluate(polynomial, n)
		for _, c := range polynomial {
			c.Wipe()
		}
		if !slices.ContainsFunc(shares, func(sh Share) bool { return sh.Scalar.n.IsZero() == 1 }) {
			return shares, nil
		}
		wipeShares(shares)
	}
}

// randomPolynomial returns a copy of s followed by random coefficients.
func randomPolynomial(s *Scalar, terms int, rand io.Reader) ([]*Scalar, error) {
	polynomial := []*Scalar{s.clone()}
	for range terms - 1 {
		a, err := RandomScalar(s.Curve(), rand)
		if err != nil {
			for _, c := range polynomial {
				c.Wipe()
			}
			return nil, err
		}
		polynomial = append(polynomial, a)
	}
	return polynomial, nil
}

// evaluate returns the values at 1 to n, by Horner's rule. A value may be zero.
func evaluate(polynomial []*Scalar, n int) []Share {
	g := polynomial[0].group
	shares := make([]Share, n)
	for i := range shares {
		x := natural([]byte{byte(i + 1)}, g.order)
		value := polynomial[len(polynomial)-1].clone()
		for j := len(polynomial) - 2; j >= 0; j-- {
			value.n.Mul(x, g.order)
			value.add(polynomial[j])
		}
		shares[i] = Share{X: i + 1, Scalar: value}
	}
	return shares
}

func wipeShares(shares []Share) {
	for _, s := range shares {
		s.Scalar.Wipe()
	}
}

// Coefficient returns the Lagrange coefficient at 0 of the share xs[i] in the set xs,
//
//	product over j != i of (0 - xs[j]) / (xs[i] - xs[j]) mod L,
//
// by which its holder multiplies it. The xs are distinct, from 1 to MaxShares, and as many
// as the threshold or more. All this is public.
func Coefficient(c Curve, xs []int, i int) (*Scalar, error) {
	g, err := c.knownGroup()
	if err != nil {
		return nil, fmt.Errorf("compute coefficient: %w", err)
	}
	if i < 0 || i >= len(xs) {
		return nil, fmt.Errorf("compute coefficient: no share %d among %d", i, len(xs))
	}
	numerator, denominator := big.NewInt(1), big.NewInt(1)
	for j, x := range xs {
		if x < 1 || x > MaxShares {
			return nil, fmt.Errorf("compute coefficient: x = %d (1 to %d)", x, MaxShares)
		}
		if slices.Contains(xs[:j], x) {
			return nil, fmt.Errorf("compute coefficient: x = %d occurs twice", x)
		}
		if j != i {
			numerator.Mul(numerator, big.NewInt(int64(-x)))
			denominator.Mul(denominator, big.NewInt(int64(xs[i]-x)))
		}
	}
	// No factor is a multiple of L, so the inverse exists and the result is not zero.
	order := new(big.Int).SetBytes(g.order.Nat().Bytes(g.order))
	denominator.ModInverse(denominator, order)
	numerator.Mul(numerator, denominator).Mod(numerator, order)
	return &Scalar{g, natural(numerator.Bytes(), g.order)}, nil
}
