package attest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/token"
)

// CardReport is what a PIV card says of itself and of the key, in the extensions of its
// attestation certificate (Yubico, "PIV attestation").
type CardReport struct {
	// Statement is the subject of the key's certificate, which names the slot.
	Statement   string
	Slot        string // "9a", as the subject says; empty if it does not
	Serial      int    // 0 if the card does not tell
	Firmware    string // "5.7.1"
	PINPolicy   string // "never", "once", "always", or "unknown"
	TouchPolicy string // "never", "always", "cached", or "unknown"
	Fresh       bool   // the key signed for this challenge
}

// yubico returns an extension of the attestation certificates.
func yubico(last int) asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, last}
}

// checkPIV holds that the card's attestation key issued a certificate for the stated key, and
// that the key signed for this challenge if it signs at all.
func checkPIV(v *verification) error {
	e := &v.answer.Evidence
	if v.answer.Statement.PCRs != "" || e.Certify != nil || e.PCRs != nil || e.Quote != nil || e.QuoteSignature != nil {
		return fmt.Errorf("%w: more than a card has to say", ErrEvidence)
	}
	cert, err := issued(e, v.now)
	if err != nil {
		return fmt.Errorf("%w: key certificate: %w", ErrEvidence, err)
	}
	key, err := v.certifiedKey(cert)
	if err != nil {
		return err
	}
	card, err := cardReport(cert)
	if err != nil {
		return fmt.Errorf("%w: key certificate: %w", ErrEvidence, err)
	}
	if e.Signature != nil {
		if err := possession(key, v.qualifying, e.Signature); err != nil {
			return fmt.Errorf("%w: %w", ErrEvidence, err)
		}
		card.Fresh = true
	}
	v.describeCard(card)
	return nil
}

// checkAttestation refuses what a card issued for one of its keys: it has the policies of that key. The card signs
// with such a key whatever its owner wants, statements about keys outside of any card too.
func checkAttestation(cert *x509.Certificate) error {
	for _, x := range cert.Extensions {
		if x.Id.Equal(yubico(8)) {
			return fmt.Errorf("%w: it is that of a key in a slot, not the card's own", ErrCertificate)
		}
	}
	return nil
}

// issued returns the certificate that the card's attestation key issued. Not by
// CheckSignatureFrom: the attestation certificates of early cards do not say that they are a CA's.
func issued(e *Evidence, now time.Time) (*x509.Certificate, error) {
	issuer, err := x509.ParseCertificate(e.AttestationKey)
	if err == nil {
		err = checkAttestation(issuer)
	}
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(e.Key)
	if err != nil {
		return nil, err
	}
	switch {
	case !bytes.Equal(cert.RawIssuer, issuer.RawSubject):
		return nil, errors.New("it names another issuer")
	case now.Before(cert.NotBefore) || now.After(cert.NotAfter):
		return nil, errors.New("it is not valid at this time")
	case len(cert.UnhandledCriticalExtensions) != 0:
		return nil, errors.New("it has a critical extension of unknown meaning")
	}
	return cert, issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
}

// certifiedKey returns the stated key, which must be the certificate's.
func (v *verification) certifiedKey(cert *x509.Certificate) (any, error) {
	stated, err := v.answer.Statement.PublicKey.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("%w: public key: %w", ErrForm, err)
	}
	key, err := stated.Standard()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	if stated.Algorithm == token.X25519 && stated.Octets[len(stated.Octets)-1] != 0 {
		return nil, fmt.Errorf("%w: a card does not know the sign of its key", ErrEvidence)
	}
	certified, err := publicKeyOf(cert)
	if err != nil {
		return nil, fmt.Errorf("%w: key certificate: %w", ErrEvidence, err)
	}
	if same, err := sameKey(key, certified); err != nil || !same {
		return nil, fmt.Errorf("%w: it is about another key", ErrEvidence)
	}
	return key, nil
}

func (v *verification) describeCard(card *CardReport) {
	r := v.report
	r.Card = card
	r.Key = KeyReport{
		Origin: originGenerated, Purpose: "unknown", PIN: card.PINPolicy,
		FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
	}
	r.Proven = append(r.Proven, "the card generated the private key, and does not give it out")
	if card.Fresh {
		r.Proven = append(r.Proven, "the key signed for this challenge: it is there, now")
	} else {
		r.NotProven = append(r.NotProven, "that the key is still on the card, or that the answer is new: a card's statements have no date")
	}
}

// cardReport reads the extensions. A card that has none is not an error.
func cardReport(cert *x509.Certificate) (*CardReport, error) {
	card := &CardReport{Statement: cert.Subject.String(), PINPolicy: "unknown", TouchPolicy: "unknown"}
	if slot, ok := strings.CutPrefix(cert.Subject.CommonName, "YubiKey PIV Attestation "); ok {
		card.Slot = slot
	}
	for _, x := range cert.Extensions {
		switch {
		case x.Id.Equal(yubico(3)):
			if len(x.Value) != 3 {
				return nil, errors.New("firmware version")
			}
			card.Firmware = fmt.Sprintf("%d.%d.%d", x.Value[0], x.Value[1], x.Value[2])
		case x.Id.Equal(yubico(7)):
			if rest, err := asn1.Unmarshal(x.Value, &card.Serial); err != nil || len(rest) != 0 || card.Serial < 0 {
				return nil, errors.New("serial number")
			}
		case x.Id.Equal(yubico(8)):
			if len(x.Value) != 2 {
				return nil, errors.New("policies")
			}
			card.PINPolicy = policyName(x.Value[0], "never", "once", "always")
			card.TouchPolicy = policyName(x.Value[1], "never", "always", "cached")
		}
	}
	return card, nil
}

// policyName names a policy, which are numbered from 1.
func policyName(n byte, names ...string) string {
	if n == 0 || int(n) > len(names) {
		return "unknown"
	}
	return names[n-1]
}

// possession verifies token.AttestEvidence.Signature of format piv.
func possession(key any, message, signature []byte) error {
	digest := sha256.Sum256(message)
	ok := false
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, digest[:], signature)
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, message, signature)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature) == nil
	default:
		return fmt.Errorf("the key does not sign: %w", token.ErrUnsupported)
	}
	if !ok {
		return fmt.Errorf("%w: the key did not sign for this challenge", ErrChallenge)
	}
	return nil
}
