package device

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/mesh"
)

// numbered makes digests, which are 64 octets as those of bodies are.
func numbered(from, n int) (out []mesh.Binary) {
	for i := range n {
		d := sha256.Sum256(binary.BigEndian.AppendUint32(nil, uint32(from+i)))
		out = append(out, append(d[:], d[:]...))
	}
	return out
}

// TestDigestSet compares the set with a map.
func TestDigestSet(t *testing.T) {
	t.Parallel()
	var s DigestSet
	want := map[int]bool{}
	for range 200 {
		from, n := rand.IntN(300), rand.IntN(4)
		s = s.Add(append(numbered(from, n), numbered(from, n)...)...)
		for i := range n {
			want[from+i] = true
		}
	}
	same(t, "size", s.Len(), len(want))
	for i := range 310 {
		same(t, "member", s.Has(numbered(i, 1)[0]), want[i])
	}
	other := DigestSet{}.Add(numbered(290, 20)...)
	union := s.Union(other)
	same(t, "union", union.Len() >= len(want) && union.Has(numbered(309, 1)[0]) && union.Has(numbered(0, 1)[0]) == want[0], true)
	same(t, "the set itself is as it was", s.Len(), len(want))

	text := must(json.Marshal(s))
	var back DigestSet
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	sameHex(t, "read again", back.octets, s.octets)
	same(t, "empty", string(must(json.Marshal(DigestSet{}))), `""`)
	same(t, "zero", (DigestSet{}).IsZero() && !s.IsZero(), true)
}

func TestDigestSetRefuses(t *testing.T) {
	t.Parallel()
	a, b := strings.Repeat("A", 42), strings.Repeat("_", 42) // 31.5 octets
	for name, text := range map[string]string{
		"cut off": `"` + a + `"`, "twice": `"` + strings.Repeat("A", 86) + `"`,
		"out of order": `"` + b + "_" + a + "A" + `"`, "a list": `["` + a + `A"]`, "null": `null`, "a number": `1`,
	} {
		s := DigestSet{}
		if err := s.UnmarshalJSON([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzDigestSet(f *testing.F) {
	f.Add(must(json.Marshal(DigestSet{}.Add(numbered(0, 3)...))))
	f.Fuzz(func(t *testing.T, text []byte) {
		var s DigestSet
		if s.UnmarshalJSON(text) != nil {
			return
		}
		again := DigestSet{}
		for i := range s.Len() {
			same(t, "member", s.Has(s.at(i)), true)
			again = again.Add(s.at(i))
		}
		sameHex(t, "made again", again.octets, s.octets)
	})
}

// BenchmarkHistoryFull looks whether a connection is an old one where as many were replaced as are remembered, and takes
// it into use.
func BenchmarkHistoryFull(b *testing.B) {
	a, d := newAccount(b, mesh.G1), newDevice(b, mesh.G1, nil)
	h := (&History{Superseded: DigestSet{}.Add(numbered(0, MaxDigests-100)...)}).Adopt(a.connect(b, d, Rights{}), nil)
	next := a.connect(b, d, Rights{})
	b.Run("check", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := h.Check(next, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("adopt", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h.Adopt(next, nil)
		}
	})
}
