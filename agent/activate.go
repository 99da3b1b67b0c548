package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// maxApplications is the number of application entries that one activation may have.
const maxApplications = 64

// deviceActivate answers DeviceActivateRequest: it verifies a connection in all its steps, and
// only then makes keys of it.
func (r *request) deviceActivate(ctx context.Context, req mesh.DeviceActivateRequest) (any, error) {
	id, err := r.identity()
	if err != nil {
		return nil, err
	}
	if e, err := mesh.ParseEnvelope(req.Catalog); err == nil && isRevocation(e) {
		return r.revoked(ctx, id, e)
	}
	base, err := r.own(id.profile.Encryption)
	if err != nil {
		return nil, err
	}
	came, err := r.openCatalog(ctx, req, base, id)
	if err != nil {
		return nil, catalogError(err)
	}
	v, m, err := r.verify(ctx, id, came, base, req)
	if err != nil {
		return nil, err
	}
	defer m.Wipe()
	return r.activate(ctx, id, activation{req: req, entry: came.entry, frame: v.Frame, member: m, request: came.request})
}

// arrival is a CatalogedDevice with what its envelope says.
type arrival struct {
	entry   *device.CatalogedDevice
	request int           // index of the request of this device that it answers, or -1
	frame   *device.Frame // where in the catalog it stood; nil if that was not said
}

// openCatalog reads a CatalogedDevice: as it is, in an envelope, which may be a frame of the account's catalog and
// encrypted to the device's combined key, or in the answer to a request of this device.
func (r *request) openCatalog(ctx context.Context, req mesh.DeviceActivateRequest, base mesh.Agreer, id *identity) (*arrival, error) {
	if req.Catalog.Kind() != '[' {
		entry, err := device.ParseCatalogedDevice(req.Catalog)
		return &arrival{entry: entry, request: -1}, err
	}
	e, err := mesh.ParseEnvelope(req.Catalog)
	if err != nil {
		return nil, err
	}
	if e.Header.Encryption == "" {
		entry, err := device.CatalogedDeviceBody(e.Body)
		if err != nil {
			return nil, err
		}
		return framed(e, entry)
	}
	if combined, ok := r.combinedFor(id, e); ok {
		if err := r.notInside(combined, e); err != nil {
			return nil, err
		}
		entry, err := device.OpenCatalogedDevice(ctx, e, combined)
		if err != nil {
			return nil, err
		}
		return framed(e, entry)
	}
	answer, err := device.OpenRespondConnection(ctx, e, base)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(id.Requests, func(q devicestate.Request) bool { return answers(answer.MessageID, q) })
	if at < 0 && !req.Unsolicited && !req.Update { // an update may come as a bare CatalogedDevice, too
		return nil, &failure{statusState, "Catalog: it answers no request of this device that waits"}
	}
	return &arrival{entry: answer.CatalogedDevice, request: at}, nil
}

// notInside refuses an activation that was taken already, on its own: nothing that came of it is a CatalogedDevice.
func (r *request) notInside(combined ringKey, e *mesh.Envelope) error {
	for _, to := range e.Header.Recipients {
		if p, err := to.EphemeralKey.Point(); err == nil && r.mayUnwrap(combined.entry, p, nil) != nil {
			return malformed("Catalog", "it is an activation, which comes in a CatalogedDevice")
		}
	}
	return nil
}

// framed adds where in a catalog the entry of an envelope stood, if it is a frame.
func framed(e *mesh.Envelope, entry *device.CatalogedDevice) (*arrival, error) {
	came := &arrival{entry: entry, request: -1}
	_, err := e.Manifest(mesh.G1) // its digest, if it has one
	if err == nil && e.Header.SequenceInfo != nil {
		came.frame, err = device.FrameOf(e)
	}
	return came, err
}

// combinedFor returns the combined key, of now or of before, to which an envelope is encrypted.
func (r *request) combinedFor(id *identity, e *mesh.Envelope) (ringKey, bool) {
	for _, m := range id.Accounts {
		for _, k := range m.Keys {
			if strings.TrimPrefix(k.Name, superseded) != combinedNames[device.Encrypt] {
				continue
			}
			key, err := r.ownNamed(k.Udf)
			if err == nil && slices.ContainsFunc(e.Header.Recipients, func(to mesh.Recipient) bool {
				return mesh.Names(to.KeyID, key.Public(), id.profile.Generation)
			}) {
				return key, true
			}
		}
	}
	return ringKey{}, false
}

// answers reports whether a message answers a request or its acknowledgement.
func answers(messageID string, q devicestate.Request) bool {
	for _, id := range []string{q.MessageID, q.Acknowledged} {
		if id == "" {
			continue
		}
		if want, err := device.ResponseID(id); err == nil && want == messageID {
			return true
		}
	}
	return false
}

// catalogError says what is wrong with the Catalog of a request; the key's own errors stay as they are.
func catalogError(err error) error {
	var known *failure
	switch {
	case errors.As(err, &known):
		return err
	case errors.Is(err, device.ErrRejected):
		return &failure{statusForbidden, "policy: the administrator rejected the request"}
	case errors.Is(err, mesh.ErrNotRecipient):
		return malformed("Catalog", "it is not encrypted to this device")
	case errors.Is(err, token.ErrDecrypt):
		return malformed("Catalog", "decryption failed, or it is nothing that connects a device")
	case errors.Is(err, device.ErrCatalog):
		return malformed("Catalog", "%v", err)
	}
	for _, row := range rows {
		if errors.Is(err, row.err) {
			return err
		}
	}
	return malformed("Catalog", "%v", err)
}

// verify runs the whole verification against the approved account and the history.
func (r *request) verify(ctx context.Context, id *identity, came *arrival, base mesh.Agreer, req mesh.DeviceActivateRequest) (device.Verification, *device.Membership, error) {
	v := device.Verification{Device: id.profile, Base: base, Frame: came.frame, AllowNoProfileUdf: req.AllowUnnamed, Now: time.Now()}
	if f := req.Frame; f != nil {
		if came.frame != nil {
			return v, nil, malformed("Frame", "Catalog is a frame itself")
		}
		v.Frame = &device.Frame{Index: f.Index, Tree: f.Tree}
	}
	if len(id.Pins) == 0 {
		return v, nil, &failure{statusForbidden, "policy: no account is approved, see device approve"}
	}
	v.Account = id.Pins[len(id.Pins)-1].Udf
	if account, err := device.ParseProfileUser(came.entry.ProfileUser, v.Now); err == nil {
		if i := slices.IndexFunc(id.Pins, func(p devicestate.Pin) bool { return account.Is(p.Udf) }); i >= 0 {
			v.Account = id.Pins[i].Udf
		}
	}
	if m := id.membership(v.Account); m != nil {
		v.History = &m.History
	}
	m, err := v.Verify(ctx, came.entry)
	return v, m, verifyFailure(err)
}

// membership returns what is known of the connection to an account, or nil.
func (id *identity) membership(account string) *devicestate.Membership {
	for i := range id.Accounts {
		if sameName(id.Accounts[i].Udf, account) {
			return &id.Accounts[i]
		}
	}
	return nil
}

// pin returns the approval of an account.
func (id *identity) pin(account string) *devicestate.Pin {
	for i := range id.Pins {
		if sameName(id.Pins[i].Udf, account) {
			return &id.Pins[i]
		}
	}
	return nil
}

// verifyFailure answers with the step at which a verification failed.
func verifyFailure(err error) error {
	var at *device.VerifyError
	if !errors.As(err, &at) {
		return err
	}
	if at.Step == device.StepRollback {
		return &failure{statusState, at.Error()}
	}
	return &failure{statusForbidden, "policy: " + at.Error()}
}

// activation is a verified connection on its way into use.
type activation struct {
	req     mesh.DeviceActivateRequest
	entry   *device.CatalogedDevice
	frame   *device.Frame
	member  *device.Membership
	request int // index of the request that it answers, or -1
	// old is the connection before; nil if there was none.
	old *devicestate.Membership
	// release is the most that the combined key gives out.
	release token.Release
}

// activate makes the keys and replaces what the device had of the account before.
func (r *request) activate(ctx context.Context, id *identity, a activation) (any, error) {
	name := a.member.Account.Name()
	old := id.membership(name)
	a.old = old
	pin := id.pin(name)
	switch {
	case a.req.Update && (old == nil || !old.Active):
		return nil, &failure{statusState, "Update: the device is not connected to this account"}
	case a.member.Order == device.OrderUnknown && !a.req.Confirm && !pin.Unused:
		return nil, &failure{statusState, "Confirm: it is another connection than the one in use, and nothing in it says which is newer: no version and no date is signed"}
	}
	if err := a.limit(); err != nil {
		return nil, err
	}
	m := &maker{r: r, home: id.Home}
	inside := device.DigestSet{}.Add(a.insideDigests()...)
	if old != nil {
		inside = inside.Union(old.Inside)
	}
	if inside.Len() > device.MaxDigests {
		return nil, &failure{statusState, "Catalog: no more activations can be remembered, and none must be forgotten: a new device is needed"}
	}
	if err := r.keepInside(inside); err != nil { // before there is a key that opens them
		return nil, err
	}
	refused, err := r.install(ctx, m, a)
	if err != nil {
		return nil, errors.Join(err, m.undo(ctx))
	}
	next, err := a.record(m.made, inside)
	if err != nil {
		return nil, errors.Join(err, m.undo(ctx))
	}
	granted, err := r.noMoreGranted(a, next)
	if err != nil {
		return nil, errors.Join(err, m.undo(ctx))
	}
	var obsolete []devicestate.Key
	if old == nil {
		id.Accounts = append(id.Accounts, *next)
	} else {
		next.History = *old.History.Adopt(a.entry, a.frame)
		keep(next, old)
		obsolete = leftOver(old.Keys, next.Keys)
		*old = *next
	}
	if pin.Unused = false; pin.Address == "" {
		pin.Address = a.member.Account.Address
	}
	if a.request >= 0 {
		id.Requests = slices.Delete(id.Requests, a.request, a.request+1)
	}
	if err := r.save(ctx, id); err != nil {
		return nil, errors.Join(err, m.undo(ctx))
	}
	if err := r.deleteKeys(ctx, obsolete); err != nil {
		return nil, err
	}
	if err := r.dropAccount(ctx, granted); err != nil {
		return nil, err
	}
	return mesh.DeviceActivateResponse{Reply: accepted, Account: r.deviceAccount(id, next), Refused: refused}, nil
}

// limit settles what the combined key gives out: what is asked for, and no more than by the connection before.
func (a *activation) limit() error {
	release, err := parseRelease(a.req.Release, token.UseDecrypt)
	if err != nil {
		return err
	}
	if a.req.InsideOnly && release != token.ReleaseSeed {
		return malformed("Release", "a key for the inside only gives out nothing")
	}
	if a.old != nil {
		before, err := token.ParseRelease(a.old.Release)
		if err != nil {
			return fmt.Errorf("connection before: %w", err)
		}
		release = release.Narrower(before)
		a.req.InsideOnly = a.req.InsideOnly || a.old.InsideOnly
	}
	a.release = release
	return nil
}

// noMoreGranted returns the account whose seed this device had by the connection before and has no more. Of
// its keys those that the connection grants still become the connection's own.
func (r *request) noMoreGranted(a activation, next *devicestate.Membership) (*devicestate.Account, error) {
	if a.member.Keys.Seed != nil {
		return nil, nil
	}
	account, err := r.granted(next.Udf)
	if account == nil {
		return nil, err
	}
	for i, k := range next.Keys {
		next.Keys[i].Own = k.Own || ownedBefore(account.Keys, k.Udf)
	}
	account.Keys = leftOver(account.Keys, next.Keys)
	return account, nil
}

// record describes the connection for the device's record.
func (a activation) record(keys []devicestate.Key, inside device.DigestSet) (*devicestate.Membership, error) {
	next := &devicestate.Membership{
		Udf: a.member.Account.Name(), Address: a.member.Account.Address, Active: true, Roles: a.member.Roles, Keys: keys,
		InsideOnly: a.req.InsideOnly, Release: string(a.release), Inside: inside,
		History: *(&device.History{}).Adopt(a.entry, a.frame),
	}
	for _, x := range []struct {
		e  *mesh.Envelope
		to *strictjson.Value
	}{{a.entry.ProfileUser, &next.ProfileUser}, {a.entry.ConnectionDevice, &next.ConnectionDevice}, {a.entry.ConnectionService, &next.ConnectionService}} {
		text, err := x.e.Marshal()
		if err != nil {
			return nil, err
		}
		*x.to = text
	}
	return next, nil
}

// superseded begins the names of combined keys that are kept to open what was encrypted
// to them.
const superseded = "superseded "

// ownedBefore says which of the keys in use now were made by the connection before.
func ownedBefore(old []devicestate.Key, udf string) bool {
	return slices.ContainsFunc(old, func(k devicestate.Key) bool { return k.Udf == udf && k.Own })
}

// keep takes over from the connection before what goes on: whose keys they are, and the combined keys for
// decryption.
func keep(next, old *devicestate.Membership) {
	for i, k := range next.Keys {
		next.Keys[i].Own = k.Own || ownedBefore(old.Keys, k.Udf)
	}
	for _, k := range old.Keys {
		bare := strings.TrimPrefix(k.Name, superseded)
		there := slices.ContainsFunc(next.Keys, func(n devicestate.Key) bool { return n.Udf == k.Udf })
		if bare == combinedNames[device.Encrypt] && !there {
			next.Keys = append(next.Keys, devicestate.Key{Name: superseded + bare, Udf: k.Udf, Own: k.Own})
		}
	}
}

// leftOver are the keys of before that are not among those of now.
func leftOver(old, now []devicestate.Key) []devicestate.Key {
	return slices.DeleteFunc(slices.Clone(old), func(k devicestate.Key) bool {
		return slices.ContainsFunc(now, func(n devicestate.Key) bool { return n.Udf == k.Udf })
	})
}

// combinedNames are what the combined keys are called, combinedUses their uses.
var (
	combinedNames = map[device.Operation]string{
		device.Encrypt: "DeviceEncryption", device.Sign: "DeviceSignature", device.Authenticate: "DeviceAuthentication",
	}
	combinedUses = map[device.Operation]token.Use{
		device.Encrypt: token.UseDecrypt, device.Sign: token.UseSign, device.Authenticate: token.UseAuthenticate,
	}
)

// keepInside adds to what is opened inside only.
func (a *Agent) keepInside(digests device.DigestSet) error {
	if err := a.loadInside(); err != nil { // what the other connections have
		return err
	}
	if known := a.inside.Load(); known != nil {
		digests = digests.Union(*known)
	}
	a.inside.Store(&digests)
	return nil
}

// install makes the combined keys, the account's keys and those of applications. It returns
// what was refused.
func (r *request) install(ctx context.Context, m *maker, a activation) (refused []string, err error) {
	label := cmp.Or(a.member.Account.Address, a.member.Account.Name())
	for _, c := range a.member.Contributions {
		name := combinedNames[c.Operation]
		w := wish{name: name, label: label + " " + name, use: combinedUses[c.Operation], private: c.Private}
		if c.Operation == device.Encrypt {
			if w.release = a.release; a.req.InsideOnly {
				w.use, w.release = token.UseSeal, token.ReleaseSeed
			}
		}
		note, err := r.combine(ctx, m, a.member.Device.Base(c.Operation), w, c)
		if err != nil {
			return nil, err
		}
		refused = append(refused, note...)
	}
	notes, err := r.installAccount(ctx, m, a.member, label)
	if err != nil {
		return nil, err
	}
	refused = append(refused, notes...)
	notes, err = r.installApplications(ctx, m, a, label)
	if err != nil {
		return nil, err
	}
	return append(refused, notes...), nil
}

// combine makes one combined key, unless it is there from the same activation.
func (r *request) combine(ctx context.Context, m *maker, base token.PublicKey, w wish, c *device.Contribution) (refused []string, err error) {
	if held, err := r.ring.Snapshot().FindPublic(c.Combined); err == nil && held.Use == w.use && held.Release == w.release {
		return nil, m.take(held, w.name, w.label)
	}
	_, err = m.add(ctx, base, w)
	if errors.Is(err, token.ErrUnsupported) && c.Operation == device.Sign {
		return []string{fmt.Sprintf("%s: %v", w.name, err)}, nil
	}
	return nil, err
}

// insideDigests are those of all that is encrypted for the agent itself.
func (a activation) insideDigests() []mesh.Binary {
	algorithm := a.member.Device.Encryption.Algorithm
	curve, ok := mesh.CurveOf(algorithm)
	if !ok {
		return nil
	}
	var out []mesh.Binary
	add := func(e *mesh.Envelope) {
		if e == nil {
			return
		}
		for _, to := range e.Header.Recipients {
			p := to.EphemeralKey.PublicKeyECDH
			if p == nil || p.Curve != curve.String() {
				continue
			}
			if point, err := keyshare.ParsePoint(curve, p.Public); err == nil {
				out = append(out, insideDigest(algorithm, point))
			}
		}
	}
	for _, e := range a.entry.Activations {
		add(e)
	}
	for _, e := range a.entry.Applications {
		add(e.Envelope)
	}
	return out
}

// insideDigest names an ephemeral key, however it is written and with either sign: what its opposite
// wraps is the same.
func insideDigest(a token.Algorithm, p *keyshare.Point) mesh.Binary {
	digest := sha256.Sum256([]byte(indexOf(a, p)))
	return digest[:]
}

// isCombined reports whether a key is a device's combined key for encryption, one of whose parts is the base key.
func isCombined(key *keyring.Entry) bool {
	return slices.ContainsFunc(key.Parts(), func(p keyring.Part) bool { return p.Use == token.UseSeal })
}

// mayUnwrap reports whether a key may open a recipient entry for a client: not that of an activation
// that the agent has seen. A device's combined key
// opens nothing if the agent does not know which these are, and nothing with points of others
// added, by which the ephemeral key of an activation could be disguised.
func (a *Agent) mayUnwrap(key *keyring.Entry, ephemeral *keyshare.Point, partials []*keyshare.Point) error {
	combined := isCombined(key)
	if combined {
		if err := a.loadInside(); err != nil {
			return err
		}
	}
	switch known := a.inside.Load(); {
	case known != nil && known.Has(insideDigest(key.Algorithm, ephemeral)):
		return forbidden("use", "the entry is that of an activation, which opens inside the agent only")
	case known == nil && combined:
		return forbidden("use", "this agent keeps no record of a device's activations, and none of them must be opened")
	case len(partials) != 0 && combined:
		return forbidden("use", "the combined key of a device is no share: Partials are refused")
	}
	return nil
}

// accountUses are the uses and tags of an account's keys on a device.
var accountUses = map[string]token.Use{
	"Encryption": token.UseDecrypt, "Signature": token.UseSign, "Authentication": token.UseAuthenticate,
	"AdministratorSignature": token.UseSignAssertion, "ProfileSignature": token.UseSignAssertion,
}

// The tags of the bodies that an account's keys sign.
var (
	administratorTags = []string{device.TagConnectionDevice, device.TagConnectionService, device.TagActivationAccount,
		device.TagActivationCommon, device.TagDeviceRevocation}
	rootTags = []string{device.TagProfileUser}
)

func tagsOf(name string) []string {
	switch name {
	case "AdministratorSignature":
		return administratorTags
	case "ProfileSignature":
		return rootTags
	}
	return nil
}

// installAccount takes in what the device may hold of the account's own keys. The first
// administrator gets the seed, and with it the account.
func (r *request) installAccount(ctx context.Context, m *maker, member *device.Membership, label string) (refused []string, err error) {
	keys := member.Keys
	if keys.Seed != nil {
		made, fresh, err := r.adoptAccount(ctx, m.home, keys.Seed, member.Account, true)
		if err != nil {
			return nil, fmt.Errorf("take over account: %w", err)
		}
		if fresh {
			m.account = made
		}
		for _, k := range made.Keys {
			m.made = append(m.made, devicestate.Key{Name: k.Name, Udf: k.Udf})
		}
	}
	for _, k := range keys.Named() {
		use, ok := accountUses[k.Name]
		switch _, application := applicationUses[k.Name]; {
		case !ok && (application || slices.Contains(slices.Collect(maps.Values(combinedNames)), k.Name)):
			refused = append(refused, k.Name+": no name of a store, but of another key")
			continue
		case !ok:
			use = token.UseDecrypt // a store
		}
		note, err := r.takeKey(ctx, m, wish{name: k.Name, label: label + " " + k.Name, use: use, tags: tagsOf(k.Name)}, k.Key)
		if err != nil {
			return nil, err
		}
		refused = append(refused, note...)
	}
	return refused, nil
}

// takeKey takes in one private KeyData. A share of a key is one that needs the
// partial result of the service for each decryption.
func (r *request) takeKey(ctx context.Context, m *maker, w wish, k *mesh.KeyData) (refused []string, err error) {
	refuse := func(why string) []string { return []string{w.name + ": " + why} }
	if err := k.CheckValidity(time.Now()); err != nil {
		return refuse(err.Error()), nil
	}
	p := k.PrivateParameters
	if s := p.KeyShare; s != nil {
		if s.Share == nil || w.use != token.UseDecrypt {
			return refuse("a share, which only keys for decryption can be"), nil
		}
		p = s.Share
		w.label += " (share; the service has the other)"
	}
	if p.PrivateKeyECDH == nil && p.PrivateKeyRSA == nil {
		return refuse("neither a key on a curve nor an RSA key nor a share"), nil
	}
	if w.private, err = p.PrivateKey(); err != nil {
		return refuse(err.Error()), nil
	}
	defer w.private.Wipe()
	if err := w.use.Allows(w.private.Algorithm); err != nil {
		return refuse(err.Error()), nil
	}
	_, err = m.put(ctx, w)
	return nil, err
}
