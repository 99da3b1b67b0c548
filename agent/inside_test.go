package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// connected is an agent whose device is connected.
type connected struct {
	agent   *Agent
	device  *mesh.DeviceInfo
	account *testAccount
	entry   *device.CatalogedDevice
	profile *device.ProfileDevice
	key     token.PublicKey // DeviceEncryption
	udf     string
}

func connectDevice(t *testing.T) *connected {
	t.Helper()
	x := &connected{agent: newDeviceAgent(t), account: newTestAccount(t, mesh.G1)}
	x.device = initDevice(t, x.agent, mesh.DeviceInitRequest{})
	approve(t, x.agent, x.account.Account.Name())
	x.entry = x.account.connect(t, x.device)
	r := activate(t, x.agent, x.entry)
	if r.Status != mesh.StatusOK {
		t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
	}
	x.udf = keyNamed(t, r.Account.Keys, "DeviceEncryption").Udf
	e, err := x.agent.ring.Snapshot().Find(x.udf)
	if err != nil {
		t.Fatal(err)
	}
	x.key = e.Public
	envelope, err := mesh.ParseEnvelope(x.device.Profile)
	if err != nil {
		t.Fatal(err)
	}
	if x.profile, err = device.ParseProfileDevice(envelope, x.account.Now); err != nil {
		t.Fatal(err)
	}
	return x
}

// decrypt asks for the seed of an entry.
func (x *connected) decrypt(t *testing.T, r mesh.Recipient, partials ...mesh.PublicParameters) result {
	t.Helper()
	op, err := strictjson.NewTagged(mesh.TagOperationDecrypt, mesh.OperationDecrypt{
		KeyId: x.udf, Recipient: &mesh.DecryptRecipient{EphemeralKey: r.EphemeralKey, WrappedKey: r.WrappedKey}, Partials: partials,
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := strictjson.Marshal(op)
	if err != nil {
		t.Fatal(err)
	}
	var got result
	if err := operateResult(t, x.agent, string(text)).Decode(&got); err != nil {
		t.Logf("decode: %v", err) // a seed, which result does not have
		return result{Status: mesh.StatusOK}
	}
	return got
}

// TestActivationInDisguise adds a point to the ephemeral key of an activation and takes away what
// the addition does to the agreement by Partials.
func TestActivationInDisguise(t *testing.T) {
	t.Parallel()
	x := connectDevice(t)
	to := x.entry.Activations[1].Header.Recipients[0]
	point := func(octets []byte) *keyshare.Point {
		p, err := keyshare.ParsePoint(keyshare.X448, octets)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one, err := keyshare.RandomScalar(keyshare.X448, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	disguised, err := keyshare.Combine(point(to.EphemeralKey.PublicKeyECDH.Public), one.Public())
	if err != nil {
		t.Fatal(err)
	}
	correction, err := keyshare.Agree(one, point(x.key.Octets))
	if err != nil {
		t.Fatal(err)
	}
	parameters := func(p *keyshare.Point) mesh.PublicParameters {
		return mesh.Parameters(token.PublicKey{Algorithm: token.X448, Octets: p.Bytes()})
	}
	to.EphemeralKey = parameters(disguised)
	if got := x.decrypt(t, to, parameters(correction.Negate())); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "use:") {
		t.Errorf("disguised activation: %+v", got)
	}
	to = x.entry.Activations[1].Header.Recipients[0]
	to.EphemeralKey = parameters(point(to.EphemeralKey.PublicKeyECDH.Public).Negate())
	if got := x.decrypt(t, to); got.Status != statusForbidden {
		t.Errorf("opposite ephemeral key: %+v", got)
	}
}

// TestOppositesAreTheSame has an ephemeral key in all its forms.
func TestOppositesAreTheSame(t *testing.T) {
	t.Parallel()
	for a, curve := range map[token.Algorithm]keyshare.Curve{
		token.X448: keyshare.X448, token.X25519: keyshare.X25519, token.P256: keyshare.P256, token.P521: keyshare.P521,
	} {
		s, err := keyshare.RandomScalar(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if p := s.Public(); string(insideDigest(a, p)) != string(insideDigest(a, p.Negate())) {
			t.Errorf("%s: a point and its opposite have different digests", a)
		}
	}
}

// TestNoRecordNoDecryption has an agent that cannot know what is an activation.
func TestNoRecordNoDecryption(t *testing.T) {
	t.Parallel()
	x := connectDevice(t)
	letter, err := mesh.Encrypt(rand.Reader, []byte("hello"), "", x.key)
	if err != nil {
		t.Fatal(err)
	}
	if got := x.decrypt(t, letter.Header.Recipients[0]); got.Status != mesh.StatusOK {
		t.Errorf("with the record: %+v", got)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "device.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	folder, err := devicestate.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	config := x.agent.config
	record, err := config.Device.Device()
	if err != nil {
		t.Fatal(err)
	}
	config.Device = folder
	x.agent = New(config)
	for _, r := range []mesh.Recipient{letter.Header.Recipients[0], x.entry.Activations[1].Header.Recipients[0]} {
		if got := x.decrypt(t, r); got.Status != statusUnavailable || !strings.Contains(got.Error, "device: record device.json cannot be read: ") || !strings.HasSuffix(got.Error, recordMend) {
			t.Errorf("without the record: %+v", got)
		}
	}
	restored, err := folder.PutDevice(record)
	if err == nil {
		err = restored.Do()
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := x.decrypt(t, x.entry.Activations[1].Header.Recipients[0]); got.Status != statusForbidden {
		t.Errorf("an activation, with the record put back: %+v", got)
	}
	if got := x.decrypt(t, letter.Header.Recipients[0]); got.Status != mesh.StatusOK {
		t.Errorf("with the record put back: %+v", got)
	}
	config.Device = nil
	x.agent = New(config)
	if got := x.decrypt(t, letter.Header.Recipients[0]); got.Status != statusForbidden || !strings.Contains(got.Error, "keeps no record") {
		t.Errorf("with no record at all: %+v", got)
	}
}

// TestInsideIsComplete has an activation fail in an agent that could not read its record when it started: what came with other
// connections is still opened inside only.
func TestInsideIsComplete(t *testing.T) {
	t.Parallel()
	x := connectDevice(t)
	other := newTestAccount(t, mesh.G1)
	approve(t, x.agent, other.Account.Name())
	entry := other.connect(t, x.device)
	x.agent.inside.Store(nil)
	token, err := x.agent.ring.Token("soft")
	if err != nil {
		t.Fatal(err)
	}
	token.(*tokentest.Fake).FailBefore(tokentest.OpImport, errors.New("fault"))
	if r := activate(t, x.agent, entry); r.Status == mesh.StatusOK {
		t.Fatal("activated")
	}
	if got := x.decrypt(t, x.entry.Activations[1].Header.Recipients[0]); got.Status != statusForbidden {
		t.Errorf("an activation of the first connection: %+v", got)
	}
}

// TestUnreadableRecords has the record of an account, then that of the device, damaged: whatever needs them says which, and what to do.
func TestUnreadableRecords(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("soft"))
	dir := t.TempDir()
	folder, err := devicestate.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	a.config.Device = folder
	if err := a.loadInside(); err != nil {
		t.Fatal(err)
	}
	seal := generate(t, a, "soft", token.X25519, token.UseSeal)
	sealed, err := mesh.Encrypt(rand.Reader, []byte("{}"), "", seal.Public)
	if err != nil {
		t.Fatal(err)
	}
	text, err := sealed.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	unwrap := mesh.KeyImportRequest{Home: mesh.Home{Token: "soft"}, Use: "sign", Key: mesh.Binary(text), UnwrapWith: seal.Udf}
	answers := func(name string, status int, text string, requests map[string]any) {
		t.Helper()
		for tag, body := range requests {
			tagged, err := strictjson.NewTagged(tag, body)
			if err != nil {
				t.Fatal(err)
			}
			message, err := strictjson.Marshal(tagged)
			if err != nil {
				t.Fatal(err)
			}
			if got := operateJSON(t, a, string(message)); !strings.Contains(got, fmt.Sprintf(`{"Status":%d,"StatusDescription":"%s`, status, text)) {
				t.Errorf("%s: %s: %s", name, tag, got)
			}
		}
	}
	answers("no records", statusForbidden, "use: of keys of use seal", map[string]any{mesh.TagKeyImportRequest: unwrap})
	for _, record := range []struct {
		name, contents string
		requests       map[string]any
	}{
		{"account-MAAA.json", `{"Version":2}`, map[string]any{
			mesh.TagKeyImportRequest: unwrap, mesh.TagAccountListRequest: struct{}{}, mesh.TagAccountPINRequest: mesh.AccountPINRequest{Account: "alice@example.com"},
		}},
		{"device.json", `{"Version":3,"Generation":"g1","Profile":[]}`, map[string]any{mesh.TagDeviceShowRequest: struct{}{}}},
		{"device.json", `{"Version":2,"Generation":"g1","Profile":[{}]}`, map[string]any{mesh.TagDeviceShowRequest: struct{}{}}},
	} {
		path := filepath.Join(dir, record.name)
		if err := os.WriteFile(path, []byte(record.contents), 0o600); err != nil {
			t.Fatal(err)
		}
		answers(record.contents, statusUnavailable, "device: record "+record.name+" cannot be read: ", record.requests)
		found := (&request{Agent: a}).deviceFindings()
		if len(found) != 1 || !strings.Contains(found[0].Text, record.name) || found[0].Mend != recordMend {
			t.Errorf("%s: doctor finds %+v", record.name, found)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAnswersAreNoOracle alters what was encrypted to the base key and not signed: bad padding and
// a plaintext that is something else look the same.
func TestAnswersAreNoOracle(t *testing.T) {
	t.Parallel()
	x := connectDevice(t)
	var said []string
	for _, plaintext := range []string{"", "something else", `{"ActivationAccount":{}}`, `{"RespondConnection":[]}`, `{"RespondConnection":{"CatalogedDevice":{"DeviceUdf":1}}}`} {
		e, err := mesh.Encrypt(rand.Reader, []byte(plaintext), "", x.profile.Encryption)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			text, err := e.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			var r mesh.DeviceActivateResponse
			ask(t, x.agent, mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{Catalog: text}, mesh.TagDeviceActivateResponse, &r)
			said = append(said, r.StatusDescription)
			e.Trailer = nil
			e.Body[len(e.Body)-1] ^= 1 // and now the padding is bad, but for one in 256
		}
	}
	for _, s := range said {
		if s != said[0] || !strings.Contains(s, "decryption failed") {
			t.Errorf("said %q and %q", said[0], s)
		}
	}
}

// TestRevocationIsNotReplayed connects a device again after its revocation.
func TestRevocationIsNotReplayed(t *testing.T) {
	t.Parallel()
	x := connectDevice(t)
	revocation, err := x.account.Revoke(t.Context(), x.entry)
	if err != nil {
		t.Fatal(err)
	}
	text, err := revocation.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	revoke := func(want int) {
		t.Helper()
		var r mesh.DeviceActivateResponse
		ask(t, x.agent, mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{Catalog: text, Update: true}, mesh.TagDeviceActivateResponse, &r)
		if r.Status != want {
			t.Errorf("revocation: %d %s, want %d", r.Status, r.StatusDescription, want)
		}
	}
	revoke(mesh.StatusOK)
	approve(t, x.agent, x.account.Account.Name())
	if r := activate(t, x.agent, x.entry); r.Status != statusState {
		t.Errorf("revoked entry: %d %s", r.Status, r.StatusDescription)
	}
	if r := activate(t, x.agent, x.account.connect(t, x.device)); r.Status != mesh.StatusOK {
		t.Errorf("new entry: %d %s", r.Status, r.StatusDescription)
	}
	revoke(statusState)
}

// TestLesserConnection takes the seed from a device that keeps the account's keys.
func TestLesserConnection(t *testing.T) {
	t.Parallel()
	a, x := newDeviceAgent(t), newTestAccount(t, mesh.G1)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	approve(t, a, x.Account.Name())
	super := x.connect(t, d, func(g *device.Grant) {
		keys, err := device.NewAccountActivation(x.seed, device.Rights{Super: true}, x.Account)
		if err != nil {
			t.Fatal(err)
		}
		g.Keys = keys
	})
	if r := activate(t, a, super); r.Status != mesh.StatusOK {
		t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
	}
	accounts := func() int {
		all, err := a.config.Device.Accounts()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if n := accounts(); n != 1 {
		t.Errorf("%d accounts with the seed", n)
	}
	entry := x.connect(t, d)
	r := activate(t, a, entry, func(q *mesh.DeviceActivateRequest) { q.Confirm = true })
	if r.Status != mesh.StatusOK {
		t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
	}
	if n := accounts(); n != 0 {
		t.Errorf("%d accounts without the seed", n)
	}
	has := func(pub token.PublicKey) bool {
		_, err := a.ring.Snapshot().FindPublic(pub)
		return err == nil
	}
	if has(x.Account.Administrator) || !has(x.Account.Encryption) {
		t.Errorf("administrator's key %t, account's key %t", has(x.Account.Administrator), has(x.Account.Encryption))
	}
	revocation, err := x.Revoke(t.Context(), entry)
	if err != nil {
		t.Fatal(err)
	}
	text, err := revocation.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var end mesh.DeviceActivateResponse
	ask(t, a, mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{Catalog: text}, mesh.TagDeviceActivateResponse, &end)
	if end.Status != mesh.StatusOK || has(x.Account.Encryption) {
		t.Errorf("revocation: %d %s, account's key %t", end.Status, end.StatusDescription, has(x.Account.Encryption))
	}
}

// TestKeysLeftBehind has the agent end after it made the keys of a connection and before it wrote down that it did.
// Activated again, they are the connection's, and end with it.
func TestKeysLeftBehind(t *testing.T) {
	t.Parallel()
	a, x := newDeviceAgent(t), newTestAccount(t, mesh.G1)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	approve(t, a, x.Account.Name())
	before, err := a.config.Device.Device()
	if err != nil {
		t.Fatal(err)
	}
	entry := x.connect(t, d)
	// One of the account's keys the user has imported himself: it stays.
	private, err := device.AccountKey(x.seed, device.Encrypt, "", mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	own, _, err := a.ring.Import(t.Context(), nil, keyring.ImportSpec{Token: "soft", Use: token.UseDecrypt, Label: "mine", Private: private})
	if err != nil {
		t.Fatal(err)
	}
	if r := activate(t, a, entry); r.Status != mesh.StatusOK {
		t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
	}
	change, err := a.config.Device.PutDevice(before)
	if err == nil {
		err = change.Do()
	}
	if err != nil {
		t.Fatal(err)
	}
	if r := activate(t, a, entry); r.Status != mesh.StatusOK {
		t.Fatalf("activate again: %d %s", r.Status, r.StatusDescription)
	}
	var end mesh.DeviceActivateResponse
	ask(t, a, mesh.TagDeviceDisconnectRequest, mesh.DeviceDisconnectRequest{Account: x.Account.Name()}, mesh.TagDeviceDisconnectResponse, &end)
	_, err = a.ring.Snapshot().Find(own.Udf)
	if n := len(a.ring.Snapshot().Entries()); err != nil || end.Status != mesh.StatusOK || n != len(d.Keys)+1 {
		t.Errorf("%d %s: %d keys are left, want the %d base keys and %s", end.Status, end.StatusDescription, n, len(d.Keys), own.Udf)
	}
}

// TestInsideOnly has a device whose combined key is of no use to clients, and stays so.
func TestInsideOnly(t *testing.T) {
	t.Parallel()
	a, x := newDeviceAgent(t), newTestAccount(t, mesh.G1)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	approve(t, a, x.Account.Name())
	for i, edit := range []func(*mesh.DeviceActivateRequest){
		func(q *mesh.DeviceActivateRequest) { q.InsideOnly = true },
		func(q *mesh.DeviceActivateRequest) { q.Update, q.Confirm = true, true },
	} {
		r := activate(t, a, x.connect(t, d), edit)
		if r.Status != mesh.StatusOK {
			t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
		}
		k := keyNamed(t, r.Account.Keys, "DeviceEncryption")
		if k.Use != string(token.UseSeal) {
			t.Fatalf("connection %d: use %s", i+1, k.Use)
		}
		e, err := a.ring.Snapshot().Find(k.Udf)
		if err != nil {
			t.Fatal(err)
		}
		letter, err := mesh.Encrypt(rand.Reader, []byte("hello"), "", e.Public)
		if err != nil {
			t.Fatal(err)
		}
		c := &connected{agent: a, udf: k.Udf}
		if got := c.decrypt(t, letter.Header.Recipients[0]); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "use") {
			t.Errorf("connection %d: %+v", i+1, got)
		}
	}
}
