package hsm

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// Open returns the key behind a handle. It compares what can be read of the key without the
// PIN; that the private half is there shows when it is used.
// Errors: token.ErrCorrupt, token.ErrNotFound, token.ErrAbsent; token.ErrReplaced for a key of a
// token with another serial number.
func (t *Token) Open(ctx context.Context, req token.OpenRequest) (token.Key, error) {
	h, err := decodeHandle(req.Handle)
	if err == nil {
		err = h.check(req)
	}
	if err != nil {
		return nil, fmt.Errorf("pkcs11: open key: %w", err)
	}
	var opened token.Key
	err = t.look(ctx, "open key", func(b *binding) error {
		if h.serial != b.info.serial {
			return fmt.Errorf("%w: the key is in the token with serial %q", token.ErrReplaced, h.serial)
		}
		k, ok := b.kind(req.Public.Algorithm)
		if !ok {
			return fmt.Errorf("%w: this token has no %s keys", token.ErrCorrupt, string(req.Public.Algorithm))
		}
		if err := t.checkObjects(ctx, b, k, h, req.Public); err != nil {
			return err
		}
		opened, err = newKey(t, k, h, req.Public, req.Use)
		return err
	})
	return opened, err
}

// look runs f with the token, locked or not, once more if the device was lost.
func (t *Token) look(ctx context.Context, what string, f func(*binding) error) error {
	if err := t.again(ctx, t.bind, f); err != nil {
		return fmt.Errorf("pkcs11: %s: %w", what, err)
	}
	return nil
}

// checkObjects compares the public key in the token with that of the record.
func (t *Token) checkObjects(ctx context.Context, b *binding, k kind, h handle, want token.PublicKey) error {
	private, err := t.find(ctx, b, ckoPrivateKey, h.id)
	if err != nil {
		return err
	}
	if len(private) == 0 && !b.needsLogin() {
		return t.missing(ctx, b)
	}
	public, err := t.find(ctx, b, ckoPublicKey, h.id, publicAttributes...)
	if err != nil {
		return err
	}
	for _, o := range public {
		if got, err := k.public(o); err != nil || !sameKey(got, want) {
			return fmt.Errorf("%w: the public key is not that of the record", token.ErrCorrupt)
		}
	}
	return nil
}

// missing is the error for a private key that is not found. The token may have been lost unnoticed, or
// the login, with the last session; then nothing private is found.
func (t *Token) missing(ctx context.Context, b *binding) error {
	if t.bound.Load() != b {
		return ckrUserNotLoggedIn // somebody locked it meanwhile
	}
	if _, err := t.still(ctx, b); err != nil {
		return err
	}
	r, err := t.module.call(ctx, b.child, &call{op: opState, slot: b.info.slot})
	if err != nil {
		return err
	}
	if len(r.numbers) == 1 && b.loggedIn && r.numbers[0] != cksUserRead && r.numbers[0] != cksUserWrite {
		return ckrUserNotLoggedIn
	}
	return fmt.Errorf("%w: %w", token.ErrNotFound, errNoKey)
}

// key is what all kinds of keys have in common.
type key struct {
	token  *Token
	kind   kind
	handle handle
	public token.PublicKey
	place  atomic.Pointer[place] // where it was found last
}

// place is a private key object in one helper process.
type place struct {
	child *child
	key   uint64
	// asks is set for a key with CKA_ALWAYS_AUTHENTICATE.
	asks bool
}

func newKey(t *Token, k kind, h handle, public token.PublicKey, use token.Use) (token.Key, error) {
	base := func(k *key, kind kind) {
		k.token, k.kind, k.handle = t, kind, h
		k.public = token.PublicKey{Algorithm: public.Algorithm, Octets: bytes.Clone(public.Octets)}
	}
	corrupt := func(err error) error { return fmt.Errorf("%w: public key: %w", token.ErrCorrupt, err) }
	switch {
	case use.Signs() && k.sign != 0:
		verify, err := verifier(public)
		if err != nil {
			return nil, corrupt(err)
		}
		s := &signKey{verify: verify}
		base(&s.key, k)
		return s, nil
	case use == token.UseDecrypt && k.curve == 0:
		standard, err := public.Standard()
		if err != nil {
			return nil, corrupt(err)
		}
		d := &decryptKey{standard: standard.(*rsa.PublicKey)}
		base(&d.key, k)
		return d, nil
	case use.Agrees() && k.derive != 0:
		point, err := keyshare.ParsePoint(k.curve, public.Octets)
		if err != nil {
			return nil, corrupt(err)
		}
		a := &agreeKey{point: point}
		base(&a.key, k)
		return a, nil
	}
	return nil, fmt.Errorf("%w: an %s key in this token has no use %q", token.ErrCorrupt, public.Algorithm, string(use))
}

// Public returns the public key.
func (k *key) Public() token.PublicKey {
	return token.PublicKey{Algorithm: k.public.Algorithm, Octets: bytes.Clone(k.public.Octets)}
}

// locate returns where the private key is.
func (k *key) locate(ctx context.Context, b *binding) (*place, error) {
	if p := k.place.Load(); p != nil && p.child == b.child {
		return p, nil
	}
	if k.handle.serial != b.info.serial {
		return nil, fmt.Errorf("%w: the key is in the token with serial %q", token.ErrReplaced, k.handle.serial)
	}
	// One at a time: while SoftHSM copies a key, the copy looks like a key of the token.
	select {
	case k.token.locating <- struct{}{}:
		defer func() { <-k.token.locating }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p := k.place.Load(); p != nil && p.child == b.child {
		return p, nil
	}
	found, err := k.token.find(ctx, b, ckoPrivateKey, k.handle.id, ckaKeyType, ckaAlwaysAuthenticate)
	if err != nil {
		return nil, err
	}
	p, err := k.choose(found, b)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, k.token.missing(ctx, b)
	}
	k.token.copyKey(ctx, b, k.handle.id, p)
	k.place.Store(p)
	return p, nil
}

// choose returns the one private key of the right type; nil if there is none.
func (k *key) choose(found []object, b *binding) (p *place, err error) {
	for _, o := range found {
		if keyType, known := o.number(ckaKeyType); known && keyType != k.kind.keyType {
			continue
		}
		if p != nil {
			return nil, fmt.Errorf("%w: two private keys have its CKA_ID", token.ErrCorrupt)
		}
		asks, _ := o.is(ckaAlwaysAuthenticate)
		p = &place{b.child, o.handle, asks}
	}
	return p, nil
}

// copyKey makes a copy of a key that lives in the token's memory until the login ends, and uses
// that, where it is known to be faster: for each operation NSS decrypts a key in its database
// anew, and SoftHSM looks at a file. The copy is as sensitive and as little extractable. A key that
// cannot be copied is used where it is. A key that another program deletes goes on to work here
// until the next login.
func (t *Token) copyKey(ctx context.Context, b *binding, id []byte, p *place) {
	if p.asks || !b.loggedIn || !isNSS(b.info.manufacturer) && !isSoftHSM(b.info.manufacturer) {
		return
	}
	if c, ok := t.copies.Load(string(id)); ok && c.(*place).child == b.child {
		*p = *c.(*place)
		return
	}
	r, err := t.module.call(ctx, b.child, &call{op: opCopy, slot: b.info.slot, object: p.key, template: []attribute{no(ckaToken)}})
	if err != nil || len(r.numbers) != 1 {
		return
	}
	o, err := t.readObject(ctx, b, r.numbers[0], ckaSensitive, ckaExtractable)
	sensitive, _ := o.is(ckaSensitive)
	extractable, known := o.is(ckaExtractable)
	if err != nil || !sensitive || extractable || !known {
		t.destroy(ctx, b, r.numbers[0])
		return
	}
	p.key = r.numbers[0]
	t.copies.Store(string(id), p)
}

// call completes c with slot, key and PIN and runs it. A handle that has become invalid is
// looked up again.
func (k *key) call(ctx context.Context, auth token.Auth, what string, c call) (*reply, error) {
	var r *reply
	err := k.token.use(ctx, auth, what, func(b *binding) error {
		err := k.callAt(ctx, b, auth, c, &r)
		if code := codeOf(err); code == ckrObjectHandleInvalid || code == ckrKeyHandleInvalid {
			k.place.Store(nil)
			k.token.copies.Delete(string(k.handle.id))
			err = k.callAt(ctx, b, auth, c, &r)
		}
		if errors.Is(err, token.ErrNotFound) && k.token.bound.Load() != b {
			return ckrUserNotLoggedIn // as in missing
		}
		return err
	})
	return r, err
}

func (k *key) callAt(ctx context.Context, b *binding, auth token.Auth, c call, r **reply) (err error) {
	p, err := k.locate(ctx, b)
	if err != nil {
		return err
	}
	c.slot, c.object = b.info.slot, p.key
	if !p.asks {
		*r, err = k.token.module.call(ctx, b.child, &c)
		return err
	}
	*r, err = k.token.callWithPIN(ctx, b, auth.PIN, &c)
	return err
}

// callWithPIN runs an operation that presents the PIN anew, one at a time, so that a wrong
// one costs one try, even if the caller goes away.
func (t *Token) callWithPIN(ctx context.Context, b *binding, pin []byte, c *call) (*reply, error) {
	if len(pin) == 0 {
		return nil, pinErrorOf(&token.AuthError{Reason: token.ErrAuthNeeded, Detail: token.ErrEachTime}, b.info.flags)
	}
	if err := t.take(ctx); err != nil {
		return nil, err
	}
	defer func() { <-t.lock }()
	if err := t.checkTriesLocked(ctx, b, pin); err != nil {
		return nil, err
	}
	c.pin = pin
	ctx, end := t.outlasting(ctx)
	defer end()
	r, err := t.module.call(ctx, b.child, c)
	return r, t.loginResultLocked(ctx, b, pin, err)
}

// signKey is a key that the token lets only sign.
type signKey struct {
	key
	verify func(req token.SignRequest, digest, signature []byte) bool
}

var _ token.Signer = (*signKey)(nil)

// Sign signs in the token and verifies the signature before it is released. Messages are hashed
// here, but for EdDSA. Errors: as token.Signer.
func (k *signKey) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	c, digest, err := k.request(req)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: sign: %w", err)
	}
	r, err := k.call(ctx, req.Auth, "sign", c)
	if err != nil {
		return nil, err
	}
	if len(r.data) != 1 {
		return nil, fmt.Errorf("pkcs11: sign: %w: no signature", token.ErrFault)
	}
	if !k.verify(req, digest, r.data[0]) {
		return nil, fmt.Errorf("pkcs11: sign: %w: signature does not verify", token.ErrFault)
	}
	if req.Scheme == token.SchemeECDSA {
		n := len(r.data[0]) / 2
		return keyshare.MarshalECDSA(r.data[0][:n], r.data[0][n:]), nil
	}
	return r.data[0], nil
}

// verifier returns the check of a public key's signatures, in the token's own form.
func verifier(public token.PublicKey) (func(req token.SignRequest, digest, signature []byte) bool, error) {
	switch public.Algorithm {
	case token.Ed448:
		p, err := keyshare.ParsePoint(keyshare.Ed448, public.Octets)
		return func(req token.SignRequest, _, signature []byte) bool {
			return keyshare.Verify(p, keyshare.ModePure, req.Message, signature)
		}, err
	case token.Ed25519:
		return ed25519Verifier(public)
	case token.P256, token.P384, token.P521:
		return ecdsaVerifier(public)
	}
	standard, err := public.Standard()
	if err != nil {
		return nil, err
	}
	switch pub := standard.(type) {
	case *rsa.PublicKey:
		return func(req token.SignRequest, digest, signature []byte) bool {
			if req.Scheme == token.SchemePSS {
				return rsa.VerifyPSS(pub, req.Hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
			}
			return rsa.VerifyPKCS1v15(pub, req.Hash, digest, signature) == nil
		}, nil
	}
	return nil, token.ErrUnsupported
}

func ed25519Verifier(public token.PublicKey) (func(token.SignRequest, []byte, []byte) bool, error) {
	p, err := keyshare.ParsePoint(keyshare.Ed25519, public.Octets)
	if err != nil {
		return nil, err
	}
	v, err := keyshare.NewEd25519Verifier(p)
	return func(req token.SignRequest, _, signature []byte) bool {
		return v.Verify(keyshare.ModePure, req.Message, signature)
	}, err
}

func ecdsaVerifier(public token.PublicKey) (func(token.SignRequest, []byte, []byte) bool, error) {
	c, err := keyshare.ParseCurve(string(public.Algorithm))
	if err != nil {
		return nil, err
	}
	p, err := keyshare.ParsePoint(c, public.Octets)
	if err != nil {
		return nil, err
	}
	v, err := keyshare.NewECDSAVerifier(p)
	return func(_ token.SignRequest, digest, signature []byte) bool {
		n := len(signature)
		return n%2 == 0 && v.Verify(digest, signature[:n/2], signature[n/2:])
	}, err
}

// agreeKey is a key that the token lets only agree.
type agreeKey struct {
	key
	point *keyshare.Point
}

var (
	_ token.Agreer      = (*agreeKey)(nil)
	_ token.PointAgreer = (*agreeKey)(nil)
)

// AgreePoint returns the whole point, recovered from two multiplications in the token
// (keyshare.RecoverPoint). Errors: as token.PointAgreer; token.ErrFault also for a token that
// holds another key.
func (k *agreeKey) AgreePoint(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	r, err := k.agree(ctx, req)
	if err != nil {
		return nil, err
	}
	return r.Bytes(), nil
}

// Agree returns the x- or u-coordinate. It takes the same two multiplications as AgreePoint:
// one alone would have to be believed.
func (k *agreeKey) Agree(ctx context.Context, req token.AgreeRequest) ([]byte, error) {
	r, err := k.agree(ctx, req)
	if err != nil {
		return nil, err
	}
	return r.SharedSecret(), nil
}

func (k *agreeKey) agree(ctx context.Context, req token.AgreeRequest) (*keyshare.Point, error) {
	peer, err := keyshare.ParsePoint(k.kind.curve, req.Peer)
	if err == nil && len(req.Peer) != k.kind.curve.PointLen() {
		err = keyshare.ErrLength // without a sign
	}
	if err != nil {
		return nil, fmt.Errorf("pkcs11: agree: %w: %w", token.ErrBadPoint, err)
	}
	r, err := keyshare.RecoverPoint(k.point, peer, func(points ...*keyshare.Point) ([][]byte, error) {
		return k.multiply(ctx, req.Auth, points)
	})
	if errors.Is(err, keyshare.ErrRecovery) {
		return nil, fmt.Errorf("pkcs11: agree: %w: %w", token.ErrFault, err)
	}
	return r, err
}

// multiply asks the token for the coordinates of private key times point.
func (k *agreeKey) multiply(ctx context.Context, auth token.Auth, points []*keyshare.Point) ([][]byte, error) {
	size := len(k.point.SharedSecret())
	c := call{op: opDerive, mech: mechanism{kind: k.kind.derive}, template: []attribute{
		number(ckaClass, ckoSecretKey), number(ckaKeyType, ckkGenericSecret), number(ckaValueLen, uint64(size)),
		no(ckaToken), no(ckaSensitive), yes(ckaExtractable),
	}}
	for _, p := range points {
		octets := p.Bytes()
		if !k.kind.curve.IsNIST() {
			octets = octets[:size]
		}
		c.data = append(c.data, octets)
	}
	r, err := k.call(ctx, auth, "agree", c)
	if err != nil {
		return nil, err
	}
	return r.data, nil
}
