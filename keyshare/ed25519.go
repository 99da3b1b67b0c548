package keyshare

import (
	"bytes"

	"filippo.io/edwards25519"
	"filippo.io/edwards25519/field"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// ed25519Element is a point of edwards25519.
type ed25519Element struct{ p *edwards25519.Point }

// parseEd25519 decodes as RFC 8032, Section 5.1.3. edwards25519.SetBytes takes y >= p and a
// set sign bit where x is zero; encoding the point again shows both.
func parseEd25519(b []byte) (element, error) {
	if err := checkLength(b, 32); err != nil {
		return nil, err
	}
	y, _ := new(field.Element).SetBytes(b) // ignores the sign bit; 32 octets never fail
	canonical := y.Bytes()
	if canonical[31] != b[31]&0x7f || !bytes.Equal(canonical[:31], b[:31]) {
		return nil, badpoint.ErrNonCanonical
	}
	p, err := new(edwards25519.Point).SetBytes(b)
	if err != nil {
		return nil, badpoint.ErrTwist
	}
	if p.Bytes()[31] != b[31] {
		return nil, badpoint.ErrSignOctet
	}
	identity := edwards25519.NewIdentityPoint()
	switch {
	case p.Equal(identity) == 1:
		return nil, badpoint.ErrIdentity
	case new(edwards25519.Point).MultByCofactor(p).Equal(identity) == 1:
		return nil, badpoint.ErrLowOrder
	case !inSubgroup25519(p):
		return nil, badpoint.ErrTorsion
	}
	return ed25519Element{p}, nil
}

// Constants of curve25519, v^2 = u^3 + A*u^2 + u, and its map from edwards25519,
// u = (1+y)/(1-y), v = c*u/x.
var (
	one25519 = new(field.Element).One()
	// c is the odd square root of -(A+2).
	c25519 = element25519("e781ba0055fb91337de582b42e2c5e3a81b003fc23f7842d44f95f9f0b12d970")
	// v of a point of order 4, (1, v): the square root of A+2.
	v25519 = element25519("1544889cef48a2e963934a28c7115a63efa6f4d77aa71fc2afc2a9f997f4e46b")
	// The square root of -i*(A^2-4), where i is the square root of -1 that SqrtRatio uses.
	switch25519 = element25519("2252bab37712b7a875ca51b8d41ed79d8fa62c2069d925beeef1ac27bcc59f21")
)

const a25519 = 486662

func element25519(hexadecimal string) *field.Element {
	e, err := new(field.Element).SetBytes(unhex(hexadecimal))
	if err != nil {
		panic("keyshare: " + err.Error())
	}
	return e
}

// inSubgroup25519 reports whether p, which is affine (Z = 1) and whose order does not
// divide 8, has order L. It is not constant time: p is public.
//
// The rational points of 2-power order form a cyclic group of order 8, so p has order L
// if and only if it is in 8E. The test halves p once and asks whether the half is in 4E
// (T. Pornin, "Point-Halving and Subgroup Membership in Twisted Edwards Curves", 2022). On
// y^2 = x(x^2+ax+b), the isomorphic image of p in which all denominators vanish:
//
//   - p is in 2E if and only if x = r^2. (The only rational point of order 2 is (0,0).)
//   - The halves of p come through the 2-isogeny to y^2 = x(x^2-2ax+a^2-4b), where p has
//     the preimages with x' = a + 2x +- 2y/r. Their product a^2-4b is not a square (times a
//     fourth power), so exactly one is, s^2. Then q = x + y/r - r*s is the x-coordinate of a
//     half, s*q its y, with the sign of r that belongs to s^2.
//   - The half is in 4E if and only if its Tate pairing with the point t = (1, v25519) of order 4
//     is 1: (y_q - v*q)^2/q is a fourth power. As 4 divides p-1, one exponentiation tells.
//
// Each half will do, because they differ by a point in 4E.
func inSubgroup25519(p *edwards25519.Point) bool {
	x, y, _, _ := p.ExtendedCoordinates()
	minus := new(field.Element).Subtract(one25519, y)
	plus := new(field.Element).Add(one25519, y)
	// (X, Y) is (u, v) scaled by (lambda^2, lambda^3).
	lambda := new(field.Element).Multiply(x, minus)
	X := new(field.Element).Square(x)
	X.Multiply(X, minus).Multiply(X, plus)
	r, square := new(field.Element).SqrtRatio(X, one25519)
	if square == 0 {
		return false
	}
	// yr is Y/r = r*Y/X, and Y/X = c*lambda/x.
	yr := new(field.Element).Multiply(c25519, minus)
	yr.Multiply(yr, r)
	// prime is x' = a + 2X + 2Y/r, with a = A*lambda^2.
	lambda2 := new(field.Element).Square(lambda)
	prime := new(field.Element).Add(X, yr)
	prime.Add(prime, prime).Add(prime, new(field.Element).Mult32(lambda2, a25519))
	s, square := new(field.Element).SqrtRatio(one25519, prime)
	if square == 1 {
		s.Multiply(s, prime)
	} else {
		// s is the root of i/x'; the other candidate is (A^2-4)*lambda^4/x'.
		s.Multiply(s, switch25519).Multiply(s, lambda2)
		r.Negate(r)
		yr.Negate(yr)
	}
	q := new(field.Element).Multiply(r, s)
	q.Subtract(new(field.Element).Add(X, yr), q)
	f := new(field.Element).Multiply(v25519, lambda)
	f.Subtract(s, f)
	f.Square(f).Multiply(f, q)
	return isFourthPower25519(f)
}

// isFourthPower25519 reports whether f^((p-1)/4) = 1.
func isFourthPower25519(f *field.Element) bool {
	power := new(field.Element).Pow22523(f) // f^((p-5)/8)
	power.Square(power).Multiply(power, f)
	return power.Equal(one25519) == 1
}

func baseEd25519() element { return ed25519Element{edwards25519.NewGeneratorPoint()} }

func baseMultEd25519(s *Scalar) (element, error) {
	return checkedEd25519(new(edwards25519.Point).ScalarBaseMult(scalar25519(s)))
}

func checkedEd25519(p *edwards25519.Point) (element, error) {
	if p.Equal(edwards25519.NewIdentityPoint()) == 1 {
		return nil, badpoint.ErrIdentity
	}
	return ed25519Element{p}, nil
}

func (e ed25519Element) encode() []byte { return e.p.Bytes() }

func (e ed25519Element) negate() element {
	return ed25519Element{new(edwards25519.Point).Negate(e.p)}
}

func (e ed25519Element) add(q element) (element, error) {
	return checkedEd25519(new(edwards25519.Point).Add(e.p, q.(ed25519Element).p))
}

func (e ed25519Element) mult(s *Scalar) (element, error) {
	t := s.divideByCofactor()
	defer t.Wipe()
	p := new(edwards25519.Point).ScalarMult(scalar25519(t), e.p)
	return checkedEd25519(p.MultByCofactor(p))
}

// scalar25519 converts a scalar of Ed25519.
func scalar25519(s *Scalar) *edwards25519.Scalar {
	b := s.Bytes()
	defer clear(b)
	k, err := new(edwards25519.Scalar).SetCanonicalBytes(b)
	if err != nil {
		panic("keyshare: scalar is not reduced")
	}
	return k
}
