package keyshare

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// Point is a checked point: on its curve, in the subgroup of prime order, not the
// identity. It is immutable and may be used by several goroutines at once. The zero
// value is not a point.
type Point struct {
	group   *group
	element element
	encoded []byte
}

// ParsePoint decodes a point and checks it. Accepted are, little endian except on the
// NIST curves:
//
//	X25519   33 octets: u, then 0x00 (v even) or 0x80 (v odd); or 32 octets: u, lifted to even v
//	X448     57 octets: u, then 0x00 or 0x80; or 56 octets, lifted to even v
//	Ed25519  32 octets (RFC 8032, Section 5.1.3)
//	Ed448    57 octets (RFC 8032, Section 5.2.3)
//	P256 P384 P521   65, 97, 133 octets: 0x04, x, y (SEC 1, Section 2.3.4, uncompressed only)
//
// The signed Montgomery form is that of draft-hallambaker-threshold-06, Section 5.2.2.
// An error that is about the point wraps one of ErrLength, ErrSignOctet,
// ErrNonCanonical, ErrTwist, ErrIdentity, ErrLowOrder and ErrTorsion, checked in this
// order, and its text starts with it.
func ParsePoint(c Curve, b []byte) (*Point, error) {
	g, err := c.knownGroup()
	if err != nil {
		return nil, fmt.Errorf("parse point: %w", err)
	}
	e, err := g.parse(b)
	if err != nil {
		return nil, refuse(g, err)
	}
	return newPoint(g, e), nil
}

// BasePoint returns the generator of the prime-order subgroup. It panics if c is not one
// of the curves.
func BasePoint(c Curve) *Point {
	g, err := c.knownGroup()
	if err != nil {
		panic("keyshare: " + err.Error())
	}
	return newPoint(g, g.base())
}

func newPoint(g *group, e element) *Point { return &Point{g, e, e.encode()} }

// refuse names the curve behind the reason, which stays in front.
func refuse(g *group, err error) error { return fmt.Errorf("%w (%s point)", err, g.name) }

// Curve returns the point's curve.
func (p *Point) Curve() Curve { return p.group.curve }

// Bytes returns the encoding with the sign, PointLen octets, as ParsePoint takes it.
func (p *Point) Bytes() []byte { return bytes.Clone(p.encoded) }

// SharedSecret returns the octets from which keys are derived when p is the result of an
// agreement: u without the sign on X25519 (32 octets) and X448 (56), the encoding of RFC
// 8032 with its sign on Ed25519 and Ed448, the x-coordinate in full length on the NIST
// curves (32, 48, 66 octets, big endian). The caller wipes it.
func (p *Point) SharedSecret() []byte {
	switch p.group.curve {
	case X25519, X448:
		return bytes.Clone(p.encoded[:len(p.encoded)-1])
	case Ed25519, Ed448:
		return bytes.Clone(p.encoded)
	default:
		return bytes.Clone(p.encoded[1 : 1+len(p.encoded)/2])
	}
}

// Add returns p + q. The identity is refused with ErrIdentity; points of different
// curves are an error.
func (p *Point) Add(q *Point) (*Point, error) {
	if p.group != q.group {
		return nil, fmt.Errorf("add points: %s and %s", p.group.name, q.group.name)
	}
	e, err := p.element.add(q.element)
	if err != nil {
		return nil, refuse(p.group, err)
	}
	return newPoint(p.group, e), nil
}

// Negate returns -p.
func (p *Point) Negate() *Point { return newPoint(p.group, p.element.negate()) }

// Equal reports whether p and q are the same point of the same curve.
func (p *Point) Equal(q *Point) bool {
	return p.group == q.group && bytes.Equal(p.encoded, q.encoded)
}

// Combine returns the sum of the points, in any order: of the public keys of shares the
// public key, of partial agreements the agreement. No points, or points of different curves,
// are an error; a sum that is the identity is refused with ErrIdentity.
func Combine(points ...*Point) (*Point, error) {
	if len(points) == 0 {
		return nil, errors.New("combine points: none given")
	}
	var sum *Point // nil is the identity, which a partial sum may be
	for _, p := range points {
		if p.group != points[0].group {
			return nil, fmt.Errorf("combine points: %s and %s", points[0].group.name, p.group.name)
		}
		if sum == nil {
			sum = p
			continue
		}
		sum, _ = sum.Add(p) // fails on the identity only
	}
	if sum == nil {
		return nil, refuse(points[0].group, badpoint.ErrIdentity)
	}
	return sum, nil
}

// checkLength is the first check of every decoder.
func checkLength(b []byte, want ...int) error {
	if slices.Contains(want, len(b)) {
		return nil
	}
	return fmt.Errorf("%w: %d octets, want %d", badpoint.ErrLength, len(b), want[0])
}
