package keyring

import (
	"context"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

// AdoptSpec says which key of a token to take over from another program.
type AdoptSpec struct {
	Token   string
	Use     token.Use
	Label   string
	Release token.Release
	File    []byte       // as token.AdoptRequest.File
	Slot    string       // as token.AdoptRequest.Slot
	Policy  token.Policy // as token.AdoptRequest.Policy
	Auth    token.Auth   // the key's own PIN, if it has one
}

// Adopt takes over a key that another program made in a token. It counts as imported, because
// what happened to it before is not known. existed is as that of Import. Deleting such a key
// forgets it. Errors as token.Adopter and Import.
func (k *Keyring) Adopt(ctx context.Context, gate Gate, spec AdoptSpec) (e *Entry, existed bool, err error) {
	d := draft{use: spec.Use, label: spec.Label, release: spec.Release, tokenName: spec.Token, imported: true, adopted: true, policy: spec.Policy}
	tok, err := k.beginAdopt(d)
	if err != nil {
		return nil, false, err
	}
	s, err := k.takeOver(ctx, gate, &d, tok, spec)
	if err != nil {
		return nil, false, err
	}
	part := s.parts[0]
	release, err := k.reserve(ctx, s.public.Index())
	if err != nil {
		return nil, false, errors.Join(err, part.forget())
	}
	defer release()
	if held, err := k.Snapshot().FindPublic(s.public); err == nil {
		if err := errors.Join(conflict(held, d, s.public), part.forget()); err != nil {
			return nil, false, err
		}
		return held, true, nil
	}
	if e, err = k.add(ctx, gate, s); err != nil {
		return nil, false, err
	}
	return e, false, nil
}

// takeOver has the token adopt the key. What that tells of the key's policies becomes part of the record, to
// which the handle is bound, so that the token is asked once more then; it is left as it is each time.
func (k *Keyring) takeOver(ctx context.Context, gate Gate, d *draft, tok tokenAdopter, spec AdoptSpec) (*slot, error) {
	learned := false
	for {
		s, err := k.create(ctx, gate, *d, tok, func(ctx context.Context, _ token.Auth) (token.Created, error) {
			created, err := tok.Adopt(ctx, token.AdoptRequest{
				File: spec.File, Slot: spec.Slot, Policy: d.policy, Use: d.use, Associated: d.associated(token.PublicKey{}), Auth: spec.Auth,
			})
			switch {
			case err != nil:
				return created, err
			case created.Policy == d.policy:
				return created, errors.Join(d.use.Allows(created.Public.Algorithm), d.release.Allows(d.use, created.Public.Algorithm))
			case created.Policy == token.Policy{}:
				return created, badField("PIN", errors.New("this token knows of no policies of the keys that it takes over"))
			case learned:
				return created, fmt.Errorf("%w: the key's policies change", token.ErrFault)
			}
			d.policy = created.Policy
			return created, errLearned
		})
		if !errors.Is(err, errLearned) {
			return s, err
		}
		learned = true
	}
}

// errLearned says that the policies of a key are known now.
var errLearned = errors.New("policies are known")

// tokenAdopter is a token that takes over keys.
type tokenAdopter interface {
	token.Token
	token.Adopter
}

func (k *Keyring) beginAdopt(d draft) (tokenAdopter, error) {
	// Of the algorithm nothing is known yet; P256 is one that every use allows.
	tok, err := k.begin(d, token.P256)
	if err != nil {
		return nil, err
	}
	adopter, ok := tok.(tokenAdopter)
	if !ok {
		return nil, fmt.Errorf("token %q takes over no keys of other programs: %w", d.tokenName, token.ErrUnsupported)
	}
	return adopter, nil
}

// Export returns the file of a key in a token, for other programs that use the same token.
// Nothing secret is in it. Errors: token.ErrUnsupported, token.ErrAbsent.
func (k *Keyring) Export(keyID string) ([]byte, error) {
	e, err := k.Snapshot().Find(keyID)
	if err != nil {
		return nil, err
	}
	p := e.slot.parts[0]
	if p.token == nil {
		return nil, p.notConfigured()
	}
	exporter, ok := p.token.(token.Exporter)
	if !ok || len(e.slot.parts) > 1 || p.guard != "" || p.protection != token.ProtectionToken {
		return nil, fmt.Errorf("a key with protection %q has no file for other programs: %w", e.Protected(), token.ErrUnsupported)
	}
	return exporter.Export(p.request.Handle)
}
