package mesh

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// EnvelopeOptions says how to make an envelope.
type EnvelopeOptions struct {
	// Generation is G1 if zero.
	Generation Generation
	// Rand is crypto/rand.Reader if nil.
	Rand io.Reader
	// ID is the EnvelopeId.
	ID string
	// Meta goes into the header, in the clear.
	Meta ContentMeta
	// Recipients can read the body; with none it is not encrypted.
	Recipients []token.PublicKey
	// Encryption is A256CBC if empty and there are recipients.
	Encryption string
	// Signers sign what is there after encryption; none is allowed.
	Signers []Signer
	// IncludeKey puts the signers' public keys beside the signatures.
	IncludeKey bool
}

// NewEnvelope puts a body into an envelope: encrypted if there are recipients, then signed
// if there are signers, with the witness that belongs to an encrypted and signed one.
func NewEnvelope(ctx context.Context, body []byte, o EnvelopeOptions) (*Envelope, error) {
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	e, seed := &Envelope{Body: body}, []byte(nil)
	if len(o.Recipients) > 0 {
		var err error
		e, seed, err = EncryptOptions{Encryption: o.Encryption, Generation: o.Generation}.encrypt(o.Rand, body, o.Recipients)
		if err != nil {
			return nil, err
		}
		defer clear(seed)
	}
	e.Header.EnvelopeID = o.ID
	if !o.Meta.isZero() {
		if err := e.Header.setMeta(o.Meta); err != nil {
			return nil, fmt.Errorf("make envelope: %w", err)
		}
	}
	if len(o.Signers) == 0 {
		return e, nil
	}
	sign := SignOptions{Generation: o.Generation, IncludeKey: o.IncludeKey, BaseSeed: seed}
	return e, sign.Sign(ctx, e, o.Signers...)
}

// Agreer is a private key that multiplies points, wherever it is.
type Agreer interface {
	// Public returns the public key. It does no I/O.
	Public() token.PublicKey
	// Agree returns the whole agreement with peer, a point on the key's curve. It may wait
	// for a device or a person until ctx ends.
	Agree(ctx context.Context, peer *keyshare.Point) (*keyshare.Point, error)
}

// maxNamed is how many entries that name one key are tried: whoever writes an envelope has a token work for each.
// More than one is unusual.
const maxNamed = 16

// ErrNotRecipient says that an envelope names no recipient entry for a key.
var ErrNotRecipient = errors.New("not encrypted to this key")

// Decrypt opens an encrypted envelope with the key that one of its recipient entries names, in
// either generation, and compares the witnesses. Signatures are not verified: the caller
// does so before. Errors: ErrNotRecipient; token.ErrDecrypt for whatever is wrong with the
// wrapped seed, the ciphertext, the digest or a witness; those of the key.
func (e *Envelope) Decrypt(ctx context.Context, key Agreer) ([]byte, error) {
	return e.decrypt(ctx, key, e.Open)
}

// DecryptToParse is Decrypt with OpenToParse.
func (e *Envelope) DecryptToParse(ctx context.Context, key Agreer) ([]byte, error) {
	return e.decrypt(ctx, key, e.OpenToParse)
}

func (e *Envelope) decrypt(ctx context.Context, key Agreer, open func(seed []byte) ([]byte, error)) ([]byte, error) {
	pub := key.Public()
	named := 0
	for _, r := range e.Header.Recipients {
		if !Names(r.KeyID, pub, G1) && !Names(r.KeyID, pub, G2) {
			continue
		}
		if named++; named > maxNamed {
			break
		}
		seed, err := r.baseSeed(ctx, key)
		if errors.Is(err, token.ErrDecrypt) {
			continue // another entry may have the right one
		}
		if err != nil {
			return nil, err
		}
		defer clear(seed)
		if err := e.CheckWitness(seed); err != nil {
			return nil, err
		}
		return open(seed)
	}
	if named > 0 {
		return nil, token.ErrDecrypt
	}
	return nil, ErrNotRecipient
}

// baseSeed unwraps the base seed.
func (r *Recipient) baseSeed(ctx context.Context, key Agreer) ([]byte, error) {
	peer, err := r.EphemeralKey.Point()
	if err != nil || peer.Curve().String() != string(key.Public().Algorithm) {
		return nil, token.ErrDecrypt
	}
	agreement, err := key.Agree(ctx, peer)
	if err != nil {
		return nil, err
	}
	return UnwrapSeed(agreement, "", r.WrappedKey)
}

// LocalKey is a private key in this process's memory: a Signer if it is a key for
// signatures and an Agreer on any curve. What is in a token has implementations of its own.
type LocalKey struct {
	public  token.PublicKey
	scalar  *keyshare.Scalar
	signing *keyshare.SigningKey // Ed25519, Ed448
}

var (
	_ Signer = (*LocalKey)(nil)
	_ Agreer = (*LocalKey)(nil)
)

// NewLocalKey copies a private key on a curve. The caller wipes both. A bare Ed25519 or
// Ed448 scalar signs as keyshare.NewCompositeSigningKey does.
func NewLocalKey(key *token.PrivateKey) (*LocalKey, error) {
	scalar, err := ScalarOf(key)
	if err != nil {
		return nil, fmt.Errorf("open key: %w: %w", token.ErrBadKey, err)
	}
	k := &LocalKey{public: token.PublicKey{Algorithm: key.Algorithm, Octets: scalar.Public().Bytes()}, scalar: scalar}
	if a := key.Algorithm; a == token.Ed25519 || a == token.Ed448 {
		if key.Seed != nil {
			k.signing, err = keyshare.NewSigningKey(scalar.Curve(), key.Seed)
		} else {
			k.signing, err = keyshare.NewCompositeSigningKey(scalar)
		}
	}
	if err != nil {
		scalar.Wipe()
		return nil, fmt.Errorf("open key: %w: %w", token.ErrBadKey, err)
	}
	return k, nil
}

// Public returns the public key.
func (k *LocalKey) Public() token.PublicKey { return k.public }

// Sign implements Signer. Other keys than Ed25519 and Ed448 give token.ErrUnsupported.
func (k *LocalKey) Sign(_ context.Context, octets []byte) ([]byte, error) {
	if k.signing == nil {
		return nil, fmt.Errorf("sign with %s key: %w", k.public.Algorithm, token.ErrUnsupported)
	}
	return k.signing.Sign(nil, keyshare.ModeMesh, octets)
}

// Agree implements Agreer.
func (k *LocalKey) Agree(_ context.Context, peer *keyshare.Point) (*keyshare.Point, error) {
	return keyshare.Agree(k.scalar, peer)
}

// Wipe overwrites the secrets.
func (k *LocalKey) Wipe() {
	k.scalar.Wipe()
	if k.signing != nil {
		k.signing.Wipe()
	}
}
