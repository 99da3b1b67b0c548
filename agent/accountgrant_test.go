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

// grantMail grants the keys of one address, whatever the answer is.
func (x *granting) grantMail(t *testing.T, address string) (r mesh.AccountConnectResponse) {
	t.Helper()
	ask(t, x.admin, mesh.TagAccountGrantRequest, mesh.AccountGrantRequest{
		Device: x.udf, ApplicationGrants: mesh.ApplicationGrants{GrantMail: []string{address}},
	}, mesh.TagAccountGrantResponse, &r)
	return r
}

// changeAccount changes the account's record behind the agent's back.
func (x *granting) changeAccount(t *testing.T, edit func(*devicestate.Account)) {
	t.Helper()
	accounts, err := x.admin.config.Device.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	edit(accounts[0])
	change, err := x.admin.config.Device.PutAccount(accounts[0])
	if err == nil {
		err = change.Do()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func numbered(i int) string { return fmt.Sprintf("a%d@example.com", i) }

// withAddresses is newGranting with an account that has many mail addresses: the same keys under several names, since
// it takes long to make some.
func withAddresses(t *testing.T, n int) *granting {
	t.Helper()
	x := newGranting(t, "g1")
	x.grant(t, mesh.ApplicationGrants{GrantMail: []string{numbered(0)}})
	x.changeAccount(t, func(a *devicestate.Account) {
		for i := 1; i < n; i++ {
			more := a.Applications[0]
			more.Identifier = device.MailIdentifier(numbered(i))
			a.Applications = append(a.Applications, more)
		}
	})
	return x
}

// withoutEscrow is an entry of the catalog as the command line sends it.
func withoutEscrow(t *testing.T, entry strictjson.Value) strictjson.Value {
	t.Helper()
	var tagged map[string]map[string]strictjson.Value
	if err := strictjson.Unmarshal(entry, &tagged); err != nil {
		t.Fatal(err)
	}
	for _, members := range tagged {
		delete(members, "EnvelopedEscrow")
	}
	out, err := strictjson.Marshal(tagged)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestGrantsFitIntoAFrame grants until an answer is too large. What was refused is not kept, and no key was made for it; what
// was granted reaches the device, with the entries by which it confirms the keys.
func TestGrantsFitIntoAFrame(t *testing.T) {
	t.Parallel()
	x := withAddresses(t, 20)
	var r mesh.AccountConnectResponse
	granted := 12
	last := x.grant(t, mesh.ApplicationGrants{GrantMail: addresses(granted)})
	for ; granted < 20; granted++ {
		if r = x.grantMail(t, numbered(granted)); r.Status != mesh.StatusOK {
			break
		}
		last = r
	}
	if granted < 13 || r.Status != statusState || !strings.Contains(r.StatusDescription, "about 13 mail addresses") {
		t.Fatalf("after %d: %d %s", granted, r.Status, r.StatusDescription)
	}
	if len(last.Applications) != granted || last.CatalogedDevice != nil {
		t.Errorf("applications %v, with the entry itself: %v", last.Applications, last.CatalogedDevice != nil)
	}
	var one mesh.AccountListResponse
	ask(t, x.admin, mesh.TagAccountListRequest, mesh.AccountListRequest{Account: last.Account, Device: last.Device}, mesh.TagAccountListResponse, &one)
	entry, err := device.ParseCatalogedDevice(one.Accounts[0].Devices[0].Entry)
	if err != nil || len(entry.Applications) != granted {
		t.Errorf("the entry that was kept: %v", err)
	}
	update := mesh.DeviceActivateRequest{Catalog: last.Response, Update: true}
	for _, entry := range x.applications(t)[:granted] {
		update.Applications = append(update.Applications, withoutEscrow(t, entry))
	}
	if text, err := strictjson.Marshal(update); err != nil || len(text) > maxReply-64 {
		t.Errorf("the request of the device has %d octets, %v", len(text), err)
	}
	if r := x.update(t, update, mesh.StatusOK); len(r.Refused) != 0 || !has(r.Account.Keys, "SmimeSign") {
		t.Errorf("the device: %+v", r)
	}
	if r = x.grantMail(t, numbered(0)); r.Status != mesh.StatusOK {
		t.Errorf("the first again: %d %s", r.Status, r.StatusDescription)
	}
	x.grantMail(t, "new@example.com")
	if n := len(x.applications(t)); n != 20 {
		t.Errorf("%d applications are kept, want 20", n)
	}
}

// TestApplicationsOfAnAccount has as many as devices take entries of, which come in several pages.
func TestApplicationsOfAnAccount(t *testing.T) {
	t.Parallel()
	x := withAddresses(t, maxApplications)
	x.changeAccount(t, func(a *devicestate.Account) { a.Devices[0].Entry = hollow(t, a.Devices[0].Entry) })
	if r := x.grantMail(t, "new@example.com"); r.Status != statusState || !strings.HasPrefix(r.StatusDescription, "Account: it has 64 applications") {
		t.Errorf("one more: %d %s", r.Status, r.StatusDescription)
	}
	if r := x.grantMail(t, numbered(1)); r.Status != mesh.StatusOK || len(r.Applications) != 2 {
		t.Errorf("one of them: %d %s", r.Status, r.StatusDescription)
	}
	req := mesh.AccountListRequest{Account: "alice@example.com"}
	listed, pages := 0, 0
	for {
		var r mesh.AccountListResponse
		ask(t, x.admin, mesh.TagAccountListRequest, req, mesh.TagAccountListResponse, &r)
		if r.Status != mesh.StatusOK || len(r.Accounts) != 1 || len(r.Accounts[0].Applications) == 0 {
			t.Fatalf("page %d: %d %s, %d accounts", pages, r.Status, r.StatusDescription, len(r.Accounts))
		}
		listed, pages = listed+len(r.Accounts[0].Applications), pages+1
		if req.After = r.Next; r.Next == "" {
			break
		}
	}
	if listed != maxApplications || pages < 2 {
		t.Errorf("%d applications in %d pages", listed, pages)
	}
}

// hollow is an entry with an application that is empty, and no others.
func hollow(t *testing.T, entry strictjson.Value) strictjson.Value {
	t.Helper()
	c, err := device.ParseCatalogedDevice(entry)
	if err != nil {
		t.Fatal(err)
	}
	c.Applications = []device.ApplicationEntry{{Tag: "ApplicationEntryMail", Identifier: device.MailIdentifier("empty@example.com")}}
	text, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestGrantsOfRoles takes keys by an entry of the catalog only where it grants them to a role of the device and denies
// them to none. A person may accept them all the same.
func TestGrantsOfRoles(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x := newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	public, private, err := applicationKey(mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	udf, err := mesh.Fingerprint(public, mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	entry := x.connect(t, d, func(g *device.Grant) {
		g.Roles = []string{"web", "message"}
		g.Applications = []device.ApplicationGrant{{Kind: device.KindSSH, Identifier: udf, Keys: map[string]*mesh.KeyData{"ClientKey": private}}}
	})
	data := mesh.MarshalKeyDataPublic(public, mesh.G1)
	for _, c := range []struct {
		roles  string
		accept []string
		want   string // of what is refused; empty if nothing is
	}{
		{`"Grant":["admin"],`, nil, "the catalog does not grant it to the roles of this device"},
		{`"Grant":["Web"],`, nil, "the catalog does not grant it to the roles of this device"},
		{`"Grant":["admin","web"],"Deny":["message"],`, nil, "the catalog does not grant it to the roles of this device"},
		{`"Deny":["web"],`, nil, "the catalog does not grant it to the roles of this device"},
		{`"Deny":["web"],`, []string{udf}, ""},
		{`"Grant":["admin","web"],"Deny":["guest"],`, nil, ""},
		{`"Grant":[],"Deny":[],`, nil, ""},
		{``, nil, ""},
		{`"Grant":["admin"],`, nil, "the catalog does not grant it to the roles of this device"}, // although it was taken before
	} {
		text := strictjson.Value(fmt.Sprintf(`{"CatalogedApplicationSsh":{%s"ClientKey":%s}}`, c.roles, data))
		r := activate(t, a, entry, func(req *mesh.DeviceActivateRequest) {
			req.Applications, req.Accept = []strictjson.Value{text}, c.accept
		})
		refused := strings.Join(r.Refused, "\n")
		if r.Status != mesh.StatusOK || (refused == "") != (c.want == "") || !strings.HasSuffix(refused, c.want) || has(r.Account.Keys, "ClientKey") != (c.want == "") {
			t.Errorf("%s accepted %v: %d %s, refused %q, want %q", c.roles, c.accept, r.Status, r.StatusDescription, refused, c.want)
		}
	}
	text := strictjson.Value(fmt.Sprintf(`{"CatalogedApplicationSsh":{"Grant":"web","ClientKey":%s}}`, data))
	if r := activate(t, a, entry, func(req *mesh.DeviceActivateRequest) { req.Applications = []strictjson.Value{text} }); r.Status != statusMalformed {
		t.Errorf("Grant that is no array: %d %s", r.Status, r.StatusDescription)
	}
}

// TestConnectAgainKeepsGrants has a device that is connected again get new keys of its own and those of applications that
// it had, which it takes without a second confirmation; unless they are not to be kept, or it was revoked.
func TestConnectAgainKeepsGrants(t *testing.T) {
	t.Parallel()
	x := withAddresses(t, 2)
	x.grant(t, mesh.ApplicationGrants{GrantSsh: true, GrantMail: []string{numbered(1)}})
	reconnect := func(edit func(*mesh.AccountConnectRequest)) mesh.AccountConnectResponse {
		t.Helper()
		var asked mesh.DeviceConnectResponse
		ask(t, x.device, mesh.TagDeviceConnectRequest, mesh.DeviceConnectRequest{Account: "alice@example.com"}, mesh.TagDeviceConnectResponse, &asked)
		req := mesh.AccountConnectRequest{Request: asked.Request, Device: x.udf}
		edit(&req)
		var r mesh.AccountConnectResponse
		if ask(t, x.admin, mesh.TagAccountConnectRequest, req, mesh.TagAccountConnectResponse, &r); r.Status != mesh.StatusOK {
			t.Fatalf("connect again: %d %s", r.Status, r.StatusDescription)
		}
		return r
	}
	update := mesh.DeviceActivateRequest{Catalog: x.grant(t, mesh.ApplicationGrants{GrantSsh: true}).Response, Update: true, Applications: x.applications(t)}
	before := x.update(t, update, mesh.StatusOK).Account.Keys
	r := reconnect(func(req *mesh.AccountConnectRequest) { req.GrantMail = []string{numbered(1)} })
	if len(r.Applications) != 3 || r.Device != x.udf {
		t.Errorf("applications of %s: %v", r.Device, r.Applications)
	}
	after := x.update(t, mesh.DeviceActivateRequest{Catalog: r.Response, Confirm: true}, mesh.StatusOK)
	if len(after.Refused) != 0 {
		t.Errorf("refused %v", after.Refused)
	}
	for name, kept := range map[string]bool{"DeviceEncryption": false, "ClientKey": true, "SmimeEncrypt": true, "OpenpgpSign": true} {
		if was, is := keyNamed(t, before, name).Udf, keyNamed(t, after.Account.Keys, name).Udf; (was == is) != kept {
			t.Errorf("%s: %s, and %s before", name, is, was)
		}
	}
	if r := reconnect(func(req *mesh.AccountConnectRequest) { req.NoApplications, req.GrantSsh = true, true }); len(r.Applications) != 1 {
		t.Errorf("without those of before: %v", r.Applications)
	}
	x.grant(t, mesh.ApplicationGrants{GrantMail: []string{numbered(0)}})
	var revoked mesh.AccountRevokeResponse
	if ask(t, x.admin, mesh.TagAccountRevokeRequest, mesh.AccountRevokeRequest{Device: x.udf}, mesh.TagAccountRevokeResponse, &revoked); revoked.Status != mesh.StatusOK {
		t.Fatal(revoked.StatusDescription)
	}
	if r := reconnect(func(*mesh.AccountConnectRequest) {}); len(r.Applications) != 0 {
		t.Errorf("after it was revoked: %v", r.Applications)
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
