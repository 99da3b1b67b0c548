package agent

import (
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

func sealingAgent(t *testing.T) (*Agent, *tokentest.SealingFake) {
	t.Helper()
	tpm := tokentest.NewSealingFake(tokentest.FakeOptions{Name: "tpm", Kind: "tpm", Algorithms: []token.Algorithm{token.P256}})
	return newAgent(t, Limits{}, newFake("soft"), tpm), tpm
}

// manage sends a management message and decodes its reply.
func manage[T any](t *testing.T, a *Agent, request, tag string) (out T) {
	t.Helper()
	if err := strictjson.Unmarshal(body(t, operateJSON(t, a, request), tag), &out); err != nil {
		t.Fatalf("%s: %v", request, err)
	}
	return out
}

func TestHomeRefused(t *testing.T) {
	t.Parallel()
	a, tpm := sealingAgent(t)
	const rest = `"Algorithm":"Ed448","Use":"sign"`
	for home, want := range map[string]string{
		``:                               "400 Token: missing",
		`"Token":"soft","SealTo":"tpm",`: "400 SealTo: either Token or SealTo expected",
		`"Token":"none",`:                `404 Token: no token is named "none"`,
		`"SealTo":"none",`:               `404 SealTo: no token is named "none"`,
		`"SealTo":"soft",`:               "501 ",
		`"Token":"tpm",`:                 "501 ",
		`"Token":"soft","PCRs":"7",`:     "400 PCRs: only with SealTo",
		`"SealTo":"tpm","PIN":"never",`:  `400 PIN: "none", "once" or "always" expected`,
		`"SealTo":"tpm","Touch":"x",`:    `400 Touch: "never", "cached" or "always" expected`,
		`"SealTo":"tpm","PIN":"always",`: "501 ",
		`"SealTo":"tpm",`:                "401 pin needed (PIN)",
	} {
		r := manage[mesh.KeyResponse](t, a, `{"KeyGenerateRequest":{`+home+rest+`}}`, "KeyGenerateResponse")
		status, text, _ := strings.Cut(want, " ")
		if got := itoa(r.Status); got != status || !strings.HasPrefix(r.StatusDescription, text) {
			t.Errorf("%s: %d %s, want %s", home, r.Status, r.StatusDescription, want)
		}
	}
	if len(a.ring.Snapshot().Entries()) != 0 || tpm.Calls(tokentest.OpUnseal) != 0 {
		t.Error("a key was made")
	}
}

func itoa(n int) string {
	return string([]byte{byte('0' + n/100), byte('0' + n/10%10), byte('0' + n%10)})
}

// TestSealedToPCRs follows a key through an update of the platform.
func TestSealedToPCRs(t *testing.T) {
	t.Parallel()
	a, tpm := sealingAgent(t)
	made := manage[mesh.KeyResponse](t, a,
		`{"KeyGenerateRequest":{"SealTo":"tpm","PIN":"none","PCRs":"sha256:7,14","Algorithm":"Ed448","Use":"sign"}}`, "KeyGenerateResponse")
	if made.Status != 201 || len(made.Recovery) == 0 {
		t.Fatalf("%+v", made)
	}
	k := made.Key
	if k.Protection != "sealed+PCR" || k.PIN != "none" || k.PCRs != "sha256:7,14" || k.Token != "tpm" {
		t.Errorf("%+v", k)
	}
	reseal := func(members string) mesh.KeyResponse {
		t.Helper()
		return manage[mesh.KeyResponse](t, a, `{"KeyResealRequest":{"KeyId":"`+k.Udf+`"`+members+`}}`, "KeyResealResponse")
	}
	tpm.SetPCRs("updated")
	if r := reseal(""); r.Status != 409 || !strings.Contains(r.StatusDescription, "sha256:7,14") {
		t.Errorf("reseal without recovery: %+v", r)
	}
	encoded, err := strictjson.Marshal(made.Recovery)
	if err != nil {
		t.Fatal(err)
	}
	again := reseal(`,"PCRs":"sha256:7","Recovery":` + string(encoded))
	if again.Status != 201 || len(again.Recovery) == 0 || again.Key.PCRs != "sha256:7" || again.Key.Udf != k.Udf {
		t.Errorf("reseal: %+v", again)
	}
	if r := manage[mesh.KeyListResponse](t, a, `{"KeyListRequest":{}}`, "KeyListResponse"); len(r.Keys) != 1 || r.Keys[0].State != "" {
		t.Errorf("list: %+v", r)
	}
}

func TestTokenPIN(t *testing.T) {
	t.Parallel()
	a, _ := sealingAgent(t)
	for _, c := range []struct{ tag, members, want string }{
		{"TokenSetPIN", `"Token":"tpm"`, "400 PIN: missing"},
		{"TokenSetPIN", `"PIN":"MTIzNA"`, "400 Token: missing"},
		{"TokenSetPIN", `"Token":"none","PIN":"MTIzNA"`, "404 "},
		{"TokenSetPIN", `"Token":"soft","PIN":"MTIzNA"`, "501 "},
		{"TokenSetPIN", `"Token":"tpm","PIN":"MTIzNA"`, "201 "},
		{"TokenSetPIN", `"Token":"tpm","PIN":"NTY3OA"`, "401 pin needed"},
		{"TokenSetPIN", `"Token":"tpm","PIN":"NTY3OA","Old":"OTk5OQ"`, "401 pin wrong, 2 left"},
		{"TokenSetPIN", `"Token":"tpm","PIN":"NTY3OA","Old":"MTIzNA"`, "201 "},
		{"TokenLock", `"Token":"tpm"`, "201 "},
		{"TokenLock", `"Token":"soft"`, "501 "},
		{"TokenLock", ``, "400 Token: missing"},
		{"TokenUnlock", `"Token":"tpm","PIN":"MTIzNA"`, "401 pin wrong"},
		{"TokenUnlock", `"Token":"tpm","PIN":"NTY3OA"`, "201 "},
	} {
		r := manage[mesh.Reply](t, a, `{"`+c.tag+`Request":{`+c.members+`}}`, c.tag+"Response")
		if got := itoa(r.Status) + " " + r.StatusDescription; !strings.HasPrefix(got, c.want) {
			t.Errorf("%s %s: %s, want %s", c.tag, c.members, got, c.want)
		}
	}
}

func sealedSpec() keyring.GenerateSpec {
	return keyring.GenerateSpec{
		Token: "tpm", Algorithm: token.Ed448, Use: token.UseSign, Policy: token.Policy{PIN: token.PINNever}, PCRs: "sha256:7",
	}
}
