package keyshare

import (
	"bytes"
	"strings"

	"filippo.io/bigmod"
	"filippo.io/nistec"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// nistPoint is what the point types of package nistec have in common.
type nistPoint[P any] interface {
	Add(P, P) P
	Bytes() []byte
	IsInfinity() int
	Negate(P) P
	ScalarBaseMult([]byte) (P, error)
	ScalarMult(P, []byte) (P, error)
	Set(P) P
	SetBytes([]byte) (P, error)
	SetGenerator() P
}

// nistCurve is one NIST curve. The groups have prime order: a point on the curve other
// than infinity has order L.
type nistCurve[P nistPoint[P]] struct {
	newPoint func() P
	prime    []byte // of the field, big endian
	field    *bigmod.Modulus
}

const (
	primeP256 = "ffffffff00000001000000000000000000000000ffffffffffffffffffffffff"
	primeP384 = "fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffffff"
)

var (
	primeP521 = "01" + strings.Repeat("ff", 65)

	p256 = nistCurve[*nistec.P256Point]{nistec.NewP256Point, unhex(primeP256), modulus(primeP256)}
	p384 = nistCurve[*nistec.P384Point]{nistec.NewP384Point, unhex(primeP384), modulus(primeP384)}
	p521 = nistCurve[*nistec.P521Point]{nistec.NewP521Point, unhex(primeP521), modulus(primeP521)}
)

// parse takes the uncompressed form only. nistec would take the compressed form and
// infinity as well, and does not say what is wrong with a point.
func (c nistCurve[P]) parse(b []byte) (element, error) {
	size := len(c.prime)
	if err := checkLength(b, 1+2*size); err != nil {
		return nil, err
	}
	if b[0] != 0x04 {
		return nil, badpoint.ErrSignOctet
	}
	if bytes.Compare(b[1:1+size], c.prime) >= 0 || bytes.Compare(b[1+size:], c.prime) >= 0 {
		return nil, badpoint.ErrNonCanonical
	}
	p, err := c.newPoint().SetBytes(b)
	if err != nil {
		return nil, badpoint.ErrTwist
	}
	return c.checked(p)
}

func (c nistCurve[P]) base() element { return nistElement[P]{c.newPoint().SetGenerator(), c.newPoint} }

func (c nistCurve[P]) baseMult(s *Scalar) (element, error) {
	k := s.Bytes()
	defer clear(k)
	p, err := c.newPoint().ScalarBaseMult(k)
	if err != nil {
		return nil, err
	}
	return c.checked(p)
}

func (c nistCurve[P]) recover(public *Point, r, s []byte) (element, error) {
	return recoverNIST(c.field, public, r, s)
}

func (c nistCurve[P]) checked(p P) (element, error) { return checkedNIST(p, c.newPoint) }

func checkedNIST[P nistPoint[P]](p P, newPoint func() P) (element, error) {
	if p.IsInfinity() == 1 {
		return nil, badpoint.ErrIdentity
	}
	return nistElement[P]{p, newPoint}, nil
}

type nistElement[P nistPoint[P]] struct {
	p        P
	newPoint func() P
}

func (e nistElement[P]) encode() []byte { return e.p.Bytes() }

func (e nistElement[P]) negate() element {
	return nistElement[P]{e.newPoint().Negate(e.p), e.newPoint}
}

func (e nistElement[P]) add(q element) (element, error) {
	return checkedNIST(e.newPoint().Add(e.p, q.(nistElement[P]).p), e.newPoint)
}

func (e nistElement[P]) mult(s *Scalar) (element, error) {
	k := s.Bytes()
	defer clear(k)
	p, err := e.newPoint().ScalarMult(e.p, k)
	if err != nil {
		return nil, err
	}
	return checkedNIST(p, e.newPoint)
}
