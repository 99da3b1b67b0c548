package agent

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// world is an agent with keys of every use in tokens of every kind, a device, and an account to which that is connected, and the requests, each
// valid in its time, by which all of that was made and used.
type world struct {
	*Agent
	log      syncBuffer
	dir      string // of the records of device and account
	requests []string
}

// helpful is a Prompter of which the answers are right.
type helpful struct{ askingNobody }

func (helpful) PIN(context.Context, prompt.Question) ([]byte, error) { return []byte(rightPIN), nil }
func (helpful) Confirm(context.Context, prompt.Question) error       { return nil }

func newWorld(t testing.TB) *world {
	t.Helper()
	curves := slices.DeleteFunc(token.Algorithms(), func(a token.Algorithm) bool { return a.RSABits() != 0 })
	w := &world{Agent: newAgent(t, Limits{},
		tokentest.NewFake(tokentest.FakeOptions{Name: "soft", Protection: token.ProtectionSoftware, Algorithms: token.Algorithms(), Parallel: 2}),
		&attestingFake{Fake: tokentest.NewFake(tokentest.FakeOptions{Name: "card", Kind: "piv", Algorithms: curves, PIN: []byte(rightPIN), Tries: 1 << 30})},
		tokentest.NewFake(tokentest.FakeOptions{Name: "rsa", Algorithms: token.Algorithms()}),
		tokentest.NewSealingFake(tokentest.FakeOptions{Name: "tpm", Kind: "tpm", Algorithms: []token.Algorithm{token.P256}}))}
	w.Agent.log = slog.New(slog.NewTextHandler(&w.log, nil))
	w.config.Prompter = helpful{}
	w.dir = keepDevice(t, w.Agent)
	w.useKeys(t)
	w.useDevice(t)
	return w
}

// say sends a request, which must be good, and returns the reply.
func (w *world) say(t testing.TB, request string) string {
	t.Helper()
	w.requests = append(w.requests, request)
	reply := operateJSON(t, w.Agent, request)
	if strings.Contains(reply, `"Error":`) || !strings.Contains(reply, `"Status":201`) {
		t.Fatalf("%.300s: %.300s", request, reply)
	}
	return reply
}

// tell is say for a message of package mesh.
func tell[R any](t testing.TB, w *world, tag string, body any) (out R) {
	t.Helper()
	tagged, err := strictjson.NewTagged(tag, body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := strictjson.Marshal(tagged)
	if err != nil {
		t.Fatal(err)
	}
	var outer strictjson.Tagged
	if err := strictjson.Unmarshal([]byte(w.say(t, string(text))), &outer); err != nil {
		t.Fatal(err)
	}
	if err := outer.Decode(&out); err != nil {
		t.Fatal(err)
	}
	return out
}

// useKeys makes keys of every use, and has each do what it does.
func (w *world) useKeys(t testing.TB) {
	t.Helper()
	for _, simple := range []string{"HelloRequest", "StatusRequest", "DoctorRequest", "TokenListRequest", "KeyListRequest"} {
		w.say(t, `{"`+simple+`":{}}`)
	}
	w.say(t, `{"TokenUnlockRequest":{"Token":"card","PIN":"`+b64([]byte(rightPIN))+`"}}`)
	w.say(t, `{"AttestIdentifyRequest":{"Token":"card"}}`)
	recipient := mesh.MarshalKeyDataPublic(generate(t, w.Agent, "soft", token.X448, token.UseAgree).Public, mesh.G1)
	x25519 := generate(t, w.Agent, "soft", token.X25519, token.UseDecrypt)
	shareTo := fmt.Sprintf("[%s,%s]", recipient, mesh.MarshalKeyDataPublic(x25519.Public, mesh.G2))
	for use, more := range map[string]string{
		"ssh": `"Algorithm":"P256"`, "sign": `"Algorithm":"Ed448","PIN":"once","Touch":"never"`, "agree": `"Algorithm":"X448","Label":"work"`,
		"decrypt": `"Algorithm":"X448","Release":"seed"`, "authenticate": `"Algorithm":"X25519"`,
		"sign-assertion": `"Algorithm":"Ed25519","Tags":["Contact","ProfileUser"]`, "split": `"Algorithm":"X448","ShareTo":` + shareTo,
	} {
		r := w.say(t, `{"KeyGenerateRequest":{"Token":"card","Use":"`+use+`",`+more+`}}`)
		var made struct {
			KeyGenerateResponse struct{ Key struct{ Udf string } }
		}
		if err := json.Unmarshal([]byte(r), &made); err != nil {
			t.Fatal(err)
		}
		w.use(t, token.Use(use), made.KeyGenerateResponse.Key.Udf)
	}
	w.use(t, token.UseSeal, generate(t, w.Agent, "soft", token.X25519, token.UseSeal).Udf)
	sealed := tell[mesh.KeyResponse](t, w, mesh.TagKeyGenerateRequest, mesh.KeyGenerateRequest{Home: mesh.Home{SealTo: "tpm", PIN: "none", PCRs: "sha256:0,7"}, Algorithm: "Ed448", Use: "sign"})
	w.say(t, fmt.Sprintf(`{"KeyResealRequest":{"KeyId":%q,"Recovery":%q,"PCRs":"sha256:7"}}`, sealed.Key.Udf, b64(sealed.Recovery)))
	w.say(t, `{"OperateRequest":{"AccountAddress":"a@b","Operations":[{"CryptographicOperationGenerate":{"Algorithm":"P384","Use":"sign","Token":"soft"}},{"CryptographicOperationGenerate":{"Algorithm":"Ed25519","Use":"ssh","Token":"soft"}}]}}`)
	w.takeIn(t, x25519)
	w.say(t, `{"TokenSetPINRequest":{"Token":"tpm","PIN":"`+b64([]byte("new"))+`"}}`)
	w.say(t, `{"TokenLockRequest":{"Token":"tpm"}}`)
	gone := generate(t, w.Agent, "soft", token.P256, token.UseSSH)
	w.say(t, `{"KeyListRequest":{"KeyId":"`+gone.Udf+`"}}`)
	w.say(t, `{"KeyListRequest":{"After":"M","Limit":2}}`)
	w.say(t, `{"KeyDeleteRequest":{"KeyId":"`+gone.Udf+`"}}`)
}

// use has a key do what its use permits.
func (w *world) use(t testing.TB, use token.Use, udf string) {
	t.Helper()
	key, err := w.ring.Snapshot().Find(udf)
	if err != nil {
		t.Fatal(err)
	}
	operate := func(tag, format string, args ...any) {
		t.Helper()
		w.say(t, fmt.Sprintf(`{"OperateRequest":{"Operations":[{"CryptographicOperation%s":{"KeyId":%q,%s}}]}}`, tag, udf, fmt.Sprintf(format, args...)))
	}
	point := func() string {
		curve, _ := mesh.CurveOf(key.Algorithm)
		s, err := keyshare.RandomScalar(curve, nil)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(`{"PublicKeyECDH":{"crv":%q,"Public":%q}}`, key.Algorithm, b64(s.Public().Bytes()))
	}
	switch use {
	case token.UseSign:
		operate("Sign", `"Data":"AAAA","Mode":"pure"`)
		operate("Sign", `"Data":"","PIN":%q`, b64([]byte(rightPIN)))
	case token.UseAgree:
		operate("KeyAgreement", `"PublicKey":%s`, point())
		operate("KeyAgreement", `"PublicKey":%s,"KeyCoefficient":%q`, point(), b64(append([]byte{2}, make([]byte, 55)...)))
	case token.UseDecrypt, token.UseSeal:
		e := letter(t, mesh.G1, "hello", key.Public)
		text, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if use == token.UseSeal {
			w.requests = append(w.requests, fmt.Sprintf(`{"KeyImportRequest":{"Token":"soft","Use":"sign","UnwrapWith":%q,"Key":%q}}`, udf, b64(text)))
			return
		}
		r := e.Header.Recipients[0]
		epk, err := strictjson.Marshal(r.EphemeralKey)
		if err != nil {
			t.Fatal(err)
		}
		to := fmt.Sprintf(`"Recipient":{"epk":%s,"wmk":%q}`, epk, b64(r.WrappedKey))
		operate("Decrypt", `%s`, to)
		operate("Decrypt", `%s,"Release":"key","Salt":"AAAA","Info":""`, to)
		w.requests = append(w.requests, fmt.Sprintf(`{"OperateRequest":{"Operations":[{"CryptographicOperationDecrypt":{"KeyId":%q,%s,"Partials":[%s]}}]}}`, udf, to, point()))
		operate("Decrypt", `"Release":"plaintext","Envelope":%s`, text)
		signer, _ := newSigner(t)
		if text, err = letter(t, mesh.G2, "hello", key.Public, signer).Marshal(); err != nil {
			t.Fatal(err)
		}
		operate("Decrypt", `"Release":"plaintext","Envelope":%s,"Signers":[{"PublicKeyECDH":{"crv":"Ed448","Public":%q}}]`, text, b64(signer.Public().Octets))
	case token.UseAuthenticate:
		operate("Authenticate", `"PublicKey":%s,"Agreement":%q`, point(), b64(make([]byte, 32)))
	case token.UseSignAssertion:
		recipient := mesh.MarshalKeyDataPublic(generate(t, w.Agent, "soft", token.X448, token.UseAgree).Public, mesh.G1)
		operate("SignEnvelope", `"Body":%q,"Generation":"g2","IncludeKey":true,"Recipients":[%s]`, b64([]byte(`{"Contact":{"Id":"x"}}`)), recipient)
	case token.UseSplit:
		operate("Share", `"Threshold":2,"Shares":2`)
	}
	_, document := challengeDocument(t)
	w.requests = append(w.requests, fmt.Sprintf(`{"AttestAnswerRequest":{"KeyId":%q,"Challenge":%q,"PCRs":"sha256:7,0"}}`, udf, document),
		fmt.Sprintf(`{"KeyExportRequest":{"KeyId":%q,"Format":"tss2"}}`, udf), `{"AcceptRollbackRequest":{}}`)
}

// takeIn imports keys in every form.
func (w *world) takeIn(t testing.TB, wrapper *keyring.Entry) {
	t.Helper()
	folder := "../internal/keyfile/testdata"
	files, err := os.ReadDir(folder)
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	good := 0
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil || len(data) > 16<<10 {
			continue
		}
		request := fmt.Sprintf(`{"KeyImportRequest":{"Token":"rsa","Use":"sign","Key":%q,"Passphrase":"YQ","Label":"x"}}`, b64(data))
		w.requests = append(w.requests, request)
		if strings.Contains(operateJSON(t, w.Agent, request), `"Status":201`) {
			good++
		}
	}
	if good < 3 {
		t.Fatalf("%d files of keys were taken in", good)
	}
	seed, err := mesh.GenerateSeed(cryptorand.Reader, mesh.SeedProfileDevice)
	if err != nil {
		t.Fatal(err)
	}
	w.requests = append(w.requests, fmt.Sprintf(`{"KeyImportRequest":{"SealTo":"tpm","PIN":"none","Use":"agree","Algorithm":"X448","KeyName":"k","Generation":"g2","Key":%q}}`, b64([]byte(seed.Text()))))
	scalar, err := keyshare.RandomScalar(keyshare.X448, nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := fmt.Sprintf(`{"PrivateKeyECDH":{"crv":"X448z","Private":%q}}`, b64(scalar.Bytes()))
	e, err := letter(t, mesh.G1, plain, wrapper.Public).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	w.say(t, fmt.Sprintf(`{"KeyImportRequest":{"Token":"soft","Use":"agree","UnwrapWith":%q,"Key":%q}}`, wrapper.Udf, b64(e)))
	decrypts := tell[mesh.KeyResponse](t, w, mesh.TagKeyGenerateRequest, mesh.KeyGenerateRequest{Home: mesh.Home{Token: "rsa"}, Algorithm: "RSA2048", Use: "decrypt"})
	w.requests = w.requests[:len(w.requests)-1]
	w.requests = append(w.requests, fmt.Sprintf(`{"OperateRequest":{"Operations":[{"CryptographicOperationDecrypt":{"KeyId":%q,"RSA":{"Padding":"oaep-sha256","Ciphertext":%q,"Label":"AA"}}},{"CryptographicOperationDecrypt":{"KeyId":%q,"RSA":{"Padding":"pkcs1","Ciphertext":%q,"Length":16}}}]}}`,
		decrypts.Key.Udf, b64(make([]byte, 256)), decrypts.Key.Udf, b64(make([]byte, 256))))
}

// useDevice makes a device and an account, and connects the one to the other.
func (w *world) useDevice(t testing.TB) {
	t.Helper()
	const alice = "alice@example.com"
	d := tell[mesh.DeviceResponse](t, w, mesh.TagDeviceInitRequest, mesh.DeviceInitRequest{Home: mesh.Home{Token: "soft"}, Description: "laptop"}).Device
	made := tell[mesh.AccountInitResponse](t, w, mesh.TagAccountInitRequest, mesh.AccountInitRequest{Home: mesh.Home{Token: "soft"}, Address: alice, Shares: 3, Threshold: 2})
	w.say(t, `{"DeviceShowRequest":{}}`)
	pin := tell[mesh.AccountPINResponse](t, w, mesh.TagAccountPINRequest, mesh.AccountPINRequest{Account: alice, Hours: 2})
	tell[mesh.Reply](t, w, mesh.TagDeviceApproveRequest, mesh.DeviceApproveRequest{Account: made.Account.Udf, Address: alice})
	request := tell[mesh.DeviceConnectResponse](t, w, mesh.TagDeviceConnectRequest, mesh.DeviceConnectRequest{Account: alice, PIN: pin.PIN}).Request
	acknowledged := tell[mesh.AccountAcknowledgeResponse](t, w, mesh.TagAccountAcknowledgeRequest, mesh.AccountAcknowledgeRequest{Request: request})
	tell[mesh.DeviceWitnessResponse](t, w, mesh.TagDeviceWitnessRequest, mesh.DeviceWitnessRequest{ConnectResponse: acknowledged.ConnectResponse})
	connect := mesh.AccountConnectRequest{Account: alice, Request: request, Witness: acknowledged.Witness, Device: d.Udf, Roles: []string{"threshold"}, Stores: []string{"MMM_Device"}}
	connected := tell[mesh.AccountConnectResponse](t, w, mesh.TagAccountConnectRequest, connect)
	tell[mesh.DeviceActivateResponse](t, w, mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{Catalog: connected.Response, Release: "key"})
	granted := tell[mesh.AccountConnectResponse](t, w, mesh.TagAccountGrantRequest, mesh.AccountGrantRequest{Device: d.Udf, ApplicationGrants: mesh.ApplicationGrants{GrantSsh: true, GrantMail: []string{"a@example.org"}}})
	w.requests = w.requests[:len(w.requests)-1] // changed a little, it makes RSA keys, which takes long
	tell[mesh.AccountConnectResponse](t, w, mesh.TagAccountGrantRequest, mesh.AccountGrantRequest{Account: alice, Device: d.Udf, ApplicationGrants: mesh.ApplicationGrants{GrantSsh: true}})
	accounts := tell[mesh.AccountListResponse](t, w, mesh.TagAccountListRequest, mesh.AccountListRequest{Account: alice})
	tell[mesh.DeviceActivateResponse](t, w, mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{
		Catalog: granted.CatalogedDevice, Update: true, Confirm: true, Applications: accounts.Accounts[0].Applications, AllowUnnamed: true,
	})
	tell[mesh.AccountListResponse](t, w, mesh.TagAccountListRequest, mesh.AccountListRequest{Account: alice, Device: d.Udf})
	tell[mesh.AccountInitResponse](t, w, mesh.TagAccountEscrowRequest, mesh.AccountEscrowRequest{Account: alice, Shares: 3, Threshold: 2})
	revoked := tell[mesh.AccountRevokeResponse](t, w, mesh.TagAccountRevokeRequest, mesh.AccountRevokeRequest{Account: alice, Device: d.Udf})
	tell[mesh.DeviceActivateResponse](t, w, mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{Catalog: revoked.Revocation})
	tell[mesh.Reply](t, w, mesh.TagDeviceApproveRequest, mesh.DeviceApproveRequest{Account: made.Account.Udf, Address: alice})
	w.requests = append(w.requests, `{"DeviceDisconnectRequest":{"Account":"`+made.Account.Udf+`"}}`)
	tell[mesh.Reply](t, w, mesh.TagAccountForgetRequest, mesh.AccountForgetRequest{Account: alice, Recover: made.Shares})
	tell[mesh.AccountInitResponse](t, w, mesh.TagAccountInitRequest, mesh.AccountInitRequest{Home: mesh.Home{Token: "soft"}, Recover: made.Shares, Profile: made.Account.Profile})
}

// mutator changes requests. It is determined by its source.
type mutator struct {
	*rand.Rand
	world *world
}

// change makes some changes to a request.
func (m mutator) change(request string) string {
	for range 1 + m.IntN(3) {
		if m.IntN(12) == 0 {
			request = string(m.octets([]byte(request)))
			continue
		}
		request = m.tree(request)
	}
	return request
}

// tree changes a JSON text in one place, as a tree.
func (m mutator) tree(text string) string {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return string(m.octets([]byte(text)))
	}
	n := 0
	count(v, &n)
	at := m.IntN(n)
	out, err := json.Marshal(m.replace(v, &at))
	if err != nil {
		return text
	}
	return string(out)
}

// count counts the values in a tree.
func count(v any, n *int) {
	*n++
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			count(x, n)
		}
	case []any:
		for _, x := range v {
			count(x, n)
		}
	}
}

// replace changes value number at of a tree.
func (m mutator) replace(v any, at *int) any {
	if *at == 0 {
		*at--
		return m.value(v)
	}
	*at--
	switch v := v.(type) {
	case map[string]any:
		for _, k := range sortedKeys(v) {
			if *at < 0 {
				break
			}
			v[k] = m.replace(v[k], at)
		}
	case []any:
		for i := range v {
			if *at < 0 {
				break
			}
			v[i] = m.replace(v[i], at)
		}
	}
	return v
}

func sortedKeys(v map[string]any) []string {
	var keys []string
	for k := range v {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// value is another one in the place of v.
func (m mutator) value(v any) any {
	if m.IntN(8) == 0 {
		return m.strange()
	}
	switch v := v.(type) {
	case map[string]any:
		keys := sortedKeys(v)
		switch {
		case len(keys) == 0:
		case m.IntN(3) == 0:
			delete(v, keys[m.IntN(len(keys))])
		case m.IntN(2) == 0:
			v[keys[m.IntN(len(keys))]] = v[keys[m.IntN(len(keys))]]
		default:
			v[m.word()] = v[keys[m.IntN(len(keys))]]
		}
		return v
	case []any:
		switch {
		case len(v) == 0:
			return []any{m.strange()}
		case m.IntN(2) == 0:
			i := m.IntN(len(v))
			return slices.Delete(v, i, i+1)
		}
		x := v[m.IntN(len(v))]
		for range 1 << m.IntN(8) {
			v = append(v, x)
		}
		return v
	case string:
		return m.text(v)
	}
	return m.strange()
}

// text changes a string: what is binary in it, as such, and JSON in that, as a tree.
func (m mutator) text(s string) string {
	if m.IntN(8) == 0 {
		return m.word()
	}
	if b, err := base64.RawURLEncoding.DecodeString(s); err == nil && len(b) > 0 && m.IntN(4) != 0 {
		if json.Valid(b) && m.IntN(4) != 0 {
			return b64([]byte(m.tree(string(b))))
		}
		return b64(m.octets(b))
	}
	return string(m.octets([]byte(s)))
}

// octets changes some.
func (m mutator) octets(b []byte) []byte {
	if len(b) == 0 {
		return []byte{byte(m.IntN(256))}
	}
	i := m.IntN(len(b))
	switch m.IntN(7) {
	case 0:
		return b[:i]
	case 1:
		return append(b[i:len(b):len(b)], b...)
	case 2:
		return slices.Insert(b, i, byte(m.IntN(256)))
	case 3:
		for j := i; j < len(b); j++ {
			b[j] = byte(m.IntN(2)) * 0xff
		}
	case 4:
		b[i] ^= 1 << m.IntN(8)
	case 5:
		b[i] = []byte{0, 0x7f, 0x80, 0xff, '"', '{', '[', '-'}[m.IntN(8)]
	default:
		return slices.Delete(b, i, min(len(b), i+1+m.IntN(8)))
	}
	return b
}

// word is a name that means something somewhere.
func (m mutator) word() string {
	words := strings.FieldsFunc(m.world.requests[m.IntN(len(m.world.requests))], func(r rune) bool { return strings.ContainsRune(`{}[]",:`, r) })
	if len(words) == 0 {
		return ""
	}
	return words[m.IntN(len(words))]
}

// strange is a value of any kind.
func (m mutator) strange() any {
	switch m.IntN(9) {
	case 0:
		return nil
	case 1:
		return m.IntN(2) == 0
	case 2:
		return json.Number([]string{"0", "-1", "1", "255", "2147483648", "-9223372036854775808", "9223372036854775807", "1e9", "0.5"}[m.IntN(9)])
	case 3:
		return strings.Repeat([]string{"A", "\u0000", "é", "=", "-", "M"}[m.IntN(6)], 1<<m.IntN(12))
	case 4:
		return map[string]any{}
	case 5:
		var v any = []any{}
		for range 1 << m.IntN(13) {
			v = []any{v}
		}
		return v
	case 6:
		return []any{}
	case 7:
		var v any
		if json.Unmarshal([]byte(m.world.requests[m.IntN(len(m.world.requests))]), &v) == nil {
			return v
		}
	}
	return m.word()
}

// FuzzRequests changes valid requests, of every kind, in ways that a seed determines: the agent answers each of them, and none with an
// incident.
func FuzzRequests(f *testing.F) {
	for seed := range uint64(100) {
		f.Add(seed)
	}
	w := newWorld(f) // one for all inputs, because it takes longer to make than an input may: keys and records add up
	known := make(map[string]bool)
	for _, request := range w.requests {
		tag, body, err := cutTagged([]byte(request))
		if err != nil {
			f.Fatal(err)
		}
		known[tag] = true
		for _, op := range operations {
			known[op.tag] = known[op.tag] || strings.Contains(string(body), op.tag)
		}
	}
	for _, m := range append(messages[:], deviceMessages[:]...) {
		if !known[m.request] {
			f.Errorf("no valid %s", m.request)
		}
	}
	for _, op := range operations {
		if !known[op.tag] {
			f.Errorf("no valid %s", op.tag)
		}
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		m := mutator{rand.New(rand.NewPCG(seed, 0)), w}
		request := m.change(w.requests[m.IntN(len(w.requests))])
		reply := w.exchange(t.Context(), meshAndSSH, operateMessage(request))
		if string(reply) == string([]byte{sshExtensionFailure}) {
			return
		}
		if answer := replyJSON(t, reply); strings.Contains(answer, `"Status":500`) {
			t.Fatalf("%.2000s\n%s\n%s", request, answer, w.log.String())
		}
	})
}

// TestDamagedRecords changes the record of the device, or that of the account, at random, and then asks for this and that: what cannot be read is
// said to be so, and nothing is an incident.
func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var requests []string
	for _, r := range w.requests {
		if strings.HasPrefix(r, `{"Device`) || strings.HasPrefix(r, `{"Account`) {
			requests = append(requests, r)
		}
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil || len(entries) != 2 || len(requests) < 10 {
		t.Fatal(entries, len(requests), err)
	}
	records := make(map[string][]byte)
	for _, e := range entries {
		if records[e.Name()], err = os.ReadFile(filepath.Join(w.dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	for seed := range uint64(60) {
		m := mutator{rand.New(rand.NewPCG(seed, 1)), w}
		changed := entries[m.IntN(len(entries))].Name()
		for name, text := range records {
			if name == changed {
				text = []byte(m.tree(string(text)))
			}
			if err := os.WriteFile(filepath.Join(w.dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.inside.Store(nil)
		for range 3 {
			request := requests[m.IntN(len(requests))]
			if answer := operateJSON(t, w.Agent, request); strings.Contains(answer, `"Status":500`) {
				t.Errorf("%d: %.300s\n%s\n%s", seed, request, answer, w.log.String())
			}
		}
	}
}
