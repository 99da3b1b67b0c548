package device

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Step is a step of the verification of a CatalogedDevice
// (draft-hallambaker-mesh-schema-08, Sections 7.2 and 7.3; draft-hallambaker-mesh-security, Section 7.1.5).
type Step string

// The steps, in their order.
const (
	StepAccount    Step = "1 account profile"
	StepDevice     Step = "2 device profile"
	StepSignature  Step = "3 connection signature"
	StepBinding    Step = "4 account binding"
	StepActivation Step = "5 activation"
	StepRollback   Step = "6 rollback"
)

// VerifyError says at which step and on which object a verification failed.
type VerifyError struct {
	Step   Step
	Object string // such as ConnectionDevice
	Err    error
}

// Error names step, object and reason.
func (e *VerifyError) Error() string {
	return fmt.Sprintf("verify step %s: %s: %v", e.Step, e.Object, e.Err)
}

// Unwrap returns the reason.
func (e *VerifyError) Unwrap() error { return e.Err }

// The reasons that only a verification as a whole can find.
var (
	ErrMissing     = errors.New("it is missing")
	ErrOtherName   = errors.New("it is not the expected one")
	ErrGeneration  = errors.New("it is of another generation")
	ErrKeyMismatch = errors.New("keys do not fit together")
)

// Verification says against what a CatalogedDevice is verified.
type Verification struct {
	// Account is the pinned name of the account's profile, at least 28 characters. At the
	// first connection it is what a person approved; then it never changes.
	Account string
	// Device is the own profile. Only VerifyPublic takes nil, and believes the one inside.
	Device *ProfileDevice
	// Base is the own base key for encryption. VerifyPublic does without.
	Base mesh.Agreer
	// History is what was seen before; nil if nothing.
	History *History
	// Frame is where in the catalog the entry stood, if that is known.
	Frame *Frame
	// Now is the time of day if zero.
	Now time.Time
	// AllowNoProfileUdf accepts connections that do not name the account, as those
	// before May 2022.
	AllowNoProfileUdf bool
}

// Membership is a verified CatalogedDevice: the device belongs to the account, with these keys.
type Membership struct {
	Account    *ProfileUser
	Device     *ProfileDevice
	Connection *Connection // ConnectionDevice
	Service    *Connection // ConnectionService
	// Roles are those of the connection, for policies to look at. Names of roles grant
	// nothing by themselves.
	Roles []string
	// Order says whether it is newer than what was seen before.
	Order Order
	// Applications are not signed and not opened.
	Applications []ApplicationEntry

	// What follows is secret, and nil after VerifyPublic.

	// Contributions are those to the keys of Operations, in that order.
	Contributions []*Contribution
	// Combined is the combined key for encryption.
	Combined *CombinedAgreer
	// Keys are those of the account that the device may hold.
	Keys *AccountActivation
}

// Wipe overwrites the secrets.
func (m *Membership) Wipe() {
	for _, c := range m.Contributions {
		c.Wipe()
	}
	if m.Combined != nil {
		m.Combined.Wipe()
	}
	if m.Keys != nil {
		m.Keys.Wipe()
	}
}

// Verify verifies all of a CatalogedDevice and opens its activations with the base key. The
// error is a *VerifyError but for those of the base key. The caller imports the keys and
// wipes the result, and adopts c into History when that is done.
func (v Verification) Verify(ctx context.Context, c *CatalogedDevice) (*Membership, error) {
	if v.Device == nil || v.Base == nil {
		return nil, fmt.Errorf("verify CatalogedDevice: the own profile and key are needed: %w", token.ErrBadRequest)
	}
	v = v.timed()
	m, err := v.verifyPublic(c)
	if err != nil {
		return nil, err
	}
	if err := v.open(ctx, m, c); err != nil {
		m.Wipe()
		return nil, err
	}
	if m.Order, err = v.order(c); err != nil {
		m.Wipe()
		return nil, err
	}
	return m, nil
}

// VerifyPublic verifies what can be verified without the device's private key: all steps
// but what of the fifth needs the activation. That the connection's keys contain the device's own
// it does not show.
func (v Verification) VerifyPublic(c *CatalogedDevice) (*Membership, error) {
	v = v.timed()
	m, err := v.verifyPublic(c)
	if err != nil {
		return nil, err
	}
	m.Order, err = v.order(c)
	return m, err
}

func (v Verification) timed() Verification {
	if v.Now.IsZero() {
		v.Now = time.Now()
	}
	return v
}

func (v Verification) order(c *CatalogedDevice) (Order, error) {
	h := v.History
	if h == nil {
		h = &History{}
	}
	order, err := h.Check(c, v.Frame)
	if err != nil {
		return order, &VerifyError{StepRollback, TagCatalogedDevice, err}
	}
	return order, nil
}

func (v Verification) verifyPublic(c *CatalogedDevice) (*Membership, error) {
	m := &Membership{Applications: c.Applications}
	for _, step := range []func(*Membership, *CatalogedDevice) error{v.account, v.device, v.signatures, v.binding, v.connections} {
		if err := step(m, c); err != nil {
			return nil, err
		}
	}
	m.Roles = m.Connection.Roles
	return m, nil
}

// account is step 1: the account's profile is valid and is the pinned one.
func (v Verification) account(m *Membership, c *CatalogedDevice) (err error) {
	if m.Account, err = ParseProfileUser(c.ProfileUser, v.Now); err != nil {
		return &VerifyError{StepAccount, TagProfileUser, err}
	}
	if !m.Account.Is(v.Account) {
		return &VerifyError{StepAccount, TagProfileUser, ErrOtherName}
	}
	return nil
}

// device is step 2: the device's profile is valid, and is the own one.
func (v Verification) device(m *Membership, c *CatalogedDevice) (err error) {
	fail := func(err error) error { return &VerifyError{StepDevice, TagProfileDevice, err} }
	if m.Device, err = ParseProfileDevice(c.ProfileDevice, v.Now); err != nil {
		return fail(err)
	}
	if v.Device != nil && !v.Device.same(m.Device) {
		return fail(ErrOtherName)
	}
	if !m.Device.Is(c.DeviceUdf) {
		return &VerifyError{StepDevice, "DeviceUdf", ErrOtherName}
	}
	if m.Device.Generation != m.Account.Generation {
		return fail(ErrGeneration)
	}
	return nil
}

// signatures is step 3: the administrator whom the account's profile names signed
// everything that must be signed.
func (v Verification) signatures(m *Membership, c *CatalogedDevice) error {
	objects := []struct {
		name string
		e    *mesh.Envelope
	}{{TagConnectionDevice, c.ConnectionDevice}, {TagConnectionService, c.ConnectionService}, {TagActivationAccount, nil}, {TagActivationCommon, nil}}
	for i, e := range c.Activations {
		objects[2+i].e = e
	}
	for _, o := range objects { // first what is there: a foreign signature tells more than a gap
		if o.e == nil {
			continue
		}
		if err := verifyBy(o.e, m.Account.Generation, m.Account.Administrator); err != nil {
			return &VerifyError{StepSignature, o.name, err}
		}
	}
	for _, o := range objects {
		if o.e == nil {
			return &VerifyError{StepSignature, o.name, ErrMissing}
		}
	}
	return nil
}

// binding is step 4: the connections are what they should be and name the account.
func (v Verification) binding(m *Membership, c *CatalogedDevice) (err error) {
	g := m.Account.Generation
	for _, o := range []struct {
		name string
		e    *mesh.Envelope
		to   **Connection
	}{{TagConnectionDevice, c.ConnectionDevice, &m.Connection}, {TagConnectionService, c.ConnectionService, &m.Service}} {
		fail := func(err error) error { return &VerifyError{StepBinding, o.name, err} }
		conn, err := ParseConnection(o.e, g, v.Now)
		if err != nil {
			return fail(err)
		}
		if isDevice := o.name == TagConnectionDevice; conn.isDevice() != isDevice || !isDevice && conn.Tag != TagConnectionService {
			return fail(fmt.Errorf("%w: it is a %s", ErrConnection, conn.Tag))
		}
		switch {
		case conn.ProfileUdf == "" && v.AllowNoProfileUdf:
		case conn.ProfileUdf == "":
			return fail(fmt.Errorf("ProfileUdf: %w", ErrMissing))
		case !m.Account.Is(conn.ProfileUdf):
			return fail(fmt.Errorf("ProfileUdf: %w", ErrOtherName))
		}
		*o.to = conn
	}
	return nil
}

// connections is the public half of step 5.
func (v Verification) connections(m *Membership, _ *CatalogedDevice) error {
	fail := func(object, why string) error {
		return &VerifyError{StepActivation, object, fmt.Errorf("%s: %w", why, ErrKeyMismatch)}
	}
	if m.Connection.Signature == nil || m.Connection.Encryption == nil {
		return fail(TagConnectionDevice, "Signature or Encryption is missing")
	}
	if !sameKey(m.Service.Authentication, m.Connection.Authentication) {
		return fail(TagConnectionService, "Authentication is not that of ConnectionDevice")
	}
	// Factory connections of the reference code repeat the key: with one key for both, sessions
	// would open what was encrypted.
	if sameKey(m.Connection.Authentication, *m.Connection.Encryption) {
		return fail(TagConnectionDevice, "Authentication repeats the Encryption key")
	}
	return nil
}

// open is the private half of step 5: the activations are encrypted to the right keys, and
// the contributions make the base keys the connection's.
func (v Verification) open(ctx context.Context, m *Membership, c *CatalogedDevice) error {
	if !sameKey(v.Base.Public(), v.Device.Encryption) {
		return fmt.Errorf("verify CatalogedDevice: the base key is not that of the profile: %w", token.ErrBadRequest)
	}
	forDevice, forAccount, err := v.activations(m, c)
	if err != nil {
		return err
	}
	plaintext, err := forDevice.Decrypt(ctx, v.Base)
	if err != nil {
		return decryptError(TagActivationAccount, err)
	}
	defer clear(plaintext)
	activation, err := ParseDeviceActivation(plaintext)
	if err != nil {
		return &VerifyError{StepActivation, TagActivationAccount, err}
	}
	defer activation.Wipe()
	if err := m.combine(activation); err != nil {
		return err
	}
	if m.Combined, err = NewCombinedAgreer(v.Base, m.Contributions[0]); err != nil {
		return &VerifyError{StepActivation, TagActivationAccount, err}
	}
	common, err := forAccount.Decrypt(ctx, m.Combined)
	if err != nil {
		return decryptError(TagActivationCommon, err)
	}
	defer clear(common)
	if m.Keys, err = ParseAccountActivation(common, m.Account.Generation); err != nil {
		return &VerifyError{StepActivation, TagActivationCommon, err}
	}
	for _, k := range m.Keys.Named() {
		if err := k.Key.CheckValidity(v.Now); err != nil {
			return &VerifyError{StepActivation, TagActivationCommon, fmt.Errorf("%.64q: %w", k.Name, err)}
		}
	}
	return nil
}

// activations tells the two activations apart by whom they are encrypted to.
func (v Verification) activations(m *Membership, c *CatalogedDevice) (forDevice, forAccount *mesh.Envelope, err error) {
	g := m.Account.Generation
	for _, e := range c.Activations {
		switch {
		case names(e, v.Device.Encryption, g) && forDevice == nil:
			forDevice = e
		case names(e, *m.Connection.Encryption, g) && forAccount == nil:
			forAccount = e
		}
	}
	switch {
	case forDevice == nil:
		return nil, nil, &VerifyError{StepActivation, TagActivationAccount, mesh.ErrNotRecipient}
	case forAccount == nil:
		return nil, nil, &VerifyError{StepActivation, TagActivationCommon, mesh.ErrNotRecipient}
	}
	return forDevice, forAccount, nil
}

func names(e *mesh.Envelope, key token.PublicKey, g mesh.Generation) bool {
	for _, r := range e.Header.Recipients {
		if mesh.Names(r.KeyID, key, g) {
			return true
		}
	}
	return false
}

// decryptError makes a VerifyError of what the envelope is to blame for; the key's own
// errors stay as they are.
func decryptError(object string, err error) error {
	if errors.Is(err, token.ErrDecrypt) || errors.Is(err, mesh.ErrNotRecipient) || errors.Is(err, token.ErrUnsupported) {
		return &VerifyError{StepActivation, object, err}
	}
	return fmt.Errorf("open %s: %w", object, err)
}

// combine derives the contributions and compares the sums with the connection.
func (m *Membership) combine(a *DeviceActivation) error {
	for _, o := range Operations() {
		c, err := a.Contribution(m.Device, o)
		if err != nil {
			return &VerifyError{StepActivation, TagActivationAccount, err}
		}
		m.Contributions = append(m.Contributions, c)
		want := m.Connection.Authentication
		switch o {
		case Encrypt:
			want = *m.Connection.Encryption
		case Sign:
			want = *m.Connection.Signature
		}
		if !sameKey(c.Combined, want) {
			return &VerifyError{StepActivation, TagConnectionDevice, fmt.Errorf("combined key for %s: %w", o, ErrKeyMismatch)}
		}
	}
	return nil
}
