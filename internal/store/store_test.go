package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain has the tests' folders be this user's alone, as a state folder must be, whatever the umask is.
func TestMain(m *testing.M) {
	syscall.Umask(0o077)
	os.Exit(m.Run())
}

const (
	udfA = "MB2G-XH44-3CCD-5EFG-6HIJ-7KLM-2NOP"
	udfB = "MC2G-XH44-3CCD-5EFG-6HIJ-7KLM-2NOP"
)

func testRecord(udf string) *Record {
	return &Record{
		Version: Version, Udf: udf, Algorithm: "X448", Use: "split",
		Public: Binary{1, 2, 3}, Label: "für zwei",
		Created: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		ShareTo: []PublicKey{{"X25519", Binary{4, 5}}, {"X448", Binary{6}}},
		Parts: []Part{
			{Token: "tpm", Handle: Binary{7, 8, 9}, Public: Binary{1}, Protection: "token"},
			{Token: "soft", Handle: Binary{10}, Public: Binary{2}, Protection: "software", Imported: true},
		},
	}
}

func openStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStore(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	s := openStore(t, dir)
	if records, problems, err := s.Load(); len(records) != 0 || len(problems) != 0 || err != nil {
		t.Errorf("a new store has %v, %v, %v", records, problems, err)
	}
	a, b := testRecord(udfA), testRecord(udfB)
	for _, r := range []*Record{b, a} {
		if err := s.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	b.Label = "changed"
	if err := s.Put(b); err != nil {
		t.Fatal(err)
	}
	if err := s.Free(udfB); !errors.Is(err, ErrExists) {
		t.Errorf("Free of a UDF that has a record: %v, want ErrExists", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	defer s.Close()
	records, problems, err := s.Load()
	if err != nil || len(problems) != 0 || !reflect.DeepEqual(records, []Record{*a, *b}) {
		t.Fatalf("loaded %+v, %v, %v", records, problems, err)
	}
	if err := s.Remove(udfA); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(udfA); !errors.Is(err, ErrNotFound) {
		t.Errorf("second Remove: %v", err)
	}
	if err := s.Free(udfA); err != nil {
		t.Errorf("Free: %v", err)
	}
	if records, _, _ := s.Load(); len(records) != 1 || records[0].Udf != udfB {
		t.Errorf("after Remove: %+v", records)
	}
}

func TestLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	_, err := Open(dir)
	var locked *LockedError
	if !errors.As(err, &locked) {
		t.Fatalf("second Open: %v, want a LockedError", err)
	}
	if locked.PID != os.Getpid() || locked.Command == "" || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("holder is %+v (%v), want process %d", locked, err, os.Getpid())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := openStore(t, dir).Close(); err != nil { // a stale lock file is no lock
		t.Fatal(err)
	}
}

func TestLockedByUnknown(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "nonsense", "-5\n", "0", strings.Repeat("9", 100)} {
		dir := t.TempDir()
		s := openStore(t, dir)
		if err := os.WriteFile(filepath.Join(dir, lockName), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir)
		var locked *LockedError
		if !errors.As(err, &locked) || locked.PID != 0 || !strings.Contains(err.Error(), "another process") {
			t.Errorf("lock file %q: %v", text, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefusesSharedFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Open: %v, want fs.ErrPermission", err)
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir)
	if err := s.Put(testRecord(udfA)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	leftover := filepath.Join(dir, keysName, ".tmp-XXXX")
	if err := os.WriteFile(leftover, []byte(`{"Version":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir)
	defer s.Close()
	if _, err := os.Stat(leftover); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the leftover is there: %v", err)
	}
	if records, problems, err := s.Load(); len(records) != 1 || len(problems) != 0 || err != nil {
		t.Errorf("loaded %v, %v, %v", records, problems, err)
	}
}

// TestBadFiles puts one bad file beside a good record: it is a problem, the other loads.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	good, err := testRecord(udfA).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		name string
		data []byte
		want string
	}{
		"name of another key": {udfB + ".json", good, "the record is that of " + udfA},
		"not a UDF":           {"key.json", good, "not the name of a key record"},
		"lower case":          {strings.ToLower(udfB) + ".json", good, "not the name of a key record"},
		"no suffix":           {udfB, good, "not the name of a key record"},
		"backup":              {udfB + ".json.bak", good, "not the name of a key record"},
		"empty":               {udfB + ".json", nil, "malformed JSON"},
		"too large":           {udfB + ".json", bytes.Repeat([]byte(" "), MaxRecord+1), "larger than"},
	}
	for what, c := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, t.TempDir())
			defer s.Close()
			if err := s.Put(testRecord(udfA)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(s.Dir(), keysName, c.name)
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			records, problems, err := s.Load()
			if err != nil || len(records) != 1 || records[0].Udf != udfA {
				t.Fatalf("loaded %+v, %v", records, err)
			}
			if len(problems) != 1 || problems[0].File != path || !strings.Contains(problems[0].Error(), c.want) {
				t.Errorf("problems are %v, want one of %s with %q", problems, path, c.want)
			}
		})
	}
}

func TestBadRecords(t *testing.T) {
	t.Parallel()
	good, err := testRecord(udfA).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct{ old, new, want string }{
		"later version":     {`"Version": 1`, `"Version": 2`, "version 2, this program knows 1 only"},
		"version as text":   {`"Version": 1`, `"Version": "1"`, `version "1"`},
		"no version":        {`"Version": 1,`, ``, "Version missing"},
		"unknown member":    {`"Version": 1`, `"Version": 1, "Extra": true`, "Extra"},
		"unknown in part":   {`"Token": "tpm"`, `"Token": "tpm", "Extra": true`, "Extra"},
		"duplicate":         {`"Use": "split"`, `"Use": "split", "Use": "agree"`, "Use"},
		"duplicate in part": {`"Token": "tpm"`, `"Token": "tpm", "Token": "soft"`, "Token"},
		"other case":        {`"Use"`, `"use"`, "use"},
		"no use":            {`"Use": "split",`, ``, "Use: missing"},
		"no algorithm":      {`"Algorithm": "X448",`, ``, "Algorithm: missing"},
		"no date":           {`"Created": "2026-03-01T12:00:00Z",`, ``, "no member Created"},
		"no handle":         {`"Handle": "BwgJ",`, ``, "Parts: Handle: missing"},
		"no protection":     {`"Protection": "token"`, `"Protection": ""`, "Parts: Protection: missing"},
		"path as UDF":       {udfA, "../../../../../../../../etc/passwd", "Udf"},
		"bad base64":        {`"BwgJ"`, `"Bw=="`, "base64url"},
		"null octets":       {`"BwgJ"`, `null`, "Handle"},
		"control in label":  {"für zwei", `a\u001b[31mb`, "label: not printable"},
		"long label":        {"für zwei", strings.Repeat("a", MaxLabel+1), "label of more than"},
		"trailing":          {"}\n", "}\n{}", "malformed JSON"},
	}
	for what, c := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			bad := strings.Replace(string(good), c.old, c.new, 1)
			if what == "trailing" {
				bad = string(good) + "{}"
			}
			if bad == string(good) {
				t.Fatal("the case changes nothing")
			}
			r, err := ParseRecord([]byte(bad))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v; want an error with %q", r, err, c.want)
			}
		})
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	cases := map[string]func(*Record){
		"version":     func(r *Record) { r.Version = 2 },
		"udf":         func(r *Record) { r.Udf = "x" },
		"udf path":    func(r *Record) { r.Udf = "MB2G-XH44-3CCD-5EFG-6HIJ-7KLM-../P" },
		"no parts":    func(r *Record) { r.Parts = nil },
		"many parts":  func(r *Record) { r.Parts = make([]Part, MaxParts+1) },
		"many shares": func(r *Record) { r.ShareTo = make([]PublicKey, MaxShareTo+1) },
		"handle":      func(r *Record) { r.Parts[0].Handle = make(Binary, MaxHandle+1) },
		"public":      func(r *Record) { r.Public = make(Binary, maxPublic+1) },
		"token":       func(r *Record) { r.Parts[0].Token = strings.Repeat("t", maxWord+1) },
		"whole": func(r *Record) {
			for range 4 {
				r.Parts = append(r.Parts, Part{Token: "t", Handle: make(Binary, MaxHandle), Public: Binary{1}, Protection: "p"})
			}
		},
	}
	s := openStore(t, t.TempDir())
	defer s.Close()
	for what, change := range cases {
		r := testRecord(udfA)
		change(r)
		if err := s.Put(r); err == nil {
			t.Errorf("%s: the record was written", what)
		}
	}
	if records, problems, err := s.Load(); len(records)+len(problems) != 0 || err != nil {
		t.Errorf("refused records left %v, %v, %v", records, problems, err)
	}
	for _, udf := range []string{"", "../" + udfA, udfA + "/x"} {
		if err := s.Remove(udf); !errors.Is(err, ErrNotFound) {
			t.Errorf("Remove(%q): %v", udf, err)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	good, err := testRecord(udfA).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"Version":1}`))
	f.Add([]byte(`{"Version":2,"Anything":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecord(data)
		if err != nil {
			return
		}
		out, err := r.Marshal()
		if err != nil {
			t.Fatalf("a record that was read is not written: %v", err)
		}
		again, err := ParseRecord(out)
		if err != nil {
			t.Fatalf("a record that was written is not read: %v", err)
		}
		if !r.Created.Equal(again.Created) {
			t.Fatalf("Created: %v became %v", r.Created, again.Created)
		}
		again.Created = r.Created
		if !reflect.DeepEqual(r, again) {
			t.Errorf("%+v became %+v", r, again)
		}
	})
}

func BenchmarkParseRecord(b *testing.B) {
	good, err := testRecord(udfA).Marshal()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRecord(good); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	s, err := Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	r := testRecord(udfA)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Put(r); err != nil {
			b.Fatal(err)
		}
	}
}
