package montgomery

import (
	"bytes"
	"fmt"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// Recover returns the point R whose u-coordinate is r, given that R + p has the u-coordinate
// s; r and s are in little endian. From the slope of the chord through R and p, with p = (u, v),
//
//	v(R) = (v(R)^2 + v^2 - (s + A + r + u) * (r - u)^2) / (2*v),
//
// where v(R)^2 follows from r by the curve's equation. It fails, with a reason of package badpoint,
// if r does not belong to points of prime order or if s does not fit, which includes r = u: R is
// neither p nor -p. It takes the same time for all r and s that it accepts.
func (p *Point[E, C]) Recover(r, s []byte) (*Point[E, C], error) {
	var c C
	ur, err := decodeU[E, C](r)
	if err != nil {
		return nil, err
	}
	us, err := decodeU[E, C](s)
	if err != nil {
		return nil, err
	}
	var root, numerator, t, w E
	if err := c.liftSecret(&root, &ur); err != nil {
		return nil, err
	}
	a := c.coefficient()
	c.add(&t, &us, &a)
	c.add(&t, &t, &ur)
	c.add(&t, &t, &p.u)
	c.sub(&w, &ur, &p.u)
	if isZero(c.octets(&w)) == 1 {
		return nil, badpoint.ErrTwist
	}
	c.mul(&t, &t, &w)
	c.mul(&t, &t, &w)
	c.mul(&numerator, &root, &root)
	c.mul(&w, &p.v, &p.v)
	c.add(&numerator, &numerator, &w)
	c.sub(&numerator, &numerator, &t)
	c.add(&w, &p.v, &p.v)
	c.inv(&w, &w)

	q := &Point[E, C]{u: ur}
	c.mul(&q.v, &numerator, &w)
	c.sub(&t, &q.v, &root) // q.v is root or -root, or s does not fit
	c.add(&w, &q.v, &root)
	if isZero(c.octets(&t))|isZero(c.octets(&w)) == 0 {
		return nil, badpoint.ErrTwist
	}
	c.octets(&q.v)
	return q, nil
}

// decodeU decodes a u-coordinate in its one encoding.
func decodeU[E any, C curve[E]](b []byte) (u E, err error) {
	var c C
	o := c.octets(&u)
	if len(b) != len(o) {
		return u, fmt.Errorf("%w: %d octets, want %d", badpoint.ErrLength, len(b), len(o))
	}
	copy(o, b)
	if !bytes.Equal(c.octets(&u), b) {
		return u, fmt.Errorf("%w: u is not below the field prime", badpoint.ErrNonCanonical)
	}
	return u, nil
}
