package device

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/jsonb"
	"github.com/mesh-agent/mesh-agent/token"
)

func TestParseProfileRefuses(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		d := newDevice(t, g, nil)
		body := string(d.profile.Envelope.Body)
		member := func(name string, pub token.PublicKey) string {
			return fmt.Sprintf("%q:%s", name, must(strictjson.Marshal(must(mesh.NewKeyData(pub, g)))))
		}
		encryption := member("Encryption", d.profile.Encryption)
		private := must(mesh.NewPrivateKeyData(d.base[Encrypt], g))
		for _, c := range []struct {
			name, body string
			want       error
		}{
			{"nothing", "", ErrProfile},
			{"no object", `[]`, ErrProfile},
			{"two tags", `{"ProfileDevice":{},"ProfileUser":{}}`, ErrProfile},
			{"no members", `{"ProfileDevice":{}}`, ErrProfile},
			{"null", `{"ProfileDevice":null}`, ErrProfile},
			{"another tag", strings.Replace(body, "ProfileDevice", "ProfileUser", 1), ErrProfile},
			{"key missing", strings.Replace(body, encryption+",", "", 1), ErrProfile},
			{"key there twice", strings.Replace(body, encryption, encryption+","+encryption, 1), ErrProfile},
			{"key under two names", strings.Replace(body, encryption, encryption+","+member("BaseEncryption", d.profile.Encryption), 1), ErrProfile},
			{"private key", strings.Replace(body, encryption, `"Encryption":`+string(must(strictjson.Marshal(private))), 1), token.ErrBadKey},
			{"agreement key for signatures", strings.Replace(body, member("Signature", d.profile.Signature), member("Signature", d.profile.Encryption), 1), token.ErrBadKey},
			{"X448 key without sign", strings.Replace(body, encryption, fmt.Sprintf(`"Encryption":{"PublicParameters":{"PublicKeyECDH":{"crv":"X448","Public":%s}}}`,
				must(strictjson.Marshal(mesh.Binary(d.profile.Encryption.Octets[:56])))), 1), token.ErrBadKey},
			{"RSA key", strings.Replace(body, encryption, member("Encryption", must(mesh.PublicOf(must(mesh.RSAKey(rsaKey()))))), 1), token.ErrBadKey},
			{"roots of both generations", strings.Replace(body, encryption, encryption+`,"RootUdfs":["AA"],`+member("ProfileSignature", d.root.Public()), 1), ErrProfile},
		} {
			_, err := ParseProfileDevice(resigned(t, d, []byte(c.body)), now)
			wantErr(t, c.name, err, c.want)
		}
		old := strings.NewReplacer(`"Encryption"`, `"BaseEncryption"`, `"Signature"`, `"BaseSignature"`, `"Authentication"`, `"BaseAuthentication"`).Replace(body)
		p, err := ParseProfileDevice(resigned(t, d, []byte(old)), now)
		if err != nil || !p.same(d.profile) {
			t.Errorf("names of the draft: %v", err)
		}
		future := strings.Replace(body, `{"ProfileDevice":{`, `{"ProfileDevice":{"Future":{"a":[1]},`, 1)
		if _, err := ParseProfileDevice(resigned(t, d, []byte(future)), now); err != nil {
			t.Errorf("member of the future: %v", err)
		}
		host := strings.Replace(body, "ProfileDevice", "ProfileHost", 1)
		h, err := ParseProfileDevice(resigned(t, d, []byte(host)), now)
		if err != nil || h.actor() != actorHost || h.same(d.profile) {
			t.Errorf("host: %v", err)
		}
		other := newDevice(t, g, nil)
		e := must(mesh.NewEnvelope(t.Context(), d.profile.Envelope.Body, mesh.EnvelopeOptions{
			Generation: g, Signers: []mesh.Signer{d.root, other.root}, IncludeKey: true,
		}))
		_, err = ParseProfileDevice(e, now)
		wantErr(t, "a second signature", err, mesh.ErrSigner)
	})
}

func TestParseProfileG2Roots(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G2, nil)
	root := string(must(strictjson.Marshal(mesh.Binary(must(mesh.FingerprintOctets(d.root.Public(), mesh.G2))))))
	for name, list := range map[string]string{"no roots": `[]`, "short root": `["AAAA"]`, "null": `null`} {
		body := strings.Replace(string(d.profile.Envelope.Body), "["+root+"]", list, 1)
		_, err := ParseProfileDevice(resigned(t, d, []byte(body)), now)
		wantErr(t, name, err, ErrProfile)
	}
	e := must(mesh.NewEnvelope(t.Context(), d.profile.Envelope.Body, mesh.EnvelopeOptions{Generation: mesh.G2, Signers: []mesh.Signer{d.root}}))
	_, err := ParseProfileDevice(e, now)
	wantErr(t, "signature without its key", err, mesh.ErrSigner)
}

func TestParseProfileService(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		root := newDevice(t, g, nil)
		b := newBuilder(g, now)
		w := wireProfile{ServiceEncryption: b.key(root.profile.Encryption), ServiceAuthentication: b.key(root.profile.Authentication)}
		e := must(b.profile(t.Context(), TagProfileService, root.root, w))
		p, err := ParseProfileService(e, now)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Encryption.Equal(root.profile.Encryption) || p.Signature != nil {
			t.Error("the keys are others")
		}
		_, err = ParseProfileDevice(e, now)
		wantErr(t, "a service for a device", err, ErrProfile)
	})
}

func TestParseActivationsRefuse(t *testing.T) {
	t.Parallel()
	seed := must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)).Text()
	key := strictjson.Value(must(strictjson.Marshal(must(mesh.NewPrivateKeyData(must(AccountKey(must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount)), Encrypt, "", mesh.G1)), mesh.G1)))))
	entry := func(name string) string { return fmt.Sprintf(`{"Resource":"%s","Key":%s}`, name, key) }
	if _, err := ParseAccountActivation([]byte(`{"ActivationCommon":{"Entries":[`+entry("MMM_Contact")+`,`+entry("x-notes")+`]}}`), mesh.G1); err != nil {
		t.Errorf("two stores: %v", err)
	}
	for _, text := range []string{
		``, `{}`, `[]`, `{"ActivationAccount":[]}`, `{"ActivationAccount":{}}`, `{"ActivationAccount":{"ActivationKey":"Z"}}`,
		`{"ActivationAccount":{"ActivationKey":"` + seed + `","AccountUdf":"MAAA"}}`, `{"ActivationCommon":{"ActivationKey":"ZAAQ","AccountUdf":"MAAA"}}`,
		`{"ActivationAccount":{"ActivationKey":"x","AccountUdf":"MAAA"}}`, `{"ActivationAccount":{"Entries":[{}]}}`,
	} {
		_, err := ParseDeviceActivation([]byte(text))
		wantErr(t, text, err, ErrActivation)
	}
	for _, text := range []string{
		``, `{"ActivationDevice":{}}`, `{"ActivationCommon":null}`, `{"ActivationCommon":{"ActivationKey":"` + seed + `"}}`,
		`{"ActivationCommon":{"Encryption":{}}}`, `{"ActivationCommon":{"Encryption":{"PrivateParameters":{"PrivateKeyECDH":{"crv":"X448","Private":"AA"}}}}}`,
		`{"ActivationCommon":{"Entries":[{"Resource":"MMM_Contact","Key":{}}]}}`, `{"ActivationCommon":{"Entries":[null]}}`,
		`{"ActivationCommon":{"Entries":[{"Resource":"MMM_Contact"}]}}`,
		`{"ActivationCommon":{"Entries":[` + entry("MMM_Contact") + `,` + entry("MMM_Contact") + `]}}`, `{"ActivationCommon":{"Entries":[` + entry("Signature") + `]}}`,
		`{"ActivationCommon":{"Entries":[` + entry("") + `]}}`, `{"ActivationCommon":{"Entries":[` + entry("two words") + `]}}`,
		`{"ActivationCommon":{"Entries":[` + entry(`\u001b[2J`) + `]}}`, `{"ActivationCommon":{"Entries":[` + entry(strings.Repeat("a", 65)) + `]}}`,
		`{"ActivationCommon":{"Encryption":{},"AccountEncryption":{}}}`,
	} {
		_, err := ParseAccountActivation([]byte(text), mesh.G1)
		wantErr(t, text, err, ErrActivation)
	}
	for _, text := range []string{``, `{"ActivationCommon":{}}`, `{"ActivationApplicationSsh":[]}`, `{"ActivationApplicationSsh":{"ClientKey":{}}}`, `{"ActivationApplicationSsh":{"ClientKey":1}}`} {
		_, err := ParseApplicationActivation([]byte(text), mesh.G1)
		wantErr(t, text, err, ErrActivation)
	}
}

func TestParseCatalogRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		``, `[]`, `{"CatalogedDevice":[]}`, `{"CatalogedDevice":{"EnvelopedProfileUser":{}}}`, `{"CatalogedDevice":{"EnvelopedConnectionUser":[{},""],"EnvelopedConnectionDevice":[{},""]}}`,
		`{"CatalogedDevice":{"EnvelopedActivationDevice":[{},""],"EnvelopedActivationAccount":[{},""],"EnvelopedActivationCommon":[{},""]}}`,
		`{"CatalogedDevice":{"ApplicationEntries":[{"Other":{}}]}}`, `{"CatalogedDevice":{"ApplicationEntries":[{"ApplicationEntrySsh":1}]}}`,
	} {
		_, err := ParseCatalogedDevice([]byte(text))
		wantErr(t, text, err, ErrCatalog)
	}
	_, err := ParseCatalogedDevice([]byte(`{"RespondConnection":{"Result":"Reject"}}`))
	wantErr(t, "rejection", err, ErrRejected)
	c, err := ParseCatalogedDevice([]byte(`{"RespondConnection":{"Result":"Accept","CatalogedDevice":{"DeviceUdf":"x","Labels":["a"]}}}`))
	if err != nil || c.DeviceUdf != "x" {
		t.Errorf("answer in the clear: %v", err)
	}
	if _, err := (Verification{Now: now}).VerifyPublic(c); err == nil {
		t.Error("an empty entry verifies")
	}
}

func TestParseRequestRefuses(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G1, nil)
	good := must(NewRequestConnection(rand.Reader, d.profile, "alice@example.com", ""))
	body := string(good.Envelope().Body)
	nonce := string(must(strictjson.Marshal(mesh.Binary(good.ClientNonce))))
	message := func(id string) string { // in an envelope
		altered := strings.Replace(body, `"`+good.MessageID+`"`, id, 1)
		return string(must((&mesh.Envelope{Body: []byte(altered)}).Marshal()))
	}
	if _, err := ParseRequestConnection([]byte(message(`"`+good.MessageID+`"`)), now); err != nil {
		t.Errorf("good: %v", err)
	}
	for name, text := range map[string]string{
		"nothing":       ``,
		"another tag":   `{"AcknowledgeConnection":{}}`,
		"short nonce":   strings.Replace(body, nonce, `"AAAA"`, 1),
		"no profile":    `{"RequestConnection":{"MessageId":"NAAA","ClientNonce":` + nonce + `}}`,
		"empty profile": `{"RequestConnection":{"MessageId":"NAAA","AuthenticatedData":[{},""],"ClientNonce":` + nonce + `}}`,
		"no MessageId":  message(`""`),
		"no UDF":        message(`"1"`),
		"long":          message(`"` + strings.Repeat("NAAA", 1000) + `"`),
		"envelope":      `[{},""]`,
		"no envelope":   `[{}]`,
		"other digest":  string(must((&mesh.Envelope{Body: []byte(body), Trailer: &mesh.Trailer{PayloadDigest: make([]byte, 64)}}).Marshal())),
	} {
		_, err := ParseRequestConnection([]byte(text), now)
		wantErr(t, name, err, ErrRequest)
	}
	r, err := ParseRequestConnection([]byte(body), now)
	if err != nil || !bytes.Equal(r.Envelope().Body, []byte(body)) {
		t.Errorf("bare request: %v", err)
	}
	for _, pin := range []string{"", "A", "AAAA", "MAAA-AAAA-AAAA-AAAA", "?"} {
		wantErr(t, "PIN "+pin, r.CheckPIN(pin, "alice@example.com"), ErrPIN)
		if pin == "" {
			continue
		}
		_, err := NewRequestConnection(rand.Reader, d.profile, "alice@example.com", pin)
		wantErr(t, "PIN "+pin, err, ErrPIN)
	}
}

// The decoders get short seeds: small published bodies, and texts of each kind.

func FuzzParseProfile(f *testing.F) {
	published := []*mesh.Envelope{publishedProfile(f, publishedG1), publishedProfile(f, publishedG2)}
	for _, e := range published {
		f.Add(e.Body)
	}
	f.Add([]byte(`{"ProfileUser":{"RootUdfs":[],"AdministratorSignature":{}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		// The signature is that of another body: nothing is accepted.
		for _, e := range published {
			own := bytes.Equal(e.Body, body)
			e := &mesh.Envelope{Header: e.Header, Body: body, Trailer: e.Trailer}
			if _, err := ParseProfileDevice(e, now); (err == nil) != own {
				t.Fatalf("accepted: %v", err)
			}
			if _, err := ParseProfileUser(e, now); err == nil {
				t.Fatal("accepted as an account's")
			}
		}
	})
}

func FuzzParseConnection(f *testing.F) {
	f.Add([]byte("{\xb4\x11ConnectionService{\xb4\nProfileUdf\x80\x04MAAA}}"), uint8(1))
	f.Add([]byte(`{"ConnectionDevice":{"Authentication":{"PublicParameters":{"PublicKeyECDH":{"crv":"X448","Public":"AA"}}},"Roles":["a"]}}`), uint8(2))
	f.Fuzz(func(t *testing.T, body []byte, g uint8) {
		c, err := ParseConnection(&mesh.Envelope{Body: body}, mesh.Generation(g%3), now)
		if err == nil && c.Authentication.Octets == nil {
			t.Fatal("a connection without key")
		}
	})
}

func FuzzParseActivation(f *testing.F) {
	f.Add([]byte(`{"ActivationAccount":{"ActivationKey":"ZAAQ-GOXS","AccountUdf":"MA3T"}}`))
	f.Add([]byte(`{"ActivationCommon":{"Entries":[{"Resource":"a","Key":{"PrivateParameters":{"KeyShare":{}}}}]}}`))
	f.Add([]byte(`{"ActivationApplicationSsh":{"ClientKey":{"PrivateParameters":{"PrivateKeyUDF":{"PrivateValue":"Z"}}}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if a, err := ParseDeviceActivation(bytes.Clone(body)); err == nil {
			again, err := ParseDeviceActivation(must(a.marshal()))
			if err != nil || again.Seed.Text() != a.Seed.Text() {
				t.Fatalf("written and read: %v", err)
			}
		}
		if a, err := ParseAccountActivation(bytes.Clone(body), mesh.G1); err == nil {
			if _, err := ParseAccountActivation(must(a.marshal()), mesh.G1); err != nil {
				t.Fatalf("written and read: %v", err)
			}
			a.Wipe()
		}
		if a, err := ParseApplicationActivation(bytes.Clone(body), mesh.G2); err == nil {
			a.Wipe()
		}
	})
}

func FuzzParseMessages(f *testing.F) {
	f.Add([]byte(`{"CatalogedDevice":{"DeviceUdf":"M","EnvelopedProfileUser":[{},""],"ApplicationEntries":[{"ApplicationEntrySsh":{"Identifier":"a"}}]}}`))
	f.Add([]byte(`{"RespondConnection":{"MessageId":"N","Result":"Accept","CatalogedDevice":{}}}`))
	f.Add([]byte(`{"ConnectResponse":{"EnvelopedAcknowledgeConnection":[{},""],"EnvelopedProfileAccount":[{},""]}}`))
	f.Add([]byte(`{"EnvelopedAcknowledgeConnection":[{},""],"EnvelopedProfileAccount":[{},"e30"]}`))
	f.Add([]byte(`{"RequestConnection":{"MessageId":"N","ClientNonce":"AAAAAAAAAAAAAAAAAAAAAA","AuthenticatedData":[{},""]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := ParseCatalogedDevice(data); err == nil {
			out, err := c.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			again, err := ParseCatalogedDevice(out)
			if err != nil {
				t.Fatalf("%s becomes %s: %v", data, out, err)
			}
			if second := must(again.Marshal()); !bytes.Equal(out, second) {
				t.Fatalf("%s becomes %s", out, second)
			}
			if _, err := (Verification{Now: now}).VerifyPublic(c); err == nil {
				t.Fatal("it verifies for no account")
			}
		}
		if r, err := ParseRequestConnection(data, now); err == nil && r.Profile == nil {
			t.Fatal("a request without profile")
		}
		if c, err := ParseConnectResponse(data, now); err == nil && (len(c.Account.Roots) == 0 || c.Acknowledged.Request == nil) {
			t.Fatal("an answer without root or request")
		}
	})
}

func BenchmarkParseProfileDevice(b *testing.B) {
	e := publishedProfile(b, publishedG2)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseProfileDevice(e, now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	a, d := newAccount(b, mesh.G1), newDevice(b, mesh.G1, nil)
	v, c := verification(a, d), a.connect(b, d, Rights{Common: true})
	b.ReportAllocs()
	for b.Loop() {
		m, err := v.Verify(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		m.Wipe()
	}
}

func BenchmarkConnect(b *testing.B) {
	a, d := newAccount(b, mesh.G1), newDevice(b, mesh.G1, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.connector().Connect(b.Context(), Grant{Device: d.profile}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestInsideOnly tells what is for agents alone by its tag, in every form.
func TestInsideOnly(t *testing.T) {
	t.Parallel()
	binary, err := jsonb.Append(nil, jsonb.Object{{Name: "ActivationCommon", Value: jsonb.Object{}}})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`{"ActivationAccount":{}}`: "ActivationAccount", ` {"ActivationApplicationMail":{"SmimeSign":{}}}`: "ActivationApplicationMail",
		`{"\u0041ctivationDevice":{}}`: "ActivationDevice", string(binary): "ActivationCommon", `{"ApplicationEntrySsh":{}}`: "ApplicationEntrySsh",
		`{"CatalogedDevice":{}}`: "", `{"KeyData":{}}`: "", `{"ActivationCommon":{},"a":1}`: "", "ActivationCommon": "", "": "",
	} {
		plaintext := []byte(text)
		if got := InsideOnly(plaintext); got != want || string(plaintext) != text {
			t.Errorf("%q: %q, want %q; left as %q", text, got, want, plaintext)
		}
	}
}
