package device

import (
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Operation is what one of a device's or an account's keys is for, as it stands in the
// names by which keys are derived from seeds.
type Operation string

// The operations. A device has keys for the first three under a root for Profile.
const (
	Encrypt      Operation = "Encrypt"
	Sign         Operation = "Sign"
	Authenticate Operation = "Authenticate"
	Profiling    Operation = "Profile"
	AdminSign    Operation = "AdminSign"
	AdminEncrypt Operation = "AdminEncrypt"
	Escrow       Operation = "Escrow"
)

// Operations are those for which a device has a base key, a contribution and their sum.
func Operations() []Operation { return []Operation{Encrypt, Sign, Authenticate} }

// Algorithm returns the algorithm that the Mesh uses for the operation by default: Ed448 or X448.
func (o Operation) Algorithm() token.Algorithm {
	switch o {
	case Profiling, Sign, AdminSign:
		return token.Ed448
	}
	return token.X448
}

// The names of keys, of which there are no separators (draft-hallambaker-mesh-schema-08, Section
// 6.1, lacks the formula; this is what published keys have).
const (
	actorDevice = "Device"
	actorHost   = "Host"
)

func baseName(actor string, o Operation) string       { return "Base" + actor + string(o) }
func activationName(actor string, o Operation) string { return "Activation" + actor + string(o) }
func accountName(o Operation) string                  { return "CompleteAccount" + string(o) }

// Algorithms says which algorithms to use where they are not the default ones. What a seed is for does not follow from
// the seed: the profile says it, or the record that the seed came in (PrivateKeyUDF).
type Algorithms map[Operation]token.Algorithm

func (a Algorithms) of(o Operation) token.Algorithm {
	if alg, ok := a[o]; ok {
		return alg
	}
	return o.Algorithm()
}

// ParseSeedRecord reads {"PrivateKeyUDF":{...}}, in which the reference code keeps seeds, with the algorithms that it
// names. The caller wipes the seed.
func ParseSeedRecord(text []byte) (*mesh.Seed, Algorithms, error) {
	k, err := mesh.ParseKeyData(text)
	if err != nil {
		return nil, nil, err
	}
	if k.PrivateParameters == nil {
		return nil, nil, fmt.Errorf("parse seed record: no PrivateKeyUDF: %w", token.ErrBadKey)
	}
	defer k.PrivateParameters.Wipe()
	seed, err := k.PrivateParameters.Seed()
	if err != nil {
		return nil, nil, err
	}
	r, out := k.PrivateParameters.PrivateKeyUDF, Algorithms{}
	for o, name := range map[Operation]string{Encrypt: r.AlgorithmEncrypt, Sign: r.AlgorithmSign, Authenticate: r.AlgorithmAuthenticate} {
		if name == "" {
			continue
		}
		out[o] = token.Algorithm(name)
		if err := checkPurpose(token.PublicKey{Algorithm: out[o]}, o); err != nil {
			seed.Wipe()
			return nil, nil, fmt.Errorf("parse seed record: %w", err)
		}
	}
	return seed, out, nil
}

// DeviceKey derives a base key of a device, or with Profiling its root key, from its seed,
// whose identifier must be mesh.SeedProfileDevice. An empty algorithm is the default one.
// The caller wipes the key.
func DeviceKey(seed *mesh.Seed, o Operation, a token.Algorithm, g mesh.Generation) (*token.PrivateKey, error) {
	return derive(seed, mesh.SeedProfileDevice, o, a, baseName(actorDevice, o), g)
}

// AccountKey derives a key of an account from its seed, whose identifier must be
// mesh.SeedProfileAccount. An empty algorithm is the default one. The caller wipes the key.
func AccountKey(seed *mesh.Seed, o Operation, a token.Algorithm, g mesh.Generation) (*token.PrivateKey, error) {
	return derive(seed, mesh.SeedProfileAccount, o, a, accountName(o), g)
}

// StoreKey derives the key to which one of an account's stores is encrypted. The resource
// is one of Stores. An empty algorithm is the default one. The caller wipes the key.
func StoreKey(seed *mesh.Seed, resource string, a token.Algorithm, g mesh.Generation) (*token.PrivateKey, error) {
	return derive(seed, mesh.SeedProfileAccount, Encrypt, a, accountName(Encrypt)+resource, g)
}

func derive(seed *mesh.Seed, id mesh.SeedID, o Operation, a token.Algorithm, name string, g mesh.Generation) (*token.PrivateKey, error) {
	if seed.ID() != id {
		return nil, fmt.Errorf("derive %s: seed of identifier %#x, %#x is expected: %w", name, uint16(seed.ID()), uint16(id), token.ErrBadKey)
	}
	if a == "" {
		a = o.Algorithm()
	}
	return seed.Derive(mesh.Derivation{Algorithm: a, KeyName: name, Generation: g})
}

// Stores returns the names of an account's stores: those that every device may be given,
// and those of administrators. G1 names begin with MMM_, those of G2 do not.
func Stores(g mesh.Generation) (all, administrators []string) {
	all = []string{"Contact", "Publication", "Inbound", "Outbound", "Network", "Application", "Credential", "Task", "Bookmark"}
	administrators = []string{"Device", "Access", "Local"}
	if g == mesh.G1 {
		for _, names := range [][]string{all, administrators} {
			for i := range names {
				names[i] = "MMM_" + names[i]
			}
		}
	}
	return all, administrators
}

// readKey checks a public KeyData as signed objects hold it: no private part, a good point
// or modulus, a Udf that is the key's own in generation g, and a time at which it is valid.
func readKey(k *mesh.KeyData, g mesh.Generation, now time.Time) (token.PublicKey, error) {
	if k.PrivateParameters != nil {
		k.PrivateParameters.Wipe()
		return token.PublicKey{}, fmt.Errorf("private key where a public one is expected: %w", token.ErrBadKey)
	}
	pub, err := k.PublicKey()
	if err != nil {
		return token.PublicKey{}, err
	}
	if e := k.PublicParameters.PublicKeyECDH; e != nil && pub.Algorithm == token.X448 && len(e.Public) != len(pub.Octets) {
		return token.PublicKey{}, fmt.Errorf("X448 key of %d octets, without the sign that sums need: %w", len(e.Public), token.ErrBadKey)
	}
	if k.Udf != "" && !mesh.Names(k.Udf, pub, g) {
		return token.PublicKey{}, fmt.Errorf("member Udf is that of another generation: %w", token.ErrBadKey)
	}
	return pub, k.CheckValidity(now)
}

// checkPurpose refuses keys that cannot do an operation. Edwards curves may stand in for
// Montgomery ones (draft-hallambaker-mesh-cryptography-08, Section 3.2); RSA has no sums.
func checkPurpose(pub token.PublicKey, o Operation) error {
	montgomery := pub.Algorithm == token.X25519 || pub.Algorithm == token.X448
	signs := o == Sign || o == Profiling || o == AdminSign
	if pub.Algorithm.RSABits() != 0 || signs && montgomery {
		return fmt.Errorf("%s key cannot be one for %s: %w", pub.Algorithm, o, token.ErrBadKey)
	}
	return nil
}

// sameKey reports whether two checked keys are one. X25519 keys that travelled without
// their sign are compared without it.
func sameKey(a, b token.PublicKey) bool {
	return a.Equal(b) || a.Algorithm == token.X25519 && a.Index() == b.Index()
}

// CombinePublic adds the public keys of two contributions.
func CombinePublic(a, b token.PublicKey) (token.PublicKey, error) {
	curve, ok := mesh.CurveOf(a.Algorithm)
	if !ok || a.Algorithm != b.Algorithm {
		return token.PublicKey{}, fmt.Errorf("combine %s and %s key: %w", a.Algorithm, b.Algorithm, token.ErrBadKey)
	}
	var points []*keyshare.Point
	for _, pub := range []token.PublicKey{a, b} {
		p, err := keyshare.ParsePoint(curve, pub.Octets)
		if err != nil {
			return token.PublicKey{}, fmt.Errorf("combine keys: %w: %w", err, token.ErrBadPoint)
		}
		points = append(points, p)
	}
	sum, err := keyshare.Combine(points...)
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("combine keys: %w: %w", err, token.ErrBadPoint)
	}
	return token.PublicKey{Algorithm: a.Algorithm, Octets: sum.Bytes()}, nil
}

// CombinePrivate adds two private keys on one curve: the scalar modulo the group order, to be
// used as it is and never clamped. The caller wipes all three.
func CombinePrivate(a, b *token.PrivateKey) (*token.PrivateKey, error) {
	x, err := mesh.ScalarOf(a)
	if err != nil {
		return nil, fmt.Errorf("combine keys: %w: %w", token.ErrBadKey, err)
	}
	defer x.Wipe()
	y, err := mesh.ScalarOf(b)
	if err != nil {
		return nil, fmt.Errorf("combine keys: %w: %w", token.ErrBadKey, err)
	}
	defer y.Wipe()
	sum, err := x.Add(y)
	if err != nil {
		return nil, fmt.Errorf("combine keys: %w: %w", token.ErrBadKey, err)
	}
	defer sum.Wipe()
	return &token.PrivateKey{Algorithm: a.Algorithm, Scalar: sum.Bytes()}, nil
}

// SplitSeed splits a seed into shares for escrow, the whole of it with its type octet, of
// which threshold recover it, and recovers it from every choice of neighbouring shares
// before it returns them. Device seeds are refused: a lost device is replaced, not recovered
// (draft-hallambaker-mesh-schema-08, Section 3.2.1).
func SplitSeed(rand io.Reader, seed *mesh.Seed, threshold, n int) ([]string, error) {
	if seed.ID() == mesh.SeedProfileDevice {
		return nil, fmt.Errorf("split seed: devices are not escrowed: %w", token.ErrUnsupported)
	}
	secret := seed.Octets()
	defer clear(secret)
	shares, err := mesh.SplitSecret(rand, secret, threshold, n)
	if err != nil {
		return nil, err
	}
	ring := append(slices.Clone(shares), shares...)
	for i := range shares {
		back, err := mesh.RecoverSecret(ring[i : i+threshold]...)
		same := slices.Equal(back, secret)
		clear(back)
		if err != nil || !same {
			return nil, fmt.Errorf("split seed: shares do not recover it: %w", token.ErrFault)
		}
	}
	return shares, nil
}

// RecoverSeed recovers a seed from its shares.
func RecoverSeed(shares ...string) (*mesh.Seed, error) {
	secret, err := mesh.RecoverSecret(shares...)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return mesh.ParseSeedOctets(secret)
}

// CheckEscrow says whether a key of an operation may be escrowed: those that decrypt
// stored data may, those for authentication should not and here are not, and signature keys must not
// (draft-hallambaker-mesh-schema-08, Section 8.1.1).
func CheckEscrow(o Operation) error {
	switch o {
	case Encrypt, AdminEncrypt, Escrow:
		return nil
	}
	return fmt.Errorf("escrow of a key for %s: %w", o, token.ErrUnsupported)
}
