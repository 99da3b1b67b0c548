package applet

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"math/big"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/token"
)

// algorithm is a key's algorithm on the card (SP 800-78-4, Table 6-2, and Yubico's extensions).
type algorithm struct {
	id     byte
	name   token.Algorithm
	octets int // of a coordinate or modulus
}

func algorithms() []algorithm {
	return []algorithm{
		{0x11, token.P256, 32},
		{0x14, token.P384, 48},
		{0x07, token.RSA2048, 256},
		{0x05, token.RSA3072, 384},
		{0x16, token.RSA4096, 512},
		{0xE0, token.Ed25519, 32},
		{0xE1, token.X25519, 32},
	}
}

func lookUp(match func(algorithm) bool) (algorithm, error) {
	for _, a := range algorithms() {
		if match(a) {
			return a, nil
		}
	}
	return algorithm{}, fmt.Errorf("algorithm that PIV does not have: %w", token.ErrUnsupported)
}

func named(name token.Algorithm) (algorithm, error) {
	return lookUp(func(a algorithm) bool { return a.name == name })
}

// Algorithms returns what a card of this version makes keys of.
func Algorithms(v Version) []token.Algorithm {
	out := []token.Algorithm{token.P256, token.P384, token.RSA2048}
	if v.AtLeast(5, 7) {
		out = append(out, token.RSA3072, token.RSA4096, token.Ed25519, token.X25519)
	}
	return out
}

// The data objects inside keys and cryptographic exchanges.
const (
	tagTemplate  apdu.Tag = 0x7C // dynamic authentication template
	tagWitness   apdu.Tag = 0x80
	tagChallenge apdu.Tag = 0x81
	tagResponse  apdu.Tag = 0x82
	tagPeer      apdu.Tag = 0x85

	tagPublicKey   apdu.Tag = 0x7F49
	tagPoint       apdu.Tag = 0x86
	tagModulus     apdu.Tag = 0x81
	tagExponent    apdu.Tag = 0x82
	tagRequest     apdu.Tag = 0xAC
	tagMechanism   apdu.Tag = 0x80
	tagPolicyPIN   apdu.Tag = 0xAA
	tagPolicyTouch apdu.Tag = 0xAB
)

// Generate makes a key in a slot, over what was there. The management key must have been presented.
func (a Applet) Generate(ctx context.Context, s Slot, name token.Algorithm, p token.Policy) (token.PublicKey, error) {
	alg, err := named(name)
	if err != nil {
		return token.PublicKey{}, err
	}
	policy, err := encodePolicy(p)
	if err != nil {
		return token.PublicKey{}, err
	}
	request := append(apdu.Append(nil, tagMechanism, []byte{alg.id}), policy...)
	b, err := a.send(ctx, insGenerate, 0, byte(s), apdu.Append(nil, tagRequest, request))
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("generate key in slot %v: %w", s, err)
	}
	if b, err = apdu.Unwrap(b, tagPublicKey); err != nil {
		return token.PublicKey{}, fmt.Errorf("generate key in slot %v: %w", s, err)
	}
	return parsePublic(alg, b)
}

// Import puts a private key into a slot, over what was there: the scalar of P256 and P384 (big endian), the
// seed of Ed25519, the private key of X25519, or an RSA key. The management key must have been presented.
func (a Applet) Import(ctx context.Context, s Slot, name token.Algorithm, private []byte, key *rsa.PrivateKey, p token.Policy) error {
	alg, err := named(name)
	if err != nil {
		return err
	}
	policy, err := encodePolicy(p)
	if err != nil {
		return err
	}
	data := make([]byte, 0, 5*alg.octets/2+64)
	defer func() { clear(data[:cap(data)]) }()
	switch name {
	case token.P256, token.P384:
		data = apdu.Append(data, 0x06, private)
	case token.Ed25519:
		data = apdu.Append(data, 0x07, private)
	case token.X25519:
		data = apdu.Append(data, 0x08, private)
	default:
		data = appendRSA(data, alg.octets/2, key)
	}
	_, err = a.send(ctx, insImport, alg.id, byte(s), append(data, policy...))
	return explain("import key into slot "+s.String(), err)
}

// appendRSA appends p, q, d mod p-1, d mod q-1 and 1/q mod p, each of n octets.
func appendRSA(b []byte, n int, k *rsa.PrivateKey) []byte {
	for i, v := range []*big.Int{k.Primes[0], k.Primes[1], k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv} {
		octets := v.FillBytes(make([]byte, n))
		b = apdu.Append(b, apdu.Tag(1+i), octets)
		clear(octets)
	}
	return b
}

// Delete destroys the key in a slot (version 5.7 and later).
func (a Applet) Delete(ctx context.Context, s Slot) error {
	const nowhere = 0xFF
	_, err := a.send(ctx, insMoveKey, nowhere, byte(s), nil)
	return explain("delete key in slot "+s.String(), err)
}

// Compute gives input to a key: a digest (ECDSA: as many octets as the curve has, or fewer), a
// message (Ed25519), a padded block or ciphertext (RSA).
func (a Applet) Compute(ctx context.Context, s Slot, name token.Algorithm, input []byte) ([]byte, error) {
	return a.compute(ctx, s, name, tagChallenge, input)
}

// Agree gives a peer's point to a key, in its uncompressed form or, for X25519, 32 octets. It
// returns the x- or u-coordinate.
func (a Applet) Agree(ctx context.Context, s Slot, name token.Algorithm, peer []byte) ([]byte, error) {
	return a.compute(ctx, s, name, tagPeer, peer)
}

func (a Applet) compute(ctx context.Context, s Slot, name token.Algorithm, tag apdu.Tag, input []byte) ([]byte, error) {
	alg, err := named(name)
	if err != nil {
		return nil, err
	}
	b := apdu.Append(apdu.Append(nil, tagResponse, nil), tag, input)
	out, err := a.authenticate(ctx, alg.id, byte(s), b)
	if err != nil {
		return nil, fmt.Errorf("use key in slot %v: %w", s, err)
	}
	return out.one(tagResponse)
}

// template is the contents of a dynamic authentication template.
type template map[apdu.Tag][]byte

// authenticate is GENERAL AUTHENTICATE (Part 2, 3.2.4).
func (a Applet) authenticate(ctx context.Context, algorithm, key byte, request []byte) (template, error) {
	b, err := a.send(ctx, insAuthenticate, algorithm, key, apdu.Append(nil, tagTemplate, request))
	if err != nil {
		return nil, err
	}
	if b, err = apdu.Unwrap(b, tagTemplate); err != nil {
		return nil, err
	}
	return apdu.ParseAll(b)
}

// one returns the one object that a template must hold.
func (t template) one(tag apdu.Tag) ([]byte, error) {
	v, ok := t[tag]
	if !ok || len(t) != 1 {
		return nil, fmt.Errorf("%w: %d objects, not one %X", apdu.ErrMalformed, len(t), uint32(tag))
	}
	return v, nil
}

// parsePublic decodes the contents of a public key object and checks the key.
func parsePublic(alg algorithm, b []byte) (token.PublicKey, error) {
	objects, err := apdu.ParseAll(b)
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	public := token.PublicKey{Algorithm: alg.name}
	if alg.name.RSABits() != 0 {
		public.Octets, err = rsaOctets(alg, objects)
	} else {
		public.Octets, err = pointOctets(alg, objects)
	}
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("public key: %w: %w", apdu.ErrMalformed, err)
	}
	return public, nil
}

func rsaOctets(alg algorithm, objects map[apdu.Tag][]byte) ([]byte, error) {
	modulus, exponent := objects[tagModulus], objects[tagExponent]
	n := new(big.Int).SetBytes(modulus)
	if len(objects) != 2 || len(modulus) != alg.octets || n.BitLen() != alg.name.RSABits() || n.Bit(0) == 0 {
		return nil, fmt.Errorf("not a modulus of %d bits", alg.name.RSABits())
	}
	if len(exponent) == 0 || len(exponent) > 4 {
		return nil, fmt.Errorf("exponent of %d octets", len(exponent))
	}
	e := new(big.Int).SetBytes(exponent).Int64()
	if e < 3 || e > 1<<31-1 || e%2 == 0 {
		return nil, fmt.Errorf("exponent %d", e)
	}
	return x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: n, E: int(e)}), nil
}

func pointOctets(alg algorithm, objects map[apdu.Tag][]byte) ([]byte, error) {
	point, ok := objects[tagPoint]
	if !ok || len(objects) != 1 {
		return nil, fmt.Errorf("no point")
	}
	want := alg.octets
	if alg.name == token.P256 || alg.name == token.P384 {
		want = 1 + 2*alg.octets
	}
	if len(point) != want {
		return nil, fmt.Errorf("point of %d octets", len(point))
	}
	octets := bytes.Clone(point)
	if alg.name == token.X25519 {
		octets = append(octets, 0) // the card tells u only: the even v of the two
	}
	_, err := token.PublicKey{Algorithm: alg.name, Octets: octets}.Standard()
	return octets, err
}

func curveOf(c elliptic.Curve) token.Algorithm {
	switch c {
	case elliptic.P256():
		return token.P256
	case elliptic.P384():
		return token.P384
	}
	return ""
}
