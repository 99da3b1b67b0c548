package device

import (
	"crypto/rand"
	"encoding/json"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

type keyExpectation struct {
	KeyName string
	Crv     string
	OKM     hexOctets `json:"okm_hex"`
	Scalar  hexOctets `json:"scalar_le_hex"`
	Public  string
	Udf     string
}

func (x *keyExpectation) check(t *testing.T, what string, pub token.PublicKey, g mesh.Generation) {
	t.Helper()
	same(t, what+" algorithm", string(pub.Algorithm), x.Crv)
	samePublic(t, what, pub, x.Public)
	same(t, what+" UDF", must(mesh.Fingerprint(pub, g)), x.Udf)
}

func samePublic(t *testing.T, what string, pub token.PublicKey, text string) {
	t.Helper()
	sameHex(t, what, pub.Octets, must(strictjson.DecodeBase64([]byte(text))))
}

func TestProfileDeviceFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "profile-device-*.json", 3) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := load[struct {
				Generation string
				Input      struct {
					Seed     string
					Envelope json.RawMessage
				}
				Expect struct {
					Udf  string `json:"profile_udf"`
					Keys map[string]keyExpectation
				}
			}](t, name)
			g := must(mesh.ParseGeneration(f.Generation))
			p, err := ParseProfileDevice(must(mesh.ParseEnvelope(f.Input.Envelope)), now)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "generation", p.Generation, g)
			same(t, "name", p.Name(), f.Expect.Udf)
			same(t, "is", p.Is(f.Expect.Udf), true)
			seed := must(mesh.ParseSeed(f.Input.Seed))
			for member, o := range map[string]Operation{"Encryption": Encrypt, "Signature": Sign, "Authentication": Authenticate, "ProfileSignature": Profiling} {
				x := f.Expect.Keys[member]
				same(t, "key name", baseName(actorDevice, o), x.KeyName)
				key := must(DeviceKey(seed, o, "", g))
				sameHex(t, member+" key material", key.Seed, x.OKM)
				pub := p.Base(o)
				if o == Profiling {
					pub = p.Roots[0]
				}
				x.check(t, member, pub, g)
				samePublic(t, member, must(mesh.PublicOf(key)), x.Public)
			}
			checkRemade(t, p, seed)
		})
	}
}

// checkRemade makes the profile again from its seed.
func checkRemade(t *testing.T, p *ProfileDevice, seed *mesh.Seed) {
	t.Helper()
	root := must(mesh.NewLocalKey(must(DeviceKey(seed, Profiling, "", p.Generation))))
	made, err := NewProfileDevice(t.Context(), root, DeviceSpec{
		Generation: p.Generation, Encryption: p.Encryption, Signature: p.Signature, Authentication: p.Authentication,
	})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "name of the remade profile", made.Name(), p.Name())
	same(t, "same device", made.same(p), true)
}

func TestForgedProfileFixture(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "forged-profile-*.json", 1) {
		f := load[struct {
			Input struct{ Envelope json.RawMessage }
		}](t, name)
		_, err := ParseProfileDevice(must(mesh.ParseEnvelope(f.Input.Envelope)), now)
		wantErr(t, name, err, ErrProfile)
		wantErr(t, name, err, token.ErrBadKey)
	}
}

func TestActivationCombinePublicFixtures(t *testing.T) {
	t.Parallel()
	type contribution struct {
		Base         string         `json:"base_public"`
		Contribution keyExpectation `json:"contribution"`
		Combined     string         `json:"combined_public"`
		Udf          string         `json:"combined_udf"`
	}
	for _, name := range fixtures(t, "activation-combine-public-*.json", 3) {
		f := load[struct {
			Generation string
			Input      struct {
				ActivationKey string
				ProfileDevice map[string]json.RawMessage
			}
			Expect map[string]contribution
		}](t, name)
		g := must(mesh.ParseGeneration(f.Generation))
		p := &ProfileDevice{Profile: Profile{Tag: TagProfileDevice, Generation: g}}
		for member, to := range map[string]*token.PublicKey{"Encryption": &p.Encryption, "Signature": &p.Signature, "Authentication": &p.Authentication} {
			*to = must(mesh.ParseKeyDataPublic(f.Input.ProfileDevice[member]))
		}
		a := &DeviceActivation{Seed: must(mesh.ParseSeed(f.Input.ActivationKey))}
		for member, o := range map[string]Operation{"Encryption": Encrypt, "Signature": Sign, "Authentication": Authenticate} {
			x, ok := f.Expect[member]
			if !ok {
				t.Fatalf("%s lacks %s", name, member)
			}
			c := must(a.Contribution(p, o))
			samePublic(t, "base", p.Base(o), x.Base)
			x.Contribution.check(t, "contribution", c.Public, g)
			samePublic(t, "combined", c.Combined, x.Combined)
			same(t, "combined UDF", must(mesh.Fingerprint(c.Combined, g)), x.Udf)
			same(t, "key name", activationName(actorDevice, o), x.Contribution.KeyName)
		}
	}
}

type e2eFixture struct {
	Input struct {
		DeviceSeed string         `json:"device_seed"`
		User       *mesh.Envelope `json:"EnvelopedProfileUser"`
		Device     *mesh.Envelope `json:"EnvelopedProfileDevice"`
		Connection *mesh.Envelope `json:"EnvelopedConnection"`
		Activation *mesh.Envelope `json:"EnvelopedActivationDevice"`
		Respond    *mesh.Envelope `json:"EnvelopedRespondConnection"`
	}
	Expect struct {
		Plaintext string `json:"activation_plaintext"`
		Combined  map[string]struct {
			Udf, Public string
			Scalar      hexOctets `json:"scalar_le_hex"`
			Activation  hexOctets `json:"activation_scalar_le_hex"`
		}
	}
}

// Real activations are opened, and their keys combine; the signer is not one of the
// account's, so that the verdict is to reject.
func TestActivationEndToEndFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "activation-e2e-*.json", 8) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := load[e2eFixture](t, name)
			seed := must(mesh.ParseSeed(f.Input.DeviceSeed))
			base := must(mesh.NewLocalKey(must(DeviceKey(seed, Encrypt, "", mesh.G1))))
			own, err := ParseProfileDevice(f.Input.Device, now)
			if err != nil {
				t.Fatal(err)
			}
			user, err := ParseProfileUser(f.Input.User, now)
			if err != nil {
				t.Fatal(err)
			}
			checkPrivateCombination(t, &f, own, seed, base)

			c := &CatalogedDevice{
				DeviceUdf: own.Name(), ProfileUser: f.Input.User, ProfileDevice: f.Input.Device,
				ConnectionDevice: f.Input.Connection, Activations: []*mesh.Envelope{f.Input.Activation},
			}
			v := Verification{Account: user.Name(), Device: own, Base: base, Now: now, AllowNoProfileUdf: true}
			_, err = v.Verify(t.Context(), c)
			wantStep(t, "unlisted signer", err, StepSignature, TagConnectionDevice, mesh.ErrSigner)
			if f.Input.Respond == nil {
				return
			}
			r, err := OpenRespondConnection(t.Context(), f.Input.Respond, base)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "device", r.CatalogedDevice.DeviceUdf, own.Name())
			_, err = v.Verify(t.Context(), r.CatalogedDevice)
			wantStep(t, "answer with an unlisted signer", err, StepSignature, TagConnectionDevice, mesh.ErrSigner)
		})
	}
}

func checkPrivateCombination(t *testing.T, f *e2eFixture, own *ProfileDevice, seed *mesh.Seed, base mesh.Agreer) {
	t.Helper()
	plaintext, err := f.Input.Activation.Decrypt(t.Context(), base)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "plaintext", string(plaintext), f.Expect.Plaintext)
	a := must(ParseDeviceActivation(plaintext))
	conn, err := ParseConnection(f.Input.Connection, mesh.G1, now)
	if err != nil {
		t.Fatal(err)
	}
	for member, o := range map[string]Operation{"Encryption": Encrypt, "Signature": Sign, "Authentication": Authenticate} {
		x, ok := f.Expect.Combined[member]
		if !ok {
			t.Fatalf("%s is not expected", member)
		}
		c := must(a.Contribution(own, o))
		samePublic(t, member, c.Combined, x.Public)
		z := must(CombinePrivate(must(DeviceKey(seed, o, "", mesh.G1)), c.Private))
		sameHex(t, member+" scalar", z.Scalar, x.Scalar)
		samePublic(t, member+" from its scalar", must(mesh.PublicOf(z)), x.Public)
		curve, _ := mesh.CurveOf(c.Public.Algorithm)
		sameHex(t, member+" contribution", c.Private.Scalar, must(keyshare.ParseScalar(curve, x.Activation)).Bytes())
		want := map[Operation]token.PublicKey{Encrypt: *conn.Encryption, Sign: *conn.Signature, Authenticate: conn.Authentication}[o]
		samePublic(t, member+" of the connection", want, x.Public)
	}
}

// Agreements of published seeds, as sums of the parts' points.
func TestThresholdAgreementFixture(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "threshold-agreement-*.json", 1) {
		f := load[struct {
			Input struct {
				DeviceSeed    string `json:"device_seed"`
				ActivationKey string
			}
			Cases []struct {
				Ephemeral string    `json:"ephemeral_public57"`
				Sum       hexOctets `json:"sum57_hex"`
				Secret    hexOctets `json:"ikm_u56_hex"`
				Scalar    hexOctets `json:"combined_scalar_le_hex"`
			}
		}](t, name)
		if len(f.Cases) == 0 {
			t.Fatal("no cases")
		}
		key := must(DeviceKey(must(mesh.ParseSeed(f.Input.DeviceSeed)), Encrypt, "", mesh.G1))
		base := must(mesh.NewLocalKey(key))
		p := &ProfileDevice{Profile: Profile{Tag: TagProfileDevice, Generation: mesh.G1}, Encryption: base.Public()}
		c := must((&DeviceActivation{Seed: must(mesh.ParseSeed(f.Input.ActivationKey))}).Contribution(p, Encrypt))
		combined := must(NewCombinedAgreer(base, c))
		for _, x := range f.Cases {
			peer := must(keyshare.ParsePoint(keyshare.X448, must(strictjson.DecodeBase64([]byte(x.Ephemeral)))))
			sum := must(combined.Agree(t.Context(), peer))
			sameHex(t, "sum", sum.Bytes(), x.Sum)
			sameHex(t, "secret", sum.SharedSecret(), x.Secret)
			sameHex(t, "scalar", must(CombinePrivate(key, c.Private)).Scalar, x.Scalar)
		}
	}
}

type chainFixture struct {
	Generation string
	Input      struct{ CatalogedDevice json.RawMessage }
	Expect     struct {
		Account       string                             `json:"account_udf"`
		Device        string                             `json:"device_udf"`
		Administrator string                             `json:"administrator_public"`
		Connection    struct{ Roles []string }           `json:"ConnectionDevice"`
		Applications  []struct{ Tag, Identifier string } `json:"application_entries"`
	}
}

func TestConnectionChainFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "connection-chain-*.json", 3) {
		f := load[chainFixture](t, name)
		c, err := ParseCatalogedDevice(f.Input.CatalogedDevice)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Verification{Account: f.Expect.Account, Now: now}.VerifyPublic(c)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "account", m.Account.Name(), f.Expect.Account)
		same(t, "device", m.Device.Name(), f.Expect.Device)
		same(t, "generation", m.Account.Generation.String(), f.Generation)
		samePublic(t, "administrator", m.Account.Administrator, f.Expect.Administrator)
		same(t, "role", m.Roles[0], f.Expect.Connection.Roles[0])
		same(t, "application", m.Applications[0].Tag, f.Expect.Applications[0].Tag)
		same(t, "identifier", m.Applications[0].Identifier, f.Expect.Applications[0].Identifier)
		same(t, "order", m.Order, OrderFirst)
		again := must(ParseCatalogedDevice(must(c.Marshal())))
		if _, err := (Verification{Account: f.Expect.Account, Now: now}).VerifyPublic(again); err != nil {
			t.Errorf("written and read: %v", err)
		}
		_, err = Verification{Account: f.Expect.Device, Now: now}.VerifyPublic(c)
		wantStep(t, "another account", err, StepAccount, TagProfileUser, ErrOtherName)
		own := newDevice(t, m.Account.Generation, nil)
		_, err = Verification{Account: f.Expect.Account, Device: own.profile, Now: now}.VerifyPublic(c)
		wantStep(t, "another device", err, StepDevice, TagProfileDevice, ErrOtherName)
	}
}

func TestAccountEscrowFixtures(t *testing.T) {
	t.Parallel()
	operations := map[string]Operation{"EscrowEncryption": Escrow, "AdministratorSignature": AdminSign, "CommonEncryption": Encrypt,
		"CommonAuthentication": Authenticate, "CommonSignature": Sign, "ProfileSignature": Profiling}
	for _, name := range fixtures(t, "account-escrow-*.json", 3) {
		f := load[struct {
			Generation string
			Input      struct {
				Shares    []string
				Threshold int
			}
			Expect struct {
				Seed string `json:"seed_udf"`
				Keys map[string]keyExpectation
			}
		}](t, name)
		g := must(mesh.ParseGeneration(f.Generation))
		seed, err := RecoverSeed(f.Input.Shares[:f.Input.Threshold]...)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "seed", seed.Text(), f.Expect.Seed)
		for member, o := range operations {
			x, ok := f.Expect.Keys[member]
			if !ok {
				continue
			}
			key := must(AccountKey(seed, o, "", g))
			same(t, "key name", accountName(o), x.KeyName)
			sameHex(t, member, key.Seed, x.OKM)
			x.check(t, member, must(mesh.PublicOf(key)), g)
		}
		if len(f.Expect.Keys) < 5 {
			t.Fatalf("%s: %d keys", name, len(f.Expect.Keys))
		}
		shares := must(SplitSeed(rand.Reader, seed, 2, 3))
		same(t, "shares", len(shares), 3)
	}
}

func TestConnectWitnessFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "connect-witness-*.json", 2) {
		f := load[struct {
			Input struct {
				Pin, Account string
				Request      json.RawMessage `json:"RequestConnection"`
				ServerNonce  string
				AccountUdf   hexOctets `json:"account_udf_bytes64_hex"`
				DeviceUdf    hexOctets `json:"device_udf_bytes64_hex"`
			}
			Expect struct {
				Witness string
				PinID   string `json:"pin_id"`
				Salted  string `json:"salted_pin"`
			}
		}](t, name)
		tagged := append(append([]byte(`{"RequestConnection":`), f.Input.Request...), '}')
		r, err := ParseRequestConnection(tagged, now)
		if err != nil {
			t.Fatal(err)
		}
		account := &ProfileUser{Profile: Profile{UDF: f.Input.AccountUdf}}
		sameHex(t, "device", r.Profile.short(), f.Input.DeviceUdf)
		same(t, "witness", r.Witness(account, must(strictjson.DecodeBase64([]byte(f.Input.ServerNonce)))), f.Expect.Witness)
		sameHex(t, "salted PIN", must(saltPIN(f.Input.Pin)), must(mesh.ParseUDF(f.Expect.Salted))[1:]) // the text has left-over bits
		same(t, "PIN id", must(PinID(f.Input.Pin, f.Input.Account)), f.Expect.PinID)
		if err := r.CheckPIN(f.Input.Pin, f.Input.Account); err != nil {
			t.Error(err)
		}
		wantErr(t, "another PIN", r.CheckPIN(must(GeneratePIN(rand.Reader)), f.Input.Account), ErrPIN)
		wantErr(t, "another account", r.CheckPIN(f.Input.Pin, "mallory@example.com"), ErrPIN)
		r.ClientNonce[0] ^= 1
		wantErr(t, "another nonce", r.CheckPIN(f.Input.Pin, f.Input.Account), ErrPIN)
	}
}

// The published messages of one connection: request, acknowledgement, answer.
func TestMessageNames(t *testing.T) {
	t.Parallel()
	same(t, "envelope of the request", must(EnvelopeID("NDTL-GUGD-IBJR-4ENF-M4E3-7YJY-OCLR")), "MAC2-EOFV-EAVW-LCJQ-NO2I-UWJ4-IJCV")
	same(t, "answer to the acknowledgement", must(ResponseID("YDLF-TRCY-GPUF-HGY3-7NRH-IIIG-DTGX")), "MBVK-ZODF-LLR2-AHO6-FWDB-NVNJ-GXIC")
}

// A chain of December 2021, with the names and the stripped connection of that time, and
// without ProfileUdf.
func TestCatalogOf2021(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "catalog-g1-*.json", 1) {
		c, err := ParseCatalogedDevice(load[struct{ Input json.RawMessage }](t, name).Input)
		if err != nil {
			t.Fatal(err)
		}
		user := must(ParseProfileUser(c.ProfileUser, now))
		v := Verification{Account: user.Name(), Now: now}
		_, err = v.VerifyPublic(c)
		wantStep(t, name, err, StepBinding, TagConnectionDevice, ErrMissing)
		v.AllowNoProfileUdf = true
		m, err := v.VerifyPublic(c)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "activations", len(c.Activations), 2)
		same(t, "account's activation to the combined key", names(c.Activations[1], *m.Connection.Encryption, mesh.G1), true)
	}
}

// The keys of published accounts as their devices get them: the stores' keys are those of the
// seed, where it is known.
func TestAccountActivationFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "activation-common-*.json", 2) {
		f := load[struct {
			Generation string
			Input      json.RawMessage
		}](t, name)
		g := must(mesh.ParseGeneration(f.Generation))
		a, err := ParseAccountActivation(f.Input, g)
		if err != nil {
			t.Fatal(err)
		}
		all, _ := Stores(g)
		seed := escrowedSeed(t, f.Generation)
		same(t, "stores", len(a.Entries), len(all))
		for i, e := range a.Entries {
			same(t, "store", e.Resource, all[i])
			want := must(StoreKey(seed, e.Resource, "", g))
			sameHex(t, e.Resource, must(e.Key.PrivateParameters.PrivateKey()).Seed, want.Seed)
		}
		for o, k := range map[Operation]*mesh.KeyData{Encrypt: a.Encryption, Sign: a.Signature, Authenticate: a.Authentication} {
			sameHex(t, string(o), must(k.PrivateParameters.PrivateKey()).Seed, must(AccountKey(seed, o, "", g)).Seed)
		}
		again := must(ParseAccountActivation(must(a.marshal()), g))
		same(t, "written and read", len(again.Entries), len(a.Entries))
		_, err = ParseAccountActivation(f.Input, mesh.G1+mesh.G2-g)
		wantErr(t, "as of the other generation", err, ErrActivation)
		a.Wipe()
		sameHex(t, "wiped", a.Encryption.PrivateParameters.PrivateKeyECDH.Private, make([]byte, 56))
	}
}

// escrowedSeed is the seed of the account of the newest examples of a generation.
func escrowedSeed(t *testing.T, generation string) *mesh.Seed {
	t.Helper()
	f := load[struct {
		Expect struct {
			Seed string `json:"seed_udf"`
		}
	}](t, map[string]string{"g1": "account-escrow-g1-286d44f56.json", "g2": "account-escrow-g2-release_1.0.2.json"}[generation])
	return must(mesh.ParseSeed(f.Expect.Seed))
}

// In the first days of October 2024 RootUdfs lacked the digest's last octet.
func TestShortRootUdfs(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "short-roots-*.json", 1) {
		f := load[struct {
			Input struct {
				Envelope json.RawMessage
			}
			Expect struct {
				Udf string `json:"profile_udf"`
			}
		}](t, name)
		p, err := ParseProfileDevice(must(mesh.ParseEnvelope(f.Input.Envelope)), now)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "name", p.Name(), f.Expect.Udf)
	}
}
