package mesh

import (
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

// load reads one file of testdata.
func load[T any](t testing.TB, name string) T {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return v
}

// vectors reads the vectors of one file, of which there must be at least one.
func vectors[T any](t testing.TB, name string) []T {
	t.Helper()
	file := load[struct{ Vectors []T }](t, name)
	if len(file.Vectors) == 0 {
		t.Fatalf("%s has no vectors", name)
	}
	return file.Vectors
}

// fixtures returns the names of the files of testdata that match; at least one must.
func fixtures(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) == 0 {
		t.Fatalf("no fixture matches %s", pattern)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	slices.Sort(names)
	return names
}

// hexOctets are octets that the vectors write in hexadecimal.
type hexOctets []byte

func (h *hexOctets) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func parseKey(t testing.TB, crv string, public []byte) token.PublicKey {
	t.Helper()
	pub, err := PublicParameters{PublicKeyECDH: &PublicKeyECDH{Curve: crv, Public: public}}.PublicKey()
	if err != nil {
		t.Fatalf("%s public key %x: %v", crv, public, err)
	}
	return pub
}

func mustSeed(t testing.TB, text string) *Seed {
	t.Helper()
	s, err := ParseSeed(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func same[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func sameHex(t testing.TB, what string, got, want []byte) {
	t.Helper()
	same(t, what, hex.EncodeToString(got), hex.EncodeToString(want))
}
