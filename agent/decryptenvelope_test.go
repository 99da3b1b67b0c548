package agent

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/mesh/jsonb"
	"github.com/mesh-agent/mesh-agent/token"
)

// decryption is a result of Decrypt, good or not.
type decryption struct {
	Status      int
	Error       string
	Seed        mesh.Binary
	Key         mesh.Binary
	IV          mesh.Binary
	Plaintext   mesh.Binary
	ContentType string
	Signature   string
	SignedBy    []string
}

func decryptOperation(t testing.TB, a *Agent, op mesh.OperationDecrypt) (got decryption) {
	t.Helper()
	tagged, err := strictjson.NewTagged(mesh.TagOperationDecrypt, op)
	if err != nil {
		t.Fatal(err)
	}
	text, err := strictjson.Marshal(tagged)
	if err != nil {
		t.Fatal(err)
	}
	if err := operateResult(t, a, string(text)).Decode(&got); err != nil {
		t.Fatal(err)
	}
	return got
}

// openWhole has an envelope decrypted as a whole.
func openWhole(t testing.TB, a *Agent, keyID string, e *mesh.Envelope, edit ...func(*mesh.OperationDecrypt)) decryption {
	t.Helper()
	text, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	op := mesh.OperationDecrypt{KeyId: keyID, Envelope: text, Release: "plaintext"}
	for _, f := range edit {
		f(&op)
	}
	return decryptOperation(t, a, op)
}

// letter is an envelope to a key, signed if there are signers.
func letter(t testing.TB, g mesh.Generation, text string, to token.PublicKey, signers ...mesh.Signer) *mesh.Envelope {
	t.Helper()
	e, err := mesh.NewEnvelope(t.Context(), []byte(text), mesh.EnvelopeOptions{
		Generation: g, Meta: mesh.ContentMeta{ContentType: "text/plain"}, Recipients: []token.PublicKey{to}, Signers: signers,
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// newSigner returns a key for signatures in memory, and its private key.
func newSigner(t testing.TB) (*mesh.LocalKey, *token.PrivateKey) {
	t.Helper()
	seed := make([]byte, 57)
	rand.Read(seed)
	private := &token.PrivateKey{Algorithm: token.Ed448, Seed: seed}
	key, err := mesh.NewLocalKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key, private
}

func limitedKey(t testing.TB, a *Agent, r token.Release) *keyring.Entry {
	t.Helper()
	e, err := a.ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: "soft", Algorithm: token.X448, Use: token.UseDecrypt, Release: r})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func fingerprint(t testing.TB, key token.PublicKey, g mesh.Generation) string {
	t.Helper()
	udf, err := mesh.Fingerprint(key, g)
	if err != nil {
		t.Fatal(err)
	}
	return udf
}

func TestDecryptEnvelope(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	key := limitedKey(t, a, token.ReleasePlaintext)
	own, private := newSigner(t)
	if _, _, err := a.ring.Import(t.Context(), nil, keyring.ImportSpec{Token: "soft", Use: token.UseSign, Private: private}); err != nil {
		t.Fatal(err)
	}
	stranger, _ := newSigner(t)
	want := func(name string, got decryption, signature string, by ...string) {
		t.Helper()
		if got.Status != mesh.StatusOK || string(got.Plaintext) != "hello" || got.ContentType != "text/plain" ||
			got.Signature != signature || !slices.Equal(got.SignedBy, by) || got.Seed != nil || got.Key != nil || got.IV != nil {
			t.Errorf("%s: %+v, want %s by %q", name, got, signature, by)
		}
	}
	for _, g := range []mesh.Generation{mesh.G1, mesh.G2} {
		ownName, strangerName := fingerprint(t, own.Public(), g), fingerprint(t, stranger.Public(), g)
		want("not signed", openWhole(t, a, key.Udf, letter(t, g, "hello", key.Public)), "none")
		want("own signature", openWhole(t, a, key.UdfG2, letter(t, g, "hello", key.Public, own)), "verified", ownName)
		foreign := letter(t, g, "hello", key.Public, stranger)
		want("unknown signature", openWhole(t, a, key.Udf, foreign), "unverified")
		want("both", openWhole(t, a, key.Udf, letter(t, g, "hello", key.Public, stranger, own)), "verified", ownName)
		want("named signer", openWhole(t, a, key.Udf, foreign, func(op *mesh.OperationDecrypt) {
			op.Signers = []mesh.PublicParameters{mesh.Parameters(own.Public()), mesh.Parameters(stranger.Public())}
		}), "verified", strangerName)
		// A recipient entry that names somebody else, before the right one, which names nobody.
		disguised := letter(t, g, "hello", key.Public)
		first := letter(t, g, "other", key.Public).Header.Recipients[0]
		first.KeyID = strangerName
		disguised.Header.Recipients[0].KeyID = ""
		disguised.Header.Recipients = append([]mesh.Recipient{first}, disguised.Header.Recipients...)
		if got := openWhole(t, a, key.Udf, disguised); got.Status != statusMalformed { // the wrong seed opens first
			t.Errorf("entry of another envelope: %+v", got)
		}
		disguised.Header.Recipients[0].WrappedKey[0] ^= 1
		want("entry that does not open", openWhole(t, a, key.Udf, disguised), "none")
	}
	gcm, err := mesh.EncryptOptions{Encryption: mesh.A256GCM}.Encrypt(rand.Reader, nil, key.Public)
	if err != nil {
		t.Fatal(err)
	}
	if got := openWhole(t, a, key.Udf, gcm); got.Status != mesh.StatusOK || got.Plaintext == nil || len(got.Plaintext) != 0 || got.ContentType != "" {
		t.Errorf("empty, A256GCM: %+v", got)
	}
}

// TestDecryptEnvelopeShare adds the service's part to that of a key that is a share.
func TestDecryptEnvelopeShare(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	key := limitedKey(t, a, token.ReleasePlaintext)
	service, err := keyshare.RandomScalar(keyshare.X448, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := keyshare.ParsePoint(keyshare.X448, key.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := keyshare.Combine(own, service.Public())
	if err != nil {
		t.Fatal(err)
	}
	e := letter(t, mesh.G1, "hello", token.PublicKey{Algorithm: token.X448, Octets: sum.Bytes()})
	ephemeral, err := e.Header.Recipients[0].EphemeralKey.Point()
	if err != nil {
		t.Fatal(err)
	}
	partial, err := keyshare.Agree(service, ephemeral)
	if err != nil {
		t.Fatal(err)
	}
	got := openWhole(t, a, key.Udf, e, func(op *mesh.OperationDecrypt) {
		op.Partials = []mesh.PublicParameters{mesh.Parameters(token.PublicKey{Algorithm: token.X448, Octets: partial.Bytes()})}
	})
	if got.Status != mesh.StatusOK || string(got.Plaintext) != "hello" {
		t.Errorf("with the other part: %+v", got)
	}
	if got := openWhole(t, a, key.Udf, e); got.Status != statusMalformed || got.Error != "Envelope: decryption failed" {
		t.Errorf("without the other part: %+v", got)
	}
}

// TestOneErrorToOpen breaks an envelope in each place that its key protects: it looks the same.
func TestOneErrorToOpen(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	key, other := limitedKey(t, a, token.ReleasePlaintext), limitedKey(t, a, token.ReleaseSeed)
	stranger, _ := newSigner(t)
	gcm := func() *mesh.Envelope {
		e, err := mesh.EncryptOptions{Encryption: mesh.A256GCM}.Encrypt(rand.Reader, []byte("hello"), key.Public)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	plain := func() *mesh.Envelope { return letter(t, mesh.G1, strings.Repeat("hello, ", 5), key.Public) }
	for name, c := range map[string]struct {
		e     *mesh.Envelope
		spoil func(*mesh.Envelope)
	}{
		"wrapped seed":  {plain(), func(e *mesh.Envelope) { e.Header.Recipients[0].WrappedKey[3] ^= 1 }},
		"short seed":    {plain(), func(e *mesh.Envelope) { e.Header.Recipients[0].WrappedKey = e.Header.Recipients[0].WrappedKey[:32] }},
		"another's":     {letter(t, mesh.G1, "hello", other.Public), func(e *mesh.Envelope) { e.Header.Recipients[0].KeyID = key.Udf }},
		"no recipients": {plain(), func(e *mesh.Envelope) { e.Header.Recipients = nil }},
		"low order":     {plain(), func(e *mesh.Envelope) { clear(e.Header.Recipients[0].EphemeralKey.PublicKeyECDH.Public) }},
		"padding":       {plain(), func(e *mesh.Envelope) { e.Body[len(e.Body)-17] ^= 0x80 }},
		"half a block":  {plain(), func(e *mesh.Envelope) { e.Body = e.Body[:24] }},
		"no body":       {plain(), func(e *mesh.Envelope) { e.Body = nil }},
		"tag":           {gcm(), func(e *mesh.Envelope) { e.Body[len(e.Body)-1] ^= 1 }},
		"text":          {gcm(), func(e *mesh.Envelope) { e.Body[0] ^= 1 }},
		"salt":          {gcm(), func(e *mesh.Envelope) { e.Header.Salt[0] ^= 1 }},
		"witness, g1":   {letter(t, mesh.G1, "hello", key.Public, stranger), func(e *mesh.Envelope) { e.Trailer.Signatures[0].Witness[0] ^= 1 }},
		"witness, g2":   {letter(t, mesh.G2, "hello", key.Public, stranger), func(e *mesh.Envelope) { e.Trailer.WitnessValue[0] ^= 1 }},
	} {
		c.spoil(c.e)
		if got := openWhole(t, a, key.Udf, c.e); got.Status != statusMalformed || got.Error != "Envelope: decryption failed" || got.Plaintext != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestSignaturesFirst has signatures that are wrong, on envelopes that would open, and on some that would not.
func TestSignaturesFirst(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	key := limitedKey(t, a, token.ReleaseSeed)
	own, private := newSigner(t)
	if _, _, err := a.ring.Import(t.Context(), nil, keyring.ImportSpec{Token: "soft", Use: token.UseSign, Private: private}); err != nil {
		t.Fatal(err)
	}
	stranger, _ := newSigner(t)
	carried := func() *mesh.Envelope {
		e, err := mesh.NewEnvelope(t.Context(), []byte("hello"), mesh.EnvelopeOptions{
			Recipients: []token.PublicKey{key.Public}, Signers: []mesh.Signer{stranger}, IncludeKey: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if got := openWhole(t, a, key.Udf, carried()); got.Status != mesh.StatusOK || got.Signature != "unverified" {
		t.Errorf("key in the envelope: %+v", got)
	}
	alter := func(e *mesh.Envelope) { e.Trailer.Signatures[0].Value[7] ^= 1 }
	signers := func(keys ...token.PublicKey) func(*mesh.OperationDecrypt) {
		return func(op *mesh.OperationDecrypt) {
			for _, k := range keys {
				op.Signers = append(op.Signers, mesh.Parameters(k))
			}
		}
	}
	signed := func(s mesh.Signer) *mesh.Envelope { return letter(t, mesh.G1, "hello", key.Public, s) }
	for name, c := range map[string]struct {
		e     *mesh.Envelope
		spoil func(*mesh.Envelope)
		ask   func(*mesh.OperationDecrypt)
		want  string
	}{
		"own":              {signed(own), alter, signers(), "signature does not verify"},
		"carried":          {carried(), alter, signers(), "signature does not verify"},
		"carried, another": {carried(), func(e *mesh.Envelope) { e.Trailer.Signatures[0].KeyID = key.Udf }, signers(), "no signature by an accepted key"},
		"named":            {signed(stranger), alter, signers(stranger.Public()), "signature does not verify"},
		"not the named":    {signed(own), func(*mesh.Envelope) {}, signers(stranger.Public()), "no signature by an accepted key"},
		"not signed":       {letter(t, mesh.G1, "hello", key.Public), func(*mesh.Envelope) {}, signers(own.Public()), "not signed"},
		"digest":           {signed(stranger), func(e *mesh.Envelope) { e.Trailer.PayloadDigest[0] ^= 1 }, signers(), "payload digest does not match"},
		"digest, unsigned": {letter(t, mesh.G1, "hello", key.Public), func(e *mesh.Envelope) { e.Trailer = &mesh.Trailer{PayloadDigest: make([]byte, 64)} }, signers(), "payload digest does not match"},
		"and seed": {signed(own), func(e *mesh.Envelope) {
			alter(e)
			clear(e.Header.Recipients[0].WrappedKey)
		}, signers(), "signature does not verify"},
	} {
		c.spoil(c.e)
		if got := openWhole(t, a, key.Udf, c.e, c.ask); got.Status != statusMalformed || got.Error != "Envelope: "+c.want || got.Plaintext != nil {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
	}
}

// TestRefusedEnvelopes has members that do not go together, and envelopes that are none.
func TestRefusedEnvelopes(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	key, other := k.decrypt, generate(t, k.Agent, "t", token.X25519, token.UseAgree)
	e := letter(t, mesh.G1, "hello", key.Public)
	recipient := &mesh.DecryptRecipient{EphemeralKey: e.Header.Recipients[0].EphemeralKey, WrappedKey: e.Header.Recipients[0].WrappedKey}
	signer := mesh.Parameters(key.Public)
	marshalled := func(spoil func(*mesh.Envelope)) strictjson.Value {
		x := *e
		x.Header.Recipients = slices.Clone(x.Header.Recipients)
		spoil(&x)
		text, err := x.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	text := marshalled(func(*mesh.Envelope) {})
	for name, c := range map[string]struct {
		op     mesh.OperationDecrypt
		status int
		want   string
	}{
		"release missing": {mesh.OperationDecrypt{Envelope: text}, 400, "Release:"},
		"release seed":    {mesh.OperationDecrypt{Envelope: text, Release: "seed"}, 400, "Release:"},
		"release key":     {mesh.OperationDecrypt{Envelope: text, Release: "key", Salt: e.Header.Salt}, 400, "Release:"},
		"recipient too":   {mesh.OperationDecrypt{Envelope: text, Release: "plaintext", Recipient: recipient}, 400, "Recipient: not together"},
		"salt":            {mesh.OperationDecrypt{Envelope: text, Release: "plaintext", Salt: e.Header.Salt}, 400, "Salt:"},
		"many signers":    {mesh.OperationDecrypt{Envelope: text, Release: "plaintext", Signers: make([]mesh.PublicParameters, maxSignatures+1)}, 400, "Signers: at most 64"},
		"no envelope":     {mesh.OperationDecrypt{Recipient: recipient, Release: "plaintext"}, 400, "Envelope: missing"},
		"signers without": {mesh.OperationDecrypt{Recipient: recipient, Signers: []mesh.PublicParameters{signer}}, 400, "Signers: only"},
		"unknown release": {mesh.OperationDecrypt{Recipient: recipient, Release: "point"}, 400, "Release:"},
		"RSA too":         {mesh.OperationDecrypt{Envelope: text, RSA: &mesh.DecryptRSA{}}, 400, "Envelope: not together with RSA"},
		"RSA and signers": {mesh.OperationDecrypt{Signers: []mesh.PublicParameters{signer}, RSA: &mesh.DecryptRSA{}}, 400, "Signers: not together with RSA"},
		"an object":       {mesh.OperationDecrypt{Envelope: strictjson.Value(`{}`), Release: "plaintext"}, 400, "Envelope: parse envelope"},
		"one part":        {mesh.OperationDecrypt{Envelope: strictjson.Value(`[{}]`), Release: "plaintext"}, 400, "Envelope: parse envelope"},
		"not encrypted":   {mesh.OperationDecrypt{Envelope: strictjson.Value(`[{},""]`), Release: "plaintext"}, 400, "Envelope: it is not encrypted"},
		"unknown enc":     {mesh.OperationDecrypt{Envelope: marshalled(func(e *mesh.Envelope) { e.Header.Encryption = "A128CBC" }), Release: "plaintext"}, 501, "payload encryption"},
		"unknown digest":  {mesh.OperationDecrypt{Envelope: marshalled(func(e *mesh.Envelope) { e.Header.Digest = "S256" }), Release: "plaintext"}, 501, "payload digest"},
		"many recipients": {mesh.OperationDecrypt{Envelope: marshalled(func(e *mesh.Envelope) { e.Header.Recipients = make([]mesh.Recipient, maxRecipients+1) }), Release: "plaintext"}, 400, "Envelope: more than 64 recipients"},
		"many signatures": {mesh.OperationDecrypt{Envelope: marshalled(func(e *mesh.Envelope) {
			e.Trailer = &mesh.Trailer{Signatures: make([]mesh.Signature, maxSignatures+1)}
		}), Release: "plaintext"}, 400, "Envelope: more than 64 signatures"},
		"bad signer":                       {mesh.OperationDecrypt{Envelope: text, Release: "plaintext", Signers: []mesh.PublicParameters{{}}}, 400, "Signers:"},
		"bad partial":                      {mesh.OperationDecrypt{Envelope: text, Release: "plaintext", Partials: []mesh.PublicParameters{mesh.Parameters(other.Public)}}, 400, "Partials:"},
		"key that agrees on another curve": {mesh.OperationDecrypt{KeyId: other.Udf, Envelope: text, Release: "plaintext"}, 400, "Envelope: decryption failed"},
		"key that signs":                   {mesh.OperationDecrypt{KeyId: k.sign.Udf, Envelope: text, Release: "plaintext"}, 403, "use:"},
		"RSA key":                          {mesh.OperationDecrypt{KeyId: k.rsaDecrypt.Udf, Envelope: text, Release: "plaintext"}, 501, "an envelope for an RSA2048 key"},
	} {
		if c.op.KeyId == "" {
			c.op.KeyId = key.Udf
		}
		if got := decryptOperation(t, k.Agent, c.op); got.Status != c.status || !strings.HasPrefix(got.Error, c.want) {
			t.Errorf("%s: %+v, want %d %s", name, got, c.status, c.want)
		}
	}
}

// TestReleaseLimit asks keys of each limit for each release.
func TestReleaseLimit(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	for _, limit := range []token.Release{token.ReleaseSeed, token.ReleaseKey, token.ReleasePlaintext} {
		var made mesh.KeyResponse
		ask(t, a, mesh.TagKeyGenerateRequest, mesh.KeyGenerateRequest{
			Home: mesh.Home{Token: "soft"}, Algorithm: "X448", Use: "decrypt", Release: limit.String(),
		}, mesh.TagKeyGenerateResponse, &made)
		if made.Status != mesh.StatusOK || made.Key.Release != string(limit) {
			t.Fatalf("made with limit %v: %+v", limit, made)
		}
		public, err := made.Key.PublicKey.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		e := letter(t, mesh.G1, "hello", public)
		to := &mesh.DecryptRecipient{EphemeralKey: e.Header.Recipients[0].EphemeralKey, WrappedKey: e.Header.Recipients[0].WrappedKey}
		for asked, got := range map[token.Release]decryption{
			token.ReleaseSeed:      decryptOperation(t, a, mesh.OperationDecrypt{KeyId: made.Key.Udf, Recipient: to}),
			token.ReleaseKey:       decryptOperation(t, a, mesh.OperationDecrypt{KeyId: made.Key.Udf, Recipient: to, Release: "key", Salt: e.Header.Salt}),
			token.ReleasePlaintext: openWhole(t, a, made.Key.Udf, e),
		} {
			if !limit.Grants(asked) {
				if got.Status != statusForbidden || got.Error != "policy: the key gives out no more than the "+limit.String()+": ask with Envelope and Release plaintext" || got.Seed != nil || got.Key != nil {
					t.Errorf("limit %v, asked for %v: %+v", limit, asked, got)
				}
				continue
			}
			if got.Status != mesh.StatusOK || (got.Seed != nil) != (asked == token.ReleaseSeed) || (got.Key != nil) != (asked == token.ReleaseKey) || (got.Plaintext != nil) != (asked == token.ReleasePlaintext) {
				t.Errorf("limit %v, asked for %v: %+v", limit, asked, got)
			}
		}
	}
}

// TestLimitsOfOtherKeys asks for limits that cannot be.
func TestLimitsOfOtherKeys(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	for _, c := range []struct{ algorithm, use, release string }{
		{"X448", "agree", "plaintext"}, {"Ed448", "sign", "key"}, {"RSA2048", "decrypt", "plaintext"}, {"X448", "decrypt", "point"},
	} {
		var made mesh.KeyResponse
		ask(t, a, mesh.TagKeyGenerateRequest, mesh.KeyGenerateRequest{
			Home: mesh.Home{Token: "soft"}, Algorithm: c.algorithm, Use: c.use, Release: c.release,
		}, mesh.TagKeyGenerateResponse, &made)
		if made.Status != statusMalformed || !strings.HasPrefix(made.StatusDescription, "Release:") {
			t.Errorf("%v: %d %s", c, made.Status, made.StatusDescription)
		}
	}
	seed, err := mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)
	if err != nil {
		t.Fatal(err)
	}
	request := mesh.KeyImportRequest{Home: mesh.Home{Token: "soft"}, Use: "decrypt", Key: []byte(seed.Text()), Algorithm: "X448", KeyName: "BaseDeviceEncrypt", Release: "plaintext"}
	for release, want := range map[string]int{"plaintext": mesh.StatusOK, "point": statusMalformed} {
		request.Release = release
		var made mesh.KeyResponse
		ask(t, a, mesh.TagKeyImportRequest, request, mesh.TagKeyImportResponse, &made)
		if made.Status != want || want == mesh.StatusOK && made.Key.Release != release {
			t.Errorf("import with %q: %+v", release, made)
		}
	}
}

// limitDevice is connectDevice with a combined key that gives out plaintexts only.
func limitDevice(t *testing.T, edit ...func(*device.Grant)) *connected {
	t.Helper()
	x := &connected{agent: newDeviceAgent(t), account: newTestAccount(t, mesh.G1)}
	x.device = initDevice(t, x.agent, mesh.DeviceInitRequest{})
	approve(t, x.agent, x.account.Account.Name())
	x.entry = x.account.connect(t, x.device, edit...)
	r := activate(t, x.agent, x.entry, func(q *mesh.DeviceActivateRequest) { q.Release = "plaintext" })
	if r.Status != mesh.StatusOK {
		t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
	}
	k := keyNamed(t, r.Account.Keys, "DeviceEncryption")
	if x.udf = k.Udf; k.Release != "plaintext" || k.Use != "decrypt" {
		t.Fatalf("combined key: %+v", k)
	}
	e, err := x.agent.ring.Snapshot().Find(x.udf)
	if err != nil {
		t.Fatal(err)
	}
	x.key = e.Public
	return x
}

// TestActivationsStayInside tries to have an activation that the agent has not seen opened by a combined key that gives
// out plaintexts only: as it is, in JSON-B, and cut to pieces.
func TestActivationsStayInside(t *testing.T) {
	t.Parallel()
	x := limitDevice(t)
	gcm := func(text string) *mesh.Envelope {
		e, err := mesh.EncryptOptions{Encryption: mesh.A256GCM}.Encrypt(rand.Reader, []byte(text), x.key)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	if got := openWhole(t, x.agent, x.udf, gcm("hello")); got.Status != mesh.StatusOK || string(got.Plaintext) != "hello" {
		t.Errorf("a letter: %+v", got)
	}
	for _, tag := range []string{"ActivationAccount", "ActivationCommon", "ActivationDevice", "ActivationHost", "ActivationApplicationSsh", "ActivationApplicationMail", "ApplicationEntrySsh"} {
		binary, err := jsonb.Append(nil, jsonb.Object{{Name: tag, Value: jsonb.Object{}}})
		if err != nil {
			t.Fatal(err)
		}
		for form, text := range map[string]string{
			"JSON": `{"` + tag + `":{"ClientKey":{}}}`, "JSON with blanks": " {\n\"" + tag + "\" : { } } ",
			"JSON-B": string(binary), "JSON, escaped": `{"\u0041` + tag[1:] + `":{}}`,
		} {
			if got := openWhole(t, x.agent, x.udf, gcm(text)); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "use: it is an "+tag) || got.Plaintext != nil {
				t.Errorf("%s in %s: %+v", tag, form, got)
			}
		}
	}
	// The same envelope under A256CBC, as it came and without its first block.
	activation := letter(t, mesh.G1, `{"ActivationApplicationSsh":{"ClientKey":"what nobody is to see, in the last of some blocks"}}`, x.key)
	cut := *activation
	cut.Body = cut.Body[32:]
	administrator := x.account.Administrator
	signed := func(e mesh.Envelope, by mesh.Signer) *mesh.Envelope {
		if err := (mesh.SignOptions{}).Sign(t.Context(), &e, by); err != nil {
			t.Fatal(err)
		}
		return &e
	}
	local := func(o device.Operation) mesh.Signer {
		private, err := device.AccountKey(x.account.seed, o, "", mesh.G1)
		if err != nil {
			t.Fatal(err)
		}
		key, err := mesh.NewLocalKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	stranger, _ := newSigner(t)
	for name, e := range map[string]*mesh.Envelope{
		"as it came": activation, "cut": &cut,
		"cut, signed by a key of the account that is here": signed(cut, local(device.Sign)),
		"cut, signed by a stranger":                        signed(cut, stranger),
	} {
		named := func(op *mesh.OperationDecrypt) {
			if e.Trailer != nil {
				op.Signers = []mesh.PublicParameters{mesh.Parameters(stranger.Public()), mesh.Parameters(x.account.Account.Signature)}
			}
		}
		for _, ask := range []func(*mesh.OperationDecrypt){func(*mesh.OperationDecrypt) {}, named} {
			if got := openWhole(t, x.agent, x.udf, e, ask); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "policy: the device's combined key") || got.Plaintext != nil {
				t.Errorf("%s: %+v", name, got)
			}
		}
	}
	got := openWhole(t, x.agent, x.udf, letter(t, mesh.G1, "hello", x.key, administrator))
	if got.Status != mesh.StatusOK || string(got.Plaintext) != "hello" || got.Signature != "verified" || !slices.Equal(got.SignedBy, []string{fingerprint(t, administrator.Public(), mesh.G1)}) {
		t.Errorf("a letter that the administrator signed: %+v", got)
	}
	if got := openWhole(t, x.agent, x.udf, signed(*activation, administrator)); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "use: it is an ActivationApplicationSsh") {
		t.Errorf("an activation that the administrator signed: %+v", got)
	}
	// One that the agent has seen is refused before it is opened, and clients get no seed of any.
	if got := openWhole(t, x.agent, x.udf, x.entry.Activations[1]); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "use:") {
		t.Errorf("an activation that was taken: %+v", got)
	}
	if got := x.decrypt(t, activation.Header.Recipients[0]); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "policy: the key gives out no more than the plaintext") {
		t.Errorf("the seed of an activation: %+v", got)
	}
}

// TestAdministratorKeyHere has the administrator's key in the agent: its signature shows nothing, since a client can
// have it sign.
func TestAdministratorKeyHere(t *testing.T) {
	t.Parallel()
	x := limitDevice(t)
	private, err := device.AccountKey(x.account.seed, device.AdminSign, "", mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	e := letter(t, mesh.G1, "hello", x.key, x.account.Administrator)
	if got := openWhole(t, x.agent, x.udf, e); got.Status != mesh.StatusOK {
		t.Errorf("elsewhere: %+v", got)
	}
	_, _, err = x.agent.ring.Import(t.Context(), nil, keyring.ImportSpec{Token: "soft", Use: token.UseSignAssertion, Private: private, Tags: []string{"ConnectionDevice"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := openWhole(t, x.agent, x.udf, e); got.Status != statusForbidden {
		t.Errorf("here: %+v", got)
	}
}

// TestOtherAccount connects a device to two accounts: what the administrator of one signed is not the other's.
func TestOtherAccount(t *testing.T) {
	t.Parallel()
	x, other := limitDevice(t), newTestAccount(t, mesh.G1)
	approve(t, x.agent, other.Account.Name())
	if r := activate(t, x.agent, other.connect(t, x.device)); r.Status != mesh.StatusOK {
		t.Fatalf("activate: %d %s", r.Status, r.StatusDescription)
	}
	if got := openWhole(t, x.agent, x.udf, letter(t, mesh.G1, "hello", x.key, other.Administrator)); got.Status != statusForbidden || !strings.HasPrefix(got.Error, "policy:") {
		t.Errorf("by the administrator of another account: %+v", got)
	}
}

// TestLimitChangesWhileWaiting has a key deleted and imported with another limit while an operation waits for its turn.
func TestLimitChangesWhileWaiting(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	scalar, err := keyshare.RandomScalar(keyshare.X448, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spec := keyring.ImportSpec{Token: "soft", Use: token.UseDecrypt, Private: &token.PrivateKey{Algorithm: token.X448, Scalar: scalar.Bytes()}}
	first, _, err := a.ring.Import(t.Context(), nil, spec)
	if err != nil {
		t.Fatal(err)
	}
	seen := a.ring.Snapshot()
	r := &request{Agent: a, peer: policy.Peer{UID: a.uid}}
	if err := r.recheck(seen, first, policy.Decrypt); err != nil {
		t.Errorf("nothing changed: %v", err)
	}
	if _, err := a.ring.Delete(t.Context(), nil, first.Udf); err != nil {
		t.Fatal(err)
	}
	spec.Release = token.ReleasePlaintext
	if _, _, err := a.ring.Import(t.Context(), nil, spec); err != nil {
		t.Fatal(err)
	}
	if err := r.recheck(seen, first, policy.Decrypt); !errors.Is(err, token.ErrNotFound) {
		t.Errorf("another limit: %v", err)
	}
}

// TestUpdatesKeepTheLimit connects a device anew: its combined key gives out no more than the one before.
func TestUpdatesKeepTheLimit(t *testing.T) {
	t.Parallel()
	a, x := newDeviceAgent(t), newTestAccount(t, mesh.G1)
	d := initDevice(t, a, mesh.DeviceInitRequest{})
	approve(t, a, x.Account.Name())
	for i, c := range []struct{ asked, want string }{{"", ""}, {"key", "key"}, {"seed", "key"}, {"plaintext", "plaintext"}, {"", "plaintext"}} {
		r := activate(t, a, x.connect(t, d), func(q *mesh.DeviceActivateRequest) { q.Release, q.Confirm = c.asked, true })
		if r.Status != mesh.StatusOK {
			t.Fatalf("connection %d: %d %s", i+1, r.Status, r.StatusDescription)
		}
		if k := keyNamed(t, r.Account.Keys, "DeviceEncryption"); k.Release != c.want || k.Use != "decrypt" {
			t.Errorf("connection %d: %+v, want release %q", i+1, k, c.want)
		}
	}
	for _, edit := range []func(*mesh.DeviceActivateRequest){
		func(q *mesh.DeviceActivateRequest) { q.Release = "point" },
		func(q *mesh.DeviceActivateRequest) { q.Release, q.InsideOnly = "plaintext", true },
	} {
		r := activate(t, a, x.connect(t, d), edit, func(q *mesh.DeviceActivateRequest) { q.Confirm = true })
		if r.Status != statusMalformed || !strings.HasPrefix(r.StatusDescription, "Release:") {
			t.Errorf("%d %s", r.Status, r.StatusDescription)
		}
	}
	r := activate(t, a, x.connect(t, d), func(q *mesh.DeviceActivateRequest) { q.InsideOnly, q.Confirm = true, true })
	if k := keyNamed(t, r.Account.Keys, "DeviceEncryption"); k.Use != "seal" || k.Release != "" {
		t.Errorf("for the inside only: %+v", k)
	}
}

// TestKnownSigners verifies signatures by the keys of the account that the device is connected to, without being told
// whose they should be.
func TestKnownSigners(t *testing.T) {
	t.Parallel()
	x := connectDevice(t)
	if got := openWhole(t, x.agent, x.udf, letter(t, mesh.G1, "hello", x.key)); got.Status != mesh.StatusOK || got.Signature != "none" {
		t.Errorf("not signed: %+v", got) // clients can have the seed of this key
	}
	got := openWhole(t, x.agent, x.udf, letter(t, mesh.G1, "hello", x.key, x.account.Administrator))
	if got.Status != mesh.StatusOK || got.Signature != "verified" || !slices.Equal(got.SignedBy, []string{fingerprint(t, x.account.Administrator.Public(), mesh.G1)}) {
		t.Errorf("connected: %+v", got)
	}
	var end mesh.DeviceActivateResponse
	ask(t, x.agent, mesh.TagDeviceDisconnectRequest, mesh.DeviceDisconnectRequest{Account: x.account.Account.Name()}, mesh.TagDeviceDisconnectResponse, &end)
	key := limitedKey(t, x.agent, token.ReleaseSeed)
	if got := openWhole(t, x.agent, key.Udf, letter(t, mesh.G1, "hello", key.Public, x.account.Administrator)); got.Signature != "unverified" || got.SignedBy != nil {
		t.Errorf("disconnected: %+v", got)
	}
}

// TestEnvelopeOfAFrame opens what just fits into a frame, and refuses what does not.
func TestEnvelopeOfAFrame(t *testing.T) {
	t.Parallel()
	a := newDeviceAgent(t)
	key := limitedKey(t, a, token.ReleasePlaintext)
	text := bytes.Repeat([]byte("x"), maxFrame*3/4-1200)
	got := openWhole(t, a, key.Udf, letter(t, mesh.G1, string(text), key.Public))
	if got.Status != mesh.StatusOK || !bytes.Equal(got.Plaintext, text) {
		t.Errorf("%d %s, %d octets", got.Status, got.Error, len(got.Plaintext))
	}
}
