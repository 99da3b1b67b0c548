package client

import (
	"context"
	"fmt"

	"github.com/mesh-agent/mesh-agent/mesh"
)

// KeyGenerate makes a key.
func (c *Client) KeyGenerate(ctx context.Context, req mesh.KeyGenerateRequest) (*mesh.KeyResponse, error) {
	return c.key(ctx, mesh.TagKeyGenerateRequest, req, mesh.TagKeyGenerateResponse)
}

// KeyImport puts an existing key into a token. The caller wipes req.Key and req.Passphrase.
func (c *Client) KeyImport(ctx context.Context, req mesh.KeyImportRequest) (*mesh.KeyResponse, error) {
	return c.key(ctx, mesh.TagKeyImportRequest, req, mesh.TagKeyImportResponse)
}

// KeyDelete deletes a key for good and returns what it was.
func (c *Client) KeyDelete(ctx context.Context, keyID string) (*mesh.KeyResponse, error) {
	return c.key(ctx, mesh.TagKeyDeleteRequest, mesh.KeyDeleteRequest{KeyId: keyID}, mesh.TagKeyDeleteResponse)
}

// key does a request whose response is a KeyResponse with a key.
func (c *Client) key(ctx context.Context, request string, body any, response string) (*mesh.KeyResponse, error) {
	out, err := fetch[mesh.KeyResponse](ctx, c, request, body, response)
	if err != nil {
		return nil, err
	}
	if out.Key == nil {
		return nil, fmt.Errorf("%w: no key", ErrProtocol)
	}
	return out, nil
}

// KeyList returns all keys in the order of their UDFs, fetching page after page.
func (c *Client) KeyList(ctx context.Context) ([]mesh.KeyInfo, error) {
	var all []mesh.KeyInfo
	var req mesh.KeyListRequest
	for {
		page, err := fetch[mesh.KeyListResponse](ctx, c, mesh.TagKeyListRequest, req, mesh.TagKeyListResponse)
		if err != nil {
			return nil, err
		}
		all = append(all, page.Keys...)
		if !page.More {
			return all, nil
		}
		if len(page.Keys) == 0 || page.Keys[len(page.Keys)-1].Udf <= req.After {
			return nil, fmt.Errorf("%w: the list of keys does not go on", ErrProtocol)
		}
		req.After = page.Keys[len(page.Keys)-1].Udf
	}
}

// KeyShow returns one key by any of its names.
func (c *Client) KeyShow(ctx context.Context, keyID string) (*mesh.KeyInfo, error) {
	if keyID == "" { // would ask for the whole list
		return nil, &StatusError{Status: 400, Text: "KeyId: missing"}
	}
	out, err := fetch[mesh.KeyListResponse](ctx, c, mesh.TagKeyListRequest, mesh.KeyListRequest{KeyId: keyID}, mesh.TagKeyListResponse)
	if err != nil {
		return nil, err
	}
	if len(out.Keys) != 1 {
		return nil, fmt.Errorf("%w: %d keys of one name", ErrProtocol, len(out.Keys))
	}
	return &out.Keys[0], nil
}

// TokenList returns the tokens.
func (c *Client) TokenList(ctx context.Context) ([]mesh.TokenInfo, error) {
	out, err := fetch[mesh.TokenListResponse](ctx, c, mesh.TagTokenListRequest, mesh.TokenListRequest{}, mesh.TagTokenListResponse)
	if err != nil {
		return nil, err
	}
	return out.Tokens, nil
}

// TokenUnlock presents a token's PIN once. The caller wipes pin.
func (c *Client) TokenUnlock(ctx context.Context, name string, pin []byte) error {
	_, err := fetch[mesh.Reply](ctx, c, mesh.TagTokenUnlockRequest, mesh.TokenUnlockRequest{Token: name, PIN: pin}, mesh.TagTokenUnlockResponse)
	return err
}

// TokenUnlockLastTry is TokenUnlock that uses up the token's last try if it must.
func (c *Client) TokenUnlockLastTry(ctx context.Context, name string, pin []byte) error {
	_, err := fetch[mesh.Reply](ctx, c, mesh.TagTokenUnlockRequest, mesh.TokenUnlockRequest{Token: name, PIN: pin, LastTry: true}, mesh.TagTokenUnlockResponse)
	return err
}

// Status returns how the agent is.
func (c *Client) Status(ctx context.Context) (*mesh.StatusResponse, error) {
	return fetch[mesh.StatusResponse](ctx, c, mesh.TagStatusRequest, mesh.StatusRequest{}, mesh.TagStatusResponse)
}

// KeyReseal seals a key that is sealed to PCRs anew. The caller wipes req.Recovery, and the
// Recovery of the response.
func (c *Client) KeyReseal(ctx context.Context, req mesh.KeyResealRequest) (*mesh.KeyResponse, error) {
	return c.key(ctx, mesh.TagKeyResealRequest, req, mesh.TagKeyResealResponse)
}

// KeyExport returns the file of a key in a token, for other programs that use that token.
func (c *Client) KeyExport(ctx context.Context, req mesh.KeyExportRequest) ([]byte, error) {
	out, err := fetch[mesh.KeyExportResponse](ctx, c, mesh.TagKeyExportRequest, req, mesh.TagKeyExportResponse)
	if err != nil {
		return nil, err
	}
	return out.Key, nil
}

// TokenSetPIN sets or changes a token's PIN. The caller wipes what is in req.
func (c *Client) TokenSetPIN(ctx context.Context, req mesh.TokenSetPINRequest) error {
	_, err := fetch[mesh.Reply](ctx, c, mesh.TagTokenSetPINRequest, req, mesh.TagTokenSetPINResponse)
	return err
}

// TokenLock makes a token need its PIN again.
func (c *Client) TokenLock(ctx context.Context, name string) error {
	_, err := fetch[mesh.Reply](ctx, c, mesh.TagTokenLockRequest, mesh.TokenLockRequest{Token: name}, mesh.TagTokenLockResponse)
	return err
}

// Doctor returns what the agent finds of its tokens and keys.
func (c *Client) Doctor(ctx context.Context) ([]mesh.Finding, error) {
	out, err := fetch[mesh.DoctorResponse](ctx, c, mesh.TagDoctorRequest, mesh.DoctorRequest{}, mesh.TagDoctorResponse)
	if err != nil {
		return nil, err
	}
	return out.Findings, nil
}

// AcceptRollback takes key records that are not the last ones for them.
func (c *Client) AcceptRollback(ctx context.Context) error {
	_, err := fetch[mesh.Reply](ctx, c, mesh.TagAcceptRollbackRequest, mesh.AcceptRollbackRequest{}, mesh.TagAcceptRollbackResponse)
	return err
}
