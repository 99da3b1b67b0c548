package keyshare

import (
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/bigmod"
)

var (
	// ErrZeroScalar says that a scalar is zero modulo the group order.
	ErrZeroScalar = errors.New("scalar is zero")
	// ErrScalarRange says that a coefficient is not in 1 <= c < L.
	ErrScalarRange = errors.New("scalar out of range")
	// ErrScalarLength says that an encoded scalar or seed is too short or too long.
	ErrScalarLength = errors.New("wrong length")
)

// Scalar is a secret scalar s, 1 <= s < L, where L is the order of the curve's
// prime-order subgroup. Its operations run in constant time. It is immutable but for
// Wipe; a wiped scalar is zero, and what is computed with it is refused. Wipe must not
// run while another goroutine uses the scalar. The zero value is not a scalar.
type Scalar struct {
	group *group
	n     *bigmod.Nat
}

// ParseScalar decodes ScalarLen octets (little endian on the 25519 and 448 curves, big
// endian on the NIST curves). Any value is taken and reduced modulo L, never clamped.
// It wraps ErrScalarLength or, for a multiple of L, ErrZeroScalar.
func ParseScalar(c Curve, b []byte) (*Scalar, error) {
	g, err := c.knownGroup()
	if err != nil {
		return nil, fmt.Errorf("parse scalar: %w", err)
	}
	if len(b) != g.scalarLen {
		return nil, fmt.Errorf("parse scalar: %w: %d octets, %s has %d", ErrScalarLength, len(b), g.name, g.scalarLen)
	}
	s, err := g.reduce(b)
	if err != nil {
		return nil, fmt.Errorf("parse scalar: %w", err)
	}
	return s, nil
}

// ParseCoefficient decodes a number that must be in the range 1 <= c < L, in the
// encoding of ParseScalar. It wraps ErrScalarLength or ErrScalarRange.
func ParseCoefficient(c Curve, b []byte) (*Scalar, error) {
	g, err := c.knownGroup()
	if err != nil {
		return nil, fmt.Errorf("parse coefficient: %w", err)
	}
	if len(b) != g.scalarLen {
		return nil, fmt.Errorf("parse coefficient: %w: %d octets, %s has %d", ErrScalarLength, len(b), g.name, g.scalarLen)
	}
	s, err := g.canonical(b)
	if err != nil {
		return nil, fmt.Errorf("parse coefficient: %w", err)
	}
	return s, nil
}

// RandomScalar draws a scalar uniformly from 1 <= s < L. It reads from rand, or from
// crypto/rand.Reader if rand is nil.
func RandomScalar(c Curve, rand io.Reader) (*Scalar, error) {
	g, err := c.knownGroup()
	if err != nil {
		return nil, fmt.Errorf("draw scalar: %w", err)
	}
	if rand == nil {
		rand = cryptorand.Reader
	}
	b := make([]byte, g.scalarLen)
	defer clear(b)
	// A draw fails with probability below 1/2 (25519, where L is just above 2^252), so a
	// sound source does not exhaust 256 of them.
	for range 256 {
		if _, err := io.ReadFull(rand, b); err != nil {
			return nil, fmt.Errorf("draw scalar: %w", err)
		}
		g.trim(b)
		if s, err := g.canonical(b); err == nil {
			return s, nil
		}
	}
	return nil, errors.New("draw scalar: the source is not random")
}

// Curve returns the scalar's curve.
func (s *Scalar) Curve() Curve { return s.group.curve }

// Bytes returns the reduced scalar in the encoding of ParseScalar, ScalarLen octets. The
// caller wipes it.
func (s *Scalar) Bytes() []byte {
	b := s.n.Bytes(s.group.order)
	if s.group.littleEndian {
		slices.Reverse(b)
	}
	return b
}

// Add returns s + t mod L. A sum of zero is refused with ErrZeroScalar; scalars of
// different curves are an error.
func (s *Scalar) Add(t *Scalar) (*Scalar, error) {
	if s.group != t.group {
		return nil, fmt.Errorf("add scalars: %s and %s", s.group.name, t.group.name)
	}
	sum := s.clone()
	sum.n.Add(t.n, s.group.order)
	if sum.n.IsZero() == 1 {
		return nil, fmt.Errorf("add scalars: %w", ErrZeroScalar)
	}
	return sum, nil
}

// Multiply returns s * t mod L, which is never zero. It panics if the curves differ.
func (s *Scalar) Multiply(t *Scalar) *Scalar {
	if s.group != t.group {
		panic("keyshare: multiply scalars of different curves")
	}
	product := s.clone()
	product.n.Mul(t.n, s.group.order)
	return product
}

// Public returns s times the base point. It panics if s was wiped.
func (s *Scalar) Public() *Point {
	e, err := s.group.multiplyBase(s)
	if err != nil {
		panic("keyshare: public key of a wiped scalar")
	}
	return newPoint(s.group, e)
}

// Wipe overwrites the scalar with zero.
func (s *Scalar) Wipe() { clear(s.n.Bits()) }

// String returns no digit of the secret.
func (s *Scalar) String() string { return s.group.name + " scalar" }

// GoString returns no digit of the secret.
func (s *Scalar) GoString() string { return s.String() }

func (s *Scalar) clone() *Scalar {
	return &Scalar{s.group, new(bigmod.Nat).ExpandFor(s.group.order).Add(s.n, s.group.order)}
}

// subtract sets s = s - t.
func (s *Scalar) subtract(t *Scalar) { s.n.Sub(t.n, s.group.order) }

// add sets s = s + t.
func (s *Scalar) add(t *Scalar) { s.n.Add(t.n, s.group.order) }

func (g *group) multiplyBase(s *Scalar) (element, error) {
	if g.baseMult != nil {
		return g.baseMult(s)
	}
	return g.base().mult(s)
}

// reduce makes a scalar of a number of any length, in the curve's octet order.
func (g *group) reduce(b []byte) (*Scalar, error) {
	n := g.reduceOctets(b)
	if n.IsZero() == 1 {
		return nil, ErrZeroScalar
	}
	return &Scalar{g, n}, nil
}

// reduceOctets reduces a number of any length, in the curve's octet order.
func (g *group) reduceOctets(b []byte) *bigmod.Nat {
	if !g.littleEndian {
		return reduceBigEndian(b, g.order)
	}
	r := slices.Clone(b)
	defer clear(r)
	slices.Reverse(r)
	return reduceBigEndian(r, g.order)
}

// canonical makes a scalar of octets that must be in range.
func (g *group) canonical(b []byte) (*Scalar, error) {
	r := slices.Clone(b)
	defer clear(r)
	if g.littleEndian {
		slices.Reverse(r)
	}
	n, err := new(bigmod.Nat).SetBytes(r, g.order)
	if err != nil || n.IsZero() == 1 {
		return nil, ErrScalarRange
	}
	return &Scalar{g, n}, nil
}

// trim clears the bits of b above the bit length of L.
func (g *group) trim(b []byte) {
	mask := byte(0xff >> (8*len(b) - g.order.BitLen()))
	if g.littleEndian {
		b[len(b)-1] &= mask
	} else {
		b[0] &= mask
	}
}

// reduceBigEndian returns b mod m in constant time, by Horner's rule over chunks that are
// one octet shorter than m and so always below it (every m here has a top octet that is
// not zero).
func reduceBigEndian(b []byte, m *bigmod.Modulus) *bigmod.Nat {
	size := m.Size() - 1
	radix := natural(append([]byte{1}, make([]byte, size)...), m)
	acc := new(bigmod.Nat).ExpandFor(m)
	for len(b) > 0 {
		n := len(b) % size
		if n == 0 {
			n = size
		}
		chunk := natural(b[:n], m)
		acc.Mul(radix, m).Add(chunk, m)
		clear(chunk.Bits())
		b = b[n:]
	}
	return acc
}

// natural decodes a number that is known to be below m.
func natural(b []byte, m *bigmod.Modulus) *bigmod.Nat {
	n, err := new(bigmod.Nat).SetBytes(b, m)
	if err != nil {
		panic("keyshare: number is not below the modulus")
	}
	return n
}

// divideByCofactor returns s * h^-1 mod L.
func (s *Scalar) divideByCofactor() *Scalar {
	t := s.clone()
	t.n.Mul(s.group.inverseCofactor, s.group.order)
	return t
}
