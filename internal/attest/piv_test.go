package attest_test

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// card is a PIV card as far as it attests.
type card struct {
	root  *x509.Certificate
	f9    *x509.Certificate
	f9Key *ecdsa.PrivateKey
}

func certificate(t *testing.T, template, parent *x509.Certificate, public any, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(1)
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newECDSA(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCard(t *testing.T) *card {
	t.Helper()
	rootKey, f9Key := newECDSA(t), newECDSA(t)
	root := certificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true}, nil, &rootKey.PublicKey, rootKey)
	// As early cards have it: not marked as a CA's.
	f9 := certificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "PIV Attestation"}}, root, &f9Key.PublicKey, rootKey)
	return &card{root, f9, f9Key}
}

func (c *card) identity() *attest.Identity {
	return attest.NewIdentity(token.AttestIdentity{Format: token.AttestPIV, Certificates: [][]byte{c.f9.Raw}, AttestationKey: c.f9.Raw})
}

// extensions are those of a card of serial number 1234, firmware 5.7.1, PIN once, touch never.
func extensions() []pkix.Extension {
	id := func(n int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, n} }
	return []pkix.Extension{
		{Id: id(3), Value: []byte{5, 7, 1}}, {Id: id(7), Value: []byte{2, 2, 0x04, 0xd2}}, {Id: id(8), Value: []byte{2, 1}},
	}
}

// answer has the card attest a key, which signs for the challenge if sign is given.
func (c *card) answer(t *testing.T, challenge *attest.Challenge, pub token.PublicKey, key any, sign func(message []byte) []byte) *attest.Answer {
	t.Helper()
	s, err := attest.NewStatement(token.AttestPIV, pub, "")
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "YubiKey PIV Attestation 9a"}, ExtraExtensions: extensions()}
	var cert *x509.Certificate
	if x, ok := key.(*ecdh.PublicKey); ok {
		cert = certificate(t, template, c.f9, ed25519.PublicKey(x.Bytes()), c.f9Key)
		cert = resign(t, cert, c.f9Key, []byte{0x06, 3, 0x2b, 101, 112}, []byte{0x06, 3, 0x2b, 101, 110})
	} else {
		cert = certificate(t, template, c.f9, key, c.f9Key)
	}
	e := token.AttestEvidence{Format: token.AttestPIV, Key: cert.Raw, AttestationKey: c.f9.Raw}
	if sign != nil {
		qualifying, err := s.Qualifying(challenge)
		if err != nil {
			t.Fatal(err)
		}
		e.Signature = sign(qualifying)
	}
	a, err := attest.NewAnswer(s, e)
	if err != nil {
		t.Fatal(err)
	}
	return reread(t, a, attest.ParseAnswer)
}

// signer signs for a challenge.
func signer(t *testing.T, key *ecdsa.PrivateKey) func(message []byte) []byte {
	return func(message []byte) []byte {
		digest := sha256.Sum256(message)
		out, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
}

func TestPIV(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	trusted := attest.ChallengeOptions{Roots: []*x509.Certificate{c.root}}
	ch, s := challenge(t, c.identity(), trusted)
	ec := newECDSA(t)
	octets, err := ec.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pub := token.PublicKey{Algorithm: token.P256, Octets: octets}
	signEC := signer(t, ec)
	t.Run("kinds of key", func(t *testing.T) {
		edPub, ed, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		r, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		x, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		even := append(x.PublicKey().Bytes(), 0)
		for _, test := range []struct {
			pub  token.PublicKey
			key  any
			sign func([]byte) []byte
		}{
			{pub, &ec.PublicKey, signEC},
			{pub, &ec.PublicKey, nil},
			{token.PublicKey{Algorithm: token.Ed25519, Octets: edPub}, edPub, func(m []byte) []byte { return ed25519.Sign(ed, m) }},
			{token.PublicKey{Algorithm: token.RSA2048, Octets: x509.MarshalPKCS1PublicKey(&r.PublicKey)}, &r.PublicKey, func(m []byte) []byte {
				digest := sha256.Sum256(m)
				out, err := rsa.SignPKCS1v15(nil, r, crypto.SHA256, digest[:])
				if err != nil {
					t.Fatal(err)
				}
				return out
			}},
			{token.PublicKey{Algorithm: token.X25519, Octets: even}, x.PublicKey(), nil},
		} {
			report, err := attest.Verify(c.answer(t, ch, test.pub, test.key, test.sign), ch, s, attest.VerifyOptions{})
			if err != nil {
				t.Errorf("%s: %v", test.pub.Algorithm, err)
				continue
			}
			card := *report.Card
			want := attest.CardReport{Statement: "CN=YubiKey PIV Attestation 9a", Slot: "9a", Serial: 1234, Firmware: "5.7.1", PINPolicy: "once", TouchPolicy: "never", Fresh: test.sign != nil}
			if card != want || !report.Attester.Bound || report.Key.Origin != "generated" {
				t.Errorf("%s: %+v, %+v", test.pub.Algorithm, card, report)
			}
		}
		odd := slices.Clone(even)
		odd[32] = 0x80
		refused(t, c.answer(t, ch, token.PublicKey{Algorithm: token.X25519, Octets: odd}, x.PublicKey(), nil), ch, s, attest.ErrEvidence)
	})
	t.Run("asked for", func(t *testing.T) {
		g1, err := mesh.Fingerprint(pub, mesh.G1)
		if err != nil {
			t.Fatal(err)
		}
		full, err := mesh.FullFingerprint(pub, mesh.G2)
		if err != nil {
			t.Fatal(err)
		}
		a := c.answer(t, ch, pub, &ec.PublicKey, signEC)
		for _, test := range []struct {
			asked attest.Asked
			want  error
		}{
			{attest.Asked{Key: g1, Serial: 1234, Slot: "9a"}, nil},
			{attest.Asked{Key: strings.ToLower(full), Slot: "9A"}, nil},
			{attest.Asked{Key: "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA"}, attest.ErrOther},
			{attest.Asked{Key: g1[:20]}, attest.ErrForm},
			{attest.Asked{Serial: 1235}, attest.ErrOther},
			{attest.Asked{Slot: "9c"}, attest.ErrOther},
			{attest.Asked{Key: g1, Serial: 1234, Slot: "82"}, attest.ErrOther},
		} {
			_, err := attest.Verify(a, ch, s, attest.VerifyOptions{Asked: test.asked})
			if !errors.Is(err, test.want) {
				t.Errorf("%+v: %v, want %v", test.asked, err, test.want)
			}
		}
	})
	t.Run("every bit", func(t *testing.T) {
		accept := func(document []byte) error {
			a, err := attest.ParseAnswer(document)
			if err != nil {
				return err
			}
			_, err = attest.Verify(a, ch, s, attest.VerifyOptions{})
			return err
		}
		everyBit(t, c.answer(t, ch, pub, &ec.PublicKey, signEC), "", accept)
		// Without the key's own signature: the certificates hold as they do with it.
		everyBit(t, c.answer(t, ch, pub, &ec.PublicKey, nil), `"Evidence"`, accept)
	})
	t.Run("refusals", func(t *testing.T) {
		other := newCard(t)
		if _, _, err := attest.NewChallenge(other.identity(), attest.ChallengeOptions{Roots: trusted.Roots, Validity: time.Hour}); !errors.Is(err, attest.ErrCertificate) {
			t.Errorf("card of another maker: %v", err)
		}
		refused(t, other.answer(t, ch, pub, &ec.PublicKey, signEC), ch, s, attest.ErrChallenge)
		a := other.answer(t, ch, pub, &ec.PublicKey, signEC)
		a.Evidence.AttestationKey = c.f9.Raw
		refused(t, a, ch, s, attest.ErrEvidence)
		refused(t, c.answer(t, ch, pub, &newECDSA(t).PublicKey, nil), ch, s, attest.ErrEvidence)

		later, laterSecret := challenge(t, c.identity(), trusted)
		refused(t, c.answer(t, ch, pub, &ec.PublicKey, signEC), later, laterSecret, attest.ErrChallenge)

		a = c.answer(t, ch, pub, &ec.PublicKey, signEC)
		a.Evidence.Quote = []byte{1}
		refused(t, a, ch, s, attest.ErrEvidence)
		a = c.answer(t, ch, pub, &ec.PublicKey, signEC)
		a.Activation = make([]byte, 32)
		refused(t, a, ch, s, attest.ErrChallenge)

		unknown, unknownSecret := challenge(t, c.identity(), attest.ChallengeOptions{AcceptUnverified: true})
		refused(t, c.answer(t, unknown, pub, &ec.PublicKey, signEC), unknown, unknownSecret, attest.ErrUnbound)
		anyCard, anySecret := challenge(t, nil, attest.ChallengeOptions{})
		refused(t, c.answer(t, anyCard, pub, &ec.PublicKey, signEC), anyCard, anySecret, attest.ErrUnbound)

		id := c.identity()
		id.AttestationKey = other.f9.Raw
		if _, _, err := attest.NewChallenge(id, attest.ChallengeOptions{Roots: trusted.Roots, Validity: time.Hour}); !errors.Is(err, attest.ErrForm) {
			t.Errorf("certificate and key of two cards: %v", err)
		}
	})
}
