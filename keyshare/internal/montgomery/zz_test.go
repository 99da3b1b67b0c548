package montgomery

import (
	"testing"

	"filippo.io/edwards25519/field"
	fp "github.com/cloudflare/circl/math/fp25519"
)

func BenchmarkZ(b *testing.B) {
	b.Run("field.Square", func(b *testing.B) {
		x, _ := new(field.Element).SetBytes(base25519V[:])
		for b.Loop() {
			for range 100 {
				x.Square(x)
			}
		}
	})
	b.Run("field.Multiply", func(b *testing.B) {
		x, _ := new(field.Element).SetBytes(base25519V[:])
		y, _ := new(field.Element).SetBytes(base25519V[:])
		for b.Loop() {
			for range 100 {
				x.Multiply(x, y)
			}
		}
	})
	b.Run("fp.Sqr", func(b *testing.B) {
		x := base25519V
		for b.Loop() {
			for range 100 {
				fp.Sqr(&x, &x)
			}
		}
	})
	b.Run("fp.Mul", func(b *testing.B) {
		x := base25519V
		y := base25519V
		for b.Loop() {
			for range 100 {
				fp.Mul(&x, &x, &y)
			}
		}
	})
	b.Run("step", func(b *testing.B) {
		var t0, t1 fp.Elt
		var r ladder[fp.Elt]
		r.x2, r.z2, r.x3, r.z3 = one25519, fp.Elt{}, base25519V, one25519
		i := uint(0)
		for b.Loop() {
			for range 100 {
				step25519(&r, &t0, &t1, &base25519V, i&1)
				i = uint(r.x2[0])
			}
		}
	})
	b.Run("muladd", func(b *testing.B) {
		x := base25519V
		y := base25519V
		for b.Loop() {
			for range 100 {
				mulAdd25519(&x, &x, &y)
			}
		}
	})
}
