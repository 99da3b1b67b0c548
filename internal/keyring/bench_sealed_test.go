package keyring

import (
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

// BenchmarkSealedSign is the way through the ring to a sealed key that is open.
func BenchmarkSealedSign(b *testing.B) {
	f := newSealingRing(b, sealingTPM())
	e, _ := f.generateSealed(b, GenerateSpec{Algorithm: token.Ed448, Use: token.UseSign, Policy: machine})
	b.ReportAllocs()
	for b.Loop() {
		if err := use(b, e, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSealedOpen has the token open a sealed key and forgets it.
func BenchmarkSealedOpen(b *testing.B) {
	f := newSealingRing(b, sealingTPM())
	e, _ := f.generateSealed(b, GenerateSpec{Algorithm: token.Ed448, Use: token.UseSign, Policy: machine})
	p := e.slot.parts[0]
	b.ReportAllocs()
	for b.Loop() {
		if err := p.forget(); err != nil {
			b.Fatal(err)
		}
		if _, err := p.open(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
