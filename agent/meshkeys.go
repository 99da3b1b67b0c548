package agent

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// ringKey is a key of the ring as package mesh uses keys. The private key stays where it is.
type ringKey struct {
	entry *keyring.Entry
	gate  keyring.Gate
	auth  token.Auth
}

var (
	_ mesh.Agreer = ringKey{}
	_ mesh.Signer = ringKey{}
)

// Public returns the public key.
func (k ringKey) Public() token.PublicKey { return k.entry.Public }

// Agree implements mesh.Agreer.
func (k ringKey) Agree(ctx context.Context, peer *keyshare.Point) (*keyshare.Point, error) {
	return k.entry.AgreePoint(ctx, k.gate, peer, nil, k.auth)
}

// Sign implements mesh.Signer.
func (k ringKey) Sign(ctx context.Context, octets []byte) ([]byte, error) {
	req, err := mesh.SignRequest(k.entry.Algorithm, octets)
	if err != nil {
		return nil, err
	}
	req.Auth = k.auth
	return k.entry.Sign(ctx, k.gate, req)
}

// own returns a key of the ring for work of the agent's own, by its public key.
func (r *request) own(pub token.PublicKey) (ringKey, error) {
	e, err := r.ring.Snapshot().FindPublic(pub)
	if err != nil {
		udf, _ := mesh.Fingerprint(pub, mesh.G1)
		return ringKey{}, fmt.Errorf("key %s: %w", udf, err)
	}
	return ringKey{entry: e, gate: r.manageGate}, nil
}

// ownNamed is own by one of the key's names.
func (r *request) ownNamed(udf string) (ringKey, error) {
	e, err := r.ring.Snapshot().Find(udf)
	if err != nil {
		return ringKey{}, fmt.Errorf("key %.40s: %w", udf, err)
	}
	return ringKey{entry: e, gate: r.manageGate}, nil
}

// maker makes the keys of a device or an account, and unmakes them if not all can be made.
type maker struct {
	r    *request
	home devicestate.Home // of keys that are not made inside a token
	made []devicestate.Key
	// account was taken over on the way; nil if none was.
	account *devicestate.Account
	// recorded are the keys that the records of device and accounts name; nil if not read yet.
	recorded map[string]bool
}

// leftBehind reports whether a key that is here was made for the same before, and the agent ended before it could
// write that down: no record names it, and its label is the one that it would get. Then it is taken for one made now, so
// that it is deleted with what it is for.
func (m *maker) leftBehind(held *keyring.Entry, label string) (bool, error) {
	if held.Label != label {
		return false, nil
	}
	if m.recorded == nil {
		if err := m.readRecorded(); err != nil {
			return false, err
		}
	}
	return !m.recorded[held.Udf], nil
}

func (m *maker) readRecorded() error {
	recorded := map[string]bool{}
	add := func(keys []devicestate.Key) {
		for _, k := range keys {
			recorded[k.Udf] = true
		}
	}
	d, err := m.r.config.Device.Device()
	switch {
	case err == nil:
		add(d.Keys)
		for _, a := range d.Accounts {
			add(a.Keys)
		}
	case !errors.Is(err, devicestate.ErrNotFound):
		return err
	}
	accounts, err := m.r.config.Device.Accounts()
	if err != nil {
		return err
	}
	for _, a := range accounts {
		add(a.Keys)
	}
	m.recorded = recorded
	return nil
}

// take notes a key that is here already.
func (m *maker) take(held *keyring.Entry, name, label string) error {
	own, err := m.leftBehind(held, label)
	if err == nil {
		m.made = append(m.made, devicestate.Key{Name: name, Udf: held.Udf, Own: own})
	}
	return err
}

func (m *maker) policy() (token.Policy, error) { return parsePolicy(mesh.Home{PIN: m.home.PIN}) }

// wish is a key that is to be made.
type wish struct {
	name    string // such as Encryption
	label   string
	use     token.Use
	tags    []string
	release token.Release     // of a combined key
	private *token.PrivateKey // the caller wipes it
}

// put takes a key in. One that is held already for the same use is taken as it is.
func (m *maker) put(ctx context.Context, w wish) (*keyring.Entry, error) {
	policy, err := m.policy()
	if err != nil {
		return nil, err
	}
	public, err := mesh.PublicOf(w.private)
	if err != nil {
		return nil, err
	}
	if held, err := m.r.ring.Snapshot().FindPublic(public); err == nil && held.Use == w.use {
		return held, m.take(held, w.name, w.label)
	}
	spec := keyring.ImportSpec{
		Token: m.home.Token, Use: w.use, Label: w.label, Private: w.private, Tags: w.tags, Policy: policy,
	}
	put := m.r.importInto
	if m.home.SealTo != "" {
		spec.Token, put = m.home.SealTo, m.r.ring.ImportSealed
	}
	e, existed, _, err := put(ctx, m.r.manageGate, spec)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.name, err)
	}
	m.made = append(m.made, devicestate.Key{Name: w.name, Udf: e.Udf, Own: !existed})
	return e, nil
}

// generate makes a key inside a token.
func (m *maker) generate(ctx context.Context, tokenName string, a token.Algorithm, w wish) (*keyring.Entry, error) {
	policy, err := m.policy()
	if err != nil {
		return nil, err
	}
	e, err := m.r.ring.Generate(ctx, m.r.manageGate, keyring.GenerateSpec{
		Token: tokenName, Algorithm: a, Use: w.use, Label: w.label, Tags: w.tags, Policy: policy,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.name, err)
	}
	m.made = append(m.made, devicestate.Key{Name: w.name, Udf: e.Udf, Own: true})
	return e, nil
}

// draw makes a key with the agent's randomness, at home.
func (m *maker) draw(ctx context.Context, a token.Algorithm, w wish) (*keyring.Entry, error) {
	curve, ok := mesh.CurveOf(a)
	if !ok {
		return nil, fmt.Errorf("%s: %s key: %w", w.name, a, token.ErrUnsupported)
	}
	s, err := keyshare.RandomScalar(curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	defer s.Wipe()
	w.private = &token.PrivateKey{Algorithm: a, Scalar: s.Bytes()}
	defer w.private.Wipe()
	return m.put(ctx, w)
}

// add makes the sum of a base key and a contribution.
func (m *maker) add(ctx context.Context, base token.PublicKey, w wish) (*keyring.Entry, error) {
	policy, err := m.policy()
	if err != nil {
		return nil, err
	}
	b, err := m.r.own(base)
	if err != nil {
		return nil, err
	}
	spec := keyring.CompositeSpec{
		Base: b.entry.Udf, Token: m.home.Token, Use: w.use, Release: w.release, Label: w.label, Policy: policy, Contribution: w.private,
	}
	if m.home.SealTo != "" {
		spec.Token, spec.Seal = m.home.SealTo, true
	}
	e, err := m.r.ring.AddComposite(ctx, m.r.manageGate, spec)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", w.name, err)
	}
	m.made = append(m.made, devicestate.Key{Name: w.name, Udf: e.Udf, Own: true})
	return e, nil
}

// undo deletes what was made, even if the client has gone; nobody is asked for a PIN then.
func (m *maker) undo(ctx context.Context) error {
	ctx = keyring.WithAsker(context.WithoutCancel(ctx), nil)
	err := m.r.deleteKeys(ctx, m.made)
	if m.account != nil {
		err = errors.Join(err, m.r.dropAccount(ctx, m.account))
	}
	return err
}

// deleteKeys deletes the keys that were made for what ends now.
func (r *request) deleteKeys(ctx context.Context, keys []devicestate.Key) error {
	var errs []error
	for _, k := range keys {
		if !k.Own {
			continue
		}
		if _, err := r.ring.Delete(ctx, r.manageGate, k.Udf); err != nil && !errors.Is(err, token.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// namedKeys describes keys for clients. One that is gone has its name only.
func (r *request) namedKeys(keys []devicestate.Key) []mesh.NamedKey {
	out := make([]mesh.NamedKey, 0, len(keys))
	snapshot := r.ring.Snapshot()
	for _, k := range keys {
		n := mesh.NamedKey{Name: k.Name, Udf: k.Udf}
		if e, err := snapshot.Find(k.Udf); err == nil {
			n.UdfG2 = e.UdfG2
			n.Algorithm, n.Use, n.Release, n.Token, n.Protection = string(e.Algorithm), string(e.Use), string(e.Release), e.Token, e.Protected()
		}
		out = append(out, n)
	}
	return out
}

// mixedRandom returns 32 octets that are random if the operating system's randomness or that of
// the token is, where it offers any (RFC 4086, Section 3.1.3). The caller wipes them.
func (r *request) mixedRandom(ctx context.Context, t token.Token) ([]byte, error) {
	ikm := make([]byte, 32, 64)
	defer func() { clear(ikm) }()
	if _, err := io.ReadFull(rand.Reader, ikm); err != nil {
		return nil, fmt.Errorf("draw randomness: %w", err)
	}
	if source, ok := t.(token.RandomSource); ok {
		leave, err := r.manageGate(ctx, t.Info().Name)
		if err != nil {
			return nil, err
		}
		more, err := source.Random(ctx, 32)
		leave()
		if err != nil {
			return nil, fmt.Errorf("draw randomness from token: %w", err)
		}
		if len(more) != 32 {
			return nil, fmt.Errorf("draw randomness: %w: %d octets", token.ErrFault, len(more))
		}
		ikm = append(ikm, more...)
		clear(more)
	}
	return hkdf.Key(sha512.New, ikm, nil, "mesh-agent seed", 32)
}
