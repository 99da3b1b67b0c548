package keyring

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// aliasLen is the number of Base32 characters by which keys are indexed, which is also the
// least that a KeyId has.
const aliasLen = 28

// Snapshot is a view of all keys at one moment. It never changes, but for Entry.State of
// the entries that it hands out.
type Snapshot struct {
	slots    []*slot                     // sorted by UDF
	aliases  map[string][]*slot          // by the first aliasLen characters of each alias
	index    map[[sha256.Size]byte]*slot // by token.PublicKey.Index
	problems []string
}

func newSnapshot(slots []*slot, problems []string) *Snapshot {
	s := &Snapshot{
		slots:    slots,
		aliases:  make(map[string][]*slot, 2*len(slots)),
		index:    make(map[[sha256.Size]byte]*slot, len(slots)),
		problems: problems,
	}
	slices.SortFunc(s.slots, func(a, b *slot) int { return strings.Compare(a.record.Udf, b.record.Udf) })
	for _, x := range s.slots {
		s.index[x.public.Index()] = x
		for _, alias := range x.aliases {
			short := alias[:aliasLen]
			s.aliases[short] = append(s.aliases[short], x)
		}
	}
	return s
}

func (s *Snapshot) with(x *slot) *Snapshot {
	return newSnapshot(append(slices.Clone(s.slots), x), s.problems)
}

func (s *Snapshot) without(x *slot) *Snapshot {
	rest := slices.DeleteFunc(slices.Clone(s.slots), func(y *slot) bool { return x == y })
	return newSnapshot(rest, s.problems)
}

// Find returns the key that has keyID as an alias: its G1 or G2 UDF or any longer part of
// the same digest, in any case, with or without dashes, of at least 28 characters.
// The error is token.ErrNotFound, or token.ErrBadRequest if keyID is malformed or ambiguous.
func (s *Snapshot) Find(keyID string) (*Entry, error) {
	id, err := mesh.NormalizeKeyID(keyID)
	if err != nil {
		return nil, fmt.Errorf("KeyId: %w: %w", token.ErrBadRequest, err)
	}
	if len(id) < aliasLen {
		return nil, fmt.Errorf("KeyId: %w: %d characters, at least %d are needed", token.ErrBadRequest, len(id), aliasLen)
	}
	var found *slot
	for _, x := range s.aliases[id[:aliasLen]] {
		if !x.hasAlias(id) || x == found {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("KeyId: %w: it names two keys", token.ErrBadRequest)
		}
		found = x
	}
	if found == nil {
		return nil, token.ErrNotFound
	}
	return found.entry.Load(), nil
}

// FindPublic returns the key with this public key, or token.ErrNotFound. The sign of an
// X25519 key does not matter.
func (s *Snapshot) FindPublic(pub token.PublicKey) (*Entry, error) {
	if x, ok := s.index[pub.Index()]; ok {
		return x.entry.Load(), nil
	}
	return nil, token.ErrNotFound
}

// Entries returns all keys, sorted by Udf.
func (s *Snapshot) Entries() []*Entry {
	out := make([]*Entry, len(s.slots))
	for i, x := range s.slots {
		out[i] = x.entry.Load()
	}
	return out
}

// Problems says for each record that did not load why, in sentences for people.
func (s *Snapshot) Problems() []string { return slices.Clone(s.problems) }
