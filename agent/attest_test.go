package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// attestingFake is a fake token that attests, and opens the credential "open me".
type attestingFake struct {
	*tokentest.Fake
	err      error
	requests []token.AttestRequest
}

var _ token.Attester = (*attestingFake)(nil)

func (f *attestingFake) AttestFormat() token.AttestFormat { return token.AttestTPM2 }

func (f *attestingFake) AttestIdentity(context.Context) (token.AttestIdentity, error) {
	return token.AttestIdentity{Format: token.AttestTPM2, AttestationKey: []byte("key"), Endorsement: []byte("ek")}, f.err
}

func (f *attestingFake) Attest(_ context.Context, req token.AttestRequest) (token.AttestEvidence, error) {
	f.requests = append(f.requests, req)
	e := token.AttestEvidence{Format: token.AttestTPM2, Key: []byte("area"), AttestationKey: []byte("key"), Certify: []byte("attest"), Signature: []byte("signature")}
	if len(req.Credential) != 0 {
		e.Secret = []byte("secret")
	}
	return e, f.err
}

func challengeDocument(t testing.TB) (*attest.Challenge, string) {
	t.Helper()
	c, _, err := attest.NewChallenge(nil, attest.ChallengeOptions{Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	c.Credential = []byte("open me")
	document, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return c, base64.RawURLEncoding.EncodeToString(document)
}

func TestAttest(t *testing.T) {
	t.Parallel()
	tpm := &attestingFake{Fake: tokentest.NewFake(tokentest.FakeOptions{Name: "tpm", Protection: token.ProtectionToken, Algorithms: token.Algorithms()})}
	a := newAgent(t, Limits{}, tpm, newFake("soft"))
	key := generate(t, a, "tpm", token.P256, token.UseSSH)
	c, document := challengeDocument(t)

	id := manage[mesh.AttestIdentifyResponse](t, a, `{"AttestIdentifyRequest":{"Token":"tpm"}}`, mesh.TagAttestIdentifyResponse)
	if parsed, err := attest.ParseIdentity(id.Identity); err != nil || string(parsed.AttestationKey) != "key" {
		t.Errorf("%+v, %v", id, err)
	}

	request := fmt.Sprintf(`{"AttestAnswerRequest":{"KeyId":%q,"Challenge":%q,"PCRs":"sha256:7,0"}}`, key.Udf, document)
	r := manage[mesh.AttestAnswerResponse](t, a, request, mesh.TagAttestAnswerResponse)
	answer, err := attest.ParseAnswer(r.Answer)
	if err != nil {
		t.Fatalf("%+v: %v", r.Reply, err)
	}
	if answer.Statement.Udf != key.Udf || answer.Statement.PCRs != "sha256:0,7" || len(answer.Activation) != 32 || strings.Contains(string(r.Answer), "secret") {
		t.Errorf("%s", r.Answer)
	}
	got := tpm.requests[0]
	want, err := answer.Statement.Qualifying(c)
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Qualifying) != string(want) || string(got.Credential) != "open me" || got.PCRs != "sha256:0,7" ||
		got.Key.Use != token.UseSSH || !got.Key.Public.Equal(key.Public) || len(got.Key.Associated) == 0 {
		t.Errorf("%+v", got)
	}
}

func TestAttestRefused(t *testing.T) {
	t.Parallel()
	tpm := &attestingFake{Fake: tokentest.NewFake(tokentest.FakeOptions{Name: "tpm", Protection: token.ProtectionToken, Algorithms: token.Algorithms()})}
	a := newAgent(t, Limits{}, tpm, newFake("soft"))
	inside := generate(t, a, "tpm", token.P256, token.UseSign).Udf
	outside := generate(t, a, "soft", token.Ed25519, token.UseSign).Udf
	_, document := challengeDocument(t)
	answer := func(key, challenge, more string) string {
		return fmt.Sprintf(`{"AttestAnswerRequest":{"KeyId":%q,"Challenge":%q%s}}`, key, challenge, more)
	}
	for _, test := range []struct {
		request string
		err     error
		status  int
		text    string
	}{
		{`{"AttestIdentifyRequest":{"Token":""}}`, nil, 400, "Token: missing"},
		{`{"AttestIdentifyRequest":{"Token":"none"}}`, nil, 404, "Token: "},
		{`{"AttestIdentifyRequest":{"Token":"soft"}}`, nil, 501, "this token cannot attest"},
		{`{"AttestIdentifyRequest":{"Token":"tpm"}}`, token.ErrAbsent, 503, ""},
		{answer("", document, ""), nil, 400, "KeyId: missing"},
		{answer("MAAA", document, ""), nil, 400, "KeyId: "},
		{answer("MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA", document, ""), nil, 404, "no such key"},
		{answer(inside, "", ""), nil, 400, "Challenge: "},
		{answer(inside, "e30", ""), nil, 400, "Challenge: "},
		{answer(inside, document, `,"PCRs":"7"`), nil, 400, "PCRs: "},
		{answer(inside, document, `,"Nonce":"AA"`), nil, 400, "Nonce: unknown member"},
		{answer(outside, document, ""), nil, 501, ""},
		{answer(inside, document, ""), token.ErrDecrypt, 400, "Challenge: its credential was not made for this device"},
		{answer(inside, document, ""), &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: token.TriesUnknown}, 401, "pin needed"},
		{answer(inside, document, ""), errors.New("odd"), 500, "incident "},
	} {
		tpm.err = test.err
		tag := mesh.TagAttestAnswerResponse
		if strings.Contains(test.request, "Identify") {
			tag = mesh.TagAttestIdentifyResponse
		}
		r := manage[reply](t, a, test.request, tag)
		if r.Status != test.status || !strings.HasPrefix(r.StatusDescription, test.text) {
			t.Errorf("%.60s: %d %s, want %d %s", test.request, r.Status, r.StatusDescription, test.status, test.text)
		}
	}
}
