package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, text string
		want       Config
		wantError  string
	}{
		{name: "empty"},
		{name: "all", text: "state = '/s'\nsoftware-keys = 'passphrase'\ntpm = 'swtpm:/t'",
			want: Config{State: "/s", SoftwareKeys: SoftwareKeysPassphrase, TPM: "swtpm:/t"}},
		{name: "insecure", text: "software-keys = 'insecure'", want: Config{SoftwareKeys: SoftwareKeysInsecure}},
		{name: "unknown key", text: "sofware-keys = 'passphrase'", wantError: `unknown key "sofware-keys"`},
		{name: "unknown table", text: "[tokens]\na = 1", wantError: "unknown key"},
		{name: "unknown kind", text: "software-keys = 'yes'", wantError: `software-keys is "yes"`},
		{name: "wrong type", text: "software-keys = true", wantError: "incompatible types"},
		{name: "twice", text: "tpm = 'a'\ntpm = 'b'", wantError: "already been defined"},
		{name: "not toml", text: "tpm", wantError: "toml"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := Parse([]byte(test.text))
			if test.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantError) {
					t.Fatalf("error %v, want one with %q", err, test.wantError)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Fatalf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.toml")
	if _, err := Load(path); err == nil {
		t.Error("Load of a missing file succeeded")
	}
	if c, err := LoadDefault(path); err != nil || !reflect.DeepEqual(c, Config{}) {
		t.Errorf("LoadDefault of a missing file: %+v, %v", c, err)
	}
	if err := os.WriteFile(path, []byte("tpn = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadDefault(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v does not name the file", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("tpm = 'off'"))
	f.Add([]byte("software-keys = 'passphrase'\nstate = \"/var/lib\""))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := Parse(text); err != nil && err.Error() == "" {
			t.Error("error without text")
		}
	})
}
