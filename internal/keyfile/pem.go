package keyfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/ssh"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// parsePEM reads exactly one private key block. The "EC PARAMETERS" block that OpenSSL
// writes before an EC key is skipped: the key names its curve itself.
func parsePEM(data []byte, opts Options) (*token.PrivateKey, error) {
	block, rest := pem.Decode(data)
	if block != nil && block.Type == "EC PARAMETERS" {
		data = bytes.TrimSpace(rest)
		block, rest = pem.Decode(data)
	}
	switch {
	case block == nil || !bytes.HasPrefix(data, []byte("-----BEGIN "+block.Type+"-----")):
		return nil, fmt.Errorf("malformed PEM: %w", token.ErrBadKey)
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, fmt.Errorf("more than one PEM block: %w", token.ErrBadKey)
	}
	defer clear(block.Bytes)
	if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
		return nil, fmt.Errorf("%w: %w", ErrEncrypted, token.ErrBadKey)
	}
	switch block.Type {
	case "PRIVATE KEY":
		return parsePKCS8(block.Bytes)
	case "OPENSSH PRIVATE KEY":
		return parseOpenSSH(data, opts.Passphrase)
	case "EC PRIVATE KEY":
		key, err := x509.ParseECPrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("malformed EC private key: %w", token.ErrBadKey)
		}
		return standardKey(key)
	case "RSA PRIVATE KEY":
		key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("malformed RSA private key: %w", token.ErrBadKey)
		}
		return standardKey(key)
	}
	return nil, fmt.Errorf("PEM block %.32q is not a private key: %w", block.Type, token.ErrBadKey)
}

// oneAsymmetricKey is PKCS #8 with the public key of RFC 5958.
type oneAsymmetricKey struct {
	Version    int
	Algorithm  pkix.AlgorithmIdentifier
	PrivateKey []byte
	Attributes asn1.RawValue  `asn1:"optional,tag:0"`
	PublicKey  asn1.BitString `asn1:"optional,tag:1"`
}

// cfrgAlgorithm returns the algorithm of RFC 8410, Section 3, if id is one.
func cfrgAlgorithm(id asn1.ObjectIdentifier) (token.Algorithm, bool) {
	if len(id) != 4 || !id[:3].Equal(asn1.ObjectIdentifier{1, 3, 101}) {
		return "", false
	}
	switch id[3] {
	case 110:
		return token.X25519, true
	case 111:
		return token.X448, true
	case 112:
		return token.Ed25519, true
	case 113:
		return token.Ed448, true
	}
	return "", false
}

func parsePKCS8(der []byte) (*token.PrivateKey, error) {
	var info oneAsymmetricKey
	rest, err := asn1.Unmarshal(der, &info)
	if err != nil || len(rest) != 0 {
		return nil, fmt.Errorf("malformed PKCS #8: %w", token.ErrBadKey)
	}
	defer clear(info.PrivateKey)
	if a, ok := cfrgAlgorithm(info.Algorithm.Algorithm); ok {
		return parseCFRG(a, info)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("PKCS #8 key of a kind that is not known, or malformed: %w", token.ErrBadKey)
	}
	return standardKey(key)
}

// parseCFRG reads a key of RFC 8410, Section 7: an OCTET STRING in the OCTET STRING. A
// public key beside it must be its own.
func parseCFRG(a token.Algorithm, info oneAsymmetricKey) (*token.PrivateKey, error) {
	var seed []byte
	rest, err := asn1.Unmarshal(info.PrivateKey, &seed)
	if err != nil || len(rest) != 0 || len(info.Algorithm.Parameters.FullBytes) != 0 {
		return nil, fmt.Errorf("malformed %s private key: %w", a, token.ErrBadKey)
	}
	if a == token.Ed448 && len(seed) != 57 { // 56 is the Mesh's, and not for RFC 8410
		clear(seed)
		return nil, fmt.Errorf("%s private key of %d octets: %w", a, len(seed), token.ErrBadKey)
	}
	key := &token.PrivateKey{Algorithm: a, Seed: seed}
	pub, err := mesh.PublicOf(key)
	if err != nil {
		key.Wipe()
		return nil, err
	}
	given := info.PublicKey.Bytes
	own := pub.Octets
	if a == token.X25519 || a == token.X448 {
		own = own[:len(own)-1] // RFC 7748 has no sign
	}
	if len(given) != 0 && !bytes.Equal(given, own) {
		key.Wipe()
		return nil, fmt.Errorf("public key beside the private one is another key's: %w", token.ErrBadKey)
	}
	return key, nil
}

// parseOpenSSH reads an OpenSSH private key, with a passphrase if it is encrypted.
func parseOpenSSH(data, passphrase []byte) (*token.PrivateKey, error) {
	key, err := ssh.ParseRawPrivateKey(data)
	if missing := (*ssh.PassphraseMissingError)(nil); errors.As(err, &missing) {
		if len(passphrase) == 0 {
			return nil, &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "passphrase", TriesLeft: token.TriesUnknown}
		}
		key, err = ssh.ParseRawPrivateKeyWithPassphrase(data, passphrase)
		if errors.Is(err, x509.IncorrectPasswordError) {
			return nil, &token.AuthError{Reason: token.ErrAuthWrong, Kind: "passphrase", TriesLeft: token.TriesUnknown}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("malformed OpenSSH private key, or of a kind that is not known: %w", token.ErrBadKey)
	}
	return standardKey(key)
}

// standardKey converts a key of the standard library.
func standardKey(key any) (*token.PrivateKey, error) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return mesh.RSAKey(key)
	case *ecdsa.PrivateKey:
		return nistKey(key)
	case *ed25519.PrivateKey:
		return ed25519Key(*key)
	}
	return nil, fmt.Errorf("private key of a kind that is not known: %w", token.ErrBadKey)
}

func nistKey(key *ecdsa.PrivateKey) (*token.PrivateKey, error) {
	var a token.Algorithm
	switch name := key.Curve.Params().Name; name {
	case "P-256":
		a = token.P256
	case "P-384":
		a = token.P384
	case "P-521":
		a = token.P521
	default:
		return nil, fmt.Errorf("curve %s: P-256, P-384 and P-521 are known: %w", name, token.ErrBadKey)
	}
	scalar, err := key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%s scalar is out of range: %w", a, token.ErrBadKey)
	}
	out := &token.PrivateKey{Algorithm: a, Scalar: scalar}
	pub, err := mesh.PublicOf(out)
	if err == nil {
		var given []byte
		if given, err = key.PublicKey.Bytes(); err == nil && !bytes.Equal(given, pub.Octets) {
			err = errors.New("public key beside the private one is another key's")
		}
	}
	if err != nil {
		out.Wipe()
		return nil, fmt.Errorf("%s private key: %w: %w", a, token.ErrBadKey, err)
	}
	return out, nil
}

func ed25519Key(key ed25519.PrivateKey) (*token.PrivateKey, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("Ed25519 private key of %d octets: %w", len(key), token.ErrBadKey)
	}
	seed := slices.Clone(key[:ed25519.SeedSize])
	if subtle.ConstantTimeCompare(ed25519.NewKeyFromSeed(seed), key) == 0 {
		clear(seed)
		return nil, fmt.Errorf("public key beside the private one is another key's: %w", token.ErrBadKey)
	}
	return &token.PrivateKey{Algorithm: token.Ed25519, Seed: seed}, nil
}
