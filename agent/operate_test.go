package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// TestNotAMessage lists contents to which the answer is 28, because there is no response
// tag under which to answer.
func TestNotAMessage(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	for _, contents := range []string{
		``, ` `, `hello`, `null`, `true`, `17`, `"HelloRequest"`, `[]`, `[{"HelloRequest":{}}]`, `{}`,
		`{"HelloRequest"}`, `{"HelloRequest":}`, `{"HelloRequest":{}`, `{"HelloRequest":{}}}`,
		`{"HelloRequest":{}} x`, `{"HelloRequest":{}}{"HelloRequest":{}}`, `{"HelloRequest":{},}`,
		`{"HelloRequest":{},"HelloRequest":{}}`, `{"HelloRequest":{},"StatusRequest":{}}`,
		`{"helloRequest":{}}`, `{"HelloRequest ":{}}`, `{"Unknown":{}}`, `{"HelloResponse":{}}`,
		`{"HelloRequest":{"a":1,"a":2}}`, `{"OperateRequest":{"Operations":[{"x":{"b":1,"b":1}}]}}`,
		"{\"HelloRequest\":{\"a\":\"\xff\"}}", `{"HelloRequest":{"a":"\ud800"}}`, "\xef\xbb\xbf{\"HelloRequest\":{}}",
		`{'HelloRequest':{}}`, `{"HelloRequest":{}} // comment`, `{"HelloRequest":{"a":01}}`, `{"HelloRequest":{"a":NaN}}`,
		strings.Repeat(`[`, 20000), `{"HelloRequest":` + strings.Repeat(`[`, 20000) + strings.Repeat(`]`, 20000) + `}`,
	} {
		got := a.exchange(t.Context(), meshAndSSH, operateMessage(contents))
		if !bytes.Equal(got, []byte{sshExtensionFailure}) {
			t.Errorf("%.60q: %q", contents, got)
		}
	}
}

// TestMalformedMessage lists messages with a response tag, which says what is wrong with them.
func TestMalformedMessage(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	cases := []struct{ request, response, start string }{
		{`{"HelloRequest":null}`, "MeshHelloResponse", "HelloRequest: object"},
		{`{"HelloRequest":[]}`, "MeshHelloResponse", "HelloRequest: object"},
		{`{"HelloRequest":{"a":1}}`, "MeshHelloResponse", "a: unknown member"},
		{`{"OperateRequest":{}}`, "OperateResponse", "Operations: "},
		{`{"OperateRequest":null}`, "OperateResponse", "OperateRequest: object"},
		{`{"OperateRequest":{"Operations":[]}}`, "OperateResponse", "Operations: "},
		{`{"OperateRequest":{"Operations":null}}`, "OperateResponse", "Operations: "},
		{`{"OperateRequest":{"Operations":{}}}`, "OperateResponse", "Operations: unexpected"},
		{`{"OperateRequest":{"operations":[]}}`, "OperateResponse", "operations: unknown member"},
		{`{"OperateRequest":{"AccountAddress":1,"Operations":[]}}`, "OperateResponse", "AccountAddress: unexpected"},
		{`{"KeyGenerateRequest":{"Algorithm":"P256","Use":"sign"}}`, "KeyGenerateResponse", "Token: missing"},
		{`{"KeyGenerateRequest":{"Token":"t","Use":"sign"}}`, "KeyGenerateResponse", "Algorithm: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"p256","Use":"sign"}}`, "KeyGenerateResponse", "Algorithm: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"P256"}}`, "KeyGenerateResponse", "Use: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"P256","Use":"seal"}}`, "KeyGenerateResponse", "Use: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"X25519","Use":"sign"}}`, "KeyGenerateResponse", "Use: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"X25519","Use":"split"}}`, "KeyGenerateResponse", "ShareTo: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"X25519","Use":"agree","ShareTo":[{}]}}`, "KeyGenerateResponse", "ShareTo: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"X25519","Use":"split","ShareTo":[{},{}]}}`, "KeyGenerateResponse", "ShareTo: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"X25519","Use":"split","ShareTo":[{}` + strings.Repeat(",{}", 192) + `]}}`, "KeyGenerateResponse", "ShareTo: use split needs from 2 to 192"},
		{`{"KeyImportRequest":{"Token":"t","Use":"agree","Key":"AAAA","UnwrapWith":"MAAA"}}`, "KeyImportResponse", "UnwrapWith: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"P256","Use":"sign","Label":"a\nb"}}`, "KeyGenerateResponse", "Label: "},
		{`{"KeyGenerateRequest":{"Token":"t","Algorithm":"P256","Use":"sign","Label":"` + strings.Repeat("x", 300) + `"}}`, "KeyGenerateResponse", "Label: "},
		{`{"KeyImportRequest":{"Token":"t","Use":"sign"}}`, "KeyImportResponse", "Key: missing"},
		{`{"KeyImportRequest":{"Token":"t","Use":"sign","Key":"!"}}`, "KeyImportResponse", "Key: "},
		{`{"KeyImportRequest":{"Token":"t","Use":"sign","Key":"AA=="}}`, "KeyImportResponse", "Key: "},
		{`{"KeyImportRequest":{"Token":"t","Use":"sign","Key":"AAAA"}}`, "KeyImportResponse", "Key: "},
		{`{"KeyImportRequest":{"Token":"t","Use":"sign","Key":"AAAA","Generation":"g3"}}`, "KeyImportResponse", "Generation: "},
		{`{"KeyImportRequest":{"Token":"t","Use":"sign","Key":"AAAA","Algorithm":"DSA"}}`, "KeyImportResponse", "Algorithm: "},
		{`{"KeyListRequest":{"Limit":-1}}`, "KeyListResponse", "Limit: "},
		{`{"KeyListRequest":{"Limit":1.5}}`, "KeyListResponse", "Limit: unexpected"},
		{`{"KeyListRequest":{"KeyId":"MA"}}`, "KeyListResponse", "KeyId: "},
		{`{"KeyDeleteRequest":{}}`, "KeyDeleteResponse", "KeyId: missing"},
		{`{"TokenListRequest":{"x":{}}}`, "TokenListResponse", "x: unknown member"},
		{`{"TokenUnlockRequest":{"Token":"t"}}`, "TokenUnlockResponse", "PIN: missing"},
		{`{"TokenUnlockRequest":{"PIN":"AAAA"}}`, "TokenUnlockResponse", "Token: missing"},
		{`{"StatusRequest":"x"}`, "StatusResponse", "StatusRequest: object"},
	}
	for _, c := range cases {
		json := operateJSON(t, a, c.request)
		var got mesh.Reply
		if err := strictjson.Unmarshal(body(t, json, c.response), &got); err != nil {
			t.Errorf("%s: %s has other members than status and text", c.request, json)
		}
		if got.Status != 400 || !strings.HasPrefix(got.StatusDescription, c.start) {
			t.Errorf("%s: %s, want 400 %q", c.request, json, c.start)
		}
	}
}

// operateKeys are keys of every use, with a peer for agreements.
type operateKeys struct {
	*Agent
	fake *tokentest.Fake
	x448, decrypt, sign, rsa, rsaDecrypt, p256, split,
	ssh *keyring.Entry
	peer *keyshare.Point // on X448
}

func newOperateKeys(t testing.TB) *operateKeys {
	t.Helper()
	fake := newFake("t")
	a := newAgent(t, Limits{}, fake)
	k := &operateKeys{
		Agent: a, fake: fake,
		x448:       generate(t, a, "t", token.X448, token.UseAgree),
		decrypt:    generate(t, a, "t", token.X448, token.UseDecrypt),
		sign:       generate(t, a, "t", token.Ed25519, token.UseSign),
		rsa:        generate(t, a, "t", token.RSA2048, token.UseSign),
		rsaDecrypt: generate(t, a, "t", token.RSA2048, token.UseDecrypt),
		p256:       generate(t, a, "t", token.P256, token.UseSign),
		ssh:        generate(t, a, "t", token.Ed25519, token.UseSSH),
	}
	to := generate(t, a, "t", token.X25519, token.UseDecrypt)
	k.split = generate(t, a, "t", token.X448, token.UseSplit, k.decrypt.Public, to.Public)
	s, err := keyshare.RandomScalar(keyshare.X448, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k.peer = s.Public()
	return k
}

func ecdh(crv string, public []byte) string {
	return fmt.Sprintf(`{"PublicKeyECDH":{"crv":"%s","Public":"%s"}}`, crv, b64(public))
}

// TestRefusedOperations is the table of statuses: what is asked, and how the error starts.
func TestRefusedOperations(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	order := make([]byte, 56) // of the X448 subgroup, little endian (RFC 7748, 4.2)
	for i, c := range mustHex(t, "3fffffffffffffffffffffffffffffffffffffffffffffffffffffff7cca23e9c44edb49aed63690216cc2728dc58f552378c292ab5844f3") {
		order[55-i] = c
	}
	peer := ecdh("X448", k.peer.Bytes())
	twist := append(bytes.Repeat([]byte{0}, 56), 0)
	wmk := b64(make([]byte, 40))
	agree := func(key *keyring.Entry, rest string) string {
		return `{"CryptographicOperationKeyAgreement":{"KeyId":"` + key.Udf + `",` + rest + `}}`
	}
	sign := func(key *keyring.Entry, rest string) string {
		return `{"CryptographicOperationSign":{"KeyId":"` + key.Udf + `",` + rest + `}}`
	}
	decrypt := func(key *keyring.Entry, rest string) string {
		return `{"CryptographicOperationDecrypt":{"KeyId":"` + key.Udf + `",` + rest + `}}`
	}
	share := func(key *keyring.Entry, rest string) string {
		return `{"CryptographicOperationShare":{"KeyId":"` + key.Udf + `",` + rest + `}}`
	}
	const (
		agreed, signed, decrypted = mesh.TagResultAgreement, mesh.TagResultSign, mesh.TagResultDecrypt
		shared, generated         = mesh.TagResultShare, mesh.TagResultGenerate
	)
	recipient := `"Recipient":{"epk":` + peer + `,"wmk":"` + wmk + `"}`
	cases := []struct {
		operation, tag string
		status         int
		start          string
	}{
		{`{}`, mesh.TagResult, 400, "Operations"},
		{`7`, mesh.TagResult, 400, "Operations"},
		{`null`, mesh.TagResult, 400, "Operations"},
		{`{"CryptographicOperationFrob":{}}`, mesh.TagResult, 400, "Operations: unknown operation"},
		{`{"CryptographicOperationSign":{},"CryptographicOperationShare":{}}`, mesh.TagResult, 400, "Operations"},
		{`{"CryptographicOperationSign":[]}`, signed, 400, "CryptographicOperationSign: object"},

		{`{"CryptographicOperationKeyAgreement":{"PublicKey":` + peer + `}}`, agreed, 400, "KeyId: missing"},
		{`{"CryptographicOperationKeyAgreement":{"KeyId":"MAAA","PublicKey":` + peer + `}}`, agreed, 400, "KeyId"},
		{agree(k.x448, `"PublicKey":{"PublicKeyMLKEM":{"Public":"AAAA"}}`), agreed, 400, "PublicKey: "},
		{agree(k.x448, `"PublicKey":`+strings.Replace(peer, `{`, `{"PublicKeyMLKEM":{"Public":"AAAA"},`, 1)), agreed, 400, "PublicKey: "},
		{`{"CryptographicOperationKeyAgreement":{"KeyId":"` + k.x448.Udf[:33] + `","PublicKey":` + peer + `}}`, agreed, 400, "KeyId"},
		{`{"CryptographicOperationKeyAgreement":{"KeyId":7,"PublicKey":` + peer + `}}`, agreed, 400, "KeyId: unexpected"},
		{`{"CryptographicOperationKeyAgreement":{"KeyId":"MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA","PublicKey":` + peer + `}}`, agreed, 404, ""},
		{agree(k.x448, `"Frob":1`), agreed, 400, "Frob: unknown member"},
		{agree(k.x448, `"publicKey":`+peer), agreed, 400, "publicKey: unknown member"},
		{agree(k.x448, `"KeyCoefficient":"AA"`), agreed, 400, "PublicKey"},
		{agree(k.x448, `"PublicKey":{}`), agreed, 400, "PublicKey"},
		{agree(k.x448, `"PublicKey":null`), agreed, 400, "PublicKey"},
		{agree(k.x448, `"PublicKey":{"PublicKeyRSA":{"n":"AA","e":"AA"}}`), agreed, 400, "PublicKey"},
		{agree(k.x448, `"PublicKey":{"PublicKeyECDH":{"crv":"X448"}}`), agreed, 400, "PublicKey: PublicKeyECDH.Public missing"},
		{agree(k.x448, `"PublicKey":{"PublicKeyECDH":{"crv":"X448","Public":""}}`), agreed, 422, "length"},
		{agree(k.x448, `"PublicKey":{"PublicKeyECDH":{"crv":"X448","Public":"=="}}`), agreed, 400, "PublicKey.PublicKeyECDH.Public"},
		{agree(k.x448, `"PublicKey":`+ecdh("X25519", make([]byte, 32))), agreed, 400, "PublicKey"},
		{agree(k.x448, `"PublicKey":`+ecdh("X448z", k.peer.Bytes())), agreed, 400, "PublicKey"},
		{agree(k.x448, `"PublicKey":`+peer+`,"KeyCoefficient":""`), agreed, 400, "KeyCoefficient"},
		{agree(k.x448, `"PublicKey":`+peer+`,"KeyCoefficient":"AA"`), agreed, 400, "KeyCoefficient"},
		{agree(k.x448, `"PublicKey":`+peer+`,"KeyCoefficient":"`+b64(make([]byte, 56))+`"`), agreed, 400, "KeyCoefficient"},
		{agree(k.x448, `"PublicKey":`+peer+`,"KeyCoefficient":"`+b64(order)+`"`), agreed, 400, "KeyCoefficient"},
		{agree(k.x448, `"PublicKey":`+peer+`,"KeyCoefficient":null`), agreed, 400, "KeyCoefficient"},
		{agree(k.x448, `"PublicKey":`+ecdh("X448", k.peer.Bytes()[:55])), agreed, 422, "length"},
		{agree(k.x448, `"PublicKey":`+ecdh("X448", append(k.peer.Bytes()[:56:56], 1))), agreed, 422, "sign octet"},
		{agree(k.x448, `"PublicKey":`+ecdh("X448", append(bytes.Repeat([]byte{0xff}, 56), 0))), agreed, 422, "non-canonical"},
		{agree(k.x448, `"PublicKey":`+ecdh("X448", twist)), agreed, 422, "low order"},
		{agree(k.decrypt, `"PublicKey":`+peer), agreed, 403, "use"},
		{agree(k.sign, `"PublicKey":`+peer), agreed, 403, "use"},
		{agree(k.ssh, `"PublicKey":`+peer), agreed, 403, "use"},
		{agree(k.split, `"PublicKey":`+peer), agreed, 403, "use"},

		{sign(k.sign, `"Mode":"mesh"`), signed, 400, "Data: missing"},
		{sign(k.sign, `"Data":null`), signed, 400, "Data"},
		{sign(k.sign, `"Data":"A"`), signed, 400, "Data"},
		{sign(k.sign, `"Data":"","Mode":"pss"`), signed, 400, "Mode"},
		{sign(k.rsa, `"Data":"","Mode":"mesh"`), signed, 400, "Mode"},
		{sign(k.p256, `"Data":"","Mode":"pure"`), signed, 400, "Mode"},
		{sign(k.ssh, `"Data":""`), signed, 403, "use"},
		{sign(k.x448, `"Data":""`), signed, 403, "use"},

		{decrypt(k.decrypt, `"Release":"key"`), decrypted, 400, "Salt"},
		{decrypt(k.decrypt, `"Release":"all",`+recipient), decrypted, 400, "Release"},
		{decrypt(k.decrypt, `"Salt":"AA",`+recipient), decrypted, 400, "Salt"},
		{decrypt(k.decrypt, `"Release":"seed"`), decrypted, 400, "Recipient"},
		{decrypt(k.decrypt, `"Recipient":{"wmk":"AA"}`), decrypted, 400, "Recipient"},
		{decrypt(k.decrypt, recipient), decrypted, 400, "Recipient: decryption failed"},
		{decrypt(k.x448, `"Recipient":{"epk":`+peer+`,"wmk":""}`), decrypted, 400, "Recipient: decryption failed"},
		{decrypt(k.decrypt, `"Recipient":{"epk":`+ecdh("X448", twist)+`,"wmk":"`+wmk+`"}`), decrypted, 422, "low order"},
		{decrypt(k.decrypt, recipient+`,"Partials":[`+ecdh("X448", twist)+`]`), decrypted, 422, "low order"},
		{decrypt(k.decrypt, recipient+`,"Partials":[`+ecdh("X448", k.peer.Bytes()[:56])+`]`), decrypted, 422, "length"},
		{decrypt(k.decrypt, recipient+`,"Partials":[`+ecdh("X25519", make([]byte, 33))+`]`), decrypted, 400, "Partials"},
		{decrypt(k.decrypt, recipient+`,"Partials":[{}]`), decrypted, 400, "Partials"},
		{decrypt(k.sign, recipient), decrypted, 403, "use"},
		{decrypt(k.split, recipient), decrypted, 403, "use"},
		{decrypt(k.rsaDecrypt, recipient), decrypted, 501, ""},

		{`{"CryptographicOperationGenerate":{"Algorithm":"X9","Use":"agree","Token":"t"}}`, generated, 400, "Algorithm"},
		{`{"CryptographicOperationGenerate":{"Algorithm":"X448","Use":"agree"}}`, generated, 400, "Token"},
		{`{"CryptographicOperationGenerate":{"Algorithm":"X448","Use":"frob","Token":"t"}}`, generated, 400, "Use"},
		{`{"CryptographicOperationGenerate":{"Algorithm":"X448","Use":"split","Token":"t"}}`, generated, 400, "ShareTo"},
		{`{"CryptographicOperationGenerate":{"Algorithm":"X448","Use":"agree","Token":"u"}}`, generated, 404, "Token"},

		{share(k.split, `"Threshold":2,"Shares":3`), shared, 400, "Shares"},
		{share(k.split, `"Threshold":2`), shared, 400, "Shares"},
		{share(k.split, `"Threshold":1,"Shares":2`), shared, 400, "Threshold"},
		{share(k.split, `"Threshold":3,"Shares":2`), shared, 400, "Threshold"},
		{share(k.split, `"Threshold":"2","Shares":2`), shared, 400, "Threshold: unexpected"},
		{share(k.x448, `"Threshold":2,"Shares":2`), shared, 403, "share"},
		{share(k.sign, `"Threshold":2,"Shares":2`), shared, 403, "share"},
	}
	for _, c := range cases {
		r := operateResult(t, k.Agent, c.operation)
		var got result
		if err := r.Decode(&got); err != nil {
			t.Errorf("%.300s: %s has other members than Status and Error", c.operation, r.Body)
		}
		if r.Tag != c.tag || got.Status != c.status || got.Error == "" || !strings.HasPrefix(got.Error, c.start) {
			t.Errorf("%.300s: %s %s; want %s %d %q", c.operation, r.Tag, r.Body, c.tag, c.status, c.start)
		}
	}
}

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBatch makes sure that results are in their places and a failure stops nothing.
func TestBatch(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	good := `{"CryptographicOperationSign":{"KeyId":"` + k.sign.Udf + `","Data":"AAAA"}}`
	json := operateJSON(t, k.Agent, `{"OperateRequest":{"AccountAddress":"alice@example.com","Operations":[`+
		good+`,{"Frob":{}},`+good+`,{"CryptographicOperationShare":{"KeyId":"x"}},`+good+`]}}`)
	var r reply
	if err := strictjson.Unmarshal(body(t, json, "OperateResponse"), &r); err != nil {
		t.Fatal(err)
	}
	want := []string{mesh.TagResultSign, mesh.TagResult, mesh.TagResultSign, mesh.TagResultShare, mesh.TagResultSign}
	if r.Status != 201 || len(r.Results) != len(want) {
		t.Fatal(json)
	}
	for i, tag := range want {
		if r.Results[i].Tag != tag {
			t.Errorf("result %d: %s %s", i, r.Results[i].Tag, r.Results[i].Body)
		}
	}
}

func TestReplyTooLarge(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	// An operation is shorter than its result.
	json := operateJSON(t, k.Agent, `{"OperateRequest":{"Operations":[{}`+strings.Repeat(`,{}`, 4000)+`]}}`)
	var got mesh.Reply
	if err := strictjson.Unmarshal(body(t, json, "OperateResponse"), &got); err != nil {
		t.Fatal(err)
	}
	if got.Status != 400 || !strings.HasPrefix(got.StatusDescription, "Operations: ") {
		t.Error(json)
	}
}

func TestSign(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	message := []byte("the message, not its hash")
	signature := func(e *keyring.Entry, mode string) []byte {
		t.Helper()
		r := operateResult(t, k.Agent, `{"CryptographicOperationSign":{"KeyId":"`+strings.ToLower(e.Udf)+`","Data":"`+b64(message)+`"`+mode+`}}`)
		var out mesh.ResultSign
		if err := r.Decode(&out); err != nil || out.Status != 201 {
			t.Fatalf("%s: %v", r.Body, err)
		}
		return out.Signature
	}
	if !ed25519.Verify(k.sign.Public.Octets, message, signature(k.sign, `,"Mode":"pure"`)) {
		t.Error("pure Ed25519 does not verify")
	}
	point, err := keyshare.ParsePoint(keyshare.Ed25519, k.sign.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{``, `,"Mode":"mesh"`} {
		if !keyshare.Verify(point, keyshare.ModeMesh, message, signature(k.sign, mode)) {
			t.Errorf("Ed25519 with %q does not verify as the Mesh's", mode)
		}
	}
	std, err := k.rsa.Public.Standard()
	if err != nil {
		t.Fatal(err)
	}
	hash := sha512.Sum512(message)
	pub := std.(*rsa.PublicKey)
	if err := rsa.VerifyPKCS1v15(pub, crypto.SHA512, hash[:], signature(k.rsa, ``)); err != nil {
		t.Error(err)
	}
	if err := rsa.VerifyPSS(pub, crypto.SHA512, hash[:], signature(k.rsa, `,"Mode":"pss"`), nil); err != nil {
		t.Error(err)
	}
}

// TestAgreement multiplies by the key, by a coefficient and the key, and with a peer without sign.
func TestAgreement(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	agree := func(public []byte, more string) *keyshare.Point {
		t.Helper()
		r := operateResult(t, k.Agent, `{"CryptographicOperationKeyAgreement":{"KeyId":"`+k.x448.Udf+`","PublicKey":`+ecdh("X448", public)+more+`}}`)
		var out mesh.ResultKeyAgreement
		if err := r.Decode(&out); err != nil || out.Status != 201 || out.KeyAgreement.KeyAgreementECDH.Curve != "X448" {
			t.Fatalf("%s: %v", r.Body, err)
		}
		p, err := keyshare.ParsePoint(keyshare.X448, out.KeyAgreement.KeyAgreementECDH.Result)
		if err != nil || len(out.KeyAgreement.KeyAgreementECDH.Result) != 57 {
			t.Fatalf("%s: %v", r.Body, err)
		}
		return p
	}
	whole := agree(k.peer.Bytes(), "")
	two := make([]byte, 56)
	two[0] = 2
	sum, err := whole.Add(whole)
	if err != nil {
		t.Fatal(err)
	}
	if got := agree(k.peer.Bytes(), `,"KeyCoefficient":"`+b64(two)+`"`); !got.Equal(sum) {
		t.Error("2 * agreement is not agreement + agreement")
	}
	if got := agree(k.peer.Bytes()[:56], ""); !got.Equal(whole) && !got.Equal(whole.Negate()) {
		t.Error("a peer without sign gives another u-coordinate")
	}
}

// TestDecrypt opens envelopes whole, by key and salt, and with the points of other holders.
func TestDecrypt(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	envelope, err := mesh.Encrypt(rand.Reader, []byte("plaintext"), "", k.decrypt.Public)
	if err != nil {
		t.Fatal(err)
	}
	to := envelope.Header.Recipients[0]
	decrypt := func(keyID, more string) mesh.ResultDecrypt {
		t.Helper()
		recipient, err := strictjson.Marshal(mesh.DecryptRecipient{EphemeralKey: to.EphemeralKey, WrappedKey: to.WrappedKey})
		if err != nil {
			t.Fatal(err)
		}
		r := operateResult(t, k.Agent, `{"CryptographicOperationDecrypt":{"KeyId":"`+keyID+`","Recipient":`+string(recipient)+more+`}}`)
		var out mesh.ResultDecrypt
		if err := r.Decode(&out); err != nil || out.Status != 201 {
			t.Fatalf("%s: %v", r.Body, err)
		}
		return out
	}
	out := decrypt(k.decrypt.UdfG2, "")
	if plain, err := envelope.Open(out.Seed); err != nil || string(plain) != "plaintext" {
		t.Errorf("%q, %v", plain, err)
	}
	wantKey, wantIV, err := mesh.ContentKeys(out.Seed, envelope.Header.Salt, "A256CBC")
	if err != nil {
		t.Fatal(err)
	}
	out = decrypt(k.decrypt.Udf, `,"Release":"key","Salt":"`+b64(envelope.Header.Salt)+`"`)
	if out.Seed != nil || !bytes.Equal(out.Key, wantKey) || !bytes.Equal(out.IV, wantIV) {
		t.Errorf("%+v", out)
	}

	// The agent's key and two others: the envelope is for their sum.
	own, err := keyshare.ParsePoint(keyshare.X448, k.decrypt.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	var others [2]*keyshare.Scalar
	sum := own
	for i := range others {
		if others[i], err = keyshare.RandomScalar(keyshare.X448, rand.Reader); err != nil {
			t.Fatal(err)
		}
		if sum, err = sum.Add(others[i].Public()); err != nil {
			t.Fatal(err)
		}
	}
	envelope, err = mesh.Encrypt(rand.Reader, []byte("shared"), "", token.PublicKey{Algorithm: token.X448, Octets: sum.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	to = envelope.Header.Recipients[0]
	ephemeral, err := to.EphemeralKey.Point()
	if err != nil {
		t.Fatal(err)
	}
	var partials [2]string
	for i, s := range others {
		p, err := keyshare.Agree(s, ephemeral)
		if err != nil {
			t.Fatal(err)
		}
		partials[i] = ecdh("X448", p.Bytes())
	}
	for _, order := range []string{partials[0] + "," + partials[1], partials[1] + "," + partials[0]} {
		out := decrypt(k.decrypt.Udf, `,"Partials":[`+order+`]`)
		if plain, err := envelope.Open(out.Seed); err != nil || string(plain) != "shared" {
			t.Errorf("%q, %v", plain, err)
		}
	}
}

// TestShare takes a key apart, has the recipients import their shares, and decrypts with both.
func TestShare(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	r := operateResult(t, k.Agent, `{"CryptographicOperationShare":{"KeyId":"`+k.split.Udf+`","Threshold":2,"Shares":2}}`)
	var out mesh.ResultShare
	if err := r.Decode(&out); err != nil || out.Status != 201 || len(out.Shares) != 2 {
		t.Fatalf("%s: %v", r.Body, err)
	}
	var sum *keyshare.Point
	for i, s := range out.Shares {
		recipient, err := mesh.Fingerprint(k.split.ShareTo[i], mesh.G1)
		if err != nil || s.Recipient != recipient || s.X != 0 {
			t.Errorf("share %d: recipient %s, X %d, want %s (%v)", i, s.Recipient, s.X, recipient, err)
		}
		json := operateJSON(t, k.Agent, `{"KeyImportRequest":{"Token":"t","Use":"agree","Key":"`+b64(s.Envelope)+`","UnwrapWith":"`+s.Recipient+`"}}`)
		var imported mesh.KeyResponse
		if err := strictjson.Unmarshal(body(t, json, "KeyImportResponse"), &imported); err != nil || imported.Status != 201 {
			t.Fatalf("%s: %v", json, err)
		}
		point, err := s.PublicKey.Point()
		if err != nil {
			t.Fatal(err)
		}
		if sum == nil {
			sum = point
		} else if sum, err = sum.Add(point); err != nil {
			t.Fatal(err)
		}
		if got, err := imported.Key.PublicKey.Point(); err != nil || !got.Equal(point) {
			t.Errorf("share %d imports as another key (%v)", i, err)
		}
	}
	if !bytes.Equal(sum.Bytes(), k.split.Public.Octets) {
		t.Error("the shares do not add up to the key")
	}
	json := operateJSON(t, k.Agent, `{"KeyImportRequest":{"Token":"t","Use":"agree","Key":"`+b64(out.Shares[0].Envelope)+`","UnwrapWith":"`+k.x448.Udf+`"}}`)
	if !strings.Contains(json, `"Status":400,"StatusDescription":"Key: `) {
		t.Errorf("with another key: %s", json)
	}
}

// TestShareToMany wants a key with as many recipients as it can have to be of use: the
// shares on the largest curve fit one reply.
func TestShareToMany(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	var shareTo []token.PublicKey
	sum := keyshare.BasePoint(keyshare.X448)
	for range maxShareTo {
		shareTo = append(shareTo, token.PublicKey{Algorithm: token.X448, Octets: sum.Bytes()})
		sum, _ = sum.Add(keyshare.BasePoint(keyshare.X448))
	}
	split := generate(t, a, "t", token.P521, token.UseSplit, shareTo...)
	r := operateResult(t, a, fmt.Sprintf(`{"CryptographicOperationShare":{"KeyId":"%s","Threshold":2,"Shares":%d}}`, split.Udf, maxShareTo))
	var out mesh.ResultShare
	if err := r.Decode(&out); err != nil || out.Status != 201 || len(out.Shares) != maxShareTo {
		t.Fatalf("%.200s: %v", r.Body, err)
	}
}

// TestAskingKeys wants one operation in a batch with a key that asks its user each time.
func TestAskingKeys(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	for policy, want := range map[token.Policy][2]int{
		{}:                         {201, 201},
		{Touch: token.TouchCached}: {201, 201},
		{Touch: token.TouchAlways}: {201, 400},
		{PIN: token.PINAlways}:     {201, 400},
	} {
		key, err := a.ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: "t", Algorithm: token.Ed25519, Use: token.UseSign, Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		sign := `{"CryptographicOperationSign":{"KeyId":"` + key.Udf + `","Data":""}}`
		for range 2 { // another batch may use the key again
			reply := operateJSON(t, a, `{"OperateRequest":{"Operations":[`+sign+`,`+sign+`]}}`)
			var response mesh.OperateResponse
			if err := strictjson.Unmarshal(body(t, reply, mesh.TagOperateResponse), &response); err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, r := range response.Results {
				var result mesh.Failure
				if err := json.Unmarshal(r.Body, &result); err != nil {
					t.Fatal(err)
				}
				got = append(got, result.Status)
			}
			slices.Sort(got)
			if !slices.Equal(got, want[:]) {
				t.Errorf("policy %v: %v, want %v: %s", policy, got, want, reply)
			}
		}
	}
}

func TestGenerateOperation(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	r := operateResult(t, a, `{"CryptographicOperationGenerate":{"Algorithm":"P384","Use":"agree","Token":"t"}}`)
	var out mesh.ResultGenerate
	if err := r.Decode(&out); err != nil || out.Status != 201 {
		t.Fatalf("%s: %v", r.Body, err)
	}
	e, err := a.ring.Snapshot().Find(out.KeyId)
	if err != nil || !bytes.Equal(e.Public.Octets, out.PublicKey.PublicKeyECDH.Public) {
		t.Errorf("%s: %v", r.Body, err)
	}
}

// TestTokenErrors has the token fail in every way of the vocabulary.
func TestTokenErrors(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	for _, err := range token.Errors() {
		k.fake.FailBefore(tokentest.OpSign, err)
		r := operateResult(t, k.Agent, `{"CryptographicOperationSign":{"KeyId":"`+k.sign.Udf+`","Data":""}}`)
		var got result
		if err := r.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if got.Status < 400 || got.Status == 500 {
			t.Errorf("%v: %s", err, r.Body)
		}
	}
}

func TestCancelledBatch(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	one := `{"CryptographicOperationSign":{"KeyId":"` + k.sign.Udf + `","Data":""}}`
	json := replyJSON(t, k.exchange(ctx, meshAndSSH, operateMessage(`{"OperateRequest":{"Operations":[`+one+`,`+one+`]}}`)))
	if strings.Count(json, `{"CryptographicResultSign":{"Status":499,"Error":"cancelled"}}`) != 2 {
		t.Error(json)
	}
	if n := k.fake.Calls(tokentest.OpSign); n != 0 {
		t.Errorf("the token was asked %d times", n)
	}
}

// FuzzOperate gives any contents to the Mesh extension: the answer is well-formed, and 28
// exactly for what is not strict JSON with one known tag.
func FuzzOperate(f *testing.F) {
	a := newAgent(f, Limits{}, newFake("t"))
	e := generate(f, a, "t", token.X448, token.UseAgree)
	all := append(messages[:], deviceMessages[:]...)
	for _, m := range all {
		f.Add([]byte(`{"` + m.request + `":{}}`))
	}
	for _, op := range operations {
		f.Add([]byte(`{"OperateRequest":{"Operations":[{"` + op.tag + `":{"KeyId":"` + e.Udf + `"}}]}}`))
	}
	f.Add([]byte(`{"OperateRequest":{"Operations":[{"CryptographicOperationKeyAgreement":{"KeyId":"` + e.Udf + `","PublicKey":{"PublicKeyECDH":{"crv":"X448","Public":"BQ"}}}}]}}`))
	f.Add([]byte("{\"KeyListRequest\":{\"After\":\"a\nb\"}}"))
	f.Fuzz(func(t *testing.T, contents []byte) {
		reply := a.exchange(t.Context(), meshAndSSH, operateMessage(string(contents)))
		tag, _, err := cutTagged(strictjson.EscapeControls(contents))
		known := err == nil && strictjson.Valid(contents) == nil
		if known {
			known = slices.ContainsFunc(all, func(m message) bool { return m.request == tag })
		}
		if !known {
			if !bytes.Equal(reply, []byte{sshExtensionFailure}) {
				t.Fatalf("%q: %q", contents, reply)
			}
			return
		}
		var r struct{ Status int }
		_, value, err := cutTagged([]byte(replyJSON(t, reply)))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(value, &r); err != nil || r.Status == 500 {
			t.Fatalf("%q: %s", contents, value)
		}
	})
}
