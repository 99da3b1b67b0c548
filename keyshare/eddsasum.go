package keyshare

import (
	"errors"
	"fmt"
)

// SumSigningKeys returns the key of the sum of the keys' scalars, on one curve, as
// NewCompositeSigningKey makes it: hedged, with the prefix of the sum. It is the key of a
// device's base key and an account's contribution together
// (draft-hallambaker-mesh-cryptography-08, Section 4). The caller wipes all of them.
// Errors: ErrZeroScalar for keys that cancel out.
func SumSigningKeys(keys ...*SigningKey) (*SigningKey, error) {
	if len(keys) < 2 {
		return nil, errors.New("add signing keys: at least two are needed")
	}
	sum := keys[0].scalar.clone()
	defer func() { sum.Wipe() }()
	for _, k := range keys[1:] {
		if k.scalar.n.IsZero() == 1 {
			return nil, errors.New("add signing keys: key was wiped")
		}
		next, err := sum.Add(k.scalar)
		if err != nil {
			return nil, fmt.Errorf("add signing keys: %w", err)
		}
		sum.Wipe()
		sum = next
	}
	return NewCompositeSigningKey(sum)
}
