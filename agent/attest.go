package agent

import (
	"context"
	"errors"

	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// attestIdentify answers AttestIdentifyRequest.
func (r *request) attestIdentify(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.AttestIdentifyRequest
	if err := r.decodeManage(mesh.TagAttestIdentifyRequest, body, &req); err != nil {
		return nil, err
	}
	t, err := r.namedToken(req.Token)
	if err != nil {
		return nil, err
	}
	attester, ok := t.(token.Attester)
	if !ok {
		return nil, &failure{statusUnsupported, "this token cannot attest"}
	}
	var id token.AttestIdentity
	err = r.ring.InTurn(ctx, r.manageGate, req.Token, func(ctx context.Context) (err error) {
		id, err = attester.AttestIdentity(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	document, err := attest.NewIdentity(id).Marshal()
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(mesh.AttestIdentifyResponse{Reply: accepted, Identity: document})
}

// attestAnswer answers AttestAnswerRequest.
func (r *request) attestAnswer(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.AttestAnswerRequest
	if err := r.decodeManage(mesh.TagAttestAnswerRequest, body, &req); err != nil {
		return nil, err
	}
	challenge, err := attest.ParseChallenge(req.Challenge)
	if err != nil {
		return nil, malformed("Challenge", "%v", err)
	}
	if req.PCRs != "" {
		if _, err := token.ParsePCRs(req.PCRs); err != nil {
			return nil, malformed("PCRs", "a selection such as sha256:0,7 expected")
		}
	}
	if req.KeyId == "" {
		return nil, malformed("KeyId", "missing")
	}
	key, err := r.ring.Snapshot().Find(req.KeyId)
	if err != nil {
		return nil, keyError(err)
	}
	answer, err := r.makeAnswer(ctx, key, challenge, req.PCRs)
	if err != nil {
		return nil, err
	}
	document, err := answer.Marshal()
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(mesh.AttestAnswerResponse{Reply: accepted, Answer: document})
}

// makeAnswer has the key's token prove what is said of the key.
func (r *request) makeAnswer(ctx context.Context, key *keyring.Entry, challenge *attest.Challenge, pcrs string) (*attest.Answer, error) {
	format, err := key.AttestFormat()
	if err != nil {
		return nil, err
	}
	statement, err := attest.NewStatement(format, key.Public, pcrs)
	if err != nil {
		return nil, err
	}
	qualifying, err := statement.Qualifying(challenge)
	if err != nil {
		return nil, err
	}
	evidence, err := key.Attest(ctx, r.manageGate, token.AttestRequest{
		Qualifying: qualifying, PCRs: statement.PCRs, Credential: challenge.Credential,
	})
	if errors.Is(err, token.ErrDecrypt) {
		return nil, malformed("Challenge", "its credential was not made for this device")
	}
	if err != nil {
		return nil, err
	}
	return attest.NewAnswer(statement, evidence)
}
