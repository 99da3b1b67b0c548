package mesh

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

func TestFingerprintVectors(t *testing.T) {
	t.Parallel()
	type vector struct {
		Alg, UDF, N string
		E           int
		Public      hexOctets
		DER         hexOctets `json:"keyinfo_der"`
		SPKI        hexOctets
	}
	for _, v := range vectors[vector](t, "udf-fingerprint.json") {
		t.Run(v.UDF, func(t *testing.T) {
			t.Parallel()
			var pub token.PublicKey
			if v.Alg == "RSA" {
				n, _ := new(big.Int).SetString(v.N, 16)
				pub = must(rsaPublic(&rsa.PublicKey{N: n, E: v.E}))
				v.DER = v.SPKI
			} else {
				pub = parseKey(t, v.Alg, v.Public)
			}
			if v.DER != nil {
				sameHex(t, "key info", must(KeyInfoDER(pub, G1)), v.DER)
			}
			checkFingerprint(t, pub, G1, v.UDF)
		})
	}
}

func checkFingerprint(t *testing.T, pub token.PublicKey, g Generation, want string) {
	t.Helper()
	got, err := Fingerprint(pub, g)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "fingerprint", got, want)
	full := must(FullFingerprint(pub, g))
	same(t, "full length", len(full), 104)
	if !strings.HasPrefix(full, must(NormalizeKeyID(want))) {
		t.Errorf("%s is no prefix of %s", want, full)
	}
	sameHex(t, "octets", must(ParseUDF(full)), must(FingerprintOctets(pub, g)))
}

func TestFingerprintFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "udf-keys-*.json") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := load[struct {
				Generation string
				Cases      []struct {
					Udf, Crv string
					Public   Binary
				}
			}](t, name)
			if len(f.Cases) == 0 {
				t.Fatal("no cases")
			}
			for _, c := range f.Cases {
				checkFingerprint(t, parseKey(t, c.Crv, c.Public), must(ParseGeneration(f.Generation)), c.Udf)
			}
		})
	}
}

func TestFingerprintOfStandardKeys(t *testing.T) {
	t.Parallel()
	for _, curve := range []keyshare.Curve{keyshare.P256, keyshare.P384, keyshare.P521} {
		pub := token.PublicKey{Algorithm: token.Algorithm(curve.String()), Octets: keyshare.BasePoint(curve).Bytes()}
		standard := must(x509.MarshalPKIXPublicKey(must(pub.Standard())))
		for _, g := range []Generation{G1, G2} {
			sameHex(t, curve.String(), must(KeyInfoDER(pub, g)), standard)
		}
	}
}

func TestFingerprintIgnoresX25519Sign(t *testing.T) {
	t.Parallel()
	p := must(keyshare.RandomScalar(keyshare.X25519, rand.Reader)).Public()
	a := token.PublicKey{Algorithm: token.X25519, Octets: p.Bytes()}
	b := token.PublicKey{Algorithm: token.X25519, Octets: p.Negate().Bytes()}
	same(t, "fingerprint", must(Fingerprint(a, G1)), must(Fingerprint(b, G1)))
}

func TestFingerprintRefuses(t *testing.T) {
	t.Parallel()
	for _, pub := range []token.PublicKey{
		{},
		{Algorithm: token.X25519, Octets: make([]byte, 32)},
		{Algorithm: token.X448, Octets: make([]byte, 56)},
		{Algorithm: token.Ed448, Octets: make([]byte, 56)},
		{Algorithm: token.P256, Octets: make([]byte, 65)},
		{Algorithm: token.RSA2048, Octets: []byte{0x30}},
		{Algorithm: "X", Octets: make([]byte, 32)},
	} {
		if _, err := Fingerprint(pub, G1); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s of %d octets: %v", pub.Algorithm, len(pub.Octets), err)
		}
	}
	if _, err := Fingerprint(token.PublicKey{Algorithm: token.Ed25519, Octets: make([]byte, 32)}, 0); err == nil {
		t.Error("generation 0 is accepted")
	}
	for _, s := range []string{"", "G1", "g3", "1"} {
		if _, err := ParseGeneration(s); err == nil {
			t.Errorf("generation %q is accepted", s)
		}
	}
	same(t, "names", G1.String()+G2.String(), "g1g2")
}

func BenchmarkFingerprint(b *testing.B) {
	pub := token.PublicKey{Algorithm: token.X448, Octets: keyshare.BasePoint(keyshare.X448).Bytes()}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Fingerprint(pub, G1); err != nil {
			b.Fatal(err)
		}
	}
}
