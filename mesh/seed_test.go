package mesh

import (
	"bytes"
	"crypto/rand"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

type erratum struct {
	Where, Field string
	Right        json.RawMessage
}

func errata(t testing.TB) []erratum {
	t.Helper()
	entries := load[struct{ Entries []erratum }](t, "errata-values.json").Entries
	if len(entries) == 0 {
		t.Fatal("no errata")
	}
	return entries
}

// erratumOf returns the right value of one entry.
func erratumOf[T any](t testing.TB, field string) T {
	t.Helper()
	for _, e := range errata(t) {
		if strings.HasPrefix(e.Field, field) {
			var v T
			if err := json.Unmarshal(e.Right, &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no erratum for %q", field)
	panic("unreachable")
}

func TestDeriveVectors(t *testing.T) {
	t.Parallel()
	type vector struct {
		UDF, Alg, KeyName, Fingerprint string
		OKM, Public                    hexOctets
		Scalar                         string
	}
	for _, v := range vectors[vector](t, "udf-derive.json") {
		t.Run(v.UDF+"/"+v.KeyName, func(t *testing.T) {
			t.Parallel()
			key, err := mustSeed(t, v.UDF).Derive(Derivation{Algorithm: token.Algorithm(v.Alg), KeyName: v.KeyName})
			if err != nil {
				t.Fatal(err)
			}
			sameHex(t, "seed", key.Seed, v.OKM)
			same(t, "scalar", clamped(t, key), v.Scalar)
			pub, err := PublicOf(key)
			if err != nil {
				t.Fatal(err)
			}
			sameHex(t, "public key", pub.Octets[:len(v.Public)], v.Public)
			same(t, "fingerprint", must(Fingerprint(pub, G1)), v.Fingerprint)
		})
	}
}

// clamped returns the secret scalar of an RFC 7748 or RFC 8032 key before reduction.
func clamped(t *testing.T, key *token.PrivateKey) string {
	t.Helper()
	k := slices.Clone(key.Seed)
	switch key.Algorithm {
	case token.Ed25519:
		h := sha512.Sum512(k)
		k = h[:32]
	case token.Ed448:
		k = sha3.SumSHAKE256(k, 114)[:56]
	}
	if len(k) == 32 {
		k[0], k[31] = k[0]&0xf8, k[31]&0x7f|0x40
	} else {
		k[0], k[55] = k[0]&0xfc, k[55]|0x80
	}
	slices.Reverse(k)
	return new(big.Int).SetBytes(k).String()
}

// The documentation-only derivation is not used; its seeds give these values by the rule in use.
func TestDeriveLegacyExamples(t *testing.T) {
	t.Parallel()
	type vector struct {
		UDF, Alg, Info string
		OKM            hexOctets `json:"okm_under_production_rule"`
	}
	checked := 0
	for _, v := range vectors[vector](t, "udf-derive-legacy-doc-examples.json") {
		if v.OKM == nil {
			continue
		}
		checked++
		key, err := mustSeed(t, v.UDF).Derive(Derivation{})
		if err != nil {
			t.Fatal(err)
		}
		same(t, v.UDF, string(key.Algorithm), v.Alg)
		curve, _ := CurveOf(key.Algorithm)
		if !curve.IsNIST() {
			sameHex(t, v.UDF, key.Seed, v.OKM)
			continue
		}
		sameHex(t, v.UDF, key.Scalar, must(keyshare.DeriveNIST(curve, v.OKM)).Bytes())
	}
	if checked == 0 {
		t.Fatal("no example has a value")
	}
}

func TestDeriveErrata(t *testing.T) {
	t.Parallel()
	t.Run("NIST", func(t *testing.T) {
		t.Parallel()
		for alg, text := range map[string]string{
			"P256": "ZAAA-LLBO-4A4E-LFMH-EJ73-XVFG-7PZ5-V7Y",
			"P384": "ZAAA-NPLI-G7Z3-WFD2-GBJ6-OONN-ELTO-MHA",
			"P521": "ZAAA-PQCC-YFVT-LRWP-7MUZ-GJV3-HLX2-JPQ",
		} {
			right := erratumOf[map[string]string](t, alg+" private key")
			key, err := mustSeed(t, text).Derive(Derivation{})
			if err != nil {
				t.Fatal(err)
			}
			same(t, alg, new(big.Int).SetBytes(key.Scalar).String(), right["production_hkdf_group_order"])
		}
	})
	t.Run("RSA", func(t *testing.T) {
		t.Parallel()
		key, err := mustSeed(t, "ZAAA-RJ5I-OSMI-X2KH-MBHX-KUPB-OC54-NQI").Derive(Derivation{Algorithm: token.RSA2048})
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{"p", "q"} {
			right := erratumOf[map[string]string](t, "RSA-2048 "+name)
			same(t, name, key.RSA.Primes[i].String(), right["production_hkdf_L1024"])
		}
		pub := must(PublicOf(key))
		same(t, "algorithm", pub.Algorithm, token.RSA2048)
		g1, g2 := must(Fingerprint(pub, G1)), must(Fingerprint(pub, G2))
		same(t, "G2 fingerprint", g2, g1)
	})
}

type baseKey struct {
	KeyName, Crv string
	OKM          hexOctets `json:"okm_hex"`
	Public       Binary
	Udf          string
}

func (k baseKey) check(t *testing.T, seed *Seed, g Generation) {
	t.Helper()
	key, err := seed.Derive(Derivation{Algorithm: token.Algorithm(k.Crv), KeyName: k.KeyName, Generation: g})
	if err != nil {
		t.Fatal(err)
	}
	sameHex(t, k.KeyName, key.Seed, k.OKM)
	pub, err := PublicOf(key)
	if err != nil {
		t.Fatal(err)
	}
	sameHex(t, k.KeyName+" public", pub.Octets, k.Public)
	same(t, k.KeyName+" UDF", must(Fingerprint(pub, g)), k.Udf)
}

func TestProfileDeviceKeys(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "profile-device-*.json") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := load[struct {
				Generation string
				Input      struct{ Seed string }
				Expect     struct{ Keys map[string]baseKey }
			}](t, name)
			if len(f.Expect.Keys) != 4 {
				t.Fatalf("%d keys", len(f.Expect.Keys))
			}
			for _, k := range f.Expect.Keys {
				k.check(t, mustSeed(t, f.Input.Seed), must(ParseGeneration(f.Generation)))
			}
		})
	}
}

func TestAccountEscrow(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "account-escrow-*.json") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := load[struct {
				Generation string
				Input      struct{ Shares []string }
				Expect     struct {
					Recovered hexOctets `json:"recovered_hex"`
					SeedUDF   string    `json:"seed_udf"`
					Keys      map[string]baseKey
				}
			}](t, name)
			secret, err := RecoverSecret(f.Input.Shares...)
			if err != nil {
				t.Fatal(err)
			}
			sameHex(t, "secret", secret, f.Expect.Recovered)
			seed, err := ParseSeedOctets(secret)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "seed", seed.Text(), f.Expect.SeedUDF)
			if len(f.Expect.Keys) == 0 {
				t.Fatal("no keys")
			}
			for _, k := range f.Expect.Keys {
				k.check(t, seed, must(ParseGeneration(f.Generation)))
			}
		})
	}
}

func TestConnectionPIN(t *testing.T) {
	t.Parallel()
	type vector struct {
		SeedUDF string `json:"seed_udf"`
		Account string
		Length  int    `json:"length_octets"`
		PIN     string `json:"pin_udf"`
	}
	for _, v := range vectors[vector](t, "seed-connect-pin.json") {
		pin, err := mustSeed(t, v.SeedUDF).ConnectionPIN(v.Account, v.Length)
		if err != nil {
			t.Fatal(err)
		}
		same(t, v.SeedUDF, pin, v.PIN)
	}
}

func seedText(id uint16, secret string) string {
	return UDFText(append([]byte{200, byte(id >> 8), byte(id)}, secret...))
}

func TestParseSeedRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text string }{
		{"no secret", seedText(1, "")},
		{"half a specifier", UDFText([]byte{200, 0})},
		{"nonce", "ND5L-Y3E6-GDDZ-KICR-NPDL-5WWM-4QSA"},
		{"reserved 11", seedText(11, "secret")},
		{"reserved 255", seedText(255, "secret")},
		{"reserved 262", seedText(262, "secret")},
		{"reserved 511", seedText(511, "secret")},
		{"encryption bit", seedText(0x4001, "secret")},
		{"signature bit", seedText(0x8001, "secret")},
		{"authentication bits", seedText(0xc001, "secret")},
		{"empty", ""},
		{"alphabet", "ZAAA-0000"},
	} {
		if _, err := ParseSeed(c.text); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestSeedAlgorithm(t *testing.T) {
	t.Parallel()
	for i, a := range token.Algorithms() {
		s := mustSeed(t, seedText(uint16(i+1), "s"))
		got, ok := s.ID().Algorithm()
		same(t, "algorithm", got, a)
		same(t, "fixed", ok, true)
		same(t, "id", SeedIDOf(a), s.ID())
		other := token.Algorithms()[(i+1)%10]
		if _, err := s.Derive(Derivation{Algorithm: other}); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s seed derives %s: %v", a, other, err)
		}
	}
	for _, id := range []uint16{0, 256, 257, 258, 259, 260, 261, 512, 0x3fff} {
		s := mustSeed(t, seedText(id, "s"))
		if _, err := s.Derive(Derivation{KeyName: "BaseDeviceSign"}); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("id %d: an algorithm is guessed: %v", id, err)
		}
		if _, err := s.Derive(Derivation{Algorithm: token.Ed448}); err != nil {
			t.Errorf("id %d: %v", id, err)
		}
		if _, err := s.Derive(Derivation{Algorithm: "X44"}); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("id %d: unknown algorithm: %v", id, err)
		}
		if _, err := s.Derive(Derivation{Algorithm: token.X448, Generation: 3}); err == nil {
			t.Errorf("id %d: unknown generation", id)
		}
	}
}

// A zero octet in front is what recovery may leave among octets; as text it is another UDF.
func TestSeedLeadingZero(t *testing.T) {
	t.Parallel()
	octets := append([]byte{0}, mustSeed(t, seedText(2, "sixteen octets!!")).Octets()...)
	if _, err := ParseSeedOctets(octets); err != nil {
		t.Error(err)
	}
	if _, err := ParseSeed(UDFText(octets)); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("read as a seed: %v", err)
	}
}

// A seed that fixes its algorithm derives the same in both generations, a generic one does not.
func TestDeriveGenerations(t *testing.T) {
	t.Parallel()
	for _, a := range []token.Algorithm{token.X25519, token.X448, token.Ed25519, token.Ed448, token.P256, token.P384, token.P521} {
		for _, id := range []SeedID{SeedIDOf(a), SeedProfileDevice} {
			s := mustSeed(t, seedText(uint16(id), "sixteen octets!!"))
			g1 := must(PublicOf(must(s.Derive(Derivation{Algorithm: a, Generation: G1}))))
			g2 := must(PublicOf(must(s.Derive(Derivation{Algorithm: a, Generation: G2}))))
			same(t, fmt.Sprintf("%s from %d", a, id), g1.Equal(g2), id != SeedProfileDevice)
		}
	}
}

func TestGenerateSeed(t *testing.T) {
	t.Parallel()
	s, err := GenerateSeed(rand.Reader, SeedProfileDevice)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "secret octets", s.SecretLen(), 32)
	again := mustSeed(t, s.Text())
	same(t, "text", again.Text(), s.Text())
	if !strings.HasPrefix(s.Text(), "ZAAQ-") {
		t.Error("a device seed begins ZAAQ")
	}
	same(t, "printed", fmt.Sprintf("%v %+v %#v %s", s, s, s, s), "[redacted] [redacted] [redacted] [redacted]")
	if !strings.HasPrefix(s.OpaqueID(), "M") || len(s.OpaqueID()) != 34 {
		t.Errorf("opaque id %s", s.OpaqueID())
	}
	if _, err := GenerateSeed(rand.Reader, 11); err == nil {
		t.Error("reserved identifier")
	}
	s.Wipe()
	same(t, "wiped", strings.Trim(string(s.octets), "\x00"), "")
}

// nextPrime against a search without sieve.
func TestMixRandom(t *testing.T) {
	t.Parallel()
	a, b := []byte{1, 2, 3, 4}, []byte{16, 32, 48, 64}
	got := make([]byte, 4)
	if _, err := MixRandom(bytes.NewReader(a), bytes.NewReader(b)).Read(got); err != nil || !bytes.Equal(got, []byte{17, 34, 51, 68}) {
		t.Errorf("%v, %v", got, err)
	}
	for name, r := range map[string]io.Reader{"none": MixRandom(), "one fails": MixRandom(bytes.NewReader(a), bytes.NewReader(b[:3]))} {
		if n, err := r.Read(got); err == nil || n != 0 {
			t.Errorf("%s: %d octets, %v", name, n, err)
		}
	}
	seed := must(GenerateSeed(MixRandom(rand.Reader, rand.Reader), SeedProfileDevice))
	same(t, "secret", seed.SecretLen(), 32)
}

func TestNextPrime(t *testing.T) {
	t.Parallel()
	for i := range 40 {
		x := new(big.Int).Lsh(big.NewInt(1), 64)
		x.Add(x, big.NewInt(int64(i*i*7919)))
		want := new(big.Int).Add(x, big.NewInt(1))
		for !want.ProbablyPrime(20) {
			want.Add(want, big.NewInt(1))
		}
		same(t, x.String(), nextPrime(x).String(), want.String())
	}
}

func FuzzParseSeed(f *testing.F) {
	for _, s := range []string{"ZAAA-GTKG-ED25-5XXK-EYX", seedText(0x100, "secret"), seedText(11, "s"), seedText(0x8001, "s"), "N", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSeed(text)
		if err != nil {
			return
		}
		again, err := ParseSeed(s.Text())
		if err != nil || again.Text() != s.Text() {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

func BenchmarkDerive(b *testing.B) {
	s := mustSeed(b, seedText(0x100, "a secret of thirty-two octets...."))
	for _, a := range []token.Algorithm{token.X25519, token.X448, token.Ed448, token.P256, token.P521, token.RSA2048} {
		b.Run(string(a), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Derive(Derivation{Algorithm: a}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
