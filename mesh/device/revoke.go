package device

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// TagDeviceRevocation is the tag of a statement by which an administrator ends a device's
// connection. It is this project's own: the Mesh drops the device from the account's catalog
// and tells it nothing.
const TagDeviceRevocation = "DeviceRevocation"

// ErrRevocation says that a revocation is not well formed, or not for this device or account.
var ErrRevocation = errors.New("bad DeviceRevocation")

// maxRevoked is the number of bodies that one revocation may name; a connection has four.
const maxRevoked = 64

type wireRevocation struct {
	DeviceUdf  string
	ProfileUdf string
	Superseded []mesh.Binary // digests of the signed bodies that connected the device
	Created    time.Time

	Other strictjson.Value `json:",embed"`
}

// Revoke makes a signed statement that a device, whose entry is given, is no more connected.
// It is a statement to the device; that others stop to trust it, the account's catalog does.
func (c Connector) Revoke(ctx context.Context, entry *CatalogedDevice) (*mesh.Envelope, error) {
	b := newBuilder(c.Account.Generation, c.Now)
	body, err := strictjson.Marshal(map[string]wireRevocation{TagDeviceRevocation: {
		DeviceUdf: entry.DeviceUdf, ProfileUdf: c.Account.Name(), Superseded: entry.connectionDigests(), Created: b.created,
	}})
	if err != nil {
		return nil, fmt.Errorf("revoke device: %w", err)
	}
	e, err := mesh.NewEnvelope(ctx, body, mesh.EnvelopeOptions{
		Generation: b.g, Meta: b.meta("", TagDeviceRevocation), Signers: []mesh.Signer{c.Administrator},
	})
	if err != nil {
		return nil, fmt.Errorf("revoke device: %w", err)
	}
	return e, nil
}

// VerifyRevocation verifies that the account's administrator ended a device's connection, and
// returns the digests of what connected it. Errors: ErrRevocation, those of mesh.Envelope.Verify.
func VerifyRevocation(e *mesh.Envelope, account *ProfileUser, device *ProfileDevice) ([]mesh.Binary, error) {
	if err := verifyBy(e, account.Generation, account.Administrator); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRevocation, err)
	}
	tagged, err := mesh.DecodeBody(e.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRevocation, err)
	}
	if tagged.Tag != TagDeviceRevocation {
		return nil, fmt.Errorf("%w: it is a %.32q", ErrRevocation, tagged.Tag)
	}
	var w wireRevocation
	if err := decode(tagged.Body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRevocation, err)
	}
	switch {
	case !account.Is(w.ProfileUdf):
		return nil, fmt.Errorf("%w: it is about another account", ErrRevocation)
	case !device.Is(w.DeviceUdf):
		return nil, fmt.Errorf("%w: it is about another device", ErrRevocation)
	case len(w.Superseded) > maxRevoked || slices.ContainsFunc(w.Superseded, func(d mesh.Binary) bool { return len(d) != sha512.Size }):
		return nil, fmt.Errorf("%w: up to %d digests of %d octets expected", ErrRevocation, maxRevoked, sha512.Size)
	}
	return w.Superseded, nil
}

// connectionDigests are the SignedDigests without that of the account's profile, which does
// not change with a connection.
func (c *CatalogedDevice) connectionDigests() []mesh.Binary {
	only := *c
	only.ProfileUser = nil
	return only.SignedDigests()
}
