package device

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// The tags of profiles.
const (
	TagProfileDevice  = "ProfileDevice"
	TagProfileHost    = "ProfileHost" // the device of a service
	TagProfileUser    = "ProfileUser"
	TagProfileGroup   = "ProfileGroup"
	TagProfileService = "ProfileService"
)

// ErrProfile says that a profile is not what it claims to be.
var ErrProfile = errors.New("bad profile")

// Profile is what every validated profile has: a root that signed it, and the name that
// follows from the root.
type Profile struct {
	Tag        string
	Generation mesh.Generation
	// Roots are the keys that signed the profile, at least one.
	Roots []token.PublicKey
	// UDF are the octets of the profile's name: in G1 that of the root, 65 octets; in G2
	// that of the list of accepted roots, 66 octets.
	UDF []byte
	// Envelope is the profile as it came; what is signed are its exact octets.
	Envelope *mesh.Envelope
}

// Name returns the profile's name, 28 characters with dashes.
func (p *Profile) Name() string { return mesh.UDFText(p.UDF)[:34] }

// Is reports whether a name, of at least 28 characters, is the profile's.
func (p *Profile) Is(name string) bool {
	prefix, err := mesh.NormalizeKeyID(name)
	return err == nil && strings.HasPrefix(strings.ReplaceAll(mesh.UDFText(p.UDF), "-", ""), prefix)
}

// short returns the 64 octets by which witnesses name the profile.
func (p *Profile) short() []byte { return p.UDF[:64] }

// ProfileDevice is a device's profile. Its base keys never change.
type ProfileDevice struct {
	Profile
	Encryption, Signature, Authentication token.PublicKey
}

// Base returns the base key for an operation of Operations.
func (p *ProfileDevice) Base(o Operation) token.PublicKey {
	switch o {
	case Encrypt:
		return p.Encryption
	case Sign:
		return p.Signature
	}
	return p.Authentication
}

// BaseKey derives from the device's seed what would be the private part of a base key, by the profile's algorithms, and names for
// a host if it is one. Whether it is the one, the public part shows. The caller wipes it.
func (p *ProfileDevice) BaseKey(seed *mesh.Seed, o Operation) (*token.PrivateKey, error) {
	return derive(seed, mesh.SeedProfileDevice, o, p.Base(o).Algorithm, baseName(p.actor(), o), p.Generation)
}

// Signers are the keys by which a device signs: those of its profile and its base key.
func (p *ProfileDevice) Signers() []token.PublicKey {
	return append(slices.Clone(p.Roots), p.Signature)
}

// same reports whether two profiles are one device's: root and base keys are equal.
func (p *ProfileDevice) same(q *ProfileDevice) bool {
	for _, o := range Operations() {
		if !sameKey(p.Base(o), q.Base(o)) {
			return false
		}
	}
	return bytes.Equal(p.UDF, q.UDF) && p.Tag == q.Tag
}

// actor is the part of key names that says whose they are.
func (p *ProfileDevice) actor() string {
	if p.Tag == TagProfileHost {
		return actorHost
	}
	return actorDevice
}

// ProfileUser is the profile of an account, or of a group, which has no Signature.
type ProfileUser struct {
	Profile
	Address    string // such as alice@example.com: a label, not proof
	ServiceUdf string // of the service that hosts the account; not looked at
	// Administrator signs connections and activations. It is authorised by standing here.
	Administrator                         token.PublicKey
	Encryption, Signature, Authentication token.PublicKey
	Escrow                                *token.PublicKey // nil before 2021
}

// Signers are the keys by which an account signs: those of its profile, its administrator and its own, which
// groups do not have.
func (p *ProfileUser) Signers() []token.PublicKey {
	keys := append(slices.Clone(p.Roots), p.Administrator)
	if p.Signature.Octets != nil {
		keys = append(keys, p.Signature)
	}
	return keys
}

// Algorithms are those by which the account's keys follow from its seed.
func (p *ProfileUser) Algorithms() Algorithms {
	a := Algorithms{AdminSign: p.Administrator.Algorithm, Encrypt: p.Encryption.Algorithm, Authenticate: p.Authentication.Algorithm}
	if p.Signature.Octets != nil {
		a[Sign] = p.Signature.Algorithm
	}
	return a
}

// CheckSeed says whether a seed is the account's: the administrator's key follows from it. The error is ErrKeyMismatch.
func (p *ProfileUser) CheckSeed(seed *mesh.Seed) error {
	key, err := AccountKey(seed, AdminSign, p.Administrator.Algorithm, p.Generation)
	if err != nil {
		return err
	}
	defer key.Wipe()
	pub, err := mesh.PublicOf(key)
	if err == nil && !sameKey(pub, p.Administrator) {
		err = fmt.Errorf("AdministratorSignature: %w", ErrKeyMismatch)
	}
	return err
}

// ProfileService is the profile of a service.
type ProfileService struct {
	Profile
	Encryption, Signature, Authentication *token.PublicKey // nil if not given
}

// wireProfile is the union of all profiles' members, with the names that they had at some time.
type wireProfile struct {
	ProfileSignature *mesh.KeyData `json:",omitzero"`

	AccountAddress         string        `json:",omitzero"`
	ServiceUdf             string        `json:",omitzero"`
	EscrowEncryption       *mesh.KeyData `json:",omitzero"`
	AdministratorSignature *mesh.KeyData `json:",omitzero"`
	CommonEncryption       *mesh.KeyData `json:",omitzero"`
	CommonAuthentication   *mesh.KeyData `json:",omitzero"`
	CommonSignature        *mesh.KeyData `json:",omitzero"`

	Encryption     *mesh.KeyData `json:",omitzero"`
	Signature      *mesh.KeyData `json:",omitzero"`
	Authentication *mesh.KeyData `json:",omitzero"`

	RootUdfs []mesh.Binary `json:",omitzero"`

	// Until 2021.
	BaseEncryption, BaseSignature, BaseAuthentication          *mesh.KeyData `json:",omitzero"`
	AccountEncryption, AccountSignature, AccountAuthentication *mesh.KeyData `json:",omitzero"`
	// Of services.
	ServiceEncryption, ServiceSignature, ServiceAuthentication *mesh.KeyData `json:",omitzero"`

	Description string   `json:",omitzero"`
	Names       []string `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// profileReader checks the keys of one profile and keeps the first error.
type profileReader struct {
	wire wireProfile
	base Profile
	now  time.Time
	err  error
}

// key reads the one of the given members that is there.
func (r *profileReader) key(name string, o Operation, members ...*mesh.KeyData) *token.PublicKey {
	var found *mesh.KeyData
	for _, k := range members {
		if k != nil && found != nil && r.err == nil {
			r.err = fmt.Errorf("%s is there under two names: %w", name, ErrProfile)
		}
		if k != nil {
			found = k
		}
	}
	if found == nil || r.err != nil {
		return nil
	}
	pub, err := readKey(found, r.base.Generation, r.now)
	if err == nil {
		err = checkPurpose(pub, o)
	}
	if err != nil {
		r.err = fmt.Errorf("%s: %w: %w", name, ErrProfile, err)
		return nil
	}
	return &pub
}

// need is key for a member that must be there.
func (r *profileReader) need(name string, o Operation, members ...*mesh.KeyData) token.PublicKey {
	pub := r.key(name, o, members...)
	if pub == nil {
		if r.err == nil {
			r.err = fmt.Errorf("%s is missing: %w", name, ErrProfile)
		}
		return token.PublicKey{}
	}
	return *pub
}

// readProfile checks signature and name of a profile whose tag is one of those given.
func readProfile(e *mesh.Envelope, now time.Time, tags ...string) (*profileReader, error) {
	if e == nil {
		return nil, fmt.Errorf("%w: it is missing", ErrProfile)
	}
	tagged, err := mesh.DecodeBody(e.Body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProfile, err)
	}
	if !slices.Contains(tags, tagged.Tag) {
		return nil, fmt.Errorf("%w: it is a %.32q, not a %s", ErrProfile, tagged.Tag, tags[0])
	}
	r := &profileReader{now: now, base: Profile{Tag: tagged.Tag, Envelope: e}}
	if err := decode(tagged.Body, &r.wire); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProfile, err)
	}
	switch {
	case r.wire.RootUdfs != nil && r.wire.ProfileSignature != nil:
		err = errors.New("both ProfileSignature and RootUdfs")
	case r.wire.RootUdfs != nil:
		err = r.rootsG2()
	case r.wire.ProfileSignature != nil:
		err = r.rootG1()
	default:
		err = errors.New("neither ProfileSignature nor RootUdfs")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProfile, err)
	}
	return r, nil
}

// rootG1 accepts a profile that ProfileSignature signed, and names it by that key.
func (r *profileReader) rootG1() error {
	r.base.Generation = mesh.G1
	root, err := readKey(r.wire.ProfileSignature, mesh.G1, r.now)
	if err != nil {
		return fmt.Errorf("ProfileSignature: %w", err)
	}
	if err := verifyBy(r.base.Envelope, mesh.G1, root); err != nil {
		return err
	}
	r.base.Roots = []token.PublicKey{root}
	r.base.UDF, err = mesh.FingerprintOctets(root, mesh.G1)
	return err
}

// rootsG2 accepts a profile of which every signature is by a key of RootUdfs.
func (r *profileReader) rootsG2() error {
	r.base.Generation = mesh.G2
	e := r.base.Envelope
	for _, root := range r.wire.RootUdfs {
		if len(root) != rootLen && len(root) != rootShort {
			return fmt.Errorf("RootUdfs has one of %d octets, not %d", len(root), rootLen)
		}
	}
	keys, err := e.SignerKeys()
	if err != nil {
		return err
	}
	for _, key := range keys {
		udf, err := mesh.FingerprintOctets(key, mesh.G2)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(r.wire.RootUdfs, func(root mesh.Binary) bool { return bytes.HasPrefix(udf, root) }) {
			return fmt.Errorf("RootUdfs does not name who signed: %w", mesh.ErrSigner)
		}
	}
	if err := verifyBy(e, mesh.G2, keys...); err != nil {
		return err
	}
	r.base.Roots, r.base.UDF = keys, rootsUDF(r.wire.RootUdfs)
	return nil
}

// The length of an element of RootUdfs: type octet and digest. In the first days of October 2024
// the reference code left out the digest's last octet.
const (
	rootLen   = 65
	rootShort = 64
)

// rootsUDF is the name of a G2 profile: a content digest of the list of roots, each after its
// length, behind a type octet that is there twice.
func rootsUDF(roots []mesh.Binary) []byte {
	var list []byte
	for _, root := range roots {
		list = append(append(list, byte(len(root))), root...)
	}
	return append([]byte{byte(mesh.UDFDigestSHA2)}, mesh.ContentDigest(list, "UdfList")...)
}

// verifyBy wants every signature to be by one of the keys and of generation g: an object of the Mesh that somebody else signed
// too is not one that was published.
func verifyBy(e *mesh.Envelope, g mesh.Generation, keys ...token.PublicKey) error {
	by, err := e.Verify(keys...)
	if err != nil {
		return err
	}
	for _, s := range by {
		if s.Generation != g {
			return fmt.Errorf("signature is of generation %v, the object of %v: %w", s.Generation, g, mesh.ErrSigner)
		}
	}
	if len(by) != len(e.Trailer.Signatures) {
		return fmt.Errorf("there is another signature: %w", mesh.ErrSigner)
	}
	return nil
}

// decode is strictjson.Unmarshal of what must be an object.
func decode(body strictjson.Value, v any) error {
	if body.Kind() != '{' {
		return errors.New("object expected")
	}
	return strictjson.Unmarshal(body, v)
}

// ParseProfileDevice validates a device's or host's profile at a time: its payload digest and
// signature, every Udf against its key, points, and the validity of keys. The envelope's
// header is not looked at. Whose profile it is the caller decides, with Is.
func ParseProfileDevice(e *mesh.Envelope, now time.Time) (*ProfileDevice, error) {
	r, err := readProfile(e, now, TagProfileDevice, TagProfileHost)
	if err != nil {
		return nil, err
	}
	w := &r.wire
	p := &ProfileDevice{
		Profile:        r.base,
		Encryption:     r.need("Encryption", Encrypt, w.Encryption, w.BaseEncryption),
		Signature:      r.need("Signature", Sign, w.Signature, w.BaseSignature),
		Authentication: r.need("Authentication", Authenticate, w.Authentication, w.BaseAuthentication),
	}
	if r.err != nil {
		return nil, r.err
	}
	return p, nil
}

// ParseProfileUser validates the profile of an account or group as ParseProfileDevice does.
func ParseProfileUser(e *mesh.Envelope, now time.Time) (*ProfileUser, error) {
	r, err := readProfile(e, now, TagProfileUser, TagProfileGroup)
	if err != nil {
		return nil, err
	}
	w := &r.wire
	p := &ProfileUser{
		Profile: r.base, Address: w.AccountAddress, ServiceUdf: w.ServiceUdf,
		Administrator:  r.need("AdministratorSignature", AdminSign, w.AdministratorSignature),
		Encryption:     r.need("CommonEncryption", Encrypt, w.CommonEncryption, w.AccountEncryption),
		Authentication: r.need("CommonAuthentication", Authenticate, w.CommonAuthentication, w.AccountAuthentication),
		Escrow:         r.key("EscrowEncryption", Escrow, w.EscrowEncryption),
	}
	if r.base.Tag == TagProfileUser {
		p.Signature = r.need("CommonSignature", Sign, w.CommonSignature, w.AccountSignature)
	}
	if r.err != nil {
		return nil, r.err
	}
	return p, nil
}

// ParseProfileService validates the profile of a service as ParseProfileDevice does.
func ParseProfileService(e *mesh.Envelope, now time.Time) (*ProfileService, error) {
	r, err := readProfile(e, now, TagProfileService)
	if err != nil {
		return nil, err
	}
	w := &r.wire
	p := &ProfileService{
		Profile:        r.base,
		Encryption:     r.key("ServiceEncryption", Encrypt, w.ServiceEncryption, w.Encryption),
		Signature:      r.key("ServiceSignature", Sign, w.ServiceSignature, w.Signature),
		Authentication: r.key("ServiceAuthentication", Authenticate, w.ServiceAuthentication, w.Authentication),
	}
	if r.err != nil {
		return nil, r.err
	}
	return p, nil
}
