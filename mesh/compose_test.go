package mesh

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

func newLocalKey(t testing.TB, a token.Algorithm) *LocalKey {
	t.Helper()
	curve, _ := CurveOf(a)
	return must(NewLocalKey(&token.PrivateKey{Algorithm: a, Scalar: must(keyshare.RandomScalar(curve, rand.Reader)).Bytes()}))
}

func TestNewEnvelope(t *testing.T) {
	t.Parallel()
	for _, g := range []Generation{G1, G2} {
		for _, a := range curveAlgorithms {
			reader, other, signer := newLocalKey(t, a), newLocalKey(t, a), newLocalKey(t, token.Ed448)
			made, err := NewEnvelope(t.Context(), []byte("body"), EnvelopeOptions{
				Generation: g, ID: "id", Meta: ContentMeta{MessageType: "Thing", Created: time.Unix(1700000000, 0).UTC()},
				Recipients: []token.PublicKey{other.Public(), reader.Public()}, Signers: []Signer{signer},
			})
			if err != nil {
				t.Fatal(err)
			}
			e := must(ParseEnvelope(must(made.Marshal())))
			same(t, "kid is of the generation", Names(e.Header.Recipients[1].KeyID, reader.Public(), g), true)
			same(t, "type", e.Header.Meta().MessageType, "Thing")
			same(t, "time", e.Header.Meta().Created.Unix(), 1700000000)
			if _, err := e.Verify(signer.Public()); err != nil {
				t.Errorf("%v %s: %v", g, a, err)
			}
			got, err := e.Decrypt(t.Context(), reader)
			if err != nil || string(got) != "body" {
				t.Errorf("%v %s: %q, %v", g, a, got, err)
			}
			if _, err := e.Decrypt(t.Context(), newLocalKey(t, a)); !errors.Is(err, ErrNotRecipient) {
				t.Errorf("%v %s, another key: %v", g, a, err)
			}
			checkDecryptRefuses(t, e, reader)
		}
	}
	clearText := must(NewEnvelope(t.Context(), []byte("body"), EnvelopeOptions{}))
	same(t, "clear", string(clearText.Body), "body")
	if _, err := clearText.Decrypt(t.Context(), newLocalKey(t, token.X448)); !errors.Is(err, ErrNotRecipient) {
		t.Errorf("decrypt what is not encrypted: %v", err)
	}
}

// checkDecryptRefuses alters what Decrypt depends on; there is one error for all.
func checkDecryptRefuses(t *testing.T, e *Envelope, reader Agreer) {
	t.Helper()
	data := must(e.Marshal())
	for name, alter := range map[string]func(*Envelope){
		"body":        func(e *Envelope) { e.Body[0] ^= 1 },
		"wrapped key": func(e *Envelope) { e.Header.Recipients[1].WrappedKey[3] ^= 1 },
		"no epk":      func(e *Envelope) { e.Header.Recipients[1].EphemeralKey = PublicParameters{} },
		"other curve": func(e *Envelope) { e.Header.Recipients[1].EphemeralKey.PublicKeyECDH.Curve = "X9" },
		"witness": func(e *Envelope) {
			for _, w := range []Binary{e.Trailer.WitnessValue, e.Trailer.Signatures[0].Witness} {
				if w != nil {
					w[0] ^= 1
				}
			}
		},
	} {
		altered := must(ParseEnvelope(data))
		alter(altered)
		if _, err := altered.Decrypt(t.Context(), reader); err != token.ErrDecrypt {
			t.Errorf("altered %s: %v", name, err)
		}
	}
}

type failingAgreer struct{ *LocalKey }

func (failingAgreer) Agree(context.Context, *keyshare.Point) (*keyshare.Point, error) {
	return nil, token.ErrAbsent
}

func TestDecryptPassesOnErrorsOfTheKey(t *testing.T) {
	t.Parallel()
	key := newLocalKey(t, token.X448)
	e := must(Encrypt(rand.Reader, []byte("x"), "", key.Public()))
	if _, err := e.Decrypt(t.Context(), failingAgreer{key}); !errors.Is(err, token.ErrAbsent) {
		t.Errorf("absent token: %v", err)
	}
}

// countingAgreer counts agreements.
type countingAgreer struct {
	*LocalKey
	agreements int
}

func (c *countingAgreer) Agree(ctx context.Context, peer *keyshare.Point) (*keyshare.Point, error) {
	c.agreements++
	return c.LocalKey.Agree(ctx, peer)
}

// TestDecryptTriesFew has an envelope name one key very often.
func TestDecryptTriesFew(t *testing.T) {
	t.Parallel()
	key := &countingAgreer{LocalKey: newLocalKey(t, token.X25519)}
	e := must(Encrypt(rand.Reader, []byte("x"), "", key.Public()))
	good, bad := e.Header.Recipients[0], e.Header.Recipients[0]
	bad.WrappedKey = make(Binary, len(good.WrappedKey))
	for wrong, opens := range map[int]bool{maxNamed - 1: true, maxNamed: false, 1000: false} {
		e.Header.Recipients = append(slices.Repeat([]Recipient{bad}, wrong), good)
		key.agreements = 0
		_, err := e.Decrypt(t.Context(), key)
		if opens != (err == nil) || !opens && err != token.ErrDecrypt || key.agreements != maxNamed {
			t.Errorf("the right entry after %d: %v, %d agreements", wrong, err, key.agreements)
		}
	}
}

func TestNewEnvelopeRefuses(t *testing.T) {
	t.Parallel()
	if _, err := NewEnvelope(t.Context(), nil, EnvelopeOptions{Recipients: []token.PublicKey{{Algorithm: token.RSA2048}}}); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("RSA recipient: %v", err)
	}
	if _, err := NewEnvelope(t.Context(), nil, EnvelopeOptions{Rand: strings.NewReader(""), Recipients: []token.PublicKey{randomPublic(t, token.X448)}}); err == nil {
		t.Error("a failing source is not noticed")
	}
	if _, err := NewEnvelope(t.Context(), nil, EnvelopeOptions{Signers: []Signer{newLocalKey(t, token.X448)}}); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("signer that cannot: %v", err)
	}
}

func TestEnvelopeInsideJSON(t *testing.T) {
	t.Parallel()
	e := must(NewEnvelope(t.Context(), []byte("body"), EnvelopeOptions{ID: "id"}))
	data := must(strictjson.Marshal(map[string]*Envelope{"Inner": e}))
	var out map[string]*Envelope
	if err := strictjson.Unmarshal(data, &out); err != nil || string(out["Inner"].Body) != "body" {
		t.Errorf("%s: %v", data, err)
	}
	if err := strictjson.Unmarshal([]byte(`{"Inner":[{}]}`), &out); err == nil {
		t.Error("half an envelope is accepted")
	}
}

func TestLocalKey(t *testing.T) {
	t.Parallel()
	seed := &token.PrivateKey{Algorithm: token.Ed448, Seed: bytes.Repeat([]byte{3}, 56)}
	key := must(NewLocalKey(seed))
	one, two := must(key.Sign(t.Context(), []byte("m"))), must(key.Sign(t.Context(), []byte("m")))
	sameHex(t, "signatures by a seed are deterministic", one, two)
	same(t, "verifies", VerifySignature(key.Public(), []byte("m"), one), true)
	same(t, "of another message", VerifySignature(key.Public(), []byte("n"), one), false)
	key.Wipe()
	if _, err := key.Sign(t.Context(), []byte("m")); err == nil {
		t.Error("a wiped key signs")
	}
	if _, err := key.Agree(t.Context(), keyshare.BasePoint(keyshare.Ed448)); err == nil {
		t.Error("a wiped key agrees")
	}
	for name, bad := range map[string]*token.PrivateKey{
		"nothing": {}, "RSA": {Algorithm: token.RSA2048}, "short": {Algorithm: token.X448, Seed: make([]byte, 55)}, "zero": {Algorithm: token.X448, Scalar: make([]byte, 56)},
	} {
		if _, err := NewLocalKey(bad); !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifySignatureOfNISTKeys(t *testing.T) {
	t.Parallel()
	for a, curve := range map[token.Algorithm]elliptic.Curve{token.P256: elliptic.P256(), token.P384: elliptic.P384(), token.P521: elliptic.P521()} {
		key := must(ecdsa.GenerateKey(curve, rand.Reader))
		pub := token.PublicKey{Algorithm: a, Octets: must(key.PublicKey.Bytes())}
		req := must(SignRequest(a, []byte("octets")))
		same(t, "scheme", req.Scheme, token.SchemeECDSA)
		signature := must(ecdsa.SignASN1(rand.Reader, key, must(req.Digest())))
		same(t, string(a), VerifySignature(pub, []byte("octets"), signature), true)
		same(t, string(a)+", other octets", VerifySignature(pub, []byte("other"), signature), false)
		same(t, string(a)+", no key", VerifySignature(token.PublicKey{Algorithm: a}, []byte("octets"), signature), false)
	}
	for _, a := range []token.Algorithm{token.X25519, token.X448, "P1"} {
		if _, err := SignRequest(a, nil); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("%s: %v", a, err)
		}
		same(t, string(a), VerifySignature(token.PublicKey{Algorithm: a}, nil, nil), false)
	}
}

func TestDecodeBody(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"Thing":{"A":"AAAA"}}`, " {\"Thing\":{\"A\":\"AA\n  AA\"}}", "{\xb4\x05Thing{\xb4\x01A\x88\x03\x00\x00\x00}}"} {
		tagged, err := DecodeBody([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ A Binary }
		if err := tagged.Decode(&v); err != nil || tagged.Tag != "Thing" || !bytes.Equal(v.A, make([]byte, 3)) {
			t.Errorf("%q: %v, %v", body, v, err)
		}
	}
	for _, body := range []string{``, `[]`, `{}`, `{"A":1,"B":2}`, "{\xb4\x01A}", "{\xb4\x01A{}\xb4\x01B{}}", "[\xb0]"} {
		if _, err := DecodeBody([]byte(body)); err == nil {
			t.Errorf("%q is accepted", body)
		}
	}
}

func TestNewKeyData(t *testing.T) {
	t.Parallel()
	for _, g := range []Generation{G1, G2} {
		for _, a := range curveAlgorithms {
			curve, _ := CurveOf(a)
			for range 4 { // of X25519 keys, half have the other sign
				key := &token.PrivateKey{Algorithm: a, Scalar: must(keyshare.RandomScalar(curve, rand.Reader)).Bytes()}
				pub := must(PublicOf(key))
				k := must(NewKeyData(pub, g))
				same(t, "name", Names(k.Udf, pub, g), true)
				if got := must(k.PublicKey()); !got.Equal(pub) {
					t.Errorf("%s: the key lost its sign", a)
				}
				private := must(NewPrivateKeyData(key, g))
				back := must(private.PrivateParameters.PrivateKey())
				sameHex(t, "scalar", back.Scalar, key.Scalar)
				private.PrivateParameters.Wipe()
				sameHex(t, "wiped", private.PrivateParameters.PrivateKeyECDH.Private, make([]byte, curve.ScalarLen()))
			}
		}
	}
	rsaKey := must(RSAKey(must(rsa.GenerateKey(rand.Reader, 2048))))
	private := must(NewPrivateKeyData(rsaKey, G1))
	same(t, "RSA key", must(private.PrivateParameters.PrivateKey()).RSA.Equal(rsaKey.RSA), true)
	private.PrivateParameters.Wipe()
	for _, secret := range [][]byte{private.PrivateParameters.PrivateKeyRSA.D, private.PrivateParameters.PrivateKeyRSA.QI} {
		sameHex(t, "wiped", secret, make([]byte, len(secret)))
	}
	if _, err := NewKeyData(token.PublicKey{Algorithm: token.X448}, G1); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("no key: %v", err)
	}
	if _, err := NewPrivateKeyData(&token.PrivateKey{Algorithm: token.X448}, G1); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("no private key: %v", err)
	}
	var none *PrivateParameters
	none.Wipe()
}

// The formula, since no published value shows it: concatenation, and a tag for each direction.
func TestDeriveSessionKeys(t *testing.T) {
	t.Parallel()
	first, second := []byte("agreement one"), []byte("agreement two")
	k := must(DeriveSessionKeys(first, second))
	want := func(tag string) []byte {
		return must(hkdf.Key(sha512.New, []byte("agreement oneagreement two"), nil, tag, 32))
	}
	sameHex(t, "initiator", k.Initiator, want("TagKeyInitiatorResponder"))
	sameHex(t, "responder", k.Responder, want("TagKeyResponderInitiator"))
	client := must(DeriveSessionKeys(first, nil))
	swapped := must(DeriveSessionKeys(second, first))
	for _, other := range []*SessionKeys{client, swapped} {
		if bytes.Equal(other.Initiator, k.Initiator) || bytes.Equal(other.Responder, k.Responder) {
			t.Error("other agreements give the same keys")
		}
	}
	if _, err := DeriveSessionKeys(nil, second); err == nil {
		t.Error("no agreement gives keys")
	}
	k.Wipe()
	sameHex(t, "wiped", append(k.Initiator, k.Responder...), make([]byte, 64))
}
