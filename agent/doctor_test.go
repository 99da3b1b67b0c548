package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// patient is a token with a finding of its own.
type patient struct{ *tokentest.Fake }

func (patient) Diagnose(context.Context) []token.Finding {
	return []token.Finding{{Severity: token.SeverityWarning, Text: "it is warm", Mend: "cool it"}}
}

// TestListsFit has more problems, findings and prompts than a frame holds.
func TestListsFit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		name := fmt.Sprintf("%s%04d.json", strings.Repeat("M", 190), i)
		if err := os.WriteFile(filepath.Join(dir, "keys", name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	st, err := store.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(st, newFake("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	a := New(Config{Keyring: ring, Prompter: askingNobody{}})
	for range 2000 {
		a.wait(&wait{&plea{request: &request{Agent: a}}, keyring.Need{Token: strings.Repeat("t", 200)}})
	}
	if n := len(ring.Snapshot().Problems()); n < 900 {
		t.Fatalf("%d problems", n)
	}
	status := operateJSON(t, a, `{"StatusRequest":{}}`)
	if !strings.Contains(status, fmt.Sprintf(`"and %d more"`, len(ring.Snapshot().Problems())-maxListed)) || strings.Count(status, `"PID":0`) != maxListed {
		t.Errorf("status: %.300s", status)
	}
	if found := operateJSON(t, a, `{"DoctorRequest":{}}`); !strings.Contains(found, " more findings") {
		t.Errorf("doctor: %.300s", found)
	}
}

// askingNobody is a Prompter that nobody answers.
type askingNobody struct{}

func (askingNobody) PIN(context.Context, prompt.Question) ([]byte, error) {
	return nil, prompt.ErrNoAnswer
}
func (askingNobody) Confirm(context.Context, prompt.Question) error { return prompt.ErrNoAnswer }
func (askingNobody) Program() string                                { return "/none" }
func (askingNobody) Test(context.Context) (string, error)           { return "nobody", nil }

func TestDoctor(t *testing.T) {
	t.Parallel()
	absent, replaced, locked := newFake("absent"), newFake("replaced"), tokentest.NewFake(tokentest.FakeOptions{Name: "locked", PIN: []byte("1")})
	absent.SetState(token.StateAbsent)
	replaced.SetState(token.StateReplaced)
	tpm := tokentest.NewSealingFake(tokentest.FakeOptions{Name: "tpm", Kind: "tpm", Algorithms: []token.Algorithm{token.P256}})
	a := newAgent(t, Limits{}, newFake("soft"), absent, replaced, locked, patient{newFake("warm")}, tpm)
	e, _, err := a.ring.GenerateSealed(t.Context(), nil, sealedSpec())
	if err != nil {
		t.Fatal(err)
	}
	tpm.SetPCRs("updated")
	if err := a.ring.Lock(t.Context(), nil, "tpm"); err != nil { // so that it must be opened again
		t.Fatal(err)
	}
	operateResult(t, a, `{"CryptographicOperationSign":{"KeyId":"`+e.Udf+`","Data":"AA"}}`)

	got := manage[mesh.DoctorResponse](t, a, `{"DoctorRequest":{}}`, "DoctorResponse")
	var lines []string
	for _, f := range got.Findings {
		lines = append(lines, f.Severity+" "+f.About+": "+f.Text)
		if (f.Mend == "") != (f.Severity == "info") {
			t.Errorf("%+v", f)
		}
	}
	text := strings.Join(lines, "\n") + "\n"
	for _, want := range []string{
		"info token soft: ready", "error token absent: absent", "error token replaced: replaced", "info token locked: locked",
		"warning token warm: it is warm\n", "info token tpm: ready", "error key " + e.Udf + ": unreadable: platform state has changed: PCRs sha256:7\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not among\n%s", want, text)
		}
	}
	if len(lines) != 7 {
		t.Errorf("%d findings:\n%s", len(lines), text)
	}
}
