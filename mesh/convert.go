package mesh

import (
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"fmt"
	"math"
	"math/big"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// CurveOf returns the curve of an algorithm; false for RSA.
func CurveOf(a token.Algorithm) (keyshare.Curve, bool) {
	switch a {
	case token.X25519:
		return keyshare.X25519, true
	case token.X448:
		return keyshare.X448, true
	case token.Ed25519:
		return keyshare.Ed25519, true
	case token.Ed448:
		return keyshare.Ed448, true
	case token.P256:
		return keyshare.P256, true
	case token.P384:
		return keyshare.P384, true
	case token.P521:
		return keyshare.P521, true
	}
	return 0, false
}

// PublicOf computes the public key of a private one. The error wraps token.ErrBadKey if
// k is not a key.
func PublicOf(k *token.PrivateKey) (token.PublicKey, error) {
	if k.RSA != nil {
		return rsaPublic(&k.RSA.PublicKey)
	}
	s, err := ScalarOf(k)
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("compute public key: %w: %w", token.ErrBadKey, err)
	}
	defer s.Wipe()
	return token.PublicKey{Algorithm: k.Algorithm, Octets: s.Public().Bytes()}, nil
}

// ScalarOf returns the secret scalar of a key on a curve, which the caller wipes.
func ScalarOf(k *token.PrivateKey) (*keyshare.Scalar, error) {
	curve, ok := CurveOf(k.Algorithm)
	if !ok {
		return nil, fmt.Errorf("no %s key is given", k.Algorithm)
	}
	if k.Scalar != nil {
		return keyshare.ParseScalar(curve, k.Scalar)
	}
	if curve.IsNIST() {
		return nil, fmt.Errorf("a %s key has no seed", k.Algorithm)
	}
	s, prefix, err := keyshare.ExpandSeed(curve, k.Seed)
	clear(prefix)
	return s, err
}

// By how many bits an RSA modulus may be shorter than its algorithm says. The product of
// two primes derived from a seed is short by a few bits, hardly ever by many, and the seed
// has no other key; a file is expected to be what it says, give or take a generator that
// does not set the primes' two highest bits.
const (
	shortDerivedRSA = 64
	shortFileRSA    = 8
)

// rsaAlgorithm names the RSA algorithm of a modulus of fewer than short bits less.
func rsaAlgorithm(bits, short int) (token.Algorithm, error) {
	for _, a := range []token.Algorithm{token.RSA2048, token.RSA3072, token.RSA4096} {
		if n := a.RSABits(); n-short < bits && bits <= n {
			return a, nil
		}
	}
	return "", fmt.Errorf("RSA modulus of %d bits: 2048, 3072 and 4096 are possible: %w", bits, token.ErrBadKey)
}

func rsaPublic(pub *rsa.PublicKey) (token.PublicKey, error) {
	a, err := rsaAlgorithm(pub.N.BitLen(), shortDerivedRSA)
	if err != nil {
		return token.PublicKey{}, err
	}
	return token.PublicKey{Algorithm: a, Octets: x509.MarshalPKCS1PublicKey(pub)}, nil
}

// Parameters returns the wire form of a public key or point: signed (33 octets) for
// X25519. A pub that is not well formed gives the zero value, which does not parse.
func Parameters(pub token.PublicKey) PublicParameters {
	if pub.Algorithm.RSABits() == 0 {
		return PublicParameters{PublicKeyECDH: &PublicKeyECDH{Curve: string(pub.Algorithm), Public: pub.Octets}}
	}
	key, err := x509.ParsePKCS1PublicKey(pub.Octets)
	if err != nil {
		return PublicParameters{}
	}
	return PublicParameters{PublicKeyRSA: &PublicKeyRSA{N: key.N.Bytes(), E: big.NewInt(int64(key.E)).Bytes()}}
}

// PointParameters returns the wire form of a point.
func PointParameters(p *keyshare.Point) PublicParameters {
	return PublicParameters{PublicKeyECDH: &PublicKeyECDH{Curve: p.Curve().String(), Public: p.Bytes()}}
}

// ordinaryParameters is Parameters without the sign on X25519, as the reference code reads it.
func ordinaryParameters(pub token.PublicKey) PublicParameters {
	p := Parameters(pub)
	if p.PublicKeyECDH != nil {
		p.PublicKeyECDH.Public = pub.Ordinary()
	}
	return p
}

// check says whether exactly one member is set.
func (p PublicParameters) check() error {
	switch {
	case p.Other != nil:
		return fmt.Errorf("a public key of another kind than PublicKeyECDH and PublicKeyRSA: %w", token.ErrBadKey)
	case p.PublicKeyECDH == nil && p.PublicKeyRSA == nil:
		return fmt.Errorf("PublicKeyECDH or PublicKeyRSA is missing: %w", token.ErrBadKey)
	case p.PublicKeyECDH != nil && p.PublicKeyRSA != nil:
		return fmt.Errorf("PublicKeyECDH and PublicKeyRSA together: %w", token.ErrBadKey)
	}
	return nil
}

// PublicKey returns the key in the encoding of token.PublicKey. Points are checked with
// keyshare.ParsePoint; the error starts with its reason and wraps token.ErrBadPoint.
// X25519 without sign is taken with even v. RSA keys are 2048, 3072 or 4096 bits.
func (p PublicParameters) PublicKey() (token.PublicKey, error) {
	if err := p.check(); err != nil {
		return token.PublicKey{}, err
	}
	if p.PublicKeyRSA != nil {
		return p.PublicKeyRSA.publicKey()
	}
	point, err := p.Point()
	if err != nil {
		return token.PublicKey{}, err
	}
	return token.PublicKey{Algorithm: token.Algorithm(p.PublicKeyECDH.Curve), Octets: point.Bytes()}, nil
}

// Point returns the checked point of PublicKeyECDH, with the errors of PublicKey.
func (p PublicParameters) Point() (*keyshare.Point, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	if p.PublicKeyECDH == nil {
		return nil, fmt.Errorf("PublicKeyECDH is missing: %w", token.ErrBadKey)
	}
	curve, ok := CurveOf(token.Algorithm(p.PublicKeyECDH.Curve))
	if !ok {
		return nil, fmt.Errorf("crv %.16q is not a curve of public keys: %w", p.PublicKeyECDH.Curve, token.ErrBadKey)
	}
	point, err := keyshare.ParsePoint(curve, p.PublicKeyECDH.Public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, token.ErrBadPoint)
	}
	return point, nil
}

// same reports whether p is pub. On X25519 and X448 p may lack the sign.
func (p PublicParameters) same(pub token.PublicKey) error {
	given, err := p.PublicKey()
	if err != nil {
		return fmt.Errorf("public key beside the private one: %w", err)
	}
	a, b := given.Octets, pub.Octets
	if e := p.PublicKeyECDH; e != nil && len(e.Public) == len(b)-1 {
		a, b = e.Public, b[:len(b)-1]
	}
	if given.Algorithm != pub.Algorithm || subtle.ConstantTimeCompare(a, b) == 0 {
		return fmt.Errorf("public key beside the private one is another key's: %w", token.ErrBadKey)
	}
	return nil
}

func (k *PublicKeyRSA) publicKey() (token.PublicKey, error) {
	pub, err := k.standard()
	if err != nil {
		return token.PublicKey{}, err
	}
	return rsaPublic(pub)
}

// standard returns the key after checks of its sizes.
func (k *PublicKeyRSA) standard() (*rsa.PublicKey, error) {
	n, e := new(big.Int).SetBytes(k.N), new(big.Int).SetBytes(k.E)
	if _, err := rsaAlgorithm(n.BitLen(), shortDerivedRSA); err != nil {
		return nil, err
	}
	if n.Bit(0) == 0 {
		return nil, fmt.Errorf("RSA modulus is even: %w", token.ErrBadKey)
	}
	if e.BitLen() > 31 || e.Bit(0) == 0 || e.Int64() < 3 || e.Int64() > math.MaxInt32 {
		return nil, fmt.Errorf("RSA public exponent is not an odd number from 3 to 2^31-1: %w", token.ErrBadKey)
	}
	return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
}
