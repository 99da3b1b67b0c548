package piv

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// slotsFor lists the slots for a use, best first: the one that the standard has for it, then the
// retired ones (SP 800-73-4 Part 1, 3.1). The card authentication slot is for keys without a PIN.
func slotsFor(u token.Use, p token.PINPolicy) []applet.Slot {
	var out []applet.Slot
	switch {
	case p == token.PINNever && u.Signs():
		out = append(out, applet.SlotCard)
	case u == token.UseSSH:
		out = append(out, applet.SlotAuthentication)
	case u == token.UseSign, u == token.UseSignAssertion:
		out = append(out, applet.SlotSignature)
	case u.Agrees():
		out = append(out, applet.SlotManagement)
	}
	for s := applet.SlotRetired; s <= applet.SlotRetiredLast; s++ {
		out = append(out, s)
	}
	return out
}

// place returns where a new key goes: the slot asked for if it is free or may be lost, else
// the first free one of its use.
func (s *session) place(ctx context.Context, p token.Place, u token.Use, policy token.PINPolicy) (applet.Slot, error) {
	slots := slotsFor(u, policy)
	if p.Slot != "" {
		slot, err := applet.ParseSlot(p.Slot)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", token.ErrBadRequest, err)
		}
		if p.Overwrite {
			return slot, nil
		}
		slots = []applet.Slot{slot}
	}
	for _, slot := range slots {
		occupied, err := s.occupied(ctx, slot)
		switch {
		case err != nil:
			return 0, err
		case !occupied:
			return slot, nil
		case p.Slot != "" && !applet.HasMetadata(s.worker.version):
			return 0, fmt.Errorf("%w: %w, or not: %v: firmware %v does not tell", token.ErrBadRequest, ErrOccupied, slot, s.worker.version)
		case p.Slot != "":
			return 0, fmt.Errorf("%w: %w: %v", token.ErrBadRequest, ErrOccupied, slot)
		}
	}
	if !applet.HasMetadata(s.worker.version) {
		return 0, fmt.Errorf("%w: %w, or not: firmware %v does not tell; name one that may be overwritten", token.ErrBadRequest, ErrFull, s.worker.version)
	}
	return 0, fmt.Errorf("%w: %w", token.ErrBadRequest, ErrFull)
}

// occupied reports whether a slot has a key or a certificate. Of a card without metadata
// that cannot be known, and every slot counts as occupied.
func (s *session) occupied(ctx context.Context, slot applet.Slot) (bool, error) {
	if !applet.HasMetadata(s.worker.version) {
		return true, nil
	}
	m, err := s.Metadata(ctx, slot)
	switch {
	case errors.Is(err, apdu.ReferenceMissing), err == nil && isTombstone(m.Public):
	case err == nil, errors.Is(err, token.ErrUnsupported): // a key of another kind
		return true, nil
	default:
		return false, err
	}
	_, err = s.Certificate(ctx, slot)
	switch {
	case errors.Is(err, apdu.NotFound):
		return false, nil
	case err == nil, errors.Is(err, apdu.ErrMalformed):
		return true, nil
	}
	return false, err
}

// contents returns what is in a slot, as the card tells it now or since it was connected.
// token.ErrNotFound says that the slot is empty.
func (s *session) contents(ctx context.Context, slot applet.Slot) (applet.Metadata, error) {
	if m, ok := s.seen.checked[slot]; ok {
		return m, nil
	}
	m, err := s.look(ctx, slot)
	if err == nil {
		s.seen.checked[slot] = m
	}
	return m, err
}

func (s *session) look(ctx context.Context, slot applet.Slot) (applet.Metadata, error) {
	if !applet.HasMetadata(s.worker.version) {
		return s.lookWithoutMetadata(ctx, slot)
	}
	m, err := s.Metadata(ctx, slot)
	m.Policy = orSlotPolicy(m.Policy, slot)
	if err == nil && isTombstone(m.Public) {
		return m, fmt.Errorf("%w: slot %v was emptied", token.ErrNotFound, slot)
	}
	if errors.Is(err, apdu.ReferenceMissing) {
		return m, fmt.Errorf("%w: slot %v is empty: %w", token.ErrNotFound, slot, err)
	}
	return m, err
}

// lookWithoutMetadata takes the public key from the card's attestation or, of keys that the
// card did not generate, from the slot's certificate. The policies are in an attestation only;
// cards before version 4 have none but those of the slots.
func (s *session) lookWithoutMetadata(ctx context.Context, slot applet.Slot) (applet.Metadata, error) {
	var status apdu.Status
	cert, err := s.Attest(ctx, slot)
	if err == nil {
		m, err := metadataOf(cert)
		m.Policy = orSlotPolicy(m.Policy, slot)
		return m, err
	}
	if !errors.As(err, &status) {
		return applet.Metadata{}, err
	}
	cert, err = s.Certificate(ctx, slot)
	if errors.As(err, &status) {
		return applet.Metadata{}, fmt.Errorf("%w: slot %v has no certificate: %w", token.ErrNotFound, slot, err)
	}
	if err != nil {
		return applet.Metadata{}, err
	}
	public, err := certified(cert)
	m := applet.Metadata{Public: public}
	if !applet.HasPolicies(s.worker.version) {
		m.Policy = slotPolicy(slot)
	}
	return m, err
}

func metadataOf(cert *x509.Certificate) (applet.Metadata, error) {
	public, err := certified(cert)
	if err != nil {
		return applet.Metadata{}, err
	}
	statement, err := applet.ParseStatement(cert)
	return applet.Metadata{Public: public, Policy: statement.Policy, Generated: true}, err
}

// certified returns the public key of a certificate. cert.PublicKey would be nil for X25519.
func certified(cert *x509.Certificate) (token.PublicKey, error) {
	key, err := x509.ParsePKIXPublicKey(cert.RawSubjectPublicKeyInfo)
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("certificate: %w: %w", apdu.ErrMalformed, err)
	}
	return applet.PublicOf(key)
}

// slotPolicy is what the standard has for a slot (SP 800-73-4 Part 1, Table 4b).
func slotPolicy(slot applet.Slot) token.Policy {
	switch slot {
	case applet.SlotSignature:
		return token.Policy{PIN: token.PINAlways, Touch: token.TouchNever}
	case applet.SlotCard:
		return token.Policy{PIN: token.PINNever, Touch: token.TouchNever}
	}
	return token.Policy{PIN: token.PINOnce, Touch: token.TouchNever}
}

// orSlotPolicy fills in what a card leaves to the slot.
func orSlotPolicy(p token.Policy, slot applet.Slot) token.Policy {
	if p.PIN == token.PINDefault {
		p.PIN = slotPolicy(slot).PIN
	}
	if p.Touch == token.TouchDefault {
		p.Touch = token.TouchNever
	}
	return p
}

// check compares what is in a slot with a key and returns what the card tells of it.
func (s *session) check(ctx context.Context, slot applet.Slot, index [32]byte) (applet.Metadata, error) {
	m, err := s.contents(ctx, slot)
	if err != nil {
		return m, err
	}
	if m.Public.Index() != index {
		return m, fmt.Errorf("%w: slot %v holds another key", token.ErrNotFound, slot)
	}
	return m, nil
}
