package agent

import (
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestOtherAlgorithms has device and account with keys that are not of the default algorithms: a seed does not say for which
// ones it is, but the profile does, and the record in which the reference code keeps the seed.
func TestOtherAlgorithms(t *testing.T) {
	t.Parallel()
	for _, g := range []mesh.Generation{mesh.G1, mesh.G2} {
		t.Run(g.String(), func(t *testing.T) {
			t.Parallel()
			seed, err := mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)
			if err != nil {
				t.Fatal(err)
			}
			record := fmt.Sprintf(`{"PrivateKeyUDF":{"PrivateValue":%q,"KeyType":"MeshProfileDevice","AlgorithmEncrypt":"X25519","AlgorithmSign":"Ed25519","AlgorithmAuthenticate":"X25519","Exportable":false}}`, seed.Text())
			first, again, admin := newDeviceAgent(t), newDeviceAgent(t), newDeviceAgent(t)
			made := initDevice(t, first, mesh.DeviceInitRequest{Seed: []byte(record), Generation: g.String()})
			for name, want := range map[string]string{"Encryption": "X25519", "Signature": "Ed25519", "Authentication": "X25519"} {
				if got := keyNamed(t, made.Keys, name).Algorithm; got != want {
					t.Errorf("%s of the record is %s, want %s", name, got, want)
				}
			}
			same := initDevice(t, again, mesh.DeviceInitRequest{Seed: []byte(seed.Text()), Profile: made.Profile})
			if same.Udf != made.Udf || keyNamed(t, same.Keys, "Encryption").Udf != keyNamed(t, made.Keys, "Encryption").Udf {
				t.Errorf("by the profile the device is %s, by the record %s", same.Udf, made.Udf)
			}

			account, shares := otherAccount(t, g)
			var recovered mesh.AccountInitResponse
			ask(t, admin, mesh.TagAccountInitRequest, mesh.AccountInitRequest{
				Home: mesh.Home{Token: "soft"}, Recover: shares, Profile: account,
			}, mesh.TagAccountInitResponse, &recovered)
			if recovered.Status != mesh.StatusOK {
				t.Fatalf("account recover: %d %s", recovered.Status, recovered.StatusDescription)
			}
			approve(t, again, recovered.Account.Udf)
			var asked mesh.DeviceConnectResponse
			ask(t, again, mesh.TagDeviceConnectRequest, mesh.DeviceConnectRequest{Account: "alice@example.com"}, mesh.TagDeviceConnectResponse, &asked)
			var connected mesh.AccountConnectResponse
			ask(t, admin, mesh.TagAccountConnectRequest, mesh.AccountConnectRequest{Request: asked.Request, Device: same.Udf}, mesh.TagAccountConnectResponse, &connected)
			var r mesh.DeviceActivateResponse
			ask(t, again, mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{Catalog: connected.Response}, mesh.TagDeviceActivateResponse, &r)
			if connected.Status != mesh.StatusOK || r.Status != mesh.StatusOK {
				t.Fatalf("connect: %s, activate: %s", connected.StatusDescription, r.StatusDescription)
			}
			store, _ := device.Stores(g)
			for name, want := range map[string]string{
				"DeviceEncryption": "X25519", "DeviceSignature": "Ed25519", "Encryption": "X25519", "Signature": "Ed25519", store[0]: "X25519",
			} {
				if got := keyNamed(t, r.Account.Keys, name).Algorithm; got != want {
					t.Errorf("%s of the connection is %s, want %s", name, got, want)
				}
			}
			if granted, held := keyNamed(t, r.Account.Keys, "Encryption").Udf, keyNamed(t, recovered.Account.Keys, "Encryption").Udf; granted != held {
				t.Errorf("the account's key is %s on the device, %s with the administrator", granted, held)
			}
		})
	}
}

// otherAccount is the profile of an account with keys on the 25519 curves, and its escrow shares.
func otherAccount(t *testing.T, g mesh.Generation) (strictjson.Value, []mesh.Binary) {
	t.Helper()
	seed, err := mesh.GenerateSeed(rand.Reader, mesh.SeedProfileAccount)
	if err != nil {
		t.Fatal(err)
	}
	key := func(o device.Operation, a token.Algorithm) *mesh.LocalKey {
		private, err := device.AccountKey(seed, o, a, g)
		if err != nil {
			t.Fatal(err)
		}
		k, err := mesh.NewLocalKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	profile, err := device.NewProfileUser(t.Context(), key(device.Profiling, token.Ed25519), device.AccountSpec{
		Generation: g, Address: "alice@example.com",
		Administrator: key(device.AdminSign, token.Ed25519).Public(), Signature: key(device.Sign, token.Ed25519).Public(),
		Encryption: key(device.Encrypt, token.X25519).Public(), Authentication: key(device.Authenticate, token.X25519).Public(),
		Escrow: key(device.Escrow, token.X25519).Public(),
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := profile.Envelope.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	shares, err := device.SplitSeed(rand.Reader, seed, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	return text, []mesh.Binary{[]byte(shares[0]), []byte(shares[1])}
}

// TestSeedRecords refuses records of seeds that make no device.
func TestSeedRecords(t *testing.T) {
	t.Parallel()
	seed, err := mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)
	if err != nil {
		t.Fatal(err)
	}
	a := newDeviceAgent(t)
	for name, record := range map[string]string{
		"no record":          `{}`,
		"another key":        `{"PrivateKeyECDH":{"crv":"X448","Private":"AAAA"}}`,
		"another type":       fmt.Sprintf(`{"PrivateKeyUDF":{"PrivateValue":%q,"KeyType":"MeshProfileAccount"}}`, seed.Text()),
		"no seed":            `{"PrivateKeyUDF":{"PrivateValue":"ZAAA"}}`,
		"unknown algorithm":  fmt.Sprintf(`{"PrivateKeyUDF":{"PrivateValue":%q,"AlgorithmEncrypt":"X5"}}`, seed.Text()),
		"signs by X448":      fmt.Sprintf(`{"PrivateKeyUDF":{"PrivateValue":%q,"AlgorithmSign":"X448"}}`, seed.Text()),
		"agrees by RSA":      fmt.Sprintf(`{"PrivateKeyUDF":{"PrivateValue":%q,"AlgorithmEncrypt":"RSA2048"}}`, seed.Text()),
		"something after it": fmt.Sprintf(`{"PrivateKeyUDF":{"PrivateValue":%q}} x`, seed.Text()),
	} {
		var r mesh.DeviceResponse
		ask(t, a, mesh.TagDeviceInitRequest, mesh.DeviceInitRequest{Home: mesh.Home{Token: "soft"}, Seed: []byte(record)}, mesh.TagDeviceInitResponse, &r)
		if r.Status == mesh.StatusOK || r.Status == statusInternal {
			t.Errorf("%s: %d %s", name, r.Status, r.StatusDescription)
		}
	}
	if keys := a.ring.Snapshot().Entries(); len(keys) != 0 {
		t.Errorf("%d keys were left", len(keys))
	}
}

// hostProfile is the profile of a service's host, whose keys have other names than those of devices.
func hostProfile(t *testing.T, seed *mesh.Seed, g mesh.Generation) strictjson.Value {
	t.Helper()
	key := func(o device.Operation) (*mesh.LocalKey, *mesh.KeyData) {
		private, err := seed.Derive(mesh.Derivation{Algorithm: o.Algorithm(), KeyName: "BaseHost" + string(o), Generation: g})
		if err != nil {
			t.Fatal(err)
		}
		k, err := mesh.NewLocalKey(private)
		if err != nil {
			t.Fatal(err)
		}
		data, err := mesh.NewKeyData(k.Public(), g)
		if err != nil {
			t.Fatal(err)
		}
		return k, data
	}
	members := map[string]any{}
	for o, name := range baseNames {
		_, members[name] = key(o)
	}
	root, data := key(device.Profiling)
	if g == mesh.G1 {
		members["ProfileSignature"] = data
	} else {
		udf, err := mesh.FingerprintOctets(root.Public(), g)
		if err != nil {
			t.Fatal(err)
		}
		members["RootUdfs"] = []mesh.Binary{udf}
	}
	body, err := strictjson.Marshal(map[string]any{device.TagProfileHost: members})
	if err != nil {
		t.Fatal(err)
	}
	e, err := mesh.NewEnvelope(t.Context(), body, mesh.EnvelopeOptions{Generation: g, Signers: []mesh.Signer{root}, IncludeKey: g == mesh.G2})
	if err != nil {
		t.Fatal(err)
	}
	text, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestHost takes over a host by its seed and connects it.
func TestHost(t *testing.T) {
	t.Parallel()
	for _, g := range []mesh.Generation{mesh.G1, mesh.G2} {
		seed, err := mesh.GenerateSeed(rand.Reader, mesh.SeedProfileDevice)
		if err != nil {
			t.Fatal(err)
		}
		a := newDeviceAgent(t)
		made := initDevice(t, a, mesh.DeviceInitRequest{Seed: []byte(seed.Text()), Profile: hostProfile(t, seed, g)})
		x := newTestAccount(t, g)
		approve(t, a, x.Account.Name())
		r := activate(t, a, x.connect(t, made))
		if r.Status != mesh.StatusOK || keyNamed(t, r.Account.Keys, "DeviceEncryption").Use != "decrypt" {
			t.Errorf("%v: %d %s", g, r.Status, r.StatusDescription)
		}
	}
}
