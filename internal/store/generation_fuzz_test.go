package store

import (
	"bytes"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
)

// FuzzGeneration wants what is read to be what is written.
func FuzzGeneration(f *testing.F) {
	const digest = `"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"`
	for _, seed := range []string{
		`{"Version":1,"Number":1,"Records":[` + digest + `]}`,
		`{"Version":1,"Number":18446744073709551615,"Records":[` + digest + `,` + digest + `],"Key":"AA","MAC":"AA"}`,
		`{}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := parseGeneration(data)
		if err != nil {
			return
		}
		once, err := strictjson.MarshalIndent(g)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseGeneration(once)
		if err != nil {
			t.Fatalf("%s does not read again: %v", once, err)
		}
		if twice, err := strictjson.MarshalIndent(again); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%s is written as %s", once, twice)
		}
	})
}
