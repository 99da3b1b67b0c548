package hsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mesh-agent/mesh-agent/token"
)

var _ token.Adopter = (*Token)(nil)

// Adopt takes over a key that another program made in the token. req.Slot names it by a PKCS
// #11 URI with its id, its object (label) or both; a bare text is a label. The token must
// allow the key what the use needs, and have its public key. Nothing but the public key binds an
// adopted key: its CKA_ID is the other program's.
// Errors: as token.Adopter; token.ErrNotFound; token.ErrBadRequest where several keys are meant.
func (t *Token) Adopt(ctx context.Context, req token.AdoptRequest) (token.Created, error) {
	var created token.Created
	if len(req.File) != 0 {
		return created, fmt.Errorf("pkcs11: adopt key: a key in this token has no file; name it by its URI: %w", token.ErrBadKey)
	}
	name, err := objectName(req.Slot)
	if err != nil {
		return created, fmt.Errorf("pkcs11: adopt key: %w: %w", token.ErrBadRequest, err)
	}
	err = t.use(ctx, req.Auth, "adopt key", func(b *binding) error {
		created, err = t.adopt(ctx, b, name, req.Use)
		return err
	})
	return created, err
}

// objectName reads the name of a key.
func objectName(s string) (URI, error) {
	u := URI{Object: s}
	if IsURI(s) {
		var err error
		if u, err = ParseURI(s); err != nil {
			return URI{}, err
		}
	}
	if u.Object == "" && u.ID == nil {
		return URI{}, fmt.Errorf("name a key by id, object or both, such as %sobject=mykey", scheme)
	}
	if u.Type != "" && u.Type != "private" {
		return URI{}, fmt.Errorf("a key to be used is of type private, not %s", u.Type)
	}
	return u, nil
}

func (t *Token) adopt(ctx context.Context, b *binding, name URI, u token.Use) (token.Created, error) {
	if !name.matches(b.info) {
		return token.Created{}, fmt.Errorf("%w: the URI names another token", token.ErrBadRequest)
	}
	template := []attribute{number(ckaClass, ckoPrivateKey), yes(ckaToken)}
	if name.Object != "" {
		template = append(template, octets(ckaLabel, []byte(name.Object)))
	}
	private, err := t.findAll(ctx, b, template, name.ID, append([]uint64{ckaSign, ckaDerive, ckaDecrypt}, publicAttributes...))
	if err != nil {
		return token.Created{}, err
	}
	switch {
	case len(private) == 0:
		return token.Created{}, fmt.Errorf("%w: no private key is %s", token.ErrNotFound, name)
	case len(private) > 1:
		return token.Created{}, fmt.Errorf("%w: %d private keys are %s", token.ErrBadRequest, len(private), name)
	case len(private[0].value(ckaID)) == 0 || len(private[0].value(ckaID)) > maxID:
		return token.Created{}, fmt.Errorf("the key has no CKA_ID of 1 to %d octets to find it by: %w", maxID, token.ErrUnsupported)
	}
	return t.adoptObject(ctx, b, private[0], u)
}

// adoptObject checks the key against its use and reads the public key.
func (t *Token) adoptObject(ctx context.Context, b *binding, private object, u token.Use) (token.Created, error) {
	id := private.value(ckaID)
	public, err := t.find(ctx, b, ckoPublicKey, id, publicAttributes...)
	if err != nil {
		return token.Created{}, err
	}
	for _, o := range append(public, private) {
		k, key, ok := b.recognize(private, o)
		if !ok {
			continue
		}
		if err := u.Allows(k.algorithm); err != nil {
			return token.Created{}, err
		}
		needed := k.purpose(u, ckaSign, ckaDerive, ckaDecrypt)
		for _, a := range needed {
			if allowed, known := private.is(a.kind); a.value[0] == 1 && known && !allowed {
				return token.Created{}, fmt.Errorf("the token does not allow this key the use %q: %w", string(u), token.ErrUnsupported)
			}
		}
		if !k.supports(u, b.mechanisms) {
			return token.Created{}, fmt.Errorf("an %s key in this token cannot have use %q: %w", k.algorithm, string(u), token.ErrUnsupported)
		}
		h := handle{serial: b.info.serial, id: id, found: true}
		return token.Created{Handle: h.encode(), Public: key, Protection: token.ProtectionToken}, nil
	}
	return token.Created{}, fmt.Errorf("no public key with this CKA_ID, or of a kind that is not supported: %w", token.ErrUnsupported)
}

// recognize finds out of what kind a key pair is.
func (b *binding) recognize(private, public object) (kind, token.PublicKey, bool) {
	keyType, known := private.number(ckaKeyType)
	for _, k := range b.kinds {
		if known && keyType != k.keyType || k.curve != 0 && !k.hasParams(public.value(ckaECParams)) {
			continue
		}
		if key, err := k.public(public); err == nil {
			return k, key, true
		}
	}
	return kind{}, token.PublicKey{}, false
}

// Lock logs out and forgets the PIN.
func (t *Token) Lock(ctx context.Context) error {
	if err := t.take(ctx); err != nil {
		return fmt.Errorf("pkcs11: lock: %w", err)
	}
	defer func() { <-t.lock }()
	t.pin.Wipe()
	t.pin = nil
	b := t.bound.Load()
	if b == nil || !b.loggedIn {
		return nil
	}
	out := *b
	out.loggedIn = false
	t.publishLocked(&out)
	_, err := t.module.call(ctx, b.child, &call{op: opLogout, slot: b.info.slot})
	if err != nil && codeOf(err) != ckrUserNotLoggedIn {
		return fmt.Errorf("pkcs11: lock: %w", err)
	}
	return nil
}

var (
	_ token.Locker = (*Token)(nil)
	_ token.Doctor = (*Token)(nil)
)

// Diagnose says what the token is, whether it answers, what its PIN flags say and which protections of
// keys it does not honour. The last is known after the token was unlocked once.
func (t *Token) Diagnose(ctx context.Context) []token.Finding {
	var out []token.Finding
	add := func(s token.Severity, text, mend string) {
		out = append(out, token.Finding{Severity: s, Text: text, Mend: mend})
	}
	var b *binding
	var now tokenInfo
	err := t.again(ctx, t.bind, func(found *binding) (err error) {
		b = found
		now, err = t.still(ctx, b)
		return err
	})
	switch {
	case errors.Is(err, token.ErrReplaced):
		add(token.SeverityError, err.Error(), "put the token back; a new one needs a name of its own in the configuration, with its serial number")
		return out
	case errors.Is(err, ErrNotLoaded):
		add(token.SeverityError, err.Error(), "correct module in the configuration, or install what it belongs to: ldd "+t.module.Path()+" names libraries that are missing")
		return out
	case err != nil:
		add(token.SeverityError, err.Error(), "check that the device is plugged in and that the module "+t.module.Path()+" is its own")
		return out
	}
	var names []string
	for _, k := range b.kinds {
		names = append(names, string(k.algorithm))
	}
	add(token.SeverityInfo, fmt.Sprintf("%s; module %s; keys: %s", t.Info().Description, t.module.Path(), strings.Join(names, " ")), "")
	switch {
	case now.flags&ckfPINLocked != 0:
		add(token.SeverityError, "the PIN is blocked", "have the token's administrator (SO) set it anew, with the vendor's program")
	case now.flags&ckfPINFinalTry != 0:
		add(token.SeverityWarning, ErrPINFinalTry.Error(), "enter the right PIN: mesh-agent token unlock "+t.name)
	case now.flags&ckfPINCountLow != 0:
		add(token.SeverityWarning, ErrPINCountLow.Error(), "enter the right PIN: mesh-agent token unlock "+t.name)
	case now.flags&ckfLoginRequired != 0 && now.flags&ckfPINInitialized == 0:
		add(token.SeverityError, "the token has no user PIN", "set one with the vendor's program")
	}
	if now.flags&ckfProtectedPath != 0 {
		add(token.SeverityWarning, "the token wants its PIN at a PIN pad, which this agent has nobody use: it presents the PIN itself",
			"if it does not unlock by that, switch the pad off in the module's configuration (OpenSC: enable_pinpad = false)")
	}
	if b.needsLogin() && now.flags&ckfPINLocked == 0 {
		add(token.SeverityInfo, "locked; how it protects keys is tried when it is unlocked", "mesh-agent token unlock "+t.name)
	}
	if t.take(ctx) != nil {
		return out // somebody logs in, for longer than it matters
	}
	defer func() { <-t.lock }()
	return append(out, t.findings...)
}
