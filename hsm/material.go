package hsm

import (
	"crypto/x509"
	"fmt"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// material is a private key as attributes.
type material struct {
	public    token.PublicKey
	private   []attribute
	rsaPublic []attribute
}

func (m material) wipe() {
	for _, a := range m.private {
		clear(a.value)
	}
}

// material checks a private key and writes it as this module wants it.
func (k kind) material(p *token.PrivateKey) (material, error) {
	forms := 0
	for _, there := range []bool{p.Seed != nil, p.Scalar != nil, p.RSA != nil} {
		if there {
			forms++
		}
	}
	if forms != 1 || (p.RSA != nil) != (k.curve == 0) {
		return material{}, fmt.Errorf("%w: want one form of an %s key", token.ErrBadKey, k.algorithm)
	}
	if k.curve == 0 {
		return rsaMaterial(k.algorithm, p)
	}
	value, public, err := k.value(p)
	if err != nil {
		return material{}, err
	}
	return material{
		public:  token.PublicKey{Algorithm: k.algorithm, Octets: public.Bytes()},
		private: []attribute{octets(ckaValue, value)},
	}, nil
}

// value returns CKA_VALUE and the public key.
func (k kind) value(p *token.PrivateKey) ([]byte, *keyshare.Point, error) {
	if p.Seed != nil {
		scalar, _, err := keyshare.ExpandSeed(k.curve, p.Seed)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
		}
		defer scalar.Wipe()
		if k.curve == keyshare.Ed448 && len(p.Seed) != 57 {
			return nil, nil, fmt.Errorf("a token takes Ed448 seeds of 57 octets only: %w", token.ErrUnsupported)
		}
		return append([]byte(nil), p.Seed...), scalar.Public(), nil
	}
	scalar, err := keyshare.ParseScalar(k.curve, p.Scalar)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	defer scalar.Wipe()
	switch k.curve {
	case keyshare.Ed25519, keyshare.Ed448:
		return nil, nil, fmt.Errorf("a token takes %s keys as seeds only: %w", k.algorithm, token.ErrUnsupported)
	case keyshare.X25519, keyshare.X448:
		value, err := scalar.Clamped()
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", token.ErrUnsupported, err)
		}
		return value, scalar.Public(), nil
	}
	return scalar.Bytes(), scalar.Public(), nil
}

func rsaMaterial(a token.Algorithm, p *token.PrivateKey) (material, error) {
	key := p.RSA
	if len(key.Primes) != 2 || key.N.BitLen() != a.RSABits() || key.Validate() != nil {
		return material{}, fmt.Errorf("%w: not an %s key of two primes", token.ErrBadKey, a)
	}
	key.Precompute()
	public := []attribute{
		octets(ckaModulus, key.N.Bytes()), octets(ckaPublicExponent, bigEndian(uint64(key.E))),
	}
	return material{
		public: token.PublicKey{Algorithm: a, Octets: x509.MarshalPKCS1PublicKey(&key.PublicKey)},
		private: []attribute{
			octets(ckaModulus, key.N.Bytes()), octets(ckaPublicExponent, bigEndian(uint64(key.E))),
			octets(ckaPrivateExponent, key.D.Bytes()),
			octets(ckaPrime1, key.Primes[0].Bytes()), octets(ckaPrime2, key.Primes[1].Bytes()),
			octets(ckaExponent1, key.Precomputed.Dp.Bytes()), octets(ckaExponent2, key.Precomputed.Dq.Bytes()),
			octets(ckaCoefficient, key.Precomputed.Qinv.Bytes()),
		},
		rsaPublic: public,
	}, nil
}

// bigEndian returns a number without leading zeros.
func bigEndian(n uint64) []byte {
	var b []byte
	for ; n > 0; n >>= 8 {
		b = append([]byte{byte(n)}, b...)
	}
	return b
}
