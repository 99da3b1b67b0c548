package attest_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/token"
)

// newCACard is a card of today, whose attestation certificate says that it is a CA's.
func newCACard(t *testing.T) *card {
	t.Helper()
	rootKey, f9Key := newECDSA(t), newECDSA(t)
	root := certificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true}, nil, &rootKey.PublicKey, rootKey)
	f9 := certificate(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "Yubico PIV Attestation"}, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		ExtraExtensions: extensions()[:1],
	}, root, &f9Key.PublicKey, rootKey)
	return &card{root, f9, f9Key}
}

// statement has the card issue what it issues for a key that it generated.
func (c *card) statement(t *testing.T, slot string, public any, extensions []pkix.Extension) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "YubiKey PIV Attestation " + slot}, ExtraExtensions: extensions}
	return certificate(t, template, c.f9, public, c.f9Key)
}

// TestForgedStatement has the owner of a card use a key that the card generated, and attests, to sign a statement about
// a key that is in no card. The card signs whatever it is given, so that only the place of the certificates
// tells.
func TestForgedStatement(t *testing.T) {
	t.Parallel()
	c := newCACard(t)
	generated := newECDSA(t) // in slot 9a, which signs for its owner
	between := c.statement(t, "9a", &generated.PublicKey, extensions())
	forger := &card{c.root, between, generated}
	outside := newECDSA(t)
	octets, err := outside.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	pub := token.PublicKey{Algorithm: token.P256, Octets: octets}
	sign := signer(t, outside)

	id := attest.NewIdentity(token.AttestIdentity{
		Format: token.AttestPIV, Certificates: [][]byte{between.Raw, c.f9.Raw}, AttestationKey: between.Raw,
	})
	_, _, err = attest.NewChallenge(id, attest.ChallengeOptions{Roots: []*x509.Certificate{c.root}, Validity: time.Hour})
	if !errors.Is(err, attest.ErrForm) {
		t.Errorf("issuers from the device: %v, want %v", err, attest.ErrForm)
	}
	for name, anchor := range map[string]*x509.Certificate{"trusted card": c.f9, "trusted statement": between} {
		_, _, err = attest.NewChallenge(forger.identity(), attest.ChallengeOptions{Roots: []*x509.Certificate{anchor}, Validity: time.Hour})
		if !errors.Is(err, attest.ErrCertificate) {
			t.Errorf("%s: %v, want %v", name, err, attest.ErrCertificate)
		}
	}
	// Nor where the attestation key is not verified at all.
	anyCard, anySecret := challenge(t, nil, attest.ChallengeOptions{})
	refused(t, forger.answer(t, anyCard, pub, &outside.PublicKey, sign), anyCard, anySecret, attest.ErrEvidence)
}
