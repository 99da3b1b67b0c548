package client

import (
	"context"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// Hello asks what the agent is and supports.
func (c *Client) Hello(ctx context.Context) (*mesh.MeshHelloResponse, error) {
	return fetch[mesh.MeshHelloResponse](ctx, c, mesh.TagHelloRequest, mesh.HelloRequest{}, mesh.TagMeshHelloResponse)
}

// Operate sends one or many operations. Results[i] of the response answers Operations[i]; DecodeResult reads it. The
// error is a *StatusError if the request as a whole was refused.
func (c *Client) Operate(ctx context.Context, req *mesh.OperateRequest) (*mesh.OperateResponse, error) {
	out, err := fetch[mesh.OperateResponse](ctx, c, mesh.TagOperateRequest, req, mesh.TagOperateResponse)
	return checkCount(out, len(req.Operations), err)
}

func checkCount(out *mesh.OperateResponse, operations int, err error) (*mesh.OperateResponse, error) {
	if err != nil {
		return nil, err
	}
	if len(out.Results) != operations {
		return nil, fmt.Errorf("%w: %d results for %d operations", ErrProtocol, len(out.Results), operations)
	}
	return out, nil
}

// DecodeResult reads a result into out, a pointer to the mesh.Result type that tag
// names. A result whose Status is not 201 is a *StatusError.
func DecodeResult(result mesh.Tagged, tag string, out any) error {
	if result.Tag != tag && result.Tag != mesh.TagResult {
		return fmt.Errorf("%w: %q instead of %q", ErrProtocol, result.Tag, tag)
	}
	if !succeeded(result.Body) {
		var status mesh.Failure
		if err := lenient(result.Body, &status); err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if status.Status != mesh.StatusOK {
			return &StatusError{Status: status.Status, Text: status.Error}
		}
	}
	if err := result.Decode(out); err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return nil
}

// lenient reads the members that v has and passes over the others.
func lenient(body strictjson.Value, v any) error { return json.Unmarshal(body, v) }

// one does a single operation, whose result is an R.
func one[R any](ctx context.Context, c *Client, operation string, body any, result string) (*R, error) {
	op, err := strictjson.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode operation: %w", err)
	}
	defer clear(op)
	const begin, end = `{"Operations":[`, `]}` // mesh.OperateRequest, written once instead of three times
	request := appendTagged(append(make([]byte, 0, len(op)+len(operation)+len(begin+end)+len(`{"":}`)), begin...), operation, op)
	defer clear(request)
	response, err := ask[mesh.OperateResponse](ctx, c, mesh.TagOperateRequest, append(request, end...), mesh.TagOperateResponse)
	if response, err = checkCount(response, 1, err); err != nil {
		return nil, err
	}
	defer clear(response.Results[0].Body)
	out := new(R)
	if err := DecodeResult(response.Results[0], result, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Sign returns a signature over data, which the agent hashes as the key's algorithm wants
// it. mode is empty for the default; "mesh" or "pure" with Ed25519, "pss" with RSA.
// The signature is RFC 8032 octets, ASN.1 DER (ECDSA) or PKCS #1 octets.
func (c *Client) Sign(ctx context.Context, keyID string, data []byte, mode string) ([]byte, error) {
	return c.SignOperation(ctx, mesh.OperationSign{KeyId: keyID, Data: data, Mode: mode})
}

// SignOperation is Sign with what that cannot say: a PIN for a key that asks each time.
func (c *Client) SignOperation(ctx context.Context, op mesh.OperationSign) ([]byte, error) {
	if op.Data == nil {
		op.Data = []byte{}
	}
	out, err := one[mesh.ResultSign](ctx, c, mesh.TagOperationSign, op, mesh.TagResultSign)
	if err != nil {
		return nil, err
	}
	return out.Signature, nil
}

// Agree multiplies peer by the key, and by coefficient if that is not nil (a scalar in the
// curve's encoding, 1 <= c < L). The result is in signed form: 33, 57, 32, 57, 65, 97, 133 octets.
func (c *Client) Agree(ctx context.Context, keyID string, peer mesh.PublicParameters, coefficient []byte) (mesh.KeyAgreementECDH, error) {
	return c.AgreeOperation(ctx, mesh.OperationKeyAgreement{KeyId: keyID, PublicKey: peer, KeyCoefficient: coefficient})
}

// AgreeOperation is Agree with what that cannot say: a PIN for a key that asks each time.
func (c *Client) AgreeOperation(ctx context.Context, op mesh.OperationKeyAgreement) (mesh.KeyAgreementECDH, error) {
	out, err := one[mesh.ResultKeyAgreement](ctx, c, mesh.TagOperationAgreement, op, mesh.TagResultAgreement)
	if err != nil {
		return mesh.KeyAgreementECDH{}, err
	}
	return out.KeyAgreement.KeyAgreementECDH, nil
}

// Decrypt opens one recipient entry of a DARE envelope, or an RSA ciphertext. The caller wipes the result.
func (c *Client) Decrypt(ctx context.Context, op mesh.OperationDecrypt) (*mesh.ResultDecrypt, error) {
	return one[mesh.ResultDecrypt](ctx, c, mesh.TagOperationDecrypt, op, mesh.TagResultDecrypt)
}

// Generate makes a key with the Mesh's own operation; KeyGenerate can say more.
func (c *Client) Generate(ctx context.Context, op mesh.OperationGenerate) (*mesh.ResultGenerate, error) {
	return one[mesh.ResultGenerate](ctx, c, mesh.TagOperationGenerate, op, mesh.TagResultGenerate)
}

// Share takes a key of use split apart: one enveloped share for each of its recipients,
// in their order, threshold of which are needed. shares is the number of recipients.
func (c *Client) Share(ctx context.Context, keyID string, threshold, shares int) ([]mesh.ResultShareItem, error) {
	body := mesh.OperationShare{KeyId: keyID, Threshold: threshold, Shares: shares}
	out, err := one[mesh.ResultShare](ctx, c, mesh.TagOperationShare, body, mesh.TagResultShare)
	if err != nil {
		return nil, err
	}
	return out.Shares, nil
}
