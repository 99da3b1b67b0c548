package agent

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// deviceMessages are the messages about the device's Mesh identity and about accounts.
var deviceMessages = [...]message{
	deviceMessage(mesh.TagDeviceInitRequest, mesh.TagDeviceInitResponse, "making this device's Mesh identity", (*request).deviceInit),
	deviceQuestion(mesh.TagDeviceShowRequest, mesh.TagDeviceShowResponse, (*request).deviceShow),
	deviceMessage(mesh.TagDeviceConnectRequest, mesh.TagDeviceConnectResponse, "asking for a connection to an account", (*request).deviceConnect),
	deviceMessage(mesh.TagDeviceWitnessRequest, mesh.TagDeviceWitnessResponse, "the witness of a connection", (*request).deviceWitness),
	deviceMessage(mesh.TagDeviceApproveRequest, mesh.TagDeviceApproveResponse, "approving an account", (*request).deviceApprove),
	deviceMessage(mesh.TagDeviceActivateRequest, mesh.TagDeviceActivateResponse, "a connection to an account", (*request).deviceActivate),
	deviceMessage(mesh.TagDeviceDisconnectRequest, mesh.TagDeviceDisconnectResponse, "ending a connection to an account", (*request).deviceDisconnect),
	deviceMessage(mesh.TagAccountInitRequest, mesh.TagAccountInitResponse, "making an account", (*request).accountInit),
	deviceQuestion(mesh.TagAccountListRequest, mesh.TagAccountListResponse, (*request).accountList),
	deviceMessage(mesh.TagAccountPINRequest, mesh.TagAccountPINResponse, "a PIN that connects a device", (*request).accountPIN),
	deviceMessage(mesh.TagAccountAcknowledgeRequest, mesh.TagAccountAcknowledgeResponse, "acknowledging a device's request", (*request).accountAcknowledge),
	deviceMessage(mesh.TagAccountConnectRequest, mesh.TagAccountConnectResponse, "connecting a device to an account", (*request).accountConnect),
	deviceMessage(mesh.TagAccountGrantRequest, mesh.TagAccountGrantResponse, "granting applications to a device", (*request).accountGrant),
	deviceMessage(mesh.TagAccountRevokeRequest, mesh.TagAccountRevokeResponse, "revoking a device", (*request).accountRevoke),
	deviceMessage(mesh.TagAccountEscrowRequest, mesh.TagAccountEscrowResponse, "shares of an account's seed", (*request).accountEscrow),
	deviceMessage(mesh.TagAccountForgetRequest, mesh.TagAccountForgetResponse, "forgetting an account's seed", (*request).accountForget),
}

// deviceMessage makes the message of a function that takes a decoded request and returns the body of the response.
// The secrets of both are wiped.
func deviceMessage[Request any](tag, response, deed string, answer func(*request, context.Context, Request) (any, error)) message {
	return message{tag, response, deed, func(r *request, ctx context.Context, body strictjson.Value) ([]byte, error) {
		return answerDevice(r, ctx, tag, body, func(req Request) (any, error) {
			leave, err := r.takeDeviceTurn(ctx)
			if err != nil {
				return nil, err
			}
			defer leave()
			return answer(r, ctx, req)
		})
	}}
}

// deviceQuestion is deviceMessage for what changes nothing: it does not wait for the others, one of which may wait for a person.
func deviceQuestion[Request any](tag, response string, answer func(*request, context.Context, Request) (any, error)) message {
	return message{tag, response, "", func(r *request, ctx context.Context, body strictjson.Value) ([]byte, error) {
		return answerDevice(r, ctx, tag, body, func(req Request) (any, error) { return answer(r, ctx, req) })
	}}
}

func answerDevice[Request any](r *request, ctx context.Context, tag string, body strictjson.Value, answer func(Request) (any, error)) ([]byte, error) {
	var req Request
	defer wipe(&req)
	if err := decode(tag, body, &req); err != nil {
		return nil, err
	}
	if err := r.mayUseDevice(ctx); err != nil {
		return nil, err
	}
	out, err := answer(req)
	if err != nil {
		return nil, err
	}
	defer wipe(out)
	return strictjson.Marshal(out)
}

func (r *request) mayUseDevice(ctx context.Context) error {
	if err := r.decide("", policy.Manage); err != nil {
		return err
	}
	if r.config.Device == nil {
		return &failure{statusUnsupported, "this agent keeps no Mesh identity"}
	}
	return r.ring.CheckRollback(ctx, r.manageGate)
}

// takeDeviceTurn waits for the turn of a message that changes device or accounts: there is one at a time,
// which may take as long as its tokens, and who has their PINs, do.
func (r *request) takeDeviceTurn(ctx context.Context) (leave func(), err error) {
	select {
	case r.deviceTurn <- struct{}{}:
		return func() { <-r.deviceTurn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// identity is the device's record with its validated profile.
type identity struct {
	*devicestate.Device
	profile *device.ProfileDevice
}

var errNoDevice = &failure{statusNotFound, "device: there is none yet, see device init"}

// identity reads the device's record.
func (r *request) identity() (*identity, error) {
	d, err := r.config.Device.Device()
	if errors.Is(err, devicestate.ErrNotFound) {
		return nil, errNoDevice
	}
	if err != nil {
		return nil, err
	}
	p, err := parsed(d.Profile, device.ParseProfileDevice)
	if err != nil {
		return nil, d.Unusable(err)
	}
	return &identity{d, p}, nil
}

// save writes the device's record and what follows from it.
func (r *request) save(ctx context.Context, id *identity) error {
	change, err := r.config.Device.PutDevice(id.Device)
	if err != nil {
		return err
	}
	if err := r.change(ctx, change); err != nil {
		return err
	}
	r.inside.Store(insideOf(id.Device))
	return nil
}

// change makes a change of the record of the device or an account, under the guard against rollback.
func (r *request) change(ctx context.Context, c *devicestate.Change) error {
	return r.ring.ChangeCompanion(ctx, r.manageGate, c.After, c.Do)
}

// putAccount writes an account's record.
func (r *request) putAccount(ctx context.Context, a *devicestate.Account) error {
	change, err := r.config.Device.PutAccount(a)
	if err != nil {
		return err
	}
	return r.change(ctx, change)
}

// deviceInit answers DeviceInitRequest.
func (r *request) deviceInit(ctx context.Context, req mesh.DeviceInitRequest) (any, error) {
	switch d, err := r.config.Device.Device(); {
	case err == nil:
		return nil, &failure{statusState, "device: there is one already, " + profileName(d.Profile)}
	case !errors.Is(err, devicestate.ErrNotFound):
		return nil, err
	}
	b, err := r.newBirth(ctx, req)
	if err != nil {
		return nil, err
	}
	defer b.seed.Wipe()
	id, err := b.make(ctx)
	if err == nil {
		err = r.save(ctx, id)
	}
	if err != nil {
		return nil, errors.Join(err, b.undo(ctx))
	}
	return r.describe(id)
}

// birth is what a device's identity is made of.
type birth struct {
	maker
	tier        token.Protection
	inside      token.Token // makes the agreement keys; nil if they come from the seed
	algorithm   token.Algorithm
	generation  mesh.Generation
	description string
	seed        *mesh.Seed
	algorithms  device.Algorithms     // of a new profile's keys that are not of the default ones
	profile     *device.ProfileDevice // an existing one
}

func (r *request) newBirth(ctx context.Context, req mesh.DeviceInitRequest) (*birth, error) {
	b := &birth{maker: maker{r: r, home: devicestate.Home{PIN: req.PIN}}, generation: mesh.G1, description: req.Description}
	if req.PCRs != "" || req.Touch != "" {
		return nil, malformed("PCRs", "neither PCRs nor Touch for a device")
	}
	if _, err := parsePolicy(req.Home); err != nil {
		return nil, err
	}
	if err := checkLabel(req.Description); err != nil {
		return nil, malformed("Description", "text of at most %d octets without control characters expected", maxLabel)
	}
	var err error
	if req.Generation != "" {
		if b.generation, err = mesh.ParseGeneration(req.Generation); err != nil {
			return nil, malformed("Generation", `"g1" or "g2" expected`)
		}
	}
	randomness, err := b.settle(req)
	if err != nil {
		return nil, err
	}
	if err := b.readProfile(req); err != nil {
		return nil, err
	}
	if req.Seed == nil {
		b.seed, err = r.freshSeed(ctx, randomness, mesh.SeedProfileDevice)
		return b, err
	}
	if b.inside != nil {
		return nil, malformed("Seed", "a token that makes its own keys has none")
	}
	if err := b.readSeed(req.Seed); err != nil {
		return nil, err
	}
	if b.seed.ID() != mesh.SeedProfileDevice {
		b.seed.Wipe()
		return nil, malformed("Seed", "it is not that of a device")
	}
	return b, nil
}

// readSeed reads the seed of a device that exists: its text, or the record in which the reference code keeps it, which may name
// algorithms.
func (b *birth) readSeed(text []byte) (err error) {
	text = bytes.TrimSpace(text)
	if bytes.HasPrefix(text, []byte("{")) {
		b.seed, b.algorithms, err = device.ParseSeedRecord(text)
	} else {
		b.seed, err = mesh.ParseSeed(string(text))
	}
	if err != nil {
		return malformed("Seed", "a seed Z... of a device, or its PrivateKeyUDF, expected")
	}
	return nil
}

// readProfile reads the profile of a device that exists, which says the generation too.
func (b *birth) readProfile(req mesh.DeviceInitRequest) error {
	if req.Profile == nil {
		return nil
	}
	if req.Seed == nil {
		return malformed("Profile", "only with Seed")
	}
	e, err := mesh.ParseEnvelope(req.Profile)
	if err != nil {
		return malformed("Profile", "%v", err)
	}
	if b.profile, err = device.ParseProfileDevice(e, time.Now()); err != nil {
		return malformed("Profile", "%v", err)
	}
	if req.Generation != "" && b.generation != b.profile.Generation {
		return malformed("Generation", "the profile is of another")
	}
	b.generation = b.profile.Generation
	return nil
}

// settle finds the tokens and what protects the keys, and returns the token whose
// randomness is mixed in.
func (b *birth) settle(req mesh.DeviceInitRequest) (token.Token, error) {
	var holder, sealer token.Token
	var err error
	for _, t := range []struct {
		member, name string
		to           *token.Token
	}{{"Token", req.Token, &holder}, {"SealTo", req.SealTo, &sealer}} {
		if t.name == "" {
			continue
		}
		if *t.to, err = b.r.ring.Token(t.name); err != nil {
			return nil, &failure{statusNotFound, t.member + ": no token is named " + quote(t.name)}
		}
	}
	switch {
	case holder == nil && sealer == nil:
		return nil, malformed("Token", "Token or SealTo expected")
	case holder == nil:
		b.tier, b.home.SealTo = token.ProtectionSealed, req.SealTo
		return sealer, nil
	case holder.Info().Protection == token.ProtectionSoftware:
		if sealer != nil {
			return nil, malformed("SealTo", "not with a token of software")
		}
		b.tier, b.home.Token = token.ProtectionSoftware, req.Token
		return holder, nil
	}
	if sealer == nil {
		sealer, req.SealTo = holder, req.Token
	}
	if _, ok := sealer.(token.Sealer); !ok {
		return nil, malformed("SealTo", "the signature keys need a token that seals")
	}
	b.tier, b.inside, b.home.SealTo = token.ProtectionToken, holder, req.SealTo
	b.algorithm, err = agreementAlgorithm(holder, token.Algorithm(req.Algorithm))
	return sealer, err
}

// agreementAlgorithm chooses the algorithm of the agreement keys that a token makes. Of those
// that tokens have, Mesh software knows X448 and X25519.
func agreementAlgorithm(t token.Token, asked token.Algorithm) (token.Algorithm, error) {
	if _, ok := t.(token.Generator); !ok {
		return "", &failure{statusUnsupported, "Token: it makes no keys"}
	}
	has := t.Info().Algorithms
	for _, a := range []token.Algorithm{token.X448, token.X25519, token.P256, token.P384, token.P521} {
		if slices.Contains(has, a) && (asked == "" || asked == a) {
			return a, nil
		}
	}
	return "", &failure{statusUnsupported, "Algorithm: the token has no such curve for agreement"}
}

// freshSeed draws a seed with the randomness of host and token.
func (r *request) freshSeed(ctx context.Context, t token.Token, id mesh.SeedID) (*mesh.Seed, error) {
	secret, err := r.mixedRandom(ctx, t)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	return mesh.GenerateSeed(bytes.NewReader(secret), id)
}

// baseNames are the members of a profile in which the base keys stand.
var baseNames = map[device.Operation]string{device.Encrypt: "Encryption", device.Sign: "Signature", device.Authenticate: "Authentication"}

// baseUses are those of the base keys. Alone the first one opens only activations, in the agent, and the
// second one signs nothing, since it has no tags.
var baseUses = map[device.Operation]token.Use{
	device.Encrypt: token.UseSeal, device.Sign: token.UseSignAssertion, device.Authenticate: token.UseAuthenticate,
}

// make makes the base keys and the profile. The root key exists only meanwhile.
func (b *birth) make(ctx context.Context) (*identity, error) {
	spec := device.DeviceSpec{Generation: b.generation, Description: b.description}
	for o, to := range map[device.Operation]*token.PublicKey{
		device.Encrypt: &spec.Encryption, device.Sign: &spec.Signature, device.Authenticate: &spec.Authentication,
	} {
		pub, err := b.base(ctx, o)
		if err != nil {
			return nil, err
		}
		*to = pub
	}
	slices.SortFunc(b.made, func(x, y devicestate.Key) int { return bytes.Compare([]byte(x.Name), []byte(y.Name)) })
	profile := b.profile
	if profile == nil {
		var err error
		if profile, err = b.sign(ctx, spec); err != nil {
			return nil, err
		}
	}
	for o, pub := range map[device.Operation]token.PublicKey{
		device.Encrypt: spec.Encryption, device.Sign: spec.Signature, device.Authenticate: spec.Authentication,
	} {
		if profile.Base(o).Index() != pub.Index() {
			return nil, malformed("Profile", "its %s is not that of the seed", baseNames[o])
		}
	}
	text, err := profile.Envelope.Marshal()
	if err != nil {
		return nil, err
	}
	return &identity{&devicestate.Device{
		Generation: b.generation.String(), Tier: string(b.tier), Home: b.home, Profile: text, Keys: b.made,
	}, profile}, nil
}

// base makes one base key.
func (b *birth) base(ctx context.Context, o device.Operation) (token.PublicKey, error) {
	w := wish{name: baseNames[o], label: "device base " + baseNames[o], use: baseUses[o]}
	if b.inside != nil && o != device.Sign {
		e, err := b.generate(ctx, b.inside.Info().Name, b.algorithm, w)
		if err != nil {
			return token.PublicKey{}, err
		}
		return e.Public, nil
	}
	private, err := b.derive(o)
	if err != nil {
		return token.PublicKey{}, err
	}
	defer private.Wipe()
	w.private = private
	e, err := b.put(ctx, w)
	if err != nil {
		return token.PublicKey{}, err
	}
	if e.Use != w.use {
		return token.PublicKey{}, malformed("Seed", "its key %s is held with another use", e.Udf)
	}
	return e.Public, nil
}

// derive derives a base key from the seed. The caller wipes it.
func (b *birth) derive(o device.Operation) (*token.PrivateKey, error) {
	if b.profile != nil {
		return b.profile.BaseKey(b.seed, o)
	}
	return device.DeviceKey(b.seed, o, b.algorithms[o], b.generation)
}

// sign makes the profile. The root key is derived, signs once and is forgotten.
func (b *birth) sign(ctx context.Context, spec device.DeviceSpec) (*device.ProfileDevice, error) {
	root, err := rootKey(device.DeviceKey(b.seed, device.Profiling, "", b.generation))
	if err != nil {
		return nil, err
	}
	defer root.Wipe()
	return device.NewProfileDevice(ctx, root, spec)
}

// deviceShow answers DeviceShowRequest.
func (r *request) deviceShow(ctx context.Context, req mesh.DeviceShowRequest) (any, error) {
	id, err := r.identity()
	if err != nil {
		return nil, err
	}
	return r.describe(id)
}

// describe is a DeviceResponse.
func (r *request) describe(id *identity) (any, error) {
	info := &mesh.DeviceInfo{
		Udf: id.profile.Name(), Generation: id.Generation, Tier: id.Tier, Notes: id.notes(),
		Profile: id.Profile, Keys: r.namedKeys(id.Keys),
	}
	for _, p := range id.Pins {
		info.Approved = append(info.Approved, mesh.AccountName{Udf: p.Udf, Address: p.Address})
	}
	for _, q := range id.Requests {
		info.Requests = append(info.Requests, mesh.DeviceRequest{MessageId: q.MessageID, Account: q.Account, Created: q.Created})
	}
	for i := range id.Accounts {
		if m := &id.Accounts[i]; m.Active {
			info.Accounts = append(info.Accounts, r.deviceAccount(id, m))
		}
	}
	return mesh.DeviceResponse{Reply: accepted, Device: info}, nil
}

// maxSuperseded is the number of keys of earlier connections that the description of a connection has. The list of keys
// has all of them.
const maxSuperseded = 64

// deviceAccount describes a connection, which is of the device's own generation.
func (r *request) deviceAccount(id *identity, m *devicestate.Membership) mesh.DeviceAccount {
	earlier := 0
	keys := slices.DeleteFunc(slices.Clone(m.Keys), func(k devicestate.Key) bool { // the newest come first
		if strings.HasPrefix(k.Name, superseded) {
			earlier++
		}
		return earlier > maxSuperseded && strings.HasPrefix(k.Name, superseded)
	})
	return mesh.DeviceAccount{
		AccountName: mesh.AccountName{Udf: m.Udf, Address: m.Address}, Generation: id.Generation, Roles: m.Roles, Keys: r.namedKeys(keys),
		Profile: m.ProfileUser, ConnectionDevice: m.ConnectionDevice, ConnectionService: m.ConnectionService,
	}
}

// notes says what holds of a device of this kind.
func (id *identity) notes() []string {
	out := []string{"The root key signed the profile and was destroyed: a changed device is a new device."}
	switch a := id.profile.Encryption.Algorithm; {
	case id.Tier == string(token.ProtectionSoftware):
		out = append(out, "All keys are software.")
	case id.Tier == string(token.ProtectionSealed):
		out = append(out, "The keys are sealed by the token and used in the agent's memory.")
	case a == token.X25519 || a == token.X448:
		out = append(out, "The base keys for agreement never leave their token; the signature key is sealed.",
			string(a)+" in a token is interoperable by construction; no other Mesh software was tested with it.")
	default:
		out = append(out, "The base keys for agreement never leave their token; the signature key is sealed.",
			"Device keys on "+string(a)+" are an extension of this project: other Mesh software cannot activate such a device.")
	}
	return out
}

// profileName is the name that a profile's header claims, for messages.
func profileName(profile strictjson.Value) string {
	e, err := mesh.ParseEnvelope(profile)
	if err != nil {
		return "unreadable"
	}
	return e.Header.EnvelopeID
}

// insideOf are the digests of ephemeral keys of which the agent keeps to itself what they wrap.
func insideOf(d *devicestate.Device) *device.DigestSet {
	var out device.DigestSet
	for _, m := range d.Accounts {
		out = out.Union(m.Inside)
	}
	return &out
}

// loadInside reads the digests, unless they are known. Without a device there are none.
func (a *Agent) loadInside() error {
	if a.config.Device == nil || a.inside.Load() != nil {
		return nil
	}
	d, err := a.config.Device.Device()
	if errors.Is(err, devicestate.ErrNotFound) {
		d, err = &devicestate.Device{}, nil
	}
	if err == nil {
		a.inside.CompareAndSwap(nil, insideOf(d))
	}
	return err
}
