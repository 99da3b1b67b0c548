package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// key is what both kinds of key have in common.
type key struct {
	token *Token
	blob  *blob
	curve curve
}

func newKey(t *Token, b *blob) key {
	for _, c := range curves() {
		if c.algorithm == b.public.Algorithm {
			return key{token: t, blob: b, curve: c}
		}
	}
	panic("tpm: blob of unknown curve") // newBlob refuses it
}

// Public returns the public key.
func (k *key) Public() token.PublicKey {
	return token.PublicKey{Algorithm: k.blob.public.Algorithm, Octets: bytes.Clone(k.blob.public.Octets)}
}

// authorize returns the loaded key with its empty authorization value.
func (k *key) authorize(d *device) (tpm2.AuthHandle, error) {
	h, err := d.use(k.blob)
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: tpm2.PasswordAuth(nil)}, err
}

// signKey is a key that the TPM lets only sign.
type signKey struct {
	key
	standard *ecdsa.PublicKey
}

var _ token.Signer = (*signKey)(nil)

func newSignKey(t *Token, b *blob) (token.Key, error) {
	public, err := b.public.Standard()
	standard, ok := public.(*ecdsa.PublicKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, errors.Join(err, errors.New("no ECDSA key")))
	}
	return &signKey{newKey(t, b), standard}, nil
}

// Sign makes an ECDSA signature with TPM2_Sign (TPM 2.0 Part 3, 20.2) over a digest computed
// here, and verifies it before it is released.
// Errors: as token.Signer; token.ErrUnsupported also for a hash that the TPM does not have.
func (k *signKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	if req.Scheme != token.SchemeECDSA {
		return nil, fmt.Errorf("tpm: sign: scheme %d: %w", req.Scheme, token.ErrUnsupported)
	}
	digest, err := req.Digest()
	if err != nil {
		return nil, fmt.Errorf("tpm: sign: %w", err)
	}
	signature, err := do(ctx, k.token, "sign", func(d *device) (*tpm2.TPMSSignatureECC, error) {
		return k.sign(d, req.Hash, digest)
	})
	if err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(signature.SignatureR.Buffer), new(big.Int).SetBytes(signature.SignatureS.Buffer),
	})
	if err != nil {
		return nil, fmt.Errorf("tpm: sign: %w", err)
	}
	if !ecdsa.VerifyASN1(k.standard, digest, der) {
		return nil, fmt.Errorf("tpm: sign: %w: signature does not verify", token.ErrFault)
	}
	return der, nil
}

func (k *signKey) sign(d *device, hash crypto.Hash, digest []byte) (*tpm2.TPMSSignatureECC, error) {
	h, err := k.authorize(d)
	if err != nil {
		return nil, err
	}
	rsp, err := run(d, tpm2.Sign{
		KeyHandle:  h,
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   ecdsaScheme(hash),
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	})
	switch {
	case errors.Is(err, tpm2.TPMRCScheme), errors.Is(err, tpm2.TPMRCHash),
		errors.Is(err, tpm2.TPMRCValue), errors.Is(err, tpm2.TPMRCSize):
		return nil, fmt.Errorf("%v: %w: %w", hash, token.ErrUnsupported, err)
	case err != nil:
		return nil, err
	}
	signature, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	return signature, nil
}

func ecdsaScheme(hash crypto.Hash) tpm2.TPMTSigScheme {
	id := map[crypto.Hash]tpm2.TPMAlgID{
		crypto.SHA256: tpm2.TPMAlgSHA256, crypto.SHA384: tpm2.TPMAlgSHA384, crypto.SHA512: tpm2.TPMAlgSHA512,
	}[hash]
	return tpm2.TPMTSigScheme{
		Scheme:  tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: id}),
	}
}

// agreeKey is a key that the TPM lets only agree.
type agreeKey struct {
	key
	points keyshare.Curve
}

var _ token.PointAgreer = (*agreeKey)(nil)

func newAgreeKey(t *Token, b *blob) (token.Key, error) {
	points, err := keyshare.ParseCurve(string(b.public.Algorithm))
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	return &agreeKey{newKey(t, b), points}, nil
}

// AgreePoint multiplies the peer's point with TPM2_ECDH_ZGen (TPM 2.0 Part 3, 14.5) and returns
// the point in the uncompressed form of SEC 1, checked to be on the curve. That the peer's
// point is on the curve, the TPM checks.
func (k *agreeKey) AgreePoint(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	size := k.curve.size
	if len(req.Peer) != 1+2*size || req.Peer[0] != 4 {
		return nil, fmt.Errorf("tpm: agree: %w: not an uncompressed point on %s", token.ErrBadPoint, k.curve.algorithm)
	}
	peer := tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: bytes.Clone(req.Peer[1 : 1+size])},
		Y: tpm2.TPM2BECCParameter{Buffer: bytes.Clone(req.Peer[1+size:])},
	}
	point, err := do(ctx, k.token, "agree", func(d *device) (*tpm2.TPMSECCPoint, error) { return k.agree(d, peer) })
	if err != nil {
		return nil, err
	}
	octets, err := k.curve.encode(point)
	if err == nil {
		_, err = keyshare.ParsePoint(k.points, octets)
	}
	clear(point.X.Buffer)
	clear(point.Y.Buffer)
	if err != nil {
		return nil, fmt.Errorf("tpm: agree: %w: %w", token.ErrFault, err)
	}
	return octets, nil
}

func (k *agreeKey) agree(d *device, peer tpm2.TPMSECCPoint) (*tpm2.TPMSECCPoint, error) {
	h, err := k.authorize(d)
	if err != nil {
		return nil, err
	}
	rsp, err := run(d, tpm2.ECDHZGen{KeyHandle: h, InPoint: tpm2.New2B(peer)})
	if errors.Is(err, tpm2.TPMRCECCPoint) {
		return nil, fmt.Errorf("%w: %w", token.ErrBadPoint, err)
	}
	if err != nil {
		return nil, err
	}
	point, err := rsp.OutPoint.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	return point, nil
}
