// Package keyfile reads private key files of every kind that the agent takes: Mesh seeds
// and KeyData, PKCS #8 and its older relatives in PEM, OpenSSH private keys.
//
// It reads octets, not files, writes nothing and keeps nothing. It does not open
// encrypted PKCS #8 and reads no certificates. Errors name what is wrong and hold nothing
// of the input.
package keyfile

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// MaxSize bounds a key file, in octets. An RSA-4096 KeyData with a certificate chain is
// about a quarter of it.
const MaxSize = 64 << 10

// ErrEncrypted says that a file is encrypted in a way that is not supported here.
var ErrEncrypted = errors.New("encrypted PEM is not supported")

// Options is what a file alone does not say. The zero value adds nothing.
type Options struct {
	// Algorithm is needed for seeds that fix none; otherwise it must agree.
	Algorithm token.Algorithm
	// KeyName enters the derivation of a key from a seed; other files have no place for it.
	KeyName string
	// Generation of the derivation from a seed; G1 if zero.
	Generation mesh.Generation
	// Passphrase of an encrypted OpenSSH key.
	Passphrase []byte
	// Now is the time at which a KeyData must be valid; the present if zero.
	Now time.Time
}

// Parse reads any accepted private key file; white space around it is ignored. The
// result has Algorithm set and exactly one of Seed, Scalar and RSA; the caller wipes it.
// Warnings are sentences for people.
//
// Errors wrap token.ErrBadKey, and ErrEncrypted for encrypted PEM; an OpenSSH key whose passphrase is
// missing or wrong is a *token.AuthError.
func Parse(data []byte, opts Options) (key *token.PrivateKey, warnings []string, err error) {
	if len(data) > MaxSize {
		return nil, nil, fmt.Errorf("read key file: more than %d octets: %w", MaxSize, token.ErrBadKey)
	}
	key, warnings, err = parse(bytes.TrimSpace(data), opts)
	if err != nil {
		return nil, nil, fmt.Errorf("read key file: %w", err)
	}
	if err := opts.agree(key.Algorithm); err != nil {
		key.Wipe()
		return nil, nil, fmt.Errorf("read key file: %w", err)
	}
	return key, warnings, nil
}

func parse(data []byte, opts Options) (*token.PrivateKey, []string, error) {
	switch {
	case len(data) == 0:
		return nil, nil, fmt.Errorf("nothing is there: %w", token.ErrBadKey)
	case data[0] == '[':
		return nil, nil, fmt.Errorf("this is an envelope, which must be opened first: %w", token.ErrBadKey)
	case data[0] == '{':
		return parseKeyData(data, opts)
	case bytes.HasPrefix(data, []byte("-----BEGIN ")):
		if opts.KeyName != "" {
			return nil, nil, errKeyName
		}
		key, err := parsePEM(data, opts)
		return key, nil, err
	}
	seed, err := mesh.ParseSeed(string(data))
	if err != nil {
		return nil, nil, fmt.Errorf("neither PEM nor JSON nor a seed: %w", err)
	}
	return derive(seed, opts)
}

var errKeyName = fmt.Errorf("a key name is for seeds, and this is none: %w", token.ErrBadKey)

// agree refuses a key of another algorithm than was asked for.
func (o Options) agree(a token.Algorithm) error {
	if o.Algorithm != "" && o.Algorithm != a {
		return fmt.Errorf("key is of algorithm %s, not %.16s: %w", a, string(o.Algorithm), token.ErrBadKey)
	}
	return nil
}

// derive derives the key of a seed, and wipes the seed.
func derive(seed *mesh.Seed, opts Options) (*token.PrivateKey, []string, error) {
	defer seed.Wipe()
	key, err := seed.Derive(mesh.Derivation{Algorithm: opts.Algorithm, KeyName: opts.KeyName, Generation: opts.Generation})
	if err != nil {
		return nil, nil, err
	}
	var warnings []string
	if n := seed.SecretLen(); n < mesh.ShortSeed {
		warnings = append(warnings, fmt.Sprintf("the seed has %d octets of secret; fewer than %d can be guessed", n, mesh.ShortSeed))
	}
	return key, warnings, nil
}

func parseKeyData(data []byte, opts Options) (*token.PrivateKey, []string, error) {
	k, err := mesh.ParseKeyData(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	if k.PrivateParameters == nil {
		return nil, nil, fmt.Errorf("KeyData has no private key: %w", token.ErrBadKey)
	}
	defer k.PrivateParameters.Wipe()
	now := opts.Now
	if now.IsZero() {
		now = time.Now()
	}
	if err := k.CheckValidity(now); err != nil {
		return nil, nil, err
	}
	key, warnings, err := privateKey(k, opts)
	if err != nil {
		return nil, nil, err
	}
	if err := checkKeyData(k, key); err != nil {
		key.Wipe()
		return nil, nil, err
	}
	return key, warnings, nil
}

func privateKey(k *mesh.KeyData, opts Options) (*token.PrivateKey, []string, error) {
	if k.PrivateParameters.PrivateKeyUDF == nil {
		if opts.KeyName != "" {
			return nil, nil, errKeyName
		}
		key, err := k.PrivateParameters.PrivateKey()
		return key, nil, err
	}
	seed, err := k.PrivateParameters.Seed()
	if err != nil {
		return nil, nil, err
	}
	if _, fixed := seed.ID().Algorithm(); !fixed && k.PublicParameters == nil {
		k.Udf = "" // a profile's name: the seed has keys of many names, not one
	}
	return derive(seed, opts)
}

// checkKeyData refuses what stands beside a private key and is not its own.
func checkKeyData(k *mesh.KeyData, key *token.PrivateKey) error {
	if k.Udf == "" && k.PublicParameters == nil {
		return nil
	}
	pub, err := mesh.PublicOf(key)
	if err != nil {
		return err
	}
	return k.Check(pub)
}
