package agent

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// administered is an account of which this agent is an administrator.
type administered struct {
	*devicestate.Account
	profile *device.ProfileUser
}

// account returns the account of a name or address; with neither, the only one.
func (r *request) account(name string) (*administered, error) {
	all, err := r.config.Device.Accounts()
	if err != nil {
		return nil, err
	}
	if name != "" {
		all = slices.DeleteFunc(all, func(a *devicestate.Account) bool {
			return !sameName(a.Udf, name) && !strings.EqualFold(a.Address, name)
		})
	}
	switch {
	case len(all) == 0 && name == "":
		return nil, &failure{statusNotFound, "Account: there is none, see account init"}
	case len(all) == 0:
		return nil, &failure{statusNotFound, "Account: this agent administers no such account"}
	case len(all) > 1:
		return nil, malformed("Account", "there are several, name one by its UDF")
	}
	p, err := parsed(all[0].Profile, device.ParseProfileUser)
	if err != nil {
		return nil, all[0].Unusable(err)
	}
	return &administered{all[0], p}, nil
}

// open decrypts what was encrypted to the account's key of use seal. The caller wipes it.
func (r *request) open(ctx context.Context, a *devicestate.Account, text strictjson.Value) ([]byte, error) {
	key, err := r.ownNamed(a.Seal)
	if err != nil {
		return nil, err
	}
	e, err := mesh.ParseEnvelope(text)
	if err != nil {
		return nil, err
	}
	plaintext, err := e.Decrypt(ctx, key)
	if errors.Is(err, token.ErrDecrypt) || errors.Is(err, mesh.ErrNotRecipient) {
		return nil, fmt.Errorf("account %s: what is sealed does not open: %w", a.Udf, token.ErrCorrupt)
	}
	return plaintext, err
}

// seed opens the account's seed, which the caller wipes.
func (r *request) seed(ctx context.Context, a *devicestate.Account) (*mesh.Seed, error) {
	if a.Seed == nil {
		return nil, &failure{statusState, "Account: its seed was forgotten here; account recover brings it back"}
	}
	text, err := r.open(ctx, a, a.Seed)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	return mesh.ParseSeed(string(text))
}

// sealTo encrypts to a key, with integrity.
func sealTo(key token.PublicKey, plaintext []byte) (strictjson.Value, error) {
	e, err := mesh.EncryptOptions{Encryption: mesh.A256GCM}.Encrypt(rand.Reader, plaintext, key)
	if err != nil {
		return nil, err
	}
	return e.Marshal()
}

// accountInit answers AccountInitRequest.
func (r *request) accountInit(ctx context.Context, req mesh.AccountInitRequest) (any, error) {
	home, source, err := r.accountHome(req.Home)
	if err != nil {
		return nil, err
	}
	seed, spec, profile, err := r.accountSeed(ctx, req, source)
	if err != nil {
		return nil, err
	}
	defer seed.Wipe()
	var shares []string
	if req.Recover == nil {
		if shares, err = splitSeed(seed, req.Shares, req.Threshold); err != nil {
			return nil, err
		}
	}
	if profile == nil {
		if profile, err = makeProfileUser(ctx, seed, *spec); err != nil {
			return nil, err
		}
	}
	made, _, err := r.adoptAccount(ctx, home, seed, profile, false)
	if err != nil {
		return nil, err
	}
	response := mesh.AccountInitResponse{Reply: accepted, Account: r.describeAccount(made)}
	for _, s := range shares {
		response.Shares = append(response.Shares, []byte(s))
	}
	return response, nil
}

// accountHome settles where the account's keys go: into software, or sealed by a token.
func (r *request) accountHome(in mesh.Home) (home devicestate.Home, source token.Token, err error) {
	if in.PCRs != "" || in.Touch != "" {
		return home, nil, malformed("PCRs", "neither PCRs nor Touch for an account")
	}
	name, seal, err := r.parsePlace(in)
	if err != nil {
		return home, nil, err
	}
	if _, err := parsePolicy(in); err != nil {
		return home, nil, err
	}
	t, err := r.ring.Token(name)
	if err != nil {
		return home, nil, err
	}
	home.PIN = in.PIN
	if home.SealTo = name; !seal && t.Info().Protection == token.ProtectionSoftware {
		home.Token, home.SealTo = name, ""
	}
	return home, t, nil
}

// accountSeed draws a new seed with the spec of a profile to be made, or recovers one. Of an
// account that exists the profile is returned.
func (r *request) accountSeed(ctx context.Context, req mesh.AccountInitRequest, source token.Token) (*mesh.Seed, *device.AccountSpec, *device.ProfileUser, error) {
	g := mesh.G1
	var err error
	if req.Generation != "" {
		if g, err = mesh.ParseGeneration(req.Generation); err != nil {
			return nil, nil, nil, malformed("Generation", `"g1" or "g2" expected`)
		}
	}
	if req.Recover != nil {
		return recoverAccount(req, g)
	}
	if req.Profile != nil {
		return nil, nil, nil, malformed("Profile", "only with Recover")
	}
	if err := checkAddress(req.Address); err != nil {
		return nil, nil, nil, malformed("Address", "an address such as alice@example.com expected")
	}
	seed, err := r.freshSeed(ctx, source, mesh.SeedProfileAccount)
	if err != nil {
		return nil, nil, nil, err
	}
	spec, err := device.NewAccountSpec(seed, g)
	if err != nil {
		seed.Wipe()
		return nil, nil, nil, err
	}
	spec.Address = req.Address
	return seed, spec, nil, nil
}

// recoverAccount recovers the seed of an account that exists, and its profile if that is given.
func recoverAccount(req mesh.AccountInitRequest, g mesh.Generation) (*mesh.Seed, *device.AccountSpec, *device.ProfileUser, error) {
	seed, err := recoverSeed(req.Recover)
	if err != nil {
		return nil, nil, nil, err
	}
	var profile *device.ProfileUser
	if req.Profile != nil {
		e, err := mesh.ParseEnvelope(req.Profile)
		if err == nil {
			profile, err = device.ParseProfileUser(e, time.Now())
		}
		if err != nil {
			seed.Wipe()
			return nil, nil, nil, malformed("Profile", "%v", err)
		}
	}
	var spec *device.AccountSpec
	if profile != nil {
		err = checkRecovered(profile, seed)
	} else {
		spec, err = recoveredSpec(seed, req.Address, g)
	}
	if err != nil {
		seed.Wipe()
		return nil, nil, nil, err
	}
	return seed, spec, profile, nil
}

// checkRecovered says whether a seed that was recovered is that of a profile.
func checkRecovered(profile *device.ProfileUser, seed *mesh.Seed) error {
	err := profile.CheckSeed(seed)
	switch {
	case errors.Is(err, device.ErrKeyMismatch):
		return malformed("Profile", "the shares are those of another account")
	case err != nil:
		return malformed("Recover", "%v", err)
	}
	return nil
}

// recoveredSpec is what a new profile is made of where none is given.
func recoveredSpec(seed *mesh.Seed, address string, g mesh.Generation) (*device.AccountSpec, error) {
	if checkAddress(address) != nil {
		return nil, malformed("Address", "an address such as alice@example.com, or the Profile, expected")
	}
	spec, err := device.NewAccountSpec(seed, g)
	if err != nil {
		return nil, malformed("Recover", "%v", err)
	}
	spec.Address = address
	return spec, nil
}

// splitSeed makes the shares of the escrow.
func splitSeed(seed *mesh.Seed, n, threshold int) ([]string, error) {
	if n == 0 && threshold == 0 {
		n, threshold = 3, 2
	}
	if n < 2 || n > 15 || threshold < 2 || threshold > n {
		return nil, malformed("Shares", "2 to 15, of which 2 or more are needed, expected")
	}
	return device.SplitSeed(rand.Reader, seed, threshold, n)
}

// makeProfileUser has the root key, which exists only meanwhile, sign the profile.
func makeProfileUser(ctx context.Context, seed *mesh.Seed, spec device.AccountSpec) (*device.ProfileUser, error) {
	root, err := rootKey(device.AccountKey(seed, device.Profiling, "", spec.Generation))
	if err != nil {
		return nil, err
	}
	defer root.Wipe()
	return device.NewProfileUser(ctx, root, spec)
}

// rootKey makes a derived key, which it wipes, one that signs here. The caller wipes the result.
func rootKey(private *token.PrivateKey, err error) (*mesh.LocalKey, error) {
	if err != nil {
		return nil, err
	}
	defer private.Wipe()
	return mesh.NewLocalKey(private)
}

// adoptAccount makes the keys of an account from its seed, and keeps the seed, encrypted to a
// key that opens it inside the agent only. An account that is held already stays as it is, but for a
// seed that was forgotten. Fresh says that it was not held; granted that the seed came with a connection.
func (r *request) adoptAccount(ctx context.Context, home devicestate.Home, seed *mesh.Seed, profile *device.ProfileUser, granted bool) (a *devicestate.Account, fresh bool, err error) {
	held, err := r.account(profile.Name())
	var missing *failure
	if err == nil {
		return held.Account, false, r.restoreSeed(ctx, held, seed)
	} else if !errors.As(err, &missing) || missing.status != statusNotFound {
		return nil, false, err
	}
	m := &maker{r: r, home: home}
	a, err = r.makeAccount(ctx, m, seed, profile)
	if err == nil {
		a.Granted = granted
		err = r.putAccount(ctx, a)
	}
	if err != nil {
		return nil, false, errors.Join(err, m.undo(ctx))
	}
	return a, true, nil
}

// restoreSeed puts the seed of an account back that was forgotten.
func (r *request) restoreSeed(ctx context.Context, a *administered, seed *mesh.Seed) error {
	if a.Seed != nil {
		return nil
	}
	if err := a.profile.CheckSeed(seed); err != nil {
		return malformed("Profile", "%v", err)
	}
	text := []byte(seed.Text())
	defer clear(text)
	var err error
	if a.Seed, err = r.sealFor(a.Account, text); err != nil {
		return err
	}
	return r.putAccount(ctx, a.Account)
}

// sealFor encrypts a secret to the account's key of use seal.
func (r *request) sealFor(a *devicestate.Account, secret []byte) (strictjson.Value, error) {
	key, err := r.ownNamed(a.Seal)
	if err != nil {
		return nil, err
	}
	return sealTo(key.Public(), secret)
}

// granted returns the account whose seed came with the connection to it, or nil.
func (r *request) granted(udf string) (*devicestate.Account, error) {
	held, err := r.account(udf)
	var missing *failure
	switch {
	case errors.As(err, &missing) && missing.status == statusNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	case !held.Granted:
		return nil, nil
	}
	return held.Account, nil
}

// dropAccount forgets an account with its keys; nil is none.
func (r *request) dropAccount(ctx context.Context, a *devicestate.Account) error {
	if a == nil {
		return nil
	}
	if err := r.change(ctx, r.config.Device.RemoveAccount(a.Udf)); err != nil {
		return err
	}
	return r.deleteKeys(ctx, a.Keys)
}

// accountForget answers AccountForgetRequest.
func (r *request) accountForget(ctx context.Context, req mesh.AccountForgetRequest) (any, error) {
	a, err := r.account(req.Account)
	if err != nil {
		return nil, err
	}
	seed, err := r.seed(ctx, a.Account)
	if err != nil {
		return nil, err
	}
	defer seed.Wipe()
	recovered, err := recoverSeed(req.Recover)
	if err != nil {
		return nil, err
	}
	defer recovered.Wipe()
	x, y := seed.Octets(), recovered.Octets()
	defer clear(x)
	defer clear(y)
	if subtle.ConstantTimeCompare(x, y) == 0 {
		return nil, malformed("Recover", "the shares are those of another account")
	}
	a.Seed = nil
	if err := r.putAccount(ctx, a.Account); err != nil {
		return nil, err
	}
	return accepted, nil
}

func recoverSeed(shares []mesh.Binary) (*mesh.Seed, error) {
	texts := make([]string, len(shares))
	for i, s := range shares {
		texts[i] = strings.TrimSpace(string(s))
	}
	seed, err := device.RecoverSeed(texts...)
	if err != nil {
		return nil, malformed("Recover", "%v", err)
	}
	return seed, nil
}

func (r *request) makeAccount(ctx context.Context, m *maker, seed *mesh.Seed, profile *device.ProfileUser) (*devicestate.Account, error) {
	if err := profile.CheckSeed(seed); err != nil {
		return nil, malformed("Profile", "%v", err)
	}
	keys, err := device.NewAccountActivation(seed, device.Rights{Administer: true, Common: true}, profile)
	if err != nil {
		return nil, err
	}
	defer keys.Wipe()
	name := profile.Name()
	for _, k := range keys.Named() {
		use, ok := accountUses[k.Name]
		if !ok {
			use = token.UseDecrypt
		}
		w := wish{name: k.Name, label: profile.Address + " " + k.Name, use: use, tags: tagsOf(k.Name)}
		if _, err := r.takeKey(ctx, m, w, k.Key); err != nil {
			return nil, err
		}
	}
	if err := r.makeEscrowKey(ctx, m, seed, profile); err != nil {
		return nil, err
	}
	seal, err := m.draw(ctx, token.X25519, wish{name: "Seal", label: profile.Address + " seal", use: token.UseSeal})
	if err != nil {
		return nil, err
	}
	text := []byte(seed.Text())
	defer clear(text)
	sealed, err := sealTo(seal.Public, text)
	if err != nil {
		return nil, err
	}
	envelope, err := profile.Envelope.Marshal()
	if err != nil {
		return nil, err
	}
	return &devicestate.Account{
		Generation: profile.Generation.String(), Udf: name, Address: profile.Address, Profile: envelope,
		Home: m.home, Keys: m.made, Seal: seal.Udf, Seed: sealed,
	}, nil
}

// makeEscrowKey makes the key to which private keys of applications are escrowed, which opens them inside the
// agent only. Profiles before 2021 have none.
func (r *request) makeEscrowKey(ctx context.Context, m *maker, seed *mesh.Seed, profile *device.ProfileUser) error {
	if profile.Escrow == nil {
		return nil
	}
	private, err := device.AccountKey(seed, device.Escrow, profile.Escrow.Algorithm, profile.Generation)
	if err != nil {
		return err
	}
	defer private.Wipe()
	if pub, err := mesh.PublicOf(private); err != nil || !pub.Equal(*profile.Escrow) {
		return malformed("Profile", "the escrow key is not that of the seed")
	}
	_, err = m.put(ctx, wish{name: escrowName, label: profile.Address + " " + escrowName, use: token.UseSeal, private: private})
	return err
}

// escrowName is the member of an account's profile that has the escrow key.
const escrowName = "EscrowEncryption"

// describeAccount leaves out devices and applications, of which there may be many.
func (r *request) describeAccount(a *devicestate.Account) *mesh.AccountInfo {
	return &mesh.AccountInfo{
		AccountName: mesh.AccountName{Udf: a.Udf, Address: a.Address}, Generation: a.Generation, Profile: a.Profile, Keys: r.namedKeys(a.Keys),
	}
}

func describeConnected(d *devicestate.Connected) mesh.AccountDevice {
	return mesh.AccountDevice{Udf: d.Udf, Roles: d.Roles, Revoked: d.Revoked}
}

// accountEscrow answers AccountEscrowRequest.
func (r *request) accountEscrow(ctx context.Context, req mesh.AccountEscrowRequest) (any, error) {
	a, err := r.account(req.Account)
	if err != nil {
		return nil, err
	}
	seed, err := r.seed(ctx, a.Account)
	if err != nil {
		return nil, err
	}
	defer seed.Wipe()
	shares, err := splitSeed(seed, req.Shares, req.Threshold)
	if err != nil {
		return nil, err
	}
	response := mesh.AccountInitResponse{Reply: accepted, Account: r.describeAccount(a.Account)}
	for _, s := range shares {
		response.Shares = append(response.Shares, []byte(s))
	}
	return response, nil
}
