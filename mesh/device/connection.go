package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/jsonb"
	"github.com/mesh-agent/mesh-agent/token"
)

// The tags of connections. The first two are written; the others are what they were once called.
const (
	TagConnectionDevice   = "ConnectionDevice"
	TagConnectionService  = "ConnectionService"
	TagConnectionUser     = "ConnectionUser"     // ConnectionDevice, 2020-21
	TagConnectionAddress  = "ConnectionAddress"  // ConnectionStripped, until April 2022
	TagConnectionStripped = "ConnectionStripped" // as the schema calls it
)

// ErrConnection says that a connection is not well formed.
var ErrConnection = errors.New("bad connection")

// Connection is an account's assertion that a device with these keys is connected to it:
// to other devices of the account (ConnectionDevice), to services (ConnectionService). It
// names no device. Outsiders should not see it.
type Connection struct {
	Tag            string
	Authentication token.PublicKey
	// Signature and Encryption are nil in a ConnectionService.
	Signature, Encryption *token.PublicKey
	ProfileUdf            string // the account's; empty before May 2022
	Account               string // address, in a stripped one
	Roles                 []string
	// Envelope is the connection as it came.
	Envelope *mesh.Envelope
}

type wireConnection struct {
	Authentication *mesh.KeyData `json:",omitzero"`
	ProfileUdf     string        `json:",omitzero"`
	Roles          []string      `json:",omitzero"`
	Signature      *mesh.KeyData `json:",omitzero"`
	Encryption     *mesh.KeyData `json:",omitzero"`
	Account        string        `json:",omitzero"`

	// Until 2021.
	DeviceAuthentication *mesh.KeyData `json:",omitzero"`
	DeviceSignature      *mesh.KeyData `json:",omitzero"`
	DeviceEncryption     *mesh.KeyData `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// ParseConnection reads a connection of generation g and checks its keys, at a time. The
// signature is not verified: Verification does, and whoever else reads one must before.
func ParseConnection(e *mesh.Envelope, g mesh.Generation, now time.Time) (*Connection, error) {
	tagged, err := mesh.DecodeBody(e.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnection, err)
	}
	known := []string{TagConnectionDevice, TagConnectionService, TagConnectionUser, TagConnectionAddress, TagConnectionStripped}
	if !slices.Contains(known, tagged.Tag) {
		return nil, fmt.Errorf("%w: it is a %.32q", ErrConnection, tagged.Tag)
	}
	r := &profileReader{now: now, base: Profile{Generation: g}}
	var w wireConnection
	if err := decode(tagged.Body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnection, err)
	}
	c := &Connection{Tag: tagged.Tag, ProfileUdf: w.ProfileUdf, Account: w.Account, Roles: w.Roles, Envelope: e}
	c.Authentication = r.need("Authentication", Authenticate, w.Authentication, w.DeviceAuthentication)
	c.Signature = r.key("Signature", Sign, w.Signature, w.DeviceSignature)
	c.Encryption = r.key("Encryption", Encrypt, w.Encryption, w.DeviceEncryption)
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnection, r.err)
	}
	if slices.Contains(c.Roles, "") {
		return nil, fmt.Errorf("%w: Roles has one without a name", ErrConnection)
	}
	return c, nil
}

// isDevice reports whether the connection is one for the devices of the account.
func (c *Connection) isDevice() bool {
	return c.Tag == TagConnectionDevice || c.Tag == TagConnectionUser
}

// connection makes a connection, in JSON-B, and has the administrator sign it.
func (b *builder) connection(ctx context.Context, administrator mesh.Signer, c *Connection) (*mesh.Envelope, error) {
	members := jsonb.Object{{Name: "Authentication", Value: b.binaryKey(c.Authentication)}, {Name: "ProfileUdf", Value: c.ProfileUdf}}
	if c.Roles != nil {
		roles := []any{}
		for _, r := range c.Roles {
			roles = append(roles, r)
		}
		members = append(members, jsonb.Member{Name: "Roles", Value: roles})
	}
	if c.Signature != nil {
		members = append(members, jsonb.Member{Name: "Signature", Value: b.binaryKey(*c.Signature)})
	}
	if c.Encryption != nil {
		members = append(members, jsonb.Member{Name: "Encryption", Value: b.binaryKey(*c.Encryption)})
	}
	if b.err != nil {
		return nil, b.err
	}
	body, err := jsonb.Append(nil, jsonb.Object{{Name: c.Tag, Value: members}})
	if err != nil {
		return nil, err
	}
	return mesh.NewEnvelope(ctx, body, mesh.EnvelopeOptions{
		Generation: b.g, Meta: b.meta("", c.Tag), Signers: []mesh.Signer{administrator},
	})
}

// binaryKey is a public key as JSON-B has it.
func (b *builder) binaryKey(pub token.PublicKey) jsonb.Object {
	k := b.key(pub)
	if k == nil {
		return nil
	}
	ecdh := k.PublicParameters.PublicKeyECDH
	if ecdh == nil {
		b.err = fmt.Errorf("%s key in a connection: %w", pub.Algorithm, token.ErrBadKey)
		return nil
	}
	return jsonb.Object{
		{Name: "Udf", Value: k.Udf},
		{Name: "PublicParameters", Value: jsonb.Object{{Name: "PublicKeyECDH", Value: jsonb.Object{
			{Name: "crv", Value: ecdh.Curve}, {Name: "Public", Value: []byte(ecdh.Public)},
		}}}},
	}
}
