package montgomery

import (
	"slices"
	"testing"
	"time"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"
	"github.com/cloudflare/circl/math/fp25519"
	"github.com/cloudflare/circl/math/fp448"
)

func Benchmark25519(b *testing.B) {
	benchmarkOperations(b, suite25519())
	b.Run("Circl", func(b *testing.B) {
		shared := circl25519()
		for b.Loop() {
			shared()
		}
	})
}

func Benchmark448(b *testing.B) {
	benchmarkOperations(b, suite448())
	b.Run("Circl", func(b *testing.B) {
		shared := circl448()
		for b.Loop() {
			shared()
		}
	})
}

func benchmarkOperations[E any, C curve[E]](b *testing.B, s suite[E, C]) {
	encoded, k := s.benchmarkInput()
	p, err := s.decode(encoded)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			s.decode(encoded)
		}
	})
	b.Run("ScalarMult", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.ScalarMult(k)
		}
	})
	b.Run("Add", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p.Add(s.base)
		}
	})
	b.Run("Agree", func(b *testing.B) {
		agree := s.agreement(b)
		b.ReportAllocs()
		for b.Loop() {
			agree()
		}
	})
}

// BenchmarkAgainstCircl reports how many times as long as circl's function, which returns
// u alone and checks little, an agreement takes: decode, multiply, encode. It takes the two in
// turn and compares medians, so that other load on the machine falls on both.
func BenchmarkAgainstCircl(b *testing.B) {
	b.Run("25519", func(b *testing.B) { compare(b, suite25519().agreement(b), circl25519()) })
	b.Run("448", func(b *testing.B) { compare(b, suite448().agreement(b), circl448()) })
}

func compare(b *testing.B, ours, theirs func()) {
	var a, c []time.Duration
	for b.Loop() {
		start := time.Now()
		ours()
		between := time.Now()
		theirs()
		a, c = append(a, between.Sub(start)), append(c, time.Since(between))
	}
	slices.Sort(a)
	slices.Sort(c)
	b.ReportMetric(float64(a[len(a)/2])/float64(c[len(c)/2]), "x-circl")
	b.ReportMetric(float64(a[len(a)/2]), "median-ns")
}

func (s suite[E, C]) benchmarkInput() (encoded, k []byte) {
	rnd := newRandom(11)
	return s.encode(s.randomPrimeOrder(rnd)), s.littleEndian(below(rnd, s.l))
}

func (s suite[E, C]) agreement(b *testing.B) func() {
	encoded, k := s.benchmarkInput()
	return func() {
		p, err := s.decode(encoded)
		if err != nil {
			b.Fatal(err)
		}
		q, err := p.ScalarMult(k)
		if err != nil {
			b.Fatal(err)
		}
		q.Bytes()
	}
}

func circl25519() func() {
	encoded, k := suite25519().benchmarkInput()
	private, public := x25519.Key(k), x25519.Key(encoded[:fp25519.Size])
	return func() {
		var shared x25519.Key
		x25519.Shared(&shared, &private, &public)
	}
}

func circl448() func() {
	encoded, k := suite448().benchmarkInput()
	private, public := x448.Key(k), x448.Key(encoded[:fp448.Size])
	return func() {
		var shared x448.Key
		x448.Shared(&shared, &private, &public)
	}
}
