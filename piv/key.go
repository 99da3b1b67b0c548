package piv

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/rsapad"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// Open returns the key behind a handle after comparing the public key in its slot.
// Errors as token.Token; token.ErrNotFound also if the slot now holds another key.
func (t *Token) Open(ctx context.Context, req token.OpenRequest) (token.Key, error) {
	h, err := openHandle(t.options.Serial, req)
	if err != nil {
		return nil, fmt.Errorf("%s: open key: %w", Name(t.options.Serial), err)
	}
	m, err := do(ctx, t, "open key", func(ctx context.Context, s *session) (applet.Metadata, error) {
		delete(s.seen.checked, h.slot)
		return s.check(ctx, h.slot, h.index)
	})
	if err != nil {
		return nil, err
	}
	k, err := newKey(t, h, req, h.policyOr(m.Policy))
	if err != nil {
		return nil, fmt.Errorf("%s: open key: %w: %w", Name(t.options.Serial), token.ErrCorrupt, err)
	}
	return k, nil
}

func newKey(t *Token, h handle, req token.OpenRequest, p token.Policy) (token.Key, error) {
	public := token.PublicKey{Algorithm: req.Public.Algorithm, Octets: bytes.Clone(req.Public.Octets)}
	k := key{token: t, handle: h, public: public, policy: p}
	if req.Use.Agrees() && public.Algorithm.RSABits() == 0 {
		curve, err := keyshare.ParseCurve(string(public.Algorithm))
		if err != nil {
			return nil, err
		}
		point, err := keyshare.ParsePoint(curve, public.Octets)
		return &agreeKey{k, point}, err
	}
	standard, err := public.Standard()
	if err != nil {
		return nil, err
	}
	switch standard := standard.(type) {
	case *ecdsa.PublicKey:
		return newECDSAKey(k)
	case ed25519.PublicKey:
		return &ed25519Key{k, standard}, nil
	case *rsa.PublicKey:
		if req.Use.Agrees() {
			return &decryptKey{k, standard}, nil
		}
		return &rsaKey{k, standard}, nil
	}
	return nil, fmt.Errorf("%s: %w", public.Algorithm, token.ErrUnsupported)
}

var (
	_ token.Signer      = (*ecdsaKey)(nil)
	_ token.Signer      = (*ed25519Key)(nil)
	_ token.Signer      = (*rsaKey)(nil)
	_ token.Decrypter   = (*decryptKey)(nil)
	_ token.PointAgreer = (*agreeKey)(nil)
)

// key is what all keys have in common. It is immutable.
type key struct {
	token  *Token
	handle handle
	public token.PublicKey
	policy token.Policy
}

// Public returns the public key.
func (k *key) Public() token.PublicKey {
	return token.PublicKey{Algorithm: k.public.Algorithm, Octets: bytes.Clone(k.public.Octets)}
}

// Policy returns what the key asks of its user, so that a prompt can say so before. An agreement
// asks twice: it takes two operations of the card.
func (k *key) Policy() token.Policy { return k.policy }

// use runs operations of the key in one transaction, with the PIN presented if it is wanted,
// and touches announced. Each operation is given to the card on its own.
func (k *key) use(ctx context.Context, what string, auth token.Auth, operations ...operation) ([][]byte, error) {
	if k.policy.PIN == token.PINAlways && len(auth.PIN) == 0 {
		return nil, fmt.Errorf("%s: %s: %w: this key asks each time", Name(k.token.options.Serial), what, needed(token.TriesUnknown))
	}
	r := &request{ctx: ctx, blind: k.policy.Touch == token.TouchNever && k.policy.PIN != token.PINAlways}
	r.single = r.blind && len(operations) == 1 && k.public.Algorithm.RSABits() == 0
	return perform(k.token, what, r, func(ctx context.Context, s *session) ([][]byte, error) {
		if _, err := s.check(ctx, k.handle.slot, k.handle.index); err != nil {
			return nil, err
		}
		var results [][]byte
		for i, op := range operations {
			b, err := k.operate(ctx, s, auth, op, len(operations)-i)
			if err != nil {
				for _, r := range results {
					clear(r)
				}
				return nil, err
			}
			results = append(results, b)
		}
		return results, nil
	})
}

// operation gives the card one command.
type operation func(context.Context, *session) ([]byte, error)

// operate runs one operation. Where no touch is involved it is tried before anything is said
// of the PIN, which spares a command if the card knows it still. A key that wants a PIN although it was adopted as one that
// wants none gets it as well.
func (k *key) operate(ctx context.Context, s *session, auth token.Auth, op operation, left int) ([]byte, error) {
	switch {
	case k.policy.PIN == token.PINAlways:
		if err := s.present(ctx, auth.PIN, keepLast); err != nil {
			return nil, err
		}
	case k.policy.PIN == token.PINOnce && k.policy.Touch != token.TouchNever:
		if err := s.login(ctx, auth); err != nil {
			return nil, err
		}
	case k.policy.Touch == token.TouchNever:
		b, err := op(ctx, s)
		if !errors.Is(err, apdu.SecurityStatus) || s.unsure {
			return b, err
		}
		if err := s.login(ctx, auth); err != nil {
			return nil, err
		}
	}
	done := k.announce(ctx, left)
	b, err := op(ctx, s)
	done()
	switch {
	case !errors.Is(err, apdu.SecurityStatus):
		return b, err
	case k.policy.Touch != token.TouchNever:
		return nil, fmt.Errorf("%w: %w", token.ErrTouchTimeout, err)
	}
	return nil, fmt.Errorf("%w: the key wants more than it is known to, its PIN each time or a touch; adopt it anew: %w", token.ErrUnsupported, err)
}

// touchGuess is how long a card with a cached touch answers without being touched.
const touchGuess = 300 * time.Millisecond

// announce says that a touch is waited for, until done is called. Where an earlier touch may
// serve, it waits a moment first.
func (k *key) announce(ctx context.Context, touches int) (done func()) {
	notify := func(waiting bool, touches int) {
		k.token.touches.Store(int32(touches))
		k.token.options.Touch(ctx, TouchEvent{Token: Name(k.token.options.Serial), Slot: k.handle.slot.String(), Waiting: waiting, Touches: touches})
	}
	switch k.policy.Touch {
	case token.TouchNever:
		return func() {}
	case token.TouchAlways:
		notify(true, touches)
		return func() { notify(false, 0) }
	}
	said := make(chan struct{})
	timer := time.AfterFunc(touchGuess, func() {
		defer close(said)
		notify(true, 1)
	})
	return func() {
		if !timer.Stop() {
			<-said
			notify(false, 0)
		}
	}
}

// compute is an operation that gives a block to the key.
func (k *key) compute(block []byte) operation {
	return func(ctx context.Context, s *session) ([]byte, error) {
		return s.Compute(ctx, k.handle.slot, k.public.Algorithm, block)
	}
}

// sign uses the key once and returns what the card computed if it is right.
func (k *key) sign(ctx context.Context, auth token.Auth, block []byte, right func([]byte) bool) ([]byte, error) {
	results, err := k.use(ctx, "sign", auth, k.compute(block))
	if err != nil {
		return nil, err
	}
	if !right(results[0]) {
		return nil, k.fault(ctx, "sign", errors.New("signature does not verify"))
	}
	return results[0], nil
}

// fault finds out why a result is wrong: token.ErrNotFound if another program has put another key
// into the slot meanwhile, else token.ErrFault.
func (k *key) fault(ctx context.Context, what string, reason error) error {
	_, err := do(ctx, k.token, what, func(ctx context.Context, s *session) (applet.Metadata, error) {
		delete(s.seen.checked, k.handle.slot)
		return s.check(ctx, k.handle.slot, k.handle.index)
	})
	if err != nil {
		return err
	}
	return fmt.Errorf("%s: %s: %w: %w", Name(k.token.options.Serial), what, token.ErrFault, reason)
}

func (k *key) unsupported(req token.SignRequest) error {
	return fmt.Errorf("%s: sign: %s key, scheme %d, hash %v: %w",
		Name(k.token.options.Serial), k.public.Algorithm, req.Scheme, req.Hash, token.ErrUnsupported)
}

// ecdsaKey is a P256 or P384 key.
type ecdsaKey struct {
	key
	curve    keyshare.Curve
	verifier *keyshare.ECDSAVerifier
}

func newECDSAKey(k key) (token.Key, error) {
	curve, err := keyshare.ParseCurve(string(k.public.Algorithm))
	if err != nil {
		return nil, err
	}
	point, err := keyshare.ParsePoint(curve, k.public.Octets)
	if err != nil {
		return nil, err
	}
	verifier, err := keyshare.NewECDSAVerifier(point)
	if err != nil {
		return nil, err
	}
	return &ecdsaKey{k, curve, verifier}, nil
}

// Sign makes an ECDSA signature over a digest computed here, and verifies it before it is
// released.
func (k *ecdsaKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	if req.Scheme != token.SchemeECDSA {
		return nil, k.unsupported(req)
	}
	digest, err := req.Digest()
	if err != nil {
		return nil, fmt.Errorf("%s: sign: %w", Name(k.token.options.Serial), err)
	}
	return k.sign(ctx, req.Auth, fit(digest, k.curve.ScalarLen()), func(sig []byte) bool { return k.verify(digest, sig) })
}

func (k *ecdsaKey) verify(digest, signature []byte) bool {
	var value struct{ R, S *big.Int } // RFC 3279, 2.2.3
	rest, err := asn1.Unmarshal(signature, &value)
	if err != nil || len(rest) != 0 || value.R.Sign() <= 0 || value.S.Sign() <= 0 {
		return false
	}
	return k.verifier.Verify(digest, value.R.Bytes(), value.S.Bytes())
}

// fit makes a digest as long as the order: leftmost octets of a longer one (FIPS 186-5, 6.4.1),
// zeros before a shorter one.
func fit(digest []byte, n int) []byte {
	if len(digest) >= n {
		return digest[:n]
	}
	return append(make([]byte, n-len(digest)), digest...)
}

// ed25519Key is an Ed25519 key.
type ed25519Key struct {
	key
	standard ed25519.PublicKey
}

// maxMessage is how long a message firmware 5.7 signs with Ed25519: it takes the message whole.
const maxMessage = 3000

// Sign makes a pure Ed25519 signature over a message of up to 3000 octets, which the card must
// take whole, and verifies it before it is released. A longer one is token.ErrUnsupported.
func (k *ed25519Key) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	if req.Scheme != token.SchemeEdDSA || req.Hash != 0 {
		return nil, k.unsupported(req)
	}
	if len(req.Message) > maxMessage {
		return nil, fmt.Errorf("%s: sign: message of %d octets, a PIV card takes %d: %w",
			Name(k.token.options.Serial), len(req.Message), maxMessage, token.ErrUnsupported)
	}
	return k.sign(ctx, req.Auth, req.Message, func(sig []byte) bool { return ed25519.Verify(k.standard, req.Message, sig) })
}

// rsaKey is an RSA key that signs.
type rsaKey struct {
	key
	standard *rsa.PublicKey
}

// Sign pads a digest computed here, has the card raise it to the private exponent, and
// verifies the signature before it is released.
func (k *rsaKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	digest, err := req.Digest()
	if err != nil {
		return nil, fmt.Errorf("%s: sign: %w", Name(k.token.options.Serial), err)
	}
	var block []byte
	var right func([]byte) bool
	switch req.Scheme {
	case token.SchemePKCS1v15:
		block, err = padPKCS1v15(k.standard, req.Hash, digest)
		right = func(sig []byte) bool { return rsa.VerifyPKCS1v15(k.standard, req.Hash, digest, sig) == nil }
	case token.SchemePSS:
		block, err = padPSS(k.standard, req.Hash, digest)
		salt := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		right = func(sig []byte) bool { return rsa.VerifyPSS(k.standard, req.Hash, digest, sig, salt) == nil }
	default:
		return nil, k.unsupported(req)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: sign: %w", Name(k.token.options.Serial), err)
	}
	return k.sign(ctx, req.Auth, block, right)
}

// decryptKey is an RSA key that decrypts.
type decryptKey struct {
	key
	standard *rsa.PublicKey
}

// Decrypt opens an OAEP or PKCS #1 v1.5 ciphertext. The card raises it to the private exponent;
// the padding is taken off here, in constant time.
func (k *decryptKey) Decrypt(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	if err := rsapad.Check(k.standard, req); err != nil {
		return nil, fmt.Errorf("%s: decrypt: %w", Name(k.token.options.Serial), err)
	}
	results, err := k.use(ctx, "decrypt", req.Auth, k.compute(req.Ciphertext))
	if err != nil {
		return nil, err
	}
	block := results[0]
	defer clear(block)
	if len(block) != k.standard.Size() || !rsapad.Encrypts(k.standard, block, req.Ciphertext) {
		return nil, k.fault(ctx, "decrypt", errors.New("not the plaintext of this ciphertext"))
	}
	plaintext, err := rsapad.Unpad(req, block)
	if err != nil {
		return nil, fmt.Errorf("%s: decrypt: %w", Name(k.token.options.Serial), err)
	}
	return plaintext, nil
}

// agreeKey is a P256, P384 or X25519 key that agrees.
type agreeKey struct {
	key
	point *keyshare.Point
}

// AgreePoint has the card multiply two points, which a policy may ask two touches and PINs for, and
// recovers the whole point from the coordinates (keyshare.RecoverPoint). That the
// coordinates fit the public key is checked.
func (k *agreeKey) AgreePoint(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	curve := k.point.Curve()
	peer, err := keyshare.ParsePoint(curve, req.Peer)
	if err == nil && len(req.Peer) != curve.PointLen() {
		err = keyshare.ErrLength // without a sign it would be two points
	}
	if err != nil {
		return nil, fmt.Errorf("%s: agree: %w: %w", Name(k.token.options.Serial), token.ErrBadPoint, err)
	}
	result, err := keyshare.RecoverPoint(k.point, peer, func(points ...*keyshare.Point) ([][]byte, error) {
		operations := make([]operation, len(points))
		for i, p := range points {
			operations[i] = k.multiply(p)
		}
		return k.use(ctx, "agree", req.Auth, operations...)
	})
	if errors.Is(err, keyshare.ErrRecovery) {
		return nil, k.fault(ctx, "agree", err)
	}
	if err != nil {
		return nil, err
	}
	return result.Bytes(), nil
}

// multiply is an operation that multiplies a point by the key.
func (k *agreeKey) multiply(p *keyshare.Point) operation {
	octets := p.Bytes()
	if k.public.Algorithm == token.X25519 {
		octets = octets[:32]
	}
	return func(ctx context.Context, s *session) ([]byte, error) {
		return s.Agree(ctx, k.handle.slot, k.public.Algorithm, octets)
	}
}
