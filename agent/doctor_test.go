package agent

import (
	"context"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// patient is a token with a finding of its own.
type patient struct{ *tokentest.Fake }

func (patient) Diagnose(context.Context) []token.Finding {
	return []token.Finding{{Severity: token.SeverityWarning, Text: "it is warm", Mend: "cool it"}}
}

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
