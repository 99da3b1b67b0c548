package tpm

import (
	"bytes"
	"encoding/asn1"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// keyFiles are key files of a TPM that is no more, by name.
func keyFiles(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.der")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no key files in testdata: %v", err)
	}
	out := map[string][]byte{}
	for _, p := range paths {
		if out[filepath.Base(p)], err = os.ReadFile(p); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestDecodeBlob(t *testing.T) {
	t.Parallel()
	files := keyFiles(t)
	for name, want := range map[string]struct {
		algorithm token.Algorithm
		purpose   purpose
		octets    int
	}{
		"p256-sign.der":  {token.P256, purposeSign, 65},
		"p384-agree.der": {token.P384, purposeAgree, 97},
		"p521-sign.der":  {token.P521, purposeSign, 133},
	} {
		b, err := decodeBlob(files[name])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if b.public.Algorithm != want.algorithm || b.purpose != want.purpose || len(b.public.Octets) != want.octets {
			t.Errorf("%s is a key to %s with public key %+v", name, b.purpose, b.public)
		}
		if _, err := b.public.Standard(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.area)
		if err != nil {
			t.Fatal(err)
		}
		if object, err := tpm2.ObjectName(public); err != nil || !bytes.Equal(object.Buffer, b.name) {
			t.Errorf("%s has Name %x, want %x", name, b.name, object.Buffer)
		}
	}
}

// TestEncodeBlob compares the key file with its octets written out by hand.
func TestEncodeBlob(t *testing.T) {
	t.Parallel()
	b := &blob{parent: persistentSRK, area: []byte{0xaa, 0xbb}, private: []byte{0xcc}}
	got, err := b.encode()
	want := []byte{
		0x30, 0x1d,
		0x06, 6, 0x67, 0x81, 0x05, 0x0a, 0x01, 0x03, // 2.23.133.10.1.3
		0xa0, 3, 0x01, 1, 0xff, // [0] TRUE
		0x02, 5, 0x00, 0x81, 0x00, 0x00, 0x01,
		0x04, 4, 0x00, 0x02, 0xaa, 0xbb,
		0x04, 3, 0x00, 0x01, 0xcc,
	}
	want[1] = byte(len(want) - 2)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("encoded %x, %v, want %x", got, err, want)
	}
}

// TestDecodeBlobRefuses edits one field of a good key file at a time.
func TestDecodeBlobRefuses(t *testing.T) {
	t.Parallel()
	good := keyFiles(t)["p256-sign.der"]
	editArea := func(edit func(*tpm2.TPMTPublic)) func(*keyFile) {
		return func(f *keyFile) {
			public, err := tpm2.Unmarshal[tpm2.TPMTPublic](f.Public[2:])
			if err != nil {
				t.Fatal(err)
			}
			edit(public)
			f.Public = sized(tpm2.Marshal(*public))
		}
	}
	for name, edit := range map[string]func(*keyFile){
		"importable key":         func(f *keyFile) { f.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 4} },
		"key with authorization": func(f *keyFile) { f.EmptyAuth = false },
		"other parent":           func(f *keyFile) { f.Parent = 0x81000002 },
		"negative parent":        func(f *keyFile) { f.Parent = -0x7effffff },
		"empty public area":      func(f *keyFile) { f.Public = nil },
		"short public area":      func(f *keyFile) { f.Public = sized(f.Public[2 : len(f.Public)-1]) },
		"long public area":       func(f *keyFile) { f.Public = sized(append(f.Public[2:], 0)) },
		"wrong public length":    func(f *keyFile) { f.Public[1]++ },
		"wrong private length":   func(f *keyFile) { f.Private[1]-- },
		"huge private area":      func(f *keyFile) { f.Private = sized(make([]byte, maxHandle)) },
		"both purposes":          editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true }),
		"no purpose":             editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false }),
		"restricted key":         editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true }),
		"policy only":            editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = false }),
		"SHA-1 name":             editArea(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }),
		"curve BN-256":           editArea(func(p *tpm2.TPMTPublic) { p.Parameters = eccParms(tpm2.TPMECCBNP256) }),
		"RSA key":                editArea(func(p *tpm2.TPMTPublic) { *p = tpm2.RSASRKTemplate }),
		"long coordinate": editArea(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 33)},
			})
		}),
	} {
		var f keyFile
		if _, err := asn1.Unmarshal(good, &f); err != nil {
			t.Fatal(err)
		}
		edit(&f)
		der, err := asn1.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeBlob(der); err == nil {
			t.Errorf("a key file with %s is taken", name)
		}
	}
	if _, err := decodeBlob(append(bytes.Clone(good), 0)); err == nil {
		t.Error("a key file with an octet behind it is taken")
	}
}

func TestEncodePoint(t *testing.T) {
	t.Parallel()
	c := curves()[0]
	short := &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: []byte{1}},
		Y: tpm2.TPM2BECCParameter{Buffer: append(make([]byte, 4), bytes.Repeat([]byte{2}, 31)...)},
	}
	want := append(append(append([]byte{4}, make([]byte, 31)...), 1, 0), bytes.Repeat([]byte{2}, 31)...)
	if got, err := c.encode(short); err != nil || !bytes.Equal(got, want) {
		t.Errorf("encoded %x, %v, want %x", got, err, want)
	}
}

func FuzzDecodeBlob(f *testing.F) {
	for _, der := range keyFiles(f) {
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		b, err := decodeBlob(der)
		if err != nil {
			return
		}
		if again, err := b.encode(); err != nil || !bytes.Equal(again, der) {
			t.Errorf("encoded %x, %v, want %x", again, err, der)
		}
	})
}
