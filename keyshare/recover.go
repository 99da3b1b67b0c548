package keyshare

import (
	"crypto/subtle"
	"errors"
	"fmt"

	"filippo.io/bigmod"
)

// ErrRecovery says that what an XOracle returned does not belong to the public key: the
// device is faulty, or holds another key.
var ErrRecovery = errors.New("coordinates do not fit the public key")

// XOracle multiplies points by one private key and returns the coordinate of each result that
// Point.SharedSecret returns: x, big endian in full length, on the NIST curves, u, little
// endian, on X25519 and X448. RecoverPoint wipes the coordinates.
//
// It takes all points that it will be asked for at once, so that one transaction, or
// several sessions at the same time, can serve them.
type XOracle func(points ...*Point) ([][]byte, error)

// RecoverPoint returns b*peer, the whole point, where the oracle multiplies by b, returns x-
// or u-coordinates only, and public is b times the base point G. It asks for
// the coordinates of b*peer and b*(peer+G), which is b*peer+public: the slope of the chord
// through the first and public decides the sign. For peer = G and peer = -G, where the chord is
// no chord, it asks for the coordinate of b*G only.
//
// On X25519 and X448 the oracle's public key has no sign. Either sign is right, defines b up
// to its sign, and must be kept: a sum of shares depends on it. An oracle that clamps multiplies
// by clamp(b), and public is that multiple of G.
//
// The result is checked to be on the curve, of prime order, and to fit both answers; if
// not, the error is ErrRecovery. This finds faults and other keys, but not an oracle that lies
// consistently, with the coordinates of any R and R+public; nor answers in the other order, which
// fit -b*(peer+G). Errors of the oracle are returned wrapped. Ed25519 and Ed448 are refused, as is a peer of another curve.
func RecoverPoint(public, peer *Point, oracle XOracle) (*Point, error) {
	g := public.group
	if g != peer.group {
		return nil, fmt.Errorf("recover point: %s key and %s point", g.name, peer.group.name)
	}
	if g.recover == nil {
		return nil, fmt.Errorf("recover point: %w: %s", errors.ErrUnsupported, g.name)
	}
	base := newPoint(g, g.base())
	switch {
	case peer.Equal(base):
		return recoverBase(public, peer, public, oracle)
	case peer.Equal(base.Negate()):
		return recoverBase(public, peer, public.Negate(), oracle)
	}
	next, err := peer.Add(base)
	if err != nil {
		return nil, fmt.Errorf("recover point: %w", err)
	}
	answers, err := ask(oracle, peer, next)
	if err != nil {
		return nil, err
	}
	defer wipeAll(answers)
	e, err := g.recover(public, answers[0], answers[1])
	if err != nil {
		return nil, fmt.Errorf("recover point on %s: %w", g.name, ErrRecovery)
	}
	return newPoint(g, e), nil
}

// recoverBase returns result, which is public or its negative, if the oracle agrees.
func recoverBase(public, peer, result *Point, oracle XOracle) (*Point, error) {
	answers, err := ask(oracle, peer)
	if err != nil {
		return nil, err
	}
	defer wipeAll(answers)
	if subtle.ConstantTimeCompare(answers[0], public.SharedSecret()) != 1 {
		return nil, fmt.Errorf("recover point on %s: %w", public.group.name, ErrRecovery)
	}
	return result, nil
}

func ask(oracle XOracle, points ...*Point) ([][]byte, error) {
	answers, err := oracle(points...)
	if err != nil {
		wipeAll(answers)
		return nil, fmt.Errorf("recover point: %w", err)
	}
	if len(answers) != len(points) {
		wipeAll(answers)
		return nil, fmt.Errorf("recover point: %d answers for %d points: %w", len(answers), len(points), ErrRecovery)
	}
	return answers, nil
}

func wipeAll(secrets [][]byte) {
	for _, b := range secrets {
		clear(b)
	}
}

func recoverMontgomery(public *Point, r, s []byte) (element, error) {
	return public.element.(interface {
		recover(r, s []byte) (element, error)
	}).recover(r, s)
}

// recoverNIST returns the point R whose x-coordinate is r, given that R + D, D the public
// key, has the x-coordinate s. With D = (x, y), by the slope of the chord through R and D,
//
//	y(R) = (y(R)^2 + y^2 - (s + r + x) * (r - x)^2) / (2*y),
//
// where y(R)^2 follows from r by the curve's equation, of which D gives the constant. R must not be
// D or -D, so r = x is an error, as are r and s that do not fit: then the result is not on
// the curve. It takes the same time for all r and s that it accepts; 2*y is public.
func recoverNIST(field *bigmod.Modulus, public *Point, r, s []byte) (element, error) {
	size := field.Size()
	xr, err := coordinate(r, field)
	if err != nil {
		return nil, err
	}
	defer clear(xr.Bits())
	xs, err := coordinate(s, field)
	if err != nil {
		return nil, err
	}
	defer clear(xs.Bits())
	x, y := natural(public.encoded[1:1+size], field), natural(public.encoded[1+size:], field)

	chord := copyNat(xr, field).Sub(x, field)
	if chord.IsZero() == 1 {
		return nil, ErrRecovery
	}
	t := xs.Add(xr, field).Add(x, field).Mul(chord, field).Mul(chord, field)

	ySquared := copyNat(y, field).Mul(y, field)
	// y(R)^2 = r^3 - 3*r + (y^2 - x^3 + 3*x)
	numerator := cubicNIST(xr, field).Sub(cubicNIST(x, field), field).Add(ySquared, field)
	numerator.Add(ySquared, field).Sub(t, field)
	inverse, ok := new(bigmod.Nat).InverseVarTime(copyNat(y, field).Add(y, field), field)
	if !ok {
		return nil, ErrRecovery // y is not 0 on a curve of odd order
	}
	numerator.Mul(inverse, field)

	encoded := append([]byte{0x04}, r...)
	encoded = append(encoded, numerator.Bytes(field)...)
	for _, n := range []*bigmod.Nat{chord, numerator} {
		clear(n.Bits())
	}
	return public.group.parse(encoded)
}

// cubicNIST returns x^3 - 3*x.
func cubicNIST(x *bigmod.Nat, field *bigmod.Modulus) *bigmod.Nat {
	return copyNat(x, field).Mul(x, field).Mul(x, field).Sub(x, field).Sub(x, field).Sub(x, field)
}

func copyNat(x *bigmod.Nat, m *bigmod.Modulus) *bigmod.Nat {
	return new(bigmod.Nat).ExpandFor(m).Add(x, m)
}

// coordinate decodes a number in full length, below the prime.
func coordinate(b []byte, field *bigmod.Modulus) (*bigmod.Nat, error) {
	if len(b) != field.Size() {
		return nil, ErrLength
	}
	return new(bigmod.Nat).SetBytes(b, field)
}

// Clamped returns an X25519 or X448 private key (RFC 7748, Section 5; 32 or 56 octets, little
// endian) that clamping does not change and that is congruent to s or to -s modulo L: a
// way to put a bare scalar into a device that clamps. The device then multiplies by s or
// -s, which u-coordinates do not tell apart and RecoverPoint, given Public, does. One in 2^120
// scalars has no such key: ErrScalarRange. The caller wipes the result.
func (s *Scalar) Clamped() ([]byte, error) {
	if s.group.curve != X25519 && s.group.curve != X448 {
		return nil, fmt.Errorf("clamp scalar: %w: %s", errors.ErrUnsupported, s.group.name)
	}
	k := s.cleaned()
	minus := &Scalar{s.group, new(bigmod.Nat).ExpandFor(s.group.order).Sub(s.n, s.group.order)}
	defer minus.Wipe()
	other := minus.cleaned()
	defer clear(other)
	// Of h*t and h*(L-t), with t below L, one has the highest bit of a clamped key and, unless
	// t or L-t is below 2^128, none has a higher one.
	mask, want := byte(0xc0), byte(0x40)
	if s.group.curve == X448 {
		mask, want = 0x80, 0x80
	}
	top := len(k) - 1
	subtle.ConstantTimeCopy(1-subtle.ConstantTimeByteEq(k[top]&mask, want), k, other)
	if k[top]&mask != want {
		clear(k)
		return nil, ErrScalarRange
	}
	return k, nil
}
