package keyfile

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// parsed is a good key file: white space around it, and its own algorithm, change nothing.
func parsed(t *testing.T, data []byte, opts Options) (*token.PrivateKey, token.PublicKey) {
	t.Helper()
	key, _, err := Parse(data, opts)
	if err != nil {
		t.Fatal(err)
	}
	set := 0
	for _, present := range []bool{key.Seed != nil, key.Scalar != nil, key.RSA != nil} {
		if present {
			set++
		}
	}
	if set != 1 || key.Algorithm == "" {
		t.Errorf("algorithm %q, %d forms of the key", key.Algorithm, set)
	}
	pub := must(mesh.PublicOf(key))
	opts.Algorithm = key.Algorithm
	again, _, err := Parse(append(append([]byte("\r\n \t"), data...), " \n\n"...), opts)
	if err != nil || !must(mesh.PublicOf(again)).Equal(pub) {
		t.Errorf("with white space around: %v", err)
	}
	for _, other := range []token.Algorithm{token.X25519, token.Ed448, "Nonsense"} {
		if opts.Algorithm = other; other == key.Algorithm {
			continue
		}
		if _, _, err := Parse(data, opts); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("a %s key passes for %s: %v", key.Algorithm, other, err)
		}
	}
	return key, pub
}

func TestPEMFiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file, public string // as OpenSSL says
		algorithm    token.Algorithm
	}{
		{"ed448.pem", "23ba7ee9c3d409d2ca67e91fa67d33e81960da602c852e42e50a24797b61f92890d48b303414cb89a914e1b3ca102a16ed6ea07df884eccf00", token.Ed448},
		{"x448.pem", "f44046fca6425eb2c9221032bd0c10dae40d68cef423ee374f5a5e4d505fb6bf73825f5d0669c6791ca8d98d7ec87ca994e3f2f81fa53680", token.X448},
		{"x25519.pem", "dce74fd49fad027ace0bb3b03876ecf65c6e243098612a00e6a016c6c6e1135a", token.X25519},
		{"ed25519.pem", "ca9eda96843fc30a9d4f548361d57f433d23b24cc009f9e013f3d760888d17ce", token.Ed25519},
		{"ec-openssl.pem", "04", token.P256},
		{"openssh-p384", "04", token.P384},
		{"openssh-rsa3072", "3082", token.RSA3072},
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			key, pub := parsed(t, read(t, c.file), Options{})
			if key.Algorithm != c.algorithm || !strings.HasPrefix(hex.EncodeToString(pub.Octets), c.public) {
				t.Errorf("%s %x", key.Algorithm, pub.Octets)
			}
		})
	}
}

// RFC 8410, Section 10.3: one key without and with its public key.
func TestRFC8410(t *testing.T) {
	t.Parallel()
	const plain = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC"
	const public = "MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC" +
		"oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
	der := must(base64.StdEncoding.DecodeString(public))
	_, a := parsed(t, pemOf("PRIVATE KEY", must(base64.StdEncoding.DecodeString(plain))), Options{})
	_, b := parsed(t, pemOf("PRIVATE KEY", der), Options{})
	if !a.Equal(b) || !bytes.HasSuffix(der, a.Octets) {
		t.Errorf("%x and %x", a.Octets, b.Octets)
	}
	der[len(der)-1] ^= 1
	if _, _, err := Parse(pemOf("PRIVATE KEY", der), Options{}); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("another public key beside it: %v", err)
	}
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// generated makes a standard key of each kind.
func generated(t testing.TB) map[token.Algorithm]any {
	t.Helper()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[token.Algorithm]any{
		token.Ed25519: ed,
		token.X25519:  must(ecdh.X25519().GenerateKey(rand.Reader)),
		token.P256:    must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		token.P384:    must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		token.P521:    must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		token.RSA2048: must(rsa.GenerateKey(rand.Reader, 2048)),
	}
}

func TestStandardKeys(t *testing.T) {
	t.Parallel()
	for a, key := range generated(t) {
		files := map[string][]byte{"PKCS #8": pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))}
		if a != token.X25519 {
			files["OpenSSH"] = pem.EncodeToMemory(must(ssh.MarshalPrivateKey(key, "comment")))
		}
		switch key := key.(type) {
		case *ecdsa.PrivateKey:
			files["SEC 1"] = pemOf("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(key)))
		case *rsa.PrivateKey:
			files["PKCS #1"] = pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
		}
		for kind, data := range files {
			t.Run(string(a)+"/"+kind, func(t *testing.T) {
				t.Parallel()
				got, pub := parsed(t, data, Options{})
				want := must(standardPublic(key))
				if got.Algorithm != a || !bytes.Equal(must(x509.MarshalPKIXPublicKey(must(pub.Standard()))), want) {
					t.Errorf("%s", got.Algorithm)
				}
				if _, _, err := Parse(data, Options{KeyName: "BaseDeviceSign"}); err == nil {
					t.Error("a key name is accepted")
				}
				if _, _, err := Parse(append(bytes.Clone(data), data...), Options{}); err == nil {
					t.Error("two keys in one file are accepted")
				}
				if _, _, err := Parse(append([]byte("x\n"), data...), Options{}); err == nil {
					t.Error("text before the key is accepted")
				}
			})
		}
	}
}

func standardPublic(key any) ([]byte, error) {
	switch key := key.(type) {
	case ed25519.PrivateKey:
		return x509.MarshalPKIXPublicKey(key.Public())
	case *ecdh.PrivateKey:
		return x509.MarshalPKIXPublicKey(key.PublicKey())
	case *ecdsa.PrivateKey:
		return x509.MarshalPKIXPublicKey(&key.PublicKey)
	case *rsa.PrivateKey:
		return x509.MarshalPKIXPublicKey(&key.PublicKey)
	}
	return nil, errors.New("unknown key")
}

func TestOpenSSHPassphrase(t *testing.T) {
	t.Parallel()
	data := read(t, "openssh-encrypted")
	for _, c := range []struct {
		passphrase string
		want       error
	}{{"", token.ErrAuthNeeded}, {"wrong", token.ErrAuthWrong}, {"correct horse", nil}} {
		_, _, err := Parse(data, Options{Passphrase: []byte(c.passphrase)})
		if !errors.Is(err, c.want) {
			t.Errorf("%q: %v", c.passphrase, err)
		}
		if auth := (*token.AuthError)(nil); c.want != nil && (!errors.As(err, &auth) || auth.Kind != "passphrase") {
			t.Errorf("%q: %T", c.passphrase, err)
		}
	}
	_, pub := parsed(t, read(t, "openssh-ed25519"), Options{})
	line := must(ssh.NewPublicKey(must(pub.Standard())))
	if !bytes.HasPrefix(read(t, "openssh-ed25519.pub"), bytes.TrimSpace(ssh.MarshalAuthorizedKey(line))) {
		t.Error("another public key than ssh-keygen's")
	}
}

func seedText(id uint16, secret string) string {
	return mesh.UDFText(append([]byte{200, byte(id >> 8), byte(id)}, secret...))
}

func TestSeeds(t *testing.T) {
	t.Parallel()
	// mesh-udf unit test TEST1, then a device profile in both generations.
	_, pub := parsed(t, []byte("ZAAA-G5DF-ON2D-C"), Options{})
	if got := must(mesh.Fingerprint(pub, mesh.G1)); got != "MB2W-MYKD-RT2Q-VZD4-76ER-ER5O-3WH2" {
		t.Error(got)
	}
	device := "ZAAQ-AUKH-YPXV-5NTI-ZVIK-4Q2D-EFAP-UR7Y-5XXN-EDXE-HX3O-LYFS-BJOU-CMQE"
	opts := Options{Algorithm: token.X448, KeyName: "BaseDeviceEncrypt", Generation: mesh.G2}
	for _, text := range []string{device, `{"PrivateKeyUDF":{"PrivateValue":"` + device + `","KeyType":"MeshProfileDevice","Exportable":false}}`} {
		key, warnings, err := Parse([]byte(text), opts)
		if err != nil {
			t.Fatal(err)
		}
		if got := must(mesh.Fingerprint(must(mesh.PublicOf(key)), mesh.G2)); got != "MBFF-ESP3-VNXY-DYHL-5MJI-V4K7-V7WN" {
			t.Error(got)
		}
		if warnings != nil {
			t.Error(warnings)
		}
	}
}

func TestSeedWarning(t *testing.T) {
	t.Parallel()
	for n := range 20 {
		if n == 0 {
			continue
		}
		_, warnings, err := Parse([]byte(seedText(1, strings.Repeat("s", n))), Options{})
		if err != nil || (len(warnings) == 0) != (n >= 16) {
			t.Errorf("%d octets: %q, %v", n, warnings, err)
		}
	}
}

func TestKeyData(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"keydata-rsa-g1.json", "keydata-rsa-g2.json"} {
		if key, _ := parsed(t, read(t, file), Options{}); key.Algorithm != token.RSA2048 {
			t.Errorf("%s: %s", file, key.Algorithm)
		}
	}
	scalar := bytes.Repeat([]byte{3}, 56)
	share := must(mesh.MarshalKeyDataScalar(token.X448, scalar))
	bare := bytes.TrimSuffix(bytes.TrimPrefix(share, []byte(`{"KeyData":`)), []byte("}"))
	private := fmt.Appendf(nil, `{"PrivateKeyECDH":{"crv":"X448z","Private":%q}}`, base64.RawURLEncoding.EncodeToString(scalar))
	for _, text := range [][]byte{share, bare, private} {
		if key, _ := parsed(t, text, Options{}); !bytes.Equal(key.Scalar, scalar) {
			t.Errorf("%s", text)
		}
	}
	other := must(mesh.MarshalKeyDataScalar(token.X448, bytes.Repeat([]byte{5}, 56)))
	udf := func(b []byte) []byte { return b[bytes.Index(b, []byte(`"M`)):][:36] }
	for name, text := range map[string][]byte{
		"another Udf":        bytes.Replace(share, udf(share), udf(other), 1),
		"another public key": bytes.Replace(share, share[bytes.Index(share, []byte(`"Public":`)):][:86], other[bytes.Index(other, []byte(`"Public":`)):][:86], 1),
	} {
		if bytes.Equal(text, share) {
			t.Fatalf("%s: nothing was replaced", name)
		}
		if _, _, err := Parse(text, Options{}); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The Udf beside a generic seed is a profile's, the one beside another seed the key's.
func TestSeedInKeyData(t *testing.T) {
	t.Parallel()
	const profile = "MBQK-36BF-K7RS-UDWD-PVC3-CVMR-BJCP"
	text := func(seed string) []byte {
		return fmt.Appendf(nil, `{"KeyData":{"Udf":%q,"PrivateParameters":{"PrivateKeyUDF":{"PrivateValue":%q}}}}`, profile, seed)
	}
	if _, _, err := Parse(text(seedText(0x100, "secret")), Options{Algorithm: token.X448}); err != nil {
		t.Error(err)
	}
	if _, _, err := Parse(text(seedText(2, "secret")), Options{}); !errors.Is(err, token.ErrBadKey) {
		t.Error(err)
	}
}

func TestValidity(t *testing.T) {
	t.Parallel()
	text := fmt.Appendf(nil, `{"NotOnOrAfter":"2020-01-01T00:00:00Z","PrivateParameters":{"PrivateKeyUDF":{"PrivateValue":%q}}}`, seedText(2, "secret"))
	if _, _, err := Parse(text, Options{}); !errors.Is(err, token.ErrBadKey) {
		t.Error(err)
	}
	if _, _, err := Parse(text, Options{Now: time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC)}); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	odd := must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	secret := "GTKGED255XXKEYXX"
	for name, data := range map[string][]byte{
		"nothing":               {},
		"white space":           []byte(" \n\t"),
		"text":                  []byte("hello"),
		"a nonce":               []byte("ND5L-Y3E6-GDDZ-KICR-NPDL-5WWM-4QSA"),
		"an envelope":           []byte(`[{},""]`),
		"empty object":          []byte(`{}`),
		"public KeyData":        []byte(`{"KeyData":{"PublicParameters":{"PublicKeyRSA":{"n":"AQAB","e":"AQAB"}}}}`),
		"seed twice":            []byte(seedText(1, "secret") + "\n" + seedText(1, "secret")),
		"generic seed":          []byte(seedText(0x100, "secret")),
		"any seed":              []byte(seedText(0, "secret")),
		"reserved seed":         []byte(seedText(12, "secret")),
		"seed with use":         []byte(seedText(0x4001, "secret")),
		"seed without secret":   []byte(seedText(1, "")),
		"wrong JSON member":     []byte(`{"PrivateKeyUDF":"` + secret + `"}`),
		"wrong JSON value":      []byte(`{"PrivateKeyECDH":{"crv":"X448","Private":"` + secret + `*"}}`),
		"seed with a bad end":   []byte("ZAAA-" + secret + "-0"),
		"certificate":           pemOf("CERTIFICATE", []byte(secret)),
		"public key":            pemOf("PUBLIC KEY", []byte(secret)),
		"empty PKCS #8":         pemOf("PRIVATE KEY", nil),
		"garbage PKCS #8":       pemOf("PRIVATE KEY", []byte(secret)),
		"garbage EC":            pemOf("EC PRIVATE KEY", []byte(secret)),
		"garbage RSA":           pemOf("RSA PRIVATE KEY", []byte(secret)),
		"garbage OpenSSH":       pemOf("OPENSSH PRIVATE KEY", []byte(secret)),
		"trailing octet":        pemOf("PRIVATE KEY", append(must(x509.MarshalPKCS8PrivateKey(must(ecdh.X25519().GenerateKey(rand.Reader)))), 0)),
		"cut PEM":               []byte("-----BEGIN PRIVATE KEY-----\nMC4CAQAw"),
		"encrypted PKCS #8":     read(t, "encrypted-pkcs8.pem"),
		"encrypted RSA":         read(t, "encrypted-rsa.pem"),
		"secp256k1":             read(t, "secp256k1.pem"),
		"P-224":                 pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(odd))),
		"RSA 1024":              pemOf("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(small))),
		"X448 of 32 octets":     pemOf("PRIVATE KEY", must(hex.DecodeString("302e020100300506032b656f04220420"+strings.Repeat("07", 32)))),
		"Ed448 of 56 octets":    pemOf("PRIVATE KEY", must(hex.DecodeString("3046020100300506032b6571043a0438"+strings.Repeat("07", 56)))),
		"Ed25519 with NULL":     pemOf("PRIVATE KEY", must(hex.DecodeString("3030020100300706032b6570050004220420"+strings.Repeat("07", 32)))),
		"more than the maximum": bytes.Repeat([]byte{' '}, MaxSize+1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key, _, err := Parse(data, Options{})
			if !errors.Is(err, token.ErrBadKey) || key != nil {
				t.Fatalf("%v", err)
			}
			if strings.Contains(err.Error(), secret[:8]) || strings.Contains(err.Error(), hex.EncodeToString([]byte(secret[:4]))) {
				t.Errorf("the error shows the secret: %v", err)
			}
			if encrypted := strings.HasPrefix(name, "encrypted"); errors.Is(err, ErrEncrypted) != encrypted {
				t.Errorf("encrypted: %v", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	files, err := os.ReadDir("testdata")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	seeds := 0
	for _, file := range files {
		if file.Type().IsRegular() {
			f.Add(read(f, file.Name()), "", "")
			seeds++
		}
	}
	if seeds == 0 {
		f.Fatal("no seeds")
	}
	f.Add([]byte(seedText(0x100, "secret")), "X448", "BaseDeviceEncrypt")
	f.Add(must(mesh.MarshalKeyDataScalar(token.P256, bytes.Repeat([]byte{3}, 32))), "P256", "")
	f.Fuzz(func(t *testing.T, data []byte, algorithm, name string) {
		if strings.HasPrefix(algorithm, "RSA") {
			return // slow, and covered by others
		}
		key, _, err := Parse(data, Options{Algorithm: token.Algorithm(algorithm), KeyName: name})
		if err != nil {
			return
		}
		if _, err := mesh.PublicOf(key); err != nil {
			t.Fatalf("a key without public key: %v", err)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, file := range []string{"ed448.pem", "openssh-ed25519", "keydata-rsa-g1.json"} {
		data := read(b, file)
		b.Run(file, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := Parse(data, Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
