package keyring

import (
	"context"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// signingSummer is a key for signatures that can be added to others of its kind, in memory.
// Software keys have it, of the software token and of those that tokens seal alike.
type signingSummer interface {
	// SumWith returns the key of the sum of this key's scalar and those of the others. It is
	// an io.Closer. Errors: token.ErrUnsupported if one of them is of another kind.
	SumWith(others ...token.Key) (token.Key, error)
}

// signSum signs with the sum of the parts' scalars, which exists for this signature only.
// The turns at the tokens are over before: nothing here waits for a device.
func (e *Entry) signSum(ctx context.Context, gate Gate, req token.SignRequest) (signature []byte, err error) {
	keys := make([]token.Key, len(e.slot.parts))
	for i, p := range e.slot.parts {
		if p.protection == token.ProtectionToken {
			return nil, fmt.Errorf("sign with a sum that is partly in token %q: %w", p.tokenName, token.ErrUnsupported)
		}
		err := e.do(ctx, gate, p, token.Auth{}, func(_ context.Context, key token.Key, _ token.Auth) error {
			keys[i] = key
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("part %d in token %q: %w", i+1, p.tokenName, err)
		}
	}
	summer, ok := keys[0].(signingSummer)
	if !ok {
		return nil, e.cannot("sign as a part of a sum")
	}
	sum, err := summer.SumWith(keys[1:]...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeKey(sum)) }()
	signer, ok := sum.(token.Signer)
	if !ok || !sum.Public().Equal(e.Public) {
		return nil, fmt.Errorf("%w: the sum is another key", token.ErrFault)
	}
	if signature, err = signer.Sign(ctx, req); err != nil {
		return nil, err
	}
	if !keyshare.Verify(e.slot.point, modeOf(req.Scheme), req.Message, signature) {
		return nil, fmt.Errorf("%w: the signature does not verify", token.ErrFault)
	}
	return signature, nil
}

// modeOf returns the mode of EdDSA, the one signature that sums make.
func modeOf(s token.Scheme) keyshare.Mode {
	if s == token.SchemeMeshEdDSA {
		return keyshare.ModeMesh
	}
	return keyshare.ModePure
}
