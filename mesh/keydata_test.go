package mesh

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

var curveAlgorithms = []token.Algorithm{token.X25519, token.X448, token.Ed25519, token.Ed448, token.P256, token.P384, token.P521}

func randomPublic(t testing.TB, a token.Algorithm) token.PublicKey {
	t.Helper()
	curve, _ := CurveOf(a)
	return token.PublicKey{Algorithm: a, Octets: must(keyshare.RandomScalar(curve, rand.Reader)).Public().Bytes()}
}

func b64(octets []byte) string { return string(must(strictjson.Marshal(Binary(octets)))) }

func TestKeyDataPublicRoundTrip(t *testing.T) {
	t.Parallel()
	for _, a := range curveAlgorithms {
		for _, g := range []Generation{G1, G2} {
			pub := randomPublic(t, a)
			got, err := ParseKeyDataPublic(MarshalKeyDataPublic(pub, g))
			if err != nil {
				t.Fatal(err)
			}
			same(t, string(a), got.Index(), pub.Index())
			// The wire form in messages keeps the sign.
			whole, err := Parameters(pub).PublicKey()
			if err != nil || !whole.Equal(pub) {
				t.Errorf("%s: %v", a, err)
			}
		}
	}
}

// A file is what it says; a seed has the key that it has.
func TestShortRSAModuli(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bits        int
		file, other bool
	}{{2048, true, true}, {2041, true, true}, {2040, false, true}, {1985, false, true}, {1984, false, false}} {
		key := must(rsa.GenerateKey(rand.Reader, c.bits))
		if _, err := RSAKey(key); (err == nil) != c.file || err != nil && !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%d bits, file: %v", c.bits, err)
		}
		k, err := rsaKey(key, shortDerivedRSA)
		if (err == nil) != c.other {
			t.Errorf("%d bits, from a seed: %v", c.bits, err)
		}
		if err == nil && k.Algorithm != token.RSA2048 {
			t.Errorf("%d bits are %s", c.bits, k.Algorithm)
		}
		if _, err := rsaPublic(&key.PublicKey); (err == nil) != c.other {
			t.Errorf("%d bits, public: %v", c.bits, err)
		}
	}
}

// Published KeyData holds RSA keys, Udf and kid, and raw line feeds.
func TestKeyDataOfEscrowedSSHKey(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "dare-unwrap-*.json") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := load[struct{ Expect struct{ Plaintext string } }](t, name)
			k, err := ParseKeyData([]byte(f.Expect.Plaintext))
			if err != nil {
				t.Fatal(err)
			}
			key, err := k.PrivateParameters.PrivateKey()
			if err != nil {
				t.Fatal(err)
			}
			same(t, "algorithm", key.Algorithm, token.RSA2048)
			pub := must(PublicOf(key))
			if err := k.Check(pub); err != nil {
				t.Error(err)
			}
			if again := must(k.PublicKey()); !again.Equal(pub) {
				t.Error("public and private key differ")
			}
			id := must(NormalizeKeyID(k.Udf))
			if !slices.ContainsFunc(must(Aliases(pub)), func(a string) bool { return strings.HasPrefix(a, id) }) {
				t.Errorf("%s is no alias", k.Udf)
			}
			checkRSAMembers(t, k.PrivateParameters.PrivateKeyRSA)
			if _, err := ParseKeyDataPublic([]byte(f.Expect.Plaintext)); err == nil {
				t.Error("a private key passes for a public one")
			}
			// As a public key, and back.
			back, err := ParseKeyDataPublic(MarshalKeyDataPublic(pub, G1))
			if err != nil || !back.Equal(pub) {
				t.Error("RSA public key does not round-trip", err)
			}
		})
	}
}

// checkRSAMembers alters each member of a good key in turn.
func checkRSAMembers(t *testing.T, good *PrivateKeyRSA) {
	t.Helper()
	members := map[string]func(*PrivateKeyRSA) *Binary{
		"n": func(k *PrivateKeyRSA) *Binary { return &k.N }, "e": func(k *PrivateKeyRSA) *Binary { return &k.E },
		"d": func(k *PrivateKeyRSA) *Binary { return &k.D }, "p": func(k *PrivateKeyRSA) *Binary { return &k.P },
		"q": func(k *PrivateKeyRSA) *Binary { return &k.Q }, "dp": func(k *PrivateKeyRSA) *Binary { return &k.DP },
		"dq": func(k *PrivateKeyRSA) *Binary { return &k.DQ }, "qi": func(k *PrivateKeyRSA) *Binary { return &k.QI },
	}
	for name, member := range members {
		k := *good
		altered := slices.Clone(*member(&k))
		altered[len(altered)-1] ^= 2
		*member(&k) = altered
		if _, err := (&PrivateParameters{PrivateKeyRSA: &k}).PrivateKey(); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s altered: %v", name, err)
		}
		k = *good
		*member(&k) = nil
		_, err := (&PrivateParameters{PrivateKeyRSA: &k}).PrivateKey()
		if optional := name == "dp" || name == "dq" || name == "qi"; optional != (err == nil) {
			t.Errorf("%s missing: %v", name, err)
		}
	}
}

func TestPrivateKeyECDH(t *testing.T) {
	t.Parallel()
	for _, a := range curveAlgorithms {
		curve, _ := CurveOf(a)
		scalar := must(keyshare.RandomScalar(curve, rand.Reader))
		for _, suffix := range []string{"", "z"} {
			private := scalar.Bytes()
			text := fmt.Sprintf(`{"PrivateKeyECDH":{"crv":"%s%s","Private":%s}}`, a, suffix, b64(private))
			key, err := must(ParseKeyData([]byte(text))).PrivateParameters.PrivateKey()
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			same(t, "algorithm", key.Algorithm, a)
			if suffix == "" && !curve.IsNIST() {
				sameHex(t, "seed", key.Seed, private)
				same(t, "scalar", len(key.Scalar), 0)
				continue
			}
			sameHex(t, "scalar", key.Scalar, private)
			sameHex(t, "public key", must(PublicOf(key)).Octets, scalar.Public().Bytes())
		}
	}
}

func TestPrivateKeyECDHScalarRange(t *testing.T) {
	t.Parallel()
	for _, a := range curveAlgorithms {
		curve, _ := CurveOf(a)
		n := curve.ScalarLen()
		read := func(scalar []byte) (*token.PrivateKey, error) {
			return (&PrivateKeyECDH{Curve: string(a) + "z", Private: scalar}).privateKey()
		}
		for _, bad := range [][]byte{nil, make([]byte, n), bytes.Repeat([]byte{1}, n-1), bytes.Repeat([]byte{1}, n+1)} {
			if _, err := read(bad); !errors.Is(err, token.ErrBadKey) {
				t.Errorf("%s: %d octets %x: %v", a, len(bad), bad, err)
			}
		}
		if _, err := read(bytes.Repeat([]byte{0xff}, n)); err != nil {
			t.Errorf("%s: a scalar above the order is refused: %v", a, err)
		}
	}
}

func TestKeyDataScalar(t *testing.T) {
	t.Parallel()
	for _, a := range curveAlgorithms {
		curve, _ := CurveOf(a)
		scalar := must(keyshare.RandomScalar(curve, rand.Reader))
		data, err := MarshalKeyDataScalar(a, scalar.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(data), fmt.Sprintf(`"crv":"%sz"`, a)) {
			t.Errorf("%s: the private curve has no z", a)
		}
		k := must(ParseKeyData(data))
		key := must(k.PrivateParameters.PrivateKey())
		sameHex(t, "scalar", key.Scalar, scalar.Bytes())
		if err := k.Check(must(PublicOf(key))); err != nil {
			t.Error(err)
		}
	}
	if _, err := MarshalKeyDataScalar(token.X448, make([]byte, 56)); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("zero: %v", err)
	}
	if _, err := MarshalKeyDataScalar(token.RSA2048, make([]byte, 56)); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("RSA: %v", err)
	}
}

func TestKeyDataCheck(t *testing.T) {
	t.Parallel()
	for _, a := range curveAlgorithms {
		pub, other := randomPublic(t, a), randomPublic(t, a)
		parameters := func(p token.PublicKey, n int) *PublicParameters {
			return &PublicParameters{PublicKeyECDH: &PublicKeyECDH{Curve: string(p.Algorithm), Public: p.Octets[:n]}}
		}
		n := len(pub.Octets)
		good := []KeyData{
			{}, {Udf: must(Fingerprint(pub, G1))}, {Udf: must(Fingerprint(pub, G2))},
			{Udf: strings.ToLower(must(FullFingerprint(pub, G1)))},
			{PublicParameters: parameters(pub, n)},
		}
		if a == token.X25519 || a == token.X448 {
			good = append(good, KeyData{PublicParameters: parameters(pub, n-1)})
		}
		for i, k := range good {
			if err := k.Check(pub); err != nil {
				t.Errorf("%s good %d: %v", a, i, err)
			}
		}
		for i, k := range []KeyData{
			{Udf: must(Fingerprint(other, G1))}, {Udf: "MAAA"}, {Udf: must(Fingerprint(pub, G1)) + "-AAAA"},
			{PublicParameters: parameters(other, n)}, {PublicParameters: &PublicParameters{}},
			{PublicParameters: parameters(randomPublic(t, curveAlgorithms[(slices.Index(curveAlgorithms, a)+1)%7]), 32)},
		} {
			if err := k.Check(pub); err == nil {
				t.Errorf("%s bad %d is accepted", a, i)
			}
		}
	}
}

func TestKeyDataSignMatters(t *testing.T) {
	t.Parallel()
	s := must(keyshare.RandomScalar(keyshare.X25519, rand.Reader))
	key := &PrivateKeyECDH{Curve: "X25519z", Private: s.Bytes(), Public: s.Public().Negate().Bytes()}
	if _, err := key.privateKey(); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("a public key of the other sign: %v", err)
	}
	key.Public = key.Public[:32]
	if _, err := key.privateKey(); err != nil {
		t.Errorf("a public key without sign: %v", err)
	}
}

func TestKeyDataValidity(t *testing.T) {
	t.Parallel()
	at := func(s string) time.Time { return must(time.Parse(time.RFC3339, s)) }
	text := fmt.Sprintf(`{"KeyData":{"PublicParameters":{"PublicKeyECDH":{"crv":"X448","Public":%s}},
		"NotBefore":"2024-01-01T00:00:00Z","NotOnOrAfter":"2025-01-01T00:00:00Z"}}`, b64(randomPublic(t, token.X448).Octets))
	k := must(ParseKeyData([]byte(text)))
	for when, valid := range map[string]bool{
		"2023-12-31T23:59:59Z": false, "2024-01-01T00:00:00Z": true, "2024-12-31T23:59:59Z": true, "2025-01-01T00:00:00Z": false,
	} {
		same(t, when, k.CheckValidity(at(when)) == nil, valid)
	}
	if _, err := ParseKeyDataPublic([]byte(text)); err == nil {
		t.Error("an outdated public key is accepted")
	}
}

func TestParseKeyDataRefuses(t *testing.T) {
	t.Parallel()
	p := b64(randomPublic(t, token.Ed25519).Octets)
	ecdh := fmt.Sprintf(`{"PublicKeyECDH":{"crv":"Ed25519","Public":%s}}`, p)
	for _, text := range []string{
		``, `null`, `[]`, `"ZAAA"`, `1`, `{"KeyData":null}`, `{"KeyData":[]}`, `{"KeyData":{}`, `{"KeyData":{}}x`, `{"KeyData":{}} {}`,
		`{"KeyData":{"Secret":"x"}}`, `{"KeyData":{},"KeyData":{}}`, `{"KeyData":{},"Other":{}}`, `{"keydata":{}}`,
		`{"Udf":"M","Udf":"M"}`, `{"PrivateKeyOther":{}}`, `{"PublicKeyECDH":{"crv":"Ed25519"},"PublicParameters":{}}`,
		`{"PrivateKeyECDH":{"crv":"X448","Private":"AA==" }}`, `{"PrivateKeyECDH":{"crv":"X448","Private":null}}`,
		`{"PrivateKeyECDH":{"crv":"X448","private":"AA"}}`, `{"PrivateKeyECDH":{"crv":"X448","Private":"A"}}`,
		`{"PrivateKeyUDF":"ZAAA-GTKG-ED25-5XXK-EYX"}`,
	} {
		if k, err := ParseKeyData([]byte(text)); err == nil {
			t.Errorf("%s is accepted: %+v", text, k)
		} else if strings.Contains(err.Error(), "GTKG") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
	for _, text := range []string{
		`{}`, `{"KeyData":{}}`, `{"KeyData":{"PublicParameters":{}}}`,
		fmt.Sprintf(`{"PublicParameters":%s,"Udf":"MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA"}`, ecdh),
		fmt.Sprintf(`{"PublicParameters":%s,"PrivateParameters":{}}`, ecdh),
		fmt.Sprintf(`{"PublicKeyECDH":{"crv":"Ed25519z","Public":%s}}`, p),
		fmt.Sprintf(`{"PublicKeyECDH":{"crv":"Ed448","Public":%s}}`, p),
		fmt.Sprintf(`{"PublicKeyECDH":{"crv":"P-256","Public":%s}}`, p),
		`{"PublicKeyRSA":{"n":"AQAB","e":"AQAB"}}`,
	} {
		if _, err := ParseKeyDataPublic([]byte(text)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
	if _, err := ParseKeyDataPublic([]byte(ecdh)); err != nil {
		t.Error(err)
	}
	for _, text := range []string{
		`{"PrivateParameters":{}}`, `{"PrivateParameters":{"KeyShare":{}}}`, `{"PrivateParameters":{"CompositePrivate":{}}}`,
		`{"PrivateParameters":{"PrivateKeyUDF":{"PrivateValue":"ZAAA-GTKG-ED25-5XXK-EYX"},"PrivateKeyECDH":{"crv":"X448","Private":"AA"}}}`,
		`{"PrivateKeyECDH":{"crv":"RSA2048","Private":"AA"}}`, `{"PrivateKeyECDH":{"crv":"X448zz","Private":"AA"}}`,
	} {
		k := must(ParseKeyData([]byte(text)))
		if _, err := k.PrivateParameters.PrivateKey(); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s: %v", text, err)
		}
		if _, err := k.PrivateParameters.Seed(); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s: seed: %v", text, err)
		}
	}
}

func TestBadPointsKeepTheirReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		crv    string
		public []byte
		reason error
	}{
		{"X448", make([]byte, 10), keyshare.ErrLength},
		{"X448", append(bytes.Repeat([]byte{5}, 1), append(make([]byte, 55), 7)...), keyshare.ErrSignOctet},
		{"X25519", bytes.Repeat([]byte{0xff}, 32), keyshare.ErrNonCanonical},
		{"X25519", make([]byte, 32), keyshare.ErrLowOrder},
	} {
		_, err := PublicParameters{PublicKeyECDH: &PublicKeyECDH{Curve: c.crv, Public: c.public}}.PublicKey()
		if !errors.Is(err, c.reason) || !errors.Is(err, token.ErrBadPoint) || !strings.HasPrefix(err.Error(), c.reason.Error()) {
			t.Errorf("%s %x: %v, want %v", c.crv, c.public, err, c.reason)
		}
	}
}

func TestPrivateKeyUDF(t *testing.T) {
	t.Parallel()
	const seed = "ZAAQ-AUKH-YPXV-5NTI-ZVIK-4Q2D-EFAP-UR7Y-5XXN-EDXE-HX3O-LYFS-BJOU-CMQE"
	read := func(keyType string) error {
		s, err := (&PrivateParameters{PrivateKeyUDF: &PrivateKeyUDF{PrivateValue: seed, KeyType: keyType}}).Seed()
		if err == nil {
			same(t, "seed", s.Text(), seed)
		}
		return err
	}
	for keyType, ok := range map[string]bool{"": true, "MeshProfileDevice": true, "Future": true, "MeshProfileAccount": false, "X448": false} {
		same(t, keyType, read(keyType) == nil, ok)
	}
	same(t, "name", SeedIDOf(token.RSA4096).name(), "RSA4096")
}

func FuzzParseKeyData(f *testing.F) {
	f.Add(MarshalKeyDataPublic(randomPublic(f, token.X25519), G1))
	f.Add(must(MarshalKeyDataScalar(token.X448, bytes.Repeat([]byte{3}, 56))))
	f.Add([]byte(`{"PrivateKeyUDF":{"PrivateValue":"ZAAA-GTKG-ED25-5XXK-EYX","KeyType":"Any"}}`))
	f.Add([]byte(`{"Udf":"MAAA","NotBefore":"2024-01-01T00:00:00Z","X509Chain":["AAAA"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ParseKeyData(data)
		if err != nil {
			return
		}
		out, err := strictjson.Marshal(k)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseKeyData(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if second := must(strictjson.Marshal(again)); !bytes.Equal(out, second) {
			t.Fatalf("%s becomes %s", out, second)
		}
		if k.PrivateParameters != nil {
			_, _ = k.PrivateParameters.PrivateKey()
		}
		_, _ = k.PublicKey()
	})
}
