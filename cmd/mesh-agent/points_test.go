package main

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// pointForms returns one point in every form in which a file may have it.
func pointForms(t testing.TB) (want point, forms map[string]string) {
	t.Helper()
	octets := keyshare.BasePoint(keyshare.X448).Bytes()
	want = point{Curve: "X448", Public: octets}
	text, err := strictjson.Marshal(mesh.Binary(octets))
	if err != nil {
		t.Fatal(err)
	}
	key := mesh.MarshalKeyDataPublic(token.PublicKey{Algorithm: token.X448, Octets: octets}, mesh.G1)
	bare := strings.TrimSuffix(strings.TrimPrefix(string(key), `{"KeyData":`), "}")
	agreement := `{"KeyAgreementECDH":{"Curve":"X448","Result":` + string(text) + `}}`
	return want, map[string]string{
		"agreement":       agreement,
		"result":          `{"CryptographicResultKeyAgreement":{"Status":201,"KeyAgreement":` + agreement + `}}`,
		"public key":      `{"PublicKeyECDH":{"crv":"X448","Public":` + string(text) + `}}`,
		"KeyData":         string(key),
		"bare KeyData":    bare,
		"with line feeds": strings.Replace(agreement, `"Result":"`, "\"Result\":\"\n ", 1),
	}
}

func TestParsePoint(t *testing.T) {
	t.Parallel()
	want, forms := pointForms(t)
	for name, text := range forms {
		got, err := parsePoint([]byte(text))
		if err != nil || got.Curve != want.Curve || !bytes.Equal(got.Public, want.Public) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for _, text := range []string{
		"", "[]", "null", "{}", `{"PublicKeyECDH":{"crv":"X448"},"More":1}`, `{"PublicKeyECDH":{"crv":"X448","Public":"!"}}`,
		`{"KeyAgreementECDH":{"Curve":"X448","Result":"AA","Extra":1}}`, `{"KeyAgreementECDH":{"Curve":"X448","Curve":"X448"}}`,
	} {
		if p, err := parsePoint([]byte(text)); err == nil {
			t.Errorf("%s was read as %v", text, p)
		}
	}
}

func FuzzParsePoint(f *testing.F) {
	_, forms := pointForms(f)
	for _, text := range forms {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePoint(data)
		if err != nil {
			return
		}
		again, err := strictjson.Marshal(mesh.PublicParameters{PublicKeyECDH: &p})
		if err != nil {
			return // a curve's name that is not UTF-8
		}
		q, err := parsePoint(again)
		if err != nil || p.Curve != q.Curve || !bytes.Equal(p.Public, q.Public) {
			t.Errorf("%v became %v, %v", p, q, err)
		}
	})
}

func TestCombine(t *testing.T) {
	t.Parallel()
	base := point{Curve: "P256", Public: keyshare.BasePoint(keyshare.P256).Bytes()}
	sum, err := combine([]point{base, base, base})
	if err != nil {
		t.Fatal(err)
	}
	three := make([]byte, 32)
	three[31] = 3
	scalar, err := keyshare.ParseScalar(keyshare.P256, three)
	if err != nil {
		t.Fatal(err)
	}
	if !sum.Equal(scalar.Public()) {
		t.Error("G + G + G is not 3G")
	}
	other := point{Curve: "P384", Public: keyshare.BasePoint(keyshare.P384).Bytes()}
	if _, err := combine([]point{base, other}); err == nil {
		t.Error("points of two curves were added")
	}
	if _, err := combine([]point{base, {Curve: "P256", Public: base.Public[:64]}}); err == nil {
		t.Error("half a point was added")
	}
}

func TestSameKey(t *testing.T) {
	t.Parallel()
	const udf = "MAND-BKQ3-XXGY-AYTS-L7VX-OOHW-HT7P"
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{udf, udf, true},
		{udf, "mandbkq3xxgyaytsl7vxoohwht7p", true},
		{udf + "-ABCD", udf, true},
		{udf, udf + "-ABCD", true},
		{udf + "-ABCE", udf + "-ABCD", false},
		{udf[:33], udf[:33], false},
		{"", "", false},
		{udf, "MAND-BKQ3-XXGY-AYTS-L7VX-OOHW-HT7Q", false},
	} {
		if got := sameKey(test.a, test.b); got != test.want {
			t.Errorf("sameKey(%q, %q) is %v", test.a, test.b, got)
		}
	}
}

// TestSubjectPublicKeyInfo checks the prefixes of RFC 8410: SEQUENCE, algorithm, BIT STRING.
func TestSubjectPublicKeyInfo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		curve  keyshare.Curve
		prefix string
		octets int
	}{
		{keyshare.X25519, "302a300506032b656e032100", 32},
		{keyshare.X448, "3042300506032b656f033900", 56},
		{keyshare.Ed25519, "302a300506032b6570032100", 32},
		{keyshare.Ed448, "3043300506032b6571033a00", 57},
	} {
		key := token.PublicKey{Algorithm: token.Algorithm(test.curve.String()), Octets: keyshare.BasePoint(test.curve).Bytes()}
		der, err := subjectPublicKeyInfo(key)
		want := test.prefix + hex.EncodeToString(key.Octets[:test.octets])
		if err != nil || hex.EncodeToString(der) != want {
			t.Errorf("%s: got %x, %v; want %s", test.curve, der, err, want)
		}
	}
}

func TestChooseTPM(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, flag, env, file string
		want                  tpmChoice
	}{
		{"flag first", "/a", "/b", "/c", tpmChoice{"/a"}},
		{"then environment", "", "/b", "/c", tpmChoice{"/b"}},
		{"then file", "", "", "/c", tpmChoice{"/c"}},
		{"flag turns off", "off", "/b", "/c", tpmChoice{}},
		{"file turns off", "", "", "off", tpmChoice{}},
	} {
		a := &app{world: world{getenv: func(string) string { return test.env }}}
		if got := a.chooseTPM(test.flag, test.file); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}
