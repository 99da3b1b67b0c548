package softkey

import (
	"crypto/x509"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

// NewKey makes a key in memory that no token and no file knows: for keys that another token
// seals. It copies what it needs of private, which the caller wipes. The key is an io.Closer.
// Errors: token.ErrBadKey, token.ErrUnsupported.
func NewKey(private *token.PrivateKey, use token.Use) (token.Key, error) {
	if private == nil {
		return nil, fmt.Errorf("make key: %w: none given", token.ErrBadKey)
	}
	if err := supported(private.Algorithm, use); err != nil {
		return nil, err
	}
	m, err := newMaterial(private, use)
	if err != nil {
		return nil, fmt.Errorf("make %s key: %w", private.Algorithm, err)
	}
	defer m.wipe()
	return m.key(use)
}

// NewPrivate draws a private key for a use with the operating system's randomness. The
// caller wipes it. An RSA key can take seconds. Errors: token.ErrUnsupported.
func NewPrivate(a token.Algorithm, use token.Use) (*token.PrivateKey, error) {
	if err := supported(a, use); err != nil {
		return nil, err
	}
	m, err := generate(a, use)
	if err != nil {
		return nil, fmt.Errorf("generate %s key: %w", a, err)
	}
	private := &token.PrivateKey{Algorithm: a}
	switch m.form {
	case formSeed:
		private.Seed = m.octets
	case formScalar:
		private.Scalar = m.octets
	case formRSA:
		defer m.wipe()
		if private.RSA, err = x509.ParsePKCS1PrivateKey(m.octets); err != nil {
			return nil, fmt.Errorf("generate %s key: %w", a, err)
		}
	}
	return private, nil
}
