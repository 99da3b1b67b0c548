package mesh

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

type shamirVector struct {
	Source    string
	Threshold int
	Octets    int `json:"share_octets"`
	Secret    hexOctets
	Shares    []struct {
		UDF string
		X   int64
		Y   string
	}
	Polynomial []string
	Recovered  string `json:"recovered_udf"`
}

func (v *shamirVector) texts() []string {
	var out []string
	for _, s := range v.Shares {
		out = append(out, s.UDF)
	}
	return out
}

func TestShamirVectors(t *testing.T) {
	t.Parallel()
	for _, v := range vectors[shamirVector](t, "shamir-udf.json") {
		t.Run(v.Source, func(t *testing.T) {
			t.Parallel()
			for _, s := range v.Shares {
				got := must(parseShare(s.UDF))
				same(t, "threshold", got.threshold, v.Threshold)
				same(t, "x", got.x, s.X)
				same(t, "y", got.y.String(), s.Y)
				same(t, "octets", got.size, v.Octets)
			}
			all := v.texts()
			for i := range all {
				rotated := append(slices.Clone(all[i:]), all[:i]...)
				sameHex(t, "exactly enough", must(RecoverSecret(rotated[:v.Threshold]...)), v.Secret)
			}
			sameHex(t, "all", must(RecoverSecret(all...)), v.Secret)
			if v.Recovered != "" {
				same(t, "seed", must(ParseSeedOctets(v.Secret)).Text(), v.Recovered)
			}
			checkPolynomial(t, &v)
		})
	}
}

// checkPolynomial makes the published shares of the published polynomial.
func checkPolynomial(t *testing.T, v *shamirVector) {
	t.Helper()
	if v.Polynomial == nil {
		return
	}
	var polynomial []*big.Int
	for _, a := range v.Polynomial {
		n, _ := new(big.Int).SetString(a, 10)
		polynomial = append(polynomial, n)
	}
	shares, ok := evaluateShares(polynomial, sharePrime(v.Octets), v.Octets, len(v.Shares))
	same(t, "fits", ok, true)
	for i, s := range shares {
		same(t, "share", s, v.Shares[i].UDF)
	}
}

func TestSharePrimes(t *testing.T) {
	t.Parallel()
	published := load[struct{ Primes map[string]int64 }](t, "shamir-udf.json").Primes
	same(t, "primes", len(published), MaxSecretLen)
	for n := 1; n <= MaxSecretLen; n++ {
		same(t, fmt.Sprint(n), primeOffset[n-1], published[fmt.Sprint(n)])
		if n <= 4 {
			same(t, "smallest", sharePrime(n).String(), smallestPrimeAbove(n).String())
		}
		if !sharePrime(n).ProbablyPrime(10) {
			t.Errorf("2^%d+%d is not prime", 8*n, primeOffset[n-1])
		}
	}
}

func smallestPrimeAbove(n int) *big.Int {
	p := new(big.Int).Lsh(big.NewInt(1), uint(8*n))
	for !p.Add(p, big.NewInt(1)).ProbablyPrime(10) {
	}
	return p
}

func TestSplitSecret(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 16, 32, 35, 64} {
		for _, c := range []struct{ threshold, shares int }{{2, 2}, {2, 3}, {3, 5}, {15, 15}, {2, 15}} {
			for _, fill := range []byte{0, 0xff, 0x5a} {
				secret := bytes.Repeat([]byte{fill}, n)
				shares, err := SplitSecret(rand.Reader, secret, c.threshold, c.shares)
				if err != nil {
					t.Fatal(err)
				}
				last := shares[len(shares)-c.threshold:]
				sameHex(t, "recovered", must(RecoverSecret(last...)), secret)
				sameHex(t, "recovered from all", must(RecoverSecret(shares...)), secret)
			}
		}
	}
}

func TestSplitSecretRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ octets, threshold, shares int }{
		{0, 2, 3}, {65, 2, 3}, {16, 1, 3}, {16, 0, 3}, {16, 4, 3}, {16, 2, 16}, {16, -1, -1},
	} {
		if _, err := SplitSecret(rand.Reader, make([]byte, c.octets), c.threshold, c.shares); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
	if _, err := SplitSecret(strings.NewReader(""), make([]byte, 16), 2, 3); err == nil {
		t.Error("a failing source is not noticed")
	}
}

func TestRecoverSecretRefuses(t *testing.T) {
	t.Parallel()
	a := must(SplitSecret(rand.Reader, make([]byte, 16), 2, 3))
	b := must(SplitSecret(rand.Reader, make([]byte, 16), 2, 3))
	three := must(SplitSecret(rand.Reader, make([]byte, 16), 3, 3))
	long := must(SplitSecret(rand.Reader, make([]byte, 17), 2, 3))
	raw := func(octets ...byte) string { return UDFText(octets) }
	for name, shares := range map[string][]string{
		"none":             {},
		"too few":          {a[0]},
		"twice":            {a[0], a[0]},
		"other threshold":  {a[0], a[1], three[2]},
		"other length":     {a[0], long[1]},
		"other polynomial": {a[0], a[1], b[2]},
		"not a share":      {a[0], SymmetricKeyUDF(make([]byte, 17))},
		"not Base32":       {a[0], "S0"},
		"threshold 1":      {raw(144, 0x10, 1), raw(144, 0x11, 1)},
		"threshold 0":      {raw(144, 0, 1)},
		"empty secret":     {raw(144, 0x20), raw(144, 0x21)},
		"type only":        {raw(144)},
		"long secret":      {raw(append([]byte{144, 0x20}, make([]byte, 65)...)...)},
		"value above 2^8":  {raw(144, 0x20, 0), raw(144, 0x21, 1)}, // a0 = -1 = 256 mod 257
	} {
		if secret, err := RecoverSecret(shares...); err == nil {
			t.Errorf("%s: %x", name, secret)
		}
	}
	sameHex(t, "x = 16", must(RecoverSecret(raw(144, 0x20, 8), raw(144, 0x2f, 8))), []byte{8})
}

func BenchmarkRecoverSecret(b *testing.B) {
	shares := must(SplitSecret(rand.Reader, make([]byte, 35), 2, 3))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := RecoverSecret(shares...); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSplitSecret(b *testing.B) {
	secret := make([]byte, 35)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := SplitSecret(rand.Reader, secret, 2, 3); err != nil {
			b.Fatal(err)
		}
	}
}
