package mesh

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"math/big"
)

// The limits of UDF Shamir shares. A share's index has four bits; the reference code
// makes at most 15.
const (
	MaxSecretLen     = 64 // octets
	MaxSecretShares  = 15
	minUDFThreshold  = 2 // a threshold of one would copy the secret
	udfShareOverhead = 2 // type octet, threshold and index
)

// primeOffset[n-1] is the smallest k for which 2^(8n)+k is prime
// (draft-hallambaker-mesh-udf-13, Appendix A).
var primeOffset = [MaxSecretLen]int64{
	1, 1, 43, 15, 15, 21, 81, 13, 15, 13, 7, 61, 111, 25, 451, 51,
	85, 175, 253, 7, 87, 427, 27, 133, 235, 375, 423, 735, 357, 115, 81, 297,
	175, 57, 45, 127, 61, 37, 91, 27, 15, 241, 231, 55, 105, 127, 115, 231,
	207, 181, 37, 235, 163, 1093, 187, 211, 21, 841, 445, 165, 777, 583, 133, 75,
}

// sharePrime returns the prime above 2^(8n).
func sharePrime(n int) *big.Int {
	p := new(big.Int).Lsh(big.NewInt(1), uint(8*n))
	return p.Add(p, big.NewInt(primeOffset[n-1]))
}

// SplitSecret splits a secret of 1 to 64 octets into n shares as text, S..., of which threshold
// recover it: 2 <= threshold <= n <= 15 (draft-hallambaker-mesh-udf-13, Section 4.5). To escrow a seed,
// split Seed.Octets. The computation is not constant time.
func SplitSecret(random io.Reader, secret []byte, threshold, n int) ([]string, error) {
	if len(secret) < 1 || len(secret) > MaxSecretLen {
		return nil, fmt.Errorf("split secret of %d octets: from 1 to %d are possible", len(secret), MaxSecretLen)
	}
	if threshold < minUDFThreshold || threshold > n || n > MaxSecretShares {
		return nil, fmt.Errorf("split secret into %d shares, threshold %d: 2 <= threshold <= shares <= %d is possible", n, threshold, MaxSecretShares)
	}
	p := sharePrime(len(secret))
	polynomial := make([]*big.Int, threshold)
	polynomial[0] = new(big.Int).SetBytes(secret)
	for {
		for i := 1; i < threshold; i++ {
			a, err := rand.Int(random, p)
			if err != nil {
				return nil, fmt.Errorf("split secret: %w", err)
			}
			polynomial[i] = a
		}
		if shares, ok := evaluateShares(polynomial, p, len(secret), n); ok {
			return shares, nil
		}
	}
}

// evaluateShares returns false if a value needs more octets than the secret has: a
// share could not hold it, and leaving it out would tell something of the secret.
func evaluateShares(polynomial []*big.Int, p *big.Int, size, n int) ([]string, bool) {
	shares := make([]string, n)
	for i := range shares {
		y := evaluate(polynomial, int64(i+1), p)
		if y.BitLen() > 8*size {
			return nil, false
		}
		octets := make([]byte, udfShareOverhead+size)
		octets[0], octets[1] = byte(UDFShare), byte(len(polynomial)<<4|i)
		y.FillBytes(octets[udfShareOverhead:])
		shares[i] = UDFText(octets)
		clear(octets)
	}
	return shares, true
}

// evaluate returns the polynomial's value at x (Horner).
func evaluate(polynomial []*big.Int, x int64, p *big.Int) *big.Int {
	y, at := new(big.Int), big.NewInt(x)
	for i := len(polynomial) - 1; i >= 0; i-- {
		y.Mul(y, at)
		y.Add(y, polynomial[i])
		y.Mod(y, p)
	}
	return y
}

// secretShare is a decoded share.
type secretShare struct {
	threshold int
	x         int64
	y         *big.Int
	size      int // octets of the secret
}

func parseShare(text string) (secretShare, error) {
	octets, err := ParseUDF(text)
	if err != nil {
		return secretShare{}, err
	}
	defer clear(octets)
	size := len(octets) - udfShareOverhead
	switch {
	case UDFType(octets[0]) != UDFShare:
		return secretShare{}, errors.New("UDF is not a share")
	case size < 1 || size > MaxSecretLen:
		return secretShare{}, fmt.Errorf("share of a secret of %d octets", max(size, 0))
	case octets[1]>>4 < minUDFThreshold:
		return secretShare{}, fmt.Errorf("share with threshold %d", octets[1]>>4)
	}
	return secretShare{
		threshold: int(octets[1] >> 4),
		x:         int64(octets[1]&15) + 1,
		y:         new(big.Int).SetBytes(octets[udfShareOverhead:]),
		size:      size,
	}, nil
}

// RecoverSecret recovers a secret from at least threshold shares. All must be distinct and
// agree in threshold and length; those beyond the threshold must lie on the same
// polynomial. Leading zero octets of the secret are kept. The computation is not constant time.
func RecoverSecret(shares ...string) ([]byte, error) {
	parsed := make([]secretShare, len(shares))
	seen := map[int64]bool{}
	for i, text := range shares {
		s, err := parseShare(text)
		if err != nil {
			return nil, fmt.Errorf("recover secret: share %d: %w", i+1, err)
		}
		if i > 0 && (s.threshold != parsed[0].threshold || s.size != parsed[0].size) {
			return nil, fmt.Errorf("recover secret: share %d belongs to another secret", i+1)
		}
		if seen[s.x] {
			return nil, fmt.Errorf("recover secret: share %d is there twice", i+1)
		}
		seen[s.x] = true
		parsed[i] = s
	}
	if len(parsed) == 0 || len(parsed) < parsed[0].threshold {
		return nil, fmt.Errorf("recover secret: %d shares are too few", len(parsed))
	}
	return recoverSecret(parsed)
}

func recoverSecret(shares []secretShare) ([]byte, error) {
	size, used := shares[0].size, shares[:shares[0].threshold]
	p := sharePrime(size)
	for _, extra := range shares[len(used):] {
		if interpolate(used, extra.x, p).Cmp(extra.y) != 0 {
			return nil, errors.New("recover secret: the shares do not fit together")
		}
	}
	secret := interpolate(used, 0, p)
	if secret.BitLen() > 8*size {
		return nil, errors.New("recover secret: the shares do not fit together")
	}
	return secret.FillBytes(make([]byte, size)), nil
}

// interpolate returns the value at x of the polynomial through the shares (Lagrange).
func interpolate(shares []secretShare, x int64, p *big.Int) *big.Int {
	sum := new(big.Int)
	for i, s := range shares {
		num, den := big.NewInt(1), big.NewInt(1)
		for j, other := range shares {
			if i == j {
				continue
			}
			num.Mul(num, big.NewInt(x-other.x))
			den.Mul(den, big.NewInt(s.x-other.x))
		}
		den.ModInverse(den.Mod(den, p), p) // differences below p: never zero
		num.Mul(num, den)
		sum.Add(sum, num.Mul(num, s.y))
		sum.Mod(sum, p)
	}
	return sum
}
