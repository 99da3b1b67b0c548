package mesh

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/token"
)

// unknownKey is a public key of a kind of the future.
func unknownKey(t *testing.T) PublicParameters {
	t.Helper()
	var p PublicParameters
	if err := strictjson.Unmarshal([]byte(`{"PublicKeyMLKEM":{"alg":"MLKEM1024","Public":"AAAA"}}`), &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestUnknownKinds has recipients and signers with keys of kinds that are not known before those that are.
func TestUnknownKinds(t *testing.T) {
	t.Parallel()
	unknown, signer := unknownKey(t), testSigner(t)
	key := newLocalKey(t, token.X448)
	for _, g := range []Generation{G1, G2} {
		e := must(NewEnvelope(t.Context(), []byte("hello"), EnvelopeOptions{
			Generation: g, Signers: []Signer{signer}, Recipients: []token.PublicKey{key.Public()}, Rand: rand.Reader,
		}))
		name := e.Header.Recipients[0].KeyID
		e.Header.Recipients = append([]Recipient{{KeyID: name, EphemeralKey: unknown, WrappedKey: make(Binary, 1600)}}, e.Header.Recipients...)
		e.Trailer.Signatures = append([]Signature{{
			Algorithm: "MLDSA87", KeyID: "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA", SignatureKey: &unknown, Value: make(Binary, 4627),
		}}, e.Trailer.Signatures...)
		text := must(e.Marshal())
		read := must(ParseEnvelope(text))
		if again := must(read.Marshal()); !bytes.Equal(text, again) || !bytes.Contains(text, []byte("MLKEM1024")) {
			t.Errorf("%v: %s is written as %s", g, text, again)
		}
		if plaintext, err := read.Decrypt(t.Context(), key); err != nil || string(plaintext) != "hello" {
			t.Errorf("%v: %q, %v", g, plaintext, err)
		}
		if by, err := read.Verify(signer.Public()); err != nil || len(by) != 1 {
			t.Errorf("%v: signed by %v, %v", g, by, err)
		}
		if by, err := read.VerifyKnown(); err != nil || len(by) != 0 {
			t.Errorf("%v: known are %v, %v", g, by, err)
		}
		if _, err := read.SignerKeys(); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%v: keys of the signers: %v", g, err)
		}
	}
	both := unknown
	both.PublicKeyECDH = must(NewKeyData(key.Public(), G1)).PublicParameters.PublicKeyECDH
	for name, p := range map[string]PublicParameters{"alone": unknown, "beside another": both} {
		if _, err := p.PublicKey(); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s it is a key: %v", name, err)
		}
		if _, err := p.Point(); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s it is a point: %v", name, err)
		}
	}
}
