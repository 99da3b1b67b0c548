package mesh

import (
	"crypto/hkdf"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"slices"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// SeedID is the specifier of a seed: what it is a seed of
// (draft-hallambaker-mesh-udf-13, Section 4.4).
type SeedID uint16

// The generic identifiers. Those from 1 to 10 are the algorithms, in the order of token.Algorithms.
const (
	SeedAny               SeedID = 0
	SeedProfileDevice     SeedID = 0x100
	SeedActivationDevice  SeedID = 0x101
	SeedProfileAccount    SeedID = 0x102
	SeedActivationAccount SeedID = 0x103
	SeedProfileService    SeedID = 0x104
	SeedActivationService SeedID = 0x105
)

// seedSecretLen is the length of the secret of new seeds, in octets.
const seedSecretLen = 32

// ShortSeed is the number of octets below which a seed's secret can be guessed.
const ShortSeed = 16

// SeedIDOf returns the identifier that fixes an algorithm; SeedAny for an unknown one.
func SeedIDOf(a token.Algorithm) SeedID {
	return SeedID(slices.Index(token.Algorithms(), a) + 1)
}

// Algorithm returns the algorithm that the identifier fixes, if it fixes one.
func (id SeedID) Algorithm() (token.Algorithm, bool) {
	all := token.Algorithms()
	if id == 0 || int(id) > len(all) {
		return "", false
	}
	return all[id-1], true
}

// seedNames are the names of identifiers in PrivateKeyUDF.KeyType.
func (id SeedID) name() string {
	switch id {
	case SeedAny:
		return "Any"
	case SeedProfileDevice:
		return "MeshProfileDevice"
	case SeedActivationDevice:
		return "MeshActivationDevice"
	case SeedProfileAccount:
		return "MeshProfileAccount"
	case SeedActivationAccount:
		return "MeshActivationAccount"
	case SeedProfileService:
		return "MeshProfileService"
	case SeedActivationService:
		return "MeshActivationService"
	}
	a, _ := id.Algorithm()
	return string(a)
}

// check refuses reserved identifiers and those with a key use in the top two bits,
// which the draft describes and no software writes.
func (id SeedID) check() error {
	switch {
	case id >= 0x4000:
		return fmt.Errorf("seed specifier %#04x has the top bits set: %w", uint16(id), token.ErrBadKey)
	case id > 10 && id < SeedProfileDevice, id > SeedActivationService && id < 0x200:
		return fmt.Errorf("seed identifier %d is reserved: %w", uint16(id), token.ErrBadKey)
	}
	return nil
}

// Seed is a secret from which private keys are derived. It does not print.
type Seed struct {
	octets []byte // specifier, secret
}

var errNotSeed = fmt.Errorf("UDF is not a private key seed: %w", token.ErrBadKey)

// ParseSeed reads a seed as text: Z.... Its secret has at least one octet.
func ParseSeed(text string) (*Seed, error) {
	octets, err := ParseUDF(text)
	if err != nil {
		return nil, fmt.Errorf("read seed: %w: %w", token.ErrBadKey, err)
	}
	defer clear(octets)
	if UDFType(octets[0]) != UDFSeed {
		return nil, errNotSeed
	}
	return ParseSeedOctets(octets)
}

// ParseSeedOctets reads a seed as octets: type, specifier, secret. Leading zero octets,
// which the recovery of an escrowed seed may leave, are skipped.
func ParseSeedOctets(octets []byte) (*Seed, error) {
	for len(octets) > 0 && octets[0] == 0 {
		octets = octets[1:]
	}
	if len(octets) == 0 || UDFType(octets[0]) != UDFSeed {
		return nil, errNotSeed
	}
	if len(octets) < 4 {
		return nil, fmt.Errorf("seed has no secret: %w", token.ErrBadKey)
	}
	s := &Seed{octets: slices.Clone(octets[1:])}
	if err := s.ID().check(); err != nil {
		s.Wipe()
		return nil, err
	}
	return s, nil
}

// GenerateSeed draws a seed of 256 bits.
func GenerateSeed(rand io.Reader, id SeedID) (*Seed, error) {
	if err := id.check(); err != nil {
		return nil, err
	}
	octets := binary.BigEndian.AppendUint16(make([]byte, 0, 2+seedSecretLen), uint16(id))
	octets = octets[:cap(octets)]
	if _, err := io.ReadFull(rand, octets[2:]); err != nil {
		return nil, fmt.Errorf("draw seed: %w", err)
	}
	return &Seed{octets: octets}, nil
}

// MixRandom returns a source whose octets are the exclusive or of those of all sources: as
// good as the best of them, if they do not know of each other. All must deliver.
func MixRandom(sources ...io.Reader) io.Reader { return mixed(sources) }

type mixed []io.Reader

// Read fills p or fails.
func (m mixed) Read(p []byte) (int, error) {
	if len(m) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	clear(p)
	other := make([]byte, len(p))
	defer clear(other)
	for _, source := range m {
		if _, err := io.ReadFull(source, other); err != nil {
			clear(p)
			return 0, fmt.Errorf("mix random octets: %w", err)
		}
		subtle.XORBytes(p, p, other)
	}
	return len(p), nil
}

// seed returns the seed, after a check of KeyType.
func (k *PrivateKeyUDF) seed() (*Seed, error) {
	s, err := ParseSeed(k.PrivateValue)
	if err != nil {
		return nil, err
	}
	if k.KeyType != "" && k.KeyType != s.ID().name() && knownSeedName(k.KeyType) {
		defer s.Wipe()
		return nil, fmt.Errorf("KeyType %s is not the %s of the seed: %w", k.KeyType, s.ID().name(), token.ErrBadKey)
	}
	return s, nil
}

func knownSeedName(name string) bool {
	for id := range SeedActivationService + 1 {
		if id.name() == name {
			return true
		}
	}
	return false
}

// ID returns the identifier.
func (s *Seed) ID() SeedID { return SeedID(binary.BigEndian.Uint16(s.octets)) }

// SecretLen returns the number of secret octets.
func (s *Seed) SecretLen() int { return len(s.octets) - 2 }

// Octets returns the seed as octets: type, specifier, secret. This is what is escrowed.
// The caller wipes them.
func (s *Seed) Octets() []byte { return append([]byte{byte(UDFSeed)}, s.octets...) }

// Text returns the seed itself, as text.
func (s *Seed) Text() string { return typedText(UDFSeed, s.octets) }

// String returns a fixed text, so that a seed is not printed by accident.
func (s *Seed) String() string { return "[redacted]" }

// GoString returns a fixed text.
func (s *Seed) GoString() string { return s.String() }

// Wipe overwrites the seed.
func (s *Seed) Wipe() { clear(s.octets) }

// OpaqueID returns an identifier of the seed that tells nothing of it: the content digest
// of its text with the content type PrivateKey. It is reproduced from the reference
// code; nothing published shows it.
func (s *Seed) OpaqueID() string {
	text := []byte(s.Text())
	defer clear(text)
	return UDFText(ContentDigest(text, ContentTypePrivateKey))[:udfTextLen]
}

// ConnectionPIN derives the PIN of n octets with which a preconfigured device is claimed for an
// account: E.... The reference code uses 15 octets. The seed enters as text, with its dashes.
func (s *Seed) ConnectionPIN(account string, n int) (string, error) {
	text := []byte(s.Text())
	defer clear(text)
	pin, err := hkdf.Key(sha512.New, text, nil, account, n)
	if err != nil {
		return "", fmt.Errorf("derive PIN: %w", err)
	}
	defer clear(pin)
	return SymmetricKeyUDF(pin), nil
}

// Derivation says which key to derive from a seed.
type Derivation struct {
	// Algorithm may be empty if the seed fixes one, and must be that one.
	Algorithm token.Algorithm
	// KeyName is the purpose, such as BaseDeviceEncrypt; often empty.
	KeyName string
	// Generation is G1 if zero.
	Generation Generation
}

// Derive derives a key: HKDF-SHA-512 without salt, with the seed's specifier and the key
// name as info. G2 hashes the number of the algorithm in place of the specifier. CFRG keys
// are returned as seeds; Ed448 ones have 56 octets. Two algorithms under one key name of a
// generic seed share octets in G1: do not derive both.
//
// RSA keys have the public exponent 65537; their primes are the smallest above two
// outputs, so that the modulus may be some bits short. A few seeds give no RSA key: the
// primes are equal, or e divides one of them less 1. RSA derivation is not constant time.
// NIST and RSA derivation are as drafted, with the production HKDF; the reference code has neither.
//
// The caller wipes the key. Errors wrap token.ErrBadKey.
func (s *Seed) Derive(d Derivation) (*token.PrivateKey, error) {
	a, err := s.algorithm(d.Algorithm)
	if err != nil {
		return nil, err
	}
	x, err := s.expander(a, d)
	if err != nil {
		return nil, err
	}
	defer clear(x.ikm)
	curve, ok := CurveOf(a)
	switch {
	case !ok:
		return x.rsaKey(a.RSABits() / 16)
	case curve.IsNIST():
		return x.scalarKey(a, curve)
	}
	return x.seedKey(a, curve.DeriveLen())
}

// algorithm settles which algorithm to derive for.
func (s *Seed) algorithm(asked token.Algorithm) (token.Algorithm, error) {
	if asked != "" {
		if _, err := token.ParseAlgorithm(string(asked)); err != nil {
			return "", fmt.Errorf("derive key: %w: %w", token.ErrBadKey, err)
		}
	}
	fixed, ok := s.ID().Algorithm()
	switch {
	case !ok && asked == "":
		return "", fmt.Errorf("seed of identifier %d fits any algorithm and none was given: %w", uint16(s.ID()), token.ErrBadKey)
	case !ok:
		return asked, nil
	case asked != "" && asked != fixed:
		return "", fmt.Errorf("seed is for %s, not for %s: %w", fixed, asked, token.ErrBadKey)
	}
	return fixed, nil
}

// expander is HKDF for one key.
type expander struct {
	ikm  []byte // secret
	info string
}

func (s *Seed) expander(a token.Algorithm, d Derivation) (*expander, error) {
	x := &expander{ikm: slices.Clone(s.octets), info: string(s.octets[:2]) + d.KeyName}
	switch d.Generation {
	case 0, G1:
	case G2:
		binary.BigEndian.PutUint16(x.ikm, uint16(SeedIDOf(a)))
	default:
		return nil, fmt.Errorf("derive key: unknown %v", d.Generation)
	}
	return x, nil
}

func (x *expander) expand(tag string, n int) ([]byte, error) {
	okm, err := hkdf.Key(sha512.New, x.ikm, nil, x.info+tag, n)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	return okm, nil
}

func (x *expander) seedKey(a token.Algorithm, n int) (*token.PrivateKey, error) {
	okm, err := x.expand("", n)
	if err != nil {
		return nil, err
	}
	return &token.PrivateKey{Algorithm: a, Seed: okm}, nil
}

func (x *expander) scalarKey(a token.Algorithm, curve keyshare.Curve) (*token.PrivateKey, error) {
	okm, err := x.expand("", curve.DeriveLen())
	if err != nil {
		return nil, err
	}
	defer clear(okm)
	scalar, err := keyshare.DeriveNIST(curve, okm)
	if err != nil {
		return nil, err
	}
	defer scalar.Wipe()
	return &token.PrivateKey{Algorithm: a, Scalar: scalar.Bytes()}, nil
}

const rsaExponent = 65537

// rsaKey derives a key of two primes of n octets.
func (x *expander) rsaKey(n int) (*token.PrivateKey, error) {
	one, e := big.NewInt(1), big.NewInt(rsaExponent)
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{E: rsaExponent}}
	var less []*big.Int // p-1, q-1
	for _, tag := range []string{"p", "q"} {
		okm, err := x.expand(tag, n)
		if err != nil {
			return nil, err
		}
		prime := nextPrime(new(big.Int).SetBytes(okm))
		clear(okm)
		key.Primes = append(key.Primes, prime)
		less = append(less, new(big.Int).Sub(prime, one))
	}
	key.N = new(big.Int).Mul(key.Primes[0], key.Primes[1])
	gcd := new(big.Int).GCD(nil, nil, less[0], less[1])
	lambda := new(big.Int).Div(new(big.Int).Mul(less[0], less[1]), gcd)
	if key.D = new(big.Int).ModInverse(e, lambda); key.D == nil {
		return nil, fmt.Errorf("seed gives no RSA key: the public exponent divides a prime less 1: %w", token.ErrBadKey)
	}
	return rsaKey(key, shortDerivedRSA)
}

// sieveSpan is the number of odd candidates sieved at once: a few times the expected
// distance between primes of 2048 bits.
const sieveSpan = 4096

// nextPrime returns the smallest prime above x, which is large. Candidates with a small
// factor are sieved out first.
func nextPrime(x *big.Int) *big.Int {
	small := oddPrimes(1 << 14)
	base := new(big.Int).Add(x, big.NewInt(1))
	if base.Bit(0) == 0 {
		base.Add(base, big.NewInt(1))
	}
	rest, candidate := new(big.Int), new(big.Int)
	for {
		var composite [sieveSpan]bool
		for _, p := range small {
			r := rest.Mod(base, big.NewInt(p)).Int64()
			for i := (p - r) * ((p + 1) / 2) % p; i < sieveSpan; i += p { // base + 2i = 0 mod p
				composite[i] = true
			}
		}
		for i, skip := range composite {
			if skip {
				continue
			}
			if candidate.Add(base, big.NewInt(int64(2*i))).ProbablyPrime(20) {
				return candidate
			}
		}
		base.Add(base, big.NewInt(2*sieveSpan))
	}
}

// oddPrimes returns the odd primes below limit.
func oddPrimes(limit int64) []int64 {
	composite := make([]bool, limit)
	var out []int64
	for n := int64(3); n < limit; n += 2 {
		if composite[n] {
			continue
		}
		out = append(out, n)
		for m := n * n; m < limit; m += 2 * n {
			composite[m] = true
		}
	}
	return out
}
