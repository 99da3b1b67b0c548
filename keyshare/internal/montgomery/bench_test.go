package montgomery

import (
	"testing"

	"github.com/cloudflare/circl/dh/x25519"
	"github.com/cloudflare/circl/dh/x448"
)

func Benchmark25519(b *testing.B) {
	k := make([]byte, 32)
	k[0], k[31] = 8, 64
	encoded := Base25519().Bytes()
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, err := Decode25519(encoded)
			if err != nil {
				b.Fatal(err)
			}
			q, err := p.ScalarMult(k)
			if err != nil {
				b.Fatal(err)
			}
			q.Bytes()
		}
	})
	b.Run("decode", func(b *testing.B) {
		for b.Loop() {
			Decode25519(encoded)
		}
	})
	b.Run("mult", func(b *testing.B) {
		p := Base25519()
		for b.Loop() {
			p.ScalarMult(k)
		}
	})
	b.Run("circl", func(b *testing.B) {
		var key, public, shared x25519.Key
		copy(key[:], k)
		copy(public[:], encoded)
		for b.Loop() {
			x25519.Shared(&shared, &key, &public)
		}
	})
}

func Benchmark448(b *testing.B) {
	k := make([]byte, 56)
	k[0], k[55] = 8, 128
	encoded := Base448().Bytes()
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, err := Decode448(encoded)
			if err != nil {
				b.Fatal(err)
			}
			q, err := p.ScalarMult(k)
			if err != nil {
				b.Fatal(err)
			}
			q.Bytes()
		}
	})
	b.Run("decode", func(b *testing.B) {
		for b.Loop() {
			Decode448(encoded)
		}
	})
	b.Run("mult", func(b *testing.B) {
		p := Base448()
		for b.Loop() {
			p.ScalarMult(k)
		}
	})
	b.Run("circl", func(b *testing.B) {
		var key, public, shared x448.Key
		copy(key[:], k)
		copy(public[:], encoded)
		for b.Loop() {
			x448.Shared(&shared, &key, &public)
		}
	})
}
