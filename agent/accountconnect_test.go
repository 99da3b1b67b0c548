package agent

import (
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func addresses(n int) (out []string) {
	for i := range n {
		out = append(out, numbered(i))
	}
	return out
}

// TestConnectKeepsPIN refuses what cannot be connected, or granted, before the PIN is used up.
func TestConnectKeepsPIN(t *testing.T) {
	t.Parallel()
	admin, laptop, phone := newDeviceAgent(t), newDeviceAgent(t), newDeviceAgent(t)
	var made mesh.AccountInitResponse
	ask(t, admin, mesh.TagAccountInitRequest, mesh.AccountInitRequest{Home: mesh.Home{Token: "soft"}, Address: "alice@example.com"}, mesh.TagAccountInitResponse, &made)
	var pin mesh.AccountPINResponse
	ask(t, admin, mesh.TagAccountPINRequest, mesh.AccountPINRequest{}, mesh.TagAccountPINResponse, &pin)
	request := func(a *Agent, generation string) []byte {
		initDevice(t, a, mesh.DeviceInitRequest{Generation: generation})
		var r mesh.DeviceConnectResponse
		ask(t, a, mesh.TagDeviceConnectRequest, mesh.DeviceConnectRequest{Account: "alice@example.com", PIN: pin.PIN}, mesh.TagDeviceConnectResponse, &r)
		return r.Request
	}
	x := &granting{admin: admin}
	g1, g2 := request(laptop, "g1"), request(phone, "g2")
	for _, c := range []struct {
		req  mesh.AccountConnectRequest
		want string
	}{
		{mesh.AccountConnectRequest{Request: g2}, "Request: the device is of generation g2, the account of g1"},
		{mesh.AccountConnectRequest{Request: g1, Stores: []string{"MMM_Contact", "Contact"}}, `Stores: no store "Contact", there are MMM_Contact, `},
		{mesh.AccountConnectRequest{Request: g1, ApplicationGrants: mesh.ApplicationGrants{GrantMail: addresses(60)}}, "Device: its entry would not fit into a frame"},
		{mesh.AccountConnectRequest{Request: g1, Account: "forgetful"}, "Account: its seed was forgotten here"},
		{mesh.AccountConnectRequest{Request: g1, Stores: []string{"MMM_Device"}}, ""},
		{mesh.AccountConnectRequest{Request: g1}, "Request: it was answered already"},
	} {
		var seed strictjson.Value
		if c.req.Account == "forgetful" {
			c.req.Account = ""
			x.changeAccount(t, func(a *devicestate.Account) { seed, a.Seed = a.Seed, nil })
		}
		var r mesh.AccountConnectResponse
		ask(t, admin, mesh.TagAccountConnectRequest, c.req, mesh.TagAccountConnectResponse, &r)
		if seed != nil {
			x.changeAccount(t, func(a *devicestate.Account) { a.Seed = seed })
		}
		if good := c.want == ""; good != (r.Status == mesh.StatusOK) || !good && !strings.HasPrefix(r.StatusDescription, c.want) {
			t.Errorf("stores %v: %d %s, want %q", c.req.Stores, r.Status, r.StatusDescription, c.want)
		}
	}
}

// TestWrongPINIsUsedUp has a request that names a PIN and does not prove it use it up, so that nobody can try another.
func TestWrongPINIsUsedUp(t *testing.T) {
	t.Parallel()
	admin, laptop := newDeviceAgent(t), newDeviceAgent(t)
	var made mesh.AccountInitResponse
	ask(t, admin, mesh.TagAccountInitRequest, mesh.AccountInitRequest{Home: mesh.Home{Token: "soft"}, Address: "alice@example.com"}, mesh.TagAccountInitResponse, &made)
	var pin mesh.AccountPINResponse
	ask(t, admin, mesh.TagAccountPINRequest, mesh.AccountPINRequest{}, mesh.TagAccountPINResponse, &pin)
	initDevice(t, laptop, mesh.DeviceInitRequest{})
	var asked mesh.DeviceConnectResponse
	ask(t, laptop, mesh.TagDeviceConnectRequest, mesh.DeviceConnectRequest{Account: "alice@example.com", PIN: pin.PIN}, mesh.TagDeviceConnectResponse, &asked)
	e, err := mesh.ParseEnvelope(asked.Request)
	if err != nil {
		t.Fatal(err)
	}
	body := map[string]map[string]strictjson.Value{}
	if err := strictjson.Unmarshal(e.Body, &body); err != nil {
		t.Fatal(err)
	}
	body["RequestConnection"]["PinWitness"] = strictjson.Value(`"` + strings.Repeat("A", 86) + `"`)
	wrong, err := strictjson.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		request strictjson.Value
		want    string
	}{
		{wrong, "policy: the request does not prove the PIN"},
		{wrong, "policy: the PIN of the request is not one that waits"},
		{asked.Request, "policy: the PIN of the request is not one that waits"},
	} {
		var r mesh.AccountConnectResponse
		ask(t, admin, mesh.TagAccountConnectRequest, mesh.AccountConnectRequest{Request: c.request}, mesh.TagAccountConnectResponse, &r)
		if r.Status != statusForbidden || !strings.HasPrefix(r.StatusDescription, c.want) {
			t.Errorf("%d %s, want %q", r.Status, r.StatusDescription, c.want)
		}
	}
}
