package softkey

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"github.com/mesh-agent/mesh-agent/internal/secret"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// form says what the octets of a material are. The numbers are stored.
type form byte

const (
	formSeed   form = 1 // Ed25519 and Ed448 signing keys: token.PrivateKey.Seed
	formScalar form = 2 // a reduced scalar, token.PrivateKey.Scalar
	formRSA    form = 3 // DER RSAPrivateKey (RFC 8017, A.1.2)
)

// material is a private key in the form in which it is stored.
type material struct {
	algorithm token.Algorithm
	form      form
	octets    secret.Bytes
}

func (m material) wipe() { m.octets.Wipe() }

// generate draws a private key for a use.
func generate(a token.Algorithm, u token.Use) (material, error) {
	if bits := a.RSABits(); bits != 0 {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return material{}, err
		}
		return material{a, formRSA, x509.MarshalPKCS1PrivateKey(key)}, nil
	}
	if n := seedLen(a); n != 0 && u.Signs() {
		seed := make(secret.Bytes, n)
		if _, err := rand.Read(seed); err != nil {
			return material{}, err
		}
		return material{a, formSeed, seed}, nil
	}
	curve, err := keyshare.ParseCurve(string(a))
	if err != nil {
		return material{}, err
	}
	s, err := keyshare.RandomScalar(curve, rand.Reader)
	if err != nil {
		return material{}, err
	}
	defer s.Wipe()
	return material{a, formScalar, s.Bytes()}, nil
}

// seedLen is the length of the seed of an EdDSA key as RFC 8032 has it, 0 for other algorithms.
func seedLen(a token.Algorithm) int {
	switch a {
	case token.Ed25519:
		return 32
	case token.Ed448:
		return 57
	}
	return 0
}

// newMaterial takes a key from outside. The seed of an EdDSA signing key is kept, because
// signing needs its hash; of all others the scalar is.
func newMaterial(k *token.PrivateKey, u token.Use) (material, error) {
	if err := checkChoice(k); err != nil {
		return material{}, err
	}
	if k.RSA != nil {
		if err := checkRSA(k.RSA, k.Algorithm); err != nil {
			return material{}, err
		}
		return material{k.Algorithm, formRSA, x509.MarshalPKCS1PrivateKey(k.RSA)}, nil
	}
	given := material{k.Algorithm, formScalar, k.Scalar}
	if k.Seed != nil {
		given.form, given.octets = formSeed, k.Seed
	}
	s, err := given.scalar()
	if err != nil {
		return material{}, err
	}
	defer s.Wipe()
	if given.form == formSeed && u.Signs() {
		return material{k.Algorithm, formSeed, append(secret.Bytes(nil), k.Seed...)}, nil
	}
	return material{k.Algorithm, formScalar, s.Bytes()}, nil
}

// checkChoice wants exactly one of the ways in which a private key is given, and one that
// the algorithm has.
func checkChoice(k *token.PrivateKey) error {
	n := 0
	for _, there := range []bool{k.Seed != nil, k.Scalar != nil, k.RSA != nil} {
		if there {
			n++
		}
	}
	switch {
	case n != 1:
		return fmt.Errorf("%w: %d of seed, scalar and RSA key given, want one", token.ErrBadKey, n)
	case (k.RSA != nil) != (k.Algorithm.RSABits() != 0):
		return fmt.Errorf("%w: it is not a key of algorithm %s", token.ErrBadKey, k.Algorithm)
	}
	return nil
}

// shortRSA is by how many bits a modulus may be shorter than its algorithm says: primes
// that the Mesh derives from a seed need not have their highest bits set
// (draft-hallambaker-mesh-udf, Section 4.4.4). It is what package mesh derives at the most;
// that a key file is what it says, who reads it checks.
const shortRSA = 64

func checkRSA(k *rsa.PrivateKey, a token.Algorithm) error {
	if len(k.Primes) != 2 {
		return fmt.Errorf("%w: RSA key with %d primes", token.ErrBadKey, len(k.Primes))
	}
	if bits := k.N.BitLen(); bits > a.RSABits() || bits <= a.RSABits()-shortRSA {
		return fmt.Errorf("%w: RSA modulus of %d bits is no %s key", token.ErrBadKey, bits, a)
	}
	if err := k.Validate(); err != nil {
		return fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	return nil
}

// scalar returns the scalar of a seed or scalar. The caller wipes it.
func (m material) scalar() (*keyshare.Scalar, error) {
	curve, err := keyshare.ParseCurve(string(m.algorithm))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	var s *keyshare.Scalar
	switch m.form {
	case formScalar:
		s, err = keyshare.ParseScalar(curve, m.octets)
	case formSeed:
		var prefix []byte
		s, prefix, err = keyshare.ExpandSeed(curve, m.octets)
		clear(prefix)
	default:
		err = fmt.Errorf("form %d", m.form)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	return s, nil
}

// key makes the key of a material: of the type that can do what the use permits, and
// nothing else.
func (m material) key(u token.Use) (softKey, error) {
	switch {
	case m.algorithm.RSABits() != 0:
		return m.rsaKey(u)
	case u.Signs() && seedLen(m.algorithm) != 0:
		return m.edKey()
	case u.Signs():
		return m.ecdsaKey()
	}
	s, err := m.scalar()
	if err != nil {
		return nil, err
	}
	public := token.PublicKey{Algorithm: m.algorithm, Octets: s.Public().Bytes()}
	switch {
	case u.Agrees():
		return &agreeKey{base: base{public: public}, scalar: s}, nil
	case u == token.UseSplit:
		return &splitKey{base: base{public: public}, scalar: s}, nil
	}
	s.Wipe()
	return nil, fmt.Errorf("use %q: %w", string(u), token.ErrUnsupported)
}

func (m material) rsaKey(u token.Use) (softKey, error) {
	if m.form != formRSA {
		return nil, fmt.Errorf("%w: form %d of an RSA key", token.ErrBadKey, m.form)
	}
	k, err := x509.ParsePKCS1PrivateKey(m.octets)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	if err := checkRSA(k, m.algorithm); err != nil {
		return nil, err
	}
	public := token.PublicKey{Algorithm: m.algorithm, Octets: x509.MarshalPKCS1PublicKey(&k.PublicKey)}
	switch {
	case u.Signs():
		return &rsaSignKey{base: base{public: public}, private: k}, nil
	case u == token.UseDecrypt:
		return newRSADecryptKey(public, k), nil
	}
	return nil, fmt.Errorf("use %q: %w", string(u), token.ErrUnsupported)
}

func (m material) edKey() (softKey, error) {
	signing, err := m.signingKey()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	public := token.PublicKey{Algorithm: m.algorithm, Octets: signing.Public().Bytes()}
	return &edKey{base: base{public: public}, signing: signing}, nil
}

func (m material) signingKey() (*keyshare.SigningKey, error) {
	if m.form == formSeed {
		curve, err := keyshare.ParseCurve(string(m.algorithm))
		if err != nil {
			return nil, err
		}
		return keyshare.NewSigningKey(curve, m.octets)
	}
	s, err := m.scalar()
	if err != nil {
		return nil, err
	}
	defer s.Wipe()
	return keyshare.NewCompositeSigningKey(s)
}

func (m material) ecdsaKey() (softKey, error) {
	if m.form != formScalar {
		return nil, fmt.Errorf("%w: form %d of an ECDSA key", token.ErrBadKey, m.form)
	}
	curves := map[token.Algorithm]elliptic.Curve{token.P256: elliptic.P256(), token.P384: elliptic.P384(), token.P521: elliptic.P521()}
	k, err := ecdsa.ParseRawPrivateKey(curves[m.algorithm], m.octets)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	return &ecdsaKey{base: base{public: token.PublicKey{Algorithm: m.algorithm, Octets: point}}, private: k}, nil
}
