package softkey

import (
	"fmt"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// SumWith returns the key of the sum of this key's scalar and those of the others, which are
// software keys on the same curve too. It signs as keyshare.SumSigningKeys says; no token knows
// it, and closing it wipes it. Errors: token.ErrUnsupported, token.ErrClosed, token.ErrBadKey.
func (k *edKey) SumWith(others ...token.Key) (token.Key, error) {
	keys := []*edKey{k}
	for _, o := range others {
		other, ok := o.(*edKey)
		if !ok || other.public.Algorithm != k.public.Algorithm {
			return nil, fmt.Errorf("add a %s key to one of another kind: %w", k.public.Algorithm, token.ErrUnsupported)
		}
		keys = append(keys, other)
	}
	signing := make([]*keyshare.SigningKey, len(keys))
	for i, key := range keys {
		key.mu.RLock()
		defer key.mu.RUnlock()
		if key.closed {
			return nil, token.ErrClosed
		}
		signing[i] = key.signing
	}
	sum, err := keyshare.SumSigningKeys(signing...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	public := token.PublicKey{Algorithm: k.public.Algorithm, Octets: sum.Public().Bytes()}
	return &edKey{base: base{public: public}, signing: sum}, nil
}
