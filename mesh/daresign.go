package mesh

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh/jsonb"
	"github.com/mesh-agent/mesh-agent/token"
)

// The reasons for which Verify refuses an envelope.
var (
	// ErrNotSigned says that there is no signature at all.
	ErrNotSigned = errors.New("not signed")
	// ErrPayloadDigest says that the body is not the one of the trailer's PayloadDigest.
	ErrPayloadDigest = errors.New("payload digest does not match")
	// ErrSignature says that a signature that names an accepted key does not verify.
	ErrSignature = errors.New("signature does not verify")
	// ErrSigner says that no signature is by an accepted key.
	ErrSigner = errors.New("no signature by an accepted key")
)

// DigestS512 is SHA-2-512, the one payload digest there is.
const DigestS512 = "S512"

// Trailer is what follows an envelope's body.
type Trailer struct {
	Signatures    []Signature `json:"signatures,omitzero"`
	WitnessValue  Binary      `json:",omitzero"` // G2
	PayloadDigest Binary      `json:",omitzero"` // of the body as it is there: of the ciphertext
	ChainDigest   Binary      `json:",omitzero"` // in sequences
	TreeDigest    Binary      `json:",omitzero"` // in sequences

	Other strictjson.Value `json:",embed"`
}

// Signature is one signature of a trailer.
type Signature struct {
	// Algorithm is, in G1, the name of the digest, S512; in G2 that of the signature, ED448.
	Algorithm    string            `json:"alg"`
	KeyID        string            `json:"kid,omitzero"` // UDF of the key: a claim
	SignatureKey *PublicParameters `json:",omitzero"`    // the key itself: a claim as well
	Value        Binary            `json:"signature"`
	Witness      Binary            `json:"witness,omitzero"` // G1, of encrypted envelopes

	Other strictjson.Value `json:",embed"`
}

// Generation says of which generation a signature is; false if its algorithm is not known.
func (s *Signature) Generation() (Generation, bool) {
	switch {
	case s.Algorithm == DigestS512:
		return G1, true
	case slices.Contains(signatureNames[:], s.Algorithm):
		return G2, true
	}
	return 0, false
}

// signatureNames are those of G2, of which published data has the first. The names of keys
// on NIST curves and of RSA keys are this agent's extension.
var signatureNames = [...]string{"ED448", "ED25519", "ES256", "ES384", "ES512", "RS512"}

func signatureName(a token.Algorithm, g Generation) (string, error) {
	if g == G1 {
		return DigestS512, nil
	}
	switch a {
	case token.Ed448:
		return "ED448", nil
	case token.Ed25519:
		return "ED25519", nil
	case token.P256:
		return "ES256", nil
	case token.P384:
		return "ES384", nil
	case token.P521:
		return "ES512", nil
	case token.RSA2048, token.RSA3072, token.RSA4096:
		return "RS512", nil
	}
	return "", fmt.Errorf("signature by %s key: %w", a, token.ErrUnsupported)
}

// Digest returns the SHA-2-512 digest of the body, which names the exact octets: those of
// the ciphertext if the envelope is encrypted.
func (e *Envelope) Digest() [sha512.Size]byte { return sha512.Sum512(e.Body) }

// payloadDigest returns Digest after comparison with the trailer's, if one is there.
func (e *Envelope) payloadDigest() ([]byte, error) {
	if dig := e.Header.Digest; dig != "" && dig != DigestS512 {
		return nil, fmt.Errorf("payload digest %.16q: %w", dig, token.ErrUnsupported)
	}
	digest := e.Digest()
	if t := e.Trailer; t != nil && t.PayloadDigest != nil &&
		subtle.ConstantTimeCompare(digest[:], t.PayloadDigest) == 0 {
		return nil, ErrPayloadDigest
	}
	return digest[:], nil
}

// Manifest returns the octets that signatures of generation g are made over, after the
// check of PayloadDigest: in G1 the 64 octets of the body's digest, in G2 a JSON-B string
// and binary, the digest's name and the digest, and the ChainDigest if the trailer has one.
// Errors: ErrPayloadDigest, token.ErrUnsupported for another digest.
func (e *Envelope) Manifest(g Generation) ([]byte, error) {
	digest, err := e.payloadDigest()
	if err != nil {
		return nil, err
	}
	switch g {
	case G1:
		return digest, nil
	case G2:
		out := jsonb.AppendString(nil, DigestS512)
		out = jsonb.AppendBinary(out, digest)
		if e.Trailer != nil && e.Trailer.ChainDigest != nil {
			out = jsonb.AppendBinary(out, e.Trailer.ChainDigest)
		}
		return out, nil
	}
	return nil, fmt.Errorf("sign envelope: unknown %v", g)
}

// SignedBy is a signature that verified.
type SignedBy struct {
	Key        token.PublicKey
	Generation Generation
}

// Verify verifies the signatures by the accepted keys over the exact octets of the body and
// returns who signed, in the order of the trailer. A signature whose kid names none of the
// keys, in its own generation, is passed over; one that names a key and does not verify is
// an error, and so is it if none remains. The signature says nothing of the header.
// Errors: ErrNotSigned, ErrPayloadDigest, ErrSignature, ErrSigner, token.ErrUnsupported.
func (e *Envelope) Verify(accepted ...token.PublicKey) ([]SignedBy, error) {
	if e.Trailer == nil || len(e.Trailer.Signatures) == 0 {
		return nil, ErrNotSigned
	}
	if _, err := e.payloadDigest(); err != nil {
		return nil, err
	}
	var out []SignedBy
	for i := range e.Trailer.Signatures {
		s := &e.Trailer.Signatures[i]
		g, ok := s.Generation()
		if !ok {
			continue
		}
		key, ok := namedKey(s.KeyID, g, accepted)
		if !ok {
			continue
		}
		manifest, err := e.Manifest(g)
		if err != nil {
			return nil, err
		}
		if !s.verify(key, g, manifest) {
			return nil, ErrSignature
		}
		out = append(out, SignedBy{Key: key, Generation: g})
	}
	if len(out) == 0 {
		return nil, ErrSigner
	}
	return out, nil
}

// VerifyKnown is Verify where nobody said whose signature is wanted: it returns who of the known keys signed,
// nobody if none of them did or nothing is signed. The signatures that carry their keys are verified too:
// by whom they are is a claim, but a wrong one shows that something was changed.
// Errors: those of Verify but ErrNotSigned; ErrSigner for a carried key that is not the one that is named.
func (e *Envelope) VerifyKnown(known ...token.PublicKey) ([]SignedBy, error) {
	if e.Trailer == nil || len(e.Trailer.Signatures) == 0 {
		_, err := e.payloadDigest()
		return nil, err
	}
	accepted := slices.Clone(known)
	for _, s := range e.Trailer.Signatures {
		if s.SignatureKey == nil || s.SignatureKey.Other != nil {
			continue // nothing by which it could be verified
		}
		key, err := s.SignatureKey.PublicKey()
		if err != nil {
			return nil, fmt.Errorf("SignatureKey: %w", err)
		}
		accepted = append(accepted, key)
	}
	by, err := e.Verify(accepted...)
	if errors.Is(err, ErrSigner) && len(accepted) == len(known) {
		return nil, nil
	}
	return slices.DeleteFunc(by, func(s SignedBy) bool { return !slices.ContainsFunc(known, s.Key.Equal) }), err
}

// verify reports whether the signature is the key's and its label that of the key.
func (s *Signature) verify(key token.PublicKey, g Generation, manifest []byte) bool {
	name, err := signatureName(key.Algorithm, g)
	return err == nil && name == s.Algorithm && VerifySignature(key, manifest, s.Value)
}

// SignerKeys returns the keys that the signatures carry inline, as G2 profiles do. They are
// claims of the signer: whoever uses them knows from elsewhere which keys are accepted.
func (e *Envelope) SignerKeys() ([]token.PublicKey, error) {
	if e.Trailer == nil || len(e.Trailer.Signatures) == 0 {
		return nil, ErrNotSigned
	}
	var out []token.PublicKey
	for _, s := range e.Trailer.Signatures {
		if s.SignatureKey == nil {
			return nil, fmt.Errorf("signature without SignatureKey: %w", ErrSigner)
		}
		key, err := s.SignatureKey.PublicKey()
		if err != nil {
			return nil, fmt.Errorf("SignatureKey: %w", err)
		}
		out = append(out, key)
	}
	return out, nil
}

// namedKey returns the key that a kid names in generation g, and only there.
func namedKey(kid string, g Generation, keys []token.PublicKey) (token.PublicKey, bool) {
	for _, key := range keys {
		if Names(kid, key, g) {
			return key, true
		}
	}
	return token.PublicKey{}, false
}

// Names reports whether a key id names the key in generation g: it is at least 28
// characters, without dashes, of the key's UDF in that generation.
func Names(id string, key token.PublicKey, g Generation) bool {
	prefix, err := NormalizeKeyID(id)
	if err != nil {
		return false
	}
	full, err := FullFingerprint(key, g)
	if err == nil && strings.HasPrefix(full, prefix) {
		return true
	}
	if g == G2 && key.Algorithm.RSABits() != 0 { // the one without NULL
		aliases, err := Aliases(key)
		return err == nil && strings.HasPrefix(aliases[len(aliases)-1], prefix)
	}
	return false
}

// VerifySignature reports whether a signature of the octets by a key is valid, with the
// schemes that the Mesh uses: Ed448 with an empty context, Ed25519 with dom2(0, ""), ECDSA over SHA-256,
// SHA-384 and SHA-512 by the size of the curve (ASN.1), RSA PKCS #1 v1.5 over SHA-512.
func VerifySignature(key token.PublicKey, octets, signature []byte) bool {
	if curve, ok := CurveOf(key.Algorithm); ok && !curve.IsNIST() {
		point, err := keyshare.ParsePoint(curve, key.Octets)
		return err == nil && keyshare.Verify(point, keyshare.ModeMesh, octets, signature)
	}
	standard, err := key.Standard()
	if err != nil {
		return false
	}
	switch k := standard.(type) {
	case *ecdsa.PublicKey:
		digest, err := (token.SignRequest{Hash: nistHash(key.Algorithm), Message: octets}).Digest()
		return err == nil && ecdsa.VerifyASN1(k, digest, signature)
	case *rsa.PublicKey:
		digest := sha512.Sum512(octets)
		return rsa.VerifyPKCS1v15(k, crypto.SHA512, digest[:], signature) == nil
	}
	return false
}

func nistHash(a token.Algorithm) crypto.Hash {
	switch a {
	case token.P256:
		return crypto.SHA256
	case token.P384:
		return crypto.SHA384
	}
	return crypto.SHA512
}

// SignRequest returns the request by which a token's key signs octets so that
// VerifySignature accepts the result.
func SignRequest(a token.Algorithm, octets []byte) (token.SignRequest, error) {
	switch a {
	case token.Ed25519, token.Ed448:
		return token.SignRequest{Scheme: token.SchemeMeshEdDSA, Message: octets}, nil
	case token.P256, token.P384, token.P521:
		return token.SignRequest{Scheme: token.SchemeECDSA, Hash: nistHash(a), Message: octets}, nil
	case token.RSA2048, token.RSA3072, token.RSA4096:
		return token.SignRequest{Scheme: token.SchemePKCS1v15, Hash: crypto.SHA512, Message: octets}, nil
	}
	return token.SignRequest{}, fmt.Errorf("signature by %s key: %w", a, token.ErrUnsupported)
}

// Signer is a private key that signs octets, wherever it is.
type Signer interface {
	// Public returns the public key. It does no I/O.
	Public() token.PublicKey
	// Sign signs the octets, which are the message, with the scheme that SignRequest names.
	// It may wait for a device or a person until ctx ends.
	Sign(ctx context.Context, octets []byte) ([]byte, error)
}

// SignOptions says how to sign an envelope.
type SignOptions struct {
	// Generation is G1 if zero.
	Generation Generation
	// IncludeKey puts the public key beside each signature, as G2 profiles have it.
	IncludeKey bool
	// BaseSeed is that of an encrypted envelope, for the witness that the signers knew the
	// plaintext; nil if it is not encrypted, or for an envelope without witness.
	BaseSeed []byte
}

// Sign signs the body with each of the signers, in place of what trailer there was. Each
// signature is verified before it is taken.
func (o SignOptions) Sign(ctx context.Context, e *Envelope, signers ...Signer) error {
	if o.Generation == 0 {
		o.Generation = G1
	}
	digest := e.Digest()
	e.Header.Digest, e.Trailer = DigestS512, nil
	manifest, err := e.Manifest(o.Generation)
	if err != nil {
		return err
	}
	t := &Trailer{PayloadDigest: digest[:]}
	for _, signer := range signers {
		s, err := o.signature(ctx, manifest, e.Header.Salt, signer)
		if err != nil {
			return fmt.Errorf("sign envelope: %w", err)
		}
		t.Signatures = append(t.Signatures, s)
	}
	if o.Generation == G2 && o.BaseSeed != nil {
		if t.WitnessValue, err = witness(o.BaseSeed, e.Header.Salt, manifest); err != nil {
			return err
		}
	}
	e.Trailer = t
	return nil
}

func (o SignOptions) signature(ctx context.Context, manifest, salt []byte, signer Signer) (Signature, error) {
	key := signer.Public()
	name, err := signatureName(key.Algorithm, o.Generation)
	if err != nil {
		return Signature{}, err
	}
	udf, err := Fingerprint(key, o.Generation)
	if err != nil {
		return Signature{}, err
	}
	value, err := signer.Sign(ctx, manifest)
	if err != nil {
		return Signature{}, err
	}
	if !VerifySignature(key, manifest, value) {
		return Signature{}, fmt.Errorf("the signer's signature does not verify: %w", token.ErrFault)
	}
	s := Signature{Algorithm: name, KeyID: udf, Value: value}
	if o.IncludeKey {
		parameters := ordinaryParameters(key)
		s.SignatureKey = &parameters
	}
	if o.Generation == G1 && o.BaseSeed != nil {
		if s.Witness, err = witness(o.BaseSeed, salt, value); err != nil {
			return Signature{}, err
		}
	}
	return s, nil
}

// witness shows that who made a signature of an encrypted envelope knew its base seed:
// HKDF-SHA-256 of the seed with the envelope's salt, 32 octets. The info is the signature in
// G1 and the manifest in G2.
func witness(seed, salt, info []byte) ([]byte, error) {
	out, err := hkdf.Key(sha256.New, seed, salt, string(info), 32)
	if err != nil {
		return nil, fmt.Errorf("derive witness: %w", err)
	}
	return out, nil
}

// CheckWitness compares the witnesses of an encrypted envelope, as many as there are, with
// its base seed. A wrong one means that a signature was put on a ciphertext by somebody
// who could not read it. The error is token.ErrDecrypt.
func (e *Envelope) CheckWitness(seed []byte) error {
	if e.Trailer == nil {
		return nil
	}
	check := func(given, info []byte) error {
		if given == nil {
			return nil
		}
		want, err := witness(seed, e.Header.Salt, info)
		if err != nil || subtle.ConstantTimeCompare(given, want) == 0 {
			return token.ErrDecrypt
		}
		return nil
	}
	for _, s := range e.Trailer.Signatures {
		if err := check(s.Witness, s.Value); err != nil {
			return err
		}
	}
	manifest, err := e.Manifest(G2)
	if err != nil {
		return token.ErrDecrypt
	}
	return check(e.Trailer.WitnessValue, manifest)
}
