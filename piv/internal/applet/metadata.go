package applet

import (
	"context"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/token"
)

// HasMetadata reports whether a card of this version tells what is in its slots.
func HasMetadata(v Version) bool { return v.AtLeast(5, 3) }

// HasPolicies reports whether a card of this version lets each key have its own PIN and touch policy.
func HasPolicies(v Version) bool { return v.AtLeast(4, 0) }

// Metadata is what the card tells of the key in a slot.
type Metadata struct {
	Public    token.PublicKey
	Policy    token.Policy // zero, or a part of it, if the card does not tell or leaves it to the slot
	Generated bool         // in the card, not imported
}

// The data objects of metadata.
const (
	metaAlgorithm apdu.Tag = 0x01
	metaPolicy    apdu.Tag = 0x02
	metaOrigin    apdu.Tag = 0x03
	metaPublic    apdu.Tag = 0x04
	metaDefault   apdu.Tag = 0x05
	metaTries     apdu.Tag = 0x06
)

func (a Applet) metadata(ctx context.Context, reference byte) (map[apdu.Tag][]byte, error) {
	b, err := a.send(ctx, insMetadata, 0, reference, nil)
	if err != nil {
		return nil, fmt.Errorf("read metadata of %02x: %w", reference, err)
	}
	objects, err := apdu.ParseAll(b)
	return objects, explain(fmt.Sprintf("read metadata of %02x", reference), err)
}

// Metadata returns what is in a slot. apdu.ReferenceMissing says that it is empty.
func (a Applet) Metadata(ctx context.Context, s Slot) (Metadata, error) {
	objects, err := a.metadata(ctx, byte(s))
	if err != nil {
		return Metadata{}, err
	}
	m, err := parseMetadata(objects)
	return m, explain(fmt.Sprintf("read metadata of slot %v", s), err)
}

func parseMetadata(objects map[apdu.Tag][]byte) (Metadata, error) {
	id, err := octet(objects, metaAlgorithm)
	if err != nil {
		return Metadata{}, err
	}
	origin, err := octet(objects, metaOrigin)
	if err != nil {
		return Metadata{}, err
	}
	const generated, imported = 1, 2
	if origin != generated && origin != imported {
		return Metadata{}, fmt.Errorf("%w: origin %d", apdu.ErrMalformed, origin)
	}
	alg, err := lookUp(func(a algorithm) bool { return a.id == id })
	if err != nil {
		return Metadata{}, err
	}
	public, err := parsePublic(alg, objects[metaPublic])
	if err != nil {
		return Metadata{}, err
	}
	policy, err := parsePolicy(objects[metaPolicy])
	return Metadata{Public: public, Policy: policy, Generated: origin == generated}, err
}

func octet(objects map[apdu.Tag][]byte, tag apdu.Tag) (byte, error) {
	if b := objects[tag]; len(b) == 1 {
		return b[0], nil
	}
	return 0, fmt.Errorf("%w: object %X of %d octets", apdu.ErrMalformed, uint32(tag), len(objects[tag]))
}

// Reference is a secret by which a user proves to be one.
type Reference byte

// The references.
const (
	PIN           Reference = refPIN
	PUK           Reference = refPUK
	ManagementKey Reference = refManagement
)

// String returns the name that people know.
func (r Reference) String() string {
	switch r {
	case PIN:
		return "PIN"
	case PUK:
		return "PUK"
	}
	return "management key"
}

// Credential is what the card tells of a PIN, PUK or management key.
type Credential struct {
	Algorithm byte // of the management key
	Default   bool // as the factory left it
	Tries     int  // left, or token.TriesUnknown
	MaxTries  int
}

// Credential returns what the card tells of a reference.
func (a Applet) Credential(ctx context.Context, r Reference) (Credential, error) {
	objects, err := a.metadata(ctx, byte(r))
	if err != nil {
		return Credential{}, err
	}
	c := Credential{Tries: token.TriesUnknown, MaxTries: token.TriesUnknown}
	standard, err := octet(objects, metaDefault)
	if err != nil {
		return Credential{}, fmt.Errorf("metadata of %v: %w", r, err)
	}
	c.Default = standard != 0
	if c.Algorithm, err = octet(objects, metaAlgorithm); err != nil {
		return Credential{}, fmt.Errorf("metadata of %v: %w", r, err)
	}
	tries, ok := objects[metaTries]
	switch {
	case ok && len(tries) == 2:
		c.MaxTries, c.Tries = int(tries[0]), int(tries[1])
	case ok || r != ManagementKey:
		return Credential{}, fmt.Errorf("metadata of %v: %w: tries in %d octets", r, apdu.ErrMalformed, len(tries))
	}
	return c, nil
}
