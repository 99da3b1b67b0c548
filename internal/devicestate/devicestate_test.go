package devicestate

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

func open(t *testing.T) (*Folder, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "device")
	f, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, dir
}

// do makes a change, and looks whether it was foreseen.
func do(t *testing.T, f *Folder, c *Change, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	before, err := f.Digest()
	if err != nil {
		t.Fatal(err)
	}
	after, err := c.After()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Do(); err != nil {
		t.Fatal(err)
	}
	if now, err := f.Digest(); err != nil || !bytes.Equal(now, after) || bytes.Equal(now, before) {
		t.Errorf("digest %x, %v, want %x and not %x", now, err, after, before)
	}
}

func TestDevice(t *testing.T) {
	t.Parallel()
	f, _ := open(t)
	if _, err := f.Device(); !errors.Is(err, ErrNotFound) {
		t.Errorf("Device of an empty folder: %v", err)
	}
	want := &Device{
		Generation: "g2", Tier: "sealed", Home: Home{SealTo: "tpm"}, Profile: strictjson.Value(`[{"dig":"S512"},""]`),
		Keys:     []Key{{Name: "Encryption", Udf: "MAAA", Own: true}},
		Pins:     []Pin{{Udf: "MBBB", Approved: time.Unix(1, 0).UTC(), Unused: true}},
		Accounts: []Membership{{Udf: "MBBB", Active: true, History: device.History{Current: []mesh.Binary{make(mesh.Binary, 64)}, Frame: &device.Frame{Index: 1}}}},
	}
	change, err := f.PutDevice(want)
	do(t, f, change, err)
	got, err := f.Device()
	if err != nil {
		t.Fatal(err)
	}
	if got.Profile = nil; got.Tier != "sealed" || !reflect.DeepEqual(got.Accounts, want.Accounts) || !reflect.DeepEqual(got.Pins, want.Pins) {
		t.Errorf("Device is %+v", got)
	}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	f, dir := open(t)
	for _, udf := range []string{"MB-2", "MA-1"} {
		change, err := f.PutAccount(&Account{Generation: "g1", Udf: udf, Profile: strictjson.Value(`[]`)})
		do(t, f, change, err)
	}
	accounts, err := f.Accounts()
	if err != nil || len(accounts) != 2 || accounts[0].Udf != "MA-1" {
		t.Fatalf("Accounts: %+v, %v", accounts, err)
	}
	do(t, f, f.RemoveAccount("MB-2"), nil)
	if accounts, err := f.Accounts(); err != nil || len(accounts) != 1 {
		t.Fatalf("Accounts after removal: %+v, %v", accounts, err)
	}
	for name, text := range map[string]string{
		"another version": `{"Version":1,"Generation":"g1","Udf":"MA-1","Profile":[]}`,
		"another name":    `{"Version":2,"Generation":"g1","Udf":"MC-3","Profile":[]}`,
		"unknown member":  `{"Version":2,"Generation":"g1","Udf":"MA-1","Profile":[],"Extra":1}`,
		"no profile":      `{"Version":2,"Generation":"g1","Udf":"MA-1"}`,
		"no generation":   `{"Version":2,"Udf":"MA-1","Profile":[]}`,
		"trailing":        `{"Version":2,"Generation":"g1","Udf":"MA-1","Profile":[]} {}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, "account-MA-1.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Accounts(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestDeviceRefused reads files that somebody else has written.
func TestDeviceRefused(t *testing.T) {
	t.Parallel()
	f, dir := open(t)
	for name, c := range map[string]struct {
		history string
		good    bool
	}{
		"good":             {`{"Current":["` + strings.Repeat("A", 86) + `"],"Superseded":"` + strings.Repeat("A", 43) + `"}`, true},
		"digest cut off":   {`{"Current":["AA"]}`, false},
		"no digest":        {`{"Current":[""]}`, false},
		"set cut off":      {`{"Superseded":"AA"}`, false},
		"unknown member":   {`{"Extra":1}`, false},
		"no history":       {`null`, true},
		"an earlier list":  {`{"Superseded":[]}`, false},
		"frame of no kind": {`{"Frame":1}`, false},
	} {
		text := `{"Version":2,"Generation":"g1","Tier":"sealed","Home":{},"Profile":[],"Keys":[],"Accounts":[{"Udf":"MA-1","History":` + c.history + `}]}`
		if err := os.WriteFile(filepath.Join(dir, "device.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Device(); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
