package agent

import (
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// granting is an administrator's agent with a device that is connected, of one generation.
type granting struct {
	admin, device *Agent
	udf           string
}

func newGranting(t *testing.T, generation string) *granting {
	t.Helper()
	x := &granting{admin: newDeviceAgent(t), device: newDeviceAgent(t)}
	var made mesh.AccountInitResponse
	ask(t, x.admin, mesh.TagAccountInitRequest, mesh.AccountInitRequest{
		Home: mesh.Home{Token: "soft"}, Address: "alice@example.com", Generation: generation,
	}, mesh.TagAccountInitResponse, &made)
	if made.Status != mesh.StatusOK {
		t.Fatalf("account init: %d %s", made.Status, made.StatusDescription)
	}
	x.udf = initDevice(t, x.device, mesh.DeviceInitRequest{Generation: generation}).Udf
	approve(t, x.device, made.Account.Udf)
	var asked mesh.DeviceConnectResponse
	ask(t, x.device, mesh.TagDeviceConnectRequest, mesh.DeviceConnectRequest{Account: "alice@example.com"}, mesh.TagDeviceConnectResponse, &asked)
	var connected mesh.AccountConnectResponse
	ask(t, x.admin, mesh.TagAccountConnectRequest, mesh.AccountConnectRequest{Request: asked.Request, Device: x.udf}, mesh.TagAccountConnectResponse, &connected)
	if connected.Status != mesh.StatusOK {
		t.Fatalf("account connect: %d %s", connected.Status, connected.StatusDescription)
	}
	x.update(t, mesh.DeviceActivateRequest{Catalog: connected.Response}, mesh.StatusOK)
	return x
}

func (x *granting) update(t *testing.T, req mesh.DeviceActivateRequest, want int) mesh.DeviceActivateResponse {
	t.Helper()
	var r mesh.DeviceActivateResponse
	if ask(t, x.device, mesh.TagDeviceActivateRequest, req, mesh.TagDeviceActivateResponse, &r); r.Status != want {
		t.Fatalf("activate: %d %s, want %d", r.Status, r.StatusDescription, want)
	}
	return r
}

func (x *granting) grant(t *testing.T, want mesh.ApplicationGrants) mesh.AccountConnectResponse {
	t.Helper()
	var r mesh.AccountConnectResponse
	if ask(t, x.admin, mesh.TagAccountGrantRequest, mesh.AccountGrantRequest{Device: x.udf, ApplicationGrants: want}, mesh.TagAccountGrantResponse, &r); r.Status != mesh.StatusOK {
		t.Fatalf("grant: %d %s", r.Status, r.StatusDescription)
	}
	return r
}

// applications are the entries of the account's catalog.
func (x *granting) applications(t *testing.T) []strictjson.Value {
	t.Helper()
	var r mesh.AccountListResponse
	ask(t, x.admin, mesh.TagAccountListRequest, mesh.AccountListRequest{Account: "alice@example.com"}, mesh.TagAccountListResponse, &r)
	if len(r.Accounts) != 1 {
		t.Fatalf("accounts: %+v", r)
	}
	return r.Accounts[0].Applications
}

func has(keys []mesh.NamedKey, name string) bool {
	return slices.ContainsFunc(keys, func(k mesh.NamedKey) bool { return k.Name == name })
}

// TestGrantThenWithdraw has an update bring keys, a second one more, and one without them take them away.
func TestGrantThenWithdraw(t *testing.T) {
	t.Parallel()
	for _, generation := range []string{"g1", "g2"} {
		t.Run(generation, func(t *testing.T) {
			t.Parallel()
			x := newGranting(t, generation)
			ssh := x.grant(t, mesh.ApplicationGrants{GrantSsh: true})
			r := x.update(t, mesh.DeviceActivateRequest{Catalog: ssh.Response, Update: true, Applications: x.applications(t)}, mesh.StatusOK)
			if r.Account.Generation != generation || len(r.Refused) != 0 || keyNamed(t, r.Account.Keys, "ClientKey").Use != "ssh" {
				t.Errorf("keys for SSH: %+v", r)
			}
			mail := x.grant(t, mesh.ApplicationGrants{GrantMail: []string{"alice@example.net", "a@example.org"}})
			r = x.update(t, mesh.DeviceActivateRequest{Catalog: mail.CatalogedDevice, Update: true}, mesh.StatusOK)
			if len(r.Refused) != 8 || !has(r.Account.Keys, "ClientKey") || has(r.Account.Keys, "SmimeSign") {
				t.Errorf("keys for mail that nobody confirmed: %d refused, %+v", len(r.Refused), r.Account.Keys)
			}
			r = x.update(t, mesh.DeviceActivateRequest{Catalog: mail.CatalogedDevice, Update: true, Applications: x.applications(t)[1:2]}, mesh.StatusOK)
			if len(r.Refused) != 4 || keyNamed(t, r.Account.Keys, "OpenpgpSign").Use != "sign" || keyNamed(t, r.Account.Keys, "SmimeEncrypt").Use != "decrypt" {
				t.Errorf("keys of one address: %+v", r)
			}
			client := keyNamed(t, r.Account.Keys, "ClientKey").Udf
			// What the entry has no more is gone, and comes back only if it is confirmed again.
			entry, err := device.ParseCatalogedDevice(mail.CatalogedDevice)
			if err != nil {
				t.Fatal(err)
			}
			entry.Applications = nil
			if r := activate(t, x.device, entry); r.Status != mesh.StatusOK || has(r.Account.Keys, "ClientKey") {
				t.Errorf("entry without applications: %d %s %+v", r.Status, r.StatusDescription, r.Account.Keys)
			}
			if _, err := x.device.ring.Snapshot().Find(client); err == nil {
				t.Error("the key for SSH is still there")
			}
			r = x.update(t, mesh.DeviceActivateRequest{Catalog: ssh.Response, Update: true}, mesh.StatusOK)
			if len(r.Refused) != 1 || has(r.Account.Keys, "ClientKey") {
				t.Errorf("old answer: %+v", r)
			}
		})
	}
}

// TestGrantedKeysAreShared has one key for SSH on all devices, also after the agent forgot the seed.
func TestGrantedKeysAreShared(t *testing.T) {
	t.Parallel()
	x := newGranting(t, "g1")
	x.grant(t, mesh.ApplicationGrants{GrantSsh: true})
	x.grant(t, mesh.ApplicationGrants{GrantSsh: true, GrantMail: []string{"alice@example.com"}})
	if n := len(x.applications(t)); n != 2 {
		t.Errorf("%d applications, want 2", n)
	}
	var one mesh.AccountListResponse
	ask(t, x.admin, mesh.TagAccountListRequest, mesh.AccountListRequest{Device: x.udf}, mesh.TagAccountListResponse, &one)
	if len(one.Accounts) != 1 || len(one.Accounts[0].Devices) != 1 || len(one.Accounts[0].Devices[0].Entry) == 0 {
		t.Errorf("the device's entry: %d %s", one.Status, one.StatusDescription)
	}
	for name, req := range map[string]mesh.AccountGrantRequest{
		"nothing":        {Device: x.udf},
		"no device":      {ApplicationGrants: mesh.ApplicationGrants{GrantSsh: true}},
		"no address":     {Device: x.udf, ApplicationGrants: mesh.ApplicationGrants{GrantMail: []string{"alice"}}},
		"too many":       {Device: x.udf, ApplicationGrants: mesh.ApplicationGrants{GrantMail: slices.Repeat([]string{"a@example.com"}, 64)}},
		"another device": {Device: "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA", ApplicationGrants: mesh.ApplicationGrants{GrantSsh: true}},
	} {
		var r mesh.AccountConnectResponse
		ask(t, x.admin, mesh.TagAccountGrantRequest, req, mesh.TagAccountGrantResponse, &r)
		if r.Status != statusMalformed && r.Status != statusNotFound || r.Response != nil {
			t.Errorf("%s: %d %s", name, r.Status, r.StatusDescription)
		}
	}
}

// TestGrantsFitIntoAFrame grants until an entry, or the catalog, is too large. What was refused is not kept.
func TestGrantsFitIntoAFrame(t *testing.T) {
	t.Parallel()
	x := newGranting(t, "g1")
	address := func(i int) string { return fmt.Sprintf("a%d@example.com", i) }
	x.grant(t, mesh.ApplicationGrants{GrantMail: []string{address(0)}})
	accounts, err := x.admin.config.Device.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	account := accounts[0]
	for i := range 14 { // the same keys under other names, since it takes long to make some
		more := account.Applications[0]
		more.Identifier = device.MailIdentifier(address(i + 1))
		account.Applications = append(account.Applications, more)
	}
	change, err := x.admin.config.Device.PutAccount(account)
	if err == nil {
		err = change.Do()
	}
	if err != nil {
		t.Fatal(err)
	}
	ask1 := func(i int) (r mesh.AccountConnectResponse) {
		ask(t, x.admin, mesh.TagAccountGrantRequest, mesh.AccountGrantRequest{
			Device: x.udf, ApplicationGrants: mesh.ApplicationGrants{GrantMail: []string{address(i)}},
		}, mesh.TagAccountGrantResponse, &r)
		return r
	}
	granted := 0
	var r mesh.AccountConnectResponse
	for ; granted < 15; granted++ {
		if r = ask1(granted); r.Status != mesh.StatusOK {
			break
		}
	}
	if granted < 5 || r.Status != statusState || !strings.Contains(r.StatusDescription, "fewer applications") {
		t.Fatalf("after %d: %d %s", granted, r.Status, r.StatusDescription)
	}
	if r = ask1(0); r.Status != mesh.StatusOK {
		t.Errorf("the first again: %d %s", r.Status, r.StatusDescription)
	}
	if r = ask1(15); r.Status != statusState || !strings.Contains(r.StatusDescription, "can be listed") {
		t.Errorf("a new application: %d %s", r.Status, r.StatusDescription)
	}
	if n := len(x.applications(t)); n != 15 {
		t.Errorf("%d applications are kept, want 15", n)
	}
}

// TestEscrowedKeysComeBack imports a mail key out of the escrow of the catalog's entry. The escrow key does
// that inside, and nothing else; other keys of use seal do not.
func TestEscrowedKeysComeBack(t *testing.T) {
	t.Parallel()
	x := newGranting(t, "g1")
	x.grant(t, mesh.ApplicationGrants{GrantMail: []string{"alice@example.com"}})
	var tagged struct {
		CatalogedApplicationMail struct {
			EnvelopedEscrow []strictjson.Value
			SmimeEncrypt, OpenpgpEncrypt,
			SmimeSign, OpenpgpSign *mesh.KeyData
			Other strictjson.Value `json:",embed"`
		}
	}
	if err := strictjson.Unmarshal(x.applications(t)[0], &tagged); err != nil {
		t.Fatal(err)
	}
	entry := tagged.CatalogedApplicationMail
	if len(entry.EnvelopedEscrow) != 2 {
		t.Fatalf("%d escrowed keys, want those two that decrypt", len(entry.EnvelopedEscrow))
	}
	var list mesh.AccountListResponse
	ask(t, x.admin, mesh.TagAccountListRequest, mesh.AccountListRequest{}, mesh.TagAccountListResponse, &list)
	escrow := keyNamed(t, list.Accounts[0].Keys, "EscrowEncryption")
	if escrow.Use != "seal" {
		t.Errorf("escrow key has use %s", escrow.Use)
	}
	importWith := func(a *Agent, key, envelope []byte) mesh.KeyResponse {
		var r mesh.KeyResponse
		ask(t, a, mesh.TagKeyImportRequest, mesh.KeyImportRequest{
			Home: mesh.Home{Token: "soft"}, Use: "decrypt", UnwrapWith: string(key), Key: envelope,
		}, mesh.TagKeyImportResponse, &r)
		return r
	}
	var back []string
	for _, e := range entry.EnvelopedEscrow {
		r := importWith(x.admin, []byte(escrow.Udf), e)
		if r.Status != mesh.StatusOK {
			t.Fatalf("import: %d %s", r.Status, r.StatusDescription)
		}
		back = append(back, r.Key.Udf)
	}
	for _, k := range []*mesh.KeyData{entry.SmimeEncrypt, entry.OpenpgpEncrypt} {
		if !slices.Contains(back, k.Udf) {
			t.Errorf("%s is not among %v", k.Udf, back)
		}
	}
	for name, plaintext := range map[string]string{"no key": "hello", "an activation": `{"ActivationApplicationSsh":{"ClientKey":{}}}`} {
		pub, err := x.admin.ring.Snapshot().Find(escrow.Udf)
		if err != nil {
			t.Fatal(err)
		}
		e, err := mesh.Encrypt(rand.Reader, []byte(plaintext), "", pub.Public)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			text, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if r := importWith(x.admin, []byte(escrow.Udf), text); r.Status != statusMalformed || !strings.HasSuffix(r.StatusDescription, "or does not hold a key") {
				t.Errorf("%s: %d %s", name, r.Status, r.StatusDescription)
			}
			e.Body[len(e.Body)-1] ^= 1 // and now the padding is bad
		}
	}
	id, err := x.device.config.Device.Device()
	if err != nil {
		t.Fatal(err)
	}
	base := slices.IndexFunc(id.Keys, func(k devicestate.Key) bool { return k.Name == "Encryption" })
	if r := importWith(x.device, []byte(id.Keys[base].Udf), entry.EnvelopedEscrow[0]); r.Status != statusForbidden {
		t.Errorf("base key: %d %s", r.Status, r.StatusDescription)
	}
}
