package client

import (
	"context"
	"fmt"

	"github.com/mesh-agent/mesh-agent/mesh"
)

// SignEnvelope has a key of use sign-assertion, or of another that permits it, sign a body.
// The result is the enveloped body in JSON.
func (c *Client) SignEnvelope(ctx context.Context, op mesh.OperationSignEnvelope) ([]byte, error) {
	out, err := one[mesh.ResultSignEnvelope](ctx, c, mesh.TagOperationSignEnvelope, op, mesh.TagResultSignEnvelope)
	if err != nil {
		return nil, err
	}
	return out.Envelope, nil
}

// Authenticate returns the keys of a session. The caller wipes them and op.Agreement.
func (c *Client) Authenticate(ctx context.Context, op mesh.OperationAuthenticate) (*mesh.SessionKeys, error) {
	out, err := one[mesh.ResultAuthenticate](ctx, c, mesh.TagOperationAuthenticate, op, mesh.TagResultAuthenticate)
	if err != nil {
		return nil, err
	}
	return &mesh.SessionKeys{Initiator: out.Initiator, Responder: out.Responder}, nil
}

// DeviceInit makes the device's Mesh identity. The caller wipes req.Seed.
func (c *Client) DeviceInit(ctx context.Context, req mesh.DeviceInitRequest) (*mesh.DeviceInfo, error) {
	return c.device(ctx, mesh.TagDeviceInitRequest, req, mesh.TagDeviceInitResponse)
}

// DeviceShow describes the device's Mesh identity.
func (c *Client) DeviceShow(ctx context.Context) (*mesh.DeviceInfo, error) {
	return c.device(ctx, mesh.TagDeviceShowRequest, mesh.DeviceShowRequest{}, mesh.TagDeviceShowResponse)
}

func (c *Client) device(ctx context.Context, request string, body any, response string) (*mesh.DeviceInfo, error) {
	out, err := fetch[mesh.DeviceResponse](ctx, c, request, body, response)
	if err != nil {
		return nil, err
	}
	if out.Device == nil {
		return nil, fmt.Errorf("%w: no device", ErrProtocol)
	}
	return out.Device, nil
}

// DeviceConnect makes a request for connection. The caller wipes req.PIN.
func (c *Client) DeviceConnect(ctx context.Context, req mesh.DeviceConnectRequest) (*mesh.DeviceConnectResponse, error) {
	return fetch[mesh.DeviceConnectResponse](ctx, c, mesh.TagDeviceConnectRequest, req, mesh.TagDeviceConnectResponse)
}

// DeviceWitness returns the witness of a request that was acknowledged.
func (c *Client) DeviceWitness(ctx context.Context, req mesh.DeviceWitnessRequest) (*mesh.DeviceWitnessResponse, error) {
	return fetch[mesh.DeviceWitnessResponse](ctx, c, mesh.TagDeviceWitnessRequest, req, mesh.TagDeviceWitnessResponse)
}

// DeviceApprove approves an account, or withdraws that.
func (c *Client) DeviceApprove(ctx context.Context, req mesh.DeviceApproveRequest) error {
	_, err := fetch[mesh.Reply](ctx, c, mesh.TagDeviceApproveRequest, req, mesh.TagDeviceApproveResponse)
	return err
}

// DeviceActivate takes a connection into use after verification.
func (c *Client) DeviceActivate(ctx context.Context, req mesh.DeviceActivateRequest) (*mesh.DeviceActivateResponse, error) {
	return fetch[mesh.DeviceActivateResponse](ctx, c, mesh.TagDeviceActivateRequest, req, mesh.TagDeviceActivateResponse)
}

// DeviceDisconnect deletes what the device has of an account.
func (c *Client) DeviceDisconnect(ctx context.Context, account string) error {
	_, err := fetch[mesh.DeviceActivateResponse](ctx, c, mesh.TagDeviceDisconnectRequest, mesh.DeviceDisconnectRequest{Account: account}, mesh.TagDeviceDisconnectResponse)
	return err
}

// AccountInit makes or recovers an account. The caller wipes req.Recover and the shares.
func (c *Client) AccountInit(ctx context.Context, req mesh.AccountInitRequest) (*mesh.AccountInitResponse, error) {
	return withAccount(fetch[mesh.AccountInitResponse](ctx, c, mesh.TagAccountInitRequest, req, mesh.TagAccountInitResponse))
}

// AccountEscrow splits an account's seed anew. The caller wipes the shares.
func (c *Client) AccountEscrow(ctx context.Context, req mesh.AccountEscrowRequest) (*mesh.AccountInitResponse, error) {
	return withAccount(fetch[mesh.AccountInitResponse](ctx, c, mesh.TagAccountEscrowRequest, req, mesh.TagAccountEscrowResponse))
}

// AccountForget deletes an account's seed, if shares of its escrow give it back.
func (c *Client) AccountForget(ctx context.Context, req mesh.AccountForgetRequest) error {
	_, err := fetch[mesh.Reply](ctx, c, mesh.TagAccountForgetRequest, req, mesh.TagAccountForgetResponse)
	return err
}

func withAccount(out *mesh.AccountInitResponse, err error) (*mesh.AccountInitResponse, error) {
	if err == nil && out.Account == nil {
		return nil, fmt.Errorf("%w: no account", ErrProtocol)
	}
	return out, err
}

// AccountList lists the accounts that the agent administers, fetching page after page. If an account is named it has its
// applications, and if a device is, that device alone with its entry.
func (c *Client) AccountList(ctx context.Context, req mesh.AccountListRequest) ([]mesh.AccountInfo, error) {
	var all []mesh.AccountInfo
	for {
		page, err := fetch[mesh.AccountListResponse](ctx, c, mesh.TagAccountListRequest, req, mesh.TagAccountListResponse)
		switch {
		case err != nil:
			return nil, err
		case req.Device != "" && (len(page.Accounts) != 1 || len(page.Accounts[0].Devices) != 1):
			return nil, fmt.Errorf("%w: not the device that was asked for", ErrProtocol)
		case page.Next != "" && page.Next <= req.After:
			return nil, fmt.Errorf("%w: the list of accounts does not go on", ErrProtocol)
		}
		for _, a := range page.Accounts {
			if last := len(all) - 1; last >= 0 && all[last].Udf == a.Udf {
				all[last].Devices = append(all[last].Devices, a.Devices...)
				all[last].Applications = append(all[last].Applications, a.Applications...)
			} else {
				all = append(all, a)
			}
		}
		if page.Next == "" {
			return all, nil
		}
		req.After = page.Next
	}
}

// AccountPIN makes a PIN for one device. The caller wipes it.
func (c *Client) AccountPIN(ctx context.Context, req mesh.AccountPINRequest) (*mesh.AccountPINResponse, error) {
	return fetch[mesh.AccountPINResponse](ctx, c, mesh.TagAccountPINRequest, req, mesh.TagAccountPINResponse)
}

// AccountAcknowledge answers a request so that both sides get a witness.
func (c *Client) AccountAcknowledge(ctx context.Context, req mesh.AccountAcknowledgeRequest) (*mesh.AccountAcknowledgeResponse, error) {
	return fetch[mesh.AccountAcknowledgeResponse](ctx, c, mesh.TagAccountAcknowledgeRequest, req, mesh.TagAccountAcknowledgeResponse)
}

// AccountConnect connects the device of a request.
func (c *Client) AccountConnect(ctx context.Context, req mesh.AccountConnectRequest) (*mesh.AccountConnectResponse, error) {
	return fetch[mesh.AccountConnectResponse](ctx, c, mesh.TagAccountConnectRequest, req, mesh.TagAccountConnectResponse)
}

// AccountGrant gives a connected device keys of applications.
func (c *Client) AccountGrant(ctx context.Context, req mesh.AccountGrantRequest) (*mesh.AccountConnectResponse, error) {
	return fetch[mesh.AccountConnectResponse](ctx, c, mesh.TagAccountGrantRequest, req, mesh.TagAccountGrantResponse)
}

// AccountRevoke ends the connection of a device and returns the signed statement of it.
func (c *Client) AccountRevoke(ctx context.Context, req mesh.AccountRevokeRequest) ([]byte, error) {
	out, err := fetch[mesh.AccountRevokeResponse](ctx, c, mesh.TagAccountRevokeRequest, req, mesh.TagAccountRevokeResponse)
	if err != nil {
		return nil, err
	}
	return out.Revocation, nil
}
