package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
)

const (
	generationName = "generation.json"
	maxGeneration  = 8 << 10
)

// DigestLen is the length of a digest of the records.
const DigestLen = sha256.Size

// Generation says which state of the set of records is the present one. What it is worth is
// for internal/keyring to decide, which compares it with a counter outside.
type Generation struct {
	Version int
	Number  uint64
	// Records are digests of the set of records, as Digest returns them: one, or two while it
	// is being changed, before and after.
	Records []Binary
	// Key is sealed by a token, and MAC made with it over Number and Records; both are absent if
	// there is no such key.
	Key Binary `json:",omitzero"`
	MAC Binary `json:",omitzero"`
}

// ReadGeneration returns the generation that was last written, or ErrNotFound.
func (s *Store) ReadGeneration() (*Generation, error) {
	data, err := s.dir.Read(generationName, maxGeneration)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read generation: %w", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read generation: %w", err)
	}
	return parseGeneration(data)
}

func parseGeneration(data []byte) (*Generation, error) {
	g := new(Generation)
	if err := strictjson.Unmarshal(data, g); err != nil {
		return nil, fmt.Errorf("read generation: %w", err)
	}
	switch {
	case g.Version != Version:
		return nil, fmt.Errorf("read generation: version %d, this program knows %d only", g.Version, Version)
	case len(g.Records) < 1 || len(g.Records) > 2:
		return nil, fmt.Errorf("read generation: %d digests, want 1 or 2", len(g.Records))
	case slices.ContainsFunc(g.Records, func(d Binary) bool { return len(d) != DigestLen }):
		return nil, fmt.Errorf("read generation: a digest does not have %d octets", DigestLen)
	case (len(g.Key) == 0) != (len(g.MAC) == 0):
		return nil, errors.New("read generation: Key without MAC, or the reverse")
	}
	return g, nil
}

// WriteGeneration writes a generation durably.
func (s *Store) WriteGeneration(g Generation) error {
	g.Version = Version
	data, err := strictjson.MarshalIndent(g)
	if err != nil {
		return fmt.Errorf("write generation: %w", err)
	}
	return s.dir.Write(generationName, append(data, '\n'))
}

// Digest returns the SHA-256 of the set of records as it is on the disk, whether they load or
// not: of each file, in the order of their names, the SHA-256 of its name and of its contents.
func (s *Store) Digest() ([]byte, error) { return s.digest("", nil) }

// DigestAfter returns what Digest will be after Put of r, or if that is nil, after Remove.
func (s *Store) DigestAfter(udf string, r *Record) ([]byte, error) {
	if r == nil {
		return s.digest(udf+recordName, nil)
	}
	data, err := r.Marshal()
	if err != nil {
		return nil, fmt.Errorf("write record: %w", err)
	}
	return s.digest(udf+recordName, data)
}

// digest leaves the file of a name out, and takes data for it if that is not nil.
func (s *Store) digest(other string, data []byte) ([]byte, error) {
	names, err := s.keys.Names()
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == other })
	if data != nil {
		names = append(names, other)
	}
	slices.Sort(names)
	all := sha256.New()
	for _, name := range names {
		contents := data
		if name != other {
			if contents, err = s.keys.Read(name, MaxRecord); err != nil {
				return nil, err
			}
		}
		n, c := sha256.Sum256([]byte(name)), sha256.Sum256(contents)
		all.Write(n[:])
		all.Write(c[:])
	}
	return all.Sum(nil), nil
}
