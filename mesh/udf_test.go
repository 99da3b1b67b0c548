package mesh

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"
)

func TestUDFVectors(t *testing.T) {
	t.Parallel()
	type vector struct {
		Name        string
		Op, Hash    string
		Data        hexOctets
		ContentType string    `json:"content_type"`
		Typed       hexOctets `json:"typed_content_digest_value"`
		TypeID      int       `json:"type_id"`
		Bits        int       `json:"precision_bits"`
		UDF         string
		KeyString   string `json:"key_string"`
		MAC         hexOctets
		Alg         string
		Public      hexOctets
		DER         hexOctets `json:"keyinfo_der"`
		UDFOID      string    `json:"udf_oid"`
		Fingerprint string
		KeyUDF      string `json:"key_udf"`
		Key         hexOctets
		BDS         hexOctets
	}
	for _, v := range vectors[vector](t, "udf-encoding.json") {
		t.Run(v.Op+"/"+v.Name, func(t *testing.T) {
			t.Parallel()
			switch v.Op {
			case "content-digest":
				digest := map[string]func([]byte, string) []byte{"SHA-2-512": ContentDigest, "SHA-3-512": ContentDigestSHA3}[v.Hash]
				octets := digest(v.Data, v.ContentType)
				if v.Typed != nil {
					sameHex(t, "digest", octets[1:], v.Typed)
					same(t, "type", int(octets[0]), v.TypeID)
				}
				text, err := UDFTextBits(octets, v.Bits)
				if err != nil {
					t.Fatal(err)
				}
				same(t, "UDF", text, v.UDF)
			case "authenticator":
				octets, err := Authenticator(v.KeyString, v.Data, v.ContentType)
				if err != nil {
					t.Fatal(err)
				}
				sameHex(t, "MAC", octets[1:], v.MAC)
				text, err := UDFTextBits(octets, v.Bits)
				if err != nil {
					t.Fatal(err)
				}
				same(t, "UDF", text, v.UDF)
			case "oid+fingerprint":
				pub := parseKey(t, v.Alg, v.Public)
				der, err := KeyInfoDER(pub, G1)
				if err != nil {
					t.Fatal(err)
				}
				sameHex(t, "key info", der, v.DER)
				if v.UDFOID != "" {
					text, err := OIDUDF(pub)
					if err != nil {
						t.Fatal(err)
					}
					same(t, "OID UDF", text, v.UDFOID)
				}
				if v.Fingerprint != "" {
					text, err := Fingerprint(pub, G1)
					if err != nil {
						t.Fatal(err)
					}
					same(t, "fingerprint", text, v.Fingerprint)
				}
			case "symmetric-key-id":
				same(t, "key UDF", SymmetricKeyUDF(v.Key), v.KeyUDF)
				same(t, "key id", SymmetricKeyID(v.Key), v.UDF)
			case "mesh-message-id":
				text, err := UDFTextBits(ContentDigest(v.Data, v.ContentType), v.Bits)
				if err != nil {
					t.Fatal(err)
				}
				same(t, "UDF", text, v.UDF)
			case "parse":
				octets, err := ParseUDF(v.UDF)
				if err != nil {
					t.Fatal(err)
				}
				same(t, "type", int(octets[0]), v.TypeID)
				sameHex(t, "data", octets[1:], v.BDS)
			default:
				t.Fatalf("unknown operation %q", v.Op)
			}
		})
	}
}

// The values that mesh-udf-13 prints without type octet, put right.
func TestUDFErrata(t *testing.T) {
	t.Parallel()
	right := map[string]bool{}
	for _, e := range errata(t) {
		if e.Field == "key UDF" {
			right[string(e.Right)] = true
		}
	}
	if len(right) < 2 {
		t.Fatal("errata hold no key UDF")
	}
	for text := range right {
		text = strings.Trim(text, `"`)
		octets, err := ParseUDF(text)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "type", UDFType(octets[0]), UDFEncryption)
		same(t, "text", SymmetricKeyUDF(octets[1:]), text)
	}
	sameHex(t, "key", must(ParseUDF("EB3E-6QJF-VAP4-TBCR-BZDT-IMSJ-PLJA"))[1:],
		[]byte{0x76, 0x4F, 0x41, 0x25, 0xA8, 0x1F, 0xC9, 0x84, 0x51, 0x0E, 0x47, 0x34, 0x32, 0x49, 0x7A, 0xD2})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestParseUDFTolerates(t *testing.T) {
	t.Parallel()
	want := must(ParseUDF("ZAAA-GTKG-ED25-5XXK-EY"))
	for _, text := range []string{"ZAAA-GTKG-ED25-5XXK-EYX", "ZAAAGTKGED255XXKEY", "zaaa-gtkg-ed25-5xxk-ey", " Z AAA GTKG-ED25\t5XXK--EY "} {
		sameHex(t, text, must(ParseUDF(text)), want)
	}
}

func TestParseUDFRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "Z", "----", "ZAAA-0", "ZAAA-1", "ZAAA-8", "ZAAA-9", "ZAAA_GTKG", "ZAAA=", "ZAAÄ-GTKG", "ZAAA\nGTKG", "ZAAA\x00", "ZA[A", "ZA`A", "ZA{A", "ZA@A"} {
		if _, err := ParseUDF(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}

func TestBase32Characters(t *testing.T) {
	t.Parallel()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	for c := range 256 {
		want := strings.IndexByte(alphabet, byte(c))
		if c >= 'a' && c <= 'z' {
			want = c - 'a'
		}
		same(t, string(rune(c)), base32Value(byte(c)), want)
	}
	for v := range 32 {
		same(t, "character", base32Text([]byte{byte(v << 3)})[:1], alphabet[v:v+1])
	}
}

func TestCompressionLevels(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ zeros, level int }{{0, 0}, {19, 0}, {20, 1}, {29, 1}, {30, 2}, {39, 2}, {40, 3}, {47, 3}, {48, 3}, {49, 3}, {50, 4}, {63, 4}, {64, 4}, {512, 4}} {
		digest := bytes.Repeat([]byte{0xff}, 64)
		for i := range c.zeros {
			digest[63-i/8] &^= 1 << (i % 8)
		}
		same(t, "level", int(compressed(UDFDigestSHA2, digest)[0]), 96+c.level)
	}
}

func TestUDFTextBitsRange(t *testing.T) {
	t.Parallel()
	octets := ContentDigest(nil, "text/plain")
	for _, n := range []int{-1, 0, 95, 441} {
		if _, err := UDFTextBits(octets, n); err == nil {
			t.Errorf("%d bits are accepted", n)
		}
	}
	if _, err := UDFTextBits(octets[:16], 140); err == nil {
		t.Error("more bits than there are")
	}
	for n := MinUDFBits; n <= MaxUDFBits; n++ {
		text := strings.ReplaceAll(must(UDFTextBits(octets, n)), "-", "")
		same(t, "characters", len(text), (n+4)/5)
		if !strings.HasPrefix(base32Text(octets), text) {
			t.Errorf("%d bits are not a prefix", n)
		}
	}
}

func TestGenerateNonce(t *testing.T) {
	t.Parallel()
	text, err := GenerateNonce(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	octets := must(ParseUDF(text))
	same(t, "type", UDFType(octets[0]), UDFNonce)
	same(t, "length", len(octets), 17)
	if _, err := GenerateNonce(strings.NewReader("short")); err == nil {
		t.Error("a failing source is not noticed")
	}
}

func TestNormalizeKeyID(t *testing.T) {
	t.Parallel()
	const want = "MDDK7N6A727AJZNOSTRXXKS7DJAF"
	for _, id := range []string{"MDDK-7N6A-727A-JZNO-STRX-XKS7-DJAF", want, strings.ToLower(want), "mddk7n6a-727AJZNOSTRXXKS7DJAF"} {
		got, err := NormalizeKeyID(id)
		if err != nil {
			t.Fatal(err)
		}
		same(t, id, got, want)
	}
	for _, id := range []string{"", want[1:], want[:27] + "-", want + "0", want + " ", want + "ſ", strings.Repeat("A", 105)} {
		if _, err := NormalizeKeyID(id); err == nil {
			t.Errorf("%q is accepted", id)
		}
	}
}

func FuzzParseUDF(f *testing.F) {
	for _, s := range []string{"ZAAA-GTKG-ED25-5XXK-EYX", "ZAAA-ITKG-ED44-XKEY-2", "MDDK-7N6A-727A-JZNO-STRX-XKS7-DJAF", "a", "", "-", "Ab 2\t7"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		octets, err := ParseUDF(text)
		if err != nil {
			return
		}
		again, err := ParseUDF(UDFText(octets))
		if err != nil || !bytes.Equal(octets, again) {
			t.Fatalf("%q: %x becomes %x (%v)", text, octets, again, err)
		}
	})
}
