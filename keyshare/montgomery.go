package keyshare

import (
	"github.com/mesh-agent/mesh-agent/keyshare/internal/montgomery"
)

// montgomeryPoint is what the point types of package montgomery have in common.
type montgomeryPoint[P any] interface {
	Add(P) (P, error)
	Bytes() []byte
	Negate() P
	Recover(r, s []byte) (P, error)
	ScalarMult([]byte) (P, error)
}

// montgomeryElement is a point of curve25519 or curve448.
type montgomeryElement[P montgomeryPoint[P]] struct{ p P }

func parseX25519(b []byte) (element, error) { return checkedMontgomery(montgomery.Decode25519(b)) }
func parseX448(b []byte) (element, error)   { return checkedMontgomery(montgomery.Decode448(b)) }

func baseX25519() element {
	return montgomeryElement[*montgomery.Point25519]{montgomery.Base25519()}
}

func baseX448() element { return montgomeryElement[*montgomery.Point448]{montgomery.Base448()} }

func checkedMontgomery[P montgomeryPoint[P]](p P, err error) (element, error) {
	if err != nil {
		return nil, err
	}
	return montgomeryElement[P]{p}, nil
}

func (e montgomeryElement[P]) encode() []byte { return e.p.Bytes() }

func (e montgomeryElement[P]) negate() element { return montgomeryElement[P]{e.p.Negate()} }

func (e montgomeryElement[P]) add(q element) (element, error) {
	return checkedMontgomery(e.p.Add(q.(montgomeryElement[P]).p))
}

func (e montgomeryElement[P]) recover(r, s []byte) (element, error) {
	return checkedMontgomery(e.p.Recover(r, s))
}

// mult uses the cleaned scalar: the same multiple of a point of order L, and blind to a
// component of small order. ParsePoint is the first guard, this is the second.
func (e montgomeryElement[P]) mult(s *Scalar) (element, error) {
	k := s.cleaned()
	defer clear(k)
	return checkedMontgomery(e.p.ScalarMult(k))
}

// cleaned returns h * ((s * h^-1) mod L), little endian: a multiple of the cofactor h that
// is congruent to s modulo L. It is below 8L < 2^256 on X25519 and 4L < 2^448 on X448.
func (s *Scalar) cleaned() []byte {
	t := s.divideByCofactor()
	defer t.Wipe()
	k := t.Bytes()
	if s.group.curve == X25519 {
		shiftLeft(k, 3)
	} else {
		shiftLeft(k, 2)
	}
	return k
}

// shiftLeft multiplies a little-endian number by 2^n, n < 8.
func shiftLeft(k []byte, n uint) {
	carry := byte(0)
	for i, b := range k {
		k[i] = b<<n | carry
		carry = b >> (8 - n)
	}
}
