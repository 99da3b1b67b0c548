package device

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"sort"

	"github.com/mesh-agent/mesh-agent/mesh"
)

// setDigest is the number of octets of each digest in a DigestSet.
const setDigest = sha256.Size

// MaxDigests is the largest number of digests of a DigestSet that a device keeps, 4 MiB of them.
const MaxDigests = 1 << 17

// DigestSet is a set of digests, each cut to 32 octets, in ascending order one after another. It is looked up
// by binary search, and written as one base64url string. The zero value is the empty set.
type DigestSet struct{ octets mesh.Binary }

// Len returns the number of digests.
func (s DigestSet) Len() int { return len(s.octets) / setDigest }

// IsZero reports whether the set is empty; in JSON an empty set can be left out.
func (s DigestSet) IsZero() bool { return len(s.octets) == 0 }

func (s DigestSet) at(i int) []byte { return s.octets[i*setDigest : (i+1)*setDigest] }

// Has reports whether a digest, of 32 octets or more, is in the set.
func (s DigestSet) Has(digest []byte) bool {
	digest = digest[:setDigest]
	_, found := sort.Find(s.Len(), func(i int) int { return bytes.Compare(digest, s.at(i)) })
	return found
}

// Add returns the set with more digests, of 32 octets or more each.
func (s DigestSet) Add(digests ...mesh.Binary) DigestSet {
	var fresh [][]byte
	for _, d := range digests {
		if !s.Has(d) {
			fresh = append(fresh, d[:setDigest])
		}
	}
	slices.SortFunc(fresh, bytes.Compare)
	fresh = slices.CompactFunc(fresh, bytes.Equal)
	if len(fresh) == 0 {
		return s
	}
	out := make(mesh.Binary, 0, len(s.octets)+len(fresh)*setDigest)
	rest := s.octets
	for _, d := range fresh {
		n, _ := sort.Find(len(rest)/setDigest, func(i int) int { return bytes.Compare(d, rest[i*setDigest:(i+1)*setDigest]) })
		out = append(append(out, rest[:n*setDigest]...), d...)
		rest = rest[n*setDigest:]
	}
	return DigestSet{append(out, rest...)}
}

// Union returns the set of what is in one of both.
func (s DigestSet) Union(t DigestSet) DigestSet {
	var more []mesh.Binary
	for i := range t.Len() {
		more = append(more, t.at(i))
	}
	return s.Add(more...)
}

// MarshalJSON writes one base64url string.
func (s DigestSet) MarshalJSON() ([]byte, error) { return s.octets.MarshalJSON() }

// UnmarshalJSON reads one base64url string. Digests that are cut off, out of order or there twice are an error.
func (s *DigestSet) UnmarshalJSON(text []byte) error {
	var read DigestSet
	if err := read.octets.UnmarshalJSON(text); err != nil {
		return err
	}
	if len(read.octets)%setDigest != 0 {
		return errors.New("digests of 32 octets expected")
	}
	for i := range max(read.Len(), 1) - 1 {
		if bytes.Compare(read.at(i), read.at(i+1)) >= 0 {
			return errors.New("digests in ascending order expected")
		}
	}
	*s = read
	return nil
}
