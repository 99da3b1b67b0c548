package keyshare

import (
	"slices"
	"testing"
	"time"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"
)

// BenchmarkPartialAgreement is a share holder's whole work: parse the peer's point with all
// checks, multiply by coefficient times share, encode the result with its sign. On X25519 and
// X448 every round also does circl's plain agreement, so that both meet the same machine (ns/op
// is the sum of both). "ns/share" is the median of ours, "x-circl" its ratio to the median of
// circl's: medians, because a busy machine spoils the means.
func BenchmarkPartialAgreement(b *testing.B) {
	for _, c := range Curves() {
		b.Run(c.String(), func(b *testing.B) {
			s, coefficient, peer := mustRandom(b, c), mustRandom(b, c), mustRandom(b, c).Public().Bytes()
			reference := circl(b, c, peer)
			var ours, theirs []time.Duration
			b.ReportAllocs()
			for b.Loop() {
				start := time.Now()
				p, err := ParsePoint(c, peer)
				if err != nil {
					b.Fatal(err)
				}
				partial, err := PartialAgreement(s, coefficient, p)
				if err != nil {
					b.Fatal(err)
				}
				partial.Bytes()
				ours = append(ours, time.Since(start))
				if reference != nil {
					start = time.Now()
					reference()
					theirs = append(theirs, time.Since(start))
				}
			}
			b.ReportMetric(float64(median(ours)), "ns/share")
			if reference != nil {
				b.ReportMetric(float64(median(ours))/float64(median(theirs)), "x-circl")
			}
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// circl returns circl's agreement on X25519 and X448.
func circl(b *testing.B, c Curve, peer []byte) func() {
	secret := mustRandom(b, c).Bytes()
	switch c {
	case X25519:
		var shared, private, public x25519.Key
		copy(private[:], secret)
		copy(public[:], peer)
		return func() { x25519.Shared(&shared, &private, &public) }
	case X448:
		var shared, private, public x448.Key
		copy(private[:], secret)
		copy(public[:], peer)
		return func() { x448.Shared(&shared, &private, &public) }
	}
	return nil
}

// benchmarkCurves runs f on every curve.
func benchmarkCurves(b *testing.B, curves []Curve, f func(b *testing.B, c Curve)) {
	for _, c := range curves {
		b.Run(c.String(), func(b *testing.B) {
			b.ReportAllocs()
			f(b, c)
		})
	}
}

func BenchmarkParsePoint(b *testing.B) {
	benchmarkCurves(b, Curves(), func(b *testing.B, c Curve) {
		peer := mustRandom(b, c).Public().Bytes()
		for b.Loop() {
			if _, err := ParsePoint(c, peer); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAgree(b *testing.B) {
	benchmarkCurves(b, Curves(), func(b *testing.B, c Curve) {
		s, p := mustRandom(b, c), mustRandom(b, c).Public()
		for b.Loop() {
			if _, err := Agree(s, p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	benchmarkCurves(b, Curves(), func(b *testing.B, c Curve) {
		p, q := mustRandom(b, c).Public(), mustRandom(b, c).Public()
		for b.Loop() {
			if _, err := p.Add(q); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPublic(b *testing.B) {
	benchmarkCurves(b, Curves(), func(b *testing.B, c Curve) {
		s := mustRandom(b, c)
		for b.Loop() {
			s.Public()
		}
	})
}

func BenchmarkSplitShamir(b *testing.B) {
	benchmarkCurves(b, Curves(), func(b *testing.B, c Curve) {
		s := mustRandom(b, c)
		for b.Loop() {
			if _, err := SplitShamir(s, 3, 5, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCoefficient(b *testing.B) {
	benchmarkCurves(b, Curves(), func(b *testing.B, c Curve) {
		for b.Loop() {
			if _, err := Coefficient(c, []int{1, 2, 3, 4, 5}, 2); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSign(b *testing.B) {
	benchmarkCurves(b, eddsaCurves, func(b *testing.B, c Curve) {
		key, message := mustSigningKey(b, c, randomOctets(c.DeriveLen())), randomOctets(64)
		for b.Loop() {
			mustSign(b, key, ModeMesh, message)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	benchmarkCurves(b, eddsaCurves, func(b *testing.B, c Curve) {
		key, message := mustSigningKey(b, c, randomOctets(c.DeriveLen())), randomOctets(64)
		signature := mustSign(b, key, ModeMesh, message)
		for b.Loop() {
			if !Verify(key.Public(), ModeMesh, message, signature) {
				b.Fatal("signature does not verify")
			}
		}
	})
}
