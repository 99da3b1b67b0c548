package mesh

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// agreement is epk times the scalar of a key.
func agreement(t testing.TB, key *token.PrivateKey, epk PublicParameters) *keyshare.Point {
	t.Helper()
	return must(keyshare.Agree(must(ScalarOf(key)), must(epk.Point())))
}

type unwrapFixture struct {
	Input struct {
		Envelope json.RawMessage
		Private  struct {
			Crv    string
			OKM    hexOctets `json:"okm_hex"`
			Scalar hexOctets `json:"scalar_le_hex"`
			Udf    string
		} `json:"recipient_private"`
	}
	Expect struct {
		Point     hexOctets `json:"shared_point_signed57_hex"`
		IKM       hexOctets `json:"ikm_u56_hex"`
		KEK       hexOctets `json:"kek_hex"`
		BaseSeed  hexOctets `json:"base_seed_hex"`
		Key       hexOctets `json:"content_key_hex"`
		IV        hexOctets `json:"iv_hex"`
		Plaintext string
		SHA256    hexOctets `json:"plaintext_sha256"`
	}
}

func TestUnwrapFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "dare-unwrap-*.json") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := load[unwrapFixture](t, name)
			e, err := ParseEnvelope(f.Input.Envelope)
			if err != nil {
				t.Fatal(err)
			}
			r := e.Header.Recipients[0]
			same(t, "recipient", r.KeyID, f.Input.Private.Udf)
			for _, key := range []*token.PrivateKey{
				{Algorithm: token.Algorithm(f.Input.Private.Crv), Seed: f.Input.Private.OKM},
				{Algorithm: token.Algorithm(f.Input.Private.Crv), Scalar: f.Input.Private.Scalar},
			} {
				p := agreement(t, key, r.EphemeralKey)
				sameHex(t, "point", p.Bytes(), f.Expect.Point)
				sameHex(t, "secret", p.SharedSecret(), f.Expect.IKM)
				sameHex(t, "KEK", must(keyEncryptionKey(p, "")), f.Expect.KEK)
				seed, err := UnwrapSeed(p, "", r.WrappedKey)
				if err != nil {
					t.Fatal(err)
				}
				sameHex(t, "base seed", seed, f.Expect.BaseSeed)
			}
			checkContent(t, e, &f)
		})
	}
}

func checkContent(t *testing.T, e *Envelope, f *unwrapFixture) {
	t.Helper()
	key, iv, err := ContentKeys(f.Expect.BaseSeed, e.Header.Salt, e.Header.Encryption)
	if err != nil {
		t.Fatal(err)
	}
	sameHex(t, "content key", key, f.Expect.Key)
	sameHex(t, "IV", iv, f.Expect.IV)
	plaintext, err := e.Open(f.Expect.BaseSeed)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "plaintext", string(plaintext), f.Expect.Plaintext)
	digest := sha256.Sum256(plaintext)
	sameHex(t, "digest", digest[:], f.Expect.SHA256)
	// The JSON form keeps all.
	again, err := ParseEnvelope(must(e.Marshal()))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "kid", again.Header.KeyID, e.Header.KeyID)
	if p, err := again.Open(f.Expect.BaseSeed); err != nil || !bytes.Equal(p, plaintext) {
		t.Errorf("marshalled envelope: %v", err)
	}
}

func TestKeyAgreementVectors(t *testing.T) {
	t.Parallel()
	type vector struct {
		Source, Alg   string
		RecipientSeed string    `json:"recipient_seed"`
		KeyName       string    `json:"recipient_keyname"`
		PrivateSeed   hexOctets `json:"private_seed"`
		EPK, IKM, KEK hexOctets
		Info          string `json:"hkdf_info"`
		Wrapped       hexOctets
		Unwrapped     hexOctets
		Decrypts      bool      `json:"payload_decrypts"`
		Salt          hexOctets `json:"payload_salt"`
		Ciphertext    hexOctets `json:"payload_ciphertext"`
	}
	for _, v := range vectors[vector](t, "key-agreement-dare.json") {
		t.Run(v.Source, func(t *testing.T) {
			t.Parallel()
			crv, _, _ := strings.Cut(v.Alg, " ")
			key := &token.PrivateKey{Algorithm: token.Algorithm(crv), Seed: v.PrivateSeed}
			if v.RecipientSeed != "" {
				key = must(mustSeed(t, v.RecipientSeed).Derive(Derivation{Algorithm: token.Algorithm(crv), KeyName: v.KeyName}))
			}
			p := agreement(t, key, PublicParameters{PublicKeyECDH: &PublicKeyECDH{Curve: crv, Public: Binary(v.EPK)}})
			sameHex(t, "secret", p.SharedSecret(), v.IKM)
			sameHex(t, "KEK", must(keyEncryptionKey(p, v.Info)), v.KEK)
			seed, err := UnwrapSeed(p, v.Info, v.Wrapped)
			if err != nil {
				t.Fatal(err)
			}
			sameHex(t, "seed", seed, v.Unwrapped)
			if _, err := UnwrapSeed(p, v.Info+"x", v.Wrapped); err != token.ErrDecrypt {
				t.Errorf("another info: %v", err)
			}
			if v.Ciphertext == nil {
				return
			}
			e := Envelope{Header: Header{Encryption: A256CBC, Salt: Binary(v.Salt)}, Body: v.Ciphertext}
			if _, err := e.Open(seed); (err == nil) != v.Decrypts {
				t.Errorf("payload: %v", err)
			}
		})
	}
}

// An EdDSA key of the Mesh signs the digest of a payload, as a message.
func TestDARESignatures(t *testing.T) {
	t.Parallel()
	type vector struct {
		Alg, KeyName string
		SeedUDF      string    `json:"seed_udf"`
		PrivateSeed  hexOctets `json:"private_seed"`
		Public       hexOctets
		Signed       hexOctets `json:"signed_octets"`
		Signature    hexOctets
	}
	for _, v := range vectors[vector](t, "eddsa-dare-sign.json") {
		curve, _ := CurveOf(token.Algorithm(v.Alg))
		if v.SeedUDF != "" {
			key := must(mustSeed(t, v.SeedUDF).Derive(Derivation{Algorithm: token.Algorithm(v.Alg), KeyName: v.KeyName}))
			sameHex(t, "seed", key.Seed, v.PrivateSeed)
		}
		key := must(keyshare.NewSigningKey(curve, v.PrivateSeed))
		sameHex(t, "public", key.Public().Bytes(), v.Public)
		sameHex(t, "signature", must(key.Sign(rand.Reader, keyshare.ModeMesh, v.Signed)), v.Signature)
	}
}

func TestPublishedEnvelopesParse(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "profile-device-*.json") {
		f := load[struct {
			Input struct{ Envelope json.RawMessage }
		}](t, name)
		e, err := ParseEnvelope(f.Input.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.payloadDigest(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		same(t, name, e.Header.ContentType(), "application/mmm/object")
		if len(e.Trailer.Signatures) != 1 {
			t.Errorf("%s: the trailer is lost", name)
		}
		if _, err := e.Open(make([]byte, 32)); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("%s: not encrypted: %v", name, err)
		}
		e.Body[0] ^= 1
		if _, err := e.payloadDigest(); err != ErrPayloadDigest {
			t.Errorf("%s: altered body: %v", name, err)
		}
	}
}

func TestEncrypt(t *testing.T) {
	t.Parallel()
	var keys []*token.PrivateKey
	var recipients []token.PublicKey
	for _, a := range curveAlgorithms {
		curve, _ := CurveOf(a)
		key := &token.PrivateKey{Algorithm: a, Scalar: must(keyshare.RandomScalar(curve, rand.Reader)).Bytes()}
		keys, recipients = append(keys, key), append(recipients, must(PublicOf(key)))
	}
	for _, enc := range []string{"", A256CBC, A256GCM} {
		for _, n := range []int{0, 1, 15, 16, 17, 1000} {
			t.Run(fmt.Sprintf("%s/%d", enc, n), func(t *testing.T) {
				t.Parallel()
				plaintext := bytes.Repeat([]byte{7}, n)
				made, err := EncryptOptions{Encryption: enc, ContentType: "text/plain"}.Encrypt(rand.Reader, plaintext, recipients...)
				if err != nil {
					t.Fatal(err)
				}
				e := must(ParseEnvelope(must(made.Marshal())))
				same(t, "content type", e.Header.ContentType(), "text/plain")
				for i, r := range e.Header.Recipients {
					same(t, "recipient", r.KeyID, must(Fingerprint(recipients[i], G1)))
					seed, err := UnwrapSeed(agreement(t, keys[i], r.EphemeralKey), "", r.WrappedKey)
					if err != nil {
						t.Fatalf("%s: %v", keys[i].Algorithm, err)
					}
					got, err := e.Open(seed)
					if err != nil || !bytes.Equal(got, plaintext) {
						t.Errorf("%s: %v", keys[i].Algorithm, err)
					}
				}
			})
		}
	}
}

func TestEncryptRefuses(t *testing.T) {
	t.Parallel()
	good := randomPublic(t, token.X448)
	for _, c := range []struct {
		name       string
		enc        string
		recipients []token.PublicKey
		want       error
	}{
		{"no recipient", "", nil, token.ErrBadRequest},
		{"RSA recipient", "", []token.PublicKey{{Algorithm: token.RSA2048}}, token.ErrUnsupported},
		{"unknown encryption", "A128CBC", []token.PublicKey{good}, token.ErrUnsupported},
		{"bad point", "", []token.PublicKey{good, {Algorithm: token.X448, Octets: make([]byte, 57)}}, keyshare.ErrLowOrder},
	} {
		if _, err := (EncryptOptions{Encryption: c.enc}).Encrypt(rand.Reader, nil, c.recipients...); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := Encrypt(strings.NewReader("short"), nil, "", good); err == nil {
		t.Error("a failing source is not noticed")
	}
}

// Whatever is wrong with a ciphertext, there is one error.
func TestOpenHasOneError(t *testing.T) {
	t.Parallel()
	pub := randomPublic(t, token.X25519)
	for _, enc := range []string{A256CBC, A256GCM} {
		e := must(EncryptOptions{Encryption: enc}.Encrypt(rand.Reader, []byte("sixteen octets..and more"), pub))
		for _, seed := range [][]byte{nil, make([]byte, 31), make([]byte, 33)} {
			if _, err := e.Open(seed); err != token.ErrDecrypt {
				t.Errorf("%s: seed of %d octets: %v", enc, len(seed), err)
			}
		}
		for _, n := range []int{0, 1, 15, 17, len(e.Body) - 1} {
			short := Envelope{Header: e.Header, Body: e.Body[:n]}
			if _, err := short.Open(make([]byte, 32)); err != token.ErrDecrypt {
				t.Errorf("%s: body of %d octets: %v", enc, n, err)
			}
		}
	}
	e := must(Encrypt(rand.Reader, []byte("text"), "", pub))
	e.Trailer = &Trailer{PayloadDigest: Binary{0, 0, 0}}
	if _, err := e.Open(make([]byte, 32)); err != token.ErrDecrypt {
		t.Errorf("wrong digest: %v", err)
	}
	e.Header.Digest = "S256"
	if _, err := e.Open(make([]byte, 32)); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("unknown digest: %v", err)
	}
}

func TestPadding(t *testing.T) {
	t.Parallel()
	block := must(aes.NewCipher(make([]byte, 32)))
	iv := make([]byte, 16)
	seal := func(last ...byte) []byte { // a block with these octets at its end
		plain := append(bytes.Repeat([]byte{9}, 32-len(last)), last...)
		padded := sealCBC(block, iv, plain)
		return padded[:32]
	}
	for _, c := range []struct {
		last []byte
		n    int // octets that remain, -1 for an error
	}{
		{[]byte{1}, 31}, {[]byte{2, 2}, 30}, {bytes.Repeat([]byte{16}, 16), 16}, {bytes.Repeat([]byte{9}, 9), 23},
		{[]byte{0}, -1}, {[]byte{2}, -1}, {[]byte{3, 2, 3}, -1}, {bytes.Repeat([]byte{17}, 17), -1}, {[]byte{255}, -1},
		{append([]byte{15}, bytes.Repeat([]byte{16}, 15)...), -1},
	} {
		got, err := openCBC(block, iv, seal(c.last...), unpad)
		if (err == nil) != (c.n >= 0) || err == nil && len(got) != c.n {
			t.Errorf("%x: %d octets, %v", c.last, len(got), err)
		}
		want := c.n
		if want < 0 {
			want = 32 // all of it, with the padding
		}
		if got, err := openCBC(block, iv, seal(c.last...), unpadIfGood); err != nil || len(got) != want {
			t.Errorf("%x, to be parsed: %d octets, %v", c.last, len(got), err)
		}
	}
}

func TestParseEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		``, `{}`, `[]`, `[{}]`, `[{},""`, `[{},"",{},{}]`, `[{},"",{}] x`, `[null,""]`, `["",""]`, `[{},null]`, `[{},1]`, `[{},"A"]`, `[{},"AA=="]`,
		`[{},"",null]`, `[{},"",[]]`, `[{"enc":1},""]`, `[{"enc":"A256CBC","enc":"A256CBC"},""]`, `[{"Salt":"!"},""]`, `[{"recipients":{}},""]`,
		`[{"recipients":[{"epk":{"PublicKeyECDH":{"crv":"X448","Public":"AA","Extra":1}}}]},""]`,
	} {
		if _, err := ParseEnvelope([]byte(text)); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
	e, err := ParseEnvelope([]byte("[{\"Future\":{\"a\":1},\"Salt\":\"AA\n  AA\",\"recipients\":[{\"rtk\":2}]},\"\",{\"x\":[]}]"))
	if err != nil {
		t.Fatal(err)
	}
	sameHex(t, "salt", e.Header.Salt, []byte{0, 0, 0})
	for _, part := range []string{`"Future":{"a":1}`, `"rtk":2`, `"x":[]`} {
		if !strings.Contains(string(must(e.Marshal())), part) {
			t.Errorf("%s is lost: %s", part, must(e.Marshal()))
		}
	}
}

func TestEncryptShare(t *testing.T) {
	t.Parallel()
	recipient := &token.PrivateKey{Algorithm: token.X25519, Seed: bytes.Repeat([]byte{5}, 32)}
	for _, a := range curveAlgorithms {
		curve, _ := CurveOf(a)
		s := must(keyshare.RandomScalar(curve, rand.Reader))
		e, err := EncryptShare(rand.Reader, a, token.Share{X: 1, Scalar: s.Bytes()}, must(PublicOf(recipient)))
		if err != nil {
			t.Fatal(err)
		}
		same(t, "content type", e.Header.ContentType(), ContentTypeKeyData)
		r := e.Header.Recipients[0]
		seed := must(UnwrapSeed(agreement(t, recipient, r.EphemeralKey), "", r.WrappedKey))
		key := must(must(ParseKeyData(must(e.Open(seed)))).PrivateParameters.PrivateKey())
		same(t, "algorithm", key.Algorithm, a)
		sameHex(t, "scalar", key.Scalar, s.Bytes())
	}
}

// RFC 3394, Sections 4.3 and 4.6, and the other lengths against a round trip.
func TestKeyWrap(t *testing.T) {
	t.Parallel()
	kek := must(hexText("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"))
	for _, c := range []struct{ key, wrapped string }{
		{"00112233445566778899AABBCCDDEEFF", "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7"},
		{"00112233445566778899AABBCCDDEEFF0001020304050607", "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1"},
		{"00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F", "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"},
	} {
		key, wrapped := must(hexText(c.key)), must(hexText(c.wrapped))
		sameHex(t, "wrapped", must(wrapKey(kek, key)), wrapped)
		got, ok := unwrapKey(kek, wrapped)
		same(t, "integrity", ok, true)
		sameHex(t, "unwrapped", got, key)
		for i := range wrapped {
			altered := slices.Clone(wrapped)
			altered[i] ^= 0x10
			if _, ok := unwrapKey(kek, altered); ok {
				t.Errorf("octet %d altered is accepted", i)
			}
		}
	}
	for n := range 24 {
		if _, ok := unwrapKey(kek, make([]byte, n)); ok {
			t.Errorf("%d octets are accepted", n)
		}
		if _, err := wrapKey(kek, make([]byte, n)); (err == nil) != (n == 16) {
			t.Errorf("wrap %d octets: %v", n, err)
		}
	}
	if _, err := wrapKey(make([]byte, 5), make([]byte, 16)); err == nil {
		t.Error("an AES key of 5 octets is accepted")
	}
}

func hexText(s string) ([]byte, error) {
	var h hexOctets
	err := h.UnmarshalText([]byte(s))
	return h, err
}

func FuzzParseEnvelope(f *testing.F) {
	// Published headers with short bodies: long inputs would be minimised for a minute each.
	for _, name := range fixtures(f, "dare-unwrap-*.json") {
		e := must(ParseEnvelope(load[unwrapFixture](f, name).Input.Envelope))
		e.Body = e.Body[:aes.BlockSize]
		f.Add(must(e.Marshal()))
	}
	f.Add([]byte(`[{"Future":{},"Salt":"AA","recipients":[{}]},"",{"PayloadDigest":"AAAA"}]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEnvelope(data)
		if err != nil {
			return
		}
		out, err := e.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseEnvelope(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if second := must(again.Marshal()); !bytes.Equal(out, second) {
			t.Fatalf("%s becomes %s", out, second)
		}
		if _, err := e.Open(make([]byte, 32)); err == nil && len(e.Body) == 0 {
			t.Fatal("nothing opens")
		}
		_ = e.Header.ContentType()
	})
}

func BenchmarkUnwrapSeed(b *testing.B) {
	f := load[unwrapFixture](b, fixtures(b, "dare-unwrap-*.json")[0])
	r := must(ParseEnvelope(f.Input.Envelope)).Header.Recipients[0]
	p := must(keyshare.ParsePoint(keyshare.X448, f.Expect.Point))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := UnwrapSeed(p, "", r.WrappedKey); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	f := load[unwrapFixture](b, fixtures(b, "dare-unwrap-*.json")[0])
	e := must(ParseEnvelope(f.Input.Envelope))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Open(f.Expect.BaseSeed); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncrypt(b *testing.B) {
	pub := randomPublic(b, token.X448)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Encrypt(rand.Reader, make([]byte, 1024), "", pub); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseEnvelope(b *testing.B) {
	f := load[unwrapFixture](b, fixtures(b, "dare-unwrap-*.json")[0])
	b.SetBytes(int64(len(f.Input.Envelope)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseEnvelope(f.Input.Envelope); err != nil {
			b.Fatal(err)
		}
	}
}

// TestBadPaddingIsParsed has a text that nobody signed cost the same whether its padding or the text itself is wrong:
// both get to what parses it.
func TestBadPaddingIsParsed(t *testing.T) {
	t.Parallel()
	key := must(NewLocalKey(&token.PrivateKey{Algorithm: token.X448, Scalar: must(keyshare.RandomScalar(keyshare.X448, rand.Reader)).Bytes()}))
	e := must(Encrypt(rand.Reader, bytes.Repeat([]byte("text "), 20), "", key.Public()))
	same(t, "good", len(must(e.DecryptToParse(t.Context(), key))), 100)
	e.Body[len(e.Body)-17] ^= 0x80
	if got, err := e.DecryptToParse(t.Context(), key); err != nil || len(got) != len(e.Body) {
		t.Errorf("bad padding: %d octets, %v", len(got), err)
	}
	if _, err := e.Decrypt(t.Context(), key); err != token.ErrDecrypt {
		t.Errorf("bad padding: %v", err)
	}
	e.Body = e.Body[:len(e.Body)-1]
	if _, err := e.DecryptToParse(t.Context(), key); err != token.ErrDecrypt {
		t.Errorf("half a block: %v", err)
	}
}
