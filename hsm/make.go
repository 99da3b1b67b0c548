package hsm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/token"
)

// Generate makes a key pair in the token: sensitive, not extractable, for one purpose. Use
// and associated data are bound by the CKA_ID. X25519 and X448 public keys get even v.
// Errors: token.ErrUnsupported, also where the token does not honour a PIN policy;
// token.ErrAuthNeeded, token.ErrAuthWrong, token.ErrLockedOut, token.ErrAbsent, token.ErrReplaced;
// token.ErrFault if the key is not what was asked for, and was destroyed.
func (t *Token) Generate(ctx context.Context, req token.GenerateRequest) (created token.Created, err error) {
	if req.Place != (token.Place{}) {
		return created, fmt.Errorf("pkcs11: generate key: %w", errPlace)
	}
	err = t.make(ctx, "generate key", req.Algorithm, req.Use, req.Policy, req.Auth, func(b *binding, k kind) (err error) {
		id := newID(req.Algorithm, req.Use, 0, req.Associated)
		created, err = t.generate(ctx, b, k, req.Use, req.Policy, id, label(req.Algorithm, req.Use))
		return err
	})
	return created, err
}

var errPlace = fmt.Errorf("a PKCS#11 token has no named places: %w", token.ErrUnsupported)

// make checks a request for a new key and runs f.
func (t *Token) make(ctx context.Context, what string, a token.Algorithm, u token.Use, p token.Policy, auth token.Auth, f func(*binding, kind) error) error {
	if err := u.Allows(a); err != nil {
		return fmt.Errorf("pkcs11: %s: %w", what, err)
	}
	if u == token.UseSplit {
		return fmt.Errorf("pkcs11: %s: a key in a token cannot be split: %w", what, token.ErrUnsupported)
	}
	if b := t.bound.Load(); b != nil {
		if _, err := b.supports(a, u, p); err != nil { // before anybody is asked for a PIN
			return fmt.Errorf("pkcs11: %s: %w", what, err)
		}
	}
	return t.use(ctx, auth, what, func(b *binding) error {
		k, err := b.supports(a, u, p)
		if err != nil {
			return err
		}
		return f(b, k)
	})
}

// supports returns the kind of key, if the token can have it.
func (b *binding) supports(a token.Algorithm, u token.Use, p token.Policy) (kind, error) {
	k, ok := b.kind(a)
	if !ok {
		return kind{}, fmt.Errorf("this token has no %s keys: %w", string(a), token.ErrUnsupported)
	}
	if !k.supports(u, b.mechanisms) {
		return kind{}, fmt.Errorf("an %s key in this token cannot have use %q: %w", string(a), string(u), token.ErrUnsupported)
	}
	login := b.info.flags&ckfLoginRequired != 0
	switch p.PIN {
	case token.PINDefault:
	case token.PINNever:
		if login {
			return kind{}, fmt.Errorf("this token asks for its PIN: %w", token.ErrUnsupported)
		}
	case token.PINOnce, token.PINAlways:
		if !login {
			return kind{}, fmt.Errorf("this token has no PIN: %w", token.ErrUnsupported)
		}
		if p.PIN == token.PINAlways && !u.Signs() && k.curve != 0 {
			return kind{}, fmt.Errorf("PKCS#11 has no PIN per key agreement: %w", token.ErrUnsupported)
		}
	default:
		return kind{}, fmt.Errorf("PIN policy %q: %w", string(p.PIN), token.ErrUnsupported)
	}
	if p.Touch != token.TouchDefault && p.Touch != token.TouchNever {
		return kind{}, fmt.Errorf("touch policy %q: PKCS#11 knows no touch: %w", string(p.Touch), token.ErrUnsupported)
	}
	return k, nil
}

// privateTemplate is what every private key gets. Attributes that say no are spelled out: modules
// differ in their defaults.
func privateTemplate(k kind, u token.Use, p token.Policy, id []byte, name string) []attribute {
	t := []attribute{
		yes(ckaToken), yes(ckaPrivate), yes(ckaSensitive), no(ckaExtractable),
		octets(ckaID, id), octets(ckaLabel, []byte(name)),
	}
	if p.PIN == token.PINAlways {
		t = append(t, yes(ckaAlwaysAuthenticate))
	}
	return append(t, k.purpose(u, ckaSign, ckaDerive, ckaDecrypt)...)
}

func publicTemplate(k kind, u token.Use, id []byte, name string) []attribute {
	t := []attribute{yes(ckaToken), no(ckaPrivate), octets(ckaID, id), octets(ckaLabel, []byte(name))}
	return append(t, k.purpose(u, ckaVerify, ckaDerive, ckaEncrypt)...)
}

// purpose allows one thing and forbids the others.
func (k kind) purpose(u token.Use, sign, derive, decrypt uint64) []attribute {
	allowed := derive
	switch {
	case u.Signs():
		allowed = sign
	case k.curve == 0:
		allowed = decrypt
	}
	kinds := []uint64{sign, decrypt}
	if k.curve != 0 {
		kinds = []uint64{sign, derive}
	}
	var t []attribute
	for _, a := range kinds {
		if a == allowed {
			t = append(t, yes(a))
		} else {
			t = append(t, no(a))
		}
	}
	return t
}

// otherPurposes forbids what purpose does not speak of, for public and private key: modules allow it where it
// is not forbidden.
func (k kind) otherPurposes() (public, private []attribute) {
	public, private = []attribute{no(ckaWrap), no(ckaVerifyRecover)}, []attribute{no(ckaUnwrap), no(ckaSignRecover)}
	if k.curve != 0 {
		public, private = append(public, no(ckaEncrypt)), append(private, no(ckaDecrypt))
	}
	return public, private
}

// callForbidding is call with more attributes in the templates. A module that refuses these, because it does
// not have such purposes for such keys, is asked without them.
func (t *Token) callForbidding(ctx context.Context, b *binding, c *call, more, more2 []attribute) (*reply, error) {
	full := *c
	full.template, full.template2 = slices.Concat(c.template, more), slices.Concat(c.template2, more2)
	r, err := t.module.call(ctx, b.child, &full)
	switch codeOf(err) {
	case ckrAttributeReadOnly, ckrAttributeTypeInvalid, ckrAttributeValue, ckrTemplateInconsistent:
		return t.module.call(ctx, b.child, c)
	}
	return r, err
}

func label(a token.Algorithm, u token.Use) string { return "mesh-agent " + string(a) + " " + string(u) }

func (t *Token) generate(ctx context.Context, b *binding, k kind, u token.Use, p token.Policy, id []byte, name string) (token.Created, error) {
	if !k.makes {
		return token.Created{}, fmt.Errorf("this token makes no %s keys: %w", k.algorithm, token.ErrUnsupported)
	}
	public := publicTemplate(k, u, id, name)
	if k.curve == 0 {
		public = append(public, number(ckaModulusBits, uint64(k.algorithm.RSABits())), octets(ckaPublicExponent, []byte{1, 0, 1}))
	} else {
		public = append(public, octets(ckaECParams, k.params))
	}
	request := &call{
		op: opGenerate, slot: b.info.slot, mech: mechanism{kind: k.generate},
		template: public, template2: privateTemplate(k, u, p, id, name),
	}
	forbidPublic, forbidPrivate := k.otherPurposes()
	r, err := t.callForbidding(ctx, b, request, forbidPublic, forbidPrivate)
	if err != nil {
		return token.Created{}, err
	}
	if len(r.numbers) != 2 {
		return token.Created{}, errFrame
	}
	created, err := t.checkNew(ctx, b, k, u, p, id, r.numbers[0], r.numbers[1])
	if err != nil {
		return token.Created{}, errors.Join(err, t.destroy(ctx, b, r.numbers...))
	}
	return created, nil
}

// checkNew reads a new key pair back.
func (t *Token) checkNew(ctx context.Context, b *binding, k kind, u token.Use, p token.Policy, id []byte, public, private uint64) (token.Created, error) {
	o, err := t.readObject(ctx, b, public, publicAttributes...)
	if err != nil {
		return token.Created{}, err
	}
	key, err := k.public(o)
	if err != nil {
		return token.Created{}, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	if o, err = t.readObject(ctx, b, private, ckaID, ckaSensitive, ckaExtractable); err != nil {
		return token.Created{}, err
	}
	if sensitive, _ := o.is(ckaSensitive); !sensitive {
		return token.Created{}, fmt.Errorf("%w: the private key is not sensitive", token.ErrFault)
	}
	if extractable, _ := o.is(ckaExtractable); extractable {
		return token.Created{}, fmt.Errorf("%w: the private key is extractable", token.ErrFault)
	}
	if !slices.Equal(o.value(ckaID), id) {
		return token.Created{}, fmt.Errorf("%w: the token changed the CKA_ID", token.ErrFault)
	}
	if p.PIN == token.PINAlways {
		if err := t.checkAsks(ctx, b, k, u, private); err != nil {
			return token.Created{}, err
		}
	}
	h := handle{serial: b.info.serial, id: id}
	return token.Created{Handle: h.encode(), Public: key, Protection: token.ProtectionToken}, nil
}

// publicAttributes are those from which a public key is read.
var publicAttributes = []uint64{ckaKeyType, ckaECParams, ckaECPoint, ckaModulus, ckaPublicExponent, ckaID}

// checkAsks uses a key that should ask for the PIN, without one.
func (t *Token) checkAsks(ctx context.Context, b *binding, k kind, u token.Use, private uint64) error {
	c := &call{op: opSign, slot: b.info.slot, object: private, mech: mechanism{kind: k.sign}, data: [][]byte{make([]byte, 32)}}
	if !u.Signs() {
		c.op, c.mech.kind = opDecrypt, b.mechanisms.only(ckmRSAX509)
		c.data[0] = make([]byte, k.algorithm.RSABits()/8)
		c.data[0][len(c.data[0])-1] = 2
	}
	_, err := t.module.call(ctx, b.child, c)
	switch {
	case err == nil:
		return fmt.Errorf("this token does not honour CKA_ALWAYS_AUTHENTICATE: %w", token.ErrUnsupported)
	case codeOf(err) == ckrUserNotLoggedIn:
		return nil
	}
	return err
}

func (t *Token) readObject(ctx context.Context, b *binding, handle uint64, kinds ...uint64) (object, error) {
	r, err := t.module.call(ctx, b.child, &call{op: opRead, slot: b.info.slot, object: handle, template2: wanted(kinds)})
	if err != nil {
		return object{}, err
	}
	if len(r.objects) != 1 {
		return object{}, errFrame
	}
	return r.objects[0], nil
}

func wanted(kinds []uint64) []attribute {
	list := make([]attribute, len(kinds))
	for i, k := range kinds {
		list[i].kind = k
	}
	return list
}

// find returns the objects of the token of a class with a CKA_ID; of any with no id.
func (t *Token) find(ctx context.Context, b *binding, class uint64, id []byte, kinds ...uint64) ([]object, error) {
	return t.findAll(ctx, b, []attribute{number(ckaClass, class), yes(ckaToken)}, id, kinds)
}

// findAll returns the objects that match a template and have a CKA_ID.
func (t *Token) findAll(ctx context.Context, b *binding, template []attribute, id []byte, kinds []uint64) ([]object, error) {
	c := &call{op: opFind, slot: b.info.slot, template: template, template2: wanted(kinds), limit: 1000}
	if id != nil {
		c.template = append(c.template, octets(ckaID, id))
	}
	r, err := t.module.call(ctx, b.child, c)
	if err != nil {
		return nil, err
	}
	return r.objects, nil
}

func (t *Token) destroy(ctx context.Context, b *binding, handles ...uint64) error {
	var errs []error
	for _, h := range handles {
		if _, err := t.module.call(ctx, b.child, &call{op: opDestroy, slot: b.info.slot, object: h}); err != nil {
			errs = append(errs, fmt.Errorf("destroy object: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Delete destroys both halves of a key pair. A key that was adopted is left as it is: other programs
// may use it.
// Errors: token.ErrNotFound, token.ErrAuthNeeded, token.ErrAbsent, token.ErrReplaced.
func (t *Token) Delete(ctx context.Context, encoded []byte) error {
	h, err := decodeHandle(encoded)
	if err != nil {
		return fmt.Errorf("pkcs11: delete key: %w: not a handle of a PKCS#11 key", token.ErrNotFound)
	}
	if h.found {
		return nil
	}
	return t.use(ctx, token.Auth{}, "delete key", func(b *binding) error {
		if h.serial != b.info.serial {
			return fmt.Errorf("%w: the key is in the token with serial %q", token.ErrReplaced, h.serial)
		}
		var all []uint64
		for _, class := range []uint64{ckoPrivateKey, ckoPublicKey} {
			objects, err := t.findAll(ctx, b, []attribute{number(ckaClass, class)}, h.id, nil) // with copies
			if err != nil {
				return err
			}
			for _, o := range objects {
				all = append(all, o.handle)
			}
		}
		if len(all) == 0 {
			return fmt.Errorf("%w: %w", token.ErrNotFound, errNoKey)
		}
		return t.destroy(ctx, b, all...)
	})
}

// Import puts a private key into the token, for one purpose, sensitive and not extractable.
//
// A token clamps X25519 and X448 keys (RFC 7748, Section 5), so that a raw scalar s cannot be given
// to it as it is. It gets the number that is s or -s modulo L, a multiple of the
// cofactor, with the highest bit set; and results are recovered with the sign of the public key.
// Ed25519 and Ed448 are taken as seeds only (Ed448 of 57 octets).
// Errors: those of Generate, and token.ErrBadKey.
func (t *Token) Import(ctx context.Context, req token.ImportRequest) (created token.Created, err error) {
	if req.Private == nil {
		return created, fmt.Errorf("pkcs11: import key: %w: none given", token.ErrBadKey)
	}
	if req.Place != (token.Place{}) {
		return created, fmt.Errorf("pkcs11: import key: %w", errPlace)
	}
	a := req.Private.Algorithm
	err = t.make(ctx, "import key", a, req.Use, req.Policy, req.Auth, func(b *binding, k kind) error {
		m, err := k.material(req.Private)
		if err != nil {
			return err
		}
		defer m.wipe()
		id := newID(a, req.Use, signOctet(m.public), req.Associated)
		created, err = t.store(ctx, b, k, req.Use, req.Policy, id, m)
		return err
	})
	return created, err
}

func (t *Token) store(ctx context.Context, b *binding, k kind, u token.Use, p token.Policy, id []byte, m material) (token.Created, error) {
	private := append(privateTemplate(k, u, p, id, label(k.algorithm, u)), number(ckaClass, ckoPrivateKey), number(ckaKeyType, k.keyType))
	private = append(private, m.private...)
	public := append(publicTemplate(k, u, id, label(k.algorithm, u)), number(ckaClass, ckoPublicKey), number(ckaKeyType, k.keyType))
	if k.curve != 0 {
		private = append(private, octets(ckaECParams, k.params))
		public = append(public, octets(ckaECParams, k.params), octets(ckaECPoint, k.point(m.public)))
		if isNSS(b.info.manufacturer) {
			private = append(private, octets(ckaNSSDB, k.point(m.public)))
		}
	} else {
		public = append(public, m.rsaPublic...)
	}
	var made []uint64
	forbidPublic, forbidPrivate := k.otherPurposes()
	for _, o := range []struct{ template, forbid []attribute }{{public, forbidPublic}, {private, forbidPrivate}} {
		r, err := t.callForbidding(ctx, b, &call{op: opCreate, slot: b.info.slot, template: o.template}, o.forbid, nil)
		if err == nil && len(r.numbers) != 1 {
			err = errFrame
		}
		if err != nil {
			return token.Created{}, errors.Join(err, t.destroy(ctx, b, made...))
		}
		made = append(made, r.numbers[0])
	}
	created, err := t.checkNew(ctx, b, k, u, p, id, made[0], made[1])
	if err == nil && !sameKey(created.Public, m.public) {
		err = fmt.Errorf("%w: another public key than that of the private key", token.ErrFault)
	}
	if err != nil {
		return token.Created{}, errors.Join(err, t.destroy(ctx, b, made...))
	}
	created.Public = m.public // with its sign
	return created, nil
}
