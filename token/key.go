package token

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	_ "crypto/sha256" // for Digest
	_ "crypto/sha512" // for Digest
	"crypto/x509"
	"fmt"
)

// PublicKey is a public key in one fixed encoding per algorithm:
//
//	X25519   33 octets, u little endian, then 0x00 (v even) or 0x80 (v odd)
//	X448     57 octets, likewise
//	Ed25519  32 octets, Ed448 57 octets: RFC 8032
//	P256     65 octets, P384 97, P521 133: SEC 1 uncompressed
//	RSA      DER RSAPublicKey (RFC 8017, A.1.1)
type PublicKey struct {
	Algorithm Algorithm
	Octets    []byte
}

// Equal reports whether p and q are the same key in the same encoding.
func (p PublicKey) Equal(q PublicKey) bool {
	return p.Algorithm == q.Algorithm && bytes.Equal(p.Octets, q.Octets)
}

// Ordinary returns the encoding used outside threshold work: that of Octets, but
// 32 octets for X25519, which everybody else writes without a sign.
func (p PublicKey) Ordinary() []byte {
	if p.Algorithm == X25519 && len(p.Octets) == 33 {
		return p.Octets[:32]
	}
	return p.Octets
}

// Index returns the name by which keys are found: SHA-256 of the algorithm, a zero
// octet and the ordinary encoding. X25519 keys that differ only in sign have one index.
func (p PublicKey) Index() [32]byte {
	h := sha256.New()
	h.Write([]byte(p.Algorithm))
	h.Write([]byte{0})
	h.Write(p.Ordinary())
	return [32]byte(h.Sum(nil))
}

// Standard returns the key as the standard library has it: ed25519.PublicKey,
// *ecdsa.PublicKey, *rsa.PublicKey, or *ecdh.PublicKey for X25519. X448 and Ed448
// give ErrUnsupported. Points on NIST curves are checked to be on the curve.
func (p PublicKey) Standard() (crypto.PublicKey, error) {
	switch p.Algorithm {
	case Ed25519:
		if len(p.Octets) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("Ed25519 public key of %d octets: %w", len(p.Octets), ErrBadKey)
		}
		return ed25519.PublicKey(p.Octets), nil
	case X25519:
		return ecdh.X25519().NewPublicKey(p.Ordinary())
	case P256:
		return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), p.Octets)
	case P384:
		return ecdsa.ParseUncompressedPublicKey(elliptic.P384(), p.Octets)
	case P521:
		return ecdsa.ParseUncompressedPublicKey(elliptic.P521(), p.Octets)
	case RSA2048, RSA3072, RSA4096:
		return x509.ParsePKCS1PublicKey(p.Octets)
	}
	return nil, fmt.Errorf("the standard library has no %s: %w", p.Algorithm, ErrUnsupported)
}

// PrivateKey is a private key in the clear, on its way into a token. Exactly one of
// Seed, Scalar and RSA is set. Whoever made it wipes it.
type PrivateKey struct {
	Algorithm Algorithm
	// Seed is the private key before clamping or hashing: X25519 32 octets and X448 56
	// (RFC 7748, Section 5, not yet clamped); Ed25519 32 octets, Ed448 57 or, as the
	// Mesh has it, 56 (RFC 8032, Sections 5.1.5 and 5.2.5).
	Seed []byte
	// Scalar is a raw scalar, taken as it is and never clamped: little endian 32 octets
	// (X25519, Ed25519) or 56 (X448, Ed448), big endian 32, 48, 66 on the NIST curves.
	// It is reduced modulo the group order on import; zero is refused.
	Scalar []byte
	// RSA is a precomputed and validated RSA key.
	RSA *rsa.PrivateKey
}

// Wipe overwrites the secret octets. It cannot reach the integers inside RSA.
func (k *PrivateKey) Wipe() {
	clear(k.Seed)
	clear(k.Scalar)
	k.RSA = nil
}

// Scheme names a way to sign.
type Scheme uint8

// The schemes. The zero value is none.
const (
	// SchemeEdDSA is pure Ed25519 (RFC 8032, 5.1) or Ed448 with an empty context (5.2).
	SchemeEdDSA Scheme = iota + 1
	// SchemeMeshEdDSA is Ed25519 with dom2(F=0, empty context), which RFC 8032 discourages and the
	// Mesh uses; on Ed448 it is the same as SchemeEdDSA.
	SchemeMeshEdDSA
	// SchemeECDSA is ECDSA over SignRequest.Hash, ASN.1 DER.
	SchemeECDSA
	// SchemePKCS1v15 is RSASSA-PKCS1-v1_5 over SignRequest.Hash.
	SchemePKCS1v15
	// SchemePSS is RSASSA-PSS over SignRequest.Hash with a salt as long as the hash.
	SchemePSS
)

// SignRequest asks for a signature over Message.
type SignRequest struct {
	Scheme Scheme
	// Hash is SHA-256, SHA-384 or SHA-512; zero for EdDSA.
	Hash crypto.Hash
	// Message is hashed by the agent's side of the backend; EdDSA takes it whole.
	Message []byte
	Auth    Auth
}

// Digest returns Hash over Message, or ErrUnsupported for a hash that is none of SHA-256, SHA-384 and SHA-512.
func (r SignRequest) Digest() ([]byte, error) {
	switch r.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
		h := r.Hash.New()
		h.Write(r.Message)
		return h.Sum(nil), nil
	}
	return nil, fmt.Errorf("hash %v: %w", r.Hash, ErrUnsupported)
}
