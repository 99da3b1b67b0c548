package montgomery

import (
	"math/big"
	"testing"
)

func TestLegendre(t *testing.T) {
	t.Parallel()
	for _, r := range []*reference{reference25519(), reference448()} {
		rnd := newRandom(10)
		for i := range int64(2000) {
			x := below(rnd, r.p)
			switch i % 4 {
			case 1:
				x.SetInt64(i)
			case 2:
				x.Sub(r.p, big.NewInt(i))
			case 3:
				x.Rsh(x, uint(i)%uint(r.p.BitLen()-1))
			}
			if x.Sign() == 0 {
				continue
			}
			if got, want := legendre(r.littleEndian(x), r.littleEndian(r.p)), big.Jacobi(x, r.p); got != want {
				t.Errorf("(%x / %x) is %d, want %d", x, r.p, got, want)
			}
		}
	}
}
