// Package badpoint names the reasons for which a point from outside is refused. It
// exists so that keyshare and its curve packages share them; keyshare exports them.
package badpoint

import "errors"

// The reasons, in the order in which they are checked. Their texts are part of the
// protocol: a reply with status 422 starts with one of them.
var (
	ErrLength       = errors.New("length")        // not the curve's encoding length
	ErrSignOctet    = errors.New("sign octet")    // neither 0x00 nor 0x80, or 0x80 with v = 0; SEC 1 tag not 04
	ErrNonCanonical = errors.New("non-canonical") // a coordinate that is not below the field prime
	ErrTwist        = errors.New("twist")         // not on the curve
	ErrIdentity     = errors.New("identity")      // the neutral element
	ErrLowOrder     = errors.New("low order")     // order divides the cofactor
	ErrTorsion      = errors.New("torsion")       // on the curve, outside the prime-order subgroup
)
