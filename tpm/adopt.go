package tpm

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// Adopt takes over the key of a TSS2 PEM file, as ssh-tpm-agent and the OpenSSL provider
// tpm2 write. Such a key is not bound to its use and associated data, and may
// be able to do more than its use: only its record says what it is for.
//
// A key that has an authorization value takes that as req.Auth.PIN, once: from then on
// it has the token's PIN, which must have been presented. Its own file stays as it is. A PIN that
// is empty and not nil is shown to the TPM too, whatever the file says: some programs
// write of keys without an authorization value that they have one.
// Errors: as token.Adopter; token.ErrCorrupt for a key of another TPM.
func (t *Token) Adopt(ctx context.Context, req token.AdoptRequest) (token.Created, error) {
	o, err := parsePEM(req.File)
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: adopt key: %w: %w", token.ErrBadKey, err)
	}
	b, err := newBlob(o)
	if err == nil && b.bound() {
		err = errors.New("key that needs a policy, or is this program's own")
	}
	if err == nil && purposeOf(b.key.Algorithm, req.Use)&b.purpose == 0 {
		err = fmt.Errorf("key made to %s, wanted for %q", b.purpose, string(req.Use))
	}
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: adopt key: %w: %w", token.ErrUnsupported, err)
	}
	if err := t.find(ctx); err != nil {
		return token.Created{}, err
	}
	if err := t.supports(b.key.Algorithm, req.Use); err != nil {
		return token.Created{}, fmt.Errorf("tpm: adopt key: %w", err)
	}
	return t.adopt(ctx, b, req.Auth)
}

func (t *Token) adopt(ctx context.Context, b *blob, auth token.Auth) (token.Created, error) {
	var own *offer
	switch {
	case len(auth.PIN) != 0:
		var err error
		if own, err = t.pin.offer(token.Auth{}); err != nil {
			return token.Created{}, fmt.Errorf("tpm: adopt key: unlock the token first: %w", err)
		}
		defer own.wipe()
	case auth.PIN == nil && !b.emptyAuth:
		err := &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "key's own PIN", TriesLeft: token.TriesUnknown}
		return token.Created{}, fmt.Errorf("tpm: adopt key: %w", err)
	}
	adopted, err := do(ctx, t, "adopt key", func(d *device) (*blob, error) {
		o, err := d.adopt(b.object)
		if err != nil || auth.PIN == nil {
			return &blob{object: o, key: b.key}, err
		}
		value, err := own.keyValue(d, o.valueName())
		if err != nil {
			return nil, err
		}
		defer clear(value)
		o, err = d.changeAuth(&o, auth.PIN, value)
		if err != nil {
			return nil, d.pinFault(err)
		}
		return &blob{object: o, key: b.key}, nil
	})
	if err != nil {
		return token.Created{}, err
	}
	return created(adopted)
}

// adopt finds the parent under which an object loads.
func (d *device) adopt(o object) (object, error) {
	o.parentName = d.srk.Name.Buffer
	tried := d.reload(&o)
	if !errors.Is(tried, tpm2.TPMRCIntegrity) {
		return o, tried
	}
	if err := d.evict(0); err != nil {
		return o, err
	}
	for p, err := range d.parents(&o) {
		if err != nil {
			return o, err
		}
		o.parentName = p.Name.Buffer
		_, tried = d.loadUnder(p.NamedHandle, &o)
		if err := d.dropParent(p); err != nil {
			return o, err
		}
		if tried == nil || !errors.Is(tried, tpm2.TPMRCIntegrity) {
			return o, tried
		}
	}
	return o, fmt.Errorf("made in another TPM, or under another parent than those of key files: %w", tried)
}

// Export writes a key as a TSS2 PEM file for other programs that use this TPM. A key that
// needs the PIN gives token.ErrUnsupported: other programs cannot give its authorization value.
func (t *Token) Export(handle []byte) ([]byte, error) {
	b, err := decodeBlob(handle)
	if err != nil {
		return nil, fmt.Errorf("tpm: export key: %w: %w", token.ErrCorrupt, err)
	}
	if !b.emptyAuth {
		return nil, fmt.Errorf("tpm: export key: its PIN is known here only: %w", token.ErrUnsupported)
	}
	file, err := b.pem()
	if err != nil {
		return nil, fmt.Errorf("tpm: export key: %w", err)
	}
	return file, nil
}
