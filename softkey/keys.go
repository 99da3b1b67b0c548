package softkey

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"

	"github.com/mesh-agent/mesh-agent/internal/rsapad"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// softKey is an open key. Close wipes it; operations that run end before.
type softKey interface {
	token.Key
	io.Closer
	onClose(func())
}

var (
	_ token.Signer            = (*edKey)(nil)
	_ token.Signer            = (*ecdsaKey)(nil)
	_ token.Signer            = (*rsaSignKey)(nil)
	_ token.Decrypter         = (*rsaDecryptKey)(nil)
	_ token.ScaledPointAgreer = (*agreeKey)(nil)
	_ token.Splitter          = (*splitKey)(nil)
)

// base is what all keys have: the public key and the end of their use.
type base struct {
	public token.PublicKey

	mu     sync.RWMutex // held for reading while the secret is in use
	closed bool         // guarded by mu
	after  func()       // what to do when closed; set before the key is handed out
}

// Public returns the public key.
func (b *base) Public() token.PublicKey { return b.public }

func (b *base) onClose(f func()) { b.after = f }

// begin starts a use of the secret; the caller calls end if it succeeds.
func (b *base) begin(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.RLock()
	if b.closed {
		b.mu.RUnlock()
		return token.ErrClosed
	}
	return nil
}

func (b *base) end() { b.mu.RUnlock() }

// close calls wipe when nobody uses the secret, once.
func (b *base) close(wipe func()) error {
	b.mu.Lock()
	first := !b.closed
	if first {
		b.closed = true
		wipe()
	}
	b.mu.Unlock()
	if first && b.after != nil {
		b.after()
	}
	return nil
}

// edKey is an Ed25519 or Ed448 key, of a seed or composite.
type edKey struct {
	base
	signing *keyshare.SigningKey
}

// Sign makes an EdDSA signature.
func (k *edKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	mode, err := edMode(req)
	if err != nil {
		return nil, err
	}
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	return k.signing.Sign(rand.Reader, mode, req.Message)
}

// Close wipes the key.
func (k *edKey) Close() error { return k.close(k.signing.Wipe) }

func edMode(req token.SignRequest) (keyshare.Mode, error) {
	if req.Hash != 0 {
		return 0, fmt.Errorf("EdDSA over a hash: %w", token.ErrUnsupported)
	}
	switch req.Scheme {
	case token.SchemeEdDSA:
		return keyshare.ModePure, nil
	case token.SchemeMeshEdDSA:
		return keyshare.ModeMesh, nil
	}
	return 0, badScheme(req)
}

// ecdsaKey is a signing key on a NIST curve.
type ecdsaKey struct {
	base
	private *ecdsa.PrivateKey
}

// Sign makes an ECDSA signature. The nonce is drawn by the standard library from
// randomness, key and digest together, so that a bad generator alone is no danger.
func (k *ecdsaKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	if req.Scheme != token.SchemeECDSA {
		return nil, badScheme(req)
	}
	digest, err := req.Digest()
	if err != nil {
		return nil, err
	}
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	return ecdsa.SignASN1(rand.Reader, k.private, digest)
}

// Close forgets the key. The standard library gives no way to overwrite it.
func (k *ecdsaKey) Close() error { return k.close(func() { k.private = nil }) }

// rsaSignKey is an RSA key that signs.
type rsaSignKey struct {
	base
	private *rsa.PrivateKey
}

// Sign makes a PKCS #1 v1.5 or PSS signature.
func (k *rsaSignKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	if req.Scheme != token.SchemePKCS1v15 && req.Scheme != token.SchemePSS {
		return nil, badScheme(req)
	}
	digest, err := req.Digest()
	if err != nil {
		return nil, err
	}
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	if req.Scheme == token.SchemePSS {
		return rsa.SignPSS(rand.Reader, k.private, req.Hash, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	return rsa.SignPKCS1v15(rand.Reader, k.private, req.Hash, digest)
}

// Close forgets the key. The standard library gives no way to overwrite it.
func (k *rsaSignKey) Close() error { return k.close(func() { k.private = nil }) }

// rsaDecryptKey is an RSA key that decrypts.
type rsaDecryptKey struct {
	base
	private  *rsa.PrivateKey
	fallback [sha256.Size]byte // as rsapad.Fallback has it
}

func newRSADecryptKey(public token.PublicKey, private *rsa.PrivateKey) *rsaDecryptKey {
	d := private.D.FillBytes(make([]byte, private.Size()))
	defer clear(d)
	return &rsaDecryptKey{base: base{public: public}, private: private, fallback: sha256.Sum256(d)}
}

// Decrypt opens an OAEP or PKCS #1 v1.5 ciphertext.
func (k *rsaDecryptKey) Decrypt(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	if err := rsapad.Check(&k.private.PublicKey, req); err != nil {
		return nil, err
	}
	if req.Padding == token.PaddingPKCS1v15 {
		return k.decryptPKCS1v15(req)
	}
	plain, err := rsa.DecryptOAEP(rsapad.NewHash(req.Hash)(), nil, k.private, req.Ciphertext, req.Label)
	if err != nil {
		return nil, token.ErrDecrypt
	}
	return plain, nil
}

// decryptPKCS1v15 has the standard library put the plaintext over what stands in for it. Its only
// errors are those of a ciphertext or length that Check refuses.
func (k *rsaDecryptKey) decryptPKCS1v15(req token.DecryptRequest) ([]byte, error) {
	out := rsapad.Fallback(k.fallback, req.Ciphertext, req.Length)
	//lint:ignore SA1019 mail needs it, and what stands in does not change from try to try
	if err := rsa.DecryptPKCS1v15SessionKey(nil, k.private, req.Ciphertext, out); err != nil {
		clear(out)
		return nil, token.ErrDecrypt
	}
	return out, nil
}

// Close forgets the key. The standard library gives no way to overwrite it.
func (k *rsaDecryptKey) Close() error {
	return k.close(func() {
		k.private = nil
		clear(k.fallback[:])
	})
}

// agreeKey is a key that takes part in key agreement, on any curve.
type agreeKey struct {
	base
	scalar *keyshare.Scalar
}

// AgreePoint multiplies the peer's point, which it checks, by the private scalar.
func (k *agreeKey) AgreePoint(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	return k.agree(ctx, req, nil)
}

// AgreeScaled multiplies by the coefficient too.
func (k *agreeKey) AgreeScaled(ctx context.Context, req token.AgreeRequest, coefficient []byte) ([]byte, error) {
	c, err := keyshare.ParseCoefficient(k.scalar.Curve(), coefficient)
	if err != nil {
		return nil, fmt.Errorf("coefficient: %w: %w", token.ErrBadRequest, err)
	}
	defer c.Wipe()
	return k.agree(ctx, req, c)
}

func (k *agreeKey) agree(ctx context.Context, req token.AgreeRequest, coefficient *keyshare.Scalar) ([]byte, error) {
	curve := k.scalar.Curve()
	if len(req.Peer) != curve.PointLen() { // ParsePoint takes some points without sign
		return nil, fmt.Errorf("%w: %w", token.ErrBadPoint, keyshare.ErrLength)
	}
	peer, err := keyshare.ParsePoint(curve, req.Peer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadPoint, err)
	}
	point, err := k.MultiplyPoint(ctx, peer, coefficient)
	if err != nil {
		return nil, err
	}
	return point.Bytes(), nil
}

// MultiplyPoint returns (coefficient * private) * peer for a point that is checked
// already; a nil coefficient is 1.
func (k *agreeKey) MultiplyPoint(ctx context.Context, peer *keyshare.Point, coefficient *keyshare.Scalar) (*keyshare.Point, error) {
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	return keyshare.PartialAgreement(k.scalar, coefficient, peer)
}

// Close wipes the key.
func (k *agreeKey) Close() error { return k.close(k.scalar.Wipe) }

// splitKey is a key that can be split and nothing else.
type splitKey struct {
	base
	scalar *keyshare.Scalar
}

// Split draws a fresh splitting.
func (k *splitKey) Split(ctx context.Context, threshold, n int) ([]token.Share, error) {
	if threshold < 2 || threshold > n || n > token.MaxShares {
		return nil, fmt.Errorf("%w: threshold %d of %d shares, want 2 <= threshold <= shares <= %d",
			token.ErrBadRequest, threshold, n, token.MaxShares)
	}
	if err := k.begin(ctx); err != nil {
		return nil, err
	}
	defer k.end()
	shares, err := split(k.scalar, threshold, n)
	if err != nil {
		return nil, fmt.Errorf("split key: %w", err)
	}
	out := make([]token.Share, n)
	for i, s := range shares {
		out[i] = token.Share{X: s.X, Scalar: s.Scalar.Bytes(), Public: s.Scalar.Public().Bytes()}
		s.Scalar.Wipe()
	}
	return out, nil
}

func split(s *keyshare.Scalar, threshold, n int) ([]keyshare.Share, error) {
	if threshold == n {
		return keyshare.SplitDirect(s, n, rand.Reader)
	}
	return keyshare.SplitShamir(s, threshold, n, rand.Reader)
}

// Close wipes the key.
func (k *splitKey) Close() error { return k.close(k.scalar.Wipe) }

func badScheme(req token.SignRequest) error {
	return fmt.Errorf("signature scheme %d with this key: %w", req.Scheme, token.ErrUnsupported)
}
