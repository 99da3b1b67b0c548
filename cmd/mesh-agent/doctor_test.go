package main

import (
	"bytes"
	"os"
	"path/filepath"
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
