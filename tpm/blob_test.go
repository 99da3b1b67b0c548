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

// keyFiles are handles of keys of a TPM that is no more, from their TSS2 key files, by name.
func keyFiles(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.der")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no key files in testdata: %v", err)
	}
	out := map[string][]byte{}
	for _, p := range paths {
		der, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parseFile[keyFile](der, maxFile)
		if err != nil {
			t.Fatal(err)
		}
		o, err := f.object()
		if err != nil {
			t.Fatal(err)
		}
		if err := o.parseArea(); err != nil {
			t.Fatal(err)
		}
		o.parentName = bytes.Repeat([]byte{7}, 34)
		if out[filepath.Base(p)], err = o.encode(); err != nil {
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
		if b.key.Algorithm != want.algorithm || b.purpose != want.purpose || len(b.key.Octets) != want.octets {
			t.Errorf("%s is a key to %s with public key %+v", name, b.purpose, b.key)
		}
		if _, err := b.key.Standard(); err != nil {
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
	o := &object{
		parent: persistentSRK, parentName: []byte{0xdd}, emptyAuth: true, area: []byte{0xaa, 0xbb}, private: []byte{0xcc},
		public: &tpm2.TPMTPublic{},
	}
	got, err := o.encode()
	want := []byte{
		0x30, 0,
		0x02, 1, 1, // version
		0x04, 1, 0xdd,
		0x30, 0,
		0x06, 6, 0x67, 0x81, 0x05, 0x0a, 0x01, 0x03, // 2.23.133.10.1.3
		0xa0, 3, 0x01, 1, 0xff, // [0] TRUE
		0x02, 5, 0x00, 0x81, 0x00, 0x00, 0x01,
		0x04, 4, 0x00, 0x02, 0xaa, 0xbb,
		0x04, 3, 0x00, 0x01, 0xcc,
	}
	want[1], want[9] = byte(len(want)-2), byte(len(want)-10)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("encoded %x, %v, want %x", got, err, want)
	}
}

// TestDecodeBlobRefuses edits one field of a good key file at a time.
func TestDecodeBlobRefuses(t *testing.T) {
	t.Parallel()
	good := keyFiles(t)["p256-sign.der"]
	editArea := func(edit func(*tpm2.TPMTPublic)) func(*objectFile) {
		return func(f *objectFile) {
			public, err := tpm2.Unmarshal[tpm2.TPMTPublic](f.Key.Public[2:])
			if err != nil {
				t.Fatal(err)
			}
			edit(public)
			f.Key.Public = sized(tpm2.Marshal(*public))
		}
	}
	bind := editArea(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = binding() })
	if der, err := asn1.Marshal(edited(t, good, bind)); err != nil {
		t.Fatal(err)
	} else if _, err := decodeBlob(der); err != nil {
		t.Fatalf("bound key: %v", err)
	}
	for name, edit := range map[string]func(*objectFile){
		"version":                func(f *objectFile) { f.Version = 2 },
		"importable key":         func(f *objectFile) { f.Key.Type = oidImportableKey() },
		"unknown key":            func(f *objectFile) { f.Key.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 9} },
		"policy":                 func(f *objectFile) { f.Key.Policy = asn1.RawValue{FullBytes: []byte{0x30, 0}} },
		"authorization policy":   func(f *objectFile) { f.Key.AuthPolicy = asn1.RawValue{FullBytes: []byte{0x30, 0}} },
		"secret":                 func(f *objectFile) { f.Key.Secret = []byte{1} },
		"bound key with PIN":     func(f *objectFile) { bind(f); f.Key.EmptyAuth = false },
		"parent of the platform": func(f *objectFile) { f.Key.Parent = int64(tpm2.TPMRHPlatform) },
		"transient parent":       func(f *objectFile) { f.Key.Parent = 0x80000001 },
		"negative parent":        func(f *objectFile) { f.Key.Parent = -0x7effffff },
		"huge parent":            func(f *objectFile) { f.Key.Parent = 0x1_81000001 },
		"empty public area":      func(f *objectFile) { f.Key.Public = nil },
		"short public area":      func(f *objectFile) { f.Key.Public = sized(f.Key.Public[2 : len(f.Key.Public)-1]) },
		"long public area":       func(f *objectFile) { f.Key.Public = sized(append(f.Key.Public[2:], 0)) },
		"wrong public length":    func(f *objectFile) { f.Key.Public[1]++ },
		"wrong private length":   func(f *objectFile) { f.Key.Private[1]-- },
		"huge private area":      func(f *objectFile) { f.Key.Private = sized(make([]byte, maxFile)) },
		"bound to both purposes": func(f *objectFile) {
			bind(f)
			editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true })(f)
		},
		"no purpose":     editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false }),
		"restricted key": editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true }),
		"policy only":    editArea(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = false }),
		"SHA-1 name":     editArea(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }),
		"curve BN-256":   editArea(func(p *tpm2.TPMTPublic) { p.Parameters = eccParms(tpm2.TPMECCBNP256) }),
		"storage key":    editArea(func(p *tpm2.TPMTPublic) { *p = tpm2.RSASRKTemplate }),
		"fixed scheme":   editArea(func(p *tpm2.TPMTPublic) { *p = attestationTemplate() }),
		"long coordinate": editArea(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: bytes.Repeat([]byte{1}, 33)},
			})
		}),
	} {
		der, err := asn1.Marshal(edited(t, good, edit))
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

func edited(t *testing.T, der []byte, edit func(*objectFile)) objectFile {
	t.Helper()
	f, err := parseFile[objectFile](der, maxFile)
	if err != nil {
		t.Fatal(err)
	}
	edit(&f)
	return f
}

func TestEncodePoint(t *testing.T) {
	t.Parallel()
	c := curves()[0]
	x, y := []byte{1}, append(make([]byte, 4), bytes.Repeat([]byte{2}, 31)...)
	want := append(append(append([]byte{4}, make([]byte, 31)...), 1, 0), bytes.Repeat([]byte{2}, 31)...)
	if got, err := c.encode(x, y); err != nil || !bytes.Equal(got, want) {
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
