package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// undoTimeout is how long the removal of a half-made key from its token may take.
const undoTimeout = 10 * time.Second

// GenerateSpec says which key to make.
type GenerateSpec struct {
	Token     string
	Algorithm token.Algorithm
	Use       token.Use
	Label     string            // one line of at most 256 octets, or empty
	ShareTo   []token.PublicKey // for use split, and only for it: X25519 or X448 keys
	Tags      []string          // for use sign-assertion, and only for it: the tags of the bodies it signs
	Release   token.Release     // for use decrypt on a curve, and only for it
	Policy    token.Policy      // what the key asks of its user
	PCRs      string            // for GenerateSealed only: a selection such as "sha256:7,14"
	Place     token.Place       // in the token, for Generate only
}

// ImportSpec says which key to take in.
type ImportSpec struct {
	Token   string
	Use     token.Use
	Label   string
	Private *token.PrivateKey // the caller wipes it
	ShareTo []token.PublicKey
	Tags    []string
	Release token.Release
	Policy  token.Policy
	PCRs    string      // for ImportSealed only
	Place   token.Place // in the token, for Import only
}

// CompositeSpec says which contribution to add to which key.
type CompositeSpec struct {
	// Base is the KeyId of a key that the ring holds, of a use that Use.OfSum returns.
	Base string
	// Token takes the contribution, or seals it if Seal is set.
	Token string
	Seal  bool
	// Policy is that of the contribution.
	Policy token.Policy
	Use    token.Use
	Label  string
	// Release is that of the base if the sum has the use of the base.
	Release token.Release
	// Contribution is the scalar that is added, on the curve of Base. The caller wipes it.
	Contribution *token.PrivateKey
}

// Generate makes a key in a token. The key appears when its record is on disk and the
// token has opened it. Errors as token.Generator; token.ErrNotFound for an unknown token,
// token.ErrBadRequest for bad recipients or a bad label, token.ErrFault for a token that
// does not stand by what it made.
func (k *Keyring) Generate(ctx context.Context, gate Gate, spec GenerateSpec) (*Entry, error) {
	d := draft{use: spec.Use, label: spec.Label, shareTo: spec.ShareTo, tags: spec.Tags, release: spec.Release, tokenName: spec.Token, policy: spec.Policy}
	if spec.PCRs != "" {
		return nil, errPCRs
	}
	tok, err := k.begin(d, spec.Algorithm)
	if err != nil {
		return nil, err
	}
	generator, ok := tok.(token.Generator)
	if !ok {
		return nil, fmt.Errorf("token %q makes no keys: %w", spec.Token, token.ErrUnsupported)
	}
	s, err := k.create(ctx, gate, d, tok, func(ctx context.Context, auth token.Auth) (token.Created, error) {
		return generator.Generate(ctx, token.GenerateRequest{
			Algorithm: spec.Algorithm, Use: spec.Use, Associated: d.associated(token.PublicKey{}), Policy: d.policy, Place: spec.Place, Auth: auth,
		})
	})
	if err != nil {
		return nil, err
	}
	if s.public.Algorithm != spec.Algorithm {
		return nil, errors.Join(fmt.Errorf("%w: asked for %s, got %s", token.ErrFault, spec.Algorithm, s.public.Algorithm), k.undo(ctx, gate, s.parts[0]))
	}
	release, err := k.reserve(ctx, s.public.Index())
	if err != nil {
		return nil, errors.Join(err, k.undo(ctx, gate, s.parts[0]))
	}
	defer release()
	return k.add(ctx, gate, s)
}

// Import puts a key into a token. existed is true if the same key with the same use, token
// and recipients was there already, and then nothing changes; if any of these differs, the
// error is a *ConflictError. Errors otherwise as token.Importer and Generate.
func (k *Keyring) Import(ctx context.Context, gate Gate, spec ImportSpec) (e *Entry, existed bool, err error) {
	d := draft{use: spec.Use, label: spec.Label, shareTo: spec.ShareTo, tags: spec.Tags, release: spec.Release, tokenName: spec.Token, imported: true, policy: spec.Policy}
	if spec.PCRs != "" {
		return nil, false, errPCRs
	}
	importer, err := k.beginImport(d, spec.Private.Algorithm)
	if err != nil {
		return nil, false, err
	}
	return k.importOnce(ctx, gate, d, importer, spec.Private, func(ctx context.Context, auth token.Auth) (token.Created, error) {
		return importer.Import(ctx, token.ImportRequest{
			Private: spec.Private, Use: d.use, Associated: d.associated(token.PublicKey{}), Policy: d.policy, Place: spec.Place, Auth: auth,
		})
	})
}

// importOnce has make put a key into the token unless the ring has it.
func (k *Keyring) importOnce(ctx context.Context, gate Gate, d draft, tok token.Token, private *token.PrivateKey, make making) (e *Entry, existed bool, err error) {
	public, err := mesh.PublicOf(private)
	if err != nil {
		return nil, false, fmt.Errorf("import key: %w", err)
	}
	release, err := k.reserve(ctx, public.Index())
	if err != nil {
		return nil, false, err
	}
	defer release()
	if held, err := k.Snapshot().FindPublic(public); err == nil {
		if err := conflict(held, d, public); err != nil {
			return nil, false, err
		}
		return held, true, nil
	}
	e, err = k.importNew(ctx, gate, d, tok, public, make)
	return e, false, err
}

// importNew has make put a key into the token and checks that it is the one of public.
func (k *Keyring) importNew(ctx context.Context, gate Gate, d draft, tok token.Token, public token.PublicKey, make making) (*Entry, error) {
	s, err := k.create(ctx, gate, d, tok, make)
	if err != nil {
		return nil, err
	}
	part := s.parts[len(s.parts)-1]
	if !s.public.Equal(public) {
		return nil, errors.Join(fmt.Errorf("%w: it reports another public key", token.ErrFault), k.undo(ctx, gate, part))
	}
	return k.add(ctx, gate, s)
}

// AddComposite makes a key that is the sum of a key in the ring, wherever that lives, and
// a contribution that is imported. The base key stays. Keys that agree add their points; keys that sign are
// Ed25519 or Ed448 and add their scalars, so that all parts must be software or sealed: no
// token signs with a sum. Errors as Import, and token.ErrUnsupported.
func (k *Keyring) AddComposite(ctx context.Context, gate Gate, spec CompositeSpec) (*Entry, error) {
	base, err := k.Snapshot().Find(spec.Base)
	if err != nil {
		return nil, fmt.Errorf("base: %w", err)
	}
	if err := base.checkBase(spec.Use, spec.Release); err != nil {
		return nil, err
	}
	if base.Algorithm != spec.Contribution.Algorithm {
		return nil, fmt.Errorf("%w: a contribution of algorithm %s to a key of %s", token.ErrBadRequest, spec.Contribution.Algorithm, base.Algorithm)
	}
	d := draft{use: spec.Use, label: spec.Label, release: spec.Release, tokenName: spec.Token, imported: true, policy: spec.Policy, base: base.slot}
	add, err := k.beginContribution(&d, spec)
	if err != nil {
		return nil, err
	}
	public, err := d.sum(spec.Contribution)
	if err != nil {
		return nil, err
	}
	release, err := k.reserveAll(ctx, base.Public.Index(), public.Index())
	if err != nil {
		return nil, err
	}
	defer release()
	if now, err := k.Snapshot().FindPublic(base.Public); err != nil || now.slot != base.slot {
		return nil, fmt.Errorf("base: %w", token.ErrNotFound) // deleted while this waited
	}
	if held, err := k.Snapshot().FindPublic(public); err == nil {
		return nil, &ConflictError{Udf: held.Udf, Use: held.Use, Token: held.Token, Differs: "composition"}
	}
	return k.importNew(ctx, gate, d, k.lookup(d.tokenName), public, add)
}

// checkBase says whether the key can be a part of a sum of a use and a release. Who knows the contribution has from
// the sum what the base would give, so that the sum of a base that clients use gives out no more.
func (e *Entry) checkBase(use token.Use, release token.Release) error {
	switch {
	case !slices.Contains(use.OfSum(), e.Use):
		return fmt.Errorf("%w %q on a base of use %q", ErrUse, string(use), string(e.Use))
	case e.Use == use && e.Release != release:
		return badField("Release", fmt.Errorf("%q on a base of release %q", release.String(), e.Release.String()))
	case use.Agrees():
		return nil
	case use != token.UseSign:
		return fmt.Errorf("%w %q: a sum agrees or signs", ErrUse, string(use))
	case e.Algorithm != token.Ed25519 && e.Algorithm != token.Ed448:
		return fmt.Errorf("signature by a sum of %s keys: %w", e.Algorithm, token.ErrUnsupported)
	}
	for _, p := range e.slot.parts {
		if p.protection == token.ProtectionToken {
			return fmt.Errorf("signature by a sum with a key in token %q: %w", p.tokenName, token.ErrUnsupported)
		}
	}
	return nil
}

// beginContribution checks what is asked for and returns what takes the contribution in.
func (k *Keyring) beginContribution(d *draft, spec CompositeSpec) (making, error) {
	if spec.Seal {
		if err := d.seal(""); err != nil {
			return nil, err
		}
		sealer, err := k.beginSeal(*d, spec.Contribution.Algorithm)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, auth token.Auth) (token.Created, error) {
			created, _, err := k.sealPrivate(ctx, sealer, *d, spec.Contribution, auth)
			return created, err
		}, nil
	}
	importer, err := k.beginImport(*d, spec.Contribution.Algorithm)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, auth token.Auth) (token.Created, error) {
		return importer.Import(ctx, token.ImportRequest{
			Private: spec.Contribution, Use: d.use, Associated: d.associated(token.PublicKey{}), Policy: d.policy, Auth: auth,
		})
	}, nil
}

// Delete deletes a key for good: from its token, if that keeps keys, and its record. If the
// token refuses, the key stays; a token that no longer has the key, was replaced or is not
// configured does not matter. Operations that run end as they will.
func (k *Keyring) Delete(ctx context.Context, gate Gate, keyID string) (*Entry, error) {
	e, err := k.Snapshot().Find(keyID)
	if err != nil {
		return nil, err
	}
	n := Need{Unlock: true}
	err = attended(ctx, e.subject(), token.Auth{}, func() Need { return n }, func(ctx context.Context, _ token.Auth) (err error) {
		n.Token, err = k.deleteOnce(ctx, gate, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range e.slot.parts {
		errs = append(errs, p.forget())
	}
	return e, errors.Join(errs...)
}

// deleteOnce is Delete without asking anybody: the key is out of use meanwhile. With an error it returns which token the
// part is in that was not deleted.
func (k *Keyring) deleteOnce(ctx context.Context, gate Gate, e *Entry) (at string, err error) {
	release, err := k.reserveAll(ctx, e.slot.indices()...)
	if err != nil {
		return "", err
	}
	defer release()
	if now, err := k.Snapshot().FindPublic(e.Public); err != nil || now.slot != e.slot {
		return "", token.ErrNotFound // deleted while this waited
	}
	if err := k.CheckRollback(ctx, gate); err != nil { // before anything is deleted
		return "", err
	}
	e.slot.deleted.Store(true)
	at, err = k.deleteParts(ctx, gate, e.slot)
	if err == nil {
		if err = k.removeRecord(ctx, gate, e.Udf); errors.Is(err, store.ErrNotFound) {
			err = nil
		}
	}
	if err != nil {
		e.slot.deleted.Store(false)
		return at, fmt.Errorf("delete key: %w", err)
	}
	k.publish(func(s *Snapshot) *Snapshot { return s.without(e.slot) })
	return "", nil
}

// indices are those of the key and of its parts. Who deletes a key reserves all: of two keys that share a
// part, deleted at once, each would otherwise leave the part to the other.
func (s *slot) indices() [][sha256.Size]byte {
	out := [][sha256.Size]byte{s.public.Index()}
	for _, p := range s.parts {
		out = append(out, p.public.Index())
	}
	return out
}

// deleteParts returns the token of the part that could not be deleted with the error.
func (k *Keyring) deleteParts(ctx context.Context, gate Gate, s *slot) (at string, err error) {
	for _, p := range s.parts {
		if k.usedElsewhere(s, p) {
			continue
		}
		err := p.deleteFromToken(ctx, gate)
		if err != nil && !errors.Is(err, token.ErrNotFound) && !errors.Is(err, token.ErrReplaced) {
			return p.tokenName, err
		}
	}
	return "", nil
}

// usedElsewhere reports whether another key has this part too: a composite its base's. A record that did not
// load may be mended one day.
func (k *Keyring) usedElsewhere(s *slot, p *part) bool {
	if slices.ContainsFunc(k.broken, func(b store.Part) bool {
		return b.Token == p.tokenName && bytes.Equal(b.Handle, p.request.Handle)
	}) {
		return true
	}
	return slices.ContainsFunc(k.Snapshot().slots, func(other *slot) bool {
		return other != s && slices.ContainsFunc(other.parts, p.sameHandle)
	})
}

func (p *part) deleteFromToken(ctx context.Context, gate Gate) error {
	deleter, ok := p.token.(token.Deleter)
	if !ok || p.guard != "" { // the token keeps nothing of what it sealed
		return nil
	}
	leave, err := gate.enter(ctx, p.tokenName)
	if err != nil {
		return err
	}
	defer leave()
	return deleter.Delete(ctx, p.request.Handle)
}

// draft is a key that is about to be made: what it will be bound to.
type draft struct {
	use       token.Use
	label     string
	shareTo   []token.PublicKey
	tags      []string
	release   token.Release
	tokenName string
	imported  bool
	policy    token.Policy
	guard     token.Guard // of a key that is to be sealed, which pcrs is for too
	pcrs      string
	adopted   bool  // it was in the token before
	base      *slot // the parts before this one, or nil
}

// associated returns what the key is bound to; public is that of a sealed key.
func (d draft) associated(public token.PublicKey) []byte {
	id := identity{
		use: d.use, token: d.tokenName, imported: d.imported, shareTo: d.shareTo,
		tags: d.tags, release: d.release, policy: d.policy, guard: d.guard, pcrs: d.pcrs, public: public,
	}
	if d.base != nil {
		for _, p := range d.base.parts {
			id.earlier = append(id.earlier, p.public)
		}
	}
	return id.octets()
}

// sum returns the public key of base and contribution together.
func (d draft) sum(contribution *token.PrivateKey) (token.PublicKey, error) {
	public, err := mesh.PublicOf(contribution)
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("contribution: %w", err)
	}
	point, err := checkPublic(public)
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("contribution: %w", err)
	}
	octets, err := sumPublic(append(slices.Clone(d.base.parts), &part{public: public, point: point}))
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("contribution: %w: %w", token.ErrBadKey, err)
	}
	return token.PublicKey{Algorithm: public.Algorithm, Octets: octets}, nil
}

// record returns the record of the finished key. It has no UDF if the public key has none.
func (d draft) record(c token.Created) (store.Record, error) {
	r := store.Record{
		Version: store.Version, Algorithm: string(c.Public.Algorithm), Use: string(d.use),
		Public: c.Public.Octets, Label: d.label, Tags: d.tags, Release: string(d.release), Created: time.Now().UTC().Truncate(time.Second),
	}
	for _, p := range d.shareTo {
		r.ShareTo = append(r.ShareTo, store.PublicKey{Algorithm: string(p.Algorithm), Public: p.Octets})
	}
	if d.base != nil {
		r.Parts = slices.Clone(d.base.record.Parts)
		for i, p := range d.base.parts {
			if r.Parts[i].Use = ""; p.use != d.use {
				r.Parts[i].Use = string(p.use)
			}
		}
	}
	r.Parts = append(r.Parts, store.Part{
		Token: d.tokenName, Handle: c.Handle, Public: c.Public.Octets,
		Protection: string(c.Protection), Imported: d.imported,
		PIN: string(d.policy.PIN), Touch: string(d.policy.Touch), Guard: string(d.guard), PCRs: d.pcrs,
	})
	point, err := checkPublic(c.Public)
	if err != nil {
		return r, err
	}
	public := c.Public
	if d.base != nil {
		added := &part{public: c.Public, point: point}
		if r.Public, err = sumPublic(append(slices.Clone(d.base.parts), added)); err != nil {
			return r, err
		}
		public.Octets = r.Public
	}
	r.Udf, err = mesh.Fingerprint(public, mesh.G1)
	return r, err
}

// begin checks what is asked for and finds the token.
func (k *Keyring) begin(d draft, alg token.Algorithm) (token.Token, error) {
	if _, err := token.ParseAlgorithm(string(alg)); err != nil {
		return nil, badField("Algorithm", err)
	}
	if _, err := token.ParseKeyUse(string(d.use)); err != nil {
		return nil, badField("Use", err)
	}
	if err := checkTags(d.use, d.tags); err != nil {
		return nil, err
	}
	if err := d.use.Allows(alg); err != nil {
		return nil, err
	}
	if err := d.release.Allows(d.use, alg); err != nil {
		return nil, badField("Release", err)
	}
	if err := checkShareTo(d.use, d.shareTo); err != nil {
		return nil, err
	}
	if err := store.CheckLabel(d.label); err != nil {
		return nil, badField("Label", err)
	}
	return k.Token(d.tokenName)
}

// badField begins with the member of the request that is wrong, as replies of status 400 do.
func badField(name string, err error) error {
	return fmt.Errorf("%s: %w: %w", name, token.ErrBadRequest, err)
}

// tokenImporter is a token that takes keys in.
type tokenImporter interface {
	token.Token
	token.Importer
}

func (k *Keyring) beginImport(d draft, alg token.Algorithm) (tokenImporter, error) {
	tok, err := k.begin(d, alg)
	if err != nil {
		return nil, err
	}
	importer, ok := tok.(tokenImporter)
	if !ok {
		return nil, fmt.Errorf("token %q takes no keys in: %w", d.tokenName, token.ErrUnsupported)
	}
	return importer, nil
}

// conflict compares a key that is held with what was asked for.
func conflict(held *Entry, d draft, public token.PublicKey) error {
	differs := ""
	switch {
	case held.Use != d.use:
		differs = "use"
	case held.Token != d.tokenName || len(held.slot.parts) > 1:
		differs = "token"
	case held.slot.parts[0].guard != d.guard:
		differs = "protection"
	case !held.Public.Equal(public):
		differs = "sign of the public key"
	case !slices.EqualFunc(held.ShareTo, d.shareTo, token.PublicKey.Equal):
		differs = "share-to"
	case !slices.Equal(held.Tags, d.tags):
		differs = "tags"
	case held.Release != d.release:
		differs = "release"
	default:
		return nil
	}
	return &ConflictError{Udf: held.Udf, Use: held.Use, Token: held.Token, Differs: differs}
}

// making has a token make a key, or take it in, or seal it.
type making func(ctx context.Context, auth token.Auth) (token.Created, error)

// create has the token make the key, and opens it, in one turn at the gate. If
// anything is wrong with it, it is undone.
func (k *Keyring) create(ctx context.Context, gate Gate, d draft, tok token.Token, make making) (*slot, error) {
	var s *slot
	var refused error // of what was made: nobody is asked, and nothing made twice
	n := Need{Token: d.tokenName, Unlock: d.adopted}
	err := inTurn(ctx, gate, Subject{Label: d.label}, n, func(ctx context.Context, auth token.Auth) error {
		created, err := make(ctx, auth)
		if err != nil {
			return fmt.Errorf("make key in token %q: %w", d.tokenName, err)
		}
		if s, refused = k.adopt(ctx, d, created); refused != nil && !d.adopted {
			p := &part{tokenName: d.tokenName, token: tok, guard: d.guard, request: token.OpenRequest{Handle: created.Handle}}
			refused = errors.Join(refused, k.undo(ctx, nil, p))
		}
		return nil
	})
	if err == nil {
		err = refused
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// adopt checks what the token made and opens it.
func (k *Keyring) adopt(ctx context.Context, d draft, created token.Created) (*slot, error) {
	record, err := d.record(created)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	s, err := k.newSlot(record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	if _, err := s.parts[len(s.parts)-1].open(ctx); err != nil {
		return nil, fmt.Errorf("open the new key: %w", err)
	}
	s.setState(nil)
	return s, nil
}

// add writes the record of a key that is reserved and lets it appear.
func (k *Keyring) add(ctx context.Context, gate Gate, s *slot) (*Entry, error) {
	if err := k.addRecord(ctx, gate, &s.record); err != nil {
		return nil, errors.Join(err, k.undo(ctx, gate, s.parts[len(s.parts)-1]))
	}
	k.publish(func(old *Snapshot) *Snapshot { return old.with(s) })
	return s.entry.Load(), nil
}

var errPCRs = fmt.Errorf("PCRs: %w: for sealed keys only", token.ErrBadRequest)

// undo removes a key that will not appear from its token, although the request may be over.
func (k *Keyring) undo(ctx context.Context, gate Gate, p *part) error {
	ctx, cancel := context.WithTimeout(WithAsker(context.WithoutCancel(ctx), nil), undoTimeout)
	defer cancel()
	if err := errors.Join(p.forget(), p.deleteFromToken(ctx, gate)); err != nil {
		return fmt.Errorf("undo: %w", err)
	}
	return nil
}
