package tokentest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"

	"github.com/mesh-agent/mesh-agent/internal/rsapad"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// object is a private key in a Fake. scalar is set on the curves, signing on the
// Edwards curves, rsa for RSA.
type object struct {
	public     token.PublicKey
	scalar     *keyshare.Scalar
	signing    *keyshare.SigningKey
	rsa        *rsa.PrivateKey
	use        token.Use
	associated []byte
}

func (o *object) Public() token.PublicKey {
	return token.PublicKey{Algorithm: o.public.Algorithm, Octets: bytes.Clone(o.public.Octets)}
}

func generateObject(a token.Algorithm) (*object, error) {
	if bits := a.RSABits(); bits != 0 {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return nil, err
		}
		return rsaObject(a, k), nil
	}
	c, err := keyshare.ParseCurve(string(a))
	if err != nil {
		return nil, err
	}
	if a == token.Ed25519 || a == token.Ed448 {
		seed := make([]byte, c.PointLen())
		rand.Read(seed)
		return seedObject(a, c, seed)
	}
	s, err := keyshare.RandomScalar(c, rand.Reader)
	if err != nil {
		return nil, err
	}
	return scalarObject(a, c, s.Bytes())
}

func importObject(k *token.PrivateKey) (*object, error) {
	if k.Algorithm.RSABits() != 0 {
		if k.RSA == nil || k.Seed != nil || k.Scalar != nil || k.RSA.N.BitLen() != k.Algorithm.RSABits() {
			return nil, errors.New("no RSA key of this length")
		}
		return rsaObject(k.Algorithm, k.RSA), k.RSA.Validate()
	}
	c, err := keyshare.ParseCurve(string(k.Algorithm))
	if err != nil {
		return nil, err
	}
	switch {
	case k.RSA != nil || (k.Seed == nil) == (k.Scalar == nil):
		return nil, errors.New("not exactly one of seed and scalar")
	case k.Seed != nil:
		return seedObject(k.Algorithm, c, k.Seed)
	}
	return scalarObject(k.Algorithm, c, k.Scalar)
}

func rsaObject(a token.Algorithm, k *rsa.PrivateKey) *object {
	return &object{public: token.PublicKey{Algorithm: a, Octets: x509.MarshalPKCS1PublicKey(&k.PublicKey)}, rsa: k}
}

func seedObject(a token.Algorithm, c keyshare.Curve, seed []byte) (*object, error) {
	s, _, err := keyshare.ExpandSeed(c, seed)
	if err != nil {
		return nil, err
	}
	o := &object{public: token.PublicKey{Algorithm: a, Octets: s.Public().Bytes()}, scalar: s}
	if a == token.Ed25519 || a == token.Ed448 {
		o.signing, err = keyshare.NewSigningKey(c, seed)
	}
	return o, err
}

func scalarObject(a token.Algorithm, c keyshare.Curve, octets []byte) (*object, error) {
	s, err := keyshare.ParseScalar(c, octets)
	if err != nil {
		return nil, err
	}
	o := &object{public: token.PublicKey{Algorithm: a, Octets: s.Public().Bytes()}, scalar: s}
	if a == token.Ed25519 || a == token.Ed448 {
		o.signing, err = keyshare.NewCompositeSigningKey(s)
	}
	return o, err
}

// fakeKey is what the kinds of key have in common.
type fakeKey struct {
	*object
	fake   *Fake
	handle []byte
}

// run does an operation if the key is still in the token.
func (k *fakeKey) run(ctx context.Context, op Op, auth needsPIN, effect func() ([]byte, error)) ([]byte, error) {
	var out []byte
	err := k.fake.run(ctx, op, auth, func() error {
		_, err := k.fake.memory.find(k.handle)
		if err == nil {
			out, err = effect()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

type (
	signKey       struct{ fakeKey }
	agreeKey      struct{ fakeKey }
	pointAgreeKey struct{ fakeKey }
	decryptKey    struct{ fakeKey }
	splitKey      struct{ fakeKey }
)

var (
	_ token.Signer      = (*signKey)(nil)
	_ token.Agreer      = (*agreeKey)(nil)
	_ token.PointAgreer = (*pointAgreeKey)(nil)
	_ token.Decrypter   = (*decryptKey)(nil)
	_ token.Splitter    = (*splitKey)(nil)
)

func (f *Fake) keyOf(o *object, handle []byte) token.Key {
	k := fakeKey{object: o, fake: f, handle: bytes.Clone(handle)}
	switch {
	case o.use.Signs():
		return &signKey{k}
	case o.use == token.UseSplit:
		return &splitKey{k}
	case o.rsa != nil:
		return &decryptKey{k}
	case f.options.XOnly:
		return &agreeKey{k}
	}
	return &pointAgreeKey{k}
}

func (k *signKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	return k.run(ctx, OpSign, &req.Auth, func() ([]byte, error) { return k.sign(req) })
}

func (k *signKey) sign(req token.SignRequest) ([]byte, error) {
	unsupported := fmt.Errorf("scheme %d and hash %d for %s: %w", req.Scheme, req.Hash, k.public.Algorithm, token.ErrUnsupported)
	if req.Scheme == token.SchemeEdDSA || req.Scheme == token.SchemeMeshEdDSA {
		if k.signing == nil || req.Hash != 0 {
			return nil, unsupported
		}
		mode := keyshare.ModePure
		if req.Scheme == token.SchemeMeshEdDSA {
			mode = keyshare.ModeMesh
		}
		return k.signing.Sign(rand.Reader, mode, req.Message)
	}
	digest, err := req.Digest()
	if err != nil {
		return nil, err
	}
	switch {
	case req.Scheme == token.SchemeECDSA && k.nist() != nil:
		private, err := ecdsa.ParseRawPrivateKey(k.nist(), k.scalar.Bytes())
		if err != nil {
			return nil, err
		}
		return ecdsa.SignASN1(rand.Reader, private, digest)
	case req.Scheme == token.SchemePKCS1v15 && k.rsa != nil:
		return rsa.SignPKCS1v15(nil, k.rsa, req.Hash, digest)
	case req.Scheme == token.SchemePSS && k.rsa != nil:
		return k.rsa.Sign(rand.Reader, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: req.Hash})
	}
	return nil, unsupported
}

func (k *signKey) nist() elliptic.Curve {
	switch k.public.Algorithm {
	case token.P256:
		return elliptic.P256()
	case token.P384:
		return elliptic.P384()
	case token.P521:
		return elliptic.P521()
	}
	return nil
}

func (k *fakeKey) agree(req token.AgreeRequest) (*keyshare.Point, error) {
	peer, err := keyshare.ParsePoint(k.scalar.Curve(), req.Peer)
	if err == nil && len(req.Peer) != k.scalar.Curve().PointLen() {
		err = keyshare.ErrLength
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadPoint, err)
	}
	return keyshare.Agree(k.scalar, peer)
}

func (k *agreeKey) Agree(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	return k.run(ctx, OpAgree, &req.Auth, func() ([]byte, error) {
		p, err := k.agree(req)
		if err != nil {
			return nil, err
		}
		return p.SharedSecret(), nil
	})
}

func (k *pointAgreeKey) AgreePoint(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	return k.run(ctx, OpAgree, &req.Auth, func() ([]byte, error) {
		p, err := k.agree(req)
		if err != nil {
			return nil, err
		}
		return p.Bytes(), nil
	})
}

func (k *decryptKey) Decrypt(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	return k.run(ctx, OpDecrypt, &req.Auth, func() ([]byte, error) {
		if err := rsapad.Check(&k.rsa.PublicKey, req); err != nil {
			return nil, err
		}
		c := new(big.Int).SetBytes(req.Ciphertext)
		return rsapad.Unpad(req, c.Exp(c, k.rsa.D, k.rsa.N).FillBytes(make([]byte, k.rsa.Size())))
	})
}

func (k *splitKey) Split(ctx context.Context, threshold, n int) ([]token.Share, error) {
	var out []token.Share
	_, err := k.run(ctx, OpSplit, nil, func() ([]byte, error) {
		if threshold < 2 || n < threshold || n > token.MaxShares {
			return nil, fmt.Errorf("%d of %d shares: %w", threshold, n, token.ErrBadRequest)
		}
		shares, err := k.split(threshold, n)
		for _, s := range shares {
			out = append(out, token.Share{X: s.X, Scalar: s.Scalar.Bytes(), Public: s.Scalar.Public().Bytes()})
		}
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (k *splitKey) split(threshold, n int) ([]keyshare.Share, error) {
	if threshold == n {
		return keyshare.SplitDirect(k.scalar, n, rand.Reader)
	}
	return keyshare.SplitShamir(k.scalar, threshold, n, rand.Reader)
}
