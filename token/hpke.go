package token

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"errors"
	"fmt"
)

// EncryptTo encrypts to a P-256 key of UseSeal: HPKE base mode (RFC 9180) with HKDF-SHA256
// and AES-256-GCM. A token that agrees but does not encrypt seals so. Errors: ErrBadKey.
func EncryptTo(public PublicKey, info, secret []byte) ([]byte, error) {
	p, err := p256(public)
	if err != nil {
		return nil, err
	}
	to, err := hpke.NewDHKEMPublicKey(p)
	if err != nil {
		return nil, err
	}
	return hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES256GCM(), info, secret)
}

// DecryptWith opens what EncryptTo made with the private key, which is an Agreer or a
// PointAgreer. Errors: those of the key, ErrBadKey, and ErrCorrupt if it does not open.
func DecryptWith(ctx context.Context, key Key, auth Auth, info, ciphertext []byte) ([]byte, error) {
	public, err := p256(key.Public())
	if err != nil {
		return nil, err
	}
	e := &exchanger{ctx: ctx, auth: auth, key: key, public: public}
	private, err := hpke.NewDHKEMPrivateKey(e)
	if err != nil {
		return nil, err
	}
	secret, err := hpke.Open(private, hpke.HKDFSHA256(), hpke.AES256GCM(), info, ciphertext)
	if e.err != nil {
		return nil, e.err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: it does not open", ErrCorrupt)
	}
	return secret, nil
}

func p256(public PublicKey) (*ecdh.PublicKey, error) {
	if public.Algorithm != P256 {
		return nil, fmt.Errorf("%w: a P256 key is needed", ErrBadKey)
	}
	p, err := ecdh.P256().NewPublicKey(public.Octets)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadKey, err)
	}
	return p, nil
}

// exchanger is a token's P-256 key in the shape of the standard library, for one operation.
type exchanger struct {
	ctx    context.Context
	auth   Auth
	key    Key
	public *ecdh.PublicKey
	err    error // that the token returned
}

var _ ecdh.KeyExchanger = (*exchanger)(nil)

// PublicKey returns the public half.
func (e *exchanger) PublicKey() *ecdh.PublicKey { return e.public }

// Curve returns P-256.
func (e *exchanger) Curve() ecdh.Curve { return ecdh.P256() }

// ECDH agrees in the token and returns the x-coordinate. A point that the token refuses came
// with the ciphertext and is no error of the token.
func (e *exchanger) ECDH(peer *ecdh.PublicKey) ([]byte, error) {
	x, err := agreeX(e.ctx, e.key, AgreeRequest{Peer: peer.Bytes(), Auth: e.auth})
	if err != nil && !errors.Is(err, ErrBadPoint) {
		e.err = err
	}
	return x, err
}

// agreeX returns the x-coordinate of an agreement on a NIST curve.
func agreeX(ctx context.Context, key Key, req AgreeRequest) ([]byte, error) {
	switch k := key.(type) {
	case Agreer:
		return k.Agree(ctx, req)
	case PointAgreer:
		point, err := k.AgreePoint(ctx, req)
		if err != nil {
			return nil, err
		}
		return point[1 : 1+(len(point)-1)/2], nil
	}
	return nil, fmt.Errorf("agree with the key: %w", ErrUnsupported)
}
