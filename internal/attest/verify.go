package attest

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// VerifyOptions say what is accepted beside a generated key, vouched for by a bound
// attestation key. The zero value accepts nothing else.
type VerifyOptions struct {
	// AcceptUnbound takes an attestation key that no challenge has bound to a device: anybody
	// can make such evidence with a program.
	AcceptUnbound bool
	// AcceptImported takes a key whose private part was outside of the device once, or may leave it.
	AcceptImported bool
	// Asked is what the answer must be about.
	Asked Asked
	// Now is when the answer was received; zero means the present.
	Now time.Time
}

// Asked says which key was asked for. What is empty does not matter.
type Asked struct {
	Key    string // a UDF of the key, of any generation: at least 28 characters
	Serial uint32 // the card's serial number
	Slot   string // the card's slot: "9a"
}

// Report is what an answer proves.
type Report struct {
	Format    token.AttestFormat
	Udf       string
	Algorithm token.Algorithm
	PublicKey mesh.PublicParameters
	Key       KeyReport
	Attester  AttesterReport
	PCRs      []PCR       `json:",omitzero"`
	Platform  *TPMReport  `json:",omitzero"` // tpm2 only
	Card      *CardReport `json:",omitzero"` // piv only
	Proven    []string    // sentences
	NotProven []string    // sentences
}

// KeyReport is what the device says of the key.
type KeyReport struct {
	// Origin is "generated" in the device and fixed there, "imported" into it, or "copyable".
	Origin string
	// Purpose is "sign", "agree", "decrypt", "sign and decrypt", or "unknown" where the device does not say.
	Purpose string
	// FixedTPM says that the key cannot be copied to another device, FixedParent that not
	// under another parent, SensitiveDataOrigin that the device generated it. For a card
	// all three are its word that it generated the key.
	FixedTPM, FixedParent, SensitiveDataOrigin bool
	// PIN is "none" for a key without dictionary-attack protection, else what is known.
	PIN string
}

// AttesterReport says who vouches.
type AttesterReport struct {
	// Key is SHA-256 of the attestation key's Name, or of its certificate.
	Key strictjson.Binary
	// Bound says that the challenge showed the attestation key to be in the device of Device.
	Bound bool
	// Device is the subject and serial number of the device's certificate; empty if there is none.
	Device string `json:",omitzero"`
	// Endorsement is SHA-256 of the endorsement key's public area; absent for cards.
	Endorsement strictjson.Binary `json:",omitzero"`
	// Anchor is the CA certificate that vouches for the device; empty if none was asked.
	Anchor string `json:",omitzero"`
}

// evidence is checked by one of these per format. What it finds it adds to the report.
type checker func(v *verification) error

// verification is the state of one Verify.
type verification struct {
	answer     *Answer
	secret     *Secret
	qualifying []byte
	now        time.Time
	report     *Report
}

// Verify checks an answer against the challenge and what was kept of it. A report is returned
// with nil, and with ErrUnbound and ErrImported, which say what it lacks.
// Errors: ErrForm, ErrChallenge, ErrEvidence, ErrOther, ErrUnbound, ErrImported.
func Verify(a *Answer, c *Challenge, s *Secret, o VerifyOptions) (*Report, error) {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	if err := s.covers(c, o.Now); err != nil {
		return nil, err
	}
	pub, err := a.Statement.publicKey()
	if err != nil {
		return nil, err
	}
	v := &verification{answer: a, secret: s, now: o.Now}
	if v.qualifying, err = a.Statement.Qualifying(c); err != nil {
		return nil, err
	}
	v.report = &Report{Format: a.Statement.Format, Udf: a.Statement.Udf, Algorithm: pub.Algorithm, PublicKey: a.Statement.PublicKey}
	if err := v.attester(); err != nil {
		return nil, err
	}
	check := map[token.AttestFormat]checker{token.AttestTPM2: checkTPM, token.AttestPIV: checkPIV}[a.Statement.Format]
	if check == nil {
		return nil, fmt.Errorf("%w: unknown format", ErrForm)
	}
	if err := check(v); err != nil {
		return nil, err
	}
	if err := o.Asked.compare(pub, v.report.Card); err != nil {
		return nil, err
	}
	return v.report, v.judge(o)
}

// compare holds that an answer that proves its statement is about what was asked for. card is nil
// for other devices.
func (w Asked) compare(pub token.PublicKey, card *CardReport) error {
	if w.Key != "" {
		if err := w.compareKey(pub); err != nil {
			return err
		}
	}
	switch {
	case w.Serial == 0 && w.Slot == "":
		return nil
	case card == nil:
		return fmt.Errorf("%w: it is not about a card", ErrOther)
	case w.Serial != 0 && int64(card.Serial) != int64(w.Serial):
		return fmt.Errorf("%w: card %d, not %d", ErrOther, card.Serial, w.Serial)
	case w.Slot != "" && !strings.EqualFold(card.Slot, w.Slot):
		return fmt.Errorf("%w: slot %q, not %q", ErrOther, card.Slot, w.Slot)
	}
	return nil
}

func (w Asked) compareKey(pub token.PublicKey) error {
	id, err := mesh.NormalizeKeyID(w.Key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	names, err := mesh.Aliases(pub)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, id) {
			return nil
		}
	}
	return fmt.Errorf("%w: another key than %s", ErrOther, w.Key)
}

// covers holds that c is the challenge of the secret, and still stands.
func (s *Secret) covers(c *Challenge, now time.Time) error {
	document, err := c.Marshal()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(document)
	if subtle.ConstantTimeCompare(sum[:], s.Challenge) != 1 {
		return fmt.Errorf("%w: the kept secret is of another challenge", ErrChallenge)
	}
	if expires := time.Unix(s.Expires, 0); !now.Before(expires) {
		return fmt.Errorf("%w: it expired at %s", ErrChallenge, expires.UTC().Format(time.RFC3339))
	}
	return nil
}

// publicKey returns the stated key after holding that the statement is of one piece.
func (s *Statement) publicKey() (token.PublicKey, error) {
	pub, err := s.PublicKey.PublicKey()
	if err != nil {
		return pub, fmt.Errorf("%w: public key: %w", ErrForm, err)
	}
	again, err := NewStatement(s.Format, pub, s.PCRs)
	if err != nil {
		return pub, fmt.Errorf("%w: %w", ErrForm, err)
	}
	want, err := encode(tagStatement, again)
	if err != nil {
		return pub, err
	}
	have, err := encode(tagStatement, s)
	if err != nil {
		return pub, err
	}
	if string(want) != string(have) {
		return pub, fmt.Errorf("%w: UDF, algorithm and public key do not belong together", ErrForm)
	}
	return pub, nil
}

// attester holds that the evidence is by the challenged attestation key, and finds out whether
// that is bound.
func (v *verification) attester() error {
	r := &v.report.Attester
	sum := sha256.Sum256(v.answer.Evidence.AttestationKey)
	r.Key = sum[:]
	id := v.secret.Identity
	if id == nil {
		return v.noActivation()
	}
	if id.Format != v.answer.Statement.Format || string(id.AttestationKey) != string(v.answer.Evidence.AttestationKey) {
		return fmt.Errorf("%w: it is by another attestation key than that challenged", ErrChallenge)
	}
	if err := v.device(id); err != nil {
		return err
	}
	r.Anchor = v.secret.Anchor
	if id.Format == token.AttestPIV {
		r.Bound = r.Anchor != "" // the certificate that was verified is the attestation key's own
		return v.noActivation()
	}
	if v.answer.Activation == nil {
		return nil
	}
	want, err := v.answer.Statement.activation(v.secret.Credential)
	if err != nil {
		return err
	}
	if v.secret.Credential == nil || !hmac.Equal(want, v.answer.Activation) {
		return fmt.Errorf("%w: the credential was not opened by this device for this statement", ErrEvidence)
	}
	r.Bound = true
	return nil
}

// noActivation refuses what cannot be checked.
func (v *verification) noActivation() error {
	if v.answer.Activation != nil {
		return fmt.Errorf("%w: it opens a credential that the challenge does not have", ErrChallenge)
	}
	return nil
}

// device describes the device's certificate and endorsement key.
func (v *verification) device(id *Identity) error {
	r := &v.report.Attester
	if len(id.Endorsement) != 0 {
		sum := sha256.Sum256(id.Endorsement)
		r.Endorsement = sum[:]
	}
	if len(id.Certificates) == 0 {
		return nil
	}
	cert, err := x509.ParseCertificate(id.Certificates[0])
	if err != nil {
		return fmt.Errorf("%w: device certificate: %w", ErrForm, err)
	}
	r.Device = fmt.Sprintf("serial number %x of %s", cert.SerialNumber, cert.Issuer)
	if subject := cert.Subject.String(); subject != "" {
		r.Device = subject + ", " + r.Device
	}
	return nil
}

// judge says in words what is proven, and refuses what o does not accept.
func (v *verification) judge(o VerifyOptions) error {
	r := v.report
	var errs []error
	switch {
	case !r.Attester.Bound:
		r.NotProven = append(r.NotProven, "that the attestation key is in a device at all: a program can make such evidence")
		for _, sentence := range r.Proven { // by a key that may be anybody's
			r.NotProven = append(r.NotProven, "that "+sentence)
		}
		r.Proven = nil
		if !o.AcceptUnbound {
			errs = append(errs, ErrUnbound)
		}
	case r.Attester.Anchor == "":
		r.NotProven = append(r.NotProven, "that the device is a genuine one: its certificate was not verified")
	default:
		r.Proven = append(r.Proven, "the attestation key is in the device of that certificate")
	}
	if r.Key.Origin != originGenerated {
		why := map[string]string{originImported: "it was imported", originCopyable: "the device gives it out to others"}[r.Key.Origin]
		r.NotProven = append(r.NotProven, "that nobody else has the private key: "+why)
		if !o.AcceptImported {
			errs = append(errs, ErrImported)
		}
	}
	r.NotProven = append(r.NotProven, "who sits at the device, which program asks it, and what the agent's policy permits")
	return errors.Join(errs...)
}

// What KeyReport.Origin is.
const (
	originGenerated = "generated"
	originImported  = "imported"
	originCopyable  = "copyable"
)
