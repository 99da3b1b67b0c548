package keyring

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// part is one contribution to a key: a key of one token, or one that a token sealed and
// that is used in memory.
type part struct {
	tokenName  string
	token      token.Token // nil if it is not configured
	public     token.PublicKey
	point      *keyshare.Point // public as a point; nil for RSA
	protection token.Protection
	imported   bool
	use        token.Use // that of the key, or of this part alone
	policy     token.Policy
	guard      token.Guard // what opens a sealed part; empty for a key of the token itself
	pcrs       string
	request    token.OpenRequest
	software   Software // makes the key of a sealed part

	mu      sync.Mutex // never held across I/O
	key     token.Key  // guarded by mu; nil until opened
	opening wait       // guarded by mu; not nil while somebody opens the key
}

func (k *Keyring) newParts(r store.Record, alg token.Algorithm, use token.Use, shareTo []token.PublicKey) ([]*part, error) {
	id := identity{shareTo: shareTo}
	var parts []*part
	for _, rp := range r.Parts {
		p := &part{
			tokenName:  rp.Token,
			token:      k.lookup(rp.Token),
			public:     token.PublicKey{Algorithm: alg, Octets: rp.Public},
			protection: token.Protection(rp.Protection),
			imported:   rp.Imported,
			use:        use,
			policy:     token.Policy{PIN: token.PINPolicy(rp.PIN), Touch: token.TouchPolicy(rp.Touch)},
			guard:      token.Guard(rp.Guard),
			pcrs:       rp.PCRs,
			software:   k.software,
		}
		if err := errors.Join(checkGuard(p), checkProtection(p)); err != nil {
			return nil, err
		}
		var err error
		if p.point, err = checkPublic(p.public); err != nil {
			return nil, fmt.Errorf("public key of a part: %w", err)
		}
		id.tags, id.release = r.Tags, token.Release(r.Release)
		if rp.Use != "" {
			if p.use, err = partUse(use, rp.Use); err != nil {
				return nil, err
			}
			id.tags, id.release = nil, token.ReleaseSeed // a part of its own use was made as a key of its own, of no tags
		}
		id.use, id.token, id.imported, id.policy = p.use, p.tokenName, p.imported, p.policy
		id.guard, id.pcrs, id.public = p.guard, p.pcrs, p.public
		p.request = token.OpenRequest{Handle: rp.Handle, Public: p.public, Use: p.use, Associated: id.octets(), Imported: p.imported}
		id.earlier = append(id.earlier, p.public)
		parts = append(parts, p)
	}
	return parts, nil
}

// partUse returns the use of a part of a key.
func partUse(use token.Use, name string) (token.Use, error) {
	u, err := token.ParseKeyUse(name)
	if err == nil && (u == use || !slices.Contains(use.OfSum(), u)) {
		err = fmt.Errorf("a part of use %q in a key of use %q", name, string(use))
	}
	return u, err
}

// checkProtection refuses a protection that is not the token's own: an edited record must not
// call a software key one of a token.
func checkProtection(p *part) error {
	switch p.protection {
	case token.ProtectionSealed: // see checkGuard
		return nil
	case token.ProtectionToken, token.ProtectionSoftware:
		if p.token == nil || p.token.Info().Protection == p.protection {
			return nil
		}
	}
	return fmt.Errorf("protection %q is not that of token %q", string(p.protection), p.tokenName)
}

// open returns the key, which stays open. One caller opens it, others wait for that.
func (p *part) open(ctx context.Context) (token.Key, error) {
	if p.token == nil {
		return nil, p.notConfigured()
	}
	for {
		key, turn, mine := p.take()
		switch {
		case key != nil:
			return key, nil
		case mine:
			key, err := p.openNow(ctx)
			p.done(key, turn)
			return key, err
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (p *part) notConfigured() error {
	return fmt.Errorf("token %q is not configured: %w", p.tokenName, token.ErrAbsent)
}

// take returns the open key, or the turn to wait for, or a turn that is the caller's own.
func (p *part) take() (key token.Key, turn wait, mine bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.key != nil || p.opening != nil {
		return p.key, p.opening, false
	}
	p.opening = make(wait)
	return nil, p.opening, true
}

func (p *part) done(key token.Key, turn wait) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key, p.opening = key, nil
	close(turn)
}

func (p *part) openNow(ctx context.Context) (token.Key, error) {
	load := func(ctx context.Context) (token.Key, error) { return p.token.Open(ctx, p.request) }
	if p.guard != "" {
		load = p.unseal
	}
	key, err := load(ctx)
	if err != nil {
		return nil, err
	}
	if !key.Public().Equal(p.public) {
		return nil, errors.Join(fmt.Errorf("token holds another public key: %w", token.ErrCorrupt), closeKey(key))
	}
	return key, nil
}

func (p *part) isOpen() bool { return p.opened() != nil }

// opened returns the key if it is open, else nil.
func (p *part) opened() token.Key {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.key
}

// known returns what the open key is held to where it tells, which no record knows of a key that was
// made as the token does it by itself; else the policy of the record.
func (p *part) known(recorded token.Policy) token.Policy {
	if key, ok := p.opened().(token.Attended); ok {
		return key.Policy()
	}
	return recorded
}

// forget closes the key if it is open.
func (p *part) forget() error {
	p.mu.Lock()
	key := p.key
	p.key = nil
	p.mu.Unlock()
	if key == nil {
		return nil
	}
	return closeKey(key)
}

// closeKey lets go of what an open key holds: decrypted octets, a loaded object.
func closeKey(key token.Key) error {
	if c, ok := key.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// sameHandle reports whether two parts are one object in one token.
func (p *part) sameHandle(q *part) bool {
	return p.tokenName == q.tokenName && bytes.Equal(p.request.Handle, q.request.Handle)
}

// identity is what a part's handle is bound to beside its own public key. Each part of a
// composite is bound to those before it, so that the last one holds them all; the first
// one is bound as a key of its own would be, which lets a composite be built on a key
// that exists.
type identity struct {
	use      token.Use
	token    string
	imported bool
	shareTo  []token.PublicKey
	tags     []string // of use sign-assertion
	release  token.Release
	earlier  []token.PublicKey
	policy   token.Policy
	guard    token.Guard
	// Of sealed parts, whose token knows nothing of keys.
	pcrs   string
	public token.PublicKey
}

// identityVersion changes when the encoding below does.
const identityVersion = "mesh-agent key 1"

// octets encodes the identity so that no two identities have one encoding: every
// string and list is preceded by its length, in big endian 32 bits.
func (id identity) octets() []byte {
	out := appendString(nil, identityVersion)
	out = appendString(out, string(id.use))
	out = appendString(out, id.token)
	out = append(out, map[bool]byte{false: 0, true: 1}[id.imported])
	out = appendKeys(out, id.shareTo)
	out = appendKeys(out, id.earlier)
	if len(id.tags) != 0 {
		out = appendString(out, "tags")
		out = binary.BigEndian.AppendUint32(out, uint32(len(id.tags)))
		for _, tag := range id.tags {
			out = appendString(out, tag)
		}
	}
	if id.release != token.ReleaseSeed {
		out = appendString(out, "release")
		out = appendString(out, string(id.release))
	}
	if id.policy != (token.Policy{}) {
		out = appendString(out, "policy")
		out = appendString(out, string(id.policy.PIN))
		out = appendString(out, string(id.policy.Touch))
	}
	if id.guard != "" {
		out = appendString(out, "sealed")
		out = appendString(out, string(id.guard))
		out = appendString(out, id.pcrs)
		out = appendKeys(out, []token.PublicKey{id.public})
	}
	return out
}

func appendKeys(out []byte, keys []token.PublicKey) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(len(keys)))
	for _, k := range keys {
		out = appendString(out, string(k.Algorithm))
		out = appendString(out, string(k.Octets))
	}
	return out
}

func appendString(out []byte, s string) []byte {
	out = binary.BigEndian.AppendUint32(out, uint32(len(s)))
	return append(out, s...)
}
