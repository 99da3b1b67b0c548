package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// isRevocation reports whether an envelope holds a revocation in the clear.
func isRevocation(e *mesh.Envelope) bool {
	if e.Header.Encryption != "" {
		return false
	}
	tagged, err := mesh.DecodeBody(e.Body)
	return err == nil && tagged.Tag == device.TagDeviceRevocation
}

// revoked ends a connection because the account's administrator says so.
func (r *request) revoked(ctx context.Context, id *identity, e *mesh.Envelope) (any, error) {
	var lastErr error = &failure{statusNotFound, "Catalog: a revocation, but the device is not connected to any account"}
	for i := range id.Accounts {
		m := &id.Accounts[i]
		if !m.Active {
			continue
		}
		account, err := profileOf(m)
		if err != nil {
			return nil, err
		}
		named, err := device.VerifyRevocation(e, account, id.profile)
		switch {
		case err != nil:
			lastErr = &failure{statusForbidden, fmt.Sprintf("policy: %v", err)}
			continue
		case m.History.AllSuperseded(named):
			lastErr = &failure{statusState, "Catalog: a revocation of a connection that was replaced or ended before"}
			continue
		}
		return r.end(ctx, id, m, named)
	}
	return nil, lastErr
}

// end deletes what the device has of an account and remembers what connected it. It must be
// approved again before it can be connected again.
func (r *request) end(ctx context.Context, id *identity, m *devicestate.Membership, named []mesh.Binary) (any, error) {
	profile, err := mesh.ParseEnvelope(m.ProfileUser)
	if err != nil {
		return nil, err
	}
	granted, err := r.granted(m.Udf)
	if err != nil {
		return nil, err
	}
	keys := m.Keys
	ended := mesh.DeviceAccount{AccountName: mesh.AccountName{Udf: m.Udf, Address: m.Address}, Generation: id.Generation, Roles: m.Roles, Keys: []mesh.NamedKey{}}
	*m = devicestate.Membership{Udf: m.Udf, Address: m.Address, History: *m.History.Revoke(profile, named...), Inside: m.Inside}
	id.Pins = slices.DeleteFunc(id.Pins, func(p devicestate.Pin) bool { return sameName(p.Udf, m.Udf) })
	if err := r.save(ctx, id); err != nil {
		return nil, err
	}
	if err := errors.Join(r.deleteKeys(ctx, keys), r.dropAccount(ctx, granted)); err != nil {
		return nil, err
	}
	return mesh.DeviceActivateResponse{Reply: accepted, Account: ended, Revoked: true}, nil
}

// deviceDisconnect answers DeviceDisconnectRequest.
func (r *request) deviceDisconnect(ctx context.Context, req mesh.DeviceDisconnectRequest) (any, error) {
	id, err := r.identity()
	if err != nil {
		return nil, err
	}
	m := id.membership(req.Account)
	if m == nil || !m.Active {
		return nil, &failure{statusNotFound, "Account: the device is not connected to it"}
	}
	return r.end(ctx, id, m, nil)
}

// profileOf reads the account's profile of an active connection.
func profileOf(m *devicestate.Membership) (*device.ProfileUser, error) {
	e, err := mesh.ParseEnvelope(m.ProfileUser)
	if err != nil {
		return nil, fmt.Errorf("profile of account %s: %w", m.Udf, err)
	}
	return device.ParseProfileUser(e, time.Now())
}
