package keyshare

import "fmt"

// Agree returns s * p, the whole point, in constant time. Its key material is
// Point.SharedSecret. Scalar and point of different curves are an error; ErrIdentity
// means that s was wiped.
func Agree(s *Scalar, p *Point) (*Point, error) {
	if s.group != p.group {
		return nil, fmt.Errorf("agree: %s scalar and %s point", s.group.name, p.group.name)
	}
	e, err := p.element.mult(s)
	if err != nil {
		return nil, refuse(p.group, err)
	}
	return newPoint(p.group, e), nil
}

// PartialAgreement returns (coefficient * s) * p, one share holder's contribution to an
// agreement (draft-hallambaker-threshold-06, Section 4). A nil coefficient is 1, the
// coefficient of an additive share. Errors are those of Agree.
func PartialAgreement(s, coefficient *Scalar, p *Point) (*Point, error) {
	if coefficient == nil {
		return Agree(s, p)
	}
	if s.group != coefficient.group {
		return nil, fmt.Errorf("agree: %s scalar and %s coefficient", s.group.name, coefficient.group.name)
	}
	product := s.Multiply(coefficient)
	defer product.Wipe()
	return Agree(product, p)
}
