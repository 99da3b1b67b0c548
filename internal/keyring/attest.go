package keyring

import (
	"context"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

// AttestFormat returns of which format evidence about the key is.
// Errors: token.ErrUnsupported for a key that is not one key inside a token that attests; token.ErrAbsent.
func (e *Entry) AttestFormat() (token.AttestFormat, error) {
	attester, err := e.attester()
	if err != nil {
		return "", err
	}
	return attester.AttestFormat(), nil
}

// Attest makes evidence that the key is in its token. req.Key is set here.
// Errors: as AttestFormat, and as token.Attester.
func (e *Entry) Attest(ctx context.Context, gate Gate, req token.AttestRequest) (token.AttestEvidence, error) {
	attester, err := e.attester()
	if err != nil {
		return token.AttestEvidence{}, err
	}
	p := e.slot.parts[0]
	req.Key = p.request
	var evidence token.AttestEvidence
	err = inTurn(ctx, gate, e.subject(), p.need(), func(ctx context.Context, auth token.Auth) (err error) {
		if e.slot.deleted.Load() {
			return token.ErrNotFound
		}
		req.Auth = auth
		evidence, err = attester.Attest(ctx, req)
		return err
	})
	return evidence, err
}

func (e *Entry) attester() (token.Attester, error) {
	p := e.slot.parts[0]
	switch {
	case len(e.slot.parts) > 1:
		return nil, fmt.Errorf("a composite key is in no token as a whole: %w", token.ErrUnsupported)
	case p.token == nil:
		return nil, p.notConfigured()
	case p.protection != token.ProtectionToken:
		return nil, fmt.Errorf("a key with protection %q is used outside of any token: %w", e.Protected(), token.ErrUnsupported)
	}
	attester, ok := p.token.(token.Attester)
	if !ok {
		return nil, fmt.Errorf("token %q cannot attest: %w", p.tokenName, token.ErrUnsupported)
	}
	return attester, nil
}
