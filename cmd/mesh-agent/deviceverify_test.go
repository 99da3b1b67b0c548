package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// runProgram runs a command line in this process.
func runProgram(t *testing.T, stdin []byte, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, talk bytes.Buffer
	code = run(t.Context(), args, world{bytes.NewReader(stdin), &out, &talk, func(string) string { return "" }})
	return out.String(), talk.String(), code
}

// publishedFixtures returns the files of published data that match a pattern, at least n.
func publishedFixtures(t *testing.T, pattern string, n int) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../../mesh/testdata", pattern))
	if err != nil || len(files) < n {
		t.Fatalf("%s: %d files, %v; want %d", pattern, len(files), err, n)
	}
	return files
}

func loadFixture(t *testing.T, file string, v any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// TestVerifyPublished verifies published profiles and connections of both generations through
// the program, and refuses a forged one and ones with a signer that is not authorised.
func TestVerifyPublished(t *testing.T) {
	t.Parallel()
	for _, file := range publishedFixtures(t, "profile-device-*.json", 3) {
		var f struct {
			Generation string
			Input      struct{ Envelope json.RawMessage }
			Expect     struct {
				Udf string `json:"profile_udf"`
			}
		}
		loadFixture(t, file, &f)
		out, talk, code := runProgram(t, f.Input.Envelope, "device", "verify", "--json", "--device", f.Expect.Udf)
		if code != 0 || !strings.Contains(out, f.Expect.Udf) || !strings.Contains(out, `"Generation": "`+f.Generation+`"`) {
			t.Errorf("%s: exit %d\n%s%s", file, code, out, talk)
		}
		_, talk, code = runProgram(t, f.Input.Envelope, "device", "verify", "--device", "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA")
		if code != 1 || !strings.Contains(talk, "not the expected one") {
			t.Errorf("%s with another name: exit %d, %s", file, code, talk)
		}
		_, talk, code = runProgram(t, f.Input.Envelope, "device", "verify", "--account", f.Expect.Udf)
		if code != 1 || !strings.Contains(talk, "not the expected one") {
			t.Errorf("%s as an account's: exit %d, %s", file, code, talk)
		}
	}
	for _, file := range publishedFixtures(t, "forged-profile-*.json", 1) {
		var f struct {
			Input struct{ Envelope json.RawMessage }
		}
		loadFixture(t, file, &f)
		out, talk, code := runProgram(t, f.Input.Envelope, "device", "verify")
		if code != 1 || out != "" || !strings.Contains(talk, "bad profile") {
			t.Errorf("%s: exit %d\n%s%s", file, code, out, talk)
		}
	}
	for _, file := range publishedFixtures(t, "connection-chain-*.json", 3) {
		var f struct {
			Input  struct{ CatalogedDevice json.RawMessage }
			Expect struct {
				Account string `json:"account_udf"`
				Device  string `json:"device_udf"`
			}
		}
		loadFixture(t, file, &f)
		out, talk, code := runProgram(t, f.Input.CatalogedDevice, "device", "verify", "--account", f.Expect.Account, "--device", f.Expect.Device)
		if unnamed := strings.Contains(talk, "ProfileUdf: it is missing"); unnamed {
			out, talk, code = runProgram(t, f.Input.CatalogedDevice, "device", "verify", "--allow-unnamed-account", "--account", f.Expect.Account, "--device", f.Expect.Device)
		}
		if code != 0 || !strings.Contains(out, f.Expect.Device) {
			t.Errorf("%s: exit %d\n%s%s", file, code, out, talk)
		}
		_, talk, code = runProgram(t, f.Input.CatalogedDevice, "device", "verify", "--account", f.Expect.Device)
		if code != 1 || !strings.Contains(talk, "verify step 1 account profile") {
			t.Errorf("%s with another account: exit %d, %s", file, code, talk)
		}
	}
}

// TestVerifyHistoric has the connections of 2020 and 2021, which a key signed that the account's profile
// does not list.
func TestVerifyHistoric(t *testing.T) {
	t.Parallel()
	for _, file := range publishedFixtures(t, "activation-e2e-*.json", 8) {
		var f struct {
			Input map[string]json.RawMessage
		}
		loadFixture(t, file, &f)
		entry := map[string]any{
			"EnvelopedProfileUser": f.Input["EnvelopedProfileUser"], "EnvelopedProfileDevice": f.Input["EnvelopedProfileDevice"],
			"EnvelopedConnectionUser": f.Input["EnvelopedConnection"], "EnvelopedActivationDevice": f.Input["EnvelopedActivationDevice"],
		}
		entry["DeviceUdf"] = headerID(t, f.Input["EnvelopedProfileDevice"])
		text, err := json.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		_, talk, code := runProgram(t, text, "device", "verify")
		if code != 1 || !strings.Contains(talk, "verify step 3 connection signature") {
			t.Errorf("%s: exit %d, %s", file, code, talk)
		}
	}
}

// headerID is the EnvelopeId of an envelope.
func headerID(t *testing.T, envelope json.RawMessage) string {
	t.Helper()
	var parts []json.RawMessage
	var header struct {
		ID string `json:"EnvelopeId"`
	}
	if err := json.Unmarshal(envelope, &parts); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(parts[0], &header); err != nil {
		t.Fatal(err)
	}
	return header.ID
}
