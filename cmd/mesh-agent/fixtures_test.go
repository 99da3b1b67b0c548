package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// fixture is a file of published data, or one made from it, with the members of all kinds.
type fixture struct {
	name       string
	Kind       string
	Generation string
	Input      fixtureInput
	Expect     json.RawMessage
	Cases      []fixtureCase
}

type fixtureInput struct {
	Seed              string
	Envelope          json.RawMessage
	DeviceSeed        string `json:"device_seed"`
	ActivationKey     string
	ProfileDevice     map[string]json.RawMessage
	ConnectionDevice  map[string]json.RawMessage
	CatalogedDevice   json.RawMessage
	RespondConnection json.RawMessage
	ActivationCommon  json.RawMessage
	Shares            []string
	Threshold         int
	RecipientPrivate  fixtureKey `json:"recipient_private"`

	EnvelopedProfileUser, EnvelopedProfileDevice, EnvelopedConnection,
	EnvelopedActivationDevice, EnvelopedRespondConnection json.RawMessage

	Pin, Account      string
	RequestConnection json.RawMessage
	ServerNonce       string

	Scalar  octets `json:"combined_scalar_le_hex"`
	Public  string `json:"combined_public"`
	Message octets `json:"message_hex"`
}

type fixtureKey struct {
	KeyName string
	Curve   string `json:"crv"`
	OKM     octets `json:"okm_hex"`
	Public  string
	Udf     string
}

type fixtureCase struct {
	Udf       string
	Curve     string `json:"crv"`
	Public    string
	Ephemeral string `json:"ephemeral_public57"`
	Base      octets `json:"base_partial57_hex"`
	Other     octets `json:"activation_partial57_hex"`
	Sum       octets `json:"sum57_hex"`
	Scalar    octets `json:"combined_scalar_le_hex"`
}

// expect decodes what a fixture expects.
func (f *fixture) expect(t *testing.T, v any) {
	t.Helper()
	if err := json.Unmarshal(f.Expect, v); err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
}

// fixtureKinds has the commands of each kind. What is done here with published fixtures is done with those that are
// made by another program, too.
var fixtureKinds = map[string]func(*testing.T, program, *fixture){
	"key-udf":                    keyUdfFixture,
	"profile-device":             profileFixture,
	"profile-device-negative":    forgedFixture,
	"profile-device-short-roots": shortRootsFixture,
	"activation-combine-public":  combineFixture,
	"activation-common":          commonFixture,
	"activation-e2e":             activationFixture,
	"connection-chain":           chainFixture,
	"catalog":                    catalogFixture,
	"account-escrow":             escrowFixture,
	"dare-unwrap":                unwrapFixture,
	"connect-witness":            witnessFixture,
	"threshold-agreement":        thresholdFixture,
	"composite-signature-trap":   trapFixture,
}

// TestFixturesThroughProgram has every fixture there is, by its kind. A kind without commands is a failure, and
// so is one without fixtures.
func TestFixturesThroughProgram(t *testing.T) {
	t.Parallel()
	found := map[string][]*fixture{}
	for _, name := range publishedFixtures(t, "*.json", 30) {
		f := &fixture{name: filepath.Base(name)}
		var kind struct{ Kind string }
		if loadFixture(t, name, &kind); kind.Kind == "" {
			continue // vectors, which have no kind
		}
		loadFixture(t, name, f)
		found[f.Kind] = append(found[f.Kind], f)
	}
	for _, kind := range slices.Sorted(maps.Keys(found)) {
		if fixtureKinds[kind] == nil {
			t.Errorf("no command for fixtures of kind %s", kind)
		}
	}
	for kind, run := range fixtureKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			if len(found[kind]) == 0 {
				t.Fatal("there are no fixtures")
			}
			for _, f := range found[kind] {
				t.Run(f.name, func(t *testing.T) { run(t, startProgram(t), f) })
			}
		})
	}
}

// refused runs a command that must fail and say why.
func (p program) refused(stdin, want string, args ...string) {
	p.Helper()
	c := exec.Command("mesh-agent", append(args, "--socket", p.socket)...)
	c.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err == nil || stdout.Len() != 0 || !strings.Contains(stderr.String(), want) {
		p.Errorf("mesh-agent %v: %v\n%s%s\nwant a refusal with %q", args, err, stdout.String(), stderr.String(), want)
	}
}

// file writes a file for a command.
func (p program) file(data []byte) string {
	p.Helper()
	f, err := os.CreateTemp(p.TempDir(), "")
	if err != nil {
		p.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		p.Fatal(err)
	}
	return f.Name()
}

// derived imports a key of a seed and returns its UDF of the fixture's generation.
func (p program) derived(f *fixture, seed, name, curve, use string) string {
	p.Helper()
	return p.imported(seed, use, "--key-name", name, "--alg", curve, "--generation", f.Generation)
}

func octetsOf(t *testing.T, text string) []byte {
	t.Helper()
	octets, err := strictjson.DecodeBase64([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return octets
}

func publicKey(t *testing.T, curve, text string) string {
	t.Helper()
	return fmt.Sprintf(`{"PublicKeyECDH":{"crv":%q,"Public":%s}}`, curve, binary(octetsOf(t, text)))
}

// keyUdfFixture has "encrypt" name a recipient by the key, and refuse one whose Udf is another's.
func keyUdfFixture(t *testing.T, p program, f *fixture) {
	for i, c := range f.Cases {
		claim := func(udf string) string {
			return p.file(fmt.Appendf(nil, `{"KeyData":{"Udf":%q,"PublicParameters":%s}}`, udf, publicKey(t, c.Curve, c.Public)))
		}
		out := p.run("x", "encrypt", "--generation", f.Generation, "--to", claim(c.Udf))
		if !strings.Contains(out, `"kid":"`+c.Udf+`"`) {
			t.Errorf("%s key %s: %s", c.Curve, c.Udf, out)
		}
		if other := f.Cases[(i+1)%len(f.Cases)].Udf; other != c.Udf {
			p.refused("x", "Udf", "encrypt", "--to", claim(other))
		}
	}
}

func profileFixture(t *testing.T, p program, f *fixture) {
	var want struct {
		Udf  string `json:"profile_udf"`
		Keys map[string]fixtureKey
	}
	f.expect(t, &want)
	if out := p.run(string(f.Input.Envelope), "device", "verify", "--device", want.Udf, "--json"); !strings.Contains(out, `"Generation": "`+f.Generation+`"`) {
		t.Errorf("verified: %s", out)
	}
	p.refused(string(f.Input.Envelope), "not the expected one", "device", "verify", "--device", "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA")
	p.refused(string(f.Input.Envelope), "not the expected one", "device", "verify", "--account", want.Udf)
	for member, k := range want.Keys {
		curve := k.Curve
		if udf := p.derived(f, f.Input.Seed, k.KeyName, curve, useOf(curve)); udf != k.Udf {
			t.Errorf("%s of the seed is %s, want %s", member, udf, k.Udf)
		}
	}
	// The device of the seed is this one, and its profile has the keys.
	p = startProgram(t)
	p.run(f.Input.Seed, "device", "init", "--token", "soft", "--seed", "-", "--profile", p.file(f.Input.Envelope))
	if udf := p.run("", "device", "profile", "--udf"); udf != want.Udf {
		t.Errorf("device %s, want %s", udf, want.Udf)
	}
	shown := p.run("", "device", "show")
	for member, k := range want.Keys {
		if member != "ProfileSignature" && !strings.Contains(shown, k.Udf) {
			t.Errorf("%s %s is not in\n%s", member, k.Udf, shown)
		}
	}
}

func forgedFixture(_ *testing.T, p program, f *fixture) {
	p.refused(string(f.Input.Envelope), "bad profile", "device", "verify")
	p.refused("x", "bad profile", "encrypt", "--to", p.file(f.Input.Envelope))
}

func shortRootsFixture(t *testing.T, p program, f *fixture) {
	var want struct {
		Udf string `json:"profile_udf"`
	}
	f.expect(t, &want)
	p.run(string(f.Input.Envelope), "device", "verify", "--device", want.Udf)
}

// combineFixture adds the public keys of device and contribution by "share combine".
func combineFixture(t *testing.T, p program, f *fixture) {
	var want map[string]struct {
		Contribution fixtureKey
		Combined     string `json:"combined_public"`
		Udf          string `json:"combined_udf"`
	}
	f.expect(t, &want)
	for member, w := range want {
		curve := w.Contribution.Curve
		udf := p.derived(f, f.Input.ActivationKey, w.Contribution.KeyName, curve, useOf(curve))
		if udf != w.Contribution.Udf {
			t.Errorf("%s: contribution %s, want %s", member, udf, w.Contribution.Udf)
		}
		contribution := p.file([]byte(p.run("", "key", "public", udf)))
		sum, err := parsePoint([]byte(p.run("", "share", "combine", p.file(f.Input.ProfileDevice[member]), contribution)))
		if err != nil || !bytes.Equal(sum.Public, octetsOf(t, w.Combined)) {
			t.Errorf("%s: combined %x, %v; want %s", member, sum.Public, err, w.Combined)
		}
		out := p.run("x", "encrypt", "--generation", f.Generation, "--to", p.file([]byte(publicKey(t, curve, w.Combined))))
		if !strings.Contains(out, `"kid":"`+w.Udf+`"`) {
			t.Errorf("%s: combined key is not named %s: %s", member, w.Udf, out)
		}
	}
}

// commonFixture imports the account's keys that an activation holds.
func commonFixture(t *testing.T, p program, f *fixture) {
	var common map[string]json.RawMessage
	if err := json.Unmarshal(f.Input.ActivationCommon, &common); err != nil {
		t.Fatal(err)
	}
	imports := 0
	take := func(text json.RawMessage) {
		k, err := mesh.ParseKeyData(strictjson.EscapeControls(text))
		if err != nil {
			t.Fatal(err)
		}
		if udf := p.imported(string(text), useOf(k.PublicParameters.PublicKeyECDH.Curve), "--generation", f.Generation); udf != k.Udf {
			t.Errorf("key %s, want %s", udf, k.Udf)
		}
		imports++
	}
	for name, text := range common {
		if name != "Entries" {
			take(text)
			continue
		}
		var entries []struct{ Key json.RawMessage }
		if err := json.Unmarshal(text, &entries); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			take(e.Key)
		}
	}
	if imports < 3 {
		t.Errorf("%d keys", imports)
	}
}

// activationFixture opens and combines by single commands what "device activate" refuses as a whole, since
// the account's profile does not list the signer.
func activationFixture(t *testing.T, p program, f *fixture) {
	var want struct {
		Seed      octets `json:"activation_base_seed_hex"`
		Plaintext string `json:"activation_plaintext"`
		Combined  map[string]struct {
			Udf    string
			Curve  string `json:"crv"`
			Public string
			Scalar octets `json:"scalar_le_hex"`
		}
		Verdict string
	}
	f.expect(t, &want)
	base := p.derived(f, f.Input.DeviceSeed, "BaseDeviceEncrypt", "X448", "decrypt")
	if out := p.run(string(f.Input.EnvelopedActivationDevice), "decrypt", "--key", base); out != strings.TrimSpace(want.Plaintext) {
		t.Errorf("activation is %q", out)
	}
	e, err := mesh.ParseEnvelope(f.Input.EnvelopedActivationDevice)
	if err != nil {
		t.Fatal(err)
	}
	var seed mesh.ResultDecrypt
	to := e.Header.Recipients[0]
	p.operate(mesh.TagOperationDecrypt, mesh.OperationDecrypt{KeyId: base, Recipient: &mesh.DecryptRecipient{EphemeralKey: to.EphemeralKey, WrappedKey: to.WrappedKey}},
		mesh.TagResultDecrypt, &seed)
	if !bytes.Equal(seed.Seed, want.Seed) {
		t.Errorf("base seed %x, want %x", seed.Seed, want.Seed)
	}
	for member, k := range want.Combined {
		if udf := p.imported(seedKey(k.Curve+"z", k.Scalar), useOf(k.Curve)); udf != k.Udf {
			t.Errorf("combined %s %s, want %s", member, udf, k.Udf)
		}
	}
	device := startProgram(t)
	device.run(f.Input.DeviceSeed, "device", "init", "--token", "soft", "--seed", "-", "--profile", p.file(f.Input.EnvelopedProfileDevice))
	device.run("", "device", "approve", headerID(t, f.Input.EnvelopedProfileUser))
	entry := fmt.Sprintf(`{"DeviceUdf":%q,"EnvelopedProfileUser":%s,"EnvelopedProfileDevice":%s,"EnvelopedConnectionUser":%s,"EnvelopedActivationDevice":%s}`,
		headerID(t, f.Input.EnvelopedProfileDevice), f.Input.EnvelopedProfileUser, f.Input.EnvelopedProfileDevice, f.Input.EnvelopedConnection, f.Input.EnvelopedActivationDevice)
	device.refused(entry, "verify step 3 connection signature", "device", "activate", "--allow-unnamed-account")
	if f.Input.EnvelopedRespondConnection != nil {
		device.refused(string(f.Input.EnvelopedRespondConnection), "answers no request", "device", "activate")
		device.refused(string(f.Input.EnvelopedRespondConnection), "verify step", "device", "activate", "--unsolicited", "--allow-unnamed-account")
	}
	device.refused(string(f.Input.EnvelopedActivationDevice), "does not permit", "decrypt", "--key", base)
}

func chainFixture(t *testing.T, p program, f *fixture) {
	var want struct {
		Account string `json:"account_udf"`
		Device  string `json:"device_udf"`
	}
	f.expect(t, &want)
	verify := []string{"device", "verify", "--account", want.Account, "--device", want.Device}
	if strings.Contains(f.name, "g1") { // before May 2022 or by published data of then
		_, talk, _ := runProgram(t, f.Input.CatalogedDevice, verify...)
		if strings.Contains(talk, "ProfileUdf: it is missing") {
			verify = append(verify, "--allow-unnamed-account")
		}
	}
	if out := p.run(string(f.Input.CatalogedDevice), verify...); !strings.Contains(out, want.Account) {
		t.Errorf("verified: %s", out)
	}
	p.refused(string(f.Input.CatalogedDevice), "verify step 1 account profile", "device", "verify", "--account", want.Device)
	p.refused(string(f.Input.CatalogedDevice), "verify step 2 device profile", append(verify, "--device", want.Account)...)
	var entry map[string]json.RawMessage
	if err := json.Unmarshal(f.Input.CatalogedDevice, &entry); err != nil {
		t.Fatal(err)
	}
	entry["EnvelopedConnectionDevice"], entry["EnvelopedConnectionService"] = entry["EnvelopedConnectionService"], entry["EnvelopedConnectionDevice"]
	swapped, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	p.refused(string(swapped), "verify step 4 account binding", verify...)
	frame := func(index int64, digest []byte) string {
		e := mesh.Envelope{Body: fmt.Appendf(nil, `{"CatalogedDevice":%s}`, f.Input.CatalogedDevice)}
		e.Header.SequenceInfo = &mesh.SequenceInfo{Index: index}
		e.Trailer = &mesh.Trailer{PayloadDigest: digest}
		text, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	p.run(frame(3, nil), verify...)
	p.refused(frame(3, make([]byte, 64)), "payload digest does not match", verify...)
	p.refused(frame(-1, nil), "SequenceInfo", verify...)
	p.refused(string(f.Input.CatalogedDevice), "--account is empty", "device", "verify", "--account", "")
	// It is another device's, and this one says so.
	p.run("", "device", "init", "--token", "soft", "--generation", f.Generation)
	p.run("", "device", "approve", want.Account)
	p.refused(string(f.Input.CatalogedDevice), "verify step 2 device profile", "device", "activate", "--allow-unnamed-account")
}

func catalogFixture(_ *testing.T, p program, f *fixture) {
	response := `{"RespondConnection":` + string(f.Input.RespondConnection) + `}`
	p.refused(response, "ProfileUdf: it is missing", "device", "verify")
	p.run(response, "device", "verify", "--allow-unnamed-account")
}

// escrowFixture recovers an account from each pair of shares, and looks at its keys.
func escrowFixture(t *testing.T, p program, f *fixture) {
	var want struct {
		Seed string `json:"seed_udf"`
		Keys map[string]fixtureKey
	}
	f.expect(t, &want)
	for name, k := range want.Keys {
		if udf := p.derived(f, want.Seed, k.KeyName, k.Curve, useOf(k.Curve)); udf != k.Udf {
			t.Errorf("%s is %s, want %s", name, udf, k.Udf)
		}
	}
	for i := range f.Input.Shares {
		p := startProgram(t)
		shares := append(slices.Clone(f.Input.Shares[i:]), f.Input.Shares[:i]...)[:f.Input.Threshold]
		p.refused(shares[0], "Recover", "account", "recover", "--address", "alice@example.com", "--token", "soft")
		p.run(strings.Join(shares, "\n"), "account", "recover", "--address", "alice@example.com", "--token", "soft", "--generation", f.Generation)
		shown := p.run("", "account", "show")
		for _, name := range []string{"AdministratorSignature", "EscrowEncryption", "CommonEncryption", "CommonAuthentication", "CommonSignature"} {
			k, ok := want.Keys[name]
			if ok && !strings.Contains(shown, k.Udf) {
				t.Errorf("%s %s is not in\n%s", name, k.Udf, shown)
			}
		}
		if root, ok := want.Keys["ProfileSignature"]; ok && f.Generation == "g1" && p.run("", "account", "profile", "--udf") != root.Udf {
			t.Errorf("the account has another name than %s", root.Udf)
		}
		// Its escrow opens here.
		p.run("", "account", "escrow")
	}
}

func unwrapFixture(t *testing.T, p program, f *fixture) {
	var want struct {
		Seed      octets `json:"base_seed_hex"`
		Key       octets `json:"content_key_hex"`
		IV        octets `json:"iv_hex"`
		Plaintext string
	}
	f.expect(t, &want)
	k := f.Input.RecipientPrivate
	udf := p.imported(seedKey(k.Curve, k.OKM), "decrypt", "--generation", f.Generation)
	if udf != k.Udf {
		t.Errorf("key %s, want %s", udf, k.Udf)
	}
	if out := p.run(string(f.Input.Envelope), "decrypt"); out != strings.TrimSpace(want.Plaintext) {
		t.Errorf("plaintext %q", out)
	}
	e, err := mesh.ParseEnvelope(f.Input.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	op := mesh.OperationDecrypt{KeyId: udf, Recipient: &mesh.DecryptRecipient{EphemeralKey: e.Header.Recipients[0].EphemeralKey, WrappedKey: e.Header.Recipients[0].WrappedKey}}
	var got mesh.ResultDecrypt
	p.operate(mesh.TagOperationDecrypt, op, mesh.TagResultDecrypt, &got)
	if !bytes.Equal(got.Seed, want.Seed) {
		t.Errorf("seed %x, want %x", got.Seed, want.Seed)
	}
	op.Release, op.Salt = "key", e.Header.Salt
	p.operate(mesh.TagOperationDecrypt, op, mesh.TagResultDecrypt, &got)
	if !bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.IV, want.IV) {
		t.Errorf("key %x and IV %x, want %x and %x", got.Key, got.IV, want.Key, want.IV)
	}
	e.Body[len(e.Body)-17] ^= 1 // the last block has the padding
	changed, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p.refused(string(changed), "decryption failed", "decrypt")
}

// witnessFixture verifies the request with its PIN, and joins it with the account's profile, which another
// fixture of the same commit has, to the ConnectResponse that both sides compare a witness of.
func witnessFixture(t *testing.T, p program, f *fixture) {
	var want struct{ Witness string }
	f.expect(t, &want)
	request := `{"RequestConnection":` + string(f.Input.RequestConnection) + `}`
	p.run(request, "device", "verify", "--pin", p.file([]byte(f.Input.Pin+"\n")))
	p.refused(request, "PIN", "device", "verify", "--pin", p.file([]byte("AAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AA")))
	other := strings.Replace(request, f.Input.Account, "mallory@example.com", 1)
	p.refused(other, "PIN", "device", "verify", "--pin", p.file([]byte(f.Input.Pin)))
	hostile := strings.Replace(request, f.Input.Account, `\u001b[2Judf  MAAA\n\u202e`, 1)
	if out := p.run(hostile, "device", "verify"); !strings.Contains(out, `address     \u001b[2Judf  MAAA; \u202e`) || strings.ContainsAny(out, "\x1b\u202e") {
		t.Errorf("an address reaches the terminal: %q", out)
	}

	var chain fixture
	loadFixture(t, filepath.Join("../../mesh/testdata", strings.Replace(f.name, "connect-witness", "connection-chain", 1)), &chain)
	var entry struct{ EnvelopedProfileUser json.RawMessage }
	if err := json.Unmarshal(chain.Input.CatalogedDevice, &entry); err != nil {
		t.Fatal(err)
	}
	response := func(witness string) string {
		inner := fmt.Sprintf(`{"AcknowledgeConnection":{"MessageId":%q,"EnvelopedRequestConnection":[{},%s],"ServerNonce":%q,"Witness":%q}}`,
			witness, binary(strictjson.EscapeControls([]byte(request))), f.Input.ServerNonce, witness)
		return fmt.Sprintf(`{"ConnectResponse":{"EnvelopedAcknowledgeConnection":[{},%s],"EnvelopedProfileAccount":%s}}`, binary([]byte(inner)), entry.EnvelopedProfileUser)
	}
	if out := p.run(response(want.Witness), "device", "verify", "--json"); !strings.Contains(out, `"Witness": "`+want.Witness+`"`) {
		t.Errorf("verified: %s", out)
	}
	p.refused(response("AAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA"), "witness is not that", "device", "verify")
}

// thresholdFixture has two shares of a key, the device's and the contribution, whose points "share combine" adds.
func thresholdFixture(t *testing.T, p program, f *fixture) {
	base := p.derived(f, f.Input.DeviceSeed, "BaseDeviceEncrypt", "X448", "agree")
	other := p.derived(f, f.Input.ActivationKey, "ActivationDeviceEncrypt", "X448", "agree")
	if len(f.Cases) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range f.Cases {
		peer := p.file([]byte(publicKey(t, "X448", c.Ephemeral)))
		var files []string
		for _, share := range []struct {
			udf  string
			want octets
		}{{base, c.Base}, {other, c.Other}} {
			out := p.run("", "agree", "--key", share.udf, "--peer", peer)
			if got, err := parsePoint([]byte(out)); err != nil || !bytes.Equal(got.Public, share.want) {
				t.Errorf("partial agreement %s, %v; want %x", out, err, share.want)
			}
			files = append(files, p.file([]byte(out)))
		}
		sum, err := parsePoint([]byte(p.run("", append([]string{"share", "combine"}, files...)...)))
		if err != nil || !bytes.Equal(sum.Public, c.Sum) {
			t.Errorf("sum %x, %v; want %x", sum.Public, err, c.Sum)
		}
		whole := p.imported(seedKey("X448z", c.Scalar), "agree")
		if got, err := parsePoint([]byte(p.run("", "agree", "--key", whole, "--peer", peer))); err != nil || !bytes.Equal(got.Public, c.Sum) {
			t.Errorf("agreement of the combined key %x, %v; want %x", got.Public, err, c.Sum)
		}
	}
}

// trapFixture signs with a key that has no prefix of RFC 8032, the sum of two. The published signature derives its
// nonce from what everybody knows and gives the key away.
func trapFixture(t *testing.T, p program, f *fixture) {
	var want struct {
		Insecure octets `json:"insecure_signature_hex"`
	}
	f.expect(t, &want)
	key := token.PublicKey{Algorithm: token.Ed448, Octets: octetsOf(t, f.Input.Public)}
	if !mesh.VerifySignature(key, f.Input.Message, want.Insecure) {
		t.Error("the published signature does not verify")
	}
	udf := p.imported(seedKey("Ed448z", f.Input.Scalar), "sign")
	seen := map[string]bool{string(want.Insecure[:57]): true}
	for range 3 {
		var result mesh.ResultSign
		p.operate(mesh.TagOperationSign, mesh.OperationSign{KeyId: udf, Data: mesh.Binary(f.Input.Message)}, mesh.TagResultSign, &result)
		if !mesh.VerifySignature(key, f.Input.Message, result.Signature) {
			t.Error("the signature does not verify")
		}
		if r := string(result.Signature[:57]); seen[r] {
			t.Error("R was used before")
		} else {
			seen[r] = true
		}
	}
}

// runProgram runs a command line in this process.
func runProgram(t *testing.T, stdin []byte, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, talk bytes.Buffer
	code = run(t.Context(), args, world{bytes.NewReader(stdin), &out, &talk, func(string) string { return "" }})
	return out.String(), talk.String(), code
}

// publishedFixtures returns the files of published data that match a pattern, at least n.
func publishedFixtures(t *testing.T, pattern string, n int) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../../mesh/testdata", pattern))
	if err != nil || len(files) < n {
		t.Fatalf("%s: %d files, %v; want %d", pattern, len(files), err, n)
	}
	return files
}

func loadFixture(t *testing.T, file string, v any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// headerID is the EnvelopeId of an envelope.
func headerID(t *testing.T, envelope json.RawMessage) string {
	t.Helper()
	var parts []json.RawMessage
	var header struct {
		ID string `json:"EnvelopeId"`
	}
	if err := json.Unmarshal(envelope, &parts); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(parts[0], &header); err != nil {
		t.Fatal(err)
	}
	return header.ID
}
