package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

func TestExamineSwap(t *testing.T) {
	t.Parallel()
	const title = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
	for table, want := range map[string]int{
		"":    0,
		title: 0,
		title + "/dev/zram0                              partition\t1\t0\t-2\n": 0,
		title + "/dev/dm-1                               partition\t1\t0\t-2\n": 0,
		title + "/swapfile                               file\t1\t0\t-2\n":      1,
	} {
		name := filepath.Join(t.TempDir(), "swaps")
		if err := os.WriteFile(name, []byte(table), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := examineSwap(name); len(got) != want {
			t.Errorf("%q: %+v", table, got)
		}
	}
	if got := examineSwap(filepath.Join(t.TempDir(), "none")); got != nil {
		t.Errorf("no table: %+v", got)
	}
}

func TestExamineSpace(t *testing.T) {
	t.Parallel()
	for free, want := range map[uint64]string{0: "error", noSpace - 1: "error", noSpace: "warning", lowSpace - 1: "warning", lowSpace: ""} {
		var got string
		for _, f := range examineSpace("/state", free) {
			got += f.Severity
		}
		if got != want {
			t.Errorf("%d octets: %q, want %q", free, got, want)
		}
	}
}

func TestMissingTPM(t *testing.T) {
	t.Parallel()
	device := filepath.Join(t.TempDir(), "tpmrm0")
	if f := missingTPM(device); !strings.Contains(f.Text, "shows no TPM 2.0") || f.Mend == "" {
		t.Errorf("no device: %+v", f)
	}
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := missingTPM(device); !strings.Contains(f.Text, "is there and not used") {
		t.Errorf("a device: %+v", f)
	}
}

// TestExamineAgent has an agent of another version, without a TPM, that ssh does not ask, and one in which all is as it should be.
func TestExamineAgent(t *testing.T) {
	t.Parallel()
	about := func(env string, s mesh.StatusResponse) (out []string) {
		a := &app{world: world{getenv: func(string) string { return env }}}
		for _, f := range a.examineAgent(s) {
			out = append(out, f.Severity+" "+f.About)
		}
		return out
	}
	folder := t.TempDir()
	got := about(filepath.Join(folder, "other"), mesh.StatusResponse{Build: "v0.0.1", SSH: filepath.Join(folder, "ssh.sock")})
	if want := []string{"info agent", "warning agent", "info token tpm", "info SSH_AUTH_SOCK"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	got = about(folder, mesh.StatusResponse{Build: build(), SSH: folder, Tokens: []mesh.TokenInfo{{Name: "tpm"}}})
	if want := []string{"info agent"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

// TestFindingsOfTokens has a token whose label is made for the terminal.
func TestFindingsOfTokens(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &app{world: world{stdout: &out}}
	if err := a.printFindings([]mesh.Finding{finding(token.SeverityInfo, "token hsm", "", "Maker\x1b[2J\nall is well")}); err != nil {
		t.Fatal(err)
	}
	if want := "info     token hsm: Maker\\u001b[2J; all is well\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	warning, wrong := mesh.Finding{Severity: "warning"}, mesh.Finding{Severity: "error"}
	for _, c := range []struct {
		findings []mesh.Finding
		want     string
	}{
		{nil, ""},
		{[]mesh.Finding{warning}, ""},
		{[]mesh.Finding{wrong, warning}, "one thing"},
		{[]mesh.Finding{wrong, wrong}, "2 things"},
	} {
		err := verdict(c.findings)
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.findings, err, c.want)
		}
	}
}

func TestPINCredential(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"tpm": "tpm-pin", "piv:12345678": "piv-12345678-pin", "pkcs11:token=a%20b": "pkcs11-token-a-20b-pin"} {
		if got := pinCredential(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
