package mesh

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

type signatureExpectation struct {
	Kid    string
	Public string
	Valid  bool
	Signed hexOctets `json:"signed_bytes_hex"`
}

type envelopeExpectation struct {
	Digest     hexOctets `json:"payload_digest_hex"`
	Signatures []signatureExpectation
}

// check verifies an envelope as its fixture says, and that it is refused as soon as
// anything is altered.
func (x *envelopeExpectation) check(t *testing.T, e *Envelope, g Generation) {
	t.Helper()
	digest := e.Digest()
	sameHex(t, "digest", digest[:], x.Digest)
	same(t, "signatures", len(e.Trailer.Signatures), len(x.Signatures))
	for i, s := range x.Signatures {
		var public Binary
		if err := json.Unmarshal([]byte(`"`+s.Public+`"`), &public); err != nil {
			t.Fatal(err)
		}
		key := parseKey(t, "Ed448", public)
		same(t, "kid", e.Trailer.Signatures[i].KeyID, s.Kid)
		sameHex(t, "signed octets", must(e.Manifest(g)), s.Signed)
		by, err := e.Verify(randomPublic(t, token.Ed448), key)
		if (err == nil) != s.Valid || err == nil && (!by[0].Key.Equal(key) || by[0].Generation != g) {
			t.Errorf("signature by %s: %v, %v", s.Kid, by, err)
		}
		checkAlterations(t, e, key)
	}
}

func checkAlterations(t *testing.T, e *Envelope, key token.PublicKey) {
	t.Helper()
	if _, err := e.Verify(randomPublic(t, token.Ed448)); err != ErrSigner {
		t.Errorf("another key: %v", err)
	}
	altered := *e
	altered.Body = bytes.Clone(e.Body)
	altered.Body[0] ^= 1
	if _, err := altered.Verify(key); err != ErrPayloadDigest {
		t.Errorf("altered body: %v", err)
	}
	without := *e.Trailer
	without.PayloadDigest = nil
	altered.Trailer = &without
	if _, err := altered.Verify(key); err != ErrSignature {
		t.Errorf("altered body without digest: %v", err)
	}
	altered.Body = e.Body
	if _, err := altered.Verify(key); err != nil {
		t.Errorf("a trailer without digest, whose signature is good: %v", err)
	}
	altered.Trailer = &Trailer{}
	if _, err := altered.Verify(key); err != ErrNotSigned {
		t.Errorf("no signatures: %v", err)
	}
	altered.Trailer = nil
	if _, err := altered.Verify(key); err != ErrNotSigned {
		t.Errorf("no trailer: %v", err)
	}
	again := must(ParseEnvelope(must(e.Marshal())))
	if _, err := again.Verify(key); err != nil {
		t.Errorf("written and read: %v", err)
	}
}

func TestEnvelopeSignatureFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "profile-device-*.json") {
		f := load[struct {
			Generation string
			Input      struct{ Envelope json.RawMessage }
			Expect     struct{ Envelope envelopeExpectation }
		}](t, name)
		f.Expect.Envelope.check(t, must(ParseEnvelope(f.Input.Envelope)), must(ParseGeneration(f.Generation)))
	}
	for _, name := range fixtures(t, "connection-chain-*.json") {
		f := load[struct {
			Generation string
			Input      struct{ CatalogedDevice map[string]json.RawMessage }
			Expect     struct {
				Envelopes map[string]envelopeExpectation
			}
		}](t, name)
		if len(f.Expect.Envelopes) != 6 {
			t.Fatalf("%s: %d envelopes", name, len(f.Expect.Envelopes))
		}
		for member, x := range f.Expect.Envelopes {
			x.check(t, must(ParseEnvelope(f.Input.CatalogedDevice[member])), must(ParseGeneration(f.Generation)))
		}
	}
}

// softSigner signs with a key in memory.
type softSigner struct {
	key    *keyshare.SigningKey
	public token.PublicKey
	rsa    *rsa.PrivateKey
	spoil  bool
	err    error
}

func newSigner(t testing.TB, a token.Algorithm) *softSigner {
	t.Helper()
	if a == token.RSA2048 {
		key := must(rsa.GenerateKey(rand.Reader, 2048))
		return &softSigner{rsa: key, public: must(rsaPublic(&key.PublicKey))}
	}
	curve, _ := CurveOf(a)
	key := must(keyshare.NewCompositeSigningKey(must(keyshare.RandomScalar(curve, rand.Reader))))
	return &softSigner{key: key, public: token.PublicKey{Algorithm: a, Octets: key.Public().Bytes()}}
}

func (s *softSigner) Public() token.PublicKey { return s.public }

func (s *softSigner) Sign(_ context.Context, octets []byte) ([]byte, error) {
	if s.err != nil {
		return nil, s.err
	}
	if s.rsa != nil {
		req := must(SignRequest(s.public.Algorithm, octets))
		return rsa.SignPKCS1v15(rand.Reader, s.rsa, crypto.SHA512, must(req.Digest()))
	}
	out, err := s.key.Sign(rand.Reader, keyshare.ModeMesh, octets)
	if s.spoil {
		out[3] ^= 1
	}
	return out, err
}

func TestSignEnvelope(t *testing.T) {
	t.Parallel()
	for _, g := range []Generation{G1, G2} {
		for _, a := range []token.Algorithm{token.Ed448, token.Ed25519, token.RSA2048} {
			one, two := newSigner(t, a), newSigner(t, token.Ed448)
			made := &Envelope{Body: []byte(`{"Some":{}}`)}
			if err := (SignOptions{Generation: g, IncludeKey: true}).Sign(t.Context(), made, one, two); err != nil {
				t.Fatal(err)
			}
			e := must(ParseEnvelope(must(made.Marshal())))
			by, err := e.Verify(two.public, one.public)
			if err != nil || len(by) != 2 || !by[0].Key.Equal(one.public) || !by[1].Key.Equal(two.public) || by[0].Generation != g {
				t.Errorf("%v %s: %v, %v", g, a, by, err)
			}
			inline, err := e.SignerKeys()
			if err != nil || !inline[0].Equal(one.public) || !inline[1].Equal(two.public) {
				t.Errorf("%v %s: inline keys: %v", g, a, err)
			}
			e.Trailer.Signatures[1].Value[5] ^= 1
			if _, err := e.Verify(one.public, two.public); err != ErrSignature {
				t.Errorf("%v %s: one of two is bad: %v", g, a, err)
			}
			if by, err := e.Verify(one.public); err != nil || len(by) != 1 {
				t.Errorf("%v %s: a bad signature by a key that does not count: %v", g, a, err)
			}
		}
	}
}

func TestSignEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	fault := errors.New("device fell off")
	spoiled, failing := newSigner(t, token.Ed448), newSigner(t, token.Ed448)
	spoiled.spoil, failing.err = true, fault
	cannot := newSigner(t, token.Ed448)
	cannot.public = randomPublic(t, token.X448)
	for _, c := range []struct {
		name   string
		signer Signer
		g      Generation
		want   error
	}{
		{"wrong signature", spoiled, G1, token.ErrFault},
		{"failing signer", failing, G2, fault},
		{"no signature key", cannot, G2, token.ErrUnsupported},
	} {
		if err := (SignOptions{Generation: c.g}).Sign(t.Context(), &Envelope{}, c.signer); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := (SignOptions{Generation: 9}).Sign(t.Context(), &Envelope{}); err == nil {
		t.Error("generation 9 is accepted")
	}
}

// A signature of one generation does not pass under the name of the other.
func TestVerifyKeepsGenerationsApart(t *testing.T) {
	t.Parallel()
	signer := newSigner(t, token.Ed448)
	for _, g := range []Generation{G1, G2} {
		other, name := G2, "ED448"
		if g == G2 {
			other, name = G1, "S512"
		}
		e := &Envelope{Body: []byte("body")}
		if err := (SignOptions{Generation: g}).Sign(t.Context(), e, signer); err != nil {
			t.Fatal(err)
		}
		s := &e.Trailer.Signatures[0]
		s.Algorithm = name
		if _, err := e.Verify(signer.public); err != ErrSigner {
			t.Errorf("%v under the other algorithm: %v", g, err)
		}
		s.KeyID = must(Fingerprint(signer.public, other))
		if _, err := e.Verify(signer.public); err != ErrSignature {
			t.Errorf("%v under the other algorithm and kid: %v", g, err)
		}
		s.Algorithm = "ES256"
		s.KeyID = must(Fingerprint(signer.public, G2))
		if _, err := e.Verify(signer.public); err != ErrSignature {
			t.Errorf("%v under the name of another signature: %v", g, err)
		}
		s.Algorithm = "ML-DSA"
		if _, err := e.Verify(signer.public); err != ErrSigner {
			t.Errorf("%v under an unknown name: %v", g, err)
		}
		e.Header.Digest = "S256"
		if _, err := e.Verify(signer.public); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("another digest: %v", err)
		}
	}
}

func TestChainDigestIsSigned(t *testing.T) {
	t.Parallel()
	e := &Envelope{Body: []byte("frame"), Trailer: &Trailer{ChainDigest: Binary("chain")}}
	manifest := must(e.Manifest(G2))
	if !strings.HasPrefix(string(manifest), "\x80\x04S512\x88\x40") || !strings.HasSuffix(string(manifest), "\x88\x05chain") {
		t.Errorf("manifest %x", manifest)
	}
	if len(must(e.Manifest(G1))) != 64 {
		t.Error("a G1 manifest is not the digest")
	}
}

// The witnesses of published G1 envelopes, whose base seeds are known.
func TestWitnessFixtures(t *testing.T) {
	t.Parallel()
	for _, name := range fixtures(t, "activation-e2e-*.json") {
		f := load[struct {
			Input struct {
				Envelope json.RawMessage `json:"EnvelopedActivationDevice"`
			}
			Expect struct {
				Seed hexOctets `json:"activation_base_seed_hex"`
			}
		}](t, name)
		e := must(ParseEnvelope(f.Input.Envelope))
		if e.Trailer.Signatures[0].Witness == nil {
			t.Fatalf("%s has no witness", name)
		}
		if err := e.CheckWitness(f.Expect.Seed); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := e.CheckWitness(make([]byte, 32)); err != token.ErrDecrypt {
			t.Errorf("%s, another seed: %v", name, err)
		}
	}
}

func TestWitnessRoundTrip(t *testing.T) {
	t.Parallel()
	signer := newSigner(t, token.Ed448)
	for _, g := range []Generation{G1, G2} {
		e := must(Encrypt(rand.Reader, []byte("text"), "", randomPublic(t, token.X448)))
		seed := bytes.Repeat([]byte{7}, 32)
		if err := (SignOptions{Generation: g, BaseSeed: seed}).Sign(t.Context(), e, signer); err != nil {
			t.Fatal(err)
		}
		if err := e.CheckWitness(seed); err != nil {
			t.Error(err)
		}
		seed[0] ^= 1
		if err := e.CheckWitness(seed); err != token.ErrDecrypt {
			t.Errorf("%v, another seed: %v", g, err)
		}
		if (e.Trailer.WitnessValue != nil) != (g == G2) || (e.Trailer.Signatures[0].Witness != nil) != (g == G1) {
			t.Errorf("%v: the witness is in the wrong place", g)
		}
	}
}

func BenchmarkVerifyEnvelope(b *testing.B) {
	signer := newSigner(b, token.Ed448)
	e := &Envelope{Body: make([]byte, 2048)}
	if err := (SignOptions{Generation: G2}).Sign(b.Context(), e, signer); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Verify(signer.public); err != nil {
			b.Fatal(err)
		}
	}
}

// A key is named in its own generation, by 28 characters or more.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, a := range []token.Algorithm{token.X448, token.Ed25519, token.P256, token.RSA2048} {
		pub := newPublic(t, a)
		for _, g := range []Generation{G1, G2} {
			full := must(FullFingerprint(pub, g))
			for id, want := range map[string]bool{
				full: true, full[:28]: true, strings.ToLower(full[:60]): true, full[:27]: false, "": false, full + "A": false,
				full[:40] + string(otherCharacter(full[40])): false,
			} {
				if Names(id, pub, g) != want {
					t.Errorf("%s %v: %s", a, g, id)
				}
			}
			if cfrg := cfrgArc(a) != 0; cfrg == Names(full, pub, G1+G2-g) {
				t.Errorf("%s: the name in %v in the other generation", a, g)
			}
		}
		if a == token.RSA2048 { // the reference code of G2 leaves NULL out
			aliases := must(Aliases(pub))
			same(t, "without NULL, G2", Names(aliases[1], pub, G2), true)
			same(t, "without NULL, G1", Names(aliases[1], pub, G1), false)
		}
	}
}

func newPublic(t testing.TB, a token.Algorithm) token.PublicKey {
	t.Helper()
	if a.RSABits() != 0 {
		return newSigner(t, a).public
	}
	return randomPublic(t, a)
}

func otherCharacter(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}

// TestVerifyKnown has nobody say whose signature is wanted.
func TestVerifyKnown(t *testing.T) {
	t.Parallel()
	alice, bob := testSigner(t), testSigner(t)
	made := func(g Generation, include bool, signers ...Signer) *Envelope {
		e := must(NewEnvelope(t.Context(), []byte("hello"), EnvelopeOptions{Generation: g, Signers: signers, IncludeKey: include}))
		return e
	}
	for _, g := range []Generation{G1, G2} {
		for name, c := range map[string]struct {
			e     *Envelope
			spoil func(*Envelope)
			by    []token.PublicKey
			want  error
		}{
			"not signed":               {e: made(g, false)},
			"by the known":             {e: made(g, false, alice), by: []token.PublicKey{alice.Public()}},
			"by both":                  {e: made(g, false, bob, alice), by: []token.PublicKey{alice.Public()}},
			"by both, keys carried":    {e: made(g, true, bob, alice), by: []token.PublicKey{alice.Public()}},
			"by another":               {e: made(g, false, bob)},
			"by another, key carried":  {e: made(g, true, bob)},
			"known, altered":           {made(g, false, alice), func(e *Envelope) { e.Trailer.Signatures[0].Value[0] ^= 1 }, nil, ErrSignature},
			"carried, altered":         {made(g, true, bob), func(e *Envelope) { e.Trailer.Signatures[0].Value[0] ^= 1 }, nil, ErrSignature},
			"the other, altered":       {made(g, true, alice, bob), func(e *Envelope) { e.Trailer.Signatures[1].Value[0] ^= 1 }, nil, ErrSignature},
			"carried, of another name": {made(g, true, bob), func(e *Envelope) { e.Trailer.Signatures[0].KeyID = "MB2GX-H443" }, nil, ErrSigner},
			"carried, no key":          {made(g, true, bob), func(e *Envelope) { e.Trailer.Signatures[0].SignatureKey = &PublicParameters{} }, nil, token.ErrBadKey},
			"body":                     {made(g, false, bob), func(e *Envelope) { e.Body = []byte("hallo") }, nil, ErrPayloadDigest},
			"body, not signed":         {made(g, false), func(e *Envelope) { e.Trailer = &Trailer{PayloadDigest: make(Binary, 64)} }, nil, ErrPayloadDigest},
			"unknown digest":           {made(g, false), func(e *Envelope) { e.Header.Digest = "S256" }, nil, token.ErrUnsupported},
		} {
			if c.spoil != nil {
				c.spoil(c.e)
			}
			by, err := c.e.VerifyKnown(alice.Public())
			if !errors.Is(err, c.want) || len(by) != len(c.by) || len(by) == 1 && (!by[0].Key.Equal(c.by[0]) || by[0].Generation != g) {
				t.Errorf("%v, %s: %v, %v", g, name, by, err)
			}
		}
	}
}

func testSigner(t *testing.T) *LocalKey {
	t.Helper()
	seed := make([]byte, 57)
	rand.Read(seed)
	return must(NewLocalKey(&token.PrivateKey{Algorithm: token.Ed448, Seed: seed}))
}
