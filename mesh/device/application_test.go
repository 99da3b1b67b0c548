package device

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

func TestCatalogedApplicationSSH(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		k := sshKey(t, g)
		entry := must(NewCatalogedApplicationSSH(must(k.PublicKey()), "ssh", []string{"web"}, g))
		data := must(entry.Marshal(g))
		got, err := ParseCatalogedApplicationSSH(data, g, now)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "key", got.Key, k.Udf)
		same(t, "same", got.ClientKey.Equal(entry.ClientKey) && got.Grant[0] == "web" && got.LocalName == "ssh", true)
		activation := &ApplicationActivation{Keys: map[string]*mesh.KeyData{"ClientKey": k}}
		if err := got.Confirm(activation); err != nil {
			t.Error(err)
		}
		d := newDevice(t, g, nil)
		got.ClientKey = d.profile.Signature
		wantErr(t, "another key", got.Confirm(activation), ErrUnconfirmed)
		wantErr(t, "no key", got.Confirm(&ApplicationActivation{}), ErrMissing)

		own := must(NewCatalogedApplicationSSH(d.profile.Signature, "", nil, g)) // bound to the device
		own.Key = k.Udf
		_, err = ParseCatalogedApplicationSSH(must(own.Marshal(g)), g, now)
		wantErr(t, "name of another key", err, ErrOtherName)
	})
	for _, text := range []string{``, `{"CatalogedApplicationMail":{}}`, `{"CatalogedApplicationSsh":{}}`, `{"CatalogedApplicationSsh":{"ClientKey":{}}}`} {
		if _, err := ParseCatalogedApplicationSSH([]byte(text), mesh.G1, now); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

func TestEscrowKey(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a := newAccount(t, g)
		key := must(StoreKey(a.seed, "Contact", "", g))
		e, err := EscrowKey(rand.Reader, a.profile, Encrypt, must(mesh.NewPrivateKeyData(key, g)))
		if err != nil {
			t.Fatal(err)
		}
		escrow := must(mesh.NewLocalKey(must(AccountKey(a.seed, Escrow, "", g))))
		back := must(mesh.ParseKeyData(must(e.Decrypt(t.Context(), escrow))))
		sameHex(t, "key", must(back.PrivateParameters.PrivateKey()).Seed, key.Seed)
		_, err = EscrowKey(rand.Reader, a.profile, Sign, must(mesh.NewPrivateKeyData(key, g)))
		wantErr(t, "signature key", err, token.ErrUnsupported)
		_, err = EscrowKey(rand.Reader, a.profile, Encrypt, must(mesh.NewKeyData(a.profile.Encryption, g)))
		wantErr(t, "public key", err, token.ErrBadKey)
	})
}

func TestFrameOf(t *testing.T) {
	t.Parallel()
	tree := `"` + string(must(mesh.Binary(make([]byte, 64)).MarshalJSON()))[1:]
	e := must(mesh.ParseEnvelope([]byte(`[{"dig":"S512","SequenceInfo":{"Index":3,"TreePosition":17}},"AAAA",{"TreeDigest":` + tree + `}]`)))
	f, err := FrameOf(e)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "index", f.Index, 3)
	same(t, "tree", len(f.Tree), 64)
	e.Trailer.PayloadDigest = make([]byte, 64)
	_, err = FrameOf(e)
	wantErr(t, "another body", err, mesh.ErrPayloadDigest)
	_, err = FrameOf(must(mesh.ParseEnvelope([]byte(`[{},"AAAA"]`))))
	wantErr(t, "no frame", err, ErrFrame)
	_, err = FrameOf(must(mesh.ParseEnvelope([]byte(`[{"SequenceInfo":{"Index":-1}},"AAAA"]`))))
	wantErr(t, "negative index", err, ErrFrame)
}

// TestGrantApplications adds applications to a connection that is in use: what is signed stays, and the same
// application is there once.
func TestGrantApplications(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a, d := newAccount(t, g), newDevice(t, g, nil)
		entry := a.connect(t, d, Rights{})
		ssh := func() ApplicationGrant {
			k := sshKey(t, g)
			return ApplicationGrant{Kind: KindSSH, Identifier: k.Udf, Keys: map[string]*mesh.KeyData{"ClientKey": k}}
		}
		one := ssh()
		mail := ApplicationGrant{Kind: KindMail, Identifier: MailIdentifier("alice@example.net"), Keys: map[string]*mesh.KeyData{"SmimeSign": sshKey(t, g)}}
		next := must(a.connector().GrantApplications(t.Context(), entry, []ApplicationGrant{one, mail}))
		same(t, "applications before", len(entry.Applications), 0)
		same(t, "applications", len(next.Applications), 2)
		next = must(a.connector().GrantApplications(t.Context(), next, []ApplicationGrant{one}))
		same(t, "the same again", len(next.Applications), 2)

		v := verification(a, d)
		v.History = (&History{}).Adopt(entry, nil)
		m := must(v.Verify(t.Context(), must(ParseCatalogedDevice(must(next.Marshal())))))
		same(t, "order", m.Order, OrderSame)
		for _, x := range m.Applications {
			opened := must(x.Open(t.Context(), m.Combined, g))
			if opened.Tag != "ActivationApplication"+map[string]string{one.Identifier: KindSSH, mail.Identifier: KindMail}[x.Identifier] {
				t.Errorf("%s is a %s", x.Identifier, opened.Tag)
			}
		}
		other := newAccount(t, g)
		_, err := other.connector().GrantApplications(t.Context(), entry, []ApplicationGrant{one})
		wantStep(t, "entry of another account", err, StepAccount, TagProfileUser, ErrOtherName)
		public := one
		public.Keys = map[string]*mesh.KeyData{"ClientKey": must(mesh.NewKeyData(a.profile.Signature, g))}
		_, err = a.connector().GrantApplications(t.Context(), entry, []ApplicationGrant{public})
		wantErr(t, "public key", err, ErrActivation)
		one.Wipe()
		sameHex(t, "wiped", one.Keys["ClientKey"].PrivateParameters.PrivateKeyRSA.D, make([]byte, len(one.Keys["ClientKey"].PrivateParameters.PrivateKeyRSA.D)))
	})
}

// TestKeysGivenAsSeeds has activations with seeds for keys: one that says of which algorithm it is is a key, whose name and public part
// must fit; one of many keys stays what it is.
func TestKeysGivenAsSeeds(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		for _, id := range []mesh.SeedID{1, 2, 3, 4, 5} {
			seed := must(mesh.GenerateSeed(rand.Reader, id))
			pub := must(mesh.PublicOf(must(seed.Derive(mesh.Derivation{Generation: g}))))
			k := must(mesh.NewKeyData(pub, g))
			k.PrivateParameters = &mesh.PrivateParameters{PrivateKeyUDF: &mesh.PrivateKeyUDF{PrivateValue: seed.Text()}}
			for name, parse := range map[string]func() (*mesh.KeyData, error){
				"account": func() (*mesh.KeyData, error) {
					a, err := ParseAccountActivation(must((&AccountActivation{Encryption: k}).marshal()), g)
					if err != nil {
						return nil, err
					}
					return a.Encryption, nil
				},
				"application": func() (*mesh.KeyData, error) {
					grant := ApplicationGrant{Kind: "Group", Keys: map[string]*mesh.KeyData{"AccountEncryption": k}}
					a, err := ParseApplicationActivation(must(grant.Marshal()), g)
					if err != nil {
						return nil, err
					}
					return a.Keys["AccountEncryption"], nil
				},
			} {
				k.Udf = must(mesh.Fingerprint(pub, g))
				if got, err := parse(); err != nil || !must(mesh.PublicOf(must(got.PrivateParameters.PrivateKey()))).Equal(pub) {
					t.Errorf("%s, seed of %d: %v", name, id, err)
				}
				k.Udf = must(mesh.Fingerprint(newAccount(t, g).profile.Encryption, g))
				if _, err := parse(); !errors.Is(err, token.ErrBadKey) {
					t.Errorf("%s, seed of %d under another name: %v", name, id, err)
				}
			}
		}
		many := must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount))
		k := &mesh.KeyData{PrivateParameters: &mesh.PrivateParameters{PrivateKeyUDF: &mesh.PrivateKeyUDF{PrivateValue: many.Text()}}}
		a := must(ParseAccountActivation(must((&AccountActivation{Encryption: k}).marshal()), g))
		if _, err := a.Encryption.PrivateParameters.PrivateKey(); err == nil {
			t.Error("a seed of many keys is one key")
		}
		k.PrivateParameters.PrivateKeyUDF.PrivateValue = "ZAAA"
		_, err := ParseAccountActivation(must((&AccountActivation{Encryption: k}).marshal()), g)
		wantErr(t, "no seed", err, token.ErrBadKey)
	})
}

// TestApplicationUnderAnotherPublicKey refuses a private key beside the public one of another: by that it would be confirmed.
func TestApplicationUnderAnotherPublicKey(t *testing.T) {
	t.Parallel()
	g := mesh.G1
	k := sshKey(t, g)
	other := must(mesh.NewKeyData(must(mesh.PublicOf(&token.PrivateKey{Algorithm: token.RSA2048, RSA: must(rsa.GenerateKey(rand.Reader, 2048))})), g))
	for name, edit := range map[string]func(*mesh.KeyData){
		"public part":         func(k *mesh.KeyData) { k.PublicParameters = other.PublicParameters },
		"public part and Udf": func(k *mesh.KeyData) { k.PublicParameters, k.Udf = other.PublicParameters, other.Udf },
		"Udf":                 func(k *mesh.KeyData) { k.Udf = other.Udf },
	} {
		planted := *k
		edit(&planted)
		grant := ApplicationGrant{Kind: KindSSH, Keys: map[string]*mesh.KeyData{"ClientKey": &planted}}
		_, err := ParseApplicationActivation(must(grant.Marshal()), g)
		wantErr(t, name, err, ErrActivation)
	}
}
