package keyring

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Software makes keys that are used in the agent's memory: those that tokens seal.
// Package softkey has both functions.
type Software struct {
	// NewPrivate draws a private key for a use, which the caller wipes.
	NewPrivate func(token.Algorithm, token.Use) (*token.PrivateKey, error)
	// NewKey makes the key. It keeps nothing of private. If the key is an io.Closer, Close
	// wipes it. Errors: token.ErrBadKey.
	NewKey func(private *token.PrivateKey, use token.Use) (token.Key, error)
}

func (s Software) there() bool { return s.NewPrivate != nil && s.NewKey != nil }

// InMemory is the name under which a Gate is asked to admit an operation with a sealed key that is
// open: it happens in memory and takes no turn of the token's.
const InMemory = ""

// GenerateSealed makes a key in memory, with the operating system's randomness, and has the
// token of spec seal it. It never makes a weaker key than the policy asks for, which is
// token.PINOnce by default. With PCRs, recovery opens the key where they have changed; it is
// nowhere else, and the caller shows and wipes it. Errors as Generate and token.Sealer.
func (k *Keyring) GenerateSealed(ctx context.Context, gate Gate, spec GenerateSpec) (e *Entry, recovery []byte, err error) {
	d := draft{use: spec.Use, label: spec.Label, shareTo: spec.ShareTo, tags: spec.Tags, release: spec.Release, tokenName: spec.Token, policy: spec.Policy}
	if err := d.seal(spec.PCRs); err != nil {
		return nil, nil, err
	}
	sealer, err := k.beginSeal(d, spec.Algorithm)
	if err != nil {
		return nil, nil, err
	}
	private, err := k.software.NewPrivate(spec.Algorithm, spec.Use)
	if err != nil {
		return nil, nil, err
	}
	defer private.Wipe()
	e, _, recovery, err = k.sealOnce(ctx, gate, d, sealer, private)
	return e, recovery, err
}

// ImportSealed has the token of spec seal a key that exists; see Import and GenerateSealed.
func (k *Keyring) ImportSealed(ctx context.Context, gate Gate, spec ImportSpec) (e *Entry, existed bool, recovery []byte, err error) {
	d := draft{use: spec.Use, label: spec.Label, shareTo: spec.ShareTo, tags: spec.Tags, release: spec.Release, tokenName: spec.Token, policy: spec.Policy, imported: true}
	if err := d.seal(spec.PCRs); err != nil {
		return nil, false, nil, err
	}
	sealer, err := k.beginSeal(d, spec.Private.Algorithm)
	if err != nil {
		return nil, false, nil, err
	}
	return k.sealOnce(ctx, gate, d, sealer, spec.Private)
}

func (k *Keyring) sealOnce(ctx context.Context, gate Gate, d draft, sealer tokenSealer, private *token.PrivateKey) (e *Entry, existed bool, recovery []byte, err error) {
	e, existed, err = k.importOnce(ctx, gate, d, sealer, private, func(ctx context.Context, auth token.Auth) (created token.Created, err error) {
		created, recovery, err = k.sealPrivate(ctx, sealer, d, private, auth)
		return created, err
	})
	if err != nil {
		clear(recovery)
		return nil, false, nil, err
	}
	return e, existed, recovery, nil
}

// seal makes the draft one of a sealed key. The guard follows from the policy, so that the
// key can be bound to it before it is sealed.
func (d *draft) seal(pcrs string) error {
	if d.policy.PIN == token.PINDefault {
		d.policy.PIN = token.PINOnce
	}
	switch {
	case d.policy.PIN != token.PINNever && d.policy.PIN != token.PINOnce:
		return fmt.Errorf("PIN policy %q of a sealed key: %w", string(d.policy.PIN), token.ErrUnsupported)
	case d.policy.Touch != token.TouchDefault:
		return fmt.Errorf("touch policy of a sealed key: %w", token.ErrUnsupported)
	}
	d.pcrs = ""
	if pcrs != "" {
		selection, err := token.ParsePCRs(pcrs)
		if err != nil {
			return fmt.Errorf("PCRs: %w", err)
		}
		d.pcrs = selection.String()
	}
	d.guard = guardOf(d.policy.PIN, d.pcrs)
	return nil
}

func guardOf(pin token.PINPolicy, pcrs string) token.Guard {
	switch {
	case pcrs != "":
		return token.GuardPCR
	case pin == token.PINNever:
		return token.GuardMachine
	}
	return token.GuardPIN
}

// tokenSealer is a token that seals.
type tokenSealer interface {
	token.Token
	token.Sealer
}

func (k *Keyring) beginSeal(d draft, alg token.Algorithm) (tokenSealer, error) {
	tok, err := k.begin(d, alg)
	if err != nil {
		return nil, err
	}
	sealer, ok := tok.(tokenSealer)
	if !ok || !k.software.there() {
		return nil, fmt.Errorf("token %q seals nothing: %w", d.tokenName, token.ErrUnsupported)
	}
	return sealer, nil
}

// sealPrivate has the token seal a private key.
func (k *Keyring) sealPrivate(ctx context.Context, sealer token.Sealer, d draft, private *token.PrivateKey, auth token.Auth) (created token.Created, recovery []byte, err error) {
	public, err := mesh.PublicOf(private)
	if err != nil {
		return token.Created{}, nil, err
	}
	secret, err := encodePrivate(private)
	if err != nil {
		return token.Created{}, nil, err
	}
	defer clear(secret)
	sealed, err := sealer.Seal(ctx, token.SealRequest{
		Secret: secret, Associated: d.associated(public), PIN: d.policy.PIN, PCRs: d.pcrs, Auth: auth,
	})
	if err != nil {
		return token.Created{}, nil, err
	}
	if sealed.Guard != d.guard {
		clear(sealed.Recovery)
		return token.Created{}, nil, fmt.Errorf("%w: asked to seal with guard %q, got %q", token.ErrFault, string(d.guard), string(sealed.Guard))
	}
	return token.Created{Handle: sealed.Blob, Public: public, Protection: token.ProtectionSealed}, sealed.Recovery, nil
}

// checkGuard makes sure that the guard of a part is what its policy and PCRs say.
func checkGuard(p *part) error {
	switch sealed := p.protection == token.ProtectionSealed; {
	case !sealed && p.guard == "" && p.pcrs == "":
		return nil
	case !sealed || p.guard == "":
		return fmt.Errorf("protection %q with guard %q", string(p.protection), string(p.guard))
	case p.policy.PIN != token.PINNever && p.policy.PIN != token.PINOnce, p.guard != guardOf(p.policy.PIN, p.pcrs):
		return fmt.Errorf("guard %q does not follow from PIN %q and PCRs %q", string(p.guard), string(p.policy.PIN), p.pcrs)
	}
	return nil
}

// unseal has the token open a sealed part and makes its key. Where the token is known to need
// its PIN, it is not asked.
func (p *part) unseal(ctx context.Context) (token.Key, error) {
	if !p.software.there() {
		return nil, fmt.Errorf("open a sealed key: %w", token.ErrUnsupported)
	}
	private, err := p.unsealPrivate(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer private.Wipe()
	key, err := p.software.NewKey(private, p.request.Use)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrCorrupt, err)
	}
	return key, nil
}

func (p *part) unsealPrivate(ctx context.Context, recovery []byte) (*token.PrivateKey, error) {
	sealer, ok := p.token.(token.Sealer)
	if !ok {
		return nil, fmt.Errorf("token %q seals nothing: %w", p.tokenName, token.ErrUnsupported)
	}
	if recovery == nil && p.policy.PIN == token.PINOnce && p.token.Info().State == token.StateLocked {
		return nil, &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: token.TriesUnknown}
	}
	secret, err := sealer.Unseal(ctx, token.UnsealRequest{
		Blob: p.request.Handle, Associated: p.request.Associated, Recovery: recovery,
	})
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return decodePrivate(p.public.Algorithm, secret)
}

// doInMemory runs op with a sealed part. Only opening it takes a turn at the token's gate.
func (s *slot) doInMemory(ctx context.Context, gate Gate, p *part, op func(token.Key) error) error {
	for {
		if !p.isOpen() {
			if err := s.inGate(ctx, gate, p, func(token.Key) error { return nil }); err != nil {
				return err
			}
		}
		if done, err := s.withOpen(ctx, gate, p, op); done {
			return err
		}
	}
}

// withOpen runs op unless the key was closed meanwhile.
func (s *slot) withOpen(ctx context.Context, gate Gate, p *part, op func(token.Key) error) (done bool, err error) {
	leave, err := gate.enter(ctx, InMemory)
	if err != nil {
		return true, err
	}
	defer leave()
	if s.deleted.Load() {
		return true, token.ErrNotFound
	}
	key := p.opened()
	if key == nil {
		return false, nil
	}
	return true, op(key)
}

// The forms in which a private key is sealed: one octet that says which, then its octets.
// The numbers are stored.
const (
	sealedSeed   = 1 // token.PrivateKey.Seed
	sealedScalar = 2 // token.PrivateKey.Scalar
	sealedRSA    = 3 // DER RSAPrivateKey (RFC 8017, A.1.2)
)

func encodePrivate(k *token.PrivateKey) ([]byte, error) {
	switch {
	case k.RSA != nil && k.Seed == nil && k.Scalar == nil:
		der := x509.MarshalPKCS1PrivateKey(k.RSA)
		defer clear(der)
		return append([]byte{sealedRSA}, der...), nil
	case k.RSA == nil && k.Seed != nil && k.Scalar == nil:
		return append([]byte{sealedSeed}, k.Seed...), nil
	case k.RSA == nil && k.Seed == nil && k.Scalar != nil:
		return append([]byte{sealedScalar}, k.Scalar...), nil
	}
	return nil, fmt.Errorf("%w: not one of seed, scalar and RSA key", token.ErrBadKey)
}

// decodePrivate reads what encodePrivate writes. The caller wipes the key.
func decodePrivate(a token.Algorithm, secret []byte) (*token.PrivateKey, error) {
	if len(secret) < 2 {
		return nil, fmt.Errorf("%w: no private key", token.ErrCorrupt)
	}
	k := &token.PrivateKey{Algorithm: a}
	form, octets := secret[0], secret[1:]
	switch form {
	case sealedSeed:
		k.Seed = bytes.Clone(octets)
	case sealedScalar:
		k.Scalar = bytes.Clone(octets)
	case sealedRSA:
		var err error
		if k.RSA, err = x509.ParsePKCS1PrivateKey(octets); err != nil {
			return nil, fmt.Errorf("%w: RSA key does not parse", token.ErrCorrupt)
		}
	default:
		return nil, fmt.Errorf("%w: private key of form %d", token.ErrCorrupt, form)
	}
	return k, nil
}

// ResealSpec says how to seal a key anew.
type ResealSpec struct {
	PCRs     string // another selection; empty for the one that it has
	Recovery []byte // opens the key where the PCRs have changed; else empty
}

// Reseal seals a key anew, to the PCRs as they are now. The new recovery secret is the only
// one from then on. Errors as token.Sealer; ErrUse for a key that is not sealed to PCRs.
func (k *Keyring) Reseal(ctx context.Context, gate Gate, keyID string, spec ResealSpec) (e *Entry, recovery []byte, err error) {
	old, err := k.Snapshot().Find(keyID)
	if err != nil {
		return nil, nil, err
	}
	release, err := k.reserve(ctx, old.Public.Index())
	if err != nil {
		return nil, nil, err
	}
	defer release()
	if now, err := k.Snapshot().FindPublic(old.Public); err != nil || now.slot != old.slot {
		return nil, nil, token.ErrNotFound // deleted while this waited
	}
	at, err := old.slot.resealable()
	if err != nil {
		return nil, nil, err
	}
	s, recovery, err := k.reseal(ctx, gate, old.slot, at, spec)
	if err == nil {
		err = k.putRecord(ctx, gate, &s.record)
	}
	if err != nil {
		clear(recovery)
		return nil, nil, fmt.Errorf("reseal key: %w", err)
	}
	k.publish(func(x *Snapshot) *Snapshot { return x.without(old.slot).with(s) })
	return s.entry.Load(), recovery, old.slot.parts[at].forget()
}

// resealable finds the one part that is sealed to PCRs.
func (s *slot) resealable() (int, error) {
	of := func(p *part) bool { return p.guard == token.GuardPCR }
	at := slices.IndexFunc(s.parts, of)
	switch {
	case at < 0:
		return 0, fmt.Errorf("%w: the key is not sealed to PCRs", ErrUse)
	case slices.ContainsFunc(s.parts[at+1:], of):
		return 0, fmt.Errorf("reseal several parts: %w", token.ErrUnsupported)
	case s.parts[at].token == nil:
		return 0, s.parts[at].notConfigured()
	}
	return at, nil
}

// reseal opens part number at of old, seals it again and opens that.
func (k *Keyring) reseal(ctx context.Context, gate Gate, old *slot, at int, spec ResealSpec) (s *slot, recovery []byte, err error) {
	p := old.parts[at]
	sealer, ok := p.token.(token.Sealer)
	if !ok {
		return nil, nil, fmt.Errorf("token %q seals nothing: %w", p.tokenName, token.ErrUnsupported)
	}
	err = inTurn(ctx, gate, old.entry.Load().subject(), p.need(), func(ctx context.Context, _ token.Auth) error {
		s, recovery, err = k.resealNow(ctx, old, at, sealer, spec)
		return err
	})
	return s, recovery, err
}

// resealNow is reseal in a turn of the token.
func (k *Keyring) resealNow(ctx context.Context, old *slot, at int, sealer token.Sealer, spec ResealSpec) (s *slot, recovery []byte, err error) {
	private, err := old.parts[at].unsealPrivate(ctx, spec.Recovery)
	if err != nil {
		return nil, nil, err
	}
	defer private.Wipe()
	d := old.draftOf(at)
	if spec.PCRs != "" {
		if err := d.seal(spec.PCRs); err != nil {
			return nil, nil, err
		}
	}
	created, recovery, err := k.sealPrivate(ctx, sealer, d, private, token.Auth{})
	if err != nil {
		return nil, nil, err
	}
	s, err = k.replacePart(ctx, old, at, d, created)
	if err != nil {
		clear(recovery)
		return nil, nil, err
	}
	return s, recovery, nil
}

// draftOf returns the draft of which part number at was made.
func (s *slot) draftOf(at int) draft {
	e, p := s.entry.Load(), s.parts[at]
	d := draft{
		use: p.use, shareTo: e.ShareTo, tags: p.tags(e), release: p.release(e), tokenName: p.tokenName, imported: p.imported,
		policy: p.policy, guard: p.guard, pcrs: p.pcrs,
	}
	if at > 0 {
		d.base = &slot{parts: s.parts[:at]}
	}
	return d
}

// tags returns those to which a part of e is bound.
func (p *part) tags(e *Entry) []string {
	if p.use != e.Use {
		return nil
	}
	return e.Tags
}

// release returns the one to which a part of e is bound.
func (p *part) release(e *Entry) token.Release {
	if p.use != e.Use {
		return token.ReleaseSeed
	}
	return e.Release
}

// replacePart returns the key with another sealed form of one part, which it opens.
func (k *Keyring) replacePart(ctx context.Context, old *slot, at int, d draft, created token.Created) (*slot, error) {
	if !created.Public.Equal(old.parts[at].public) {
		return nil, fmt.Errorf("%w: it opens to another key", token.ErrCorrupt)
	}
	record := old.record
	record.Parts = slices.Clone(record.Parts)
	record.Parts[at].Handle, record.Parts[at].PCRs = created.Handle, d.pcrs
	s, err := k.newSlot(record)
	if err != nil {
		return nil, err
	}
	_, err = s.parts[at].open(ctx)
	s.setState(err)
	return s, err
}

// Lock makes a token need its PIN again and wipes the keys in memory that it had opened,
// after operations that run have ended. Errors: token.ErrUnsupported.
func (k *Keyring) Lock(ctx context.Context, gate Gate, name string) error {
	tok, err := k.Token(name)
	if err != nil {
		return err
	}
	locker, ok := tok.(token.Locker)
	if !ok {
		return fmt.Errorf("token %q cannot be locked: %w", name, token.ErrUnsupported)
	}
	leave, err := gate.enter(ctx, name)
	if err != nil {
		return err
	}
	defer leave()
	return errors.Join(locker.Lock(ctx), k.forgetSealed(name))
}

// forgetSealed wipes the sealed keys of a token, of all if name is empty, that are open.
func (k *Keyring) forgetSealed(name string) error {
	var errs []error
	for _, s := range k.Snapshot().slots {
		for _, p := range s.parts {
			if p.guard != "" && (name == "" || p.tokenName == name) {
				errs = append(errs, p.forget())
			}
		}
	}
	return errors.Join(errs...)
}
