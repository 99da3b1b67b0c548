package piv

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// supports reports whether the card can hold a key. Before the card was seen, all that any
// has will do.
func (t *Token) supports(a token.Algorithm, u token.Use) error {
	if err := u.Allows(a); err != nil {
		return err
	}
	if !u.Signs() && !u.Agrees() || u.Agrees() && a == token.Ed25519 {
		return fmt.Errorf("a %s key on a PIV card cannot have use %q: %w", string(a), string(u), token.ErrUnsupported)
	}
	known := t.info.Load().Algorithms
	if len(known) == 0 {
		known = applet.Algorithms(applet.Version{Major: 255})
	}
	if !slices.Contains(known, a) {
		return fmt.Errorf("this PIV card has no %s keys: %w", string(a), token.ErrUnsupported)
	}
	return nil
}

// policyOr fills in what a request leaves open: PIN once, no touch.
func policyOr(p token.Policy) token.Policy {
	if p.PIN == token.PINDefault {
		p.PIN = token.PINOnce
	}
	if p.Touch == token.TouchDefault {
		p.Touch = token.TouchNever
	}
	return p
}

// Generate makes a key in the card, in the slot of req.Place or one that its use has. It needs
// the management key: the PIN opens it on cards that Setup or ykman prepared, others need
// Options.ManagementKey. Errors as token.Generator; token.ErrBadRequest with ErrOccupied or
// ErrFull; token.ErrAuthNeeded for the management key too.
func (t *Token) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	if err := t.supports(req.Algorithm, req.Use); err != nil {
		return token.Created{}, fmt.Errorf("%s: generate key: %w", Name(t.options.Serial), err)
	}
	policy := policyOr(req.Policy)
	return t.create(ctx, "generate key", req.Auth, func(ctx context.Context, s *session) (token.Created, error) {
		slot, err := s.place(ctx, req.Place, req.Use, policy.PIN)
		if err != nil {
			return token.Created{}, err
		}
		s.change(slot)
		public, err := s.Applet.Generate(ctx, slot, req.Algorithm, policy)
		if err != nil {
			return token.Created{}, err
		}
		return s.created(handle{slot: slot}, public, req.Use, req.Associated), nil
	})
}

// change notes that the card changes: nothing is tried twice, and the slot is looked at again.
func (s *session) change(slot applet.Slot) {
	s.request.changed = true
	delete(s.seen.checked, slot)
}

func (s *session) created(h handle, public token.PublicKey, use token.Use, associated []byte) token.Created {
	h.serial = s.worker.token.options.Serial
	return token.Created{Handle: h.bind(public, use, associated).encode(), Public: public, Protection: token.ProtectionToken}
}

// create runs f with the management key presented.
func (t *Token) create(ctx context.Context, what string, auth token.Auth, f func(context.Context, *session) (token.Created, error)) (token.Created, error) {
	r := &request{ctx: ctx, timeout: orDefault(t.options.Timeout, generateTimeout)}
	return perform(t, what, r, func(ctx context.Context, s *session) (token.Created, error) {
		if err := s.administer(ctx, auth); err != nil {
			return token.Created{}, err
		}
		return f(ctx, s)
	})
}

// administer presents the management key.
func (s *session) administer(ctx context.Context, auth token.Auth) error {
	if key := s.worker.token.options.ManagementKey; len(key) != 0 {
		return s.AuthenticateManagement(ctx, s.worker.version, key)
	}
	if err := s.login(ctx, auth); err != nil {
		return err
	}
	b, err := s.protected(ctx)
	if err != nil {
		return err
	}
	defer clear(b)
	keys, err := storedKeys(b)
	if err != nil {
		return err
	}
	_, err = s.anyOf(ctx, keys)
	return err
}

// anyOf presents management keys until one is right, and returns that. They have no tries to use up.
func (s *session) anyOf(ctx context.Context, keys [][]byte) (right []byte, err error) {
	err = fmt.Errorf("%w: not the factory's, and not stored on the card",
		&token.AuthError{Reason: token.ErrAuthNeeded, Kind: "management key", TriesLeft: token.TriesUnknown})
	for _, key := range keys {
		err = s.AuthenticateManagement(ctx, s.worker.version, key)
		if !errors.Is(err, token.ErrAuthWrong) && !errors.Is(err, token.ErrBadRequest) {
			return key, err
		}
	}
	return nil, err
}

// The objects inside applet.ObjectProtected. The second is one that is about to be set instead of
// the first; whoever does not know that finds the one that is in force until then.
const (
	tagProtected     apdu.Tag = 0x88
	tagManagementKey apdu.Tag = 0x89
	tagNextKey       apdu.Tag = 0x8E
)

// protected reads what is stored on the card behind the PIN. The caller wipes it.
func (s *session) protected(ctx context.Context) ([]byte, error) {
	b, err := s.Data(ctx, applet.ObjectProtected)
	if errors.Is(err, apdu.NotFound) {
		return nil, fmt.Errorf("%w: the card does not store it: %w", &token.AuthError{
			Reason: token.ErrAuthNeeded, Kind: "management key", TriesLeft: token.TriesUnknown}, err)
	}
	return b, err
}

// storedKeys returns the management keys, parts of what is stored behind the PIN.
func storedKeys(b []byte) ([][]byte, error) {
	outer, err := apdu.ParseAll(b)
	if err != nil {
		return nil, fmt.Errorf("stored management key: %w", err)
	}
	inner, err := apdu.ParseAll(outer[tagProtected])
	if err != nil {
		return nil, fmt.Errorf("stored management key: %w", err)
	}
	var keys [][]byte
	for _, tag := range []apdu.Tag{tagManagementKey, tagNextKey} {
		if key := inner[tag]; len(key) != 0 {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// Import puts an existing key into the card, as Generate does. Ed25519 keys need a seed: a card
// takes no raw scalar. An X25519 scalar that clamping would change goes in as another that is
// the same modulo the order, up to its sign. A card without metadata (before firmware 5.3) could
// not show the key again and is token.ErrUnsupported. Errors as token.Importer and Generate.
func (t *Token) Import(ctx context.Context, req token.ImportRequest) (token.Created, error) {
	fail := func(err error) (token.Created, error) {
		return token.Created{}, fmt.Errorf("%s: import key: %w", Name(t.options.Serial), err)
	}
	if req.Private == nil {
		return fail(fmt.Errorf("%w: none", token.ErrBadKey))
	}
	if err := t.supports(req.Private.Algorithm, req.Use); err != nil {
		return fail(err)
	}
	m, err := newMaterial(req.Private)
	if err != nil {
		return fail(err)
	}
	defer clear(m.private)
	policy := policyOr(req.Policy)
	return t.create(ctx, "import key", req.Auth, func(ctx context.Context, s *session) (token.Created, error) {
		if !applet.HasMetadata(s.worker.version) {
			return token.Created{}, fmt.Errorf("import into firmware %v: %w", s.worker.version, token.ErrUnsupported)
		}
		slot, err := s.place(ctx, req.Place, req.Use, policy.PIN)
		if err != nil {
			return token.Created{}, err
		}
		s.change(slot)
		if err := s.Applet.Import(ctx, slot, req.Private.Algorithm, m.private, req.Private.RSA, policy); err != nil {
			return token.Created{}, err
		}
		if _, err := s.check(ctx, slot, m.public.Index()); err != nil {
			return token.Created{}, fmt.Errorf("%w: %w", token.ErrFault, err)
		}
		return s.created(handle{slot: slot}, m.public, req.Use, req.Associated), nil
	})
}

// material is a private key as a card takes it.
type material struct {
	private []byte // not for RSA
	public  token.PublicKey
}

func newMaterial(k *token.PrivateKey) (material, error) {
	given := 0
	for _, there := range []bool{len(k.Seed) > 0, len(k.Scalar) > 0, k.RSA != nil} {
		if there {
			given++
		}
	}
	if given != 1 || (k.RSA != nil) != (k.Algorithm.RSABits() != 0) {
		return material{}, fmt.Errorf("%w: not one private key of algorithm %s", token.ErrBadKey, k.Algorithm)
	}
	if k.RSA != nil {
		return rsaMaterial(k)
	}
	curve, err := keyshare.ParseCurve(string(k.Algorithm))
	if err != nil {
		return material{}, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	if k.Seed != nil {
		return seedMaterial(curve, k)
	}
	scalar, err := keyshare.ParseScalar(curve, k.Scalar)
	if err != nil {
		return material{}, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	defer scalar.Wipe()
	m := material{public: token.PublicKey{Algorithm: k.Algorithm, Octets: scalar.Public().Bytes()}}
	switch curve {
	case keyshare.Ed25519:
		return material{}, fmt.Errorf("a PIV card takes Ed25519 keys by their seed, not by a scalar: %w", token.ErrUnsupported)
	case keyshare.X25519:
		if m.private, err = scalar.Clamped(); err != nil {
			err = fmt.Errorf("this scalar does not fit a PIV card: %w: %w", token.ErrUnsupported, err)
		}
	default:
		m.private = scalar.Bytes()
	}
	return m, err
}

func seedMaterial(curve keyshare.Curve, k *token.PrivateKey) (material, error) {
	scalar, prefix, err := keyshare.ExpandSeed(curve, k.Seed)
	if err != nil {
		return material{}, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	defer scalar.Wipe()
	clear(prefix)
	return material{slices.Clone(k.Seed), token.PublicKey{Algorithm: k.Algorithm, Octets: scalar.Public().Bytes()}}, nil
}

func rsaMaterial(k *token.PrivateKey) (material, error) {
	key := k.RSA
	if key.N == nil || key.N.BitLen() != k.Algorithm.RSABits() || len(key.Primes) != 2 || key.E != 65537 {
		return material{}, fmt.Errorf("%w: not an RSA key of two primes, %d bits and exponent 65537", token.ErrBadKey, k.Algorithm.RSABits())
	}
	if err := key.Validate(); err != nil {
		return material{}, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	key.Precompute()
	for _, p := range key.Primes {
		if p.BitLen() != k.Algorithm.RSABits()/2 {
			return material{}, fmt.Errorf("%w: primes of different lengths", token.ErrBadKey)
		}
	}
	public, err := applet.PublicOf(&key.PublicKey)
	return material{public: public}, err
}

// Delete destroys a key. A card before firmware 5.7, which has no such command, gets
// a key in its place that everybody knows and that counts as no key here. A key that was adopted
// is left as it is: other programs use it.
func (t *Token) Delete(ctx context.Context, handle []byte) error {
	h, err := decodeHandle(handle)
	if err != nil || h.serial != t.options.Serial {
		return fmt.Errorf("%s: delete key: %w: no handle of this card", Name(t.options.Serial), token.ErrNotFound)
	}
	if h.found {
		return nil
	}
	_, err = t.create(ctx, "delete key", token.Auth{}, func(ctx context.Context, s *session) (token.Created, error) {
		delete(s.seen.checked, h.slot)
		if _, err := s.check(ctx, h.slot, h.index); err != nil {
			return token.Created{}, err
		}
		s.change(h.slot)
		return token.Created{}, s.destroy(ctx, h.slot)
	})
	return err
}

func (s *session) destroy(ctx context.Context, slot applet.Slot) error {
	if s.worker.version.AtLeast(5, 7) {
		return s.Applet.Delete(ctx, slot)
	}
	return s.Applet.Import(ctx, slot, token.P256, tombstone(), nil, token.Policy{})
}

// tombstone is the private key that stands for none: the scalar 1, whose public key is the
// base point.
func tombstone() []byte {
	one := make([]byte, 32)
	one[31] = 1
	return one
}

func isTombstone(p token.PublicKey) bool {
	base := keyshare.BasePoint(keyshare.P256).Bytes()
	return p.Equal(token.PublicKey{Algorithm: token.P256, Octets: base})
}

// Adopt takes over the key that another program put into the slot req.Slot, "9a" for example.
// The slot is left as it is. Errors: token.ErrBadRequest (no such slot), token.ErrNotFound (it is
// empty), token.ErrUnsupported (a key that cannot have this use, or that Seal made), token.ErrAbsent, token.ErrReplaced.
// The policies of the key are in Created.Policy. Of a key that was imported into a card without metadata they must be in the request.
func (t *Token) Adopt(ctx context.Context, req token.AdoptRequest) (token.Created, error) {
	return do(ctx, t, "adopt key", func(ctx context.Context, s *session) (token.Created, error) {
		slot, err := applet.ParseSlot(req.Slot)
		if err != nil || len(req.File) != 0 {
			return token.Created{}, fmt.Errorf("%w: %w", token.ErrBadRequest, errors.Join(err, errors.New("a slot is needed, and no file")))
		}
		delete(s.seen.checked, slot)
		m, err := s.contents(ctx, slot)
		if err != nil {
			return token.Created{}, err
		}
		if err := t.supports(m.Public.Algorithm, req.Use); err != nil {
			return token.Created{}, err
		}
		if seals, err := s.seals(ctx, slot, m.Public); err != nil {
			return token.Created{}, err
		} else if seals {
			return token.Created{}, fmt.Errorf("this key opens what the agent sealed, and does nothing else: %w", token.ErrUnsupported)
		}
		h := handle{slot: slot, found: true}
		if m.Policy == (token.Policy{}) {
			h.policy = req.Policy
		}
		policy, err := adoptedPolicy(m.Policy, req.Policy)
		if err != nil {
			return token.Created{}, err
		}
		created := s.created(h, m.Public, req.Use, req.Associated)
		created.Policy = policy
		return created, nil
	})
}

// ErrPolicyUnknown says that the card does not tell when a key wants the PIN and a touch. It is inside
// token.ErrBadRequest.
var ErrPolicyUnknown = errors.New("the card does not tell when this key wants its PIN and a touch; both must be given")

// adoptedPolicy compares what a card tells of a key's policies with what the request says.
func adoptedPolicy(told, asked token.Policy) (token.Policy, error) {
	if told == (token.Policy{}) {
		if asked.PIN == token.PINDefault || asked.Touch == token.TouchDefault {
			return asked, fmt.Errorf("%w: %w", token.ErrBadRequest, ErrPolicyUnknown)
		}
		return asked, nil
	}
	if asked.PIN != token.PINDefault && asked.PIN != told.PIN || asked.Touch != token.TouchDefault && asked.Touch != told.Touch {
		return told, fmt.Errorf("%w: the key wants its PIN %s and a touch %s", token.ErrBadRequest, told.PIN, told.Touch)
	}
	return told, nil
}
