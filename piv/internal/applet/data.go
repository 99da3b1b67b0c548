package applet

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"fmt"
	"io"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
)

// The data objects that have no slot.
const (
	// ObjectAdmin is where ykman notes how a card is managed.
	ObjectAdmin apdu.Tag = 0x5FFF00
	// ObjectProtected is readable with the PIN only: where ykman and others store the management key.
	ObjectProtected apdu.Tag = 0x5FC109
	// ObjectSealing is where this project notes the keys that secrets are sealed to. Yubico leaves
	// the numbers from 5F0000 on that have no meaning to programs.
	ObjectSealing apdu.Tag = 0x5F4D41
)

const (
	tagObjectID apdu.Tag = 0x5C
	tagContents apdu.Tag = 0x53
)

// Data returns the contents of a data object. apdu.NotFound says that there is none,
// apdu.SecurityStatus that it needs the PIN.
func (a Applet) Data(ctx context.Context, tag apdu.Tag) ([]byte, error) {
	b, err := a.send(ctx, insGetData, 0x3F, 0xFF, objectID(tag))
	if err == nil {
		b, err = apdu.Unwrap(b, tagContents)
	}
	if err != nil {
		return nil, fmt.Errorf("read object %X: %w", uint32(tag), err)
	}
	return b, nil
}

// PutData writes a data object; empty contents delete it. The management key must have been presented.
func (a Applet) PutData(ctx context.Context, tag apdu.Tag, contents []byte) error {
	b := apdu.Append(objectID(tag), tagContents, contents)
	defer clear(b)
	_, err := a.send(ctx, insPutData, 0x3F, 0xFF, b)
	return explain(fmt.Sprintf("write object %X", uint32(tag)), err)
}

func objectID(tag apdu.Tag) []byte {
	return apdu.Append(nil, tagObjectID, []byte{byte(tag >> 16), byte(tag >> 8), byte(tag)})
}

// The data objects inside a certificate object (SP 800-73-4 Part 1, Table 10).
const (
	tagCertificate apdu.Tag = 0x70
	tagCertInfo    apdu.Tag = 0x71
	compressed              = 1
	maxCertificate          = 1 << 16
)

// Certificate returns the certificate of a slot. apdu.NotFound says that there is none.
func (a Applet) Certificate(ctx context.Context, s Slot) (*x509.Certificate, error) {
	b, err := a.Data(ctx, s.certificate())
	if err != nil {
		return nil, err
	}
	c, err := parseCertificate(b)
	return c, explain(fmt.Sprintf("certificate of slot %v", s), err)
}

func parseCertificate(b []byte) (*x509.Certificate, error) {
	objects, err := apdu.ParseAll(b)
	if err != nil {
		return nil, err
	}
	der := objects[tagCertificate]
	if info := objects[tagCertInfo]; len(info) == 1 && info[0]&compressed != 0 {
		if der, err = inflate(der); err != nil {
			return nil, err
		}
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", apdu.ErrMalformed, err)
	}
	return c, nil
}

func inflate(b []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", apdu.ErrMalformed, err)
	}
	out, err := io.ReadAll(io.LimitReader(r, maxCertificate))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", apdu.ErrMalformed, err)
	}
	return out, nil
}

// Attest returns the card's statement that the key of a slot was generated in it: a
// certificate by the key of SlotAttestation. apdu.BadData says that it was not.
func (a Applet) Attest(ctx context.Context, s Slot) (*x509.Certificate, error) {
	b, err := a.send(ctx, insAttest, byte(s), 0, nil)
	if err != nil {
		return nil, fmt.Errorf("attest key in slot %v: %w", s, err)
	}
	c, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("attest key in slot %v: %w: %w", s, apdu.ErrMalformed, err)
	}
	return c, nil
}
