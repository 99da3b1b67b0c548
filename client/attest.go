package client

import (
	"context"

	"github.com/mesh-agent/mesh-agent/mesh"
)

// AttestIdentify returns the document of what a token's device is known by.
func (c *Client) AttestIdentify(ctx context.Context, tokenName string) ([]byte, error) {
	out, err := fetch[mesh.AttestIdentifyResponse](ctx, c, mesh.TagAttestIdentifyRequest,
		mesh.AttestIdentifyRequest{Token: tokenName}, mesh.TagAttestIdentifyResponse)
	if err != nil {
		return nil, err
	}
	return out.Identity, nil
}

// AttestAnswer returns the document that answers a challenge: the proof that a key is in its
// token. pcrs is a selection such as "sha256:0,7", or empty.
func (c *Client) AttestAnswer(ctx context.Context, keyID string, challenge []byte, pcrs string) ([]byte, error) {
	out, err := fetch[mesh.AttestAnswerResponse](ctx, c, mesh.TagAttestAnswerRequest,
		mesh.AttestAnswerRequest{KeyId: keyID, Challenge: challenge, PCRs: pcrs}, mesh.TagAttestAnswerResponse)
	if err != nil {
		return nil, err
	}
	return out.Answer, nil
}
