package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestGeneration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.ReadGeneration(); !errors.Is(err, ErrNotFound) {
		t.Errorf("ReadGeneration at first: %v, want ErrNotFound", err)
	}
	digest, err := s.Digest()
	if err != nil || len(digest) != DigestLen {
		t.Fatalf("Digest: %x, %v", digest, err)
	}
	if err := s.WriteGeneration(Generation{Number: 7, Records: []Binary{digest}, Key: Binary("k"), MAC: Binary("m")}); err != nil {
		t.Fatal(err)
	}
	g, err := s.ReadGeneration()
	if err != nil || g.Number != 7 || !bytes.Equal(g.Records[0], digest) || string(g.Key) != "k" || string(g.MAC) != "m" {
		t.Errorf("ReadGeneration: %+v, %v", g, err)
	}
	for _, bad := range []string{
		``, `{}`, `{"Version":2,"Number":1,"Records":["AA"]}`, `{"Version":1,"Number":1,"Records":[]}`,
		`{"Version":1,"Number":1,"Records":["AA"]}`,
		`{"Version":1,"Number":1,"Records":["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"],"Key":"AA"}`,
		`{"Version":1,"Number":1,"Records":["AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"],"More":1}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, generationName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if g, err := s.ReadGeneration(); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %+v, %v", bad, g, err)
		}
	}
}

// TestDigest wants DigestAfter to foretell Digest, and Digest to tell every change.
func TestDigest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	seen := map[string]bool{}
	step := func(what string, r *Record, udf string, do func() error) {
		t.Helper()
		foretold, err := s.DigestAfter(udf, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := do(); err != nil {
			t.Fatal(err)
		}
		got, err := s.Digest()
		if err != nil || !bytes.Equal(got, foretold) {
			t.Errorf("%s: digest %x, %v; foretold %x", what, got, err, foretold)
		}
		if seen[string(got)] {
			t.Errorf("%s: the digest was there before", what)
		}
		seen[string(got)] = true
	}
	a, b := testRecord(udfA), testRecord(udfB)
	step("first", a, a.Udf, func() error { return s.Put(a) })
	step("second", b, b.Udf, func() error { return s.Put(b) })
	a.Label = "changed"
	step("changed", a, a.Udf, func() error { return s.Put(a) })
	step("removed", nil, a.Udf, func() error { return s.Remove(a.Udf) })
}
