package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// Bounds of what an account remembers; the oldest is forgotten.
const (
	maxPINs     = 64
	maxNonces   = 64
	maxAnswered = 4096
	pinHours    = 24
)

// accountPIN answers AccountPINRequest.
func (r *request) accountPIN(ctx context.Context, req mesh.AccountPINRequest) (any, error) {
	if req.Hours == 0 {
		req.Hours = pinHours
	}
	if req.Hours < 0 || req.Hours > 24*366 {
		return nil, malformed("Hours", "up to a year expected")
	}
	a, err := r.account(req.Account)
	if err != nil {
		return nil, err
	}
	pin, err := device.GeneratePIN(rand.Reader)
	if err != nil {
		return nil, err
	}
	id, err := device.PinID(pin, a.Address)
	if err != nil {
		return nil, err
	}
	text, err := r.sealFor(a.Account, []byte(pin))
	if err != nil {
		return nil, err
	}
	a.PINs = slices.DeleteFunc(a.PINs, func(p devicestate.PIN) bool { return time.Now().After(p.Expires) })
	a.PINs = append(a.PINs, devicestate.PIN{ID: id, Text: text, Expires: time.Now().Add(time.Duration(req.Hours) * time.Hour).UTC().Truncate(time.Second)})
	a.PINs = last(a.PINs, maxPINs)
	if err := r.putAccount(ctx, a.Account); err != nil {
		return nil, err
	}
	return mesh.AccountPINResponse{Reply: accepted, PIN: []byte(pin), Account: mesh.AccountName{Udf: a.Udf, Address: a.Address}}, nil
}

func last[T any](list []T, n int) []T { return list[max(0, len(list)-n):] }

// accountAcknowledge answers AccountAcknowledgeRequest.
func (r *request) accountAcknowledge(ctx context.Context, req mesh.AccountAcknowledgeRequest) (any, error) {
	a, ask, err := r.connection(req.Account, req.Request)
	if err != nil {
		return nil, err
	}
	acknowledged, err := device.NewAcknowledgeConnection(rand.Reader, ask, a.profile)
	if err != nil {
		return nil, err
	}
	answer, err := (&device.ConnectResponse{Acknowledged: acknowledged, Account: a.profile}).Marshal()
	if err != nil {
		return nil, err
	}
	a.Acknowledged = last(append(a.Acknowledged, devicestate.Nonce{MessageID: ask.MessageID, Nonce: acknowledged.ServerNonce}), maxNonces)
	if err := r.putAccount(ctx, a.Account); err != nil {
		return nil, err
	}
	return mesh.AccountAcknowledgeResponse{
		Reply: accepted, ConnectResponse: answer, Witness: acknowledged.Witness, Device: ask.Profile.Name(),
	}, nil
}

// connection reads a device's request to an account.
func (r *request) connection(account string, text strictjson.Value) (*administered, *device.RequestConnection, error) {
	ask, err := device.ParseRequestConnection(text, time.Now())
	if err != nil {
		return nil, nil, malformed("Request", "%v", err)
	}
	if account == "" {
		account = ask.Account
	}
	a, err := r.account(account)
	if err != nil {
		return nil, nil, err
	}
	if slices.Contains(a.Answered, ask.MessageID) {
		return nil, nil, &failure{statusState, "Request: it was answered already"}
	}
	if ask.Profile.Generation != a.profile.Generation {
		return nil, nil, malformed("Request", "the device is of generation %v, the account of %v", ask.Profile.Generation, a.profile.Generation)
	}
	return a, ask, nil
}

// accountConnect answers AccountConnectRequest.
func (r *request) accountConnect(ctx context.Context, req mesh.AccountConnectRequest) (any, error) {
	if err := errors.Join(checkRoles(req.Roles), checkGrants(req.ApplicationGrants)); err != nil {
		return nil, err
	}
	a, ask, err := r.connection(req.Account, req.Request)
	if err != nil {
		return nil, err
	}
	if err := rights(req).Check(a.profile.Generation); err != nil {
		return nil, malformed("Stores", "%v", err)
	}
	if !req.NoApplications {
		if err := keepGrants(&req.ApplicationGrants, a, ask.Profile.Name()); err != nil {
			return nil, err
		}
	}
	if err := checkRoom(nil, req.ApplicationGrants); err != nil {
		return nil, err
	}
	if err := r.approve(ctx, a, ask, req); err != nil {
		return nil, err
	}
	entry, response, err := r.connect(ctx, a, ask, req)
	if err != nil {
		return nil, err
	}
	text, err := entry.Marshal()
	if err != nil {
		return nil, err
	}
	if err := checkAnswer(response); err != nil {
		return nil, err
	}
	encryption, err := encryptionKey(entry, a)
	if err != nil {
		return nil, err
	}
	made := devicestate.Connected{Udf: ask.Profile.Name(), Roles: req.Roles, Entry: text, Encryption: encryption}
	a.Devices = append(slices.DeleteFunc(a.Devices, func(d devicestate.Connected) bool { return d.Udf == made.Udf }), made)
	a.Answered = last(append(a.Answered, ask.MessageID), maxAnswered)
	if err := r.putAccount(ctx, a.Account); err != nil {
		return nil, err
	}
	return connectReply(a, entry, response, text), nil
}

// connectReply is what the administrator is told: the answer, and the entry with it if both fit into a frame.
func connectReply(a *administered, entry *device.CatalogedDevice, answer, text strictjson.Value) mesh.AccountConnectResponse {
	const rest = 16 << 10 // tags, and the names of maxApplications
	out := mesh.AccountConnectResponse{Reply: accepted, Response: answer, Account: a.Udf, Device: entry.DeviceUdf}
	if len(answer)+len(text) <= maxReply-rest {
		out.CatalogedDevice = text
	}
	for _, x := range entry.Applications {
		out.Applications = append(out.Applications, x.Identifier)
	}
	return out
}

// checkRoles bounds what goes into a connection.
func checkRoles(roles []string) error {
	if len(roles) > 32 {
		return malformed("Roles", "at most 32 expected")
	}
	for _, role := range roles {
		if role == "" || checkLabel(role) != nil {
			return malformed("Roles", "words of at most %d octets without control characters expected", maxLabel)
		}
	}
	return nil
}

// encryptionKey is the combined key of an entry that this agent has made.
func encryptionKey(entry *device.CatalogedDevice, a *administered) (strictjson.Value, error) {
	c, err := device.ParseConnection(entry.ConnectionDevice, a.profile.Generation, time.Now())
	if err != nil {
		return nil, err
	}
	return mesh.MarshalKeyDataPublic(*c.Encryption, a.profile.Generation), nil
}

// approve wants to know that the request is that of the device which the administrator means:
// by the device's name or the witness, all that is given of them, or else by a PIN, which the account
// has no more then.
func (r *request) approve(ctx context.Context, a *administered, ask *device.RequestConnection, req mesh.AccountConnectRequest) error {
	if req.Device != "" {
		name, err := checkName("Device", req.Device)
		if err != nil {
			return err
		}
		if !ask.Profile.Is(name) {
			return &failure{statusForbidden, "policy: the request is that of device " + ask.Profile.Name()}
		}
	}
	if req.Witness != "" && !slices.ContainsFunc(a.Acknowledged, func(n devicestate.Nonce) bool {
		return n.MessageID == ask.MessageID && sameWitness(req.Witness, ask.Witness(a.profile, n.Nonce))
	}) {
		return &failure{statusForbidden, "policy: the witness is not that of this request"}
	}
	switch {
	case req.Device != "" || req.Witness != "":
		return nil
	case ask.PinID == "":
		return &failure{statusForbidden, "policy: the request proves no PIN; compare the witness, or the device's UDF"}
	}
	return r.redeem(ctx, a, ask)
}

// redeem checks a request's proof of a PIN. A wrong one uses the PIN up at once. A right one does so with the
// connection: the account without the PIN is for the caller to write, so that a request which cannot be
// answered for another reason may come again.
func (r *request) redeem(ctx context.Context, a *administered, ask *device.RequestConnection) error {
	i := slices.IndexFunc(a.PINs, func(p devicestate.PIN) bool { return p.ID == ask.PinID && time.Now().Before(p.Expires) })
	if i < 0 {
		return &failure{statusForbidden, "policy: the PIN of the request is not one that waits: unknown, used or expired"}
	}
	text := a.PINs[i].Text
	pin, err := r.open(ctx, a.Account, text)
	if err != nil {
		return err
	}
	defer clear(pin)
	a.PINs = slices.Delete(a.PINs, i, i+1)
	err = ask.CheckPIN(string(pin), a.Address)
	if !errors.Is(err, device.ErrPIN) {
		return err
	}
	if err := r.putAccount(ctx, a.Account); err != nil {
		return err
	}
	return &failure{statusForbidden, "policy: the request does not prove the PIN"}
}

// sameWitness compares what a person read with a witness, in any case, with or without dashes.
func sameWitness(read, witness string) bool {
	x, errX := mesh.NormalizeKeyID(read)
	y, errY := mesh.NormalizeKeyID(witness)
	return errX == nil && errY == nil && x == y
}

// connector signs with the account's administrator key.
func (r *request) connector(a *administered) (device.Connector, error) {
	key, err := r.own(a.profile.Administrator)
	return device.Connector{Account: a.profile, Administrator: key}, err
}

// connect makes the entry and the answer.
func (r *request) connect(ctx context.Context, a *administered, ask *device.RequestConnection, req mesh.AccountConnectRequest) (*device.CatalogedDevice, strictjson.Value, error) {
	keys, err := r.grantedKeys(ctx, a, req)
	if err != nil {
		return nil, nil, err
	}
	defer keys.Wipe()
	grants, err := r.applications(ctx, a, req.ApplicationGrants)
	if err != nil {
		return nil, nil, err
	}
	defer wipeGrants(grants)
	c, err := r.connector(a)
	if err != nil {
		return nil, nil, err
	}
	entry, err := c.Connect(ctx, device.Grant{Device: ask.Profile, Roles: req.Roles, Keys: keys, Applications: grants})
	if err != nil {
		return nil, nil, err
	}
	answer, err := c.Respond(ctx, ask.Profile, ask.MessageID, entry)
	if err != nil {
		return nil, nil, err
	}
	text, err := answer.Marshal()
	return entry, text, err
}

// grantedKeys are those of the account that a device gets. For none the seed is not needed.
func (r *request) grantedKeys(ctx context.Context, a *administered, req mesh.AccountConnectRequest) (*device.AccountActivation, error) {
	if rights := rights(req); !rights.Super && !rights.Administer && !rights.Common && len(rights.Stores) == 0 {
		return &device.AccountActivation{}, nil
	}
	seed, err := r.seed(ctx, a.Account)
	if err != nil {
		return nil, err
	}
	defer seed.Wipe()
	return device.NewAccountActivation(seed, rights(req), a.profile)
}

func rights(req mesh.AccountConnectRequest) device.Rights {
	return device.Rights{Super: req.Super, Administer: req.Administer, Common: !req.NoCommon, Stores: req.Stores}
}

// accountRevoke answers AccountRevokeRequest. Revoking again gives the same statement.
func (r *request) accountRevoke(ctx context.Context, req mesh.AccountRevokeRequest) (any, error) {
	a, d, err := r.connected(req.Account, req.Device)
	if err != nil {
		return nil, err
	}
	if !d.Revoked {
		if err := r.revoke(ctx, a, d); err != nil {
			return nil, err
		}
	}
	return mesh.AccountRevokeResponse{Reply: accepted, Revocation: d.Revocation}, nil
}

// connected returns a device of an account, also one that was revoked.
func (r *request) connected(account, deviceName string) (*administered, *devicestate.Connected, error) {
	name, err := checkName("Device", deviceName)
	if err != nil {
		return nil, nil, err
	}
	a, err := r.account(account)
	if err != nil {
		return nil, nil, err
	}
	i := slices.IndexFunc(a.Devices, func(d devicestate.Connected) bool { return sameName(d.Udf, name) })
	if i < 0 {
		return nil, nil, &failure{statusNotFound, "Device: it is not connected to this account"}
	}
	return a, &a.Devices[i], nil
}

func (r *request) revoke(ctx context.Context, a *administered, d *devicestate.Connected) error {
	entry, err := device.ParseCatalogedDevice(d.Entry)
	if err != nil {
		return err
	}
	c, err := r.connector(a)
	if err != nil {
		return err
	}
	e, err := c.Revoke(ctx, entry)
	if err != nil {
		return err
	}
	if d.Revocation, err = e.Marshal(); err != nil {
		return err
	}
	d.Revoked = true
	return r.putAccount(ctx, a.Account)
}
