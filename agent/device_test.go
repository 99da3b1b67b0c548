package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// newDeviceAgent returns an agent that keeps a device's identity, with software keys.
func newDeviceAgent(t testing.TB) *Agent {
	t.Helper()
	soft := tokentest.NewFake(tokentest.FakeOptions{Name: "soft", Protection: token.ProtectionSoftware, Algorithms: token.Algorithms()})
	a := newAgent(t, Limits{}, soft)
	keepDevice(t, a)
	return a
}

// keepDevice has an agent keep its device in a folder of its own, which it returns.
func keepDevice(t testing.TB, a *Agent) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "device")
	folder, err := devicestate.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := folder.Close(); err != nil {
			t.Error(err)
		}
	})
	a.config.Device = folder
	if err := a.loadInside(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ask sends one message and decodes the response, whatever its status, into out.
func ask(t testing.TB, a *Agent, request string, body any, response string, out any) {
	t.Helper()
	tagged, err := strictjson.NewTagged(request, body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := strictjson.Marshal(tagged)
	if err != nil {
		t.Fatal(err)
	}
	var answer strictjson.Tagged
	if err := strictjson.Unmarshal([]byte(operateJSON(t, a, string(text))), &answer); err != nil {
		t.Fatal(err)
	}
	if answer.Tag != response {
		t.Fatalf("response %s, want %s", answer.Tag, response)
	}
	if err := answer.Decode(out); err != nil {
		t.Fatalf("%s: %v", answer.Body, err)
	}
}

func initDevice(t testing.TB, a *Agent, req mesh.DeviceInitRequest) *mesh.DeviceInfo {
	t.Helper()
	if req.Token == "" {
		req.Token = "soft"
	}
	var r mesh.DeviceResponse
	ask(t, a, mesh.TagDeviceInitRequest, req, mesh.TagDeviceInitResponse, &r)
	if r.Status != mesh.StatusOK {
		t.Fatalf("device init: %d %s", r.Status, r.StatusDescription)
	}
	return r.Device
}

func approve(t testing.TB, a *Agent, account string) {
	t.Helper()
	var r mesh.Reply
	ask(t, a, mesh.TagDeviceApproveRequest, mesh.DeviceApproveRequest{Account: account}, mesh.TagDeviceApproveResponse, &r)
	if r.Status != mesh.StatusOK {
		t.Fatalf("approve: %d %s", r.Status, r.StatusDescription)
	}
}

func activate(t testing.TB, a *Agent, entry *device.CatalogedDevice, edit ...func(*mesh.DeviceActivateRequest)) mesh.DeviceActivateResponse {
	t.Helper()
	text, err := entry.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	req := mesh.DeviceActivateRequest{Catalog: text}
	for _, f := range edit {
		f(&req)
	}
	var r mesh.DeviceActivateResponse
	ask(t, a, mesh.TagDeviceActivateRequest, req, mesh.TagDeviceActivateResponse, &r)
	return r
}

// testAccount is an account whose administrator is the test.
type testAccount struct {
	device.Connector
	seed *mesh.Seed
}

func newTestAccount(t testing.TB, g mesh.Generation) *testAccount {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	seed, err := mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount)
	must(err)
	spec, err := device.NewAccountSpec(seed, g)
	must(err)
	spec.Address = "alice@example.com"
	local := func(o device.Operation) *mesh.LocalKey {
		private, err := device.AccountKey(seed, o, "", g)
		must(err)
		key, err := mesh.NewLocalKey(private)
		must(err)
		return key
	}
	profile, err := device.NewProfileUser(t.Context(), local(device.Profiling), *spec)
	must(err)
	return &testAccount{device.Connector{Account: profile, Administrator: local(device.AdminSign)}, seed}
}

func (x *testAccount) connect(t testing.TB, d *mesh.DeviceInfo, edit ...func(*device.Grant)) *device.CatalogedDevice {
	t.Helper()
	e, err := mesh.ParseEnvelope(d.Profile)
	if err != nil {
		t.Fatal(err)
	}
	g := device.Grant{}
	if g.Device, err = device.ParseProfileDevice(e, x.Now); err != nil {
		t.Fatal(err)
	}
	if g.Keys, err = device.NewAccountActivation(x.seed, device.Rights{Common: true}, x.Account); err != nil {
		t.Fatal(err)
	}
	for _, f := range edit {
		f(&g)
	}
	entry, err := x.Connect(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	return entry
}

// keyNamed returns one of the keys of a connection.
func keyNamed(t *testing.T, keys []mesh.NamedKey, name string) mesh.NamedKey {
	t.Helper()
	i := slices.IndexFunc(keys, func(k mesh.NamedKey) bool { return k.Name == name })
	if i < 0 {
		t.Fatalf("there is no key %s among %v", name, keys)
	}
	return keys[i]
}

func TestActivateBothGenerations(t *testing.T) {
	t.Parallel()
	for _, g := range []mesh.Generation{mesh.G1, mesh.G2} {
		t.Run(g.String(), func(t *testing.T) {
			t.Parallel()
			a := newDeviceAgent(t)
			d := initDevice(t, a, mesh.DeviceInitRequest{Generation: g.String()})
			x := newTestAccount(t, g)
			approve(t, a, x.Account.Name())
			entry := x.connect(t, d)
			r := activate(t, a, entry)
			if r.Status != mesh.StatusOK || len(r.Refused) != 0 {
				t.Fatalf("activate: %d %s %q", r.Status, r.StatusDescription, r.Refused)
			}
			for name, use := range map[string]string{
				"DeviceEncryption": "decrypt", "DeviceSignature": "sign", "DeviceAuthentication": "authenticate",
				"Encryption": "decrypt", "Signature": "sign", "Authentication": "authenticate",
			} {
				if k := keyNamed(t, r.Account.Keys, name); k.Use != use || k.Protection != "software" {
					t.Errorf("%s is %+v, want use %s", name, k, use)
				}
			}
			checkStaysInside(t, a, entry, r, d)
			if r := activate(t, a, entry); r.Status != mesh.StatusOK {
				t.Errorf("the same again: %d %s", r.Status, r.StatusDescription)
			}
		})
	}
}

// checkStaysInside looks that nobody gets an activation opened: neither that to the base key nor
// that to the combined one, by none of the agent's keys.
func checkStaysInside(t *testing.T, a *Agent, entry *device.CatalogedDevice, r mesh.DeviceActivateResponse, d *mesh.DeviceInfo) {
	t.Helper()
	for _, e := range entry.Activations {
		for _, k := range append(slices.Clone(r.Account.Keys), d.Keys...) {
			if k.Algorithm != "X448" {
				continue
			}
			to := e.Header.Recipients[0]
			op, err := strictjson.NewTagged(mesh.TagOperationDecrypt, mesh.OperationDecrypt{
				KeyId: k.Udf, Recipient: &mesh.DecryptRecipient{EphemeralKey: to.EphemeralKey, WrappedKey: to.WrappedKey},
			})
			if err != nil {
				t.Fatal(err)
			}
			text, err := strictjson.Marshal(op)
			if err != nil {
				t.Fatal(err)
			}
			var got result
			res := operateResult(t, a, string(text))
			if err := res.Decode(&got); err != nil || got.Status != statusForbidden || !strings.HasPrefix(got.Error, "use") {
				t.Errorf("activation with %s: %s", k.Name, res.Body)
			}
		}
	}
}

// TestActivateNamesTheStep has one entry for each step at which a verification can fail.
func TestActivateNamesTheStep(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x, foreign := newTestAccount(t, mesh.G1), newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	other := initDevice(t, newDeviceAgent(t), mesh.DeviceInitRequest{})
	good := x.connect(t, d)
	with := func(edit func(*device.CatalogedDevice)) *device.CatalogedDevice {
		c := *good
		c.Activations = slices.Clone(good.Activations)
		edit(&c)
		return &c
	}
	otherAccount := foreign.connect(t, d)
	second := x.connect(t, d)
	cases := map[string]struct {
		entry *device.CatalogedDevice
		step  device.Step
		text  string
	}{
		"another account":   {otherAccount, device.StepAccount, "not the expected one"},
		"no profile":        {with(func(c *device.CatalogedDevice) { c.ProfileUser = nil }), device.StepAccount, "missing"},
		"another device":    {x.connect(t, other), device.StepDevice, "not the expected one"},
		"another name":      {with(func(c *device.CatalogedDevice) { c.DeviceUdf = other.Udf }), device.StepDevice, "DeviceUdf"},
		"foreign signature": {with(func(c *device.CatalogedDevice) { c.ConnectionDevice = otherAccount.ConnectionDevice }), device.StepSignature, "ConnectionDevice"},
		"foreign service":   {with(func(c *device.CatalogedDevice) { c.ConnectionService = otherAccount.ConnectionService }), device.StepSignature, "ConnectionService"},
		"no activation":     {with(func(c *device.CatalogedDevice) { c.Activations = c.Activations[:1] }), device.StepSignature, "ActivationCommon"},
		"connections swapped": {with(func(c *device.CatalogedDevice) {
			c.ConnectionDevice, c.ConnectionService = c.ConnectionService, c.ConnectionDevice
		}), device.StepBinding, "ConnectionDevice"},
		"mixed connections": {with(func(c *device.CatalogedDevice) { c.ConnectionService = second.ConnectionService }), device.StepActivation, "Authentication"},
		"mixed activations": {with(func(c *device.CatalogedDevice) { c.Activations[0] = second.Activations[0] }), device.StepActivation, "do not fit"},
	}
	for name, c := range cases {
		r := activate(t, a, c.entry)
		if r.Status != statusForbidden || !strings.HasPrefix(r.StatusDescription, "policy: verify step "+string(c.step)) || !strings.Contains(r.StatusDescription, c.text) {
			t.Errorf("%s: %d %q, want step %s and %q", name, r.Status, r.StatusDescription, c.step, c.text)
		}
	}
	if n := len(a.ring.Snapshot().Entries()); n != len(d.Keys) {
		t.Errorf("%d keys after failures, want the %d base keys", n, len(d.Keys))
	}
}

func TestUpdateRefusesWhatWasSuperseded(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x := newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	first, second, third := x.connect(t, d), x.connect(t, d), x.connect(t, d)
	frame := func(i int64, tree byte) func(*mesh.DeviceActivateRequest) {
		return func(r *mesh.DeviceActivateRequest) {
			r.Frame = &mesh.CatalogFrame{Index: i, Tree: bytes.Repeat([]byte{tree}, 64)}
		}
	}
	update := func(r *mesh.DeviceActivateRequest) { r.Update = true }
	confirm := func(r *mesh.DeviceActivateRequest) { r.Confirm = true }
	steps := []struct {
		name   string
		entry  *device.CatalogedDevice
		edit   []func(*mesh.DeviceActivateRequest)
		status int
	}{
		{"update before any", first, []func(*mesh.DeviceActivateRequest){update}, statusState},
		{"first", first, []func(*mesh.DeviceActivateRequest){frame(3, 1)}, mesh.StatusOK},
		{"same frame, another tree", second, []func(*mesh.DeviceActivateRequest){frame(3, 2)}, statusState},
		{"lower frame", second, []func(*mesh.DeviceActivateRequest){frame(2, 1)}, statusState},
		{"no frame, not confirmed", second, nil, statusState},
		{"higher frame", second, []func(*mesh.DeviceActivateRequest){frame(4, 2), update}, mesh.StatusOK},
		{"superseded, confirmed", first, []func(*mesh.DeviceActivateRequest){confirm}, statusState},
		{"superseded, higher frame", first, []func(*mesh.DeviceActivateRequest){frame(9, 9)}, statusState},
		{"confirmed", third, []func(*mesh.DeviceActivateRequest){confirm}, mesh.StatusOK},
		{"the one between", second, []func(*mesh.DeviceActivateRequest){confirm}, statusState},
	}
	for _, s := range steps {
		if r := activate(t, a, s.entry, s.edit...); r.Status != s.status {
			t.Errorf("%s: %d %q, want %d", s.name, r.Status, r.StatusDescription, s.status)
		}
	}
	// Of what was replaced the keys for decryption are there, the others are not.
	var combined int
	for _, e := range a.ring.Snapshot().Entries() {
		if len(e.Parts()) > 1 {
			combined++
		}
	}
	if combined != 5 {
		t.Errorf("%d combined keys, want three and two for decryption from before", combined)
	}
}

// activationOf is the activation of an entry that is encrypted to the combined key.
func activationOf(t *testing.T, entry *device.CatalogedDevice) strictjson.Value {
	t.Helper()
	e := *entry.Activations[1]
	e.Trailer = nil
	text, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestFramesOfTheCatalog gives whole frames: in the clear, and encrypted to the combined key, by which an index
// that goes back is refused.
func TestFramesOfTheCatalog(t *testing.T) {
	t.Parallel()
	x := connectDevice(t)
	frame := func(index int64, entry *device.CatalogedDevice, to ...token.PublicKey) strictjson.Value {
		t.Helper()
		body, err := entry.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		e := &mesh.Envelope{Body: bytes.Replace(body, []byte(`,"Enveloped`), []byte(`,`+"\n  "+`"Enveloped`), 1)}
		if len(to) != 0 {
			if e, err = mesh.Encrypt(rand.Reader, body, "", to...); err != nil {
				t.Fatal(err)
			}
		}
		e.Header.SequenceInfo = &mesh.SequenceInfo{Index: index}
		e.Trailer = &mesh.Trailer{TreeDigest: bytes.Repeat([]byte{byte(index)}, 64)}
		text, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	another := x.account.connect(t, x.device)
	third := x.account.connect(t, x.device)
	stray := &mesh.Envelope{Body: []byte(`{"CatalogedContact":{}}`)}
	contact, err := stray.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	body, err := another.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	altered, err := (&mesh.Envelope{Body: body, Trailer: &mesh.Trailer{PayloadDigest: make([]byte, 64)}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		name   string
		req    mesh.DeviceActivateRequest
		status int
		text   string
	}{
		{"the connection in use", mesh.DeviceActivateRequest{Catalog: frame(3, x.entry, x.key)}, mesh.StatusOK, ""},
		{"an earlier frame", mesh.DeviceActivateRequest{Catalog: frame(2, another), Update: true, Confirm: true}, statusState, "went back"},
		{"another frame of the same index", mesh.DeviceActivateRequest{Catalog: frame(3, another), Update: true}, statusState, "another frame 3"},
		{"two indexes", mesh.DeviceActivateRequest{Catalog: frame(4, another), Frame: &mesh.CatalogFrame{Index: 5}}, statusMalformed, "Frame: "},
		{"a negative index", mesh.DeviceActivateRequest{Catalog: frame(-1, another)}, statusMalformed, "Catalog: "},
		{"a later frame", mesh.DeviceActivateRequest{Catalog: frame(4, another, x.key), Update: true}, mesh.StatusOK, ""},
		{"a later one to the key of before", mesh.DeviceActivateRequest{Catalog: frame(5, third, x.key), Update: true}, mesh.StatusOK, ""},
		{"a superseded one", mesh.DeviceActivateRequest{Catalog: frame(6, x.entry)}, statusState, "superseded"},
		{"an activation alone", mesh.DeviceActivateRequest{Catalog: activationOf(t, x.entry)}, statusMalformed, "it is an activation"},
		{"something else", mesh.DeviceActivateRequest{Catalog: contact}, statusMalformed, "CatalogedContact"},
		{"another body than its digest says", mesh.DeviceActivateRequest{Catalog: altered, Confirm: true}, statusMalformed, "payload digest does not match"},
	} {
		var r mesh.DeviceActivateResponse
		ask(t, x.agent, mesh.TagDeviceActivateRequest, s.req, mesh.TagDeviceActivateResponse, &r)
		if r.Status != s.status || !strings.Contains(r.StatusDescription, s.text) {
			t.Errorf("%s: %d %q, want %d %q", s.name, r.Status, r.StatusDescription, s.status, s.text)
		}
	}
}

// TestStoresHaveOtherNames grants stores by the names of the device's and of applications' keys.
func TestStoresHaveOtherNames(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x := newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	r := activate(t, a, x.connect(t, d, func(g *device.Grant) {
		g.Keys.Entries[0].Resource, g.Keys.Entries[1].Resource = "DeviceEncryption", "ClientKey"
	}), func(*mesh.DeviceActivateRequest) {})
	if r.Status != mesh.StatusOK || len(r.Refused) != 2 {
		t.Fatalf("activate: %d %s, refused %q", r.Status, r.StatusDescription, r.Refused)
	}
	named := map[string]int{}
	for _, k := range r.Account.Keys {
		named[k.Name]++
	}
	if named["DeviceEncryption"] != 1 || named["ClientKey"] != 0 || named["MMM_Inbound"] != 1 {
		t.Errorf("keys: %v", named)
	}
}

// TestApplicationsAreConfirmed has a planted SSH key: nobody signs activations of applications.
func TestApplicationsAreConfirmed(t *testing.T) {
	t.Parallel()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := mesh.PublicOf(&token.PrivateKey{Algorithm: token.RSA2048, RSA: private})
	if err != nil {
		t.Fatal(err)
	}
	udf, err := mesh.Fingerprint(pub, mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	key := rsaKeyData(private)
	entry := func(pub token.PublicKey) strictjson.Value {
		k, err := mesh.NewKeyData(pub, mesh.G1)
		if err != nil {
			t.Fatal(err)
		}
		text, err := strictjson.Marshal(map[string]any{"CatalogedApplicationSsh": map[string]any{"Key": udf, "ClientKey": k}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	another, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	anotherPub, err := mesh.PublicOf(&token.PrivateKey{Algorithm: token.RSA2048, RSA: another})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		edit    func(*mesh.DeviceActivateRequest)
		until   time.Time
		taken   bool
		refused string
	}{
		"nothing said":           {edit: func(*mesh.DeviceActivateRequest) {}, refused: udf},
		"in the catalog":         {edit: func(r *mesh.DeviceActivateRequest) { r.Applications = []strictjson.Value{entry(pub)} }, taken: true},
		"another in the catalog": {edit: func(r *mesh.DeviceActivateRequest) { r.Applications = []strictjson.Value{entry(anotherPub)} }, refused: udf},
		"accepted":               {edit: func(r *mesh.DeviceActivateRequest) { r.Accept = []string{udf} }, taken: true},
		"another accepted":       {edit: func(r *mesh.DeviceActivateRequest) { r.Accept = []string{"MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA"} }, refused: udf},
		"accepted, and expired": {
			edit: func(r *mesh.DeviceActivateRequest) { r.Accept = []string{udf} }, until: time.Unix(1<<30, 0), refused: "ClientKey: key is not valid since 2004",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newDeviceAgent(t)
			d := initDevice(t, a, mesh.DeviceInitRequest{})
			x := newTestAccount(t, mesh.G1)
			approve(t, a, x.Account.Name())
			made := x.connect(t, d, func(g *device.Grant) {
				k := key()
				k.NotOnOrAfter = c.until
				g.Applications = []device.ApplicationGrant{{Kind: "Ssh", Identifier: udf, Keys: map[string]*mesh.KeyData{"ClientKey": k}}}
			})
			r := activate(t, a, made, c.edit)
			if r.Status != mesh.StatusOK {
				t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
			}
			if e, err := a.ring.Snapshot().FindPublic(pub); (err == nil) != c.taken || err == nil && e.Use != token.UseSSH {
				t.Errorf("key: %v, %v", e, err)
			}
			if said := len(r.Refused) == 1 && strings.Contains(r.Refused[0], c.refused); said == c.taken {
				t.Errorf("refused: %q", r.Refused)
			}
			list := a.exchange(t.Context(), sshOnly, []byte{sshRequestIdentities})
			if want := byte(0); len(list) < 5 || list[0] != sshIdentitiesAnswer || (list[4] != want) != c.taken {
				t.Errorf("identities: %x", list[:min(len(list), 8)])
			}
		})
	}
}

// rsaKeyData makes the KeyData of a private key, a new one each time since it is wiped after use.
func rsaKeyData(k *rsa.PrivateKey) func() *mesh.KeyData {
	return func() *mesh.KeyData {
		return &mesh.KeyData{PrivateParameters: &mesh.PrivateParameters{PrivateKeyRSA: &mesh.PrivateKeyRSA{
			N: k.N.Bytes(), E: []byte{1, 0, 1}, D: k.D.Bytes(), P: k.Primes[0].Bytes(), Q: k.Primes[1].Bytes(),
		}}}
	}
}

// TestThresholdKeyOfAnAccount has a device hold one share of the account's key for decryption; the service has the other.
func TestThresholdKeyOfAnAccount(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x := newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	whole, err := device.AccountKey(x.seed, device.Encrypt, "", mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := mesh.ScalarOf(whole)
	if err != nil {
		t.Fatal(err)
	}
	shares, err := keyshare.SplitDirect(scalar, 2, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	primary := mesh.Parameters(x.Account.Encryption)
	entry := x.connect(t, d, func(g *device.Grant) {
		g.Keys = &device.AccountActivation{Encryption: &mesh.KeyData{PrivateParameters: &mesh.PrivateParameters{KeyShare: &mesh.KeyShare{
			PublicPrimary: &primary, ServiceAddress: "example.com",
			Share: &mesh.PrivateParameters{PrivateKeyECDH: &mesh.PrivateKeyECDH{Curve: "X448z", Private: shares[0].Scalar.Bytes()}},
		}}}}
	})
	r := activate(t, a, entry)
	if r.Status != mesh.StatusOK || len(r.Refused) != 0 {
		t.Fatalf("activate: %d %s %q", r.Status, r.StatusDescription, r.Refused)
	}
	envelope, err := mesh.Encrypt(rand.Reader, []byte("message"), "", x.Account.Encryption)
	if err != nil {
		t.Fatal(err)
	}
	to := envelope.Header.Recipients[0]
	ephemeral, err := to.EphemeralKey.Point()
	if err != nil {
		t.Fatal(err)
	}
	partial, err := keyshare.PartialAgreement(shares[1].Scalar, nil, ephemeral)
	if err != nil {
		t.Fatal(err)
	}
	op, err := strictjson.NewTagged(mesh.TagOperationDecrypt, mesh.OperationDecrypt{
		KeyId:     keyNamed(t, r.Account.Keys, "Encryption").Udf,
		Recipient: &mesh.DecryptRecipient{EphemeralKey: to.EphemeralKey, WrappedKey: to.WrappedKey},
		Partials:  []mesh.PublicParameters{mesh.PointParameters(partial)},
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := strictjson.Marshal(op)
	if err != nil {
		t.Fatal(err)
	}
	var got mesh.ResultDecrypt
	res := operateResult(t, a, string(text))
	if err := res.Decode(&got); err != nil || got.Status != mesh.StatusOK {
		t.Fatalf("decrypt: %s", res.Body)
	}
	if plaintext, err := envelope.Open(got.Seed); err != nil || string(plaintext) != "message" {
		t.Errorf("plaintext %q, %v", plaintext, err)
	}
}

func TestDeviceOfPublishedSeed(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	seed, err := mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)
	if err != nil {
		t.Fatal(err)
	}
	one := initDevice(t, a, mesh.DeviceInitRequest{Seed: []byte(seed.Text() + "\n")})
	two := initDevice(t, newDeviceAgent(t), mesh.DeviceInitRequest{Seed: []byte(seed.Text()), Profile: one.Profile})
	if one.Udf != two.Udf || !bytes.Equal(one.Profile, two.Profile) {
		t.Errorf("devices of one seed are %s and %s", one.Udf, two.Udf)
	}
	for name, req := range map[string]mesh.DeviceInitRequest{
		"no home":             {},
		"both of software":    {Home: mesh.Home{Token: "soft", SealTo: "soft"}},
		"unknown token":       {Home: mesh.Home{Token: "none"}},
		"another generation":  {Home: mesh.Home{Token: "soft"}, Generation: "g3"},
		"generation of other": {Home: mesh.Home{Token: "soft"}, Generation: "g2", Seed: []byte(seed.Text()), Profile: one.Profile},
		"no seed":             {Home: mesh.Home{Token: "soft"}, Profile: one.Profile},
		"bad seed":            {Home: mesh.Home{Token: "soft"}, Seed: []byte("ZAAA-GTKG-ED25-5XXK-EYX")},
		"PCRs":                {Home: mesh.Home{Token: "soft", PCRs: "sha256:7"}},
	} {
		var r mesh.DeviceResponse
		fresh := newDeviceAgent(t)
		ask(t, fresh, mesh.TagDeviceInitRequest, req, mesh.TagDeviceInitResponse, &r)
		if r.Status == mesh.StatusOK || r.Status >= 500 {
			t.Errorf("%s: %d %s", name, r.Status, r.StatusDescription)
		}
		if n := len(fresh.ring.Snapshot().Entries()); n != 0 {
			t.Errorf("%s: %d keys are left", name, n)
		}
	}
}

// TestAuthenticateBothSides compares the agent's session keys with those of the service.
func TestAuthenticateBothSides(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("soft"))
	for _, alg := range []token.Algorithm{token.X25519, token.X448, token.P256} {
		e := generate(t, a, "soft", alg, token.UseAuthenticate)
		curve, err := keyshare.ParseCurve(string(alg))
		if err != nil {
			t.Fatal(err)
		}
		ephemeral, err := keyshare.RandomScalar(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		client, err := keyshare.ParsePoint(curve, e.Public.Octets)
		if err != nil {
			t.Fatal(err)
		}
		agreement, err := keyshare.Agree(ephemeral, client)
		if err != nil {
			t.Fatal(err)
		}
		first := bytes.Repeat([]byte{7}, 32)
		want, err := mesh.DeriveSessionKeys(first, agreement.SharedSecret())
		if err != nil {
			t.Fatal(err)
		}
		public := ephemeral.Public().Bytes()
		var got mesh.ResultAuthenticate
		if err := authenticateWith(t, a, e.Udf, string(alg), public, first).Decode(&got); err != nil || got.Status != mesh.StatusOK {
			t.Fatalf("%s: %+v, %v", alg, got, err)
		}
		if !bytes.Equal(got.Initiator, want.Initiator) || !bytes.Equal(got.Responder, want.Responder) || bytes.Equal(got.Initiator, got.Responder) {
			t.Errorf("%s: the service has other keys", alg)
		}
		opposite := slices.Clone(e.Public.Octets)
		if alg != token.P256 {
			opposite[len(opposite)-1] ^= 0x80
		}
		for _, own := range [][]byte{e.Public.Octets, opposite} {
			var refused result
			if err := authenticateWith(t, a, e.Udf, string(alg), own, first).Decode(&refused); err != nil || refused.Status != statusForbidden {
				t.Errorf("%s: own key as that of the service: %+v, %v", alg, refused, err)
			}
		}
		var refused result
		if err := authenticateWith(t, a, e.Udf, string(alg), public, first[:31]).Decode(&refused); err != nil || refused.Status != statusMalformed {
			t.Errorf("%s: short first agreement: %+v, %v", alg, refused, err)
		}
	}
}

func authenticateWith(t *testing.T, a *Agent, udf, curve string, public, first []byte) strictjson.Tagged {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	return operateResult(t, a, `{"CryptographicOperationAuthenticate":{"KeyId":"`+udf+`","PublicKey":{"PublicKeyECDH":{"crv":"`+curve+
		`","Public":"`+encode(public)+`"}},"Agreement":"`+encode(first)+`"}}`)
}

func TestSignEnvelope(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("soft"))
	signer, err := a.ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: "soft", Algorithm: token.Ed448, Use: token.UseSignAssertion, Tags: []string{"Callsign"}})
	if err != nil {
		t.Fatal(err)
	}
	recipient := generate(t, a, "soft", token.X448, token.UseDecrypt)
	for _, g := range []mesh.Generation{mesh.G1, mesh.G2} {
		for _, encrypted := range []bool{false, true} {
			op := mesh.OperationSignEnvelope{KeyId: signer.Udf, Body: []byte(`{"Callsign":{"Id":"@a"}}`), Generation: g.String(), IncludeKey: true}
			if encrypted {
				op.Recipients = []strictjson.Value{mesh.MarshalKeyDataPublic(recipient.Public, g)}
			}
			tagged, err := strictjson.NewTagged(mesh.TagOperationSignEnvelope, op)
			if err != nil {
				t.Fatal(err)
			}
			text, err := strictjson.Marshal(tagged)
			if err != nil {
				t.Fatal(err)
			}
			var got mesh.ResultSignEnvelope
			res := operateResult(t, a, string(text))
			if err := res.Decode(&got); err != nil || got.Status != mesh.StatusOK {
				t.Fatalf("%v: %s", g, res.Body)
			}
			e, err := mesh.ParseEnvelope(got.Envelope)
			if err != nil {
				t.Fatal(err)
			}
			by, err := e.Verify(signer.Public)
			if err != nil || len(by) != 1 || by[0].Generation != g || (e.Header.Encryption != "") != encrypted {
				t.Errorf("%v, encrypted %t: %v, %v", g, encrypted, by, err)
			}
		}
	}
}

// randomToken is a token with randomness of its own, or without any if err is set.
type randomToken struct {
	*tokentest.Fake
	asked int
	err   error
}

func (r *randomToken) Random(_ context.Context, n int) ([]byte, error) {
	r.asked++
	return make([]byte, n), r.err
}

// TestSeedMixesRandomness asks the token too, and makes no device where that fails.
func TestSeedMixesRandomness(t *testing.T) {
	t.Parallel()
	for _, fault := range []error{nil, token.ErrAbsent} {
		source := &randomToken{err: fault, Fake: tokentest.NewFake(tokentest.FakeOptions{Name: "soft", Protection: token.ProtectionSoftware, Algorithms: token.Algorithms()})}
		a := newAgent(t, Limits{}, source)
		keepDevice(t, a)
		var r mesh.DeviceResponse
		ask(t, a, mesh.TagDeviceInitRequest, mesh.DeviceInitRequest{Home: mesh.Home{Token: "soft"}}, mesh.TagDeviceInitResponse, &r)
		if (r.Status == mesh.StatusOK) != (fault == nil) || source.asked != 1 {
			t.Errorf("fault %v: %d %s, asked %d times", fault, r.Status, r.StatusDescription, source.asked)
		}
	}
}

func TestAnswersAreBound(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x := newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	e, err := mesh.ParseEnvelope(d.Profile)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := device.ParseProfileDevice(e, x.Now)
	if err != nil {
		t.Fatal(err)
	}
	id, err := mesh.GenerateNonce(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	respond := func(id string, entry *device.CatalogedDevice) strictjson.Value {
		answer, err := x.Respond(t.Context(), profile, id, entry)
		if err != nil {
			t.Fatal(err)
		}
		text, err := answer.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var asked mesh.DeviceConnectResponse
	ask(t, a, mesh.TagDeviceConnectRequest, mesh.DeviceConnectRequest{Account: "alice@example.com"}, mesh.TagDeviceConnectResponse, &asked)
	entry := x.connect(t, d)
	for name, c := range map[string]struct {
		req    mesh.DeviceActivateRequest
		status int
		text   string
	}{
		"to nothing":    {mesh.DeviceActivateRequest{Catalog: respond(id, entry)}, statusState, "answers no request"},
		"rejected":      {mesh.DeviceActivateRequest{Catalog: respond(asked.MessageId, nil)}, statusForbidden, "rejected"},
		"not for us":    {mesh.DeviceActivateRequest{Catalog: strictjson.Value(`[{"enc":"A256CBC","Salt":"AAAA","recipients":[]},"AAAA"]`)}, statusMalformed, "not encrypted to this device"},
		"not even JSON": {mesh.DeviceActivateRequest{Catalog: strictjson.Value(`[]`)}, statusMalformed, "Catalog"},
	} {
		var r mesh.DeviceActivateResponse
		ask(t, a, mesh.TagDeviceActivateRequest, c.req, mesh.TagDeviceActivateResponse, &r)
		if r.Status != c.status || !strings.Contains(r.StatusDescription, c.text) {
			t.Errorf("%s: %d %q, want %d %q", name, r.Status, r.StatusDescription, c.status, c.text)
		}
	}
	for _, req := range []mesh.DeviceActivateRequest{
		{Catalog: respond(id, entry), Unsolicited: true}, {Catalog: respond(asked.MessageId, entry)},
	} {
		var r mesh.DeviceActivateResponse
		if ask(t, a, mesh.TagDeviceActivateRequest, req, mesh.TagDeviceActivateResponse, &r); r.Status != mesh.StatusOK {
			t.Errorf("unsolicited %t: %d %s", req.Unsolicited, r.Status, r.StatusDescription)
		}
	}
}

// TestManyEarlierConnections describes a device that was connected again and again: all keys of before would not fit into a frame.
func TestManyEarlierConnections(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	x := newTestAccount(t, mesh.G1)
	approve(t, a, x.Account.Name())
	if r := activate(t, a, x.connect(t, d)); r.Status != mesh.StatusOK {
		t.Fatal(r.StatusDescription)
	}
	record, err := a.config.Device.Device()
	if err != nil {
		t.Fatal(err)
	}
	keys := &record.Accounts[0].Keys
	current := len(*keys)
	for i := range 5000 {
		*keys = append(*keys, devicestate.Key{Name: superseded + "DeviceEncryption", Udf: fmt.Sprintf("MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-%04d", i)})
	}
	change, err := a.config.Device.PutDevice(record)
	if err == nil {
		err = change.Do()
	}
	if err != nil {
		t.Fatal(err)
	}
	var r mesh.DeviceResponse
	ask(t, a, mesh.TagDeviceShowRequest, mesh.DeviceShowRequest{}, mesh.TagDeviceShowResponse, &r)
	if r.Status != mesh.StatusOK || len(r.Device.Accounts) != 1 {
		t.Fatalf("device: %d %s", r.Status, r.StatusDescription)
	}
	shown := r.Device.Accounts[0].Keys
	if len(shown) != current+maxSuperseded || !strings.HasSuffix(shown[len(shown)-1].Udf, "-0063") {
		t.Errorf("%d keys, want %d and the newest of before", len(shown), current+maxSuperseded)
	}
	// Another connection works, and keeps all of them.
	if r := activate(t, a, x.connect(t, d), func(req *mesh.DeviceActivateRequest) { req.Confirm = true }); r.Status != mesh.StatusOK {
		t.Fatalf("another connection: %d %s", r.Status, r.StatusDescription)
	}
	if record, err = a.config.Device.Device(); err != nil || len(record.Accounts[0].Keys) != current+5001 {
		t.Errorf("%d keys are kept, %v", len(record.Accounts[0].Keys), err)
	}
}
