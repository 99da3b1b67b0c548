package device

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Connector connects devices to an account: the administrator's side.
type Connector struct {
	// Account is the account's profile.
	Account *ProfileUser
	// Administrator signs. It is the key of the profile's AdministratorSignature.
	Administrator mesh.Signer
	// Rand is crypto/rand.Reader if nil.
	Rand io.Reader
	// Now is the time of day if zero.
	Now time.Time
}

// Grant says what a device gets.
type Grant struct {
	// Device is the profile that the request showed, which the administrator has approved.
	Device *ProfileDevice
	// Roles are written into the connection.
	Roles []string
	// Keys are those of the account that the device may hold: see NewAccountActivation. Nil
	// or an empty one grants none. The caller wipes it.
	Keys *AccountActivation
	// Applications are encrypted to the device. The caller wipes the keys.
	Applications []ApplicationGrant
}

// ApplicationGrant is an activation of an application for a device.
type ApplicationGrant struct {
	Kind       string // Ssh, Mail, Group
	Identifier string // of the application's catalog entry: for SSH the Udf of its key, see MailIdentifier
	Keys       map[string]*mesh.KeyData
}

// Marshal writes the activation, which holds private keys. The caller wipes it.
func (a ApplicationGrant) Marshal() ([]byte, error) {
	return strictjson.Marshal(map[string]map[string]*mesh.KeyData{tagActivationApplication + a.Kind: a.Keys})
}

// Wipe overwrites the keys.
func (a ApplicationGrant) Wipe() {
	for _, k := range a.Keys {
		wipeKey(k)
	}
}

// Connect makes a device's entry for the account's catalog: it draws a fresh contribution,
// signs the combined public keys and encrypts the activations. What it returns has passed
// VerifyPublic. Connecting a device again gives it new keys.
func (c Connector) Connect(ctx context.Context, g Grant) (*CatalogedDevice, error) {
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if !sameKey(c.Administrator.Public(), c.Account.Administrator) {
		return nil, fmt.Errorf("connect device: the signer is not the account's administrator: %w", token.ErrBadRequest)
	}
	if c.Account.Generation != g.Device.Generation {
		return nil, fmt.Errorf("connect device: account of %v, device of %v: %w", c.Account.Generation, g.Device.Generation, ErrGeneration)
	}
	activation, err := NewDeviceActivation(c.Rand, g.Device)
	if err != nil {
		return nil, fmt.Errorf("connect device: %w", err)
	}
	defer activation.Wipe()
	entry, err := c.connect(ctx, activation, g)
	if err != nil {
		return nil, fmt.Errorf("connect device: %w", err)
	}
	v := Verification{Account: c.Account.Name(), Device: g.Device, Now: c.Now}
	if _, err := v.VerifyPublic(entry); err != nil {
		return nil, fmt.Errorf("connect device: %w", err)
	}
	return entry, nil
}

func (c Connector) connect(ctx context.Context, activation *DeviceActivation, g Grant) (*CatalogedDevice, error) {
	var combined [3]token.PublicKey // Encrypt, Sign, Authenticate
	for i, o := range Operations() {
		contribution, err := activation.Contribution(g.Device, o)
		if err != nil {
			return nil, err
		}
		contribution.Wipe()
		combined[i] = contribution.Combined
	}
	b := newBuilder(c.Account.Generation, c.Now)
	name := c.Account.Name()
	entry := &CatalogedDevice{DeviceUdf: g.Device.Name(), ProfileUser: c.Account.Envelope, ProfileDevice: g.Device.Envelope}
	var err error
	entry.ConnectionService, err = b.connection(ctx, c.Administrator, &Connection{
		Tag: TagConnectionService, Authentication: combined[2], ProfileUdf: name,
	})
	if err != nil {
		return nil, err
	}
	entry.ConnectionDevice, err = b.connection(ctx, c.Administrator, &Connection{
		Tag: TagConnectionDevice, Authentication: combined[2], ProfileUdf: name,
		Roles: g.Roles, Signature: &combined[1], Encryption: &combined[0],
	})
	if err != nil {
		return nil, err
	}
	if entry.Activations, err = c.activations(ctx, b, activation, g, combined[0]); err != nil {
		return nil, err
	}
	return entry, c.applications(ctx, b, entry, g.Applications, combined[0])
}

// GrantApplications returns a device's entry with further activations of applications, or with new
// ones of the same. The connection itself stays as it is: what is signed does not change.
func (c Connector) GrantApplications(ctx context.Context, entry *CatalogedDevice, grants []ApplicationGrant) (*CatalogedDevice, error) {
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	v := Verification{Account: c.Account.Name(), Now: c.Now}
	m, err := v.VerifyPublic(entry)
	if err != nil {
		return nil, fmt.Errorf("grant applications: %w", err)
	}
	next := *entry
	next.Applications = slices.Clone(entry.Applications)
	if err := c.applications(ctx, newBuilder(c.Account.Generation, c.Now), &next, grants, *m.Connection.Encryption); err != nil {
		return nil, fmt.Errorf("grant applications: %w", err)
	}
	return &next, nil
}

// applications adds activations to an entry, in place of those of the same applications.
func (c Connector) applications(ctx context.Context, b *builder, entry *CatalogedDevice, grants []ApplicationGrant, combined token.PublicKey) error {
	for _, a := range grants {
		made, err := c.application(ctx, b, a, combined)
		if err != nil {
			return fmt.Errorf("application %.32q: %w", a.Kind, err)
		}
		entry.Applications = slices.DeleteFunc(entry.Applications, func(e ApplicationEntry) bool {
			return e.Tag == made.Tag && e.Identifier == made.Identifier
		})
		entry.Applications = append(entry.Applications, *made)
	}
	return nil
}

// activations makes the two activations, signed and encrypted.
func (c Connector) activations(ctx context.Context, b *builder, a *DeviceActivation, g Grant, combined token.PublicKey) ([]*mesh.Envelope, error) {
	forDevice, err := a.marshal()
	if err != nil {
		return nil, err
	}
	defer clear(forDevice)
	keys := g.Keys
	if keys == nil {
		keys = &AccountActivation{}
	}
	forAccount, err := keys.marshal()
	if err != nil {
		return nil, err
	}
	defer clear(forAccount)
	one, err := c.secret(ctx, b, TagActivationAccount, forDevice, g.Device.Encryption, c.Administrator)
	if err != nil {
		return nil, err
	}
	two, err := c.secret(ctx, b, TagActivationCommon, forAccount, combined, c.Administrator)
	if err != nil {
		return nil, err
	}
	return []*mesh.Envelope{one, two}, nil
}

// secret encrypts a body to one key.
func (c Connector) secret(ctx context.Context, b *builder, tag string, body []byte, to token.PublicKey, signers ...mesh.Signer) (*mesh.Envelope, error) {
	return mesh.NewEnvelope(ctx, body, mesh.EnvelopeOptions{
		Generation: b.g, Rand: c.Rand, Meta: b.meta("", tag), Recipients: []token.PublicKey{to}, Signers: signers,
	})
}

func (c Connector) application(ctx context.Context, b *builder, a ApplicationGrant, combined token.PublicKey) (*ApplicationEntry, error) {
	body, err := a.Marshal()
	if err != nil {
		return nil, err
	}
	defer clear(body)
	made, err := ParseApplicationActivation(body, b.g)
	if err != nil {
		return nil, err
	}
	made.Wipe()
	e, err := c.secret(ctx, b, tagActivationApplication+a.Kind, body, combined)
	if err != nil {
		return nil, err
	}
	return &ApplicationEntry{Tag: tagApplicationEntry + a.Kind, Identifier: a.Identifier, Envelope: e}, nil
}

// Respond answers the message of an id, a request or its acknowledgement, in an envelope that
// only the device opens. A nil entry rejects. Nobody signs it: the entry inside is signed.
func (c Connector) Respond(ctx context.Context, device *ProfileDevice, messageID string, entry *CatalogedDevice) (*mesh.Envelope, error) {
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	id, err := ResponseID(messageID)
	if err != nil {
		return nil, fmt.Errorf("respond: %w", err)
	}
	r := &RespondConnection{MessageID: id, Result: ResultReject, CatalogedDevice: entry}
	if entry != nil {
		r.Result = ResultAccept
	}
	body, err := r.Marshal()
	if err != nil {
		return nil, fmt.Errorf("respond: %w", err)
	}
	defer clear(body)
	b := newBuilder(c.Account.Generation, c.Now)
	e, err := c.secret(ctx, b, TagRespondConnection, body, device.Encryption)
	if err != nil {
		return nil, fmt.Errorf("respond: %w", err)
	}
	e.Header.EnvelopeID, err = EnvelopeID(id)
	return e, err
}
