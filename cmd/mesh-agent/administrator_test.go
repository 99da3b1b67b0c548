package main

import (
	"bytes"
	"crypto/sha512"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/mesh"
)

// TestIndependentKeys compares the other program's arithmetic with published keys, on which both agree.
func TestIndependentKeys(t *testing.T) {
	t.Parallel()
	for _, name := range publishedFixtures(t, "profile-device-g*.json", 3) {
		var f fixture
		var want struct {
			Udf  string `json:"profile_udf"`
			Keys map[string]fixtureKey
		}
		loadFixture(t, name, &f)
		f.expect(t, &want)
		w := indWorld{g2: f.Generation == "g2"}
		seed, err := mesh.ParseSeed(f.Input.Seed)
		if err != nil {
			t.Fatal(err)
		}
		for member, k := range want.Keys {
			got := w.key(indSeed(seed.Octets()[1:]), k.KeyName, k.Curve == "Ed448")
			if !bytes.Equal(got.public(), octetsOf(t, k.Public)) || w.name(got) != k.Udf {
				t.Errorf("%s: %s of %s is %s, %s", name, member, k.Udf, got, w.name(got))
			}
			if k.KeyName == "BaseDeviceProfile" && w.profileName(got) != want.Udf {
				t.Errorf("%s: profile %s, want %s", name, w.profileName(got), want.Udf)
			}
		}
	}
}

// device is an agent with a device of the other program's making, whose owner approved an account.
func (p program) device(d *indDevice, a *indAccount) program {
	p.Helper()
	p.run(d.seed.text(), "device", "init", "--token", "soft", "--seed", "-", "--profile", p.file([]byte(d.envelope)))
	p.run("", "device", "approve", a.profileName(a.root))
	return p
}

// TestForeignAdministrator has an administrator who is another program connect the device, in both generations, and the device
// read, sign and take the next connection.
func TestForeignAdministrator(t *testing.T) {
	t.Parallel()
	for _, w := range []indWorld{{g2: false}, {g2: true}} {
		t.Run(map[bool]string{false: "g1", true: "g2"}[w.g2], func(t *testing.T) {
			t.Parallel()
			a, d := w.newAccount(), w.newDevice()
			p := startProgram(t).device(d, a)
			first := a.newEntry(d)
			p.run(first.text(), "device", "verify", "--account", w.profileName(a.root), "--device", w.profileName(d.root))
			out := p.run(first.text(), "device", "activate")
			for name, k := range map[string]*indKey{
				"DeviceEncryption": first.encrypt, "DeviceSignature": first.sign, "DeviceAuthentication": first.a,
				"Encryption": a.encrypt, "Signature": a.sign, "Authentication": a.a, "Contact": a.contacts,
			} {
				if !strings.Contains(out, w.name(k)) {
					t.Errorf("%s %s is not in\n%s", name, w.name(k), out)
				}
			}
			for name, to := range map[string]*indKey{"device": first.encrypt, "account": a.encrypt, "store": a.contacts} {
				if got := p.run(w.encrypted(to, []byte("to the "+name)), "decrypt"); got != "to the "+name {
					t.Errorf("letter to the %s: %q", name, got)
				}
			}
			digest := sha512.Sum512([]byte("message"))
			for name, k := range map[string]*indKey{"device": first.sign, "account": a.sign} {
				var result mesh.ResultSign
				p.operate(mesh.TagOperationSign, mesh.OperationSign{KeyId: w.name(k), Data: digest[:]}, mesh.TagResultSign, &result)
				if !k.verify(digest[:], result.Signature) {
					t.Errorf("signature of the %s does not verify: %x", name, []byte(result.Signature))
				}
			}
			next := a.newEntry(d)
			next.activation[1] = 1 // the identifier of 2020
			next.encrypt = d.encrypt.plus(w.key(next.activation, "ActivationDeviceEncrypt", false))
			next.sign = d.sign.plus(w.key(next.activation, "ActivationDeviceSign", true))
			next.a = d.a.plus(w.key(next.activation, "ActivationDeviceAuthenticate", false))
			next.serviceAuthentication, next.commonTo = next.a, next.encrypt
			p.refused(next.text(), "which is newer", "device", "update")
			p.run(next.text(), "device", "update", "--confirm")
			p.refused(first.text(), "verify step 2", "device", "verify", "--device", w.profileName(a.root))
			if got := p.run(w.encrypted(first.encrypt, []byte("late")), "decrypt"); got != "late" {
				t.Errorf("letter to the key of before: %q", got)
			}
		})
	}
}

// TestForeignAdministratorWrong changes one thing of a good connection at a time.
func TestForeignAdministratorWrong(t *testing.T) {
	t.Parallel()
	for _, w := range []indWorld{{g2: false}, {g2: true}} {
		t.Run(map[bool]string{false: "g1", true: "g2"}[w.g2], func(t *testing.T) {
			t.Parallel()
			a, d := w.newAccount(), w.newDevice()
			other, another := w.newAccount(), w.newDevice()
			foreign := indWorld{!w.g2}
			p := startProgram(t).device(d, a)
			for name, c := range map[string]struct {
				change func(*indEntry)
				want   string
			}{
				"account's profile":      {func(e *indEntry) { e.profileUser = other.envelope }, "verify step 1 account profile: ProfileUser: it is not the expected one"},
				"forged name of account": {func(e *indEntry) { e.profileUser = a.forged(other) }, "verify step 1 account profile: ProfileUser: "},
				"another format's":       {func(e *indEntry) { e.profileUser = foreign.newAccount().envelope }, "verify step 1 account profile"},
				"device's name":          {func(e *indEntry) { e.deviceUdf = w.profileName(another.root) }, "verify step 2 device profile: DeviceUdf"},
				"device's profile":       {func(e *indEntry) { e.device = another }, "verify step 2 device profile: ProfileDevice"},
				"signer of connection":   {func(e *indEntry) { e.connectionSigner = other.admin }, "verify step 3 connection signature: ConnectionDevice"},
				"root signs connection":  {func(e *indEntry) { e.connectionSigner = a.root }, "verify step 3 connection signature: ConnectionDevice"},
				"signer for services":    {func(e *indEntry) { e.serviceSigner = other.admin }, "verify step 3 connection signature: ConnectionService"},
				"signer of activation":   {func(e *indEntry) { e.activationSigner = a.sign }, "verify step 3 connection signature: ActivationAccount"},
				"signer of common":       {func(e *indEntry) { e.commonSigner = other.admin }, "verify step 3 connection signature: ActivationCommon"},
				"account of connection":  {func(e *indEntry) { e.connectionUdf = w.profileName(other.root) }, "verify step 4 account binding: ConnectionDevice: ProfileUdf: it is not the expected one"},
				"no account":             {func(e *indEntry) { e.connectionUdf = "" }, "verify step 4 account binding: ConnectionDevice: ProfileUdf: it is missing"},
				"account for services":   {func(e *indEntry) { e.serviceUdf = w.profileName(other.root) }, "verify step 4 account binding: ConnectionService: ProfileUdf"},
				"kind of connection":     {func(e *indEntry) { e.deviceTag = "ConnectionService" }, "verify step 4 account binding: ConnectionDevice"},
				"contribution":           {func(e *indEntry) { e.activation = newIndSeed(0x0103) }, "verify step 5 activation: ConnectionDevice: combined key for Encrypt"},
				"one combined key":       {func(e *indEntry) { e.sign = another.sign }, "verify step 5 activation: ConnectionDevice: combined key for Sign"},
				"key for services":       {func(e *indEntry) { e.serviceAuthentication = another.a }, "verify step 5 activation: ConnectionService"},
				"authentication repeats": {func(e *indEntry) { e.a, e.serviceAuthentication = e.encrypt, e.encrypt }, "verify step 5 activation: ConnectionDevice: Authentication repeats"},
				"recipient":              {func(e *indEntry) { e.activationTo = another.encrypt }, "verify step 5 activation: ActivationAccount"},
				"recipient of common":    {func(e *indEntry) { e.commonTo = another.encrypt }, "verify step 5 activation: ActivationCommon"},
				"kind of activation":     {func(e *indEntry) { e.activationTag = "ActivationCommon" }, "verify step 5 activation: ActivationAccount"},
				"kind of seed":           {func(e *indEntry) { e.activation[1] = 0 }, "verify step 5 activation: ActivationAccount"},
				"private key of another": {func(e *indEntry) {
					e.commonBody = strings.Replace(e.commonBody, w.name(a.encrypt), w.name(other.encrypt), 1)
				}, "verify step 5 activation: ActivationCommon"},
			} {
				e := a.newEntry(d)
				c.change(e)
				t.Run(name, func(t *testing.T) { program{t, p.socket}.refused(e.text(), c.want, "device", "activate") })
			}
			good := a.newEntry(d)
			text := good.text()
			p.run(text, "device", "activate")
			p.run(a.newEntry(d).text(), "device", "update", "--confirm")
			p.refused(text, "verify step 6 rollback", "device", "update", "--confirm")
		})
	}
}

// forged is a profile that claims the name of another account, by a root that is not that one's.
func (x *indAccount) forged(attacker *indAccount) string {
	w := x.indWorld
	if w.g2 {
		return w.envelope("", []byte(`{"ProfileUser": {"RootUdfs": ["`+wrapped(w.udf(x.root))+`"], "AdministratorSignature": `+w.keyData(attacker.admin, false)+`}}`), attacker.root)
	}
	claimed := strings.Replace(w.keyData(attacker.root, false), w.name(attacker.root), w.name(x.root), 1)
	return w.envelope("", []byte(`{"ProfileUser": {"ProfileSignature": `+claimed+`, "AdministratorSignature": `+w.keyData(attacker.admin, false)+`}}`), attacker.root)
}
