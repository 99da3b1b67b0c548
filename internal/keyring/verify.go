package keyring

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// verify checks a signature that came from a token. A wrong one, which can give a
// private key away, is token.ErrFault.
func verify(p *part, req token.SignRequest, signature []byte) error {
	ok, err := verifies(p, req, signature)
	if err != nil {
		return fmt.Errorf("verify signature: %w", err)
	}
	if !ok {
		return fmt.Errorf("%w: the signature does not verify", token.ErrFault)
	}
	return nil
}

func verifies(p *part, req token.SignRequest, signature []byte) (bool, error) {
	switch req.Scheme {
	case token.SchemeEdDSA:
		return keyshare.Verify(p.point, keyshare.ModePure, req.Message, signature), nil
	case token.SchemeMeshEdDSA:
		return keyshare.Verify(p.point, keyshare.ModeMesh, req.Message, signature), nil
	}
	pub, err := p.public.Standard()
	if err != nil {
		return false, err
	}
	digest, err := req.Digest()
	if err != nil {
		return false, err
	}
	return verifiesDigest(pub, req, digest, signature)
}

func verifiesDigest(pub crypto.PublicKey, req token.SignRequest, digest, signature []byte) (bool, error) {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		if req.Scheme == token.SchemeECDSA {
			return ecdsa.VerifyASN1(pub, digest, signature), nil
		}
	case *rsa.PublicKey:
		switch req.Scheme {
		case token.SchemePKCS1v15:
			return rsa.VerifyPKCS1v15(pub, req.Hash, digest, signature) == nil, nil
		case token.SchemePSS:
			options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			return rsa.VerifyPSS(pub, req.Hash, digest, signature, options) == nil, nil
		}
	}
	return false, fmt.Errorf("scheme %d for a key of algorithm %T: %w", req.Scheme, pub, token.ErrUnsupported)
}
