package device

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/jsonb"
	"github.com/mesh-agent/mesh-agent/token"
)

// The traps into which implementations of the Mesh have fallen, one test each.

func publishedProfile(t testing.TB, name string) *mesh.Envelope {
	t.Helper()
	f := load[struct {
		Input struct{ Envelope *mesh.Envelope }
	}](t, name)
	return f.Input.Envelope
}

const (
	publishedG1 = "profile-device-g1-286d44f56.json"
	publishedG2 = "profile-device-g2-release_1.0.2.json"
)

// TestTrapsAreComplete looks that each trap of the list has its test: those that hurt other implementations of the Mesh,
// by their numbers there.
func TestTrapsAreComplete(t *testing.T) {
	t.Parallel()
	const traps = 21
	source := must(os.ReadFile("traps_test.go"))
	for n := range traps {
		if name := fmt.Sprintf("\nfunc TestTrap%02d", n+1); bytes.Count(source, []byte(name)) != 1 {
			t.Errorf("there is no test %s...", strings.TrimSpace(name))
		}
	}
}

func TestTrap01GenerationMixUps(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		foreign := mesh.G1 + mesh.G2 - g
		seed := must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice))
		one, other := must(DeviceKey(seed, Encrypt, "", g)), must(DeviceKey(seed, Encrypt, "", foreign))
		if bytes.Equal(one.Seed, other.Seed) {
			t.Error("a seed derives the same key in both generations")
		}
		pub := must(mesh.PublicOf(one))
		k := must(mesh.NewKeyData(pub, foreign))
		_, err := readKey(k, g, now)
		wantErr(t, "Udf of the other generation", err, token.ErrBadKey)
		same(t, "kid of the other generation", mesh.Names(k.Udf, pub, g), false)

		// A profile whose signature is of the other generation.
		d := newDevice(t, g, nil)
		if err := (mesh.SignOptions{Generation: foreign, IncludeKey: true}).Sign(t.Context(), d.profile.Envelope, d.root); err != nil {
			t.Fatal(err)
		}
		_, err = ParseProfileDevice(d.profile.Envelope, now)
		wantErr(t, "signature of the other generation", err, mesh.ErrSigner)

		// An entry of which one object is of the other generation.
		a := newAccount(t, g)
		d = newDevice(t, g, nil)
		entry := a.connect(t, d, Rights{})
		if err := (mesh.SignOptions{Generation: foreign}).Sign(t.Context(), entry.ConnectionService, a.admin); err != nil {
			t.Fatal(err)
		}
		_, err = verification(a, d).Verify(t.Context(), entry)
		wantStep(t, "connection of the other generation", err, StepSignature, TagConnectionService, mesh.ErrSigner)
	})
}

func TestTrap02TwoMeaningsOfActivationAccount(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	forDevice := must(must(NewDeviceActivation(rand.Reader, d.profile)).marshal())
	forAccount := must(must(NewAccountActivation(a.seed, Rights{Common: true}, a.profile)).marshal())
	old := bytes.Replace(forAccount, []byte(TagActivationCommon), []byte(TagActivationAccount), 1)
	_, err := ParseDeviceActivation(old)
	wantErr(t, "account's activation under the device's tag", err, ErrActivation)
	if _, err := ParseAccountActivation(old, mesh.G1); err != nil {
		t.Errorf("account's activation under its old tag: %v", err)
	}
	_, err = ParseAccountActivation(forDevice, mesh.G1)
	wantErr(t, "device's activation as an account's", err, token.ErrBadKey)
	super := []byte(`{"ActivationAccount":{"ActivationKey":"` + a.seed.Text() + `"}}`)
	_, err = ParseDeviceActivation(super)
	wantErr(t, "seed without AccountUdf", err, ErrActivation)

	// An entry with the names of 2021, and one in the wrong order, are told apart by recipient.
	data := string(must(a.connect(t, d, Rights{Common: true}).Marshal()))
	data = strings.Replace(data, `"EnvelopedActivationAccount"`, `"EnvelopedActivationDevice"`, 1)
	data = strings.Replace(data, `"EnvelopedActivationCommon"`, `"EnvelopedActivationAccount"`, 1)
	entry := must(ParseCatalogedDevice([]byte(data)))
	if _, err := verification(a, d).Verify(t.Context(), entry); err != nil {
		t.Errorf("names of 2021: %v", err)
	}
	entry.Activations[0], entry.Activations[1] = entry.Activations[1], entry.Activations[0]
	if _, err := verification(a, d).Verify(t.Context(), entry); err != nil {
		t.Errorf("in the other order: %v", err)
	}
}

func TestTrap03UdfStringsAreClaims(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		victim, d := newDevice(t, g, nil), newDevice(t, g, nil)
		for _, members := range []struct{ name, from, to string }{
			{"Encryption", must(mesh.Fingerprint(d.profile.Encryption, g)), must(mesh.Fingerprint(victim.profile.Encryption, g))},
			{"root", must(mesh.Fingerprint(d.profile.Roots[0], g)), must(mesh.Fingerprint(victim.profile.Roots[0], g))},
		} {
			if g == mesh.G2 && members.name == "root" {
				continue // RootUdfs are compared with the signer's key
			}
			body := bytes.ReplaceAll(d.profile.Envelope.Body, []byte(members.from), []byte(members.to))
			_, err := ParseProfileDevice(resigned(t, d, body), now)
			wantErr(t, "forged Udf of "+members.name, err, ErrProfile)
		}
	})
	d, victim := newDevice(t, mesh.G2, nil), newDevice(t, mesh.G2, nil)
	root := func(p *ProfileDevice) []byte {
		return must(mesh.Binary(must(mesh.FingerprintOctets(p.Roots[0], mesh.G2))).MarshalJSON())
	}
	body := bytes.ReplaceAll(d.profile.Envelope.Body, root(d.profile), root(victim.profile))
	_, err := ParseProfileDevice(resigned(t, d, body), now)
	wantErr(t, "another's RootUdfs", err, mesh.ErrSigner)
	both := bytes.Replace(d.profile.Envelope.Body, root(d.profile), append(append(root(d.profile), ','), root(victim.profile)...), 1)
	p, err := ParseProfileDevice(resigned(t, d, both), now)
	if err != nil {
		t.Fatal(err)
	}
	if p.Is(d.profile.Name()) || p.Is(victim.profile.Name()) {
		t.Error("a list of two roots has the name of one")
	}
}

// resigned is a body with the device's good signature.
func resigned(t testing.TB, d *someDevice, body []byte) *mesh.Envelope {
	t.Helper()
	return must(mesh.NewEnvelope(t.Context(), body, mesh.EnvelopeOptions{
		Generation: d.profile.Generation, Signers: []mesh.Signer{d.root}, IncludeKey: true,
	}))
}

func TestTrap04RawLineFeedsInStrings(t *testing.T) {
	t.Parallel()
	for _, name := range []string{publishedG1, publishedG2} {
		e := publishedProfile(t, name)
		if json.Valid(e.Body) || !bytes.Contains(e.Body, []byte("\n  ")) {
			t.Errorf("%s has no raw line feeds", name)
		}
		if _, err := ParseProfileDevice(e, now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// The signature is over the octets as they are, not over repaired ones.
		e.Body = strictjson.EscapeControls(e.Body)
		_, err := ParseProfileDevice(e, now)
		wantErr(t, name+", repaired", err, mesh.ErrPayloadDigest)
	}
}

func TestTrap05ConnectionsAreJSONB(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "connection-chain-*.json", 3) {
		f := load[chainFixture](t, name)
		c := must(ParseCatalogedDevice(f.Input.CatalogedDevice))
		for _, e := range []*mesh.Envelope{c.ConnectionDevice, c.ConnectionService} {
			if !jsonb.Is(e.Body) || json.Valid(e.Body) {
				t.Errorf("%s: a connection is JSON text", name)
			}
			// What was read is, written again, octet for octet the same.
			if again := must(jsonb.Append(nil, must(jsonb.Parse(e.Body)))); !bytes.Equal(again, e.Body) {
				t.Errorf("%s: %x becomes %x", name, e.Body, again)
			}
		}
	}
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	if e := a.connect(t, d, Rights{}); !jsonb.Is(e.ConnectionDevice.Body) || !jsonb.Is(e.ConnectionService.Body) {
		t.Error("connections are made as JSON text")
	}
	// Stripped connections of 2021 have no Udf, and are none that connects.
	k := must(mesh.NewKeyData(d.profile.Authentication, mesh.G1))
	body := must(jsonb.Append(nil, jsonb.Object{{Name: TagConnectionAddress, Value: jsonb.Object{
		{Name: "Authentication", Value: jsonb.Object{{Name: "PublicParameters", Value: jsonb.Object{{Name: "PublicKeyECDH", Value: jsonb.Object{
			{Name: "crv", Value: "X448"}, {Name: "Public", Value: []byte(k.PublicParameters.PublicKeyECDH.Public)}}}}}}},
		{Name: "Account", Value: "alice@example.com"}}}}))
	c, err := ParseConnection(a.signed(t, body), mesh.G1, now)
	if err != nil || c.Account != "alice@example.com" {
		t.Fatalf("stripped connection: %v", err)
	}
	entry := a.connect(t, d, Rights{})
	entry.ConnectionService = c.Envelope
	_, err = verification(a, d).Verify(t.Context(), entry)
	wantStep(t, "stripped connection for services", err, StepBinding, TagConnectionService, ErrConnection)
}

func TestTrap06Ed448SeedsOf56Octets(t *testing.T) {
	t.Parallel()
	seed := must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice))
	key := must(DeviceKey(seed, Sign, "", mesh.G1))
	same(t, "octets", len(key.Seed), 56)
	padded := &token.PrivateKey{Algorithm: token.Ed448, Seed: append(bytes.Clone(key.Seed), 0)}
	if must(mesh.PublicOf(key)).Equal(must(mesh.PublicOf(padded))) {
		t.Error("a padded seed gives the same key")
	}
}

func TestTrap07X448KeysOf57Octets(t *testing.T) {
	t.Parallel()
	for _, name := range []string{publishedG1, publishedG2} {
		p := must(ParseProfileDevice(publishedProfile(t, name), now))
		same(t, "octets", len(p.Encryption.Octets), 57)
		same(t, "secret", len(must(keyshare.ParsePoint(keyshare.X448, p.Encryption.Octets)).SharedSecret()), 56)
	}
	d := newDevice(t, mesh.G1, nil)
	if !bytes.Contains(d.profile.Envelope.Body, must(mesh.Binary(d.profile.Encryption.Octets).MarshalJSON())) {
		t.Error("the profile has the key in another encoding")
	}
}

func TestTrap08KeyNamesHaveNoSeparators(t *testing.T) {
	t.Parallel()
	same(t, "device", baseName(actorDevice, Encrypt), "BaseDeviceEncrypt")
	same(t, "activation", activationName(actorHost, Sign), "ActivationHostSign")
	same(t, "account", accountName(AdminSign), "CompleteAccountAdminSign")
	all, administrators := Stores(mesh.G1)
	same(t, "stores", all[0]+administrators[0], "MMM_ContactMMM_Device")
	all, administrators = Stores(mesh.G2)
	same(t, "stores", all[0]+administrators[0], "ContactDevice")
	// The contacts' key of a published account, whose seed is in an escrow fixture.
	f := load[struct {
		Expect struct {
			Seed string `json:"seed_udf"`
		}
	}](t, "account-escrow-g1-286d44f56.json")
	key := must(StoreKey(must(mesh.ParseSeed(f.Expect.Seed)), "MMM_Contact", "", mesh.G1))
	same(t, "contacts", must(mesh.Fingerprint(must(mesh.PublicOf(key)), mesh.G1)), "MBRT-JZHU-7BN3-PQYP-G3Q2-IBL4-PNQT")
}

func TestTrap09CombinedScalarsAreNotClamped(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G1, nil)
	c := must(must(NewDeviceActivation(rand.Reader, d.profile)).Contribution(d.profile, Encrypt))
	z := must(CombinePrivate(d.base[Encrypt], c.Private))
	if !must(mesh.PublicOf(z)).Equal(c.Combined) {
		t.Error("the scalar is not that of the combined key")
	}
	clamped := &token.PrivateKey{Algorithm: token.X448, Seed: z.Scalar}
	if must(mesh.PublicOf(clamped)).Equal(c.Combined) {
		t.Error("clamping changed nothing")
	}
}

func TestTrap10CompositeNonce(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "composite-signature-trap-*.json", 1) {
		f := load[struct {
			Input struct {
				Scalar  hexOctets `json:"combined_scalar_le_hex"`
				Public  string    `json:"combined_public"`
				Message hexOctets `json:"message_hex"`
			}
			Expect struct {
				Insecure hexOctets `json:"insecure_signature_hex"`
			}
		}](t, name)
		key := must(mesh.NewLocalKey(&token.PrivateKey{Algorithm: token.Ed448, Scalar: f.Input.Scalar}))
		samePublic(t, "public", key.Public(), f.Input.Public)
		same(t, "insecure signature verifies", mesh.VerifySignature(key.Public(), f.Input.Message, f.Expect.Insecure), true)
		seen := map[string]bool{string(f.Expect.Insecure[:57]): true}
		for range 3 {
			s := must(key.Sign(t.Context(), f.Input.Message))
			same(t, "signature verifies", mesh.VerifySignature(key.Public(), f.Input.Message, s), true)
			same(t, "R was used before", seen[string(s[:57])], false)
			seen[string(s[:57])] = true
		}
	}
}

func TestTrap11SignOctet(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G1, nil)
	a := must(NewDeviceActivation(rand.Reader, d.profile))
	good := must(a.Contribution(d.profile, Encrypt))
	mirrored := *d.profile
	mirrored.Encryption.Octets = bytes.Clone(d.profile.Encryption.Octets)
	mirrored.Encryption.Octets[56] ^= 0x80
	other := must(a.Contribution(&mirrored, Encrypt))
	if bytes.Equal(good.Combined.Octets[:56], other.Combined.Octets[:56]) {
		t.Error("the sign makes no difference to a sum")
	}
	agree := func(pub token.PublicKey) []byte {
		p := must(keyshare.ParsePoint(keyshare.X448, pub.Octets))
		return must(d.agreer().Agree(t.Context(), p)).SharedSecret()
	}
	sameHex(t, "secret of the mirrored key", agree(mirrored.Encryption), agree(d.profile.Encryption))
	// X25519 keys, which others write without sign, keep it where it matters.
	for range 8 {
		d := newDevice(t, mesh.G1, Algorithms{Encrypt: token.X25519})
		if !d.profile.Encryption.Equal(must(mesh.PublicOf(d.base[Encrypt]))) {
			t.Fatal("the profile lost the sign of an X25519 key")
		}
	}
}

func TestTrap12DigestOverCiphertext(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "connection-chain-*.json", 3) {
		c := must(ParseCatalogedDevice(load[chainFixture](t, name).Input.CatalogedDevice))
		for _, e := range c.Activations {
			if e.Header.Encryption == "" {
				t.Fatal("not encrypted")
			}
			digest := e.Digest()
			sameHex(t, "digest", e.Trailer.PayloadDigest, digest[:])
		}
	}
}

func TestTrap13HeaderIsNotSigned(t *testing.T) {
	t.Parallel()
	e := publishedProfile(t, publishedG1)
	e.Header = mesh.Header{EnvelopeID: "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA", ContentMetaData: []byte(`{"MessageType":"ProfileUser"}`)}
	if _, err := ParseProfileDevice(e, now); err != nil {
		t.Errorf("the header is looked at: %v", err)
	}
	_, err := ParseProfileUser(e, now)
	wantErr(t, "the header's type is believed", err, ErrProfile)
}

func TestTrap14UnsignedApplications(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	entry := a.connect(t, d, Rights{})
	m := must(verification(a, d).Verify(t.Context(), entry))
	// Anybody who knows the public key plants a key. It stays apart from what is verified,
	// is not opened by itself, and the answer's envelope says nothing of it.
	planted := sshKey(t, mesh.G1)
	body := must(strictjson.Marshal(map[string]any{"ActivationApplicationSsh": map[string]any{"ClientKey": planted}}))
	entry.Applications = []ApplicationEntry{{Tag: "ApplicationEntrySsh", Envelope: must(mesh.Encrypt(rand.Reader, body, "", m.Combined.Public()))}}
	e := must(a.connector().Respond(t.Context(), d.profile, must(mesh.GenerateNonce(rand.Reader)), entry))
	same(t, "answer is unsigned", e.Trailer == nil, true)
	r := must(OpenRespondConnection(t.Context(), e, d.agreer()))
	m = must(verification(a, d).Verify(t.Context(), r.CatalogedDevice))
	same(t, "applications", len(m.Applications), 1)
	if len(m.Keys.Entries) != 0 || m.Keys.Signature != nil {
		t.Error("a planted key is among the account's")
	}
}

func TestTrap15FirstAdministratorGetsTheSeed(t *testing.T) {
	t.Parallel()
	a := newAccount(t, mesh.G2)
	got := must(ParseAccountActivation([]byte(`{"ActivationCommon":{"ActivationKey":"`+a.seed.Text()+`"}}`), mesh.G2))
	same(t, "seed", got.Seed.Text(), a.seed.Text())
	got.Wipe()
	same(t, "seed is wiped", got.Seed.Text() == a.seed.Text(), false)
	wrong := must(mesh.GenerateSeed(rand.Reader, mesh.SeedActivationAccount))
	_, err := ParseAccountActivation([]byte(`{"ActivationCommon":{"ActivationKey":"`+wrong.Text()+`"}}`), mesh.G2)
	wantErr(t, "seed that is not an account's", err, token.ErrBadKey)
}

func TestTrap16TorsionIsRefused(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G1, nil)
	// The base point, u = 5, plus the point of order two, (0, 0), is the point of u = 1/5.
	p, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffffffffffffffffffffffffffffffffffffffffffffffffffff", 16)
	torsion := new(big.Int).ModInverse(big.NewInt(5), p).FillBytes(make([]byte, 57))
	slices.Reverse(torsion)
	for name, public := range map[string][]byte{
		"torsion":   torsion,
		"low order": make([]byte, 57), // u = 0
		"twist":     append([]byte{3}, make([]byte, 56)...),
		"length":    make([]byte, 55),
	} {
		w := wireProfile{
			ProfileSignature: must(mesh.NewKeyData(d.root.Public(), mesh.G1)),
			Encryption:       &mesh.KeyData{PublicParameters: &mesh.PublicParameters{PublicKeyECDH: &mesh.PublicKeyECDH{Curve: "X448", Public: public}}},
			Signature:        must(mesh.NewKeyData(d.profile.Signature, mesh.G1)), Authentication: must(mesh.NewKeyData(d.profile.Authentication, mesh.G1)),
		}
		body := must(strictjson.Marshal(map[string]wireProfile{TagProfileDevice: w}))
		_, err := ParseProfileDevice(resigned(t, d, body), now)
		wantErr(t, name, err, token.ErrBadPoint)
		// The same point as the other side of an encryption.
		e := must(mesh.Encrypt(rand.Reader, []byte("x"), "", d.profile.Encryption))
		e.Header.Recipients[0].EphemeralKey = *w.Encryption.PublicParameters
		_, err = e.Decrypt(t.Context(), d.agreer())
		wantErr(t, name+" as epk", err, token.ErrDecrypt)
	}
}

func TestTrap17EncryptAndAuthenticateAreOneType(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G1, nil)
	same(t, "type", d.profile.Encryption.Algorithm, d.profile.Authentication.Algorithm)
	e := must(mesh.Encrypt(rand.Reader, []byte("x"), "", d.profile.Encryption))
	_, err := e.Decrypt(t.Context(), must(mesh.NewLocalKey(d.base[Authenticate])))
	wantErr(t, "decrypt with the authentication key", err, mesh.ErrNotRecipient)
	a := newAccount(t, mesh.G1)
	v := verification(a, d)
	v.Base = must(mesh.NewLocalKey(d.base[Authenticate]))
	_, err = v.Verify(t.Context(), a.connect(t, d, Rights{}))
	wantErr(t, "activations opened with the authentication key", err, token.ErrBadRequest)
}

func TestTrap18KeyShareIsAKey(t *testing.T) {
	t.Parallel()
	a := newAccount(t, mesh.G1)
	whole := must(mesh.NewKeyData(a.profile.Encryption, mesh.G1))
	share := must(keyshare.RandomScalar(keyshare.X448, rand.Reader)).Bytes()
	whole.PrivateParameters = &mesh.PrivateParameters{KeyShare: &mesh.KeyShare{
		PublicPrimary: whole.PublicParameters, ServiceID: "MAAA", ServiceAddress: "alice@example.com",
		Share: &mesh.PrivateParameters{PrivateKeyECDH: &mesh.PrivateKeyECDH{Curve: "X448z", Private: share}},
	}}
	data := must((&AccountActivation{Encryption: whole}).marshal())
	got, err := ParseAccountActivation(data, mesh.G1)
	if err != nil {
		t.Fatal(err)
	}
	k := got.Encryption.PrivateParameters.KeyShare
	sameHex(t, "share", must(k.Share.PrivateKey()).Scalar, share)
	same(t, "service", k.ServiceAddress, "alice@example.com")
	_, err = got.Encryption.PrivateParameters.PrivateKey()
	wantErr(t, "share as a whole key", err, token.ErrBadKey)
	got.Wipe()
	sameHex(t, "wiped", k.Share.PrivateKeyECDH.Private, make([]byte, 56))
}

func TestTrap19ExactlyThresholdShares(t *testing.T) {
	t.Parallel()
	seed := must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount))
	shares := must(SplitSeed(rand.Reader, seed, 2, 4))
	same(t, "all four", must(RecoverSeed(shares...)).Text(), seed.Text())
	foreign := must(SplitSeed(rand.Reader, seed, 2, 4))
	if _, err := RecoverSeed(shares[0], shares[1], foreign[2]); err == nil {
		t.Error("a share that does not fit is not noticed")
	}
	if _, err := RecoverSeed(shares[3]); err == nil {
		t.Error("one share is enough")
	}
}

func TestTrap20LeftOverBase32Bits(t *testing.T) {
	t.Parallel()
	same(t, "left-over bits", must(mesh.ParseSeed("ZAAA-GTKG-ED25-5XXK-EYX")).ID() != 0, true)
	d := newDevice(t, mesh.G1, nil)
	name := d.profile.Name()
	for _, id := range []string{name, strings.ToLower(name), strings.ReplaceAll(name, "-", "")} {
		same(t, id, d.profile.Is(id), true)
	}
	for _, id := range []string{"", name[:29], name[:33] + "?", name + "A"} {
		same(t, id, d.profile.Is(id), id == name+string(mesh.UDFText(d.profile.UDF)[35]))
	}
}

func TestTrap21CompositesUnderOrdinaryNames(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G1, nil)
	c := must(must(NewDeviceActivation(rand.Reader, d.profile)).Contribution(d.profile, Encrypt))
	z := must(CombinePrivate(d.base[Encrypt], c.Private))
	k := must(mesh.NewKeyData(c.Combined, mesh.G1))
	k.PrivateParameters = &mesh.PrivateParameters{PrivateKeyECDH: &mesh.PrivateKeyECDH{Curve: "X448", Private: z.Scalar}}
	_, err := ParseAccountActivation(must((&AccountActivation{Encryption: k}).marshal()), mesh.G1)
	wantErr(t, "composite scalar as a seed", err, token.ErrBadKey)
	k.PrivateParameters.PrivateKeyECDH.Curve = "X448z"
	if _, err := ParseAccountActivation(must((&AccountActivation{Encryption: k}).marshal()), mesh.G1); err != nil {
		t.Errorf("composite scalar as such: %v", err)
	}
	k.PrivateParameters = &mesh.PrivateParameters{CompositePrivate: &mesh.CompositePrivate{DeviceKeyUdf: k.Udf}}
	_, err = k.PrivateParameters.PrivateKey()
	wantErr(t, "composite as a whole key", err, token.ErrBadKey)
}

// A key has a time in which it is valid, wherever it is.
func TestValidity(t *testing.T) {
	t.Parallel()
	d := newDevice(t, mesh.G1, nil)
	w := wireProfile{
		ProfileSignature: must(mesh.NewKeyData(d.root.Public(), mesh.G1)), Encryption: must(mesh.NewKeyData(d.profile.Encryption, mesh.G1)),
		Signature: must(mesh.NewKeyData(d.profile.Signature, mesh.G1)), Authentication: must(mesh.NewKeyData(d.profile.Authentication, mesh.G1)),
	}
	for _, k := range []*mesh.KeyData{w.ProfileSignature, w.Encryption, w.Authentication} {
		k.NotBefore, k.NotOnOrAfter = now.Add(-time.Hour), now.Add(time.Hour)
		e := resigned(t, d, must(strictjson.Marshal(map[string]wireProfile{TagProfileDevice: w})))
		if _, err := ParseProfileDevice(e, now); err != nil {
			t.Error(err)
		}
		for _, at := range []time.Time{now.Add(-2 * time.Hour), now.Add(time.Hour)} {
			_, err := ParseProfileDevice(e, at)
			wantErr(t, "not valid at "+at.String(), err, token.ErrBadKey)
		}
		k.NotBefore, k.NotOnOrAfter = time.Time{}, time.Time{}
	}
}
