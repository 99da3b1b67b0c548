package device

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Two sides that share nothing but what they send each other.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		for _, algorithms := range []Algorithms{
			nil,
			{Encrypt: token.X25519, Sign: token.Ed25519, Authenticate: token.X25519},
			{Encrypt: token.P256, Sign: token.Ed448, Authenticate: token.P384},
			{Encrypt: token.Ed25519, Sign: token.P521, Authenticate: token.Ed448},
		} {
			a, d := newAccount(t, g), newDevice(t, g, algorithms)
			pin := must(GeneratePIN(rand.Reader))

			asked := must(must(NewRequestConnection(rand.Reader, d.profile, "alice@example.com", pin)).Envelope().Marshal())
			r, err := ParseRequestConnection(asked, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if err := r.CheckPIN(pin, "Alice@Example.com"); err != nil {
				t.Fatal(err)
			}
			keys := must(NewAccountActivation(a.seed, Rights{Common: true, Administer: true}, a.profile))
			ssh := sshKey(t, g)
			entry, err := a.connector().Connect(t.Context(), Grant{
				Device: r.Profile, Roles: []string{"message"}, Keys: keys,
				Applications: []ApplicationGrant{{Kind: "Ssh", Identifier: ssh.Udf, Keys: map[string]*mesh.KeyData{"ClientKey": ssh}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			answer := must(must(a.connector().Respond(t.Context(), r.Profile, r.MessageID, entry)).Marshal())

			response, err := OpenRespondConnection(t.Context(), must(mesh.ParseEnvelope(answer)), d.agreer())
			if err != nil {
				t.Fatal(err)
			}
			same(t, "answer to", response.MessageID, must(ResponseID(r.MessageID)))
			m, err := verification(a, d).Verify(t.Context(), response.CatalogedDevice)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "role", m.Roles[0], "message")
			same(t, "order", m.Order, OrderFirst)
			checkContributions(t, m, d)
			checkAccountKeys(t, m, a, g)
			opened, err := m.Applications[0].Open(t.Context(), m.Combined, g)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "SSH key", opened.Keys["ClientKey"].Udf, ssh.Udf)
			m.Wipe()
			if !bytes.Equal(m.Contributions[0].Private.Scalar, make([]byte, len(m.Contributions[0].Private.Scalar))) {
				t.Error("the contribution is not wiped")
			}
		}
	})
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })

// sshKey is an RSA key as the Mesh hands it to devices.
func sshKey(t testing.TB, g mesh.Generation) *mesh.KeyData {
	t.Helper()
	key := rsaKey()
	pub := must(mesh.PublicOf(must(mesh.RSAKey(key))))
	k := must(mesh.NewKeyData(pub, g))
	k.PrivateParameters = &mesh.PrivateParameters{PrivateKeyRSA: &mesh.PrivateKeyRSA{
		N: key.N.Bytes(), E: []byte{1, 0, 1}, D: key.D.Bytes(), P: key.Primes[0].Bytes(), Q: key.Primes[1].Bytes(),
	}}
	return k
}

// checkContributions uses the combined keys.
func checkContributions(t *testing.T, m *Membership, d *someDevice) {
	t.Helper()
	for i, o := range Operations() {
		c := m.Contributions[i]
		same(t, "operation", c.Operation, o)
		z := must(CombinePrivate(d.base[o], c.Private))
		if pub := must(mesh.PublicOf(z)); !pub.Equal(c.Combined) {
			t.Errorf("%s: the sum of the scalars is not the key of the sum", o)
		}
	}
	if !sameKey(m.Combined.Public(), *m.Connection.Encryption) {
		t.Error("the combined key is not the connection's")
	}
	e := must(mesh.Encrypt(rand.Reader, []byte("to the device"), "", *m.Connection.Encryption))
	got, err := e.Decrypt(t.Context(), m.Combined)
	if err != nil || string(got) != "to the device" {
		t.Errorf("decrypt with the combined key: %q, %v", got, err)
	}
	if _, err := e.Decrypt(t.Context(), d.agreer()); !errors.Is(err, mesh.ErrNotRecipient) {
		t.Errorf("decrypt with the base key: %v", err)
	}
}

func checkAccountKeys(t *testing.T, m *Membership, a *someAccount, g mesh.Generation) {
	t.Helper()
	all, administrators := Stores(g)
	same(t, "stores", len(m.Keys.Entries), len(all)+len(administrators))
	for _, c := range []struct {
		k    *mesh.KeyData
		want token.PublicKey
	}{
		{m.Keys.Encryption, a.profile.Encryption}, {m.Keys.Signature, a.profile.Signature},
		{m.Keys.Authentication, a.profile.Authentication}, {m.Keys.Administrator, a.profile.Administrator},
	} {
		key := must(c.k.PrivateParameters.PrivateKey())
		if !must(mesh.PublicOf(key)).Equal(c.want) {
			t.Errorf("key of the account: got another than %v", c.want)
		}
	}
	for _, e := range m.Keys.Entries {
		want := must(mesh.PublicOf(must(StoreKey(a.seed, e.Resource, "", g))))
		if !must(e.Key.PublicKey()).Equal(want) {
			t.Errorf("key of %s is another", e.Resource)
		}
	}
	if m.Keys.Seed != nil || m.Keys.Profile != nil {
		t.Error("more was granted than asked for")
	}
}

func TestSuperAdministrator(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a, d := newAccount(t, g), newDevice(t, g, nil)
		m, err := verification(a, d).Verify(t.Context(), a.connect(t, d, Rights{Super: true}))
		if err != nil {
			t.Fatal(err)
		}
		same(t, "seed", m.Keys.Seed.Text(), a.seed.Text())
	})
}

func TestReject(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	r := must(NewRequestConnection(rand.Reader, d.profile, "alice@example.com", ""))
	wantErr(t, "no PIN", r.CheckPIN(must(GeneratePIN(rand.Reader)), r.Account), ErrPIN)
	e := must(a.connector().Respond(t.Context(), d.profile, r.MessageID, nil))
	response, err := OpenRespondConnection(t.Context(), e, d.agreer())
	wantErr(t, "rejection", err, ErrRejected)
	same(t, "answer to", response.MessageID, must(ResponseID(r.MessageID)))
	_, err = OpenRespondConnection(t.Context(), e, newDevice(t, mesh.G1, nil).agreer())
	wantErr(t, "another device", err, mesh.ErrNotRecipient)
}

func TestAcknowledge(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a, other, d := newAccount(t, g), newAccount(t, g), newDevice(t, g, nil)
		r := must(NewRequestConnection(rand.Reader, d.profile, "alice@example.com", ""))
		ack := must(NewAcknowledgeConnection(rand.Reader, r, a.profile))
		data := must(ack.Marshal())
		got, err := ParseAcknowledgeConnection(data, a.profile, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		same(t, "witness", got.Witness, ack.Witness)
		same(t, "witness on the device", r.Witness(a.profile, got.ServerNonce), ack.Witness)
		_, err = ParseAcknowledgeConnection(data, other.profile, time.Now())
		wantErr(t, "another account", err, ErrRequest)
	})
}

// signed makes an envelope with a good signature by the administrator.
func (a *someAccount) signed(t *testing.T, body []byte, to ...token.PublicKey) *mesh.Envelope {
	t.Helper()
	return must(mesh.NewEnvelope(t.Context(), body, mesh.EnvelopeOptions{
		Generation: a.profile.Generation, Recipients: to, Signers: []mesh.Signer{a.admin},
	}))
}

// connection makes one, signed by the administrator.
func (a *someAccount) connection(t *testing.T, c *Connection) *mesh.Envelope {
	t.Helper()
	return must(newBuilder(a.profile.Generation, time.Time{}).connection(t.Context(), a.admin, c))
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a, d := newAccount(t, g), newDevice(t, g, nil)
		good := must(a.connect(t, d, Rights{Common: true}).Marshal())
		otherAccount, otherDevice := newAccount(t, g), newDevice(t, g, nil)
		otherEntry := otherAccount.connect(t, d, Rights{})
		conn := must(ParseConnection(must(ParseCatalogedDevice(good)).ConnectionDevice, g, time.Now()))
		foreign := mesh.G1 + mesh.G2 - g
		type mutation struct {
			name   string
			mutate func(c *CatalogedDevice)
			step   Step
			object string
			reason error
		}
		tests := []mutation{
			{"no account profile", func(c *CatalogedDevice) { c.ProfileUser = nil }, StepAccount, TagProfileUser, ErrProfile},
			{"another account's profile", func(c *CatalogedDevice) { c.ProfileUser = otherAccount.profile.Envelope }, StepAccount, TagProfileUser, ErrOtherName},
			{"account profile altered", func(c *CatalogedDevice) { c.ProfileUser.Body[len(c.ProfileUser.Body)/2] ^= 1 }, StepAccount, TagProfileUser, ErrProfile},
			{"account profile unsigned", func(c *CatalogedDevice) { c.ProfileUser.Trailer = nil }, StepAccount, TagProfileUser, mesh.ErrNotSigned},
			{"account profile without signatures", func(c *CatalogedDevice) { c.ProfileUser.Trailer.Signatures = nil }, StepAccount, TagProfileUser, mesh.ErrNotSigned},
			{"account profile with another digest", func(c *CatalogedDevice) { c.ProfileUser.Trailer.PayloadDigest[1] ^= 1 }, StepAccount, TagProfileUser, mesh.ErrPayloadDigest},
			{"a device's profile for an account's", func(c *CatalogedDevice) { c.ProfileUser = c.ProfileDevice }, StepAccount, TagProfileUser, ErrProfile},
			{"no device profile", func(c *CatalogedDevice) { c.ProfileDevice = nil }, StepDevice, TagProfileDevice, ErrProfile},
			{"another device's profile", func(c *CatalogedDevice) { c.ProfileDevice = otherDevice.profile.Envelope }, StepDevice, TagProfileDevice, ErrOtherName},
			{"device of the other generation", func(c *CatalogedDevice) { c.ProfileDevice = newDevice(t, foreign, nil).profile.Envelope }, StepDevice, TagProfileDevice, ErrOtherName},
			{"DeviceUdf of another", func(c *CatalogedDevice) { c.DeviceUdf = otherDevice.profile.Name() }, StepDevice, "DeviceUdf", ErrOtherName},
			{"DeviceUdf absent", func(c *CatalogedDevice) { c.DeviceUdf = "" }, StepDevice, "DeviceUdf", ErrOtherName},
			{"DeviceUdf short", func(c *CatalogedDevice) { c.DeviceUdf = c.DeviceUdf[:30] }, StepDevice, "DeviceUdf", ErrOtherName},
			{"no connection", func(c *CatalogedDevice) { c.ConnectionDevice = nil }, StepSignature, TagConnectionDevice, ErrMissing},
			{"no service connection", func(c *CatalogedDevice) { c.ConnectionService = nil }, StepSignature, TagConnectionService, ErrMissing},
			{"no activation of the account", func(c *CatalogedDevice) { c.Activations = c.Activations[:1] }, StepSignature, TagActivationCommon, ErrMissing},
			{"no activations", func(c *CatalogedDevice) { c.Activations = nil }, StepSignature, TagActivationAccount, ErrMissing},
			{"connection altered", func(c *CatalogedDevice) { c.ConnectionDevice.Body[9] ^= 1 }, StepSignature, TagConnectionDevice, mesh.ErrPayloadDigest},
			{"connection altered, without digest", func(c *CatalogedDevice) {
				c.ConnectionDevice.Body[9] ^= 1
				c.ConnectionDevice.Trailer.PayloadDigest = nil
			}, StepSignature, TagConnectionDevice, mesh.ErrSignature},
			{"connection unsigned", func(c *CatalogedDevice) { c.ConnectionDevice.Trailer = &mesh.Trailer{} }, StepSignature, TagConnectionDevice, mesh.ErrNotSigned},
			{"connection of another account", func(c *CatalogedDevice) { c.ConnectionDevice = otherEntry.ConnectionDevice }, StepSignature, TagConnectionDevice, mesh.ErrSigner},
			{"service connection of another account", func(c *CatalogedDevice) { c.ConnectionService = otherEntry.ConnectionService }, StepSignature, TagConnectionService, mesh.ErrSigner},
			{"activation of another account", func(c *CatalogedDevice) { c.Activations[0] = otherEntry.Activations[0] }, StepSignature, TagActivationAccount, mesh.ErrSigner},
			{"account's activation of another account", func(c *CatalogedDevice) { c.Activations[1] = otherEntry.Activations[1] }, StepSignature, TagActivationCommon, mesh.ErrSigner},
			{"a further signature", func(c *CatalogedDevice) {
				s := &c.ConnectionDevice.Trailer.Signatures
				*s = append(*s, otherEntry.ConnectionDevice.Trailer.Signatures...)
			}, StepSignature, TagConnectionDevice, mesh.ErrSigner},
			{"a further signature of an unknown kind", func(c *CatalogedDevice) {
				s := &c.Activations[0].Trailer.Signatures
				*s = append([]mesh.Signature{{Algorithm: "MLDSA87", SignatureKey: &mesh.PublicParameters{Other: strictjson.Value(`{"PublicKeyMLDSA":{}}`)}}}, *s...)
			}, StepSignature, TagActivationAccount, mesh.ErrSigner},
			{"a wrong signature before the right one", func(c *CatalogedDevice) {
				s := &c.ConnectionDevice.Trailer.Signatures
				wrong := (*s)[0]
				wrong.Value = slices.Clone(wrong.Value)
				wrong.Value[0] ^= 1
				*s = append([]mesh.Signature{wrong}, *s...)
			}, StepSignature, TagConnectionDevice, mesh.ErrSignature},
			{"connections exchanged", func(c *CatalogedDevice) {
				c.ConnectionDevice, c.ConnectionService = c.ConnectionService, c.ConnectionDevice
			}, StepBinding, TagConnectionDevice, ErrConnection},
			{"connection that is none", func(c *CatalogedDevice) {
				c.ConnectionDevice = a.signed(t, []byte(`{"CallsignBinding":{}}`))
			}, StepBinding, TagConnectionDevice, ErrConnection},
			{"connection with a key that is none", func(c *CatalogedDevice) {
				c.ConnectionService = a.signed(t, []byte(`{"ConnectionService":{"Authentication":{"PublicParameters":{"PublicKeyECDH":{"crv":"X448","Public":"AAAA"}}}}}`))
			}, StepBinding, TagConnectionService, token.ErrBadPoint},
			{"connection with a role without a name", func(c *CatalogedDevice) {
				without := *conn
				without.Roles = []string{"web", ""}
				c.ConnectionDevice = a.connection(t, &without)
			}, StepBinding, TagConnectionDevice, ErrConnection},
			{"connection without account", func(c *CatalogedDevice) {
				without := *conn
				without.ProfileUdf = ""
				c.ConnectionDevice = a.connection(t, &without)
			}, StepBinding, TagConnectionDevice, ErrMissing},
			{"connection to another account, signed", func(c *CatalogedDevice) {
				other := *conn
				other.ProfileUdf = otherAccount.profile.Name()
				c.ConnectionDevice = a.connection(t, &other)
			}, StepBinding, TagConnectionDevice, ErrOtherName},
			{"service connection with another key", func(c *CatalogedDevice) {
				c.ConnectionService = a.connection(t, &Connection{Tag: TagConnectionService, Authentication: *conn.Encryption, ProfileUdf: conn.ProfileUdf})
			}, StepActivation, TagConnectionService, ErrKeyMismatch},
			{"connection that repeats the encryption key", func(c *CatalogedDevice) {
				other := *conn
				other.Authentication = *conn.Encryption
				c.ConnectionDevice = a.connection(t, &other)
				c.ConnectionService = a.connection(t, &Connection{Tag: TagConnectionService, Authentication: *conn.Encryption, ProfileUdf: conn.ProfileUdf})
			}, StepActivation, TagConnectionDevice, ErrKeyMismatch},
			{"connection with another signature key", func(c *CatalogedDevice) {
				other := *conn
				other.Signature = &a.profile.Signature
				c.ConnectionDevice = a.connection(t, &other)
			}, StepActivation, TagConnectionDevice, ErrKeyMismatch},
			{"activation to another device", func(c *CatalogedDevice) {
				c.Activations[0] = a.signed(t, []byte("secret"), otherDevice.profile.Encryption)
			}, StepActivation, TagActivationAccount, mesh.ErrNotRecipient},
			{"account's activation to the base key", func(c *CatalogedDevice) {
				c.Activations[1] = a.signed(t, []byte("secret"), d.profile.Encryption)
			}, StepActivation, TagActivationCommon, mesh.ErrNotRecipient},
			{"activation that is none", func(c *CatalogedDevice) {
				c.Activations[0] = a.signed(t, []byte(`{"ActivationAccount":{}}`), d.profile.Encryption)
			}, StepActivation, TagActivationAccount, ErrActivation},
			{"activation with another seed", func(c *CatalogedDevice) {
				c.Activations[0] = a.signed(t, must(must(NewDeviceActivation(rand.Reader, d.profile)).marshal()), d.profile.Encryption)
			}, StepActivation, TagConnectionDevice, ErrKeyMismatch},
			{"account's activation that is none", func(c *CatalogedDevice) {
				c.Activations[1] = a.signed(t, []byte(`{"ActivationHost":{}}`), *conn.Encryption)
			}, StepActivation, TagActivationCommon, ErrActivation},
			{"account's activation with another key's Udf", func(c *CatalogedDevice) {
				keys := must(NewAccountActivation(a.seed, Rights{Common: true}, a.profile))
				keys.Encryption.Udf = keys.Signature.Udf
				c.Activations[1] = a.signed(t, must(keys.marshal()), *conn.Encryption)
			}, StepActivation, TagActivationCommon, token.ErrBadKey},
			{"account's activation with a key that has expired", func(c *CatalogedDevice) {
				keys := must(NewAccountActivation(a.seed, Rights{Common: true}, a.profile))
				keys.Entries[1].Key.NotOnOrAfter = now
				c.Activations[1] = a.signed(t, must(keys.marshal()), *conn.Encryption)
			}, StepActivation, TagActivationCommon, token.ErrBadKey},
			{"account's activation with a wrapped seed of another", func(c *CatalogedDevice) {
				recipients := c.Activations[1].Header.Recipients
				recipients[0].WrappedKey = must(mesh.Encrypt(rand.Reader, nil, "", *conn.Encryption)).Header.Recipients[0].WrappedKey
			}, StepActivation, TagActivationCommon, token.ErrDecrypt},
		}
		for _, c := range tests {
			entry := must(ParseCatalogedDevice(good))
			c.mutate(entry)
			m, err := verification(a, d).Verify(t.Context(), entry)
			wantStep(t, c.name, err, c.step, c.object, c.reason)
			if m != nil {
				t.Errorf("%s: there is a membership", c.name)
			}
		}
		if _, err := verification(a, d).Verify(t.Context(), must(ParseCatalogedDevice(good))); err != nil {
			t.Errorf("unaltered: %v", err)
		}
	})
}

// brokenAgreer is a token that fell off.
type brokenAgreer struct{ public token.PublicKey }

func (b brokenAgreer) Public() token.PublicKey { return b.public }

func (b brokenAgreer) Agree(context.Context, *keyshare.Point) (*keyshare.Point, error) {
	return nil, token.ErrAbsent
}

// What the key's token says is not blamed on the entry.
func TestVerifyKeepsTokenErrors(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G2), newDevice(t, mesh.G2, nil)
	entry := a.connect(t, d, Rights{})
	v := verification(a, d)
	v.Base = brokenAgreer{d.profile.Encryption}
	_, err := v.Verify(t.Context(), entry)
	wantErr(t, "absent token", err, token.ErrAbsent)
	if _, ok := errors.AsType[*VerifyError](err); ok {
		t.Errorf("the entry is blamed: %v", err)
	}
	v.Base = newDevice(t, mesh.G2, nil).agreer()
	_, err = v.Verify(t.Context(), entry)
	wantErr(t, "key of another device", err, token.ErrBadRequest)
	v.Base = nil
	_, err = v.Verify(t.Context(), entry)
	wantErr(t, "no key", err, token.ErrBadRequest)
}

func TestAllowNoProfileUdf(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	entry := a.connect(t, d, Rights{})
	for _, e := range []**mesh.Envelope{&entry.ConnectionDevice, &entry.ConnectionService} {
		c := must(ParseConnection(*e, mesh.G1, time.Now()))
		c.ProfileUdf = ""
		*e = a.connection(t, c)
	}
	v := verification(a, d)
	_, err := v.Verify(t.Context(), entry)
	wantStep(t, "without ProfileUdf", err, StepBinding, TagConnectionDevice, ErrMissing)
	v.AllowNoProfileUdf = true
	if _, err := v.Verify(t.Context(), entry); err != nil {
		t.Errorf("without ProfileUdf, allowed: %v", err)
	}
}

func TestRollback(t *testing.T) {
	t.Parallel()
	generations(t, func(t *testing.T, g mesh.Generation) {
		a, d := newAccount(t, g), newDevice(t, g, nil)
		old, next := a.connect(t, d, Rights{}), a.connect(t, d, Rights{Common: true})
		v := verification(a, d)
		verify := func(c *CatalogedDevice) (Order, error) {
			m, err := v.Verify(t.Context(), c)
			if err != nil {
				return 0, err
			}
			return m.Order, nil
		}
		want := func(what string, c *CatalogedDevice, order Order) {
			t.Helper()
			if got, err := verify(c); err != nil || got != order {
				t.Errorf("%s: %v, %v", what, got, err)
			}
		}
		want("first", old, OrderFirst)
		v.History = (&History{}).Adopt(old, nil)
		want("again", old, OrderSame)
		want("another", next, OrderUnknown)
		v.History = v.History.Adopt(next, &Frame{Index: 7, Tree: make([]byte, 64)})
		want("again", next, OrderSame)
		_, err := verify(old)
		wantStep(t, "superseded", err, StepRollback, TagCatalogedDevice, ErrSuperseded)

		altered := must(ParseCatalogedDevice(must(old.Marshal())))
		altered.Applications = []ApplicationEntry{{Tag: "ApplicationEntrySsh", Envelope: next.Activations[0]}}
		altered.ConnectionDevice.Header.Salt = []byte("not signed")
		_, err = verify(altered)
		wantStep(t, "superseded, with other unsigned parts", err, StepRollback, TagCatalogedDevice, ErrSuperseded)

		third := a.connect(t, d, Rights{})
		for _, f := range []struct {
			name  string
			c     *CatalogedDevice
			frame Frame
			want  error
		}{
			{"older frame", third, Frame{Index: 6}, ErrFrame},
			{"other entry in the same frame", third, Frame{Index: 7, Tree: make([]byte, 64)}, ErrFrame},
			{"other tree in the same frame", next, Frame{Index: 7, Tree: bytes.Repeat([]byte{1}, 64)}, ErrFrame},
			{"tree that is none", next, Frame{Index: 9, Tree: []byte{1}}, ErrFrame},
		} {
			v.Frame = &f.frame
			_, err := verify(f.c)
			wantStep(t, f.name, err, StepRollback, TagCatalogedDevice, f.want)
		}
		v.Frame = &Frame{Index: 8}
		want("newer frame", third, OrderNewer)

		data := must(strictjson.Marshal(v.History.Revoke(nil)))
		v.Frame, v.History = nil, &History{}
		if err := strictjson.Unmarshal(data, v.History); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*CatalogedDevice{old, next} {
			_, err := verify(c)
			wantStep(t, "after revocation", err, StepRollback, TagCatalogedDevice, ErrSuperseded)
		}
	})
}

func TestConnectRefuses(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	c := a.connector()
	_, err := c.Connect(t.Context(), Grant{Device: newDevice(t, mesh.G2, nil).profile})
	wantErr(t, "device of the other generation", err, ErrGeneration)
	c.Administrator = d.root
	_, err = c.Connect(t.Context(), Grant{Device: d.profile})
	wantErr(t, "another signer", err, token.ErrBadRequest)
	c = a.connector()
	c.Rand = bytes.NewReader(make([]byte, 10))
	if _, err = c.Connect(t.Context(), Grant{Device: d.profile}); err == nil {
		t.Error("a failing source is not noticed")
	}
	c = a.connector()
	k := sshKey(t, mesh.G1)
	k.PrivateParameters = nil
	_, err = c.Connect(t.Context(), Grant{Device: d.profile, Applications: []ApplicationGrant{{Kind: "Ssh", Keys: map[string]*mesh.KeyData{"ClientKey": k}}}})
	wantErr(t, "application without private key", err, ErrActivation)
}

// Each connection has a contribution of its own.
func TestConnectDrawsAfresh(t *testing.T) {
	t.Parallel()
	a, d := newAccount(t, mesh.G1), newDevice(t, mesh.G1, nil)
	one := must(verification(a, d).Verify(t.Context(), a.connect(t, d, Rights{})))
	two := must(verification(a, d).Verify(t.Context(), a.connect(t, d, Rights{})))
	for i := range one.Contributions {
		if one.Contributions[i].Public.Equal(two.Contributions[i].Public) {
			t.Errorf("contribution to %s is there twice", one.Contributions[i].Operation)
		}
	}
}

func TestEscrowRules(t *testing.T) {
	t.Parallel()
	for o, want := range map[Operation]bool{Encrypt: true, Escrow: true, AdminEncrypt: true, Sign: false, Authenticate: false, AdminSign: false, Profiling: false} {
		if err := CheckEscrow(o); (err == nil) != want {
			t.Errorf("%s: %v", o, err)
		}
	}
	_, err := SplitSeed(rand.Reader, must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)), 2, 3)
	wantErr(t, "seed of a device", err, token.ErrUnsupported)
	_, err = DeviceKey(must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount)), Encrypt, "", mesh.G1)
	wantErr(t, "seed of an account", err, token.ErrBadKey)
	account := must(mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount))
	shares := must(SplitSeed(rand.Reader, account, 3, 5))
	same(t, "recovered", must(RecoverSeed(shares[4], shares[0], shares[2])).Text(), account.Text())
}
