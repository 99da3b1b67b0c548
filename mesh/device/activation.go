package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// The tags of activations. ActivationAccount has two meanings: until April 2022 it is what
// is now ActivationCommon, afterwards what was ActivationDevice. The contents decide. All tags, those
// of applications too, begin with TagActivation.
const (
	TagActivation        = "Activation"
	TagActivationAccount = "ActivationAccount"
	TagActivationCommon  = "ActivationCommon"
	TagActivationDevice  = "ActivationDevice"
	TagActivationHost    = "ActivationHost"
)

// InsideOnly returns the tag of a plaintext that is for agents alone: an activation, or an entry that holds
// one. It returns nothing for all else.
func InsideOnly(plaintext []byte) (tag string) {
	tagged, err := mesh.DecodeBody(plaintext)
	if err != nil {
		return ""
	}
	clear(tagged.Body) // a copy
	if strings.HasPrefix(tagged.Tag, TagActivation) || strings.HasPrefix(tagged.Tag, tagApplicationEntry) {
		return tagged.Tag
	}
	return ""
}

// ErrActivation says that an activation is not well formed, or is another kind of activation.
var ErrActivation = errors.New("bad activation")

// DeviceActivation is the seed of an account's contributions to a device's keys. Wipe it
// after use.
type DeviceActivation struct {
	Seed *mesh.Seed
	// DeviceUdf is what the member AccountUdf holds: the device's name, in all published
	// data. It binds nothing.
	DeviceUdf string
}

// wireActivation is the union of the members of both kinds of activation.
type wireActivation struct {
	ActivationKey string `json:",omitzero"`
	AccountUdf    string `json:",omitzero"`

	ProfileSignature       *mesh.KeyData `json:",omitzero"`
	AdministratorSignature *mesh.KeyData `json:",omitzero"`
	Encryption             *mesh.KeyData `json:",omitzero"`
	Authentication         *mesh.KeyData `json:",omitzero"`
	Signature              *mesh.KeyData `json:",omitzero"`
	Entries                []wireEntry   `json:",omitzero"`

	// Until 2021.
	AccountEncryption, AccountAuthentication, AccountSignature *mesh.KeyData `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

type wireEntry struct {
	Resource       string
	Key            *mesh.KeyData `json:",omitzero"`
	ServiceID      string        `json:"ServiceId,omitzero"`
	ServiceAddress string        `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

func (w *wireActivation) wipe() {
	for _, k := range []*mesh.KeyData{w.ProfileSignature, w.AdministratorSignature, w.Encryption, w.Authentication,
		w.Signature, w.AccountEncryption, w.AccountAuthentication, w.AccountSignature} {
		wipeKey(k)
	}
	for _, e := range w.Entries {
		wipeKey(e.Key)
	}
}

func wipeKey(k *mesh.KeyData) {
	if k != nil {
		k.PrivateParameters.Wipe()
	}
}

// readActivation decodes a decrypted activation whose tag is one of those given.
func readActivation(plaintext []byte, tags ...string) (*wireActivation, error) {
	tagged, err := mesh.DecodeBody(plaintext)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrActivation, err)
	}
	defer clear(tagged.Body)
	if !slices.Contains(tags, tagged.Tag) {
		return nil, fmt.Errorf("%w: it is a %.32q, not a %s", ErrActivation, tagged.Tag, tags[0])
	}
	var w wireActivation
	if err := decode(tagged.Body, &w); err != nil {
		w.wipe()
		return nil, fmt.Errorf("%w: %w", ErrActivation, err)
	}
	return &w, nil
}

// ParseDeviceActivation reads a decrypted device activation, by its contents: there are an
// ActivationKey and an AccountUdf and nothing of an account's own keys. The seed is one for
// activations of devices or accounts; which of the two makes no difference. The caller
// wipes plaintext and result, and has made sure that it was encrypted to the base key.
func ParseDeviceActivation(plaintext []byte) (*DeviceActivation, error) {
	w, err := readActivation(plaintext, TagActivationAccount, TagActivationDevice, TagActivationHost)
	if err != nil {
		return nil, err
	}
	defer w.wipe()
	if w.ActivationKey == "" || w.AccountUdf == "" || w.Entries != nil || w.Encryption != nil || w.AccountEncryption != nil {
		return nil, fmt.Errorf("%w: it is that of an account, not of a device", ErrActivation)
	}
	seed, err := mesh.ParseSeed(w.ActivationKey)
	if err != nil {
		return nil, fmt.Errorf("%w: ActivationKey: %w", ErrActivation, err)
	}
	if id := seed.ID(); id != mesh.SeedActivationDevice && id != mesh.SeedActivationAccount {
		seed.Wipe()
		return nil, fmt.Errorf("%w: ActivationKey is a seed of identifier %#x", ErrActivation, uint16(id))
	}
	return &DeviceActivation{Seed: seed, DeviceUdf: w.AccountUdf}, nil
}

// NewDeviceActivation draws the seed of contributions. It is drawn after the device's base
// keys are known and never for two devices, so that no device can choose its base keys to
// suit it (the rogue key attack).
func NewDeviceActivation(rand io.Reader, device *ProfileDevice) (*DeviceActivation, error) {
	seed, err := mesh.GenerateSeed(rand, mesh.SeedActivationAccount)
	if err != nil {
		return nil, err
	}
	return &DeviceActivation{Seed: seed, DeviceUdf: device.Name()}, nil
}

func (a *DeviceActivation) marshal() ([]byte, error) {
	return strictjson.Marshal(map[string]wireActivation{
		TagActivationAccount: {ActivationKey: a.Seed.Text(), AccountUdf: a.DeviceUdf},
	})
}

// Wipe overwrites the seed.
func (a *DeviceActivation) Wipe() { a.Seed.Wipe() }

// Contribution is what an account adds to one of a device's base keys.
type Contribution struct {
	Operation Operation
	// Private is the scalar of the contribution, to be added to that of the base key, or
	// multiplied by and the points added where the base key is in a token.
	Private *token.PrivateKey
	Public  token.PublicKey
	// Combined is the public key of the sum.
	Combined token.PublicKey
}

// Wipe overwrites the scalar.
func (c *Contribution) Wipe() { c.Private.Wipe() }

// Contribution derives the contribution to a base key of a device. The sum is its key for the
// operation from now on. The caller wipes it.
func (a *DeviceActivation) Contribution(device *ProfileDevice, o Operation) (*Contribution, error) {
	base := device.Base(o)
	key, err := a.Seed.Derive(mesh.Derivation{
		Algorithm: base.Algorithm, KeyName: activationName(device.actor(), o), Generation: device.Generation,
	})
	if err != nil {
		return nil, fmt.Errorf("derive contribution: %w", err)
	}
	defer key.Wipe()
	scalar, err := mesh.ScalarOf(key)
	if err != nil {
		return nil, fmt.Errorf("derive contribution: %w: %w", token.ErrBadKey, err)
	}
	defer scalar.Wipe()
	c := &Contribution{
		Operation: o,
		Private:   &token.PrivateKey{Algorithm: base.Algorithm, Scalar: scalar.Bytes()},
		Public:    token.PublicKey{Algorithm: base.Algorithm, Octets: scalar.Public().Bytes()},
	}
	if c.Combined, err = CombinePublic(base, c.Public); err != nil {
		c.Wipe()
		return nil, err
	}
	return c, nil
}

// CombinedAgreer is the sum of a base key, wherever it is, and a contribution: it agrees with
// both and adds the points. The base key's scalar is never known.
type CombinedAgreer struct {
	base   mesh.Agreer
	scalar *keyshare.Scalar
	public token.PublicKey
}

var _ mesh.Agreer = (*CombinedAgreer)(nil)

// NewCombinedAgreer copies the scalar of c; the caller wipes c and the result.
func NewCombinedAgreer(base mesh.Agreer, c *Contribution) (*CombinedAgreer, error) {
	scalar, err := mesh.ScalarOf(c.Private)
	if err != nil {
		return nil, fmt.Errorf("combine keys: %w: %w", token.ErrBadKey, err)
	}
	return &CombinedAgreer{base: base, scalar: scalar, public: c.Combined}, nil
}

// Public returns the combined key.
func (a *CombinedAgreer) Public() token.PublicKey { return a.public }

// Agree implements mesh.Agreer.
func (a *CombinedAgreer) Agree(ctx context.Context, peer *keyshare.Point) (*keyshare.Point, error) {
	one, err := a.base.Agree(ctx, peer)
	if err != nil {
		return nil, err
	}
	other, err := keyshare.Agree(a.scalar, peer)
	if err != nil {
		return nil, err
	}
	return keyshare.Combine(one, other)
}

// Wipe overwrites the scalar. The base key is not touched.
func (a *CombinedAgreer) Wipe() { a.scalar.Wipe() }

// AccountActivation is what a device may hold of an account's own keys, with their private
// parts: seeds, scalars, RSA keys or shares. They are keys in the clear, imported once and
// then wiped. Members that are nil were not granted.
type AccountActivation struct {
	// Seed is the account's, from which all else follows: the first administrator has it.
	Seed *mesh.Seed

	Profile, Administrator                *mesh.KeyData
	Encryption, Signature, Authentication *mesh.KeyData
	Entries                               []Entry
}

// Entry is the key of one store.
type Entry struct {
	Resource string // see Stores
	Key      *mesh.KeyData
	// ServiceID and ServiceAddress say who has the other share, if Key is one.
	ServiceID, ServiceAddress string
}

// Wipe overwrites the secrets, but for those that the JSON decoder copied.
func (a *AccountActivation) Wipe() {
	if a.Seed != nil {
		a.Seed.Wipe()
	}
	for _, k := range a.keys() {
		wipeKey(k.key)
	}
}

type namedKey struct {
	name string
	key  *mesh.KeyData
}

// NamedKey is one of the keys of an AccountActivation: its member's name, or its store's.
type NamedKey struct {
	Name string
	Key  *mesh.KeyData
}

// Named returns the keys that were granted.
func (a *AccountActivation) Named() []NamedKey {
	var out []NamedKey
	for _, k := range a.keys() {
		if k.key != nil {
			out = append(out, NamedKey{k.name, k.key})
		}
	}
	return out
}

func (a *AccountActivation) keys() []namedKey {
	keys := []namedKey{
		{"ProfileSignature", a.Profile}, {"AdministratorSignature", a.Administrator}, {"Encryption", a.Encryption},
		{"Authentication", a.Authentication}, {"Signature", a.Signature},
	}
	for _, e := range a.Entries {
		keys = append(keys, namedKey{e.Resource, e.Key})
	}
	return keys
}

// ParseAccountActivation reads a decrypted account activation. Each key has a private part, which
// a public part or Udf beside it must fit. The caller wipes plaintext and result, and has made
// sure that it was encrypted to the combined key and signed.
func ParseAccountActivation(plaintext []byte, g mesh.Generation) (*AccountActivation, error) {
	w, err := readActivation(plaintext, TagActivationCommon, TagActivationAccount)
	if err != nil {
		return nil, err
	}
	a := &AccountActivation{
		Profile: w.ProfileSignature, Administrator: w.AdministratorSignature,
		Encryption: w.Encryption, Signature: w.Signature, Authentication: w.Authentication,
	}
	old := w.AccountEncryption != nil || w.AccountSignature != nil || w.AccountAuthentication != nil
	if old && (a.Encryption != nil || a.Signature != nil || a.Authentication != nil) {
		w.wipe()
		return nil, fmt.Errorf("%w: keys are there under two names", ErrActivation)
	}
	if old {
		a.Encryption, a.Signature, a.Authentication = w.AccountEncryption, w.AccountSignature, w.AccountAuthentication
	}
	for _, e := range w.Entries {
		a.Entries = append(a.Entries, Entry{Resource: e.Resource, Key: e.Key, ServiceID: e.ServiceID, ServiceAddress: e.ServiceAddress})
	}
	if err := a.check(w.ActivationKey, g); err != nil {
		a.Wipe()
		return nil, fmt.Errorf("%w: %w", ErrActivation, err)
	}
	return a, nil
}

// check reads the seed and checks all keys.
func (a *AccountActivation) check(activationKey string, g mesh.Generation) (err error) {
	if activationKey != "" {
		if a.Seed, err = mesh.ParseSeed(activationKey); err != nil {
			return fmt.Errorf("ActivationKey: %w", err)
		}
		if id := a.Seed.ID(); id != mesh.SeedProfileAccount {
			return fmt.Errorf("ActivationKey is a seed of identifier %#x: %w", uint16(id), token.ErrBadKey)
		}
	}
	names := map[string]bool{}
	for _, k := range a.keys() {
		if !isWord(k.name) || names[k.name] {
			return fmt.Errorf("store %.64q is no word, or the name is another key's: %w", k.name, token.ErrBadKey)
		}
		names[k.name] = true
	}
	for _, e := range a.Entries {
		if e.Key == nil {
			return fmt.Errorf("store %s without key: %w", e.Resource, token.ErrBadKey)
		}
	}
	for _, k := range a.keys() {
		if k.key == nil {
			continue
		}
		if err := errors.Join(expandSeed(k.key, g), checkPrivate(k.key, g)); err != nil {
			return fmt.Errorf("%.64q: %w", k.name, err)
		}
	}
	return nil
}

// isWord reports whether a name is one word of at most 64 ASCII characters, which may stand in lists and on terminals.
func isWord(name string) bool {
	return name != "" && len(name) <= 64 && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// expandSeed puts a private key in the place of a seed that says of which algorithm it is. Seeds of many keys stay.
func expandSeed(k *mesh.KeyData, g mesh.Generation) error {
	if k.PrivateParameters == nil || k.PrivateParameters.PrivateKeyUDF == nil {
		return nil
	}
	seed, err := k.PrivateParameters.Seed()
	if err != nil {
		return err
	}
	defer seed.Wipe()
	if _, fixed := seed.ID().Algorithm(); !fixed {
		return nil
	}
	key, err := seed.Derive(mesh.Derivation{Generation: g})
	if err != nil {
		return err
	}
	defer key.Wipe()
	made, err := mesh.NewPrivateKeyData(key, g)
	if err == nil {
		k.PrivateParameters = made.PrivateParameters
	}
	return err
}

// checkPrivate checks a KeyData that holds a private key: public part and Udf are those of
// the private part, as far as it is here.
func checkPrivate(k *mesh.KeyData, g mesh.Generation) error {
	p := k.PrivateParameters
	if p == nil {
		return fmt.Errorf("private key is missing: %w", token.ErrBadKey)
	}
	var pub token.PublicKey
	if p.PrivateKeyECDH != nil || p.PrivateKeyRSA != nil {
		key, err := p.PrivateKey()
		if err != nil {
			return err
		}
		pub, err = mesh.PublicOf(key)
		key.Wipe()
		if err != nil {
			return err
		}
		if err := k.Check(pub); err != nil {
			return err
		}
	} else {
		if k.PublicParameters == nil {
			return nil // a seed or part of a key, of which nothing is claimed
		}
		var err error
		if pub, err = k.PublicKey(); err != nil {
			return err
		}
	}
	if k.Udf != "" && !mesh.Names(k.Udf, pub, g) {
		return fmt.Errorf("member Udf is that of another generation: %w", token.ErrBadKey)
	}
	return nil
}

func (a *AccountActivation) marshal() ([]byte, error) {
	w := wireActivation{
		ProfileSignature: a.Profile, AdministratorSignature: a.Administrator,
		Encryption: a.Encryption, Signature: a.Signature, Authentication: a.Authentication,
	}
	if a.Seed != nil {
		w.ActivationKey = a.Seed.Text()
	}
	for _, e := range a.Entries {
		w.Entries = append(w.Entries, wireEntry{Resource: e.Resource, Key: e.Key, ServiceID: e.ServiceID, ServiceAddress: e.ServiceAddress})
	}
	return strictjson.Marshal(map[string]wireActivation{TagActivationCommon: w})
}

// Rights says what of an account's keys a device is to hold.
type Rights struct {
	// Super hands over the account's seed and nothing else.
	Super bool
	// Administer grants the administrator's signature key and the administrators' stores.
	Administer bool
	// Common grants the account's keys for encryption, signature and authentication, and
	// the stores that every device may have.
	Common bool
	// Stores grants the stores of these names.
	Stores []string
}

// Check refuses stores that an account of generation g does not have. The error is token.ErrBadRequest.
func (r Rights) Check(g mesh.Generation) error {
	all, administrators := Stores(g)
	known := slices.Concat(all, administrators)
	for _, name := range r.Stores {
		if !slices.Contains(known, name) {
			return fmt.Errorf("no store %.64q, there are %s: %w", name, strings.Join(known, ", "), token.ErrBadRequest)
		}
	}
	return nil
}

// NewAccountActivation derives what rights grant from an account's seed, with the algorithms of its profile. The
// caller wipes it.
func NewAccountActivation(seed *mesh.Seed, r Rights, account *ProfileUser) (*AccountActivation, error) {
	if err := r.Check(account.Generation); err != nil {
		return nil, err
	}
	if r.Super {
		octets := seed.Octets()
		defer clear(octets)
		copied, err := mesh.ParseSeedOctets(octets)
		return &AccountActivation{Seed: copied}, err
	}
	a := &AccountActivation{}
	err := a.grant(seed, r, account)
	if err != nil {
		a.Wipe()
		return nil, err
	}
	return a, nil
}

func (a *AccountActivation) grant(seed *mesh.Seed, r Rights, account *ProfileUser) error {
	g, algorithms := account.Generation, account.Algorithms()
	all, administrators := Stores(g)
	stores := slices.Clone(r.Stores)
	add := func(to **mesh.KeyData, key *token.PrivateKey, err error) error {
		if err != nil {
			return err
		}
		defer key.Wipe()
		*to, err = mesh.NewPrivateKeyData(key, g)
		return err
	}
	operations := map[Operation]**mesh.KeyData{}
	if r.Common {
		operations[Encrypt], operations[Sign], operations[Authenticate] = &a.Encryption, &a.Signature, &a.Authentication
		stores = append(stores, all...)
	}
	if r.Administer {
		operations[AdminSign] = &a.Administrator
		stores = append(stores, administrators...)
	}
	for o, to := range operations {
		key, err := AccountKey(seed, o, algorithms.of(o), g)
		if err := add(to, key, err); err != nil {
			return err
		}
	}
	for i, name := range stores {
		if slices.Contains(stores[:i], name) {
			continue
		}
		key, err := StoreKey(seed, name, algorithms.of(Encrypt), g)
		e := Entry{Resource: name}
		if err := add(&e.Key, key, err); err != nil {
			return err
		}
		a.Entries = append(a.Entries, e)
	}
	return nil
}
