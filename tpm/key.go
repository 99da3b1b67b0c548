package tpm

import (
	"bytes"
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// key is what all kinds of key have in common.
type key struct {
	token *Token
	blob  *blob
}

// newKey returns a key that can do one thing.
func newKey(t *Token, b *blob, p purpose) (token.Key, error) {
	if b.key.Algorithm.RSABits() != 0 {
		if p == purposeSign {
			return newRSASigner(t, b)
		}
		return newRSADecrypter(t, b)
	}
	c, err := keyshare.ParseCurve(string(b.key.Algorithm))
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	public, err := keyshare.ParsePoint(c, b.key.Octets)
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	if p == purposeSign {
		return newECDSASigner(t, b, public)
	}
	return &agreer{key{token: t, blob: b}, b.curve(), c}, nil
}

// Public returns the public key.
func (k *key) Public() token.PublicKey {
	return token.PublicKey{Algorithm: k.blob.key.Algorithm, Octets: bytes.Clone(k.blob.key.Octets)}
}

// operate gives one command on the key, which is all that is given if the key is loaded
// and the token unlocked.
func (k *key) operate(ctx context.Context, what string, auth token.Auth, cc tpm2.TPMCC, a tpm2Attributes, parameters []byte) ([]byte, error) {
	o, err := k.token.pin.offerTo(&k.blob.object, auth)
	if err != nil {
		return nil, fmt.Errorf("tpm: %s: %w", what, err)
	}
	defer o.wipe()
	out, err := do(ctx, k.token, what, func(d *device) ([]byte, error) {
		value, err := o.keyValue(d, k.blob.valueName())
		if err != nil {
			return nil, err
		}
		defer clear(value)
		h, err := d.use(&k.blob.object)
		if err != nil {
			return nil, err
		}
		out, err := d.operate(cc, h, d.authorize(value, a), parameters)
		return out, k.token.pin.used(&k.blob.object, o, err)
	})
	k.token.pin.learn(auth.PIN, err)
	return out, err
}

// sign gives TPM2_Sign (TPM 2.0 Part 3, 20.2) and returns what follows algorithm and hash
// in the TPMT_SIGNATURE.
func (k *key) sign(ctx context.Context, req token.SignRequest, scheme tpm2.TPMAlgID) (digest, signature []byte, err error) {
	if digest, err = req.Digest(); err != nil {
		return nil, nil, fmt.Errorf("tpm: sign: %w", err)
	}
	algorithms := binary.BigEndian.AppendUint16(nil, uint16(scheme))
	algorithms = binary.BigEndian.AppendUint16(algorithms, uint16(hashID(req.Hash)))
	parameters := append(sized(digest), algorithms...)
	parameters = binary.BigEndian.AppendUint16(parameters, uint16(tpm2.TPMSTHashCheck)) // no ticket
	parameters = binary.BigEndian.AppendUint32(parameters, uint32(tpm2.TPMRHNull))
	parameters = appendSized(parameters, nil)
	out, err := k.operate(ctx, "sign", req.Auth, tpm2.TPMCCSign, inward, parameters)
	switch {
	case errors.Is(err, tpm2.TPMRCScheme), errors.Is(err, tpm2.TPMRCHash),
		errors.Is(err, tpm2.TPMRCValue), errors.Is(err, tpm2.TPMRCSize):
		return nil, nil, fmt.Errorf("%v: %w: %w", req.Hash, token.ErrUnsupported, err)
	case err != nil:
		return nil, nil, err
	}
	signature, ok := bytes.CutPrefix(out, algorithms)
	if !ok {
		return nil, nil, fmt.Errorf("tpm: sign: %w: not the signature that was asked for", token.ErrFault)
	}
	return digest, signature, nil
}

func hashID(h crypto.Hash) tpm2.TPMAlgID {
	switch h {
	case crypto.SHA256:
		return tpm2.TPMAlgSHA256
	case crypto.SHA384:
		return tpm2.TPMAlgSHA384
	}
	return tpm2.TPMAlgSHA512
}

// ecdsaSigner is a key that signs.
type ecdsaSigner struct {
	key
	verifier *keyshare.ECDSAVerifier
}

var _ token.Signer = (*ecdsaSigner)(nil)

func newECDSASigner(t *Token, b *blob, p *keyshare.Point) (token.Key, error) {
	v, err := keyshare.NewECDSAVerifier(p)
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	return &ecdsaSigner{key{token: t, blob: b}, v}, nil
}

// Sign makes an ECDSA signature over a digest computed here, and verifies it before it is
// released: the session proves that it is the TPM's, not that the TPM computed it right.
// Errors: as token.Signer; token.ErrUnsupported also for a hash that the TPM does not have.
func (k *ecdsaSigner) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	if req.Scheme != token.SchemeECDSA {
		return nil, fmt.Errorf("tpm: sign: scheme %d: %w", req.Scheme, token.ErrUnsupported)
	}
	digest, out, err := k.sign(ctx, req, tpm2.TPMAlgECDSA)
	if err != nil {
		return nil, err
	}
	r, rest, errR := cut(out)
	s, rest, errS := cut(rest)
	if errR != nil || errS != nil || len(rest) != 0 {
		return nil, fmt.Errorf("tpm: sign: %w: signature of a wrong form", token.ErrFault)
	}
	if !k.verifier.Verify(digest, r, s) {
		return nil, fmt.Errorf("tpm: sign: %w: signature does not verify", token.ErrFault)
	}
	return keyshare.MarshalECDSA(r, s), nil
}

// agreer is a key that agrees.
type agreer struct {
	key
	curve  curve
	points keyshare.Curve
}

var _ token.PointAgreer = (*agreer)(nil)

// curve returns the curve of a key that has one.
func (b *blob) curve() curve {
	i := slices.IndexFunc(curves(), func(c curve) bool { return c.algorithm == b.key.Algorithm })
	return curves()[i]
}

// AgreePoint multiplies the peer's point with TPM2_ECDH_ZGen (TPM 2.0 Part 3, 14.5) and returns
// the point in the uncompressed form of SEC 1, checked to be on the curve. That the peer's
// point is on the curve, the TPM checks.
func (k *agreer) AgreePoint(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	size := k.curve.size
	if len(req.Peer) != 1+2*size || req.Peer[0] != 4 {
		return nil, fmt.Errorf("tpm: agree: %w: not an uncompressed point on %s", token.ErrBadPoint, k.curve.algorithm)
	}
	peer := appendSized(appendSized(nil, req.Peer[1:1+size]), req.Peer[1+size:])
	out, err := k.operate(ctx, "agree", req.Auth, tpm2.TPMCCECDHZGen, bothway, sized(peer))
	if errors.Is(err, tpm2.TPMRCECCPoint) {
		return nil, fmt.Errorf("%w: %w", token.ErrBadPoint, err)
	}
	if err != nil {
		return nil, err
	}
	defer clear(out)
	octets, err := k.parsePoint(out)
	if err != nil {
		return nil, fmt.Errorf("tpm: agree: %w: %w", token.ErrFault, err)
	}
	return octets, nil
}

// parsePoint reads a TPM2B_ECC_POINT.
func (k *agreer) parsePoint(out []byte) ([]byte, error) {
	point, err := unsized(out)
	if err != nil {
		return nil, err
	}
	x, rest, err := cut(point)
	if err != nil {
		return nil, err
	}
	y, err := unsized(rest)
	if err != nil {
		return nil, err
	}
	octets, err := k.curve.encode(x, y)
	if err != nil {
		return nil, err
	}
	if _, err := keyshare.ParsePoint(k.points, octets); err != nil {
		return nil, err
	}
	return octets, nil
}
