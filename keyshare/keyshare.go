// Package keyshare does the arithmetic of key shares: points and scalars of seven
// curves, key agreement whole and in parts, splitting a scalar and combining what the
// share holders return, and EdDSA signatures by seeds and by bare scalars.
//
// The constructions are those of draft-hallambaker-threshold-06. A share, and the sum of
// two keys, is a scalar modulo the group order L. It is not clamped and not a multiple
// of the cofactor, so a peer's point with a component of small order would leak bits of
// it, and a sign that is lost makes sums wrong. Therefore Point is a type that can only
// be had by way of all checks (ParsePoint), every encoding carries the sign, and every
// multiplication uses a scalar that would cancel a small-order component all the same.
//
// All functions are pure: no I/O but reading from a given source of randomness, no
// state. Operations on secrets run in constant time; encodings, points and error paths
// are public. The P-256, P-384 and P-521 shares are an extension that the drafts do not
// have.
//
// The package does not derive seeds (package mesh does), wrap or store secrets, decide
// who may use a key, or know of devices. It does not sign with ECDSA or RSA, and has no
// threshold signatures yet.
package keyshare

import (
	"encoding/hex"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// The reasons for which ParsePoint, Point.Add and Combine refuse a point. The text of
// such an error starts with the reason, and errors.Is finds it.
var (
	ErrLength       = badpoint.ErrLength
	ErrSignOctet    = badpoint.ErrSignOctet
	ErrNonCanonical = badpoint.ErrNonCanonical
	ErrTwist        = badpoint.ErrTwist
	ErrIdentity     = badpoint.ErrIdentity
	ErrLowOrder     = badpoint.ErrLowOrder
	ErrTorsion      = badpoint.ErrTorsion
)

// unhex decodes a constant.
func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic("keyshare: " + err.Error())
	}
	return b
}
