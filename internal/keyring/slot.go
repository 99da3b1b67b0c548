package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// slot is one key of the ring with what it takes to use it. All but entry, deleted and
// the parts' open keys is fixed when it is made.
type slot struct {
	record   store.Record
	public   token.PublicKey
	point    *keyshare.Point // public as a point; nil for RSA
	aliases  []string        // whole fingerprints in Base32, as mesh.Aliases has them
	parts    []*part
	rollback *guard // of the whole ring; nil for none

	entry   atomic.Pointer[Entry]
	deleted atomic.Bool // no operation begins any more
}

// newSlot checks a record for everything that can be checked without opening the key.
func (k *Keyring) newSlot(r store.Record) (*slot, error) {
	alg, err := token.ParseAlgorithm(r.Algorithm)
	if err != nil {
		return nil, err
	}
	use, err := token.ParseKeyUse(r.Use)
	if err != nil {
		return nil, err
	}
	if err := checkTags(use, r.Tags); err != nil {
		return nil, err
	}
	if err := use.Allows(alg); err != nil {
		return nil, err
	}
	release, err := recordedRelease(r, use, alg)
	if err != nil {
		return nil, err
	}
	s := &slot{rollback: k.guard, record: r, public: token.PublicKey{Algorithm: alg, Octets: r.Public}}
	if s.point, err = checkPublic(s.public); err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	shareTo, err := parseShareTo(r.ShareTo)
	if err != nil {
		return nil, err
	}
	if err := checkShareTo(use, shareTo); err != nil {
		return nil, err
	}
	entry, err := s.newEntry(use, shareTo)
	if err != nil {
		return nil, err
	}
	entry.Release = release
	if s.parts, err = k.newParts(r, alg, use, shareTo); err != nil {
		return nil, err
	}
	if err := s.checkSum(); err != nil {
		return nil, err
	}
	s.summarize(entry)
	entry.State = s.initialState()
	s.entry.Store(entry)
	return s, nil
}

// newEntry fills in what follows from the record alone, and the aliases.
func (s *slot) newEntry(use token.Use, shareTo []token.PublicKey) (*Entry, error) {
	var udfs [2]string
	for i, generation := range []mesh.Generation{mesh.G1, mesh.G2} {
		udf, err := mesh.Fingerprint(s.public, generation)
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		udfs[i] = udf
	}
	aliases, err := mesh.Aliases(s.public)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	s.aliases = aliases
	if udfs[0] != s.record.Udf {
		return nil, fmt.Errorf("its public key has the UDF %s", udfs[0])
	}
	return &Entry{
		Udf: udfs[0], UdfG2: udfs[1],
		Algorithm: s.public.Algorithm, Use: use, Label: s.record.Label, Public: s.public,
		ShareTo: shareTo, Tags: s.record.Tags, slot: s,
	}, nil
}

// checkSum makes sure that the parts' public keys add up to the key's.
func (s *slot) checkSum() error {
	if len(s.parts) == 1 {
		if !s.parts[0].public.Equal(s.public) {
			return errors.New("the part's public key is not the key's")
		}
		return nil
	}
	sum, err := sumPublic(s.parts)
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, s.public.Octets) {
		return errors.New("the parts' public keys do not add up to the key's")
	}
	return nil
}

func sumPublic(parts []*part) ([]byte, error) {
	points := make([]*keyshare.Point, len(parts))
	for i, p := range parts {
		if points[i] = p.point; p.point == nil {
			return nil, fmt.Errorf("an %s key cannot have parts: %w", p.public.Algorithm, token.ErrUnsupported)
		}
	}
	sum, err := keyshare.Combine(points...)
	if err != nil {
		return nil, fmt.Errorf("add parts: %w", err)
	}
	return sum.Bytes(), nil
}

// summarize says of the key as a whole: the first part's token and policy, the weakest
// protection of any part, and whether any part was outside once.
func (s *slot) summarize(e *Entry) {
	first := s.parts[0]
	e.Token, e.Policy, e.PCRs = first.tokenName, first.policy, first.pcrs
	e.Protection, e.Guard = first.protection, first.guard
	for _, p := range s.parts {
		e.Imported = e.Imported || p.imported
		if strength(p.protection, p.guard) < strength(e.Protection, e.Guard) {
			e.Protection, e.Guard = p.protection, p.guard
		}
	}
}

// strength orders protections. What is not known counts as the weakest.
func strength(p token.Protection, g token.Guard) int {
	switch {
	case p == token.ProtectionToken:
		return 4
	case p == token.ProtectionSealed && g == token.GuardPCR:
		return 3
	case p == token.ProtectionSealed && g == token.GuardPIN:
		return 2
	case p == token.ProtectionSealed:
		return 1
	}
	return 0
}

func (s *slot) hasAlias(id string) bool {
	for _, alias := range s.aliases {
		if strings.HasPrefix(alias, id) {
			return true
		}
	}
	return false
}

// do runs op with the opened key of one part, inside the gate of the part's token.
func (s *slot) do(ctx context.Context, gate Gate, p *part, op func(token.Key) error) error {
	if p.token == nil {
		return p.notConfigured()
	}
	if s.rollback != nil {
		if err := s.rollback.check(ctx, gate); err != nil {
			return err
		}
	}
	if p.guard != "" {
		return s.doInMemory(ctx, gate, p, op)
	}
	return s.inGate(ctx, gate, p, op)
}

// inGate opens the key, if it is not open, and runs op, in one turn at the token's gate.
func (s *slot) inGate(ctx context.Context, gate Gate, p *part, op func(token.Key) error) error {
	leave, err := gate.enter(ctx, p.tokenName)
	if err != nil {
		return err
	}
	defer leave()
	if s.deleted.Load() {
		return token.ErrNotFound
	}
	key, err := p.open(ctx)
	s.setState(err)
	if err != nil {
		return fmt.Errorf("open key: %w", err)
	}
	if err = op(key); errors.Is(err, token.ErrNotFound) {
		s.setState(err) // somebody else deleted it; if it comes back, it is opened anew
		err = errors.Join(err, p.forget())
	}
	return err
}

func (s *slot) initialState() string {
	for _, p := range s.parts {
		if p.token == nil || p.token.Info().State == token.StateAbsent {
			return StateTokenAbsent
		}
	}
	return StateUnverified
}

// setState records what opening a part showed. It allocates only when the state changes.
func (s *slot) setState(err error) {
	for {
		old := s.entry.Load()
		state, policy := s.stateAfter(err, old.State), s.parts[0].known(old.Policy)
		if state == old.State && policy == old.Policy {
			return
		}
		e := *old
		e.State, e.Policy = state, policy
		if s.entry.CompareAndSwap(old, &e) {
			return
		}
	}
}

func (s *slot) stateAfter(err error, before string) string {
	var pcr *token.PCRError
	switch {
	case err == nil && s.allOpen():
		return ""
	case err == nil:
		return s.initialState()
	case errors.Is(err, token.ErrAbsent):
		return StateTokenAbsent
	case errors.As(err, &pcr):
		return stateUnreadable + pcr.Error()
	case errors.Is(err, token.ErrCorrupt), errors.Is(err, token.ErrNotFound), errors.Is(err, token.ErrReplaced), errors.Is(err, token.ErrPCR):
		return stateUnreadable + err.Error()
	}
	return before // cancelled, PIN needed: nothing is known yet
}

func (s *slot) allOpen() bool {
	for _, p := range s.parts {
		if !p.isOpen() {
			return false
		}
	}
	return true
}

// checkPublic checks a public key as strictly as anything from outside, and returns it as
// a point unless it is an RSA key.
func checkPublic(pub token.PublicKey) (*keyshare.Point, error) {
	curve, ok := mesh.CurveOf(pub.Algorithm)
	if !ok {
		_, err := pub.Standard()
		return nil, err
	}
	point, err := keyshare.ParsePoint(curve, pub.Octets)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrBadKey, err)
	}
	if !bytes.Equal(point.Bytes(), pub.Octets) {
		return nil, fmt.Errorf("%w: %s public key without sign", token.ErrBadKey, pub.Algorithm)
	}
	return point, nil
}

func parseShareTo(in []store.PublicKey) ([]token.PublicKey, error) {
	var out []token.PublicKey
	for _, p := range in {
		alg, err := token.ParseAlgorithm(p.Algorithm)
		if err != nil {
			return nil, fmt.Errorf("ShareTo: %w", err)
		}
		out = append(out, token.PublicKey{Algorithm: alg, Octets: p.Public})
	}
	return out, nil
}

// checkTags wants tags, each once, for no use but sign-assertion. A key of that use without any
// signs nothing by itself.
func checkTags(use token.Use, tags []string) error {
	if use != token.UseSignAssertion && len(tags) != 0 {
		return badField("Tags", fmt.Errorf("for keys of use %q only", string(token.UseSignAssertion)))
	}
	if len(tags) > store.MaxTags {
		return badField("Tags", fmt.Errorf("%d tags, at most %d are possible", len(tags), store.MaxTags))
	}
	for i, tag := range tags {
		if tag == "" || len(tag) > maxTag || slices.Contains(tags[:i], tag) || strings.ContainsFunc(tag, notInTag) {
			return badField("Tags", fmt.Errorf("%.64q, a name of letters and digits expected, once", tag))
		}
	}
	return nil
}

// recordedRelease reads the release of a record, where the default is written as nothing.
func recordedRelease(r store.Record, use token.Use, alg token.Algorithm) (token.Release, error) {
	release, err := token.ParseRelease(r.Release)
	if err != nil {
		return "", err
	}
	if string(release) != r.Release {
		return "", fmt.Errorf("release %q, which is the default, is written out", r.Release)
	}
	return release, release.Allows(use, alg)
}

// maxTag is the length of a tag in octets.
const maxTag = 64

func notInTag(c rune) bool {
	return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9')
}

// checkShareTo wants 2 to token.MaxShares different recipients for a key of use split and
// none for any other.
func checkShareTo(use token.Use, to []token.PublicKey) error {
	if use != token.UseSplit {
		if len(to) != 0 {
			return fmt.Errorf("ShareTo: %w: recipients are for keys of use %q only", token.ErrBadRequest, string(token.UseSplit))
		}
		return nil
	}
	if len(to) < 2 || len(to) > token.MaxShares {
		return fmt.Errorf("ShareTo: %w: %d recipients, a key of use %q needs 2 to %d", token.ErrBadRequest, len(to), string(use), token.MaxShares)
	}
	seen := make(map[[32]byte]bool)
	for _, p := range to {
		if p.Algorithm != token.X25519 && p.Algorithm != token.X448 {
			return fmt.Errorf("ShareTo: %w: recipient has algorithm %s, want X25519 or X448", token.ErrBadRequest, p.Algorithm)
		}
		if _, err := checkPublic(p); err != nil {
			return fmt.Errorf("ShareTo: %w: %w", token.ErrBadRequest, err)
		}
		if seen[p.Index()] {
			return fmt.Errorf("ShareTo: %w: one recipient twice", token.ErrBadRequest)
		}
		seen[p.Index()] = true
	}
	return nil
}
