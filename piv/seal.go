package piv

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// A sealed secret is a version octet, the handle and public key of a P-256 key of the card, and
// the ciphertext of HPKE (RFC 9180) with DHKEM(P-256, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM.
const (
	sealVersion   = 1
	sealPublicLen = 65
	sealHeadLen   = 1 + handleLen + sealPublicLen

	sealDomain = "mesh-agent piv seal v1"
)

// sealTags are the tags, in the note on the card, of the handles of the keys that seal.
func sealTags() []sealTag { return []sealTag{{0x80, token.PINOnce}, {0x81, token.PINNever}} }

type sealTag struct {
	tag apdu.Tag
	pin token.PINPolicy
}

var _ token.Sealer = (*Token)(nil)

// Seal encrypts to a P-256 key that the card generated, with req.PIN as its policy, and that does
// nothing else. The first Seal of each policy makes the key, in slot 9d if it is free, for which it
// needs what Generate needs. Errors: as token.Sealer and Generate; token.ErrUnsupported also for
// a card that does not tell what is in its slots (before firmware 5.3).
func (t *Token) Seal(ctx context.Context, req token.SealRequest) (token.Sealed, error) {
	fail := func(err error) (token.Sealed, error) {
		return token.Sealed{}, fmt.Errorf("%s: seal: %w", Name(t.options.Serial), err)
	}
	guard, ok := map[token.PINPolicy]token.Guard{token.PINOnce: token.GuardPIN, token.PINNever: token.GuardMachine}[req.PIN]
	switch {
	case req.PCRs != "":
		return fail(fmt.Errorf("a PIV card has no PCRs: %w", token.ErrUnsupported))
	case !ok:
		return fail(fmt.Errorf("PIN policy %q: %w", string(req.PIN), token.ErrUnsupported))
	}
	key, err := t.sealKey(ctx, req)
	if err != nil {
		return token.Sealed{}, err
	}
	blob, err := sealTo(key, req.Secret, req.Associated)
	if err != nil {
		return fail(err)
	}
	return token.Sealed{Blob: blob, Guard: guard}, nil
}

// sealKey finds or makes the key of a policy.
func (t *Token) sealKey(ctx context.Context, req token.SealRequest) (token.Created, error) {
	key, err := do(ctx, t, "seal", func(ctx context.Context, s *session) (token.Created, error) {
		return s.findSealKey(ctx, req.PIN)
	})
	if !errors.Is(err, token.ErrNotFound) {
		return key, err
	}
	return t.create(ctx, "make sealing key", req.Auth, func(ctx context.Context, s *session) (token.Created, error) {
		key, err := s.findSealKey(ctx, req.PIN) // another agent may have made it
		if !errors.Is(err, token.ErrNotFound) {
			return key, err
		}
		return s.makeSealKey(ctx, req.PIN)
	})
}

// sealKeys returns the handles in the note. A note that is not one is as none.
func (s *session) sealKeys(ctx context.Context) (map[token.PINPolicy]handle, error) {
	b, err := s.Data(ctx, applet.ObjectSealing)
	if errors.Is(err, apdu.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	objects, err := apdu.ParseAll(b)
	if err != nil {
		return nil, nil
	}
	keys := map[token.PINPolicy]handle{}
	for _, t := range sealTags() {
		if h, err := decodeHandle(objects[t.tag]); err == nil && h.serial == s.worker.token.options.Serial {
			keys[t.pin] = h
		}
	}
	return keys, nil
}

// findSealKey returns the key of a policy if the card has it and vouches for it: whoever has the
// management key can write a note. token.ErrNotFound says that there is none.
func (s *session) findSealKey(ctx context.Context, p token.PINPolicy) (token.Created, error) {
	if !applet.HasMetadata(s.worker.version) {
		return token.Created{}, fmt.Errorf("firmware %v does not tell what is in a slot: %w", s.worker.version, token.ErrUnsupported)
	}
	none := fmt.Errorf("%w: no sealing key", token.ErrNotFound)
	keys, err := s.sealKeys(ctx)
	if err != nil {
		return token.Created{}, err
	}
	h, ok := keys[p]
	if !ok {
		return token.Created{}, none
	}
	delete(s.seen.checked, h.slot)
	m, err := s.contents(ctx, h.slot)
	if err != nil {
		return token.Created{}, err
	}
	wanted := m.Generated && m.Policy == sealPolicy(p) && m.Public.Algorithm == token.P256
	if !wanted || h != h.bind(m.Public, token.UseSeal, nil) {
		return token.Created{}, none
	}
	return token.Created{Handle: h.encode(), Public: m.Public}, nil
}

func sealPolicy(p token.PINPolicy) token.Policy {
	return token.Policy{PIN: p, Touch: token.TouchNever}
}

// makeSealKey makes the key of a policy and notes it beside the other one. The management key
// was presented.
func (s *session) makeSealKey(ctx context.Context, p token.PINPolicy) (token.Created, error) {
	keys, err := s.sealKeys(ctx)
	if err != nil {
		return token.Created{}, err
	}
	slot, err := s.place(ctx, token.Place{}, token.UseSeal, p)
	if err != nil {
		return token.Created{}, err
	}
	s.change(slot)
	public, err := s.Applet.Generate(ctx, slot, token.P256, sealPolicy(p))
	if err != nil {
		return token.Created{}, err
	}
	h := handle{serial: s.worker.token.options.Serial, slot: slot}.bind(public, token.UseSeal, nil)
	var note []byte
	for _, t := range sealTags() {
		if other, ok := keys[t.pin]; t.pin == p {
			note = apdu.Append(note, t.tag, h.encode())
		} else if ok {
			note = apdu.Append(note, t.tag, other.encode())
		}
	}
	return token.Created{Handle: h.encode(), Public: public}, s.PutData(ctx, applet.ObjectSealing, note)
}

// seals reports whether the key in a slot is one that secrets are sealed to.
func (s *session) seals(ctx context.Context, slot applet.Slot, public token.PublicKey) (bool, error) {
	keys, err := s.sealKeys(ctx)
	for _, h := range keys {
		if h.slot == slot && h.index == public.Index() {
			return true, nil
		}
	}
	return false, err
}

func sealInfo(associated []byte) []byte {
	sum := sha256.Sum256(associated)
	return append([]byte(sealDomain), sum[:]...)
}

func sealTo(key token.Created, secret, associated []byte) ([]byte, error) {
	ciphertext, err := token.EncryptTo(key.Public, sealInfo(associated), secret)
	if err != nil {
		return nil, err
	}
	blob := append([]byte{sealVersion}, key.Handle...)
	return append(append(blob, key.Public.Octets...), ciphertext...), nil
}

// Unseal decrypts with the key of the card that the blob names. Errors as token.Sealer;
// token.ErrCorrupt also if that key is no longer in its slot.
func (t *Token) Unseal(ctx context.Context, req token.UnsealRequest) ([]byte, error) {
	corrupt := func(reason any) error {
		return fmt.Errorf("%s: unseal: %w: %v", Name(t.options.Serial), token.ErrCorrupt, reason)
	}
	if len(req.Blob) < sealHeadLen || req.Blob[0] != sealVersion {
		return nil, corrupt("not a secret sealed by a PIV card")
	}
	octets := req.Blob[1+handleLen : sealHeadLen]
	k, err := t.Open(ctx, token.OpenRequest{
		Handle: req.Blob[1 : 1+handleLen], Use: token.UseSeal, Public: token.PublicKey{Algorithm: token.P256, Octets: octets},
	})
	if errors.Is(err, token.ErrNotFound) {
		return nil, corrupt(err)
	}
	if err != nil {
		return nil, err
	}
	return token.DecryptWith(ctx, k, req.Auth, sealInfo(req.Associated), req.Blob[sealHeadLen:])
}
