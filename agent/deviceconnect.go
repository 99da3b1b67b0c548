package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// maxRequests is the number of requests that may wait for an answer; older ones are forgotten.
const maxRequests = 16

// deviceConnect answers DeviceConnectRequest.
func (r *request) deviceConnect(ctx context.Context, req mesh.DeviceConnectRequest) (any, error) {
	if err := checkAddress(req.Account); err != nil {
		return nil, err
	}
	id, err := r.identity()
	if err != nil {
		return nil, err
	}
	made, err := device.NewRequestConnection(rand.Reader, id.profile, req.Account, string(req.PIN))
	if errors.Is(err, device.ErrPIN) {
		return nil, malformed("PIN", "A... or E... expected, as the administrator's agent made it")
	}
	if err != nil {
		return nil, err
	}
	text, err := made.Envelope().Marshal()
	if err != nil {
		return nil, err
	}
	id.Requests = append(id.Requests, devicestate.Request{
		MessageID: made.MessageID, Account: req.Account, Created: time.Now().UTC().Truncate(time.Second), Envelope: text,
	})
	if n := len(id.Requests); n > maxRequests {
		id.Requests = id.Requests[n-maxRequests:]
	}
	if err := r.save(ctx, id); err != nil {
		return nil, err
	}
	return mesh.DeviceConnectResponse{Reply: accepted, MessageId: made.MessageID, Request: text}, nil
}

// checkAddress wants something like alice@example.com.
func checkAddress(address string) error {
	name, domain, ok := strings.Cut(address, "@")
	bad := func(c rune) bool { return c == '@' || unicode.IsSpace(c) || !unicode.IsPrint(c) }
	if !ok || name == "" || domain == "" || len(address) > maxLabel || strings.ContainsFunc(name+domain, bad) {
		return malformed("Account", "an address such as alice@example.com expected")
	}
	return nil
}

// deviceWitness answers DeviceWitnessRequest. The witness is computed here, from the own profile
// and the own nonce: what the other side says it is does not matter.
func (r *request) deviceWitness(ctx context.Context, req mesh.DeviceWitnessRequest) (any, error) {
	id, err := r.identity()
	if err != nil {
		return nil, err
	}
	c, err := device.ParseConnectResponse(req.ConnectResponse, time.Now())
	if err != nil {
		return nil, malformed("ConnectResponse", "%v", err)
	}
	acknowledged, account := c.Acknowledged, c.Account
	i := slices.IndexFunc(id.Requests, func(q devicestate.Request) bool { return q.MessageID == acknowledged.Request.MessageID })
	if i < 0 {
		return nil, &failure{statusNotFound, "ConnectResponse: it answers no request of this device that waits"}
	}
	own, err := device.ParseRequestConnection(id.Requests[i].Envelope, time.Now())
	if err != nil {
		return nil, err
	}
	witness := own.Witness(account, acknowledged.ServerNonce)
	if witness != acknowledged.Witness {
		return nil, &failure{statusState, "ConnectResponse: the request in it was changed on the way"}
	}
	id.Requests[i].Acknowledged = acknowledged.MessageID
	if err := r.save(ctx, id); err != nil {
		return nil, err
	}
	return mesh.DeviceWitnessResponse{
		Reply: accepted, Witness: witness, Account: mesh.AccountName{Udf: account.Name(), Address: account.Address},
	}, nil
}

// deviceApprove answers DeviceApproveRequest.
func (r *request) deviceApprove(ctx context.Context, req mesh.DeviceApproveRequest) (any, error) {
	name, err := checkName("Account", req.Account)
	if err != nil {
		return nil, err
	}
	if err := checkLabel(req.Address); err != nil {
		return nil, malformed("Address", "text of at most %d octets without control characters expected", maxLabel)
	}
	id, err := r.identity()
	if err != nil {
		return nil, err
	}
	id.Pins = slices.DeleteFunc(id.Pins, func(p devicestate.Pin) bool { return sameName(p.Udf, name) })
	if !req.Revoke {
		id.Pins = append(id.Pins, devicestate.Pin{Udf: name, Address: req.Address, Approved: time.Now().UTC().Truncate(time.Second), Unused: true})
	}
	if err := r.save(ctx, id); err != nil {
		return nil, err
	}
	return accepted, nil
}

// checkName wants a profile's name of at least 28 characters, and returns it with dashes.
func checkName(member, name string) (string, error) {
	bare, err := mesh.NormalizeKeyID(name)
	if err != nil || len(bare) < 28 || bare[0] != 'M' {
		return "", malformed(member, "at least 28 characters of the UDF of a profile expected")
	}
	var groups []string
	for part := range slices.Chunk([]byte(bare), 4) {
		groups = append(groups, string(part))
	}
	return strings.Join(groups, "-"), nil
}

// sameName reports whether two names, perhaps of different lengths, are of one profile.
func sameName(a, b string) bool {
	x, errX := mesh.NormalizeKeyID(a)
	y, errY := mesh.NormalizeKeyID(b)
	return errX == nil && errY == nil && len(x) >= 28 && len(y) >= 28 && (strings.HasPrefix(x, y) || strings.HasPrefix(y, x))
}
