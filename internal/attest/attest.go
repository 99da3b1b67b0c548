// Package attest proves to somebody far away that a key lives in a device. It holds the four
// documents that travel or are kept - Identity, Challenge, Secret and Answer -, makes
// challenges, and verifies answers, for which no device is needed.
//
//	device    Identity   who it is: endorsement certificate, attestation key
//	verifier  Challenge  a nonce, and a credential that only that device can open
//	          Secret     what the verifier keeps to check the answer
//	device    Answer     a statement about a key, evidence, proof that the credential was opened
//
// A document is JSON on one line under its tag, with a line feed, in exactly one encoding: what
// is read must be what would be written, octet for octet. Evidence is bound to the nonce and to
// the statement by Qualifying.
//
// The package talks to no device, makes no evidence (backends do, see token.Attester), fetches no
// certificates and no revocation lists, and does not say which PCR values are good.
package attest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Version is the version of all documents. Another one is refused.
const Version = 1

// MaxDocument is the largest document in octets.
const MaxDocument = 128 << 10

// Sizes in octets.
const (
	nonceLen  = 32
	secretLen = 32
)

// The tags of the documents.
const (
	tagIdentity  = "AttestIdentity"
	tagChallenge = "AttestChallenge"
	tagSecret    = "AttestSecret"
	tagStatement = "AttestStatement"
	tagAnswer    = "AttestAnswer"
)

// The reasons for which documents are refused.
var (
	// ErrForm says that a document is not one, or not in its one encoding.
	ErrForm = errors.New("malformed attestation document")
	// ErrCertificate says that the device's certificate is missing, not from a given CA, or
	// another key's.
	ErrCertificate = errors.New("device certificate refused")
	// ErrChallenge says that the answer is to another challenge, or that the challenge has expired.
	ErrChallenge = errors.New("not an answer to this challenge")
	// ErrEvidence says that the evidence does not prove the statement.
	ErrEvidence = errors.New("evidence does not prove the statement")
	// ErrUnbound says that nothing shows the attestation key to be in a genuine device.
	ErrUnbound = errors.New("attestation key is not bound to a device")
	// ErrOther says that the answer is about another key, card or slot than was asked for.
	ErrOther = errors.New("answer is about something else than was asked for")
	// ErrImported says that the private key was outside of the device once, or may leave it.
	ErrImported = errors.New("key was imported, or can be copied")
)

// Identity is what a device says it is. Nothing in it is proven before a challenge.
type Identity struct {
	Version        int
	Format         token.AttestFormat
	Certificates   []strictjson.Binary `json:",omitzero"` // DER, as token.AttestIdentity
	Endorsement    strictjson.Binary   `json:",omitzero"`
	AttestationKey strictjson.Binary
}

// Challenge is what the verifier sends to the device.
type Challenge struct {
	Version int
	Nonce   strictjson.Binary // 32 octets
	// Credential is absent in a challenge for any device, whose answers are unbound.
	Credential strictjson.Binary `json:",omitzero"`
}

// Secret is what the verifier keeps of a challenge. It must not leave the verifier.
type Secret struct {
	Version   int
	Challenge strictjson.Binary // SHA-256 of the challenge document
	Expires   int64             // seconds since 1970
	// Identity is that of the challenged device; absent in a challenge for any device.
	Identity *Identity `json:",omitzero"`
	// Anchor describes the CA certificate by which the device's certificate was verified;
	// empty if it was not.
	Anchor string `json:",omitzero"`
	// Credential is what the device must find in the challenge: 32 octets, absent if
	// the challenge has none.
	Credential strictjson.Binary `json:",omitzero"`
}

// Statement is what an answer claims. Evidence must prove all of it.
type Statement struct {
	Version   int
	Format    token.AttestFormat
	Udf       string // G1
	Algorithm token.Algorithm
	PublicKey mesh.PublicParameters
	PCRs      string `json:",omitzero"` // selection that is vouched for
}

// Evidence is token.AttestEvidence without the secret.
type Evidence struct {
	Key            strictjson.Binary
	AttestationKey strictjson.Binary
	Certify        strictjson.Binary `json:",omitzero"`
	Signature      strictjson.Binary `json:",omitzero"`
	PCRs           []PCR             `json:",omitzero"`
	Quote          strictjson.Binary `json:",omitzero"`
	QuoteSignature strictjson.Binary `json:",omitzero"`
}

// PCR is the value of a platform configuration register.
type PCR struct {
	Bank  string
	Index int
	Value strictjson.Binary
}

// Answer is what the device sends back.
type Answer struct {
	Statement Statement
	Evidence  Evidence
	// Activation is HMAC-SHA-256 with what was in the challenge's credential over the document
	// of the statement: it proves that the credential was opened, and does not tell what was in
	// it. Absent if the challenge has no credential.
	Activation strictjson.Binary `json:",omitzero"`
}

// NewIdentity makes the document of a device's identity.
func NewIdentity(id token.AttestIdentity) *Identity {
	out := &Identity{Version: Version, Format: id.Format, Endorsement: id.Endorsement, AttestationKey: id.AttestationKey}
	for _, c := range id.Certificates {
		out.Certificates = append(out.Certificates, c)
	}
	return out
}

// NewStatement makes the claim about a key. pcrs is a selection or empty.
func NewStatement(format token.AttestFormat, pub token.PublicKey, pcrs string) (*Statement, error) {
	udf, err := mesh.Fingerprint(pub, mesh.G1)
	if err != nil {
		return nil, fmt.Errorf("make statement: %w", err)
	}
	if pcrs != "" {
		selection, err := token.ParsePCRs(pcrs)
		if err != nil {
			return nil, err
		}
		pcrs = selection.String()
	}
	return &Statement{
		Version: Version, Format: format, Udf: udf, Algorithm: pub.Algorithm,
		PublicKey: mesh.Parameters(pub), PCRs: pcrs,
	}, nil
}

// Qualifying returns what evidence is bound to: SHA-256 over the nonce and the document of
// the statement.
func (s *Statement) Qualifying(c *Challenge) ([]byte, error) {
	document, err := encode(tagStatement, s)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append(bytes.Clone(c.Nonce), document...))
	return sum[:], nil
}

// NewAnswer puts an answer together and wipes the secret of the evidence.
func NewAnswer(s *Statement, e token.AttestEvidence) (*Answer, error) {
	defer clear(e.Secret)
	a := &Answer{Statement: *s, Evidence: Evidence{
		Key: e.Key, AttestationKey: e.AttestationKey, Certify: e.Certify, Signature: e.Signature,
		Quote: e.Quote, QuoteSignature: e.QuoteSignature,
	}}
	for _, p := range e.PCRs {
		a.Evidence.PCRs = append(a.Evidence.PCRs, PCR{p.Bank, p.Index, p.Value})
	}
	if len(e.Secret) != 0 {
		mac, err := s.activation(e.Secret)
		if err != nil {
			return nil, err
		}
		a.Activation = mac
	}
	return a, nil
}

// activation returns Answer.Activation.
func (s *Statement) activation(secret []byte) ([]byte, error) {
	document, err := encode(tagStatement, s)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, secret)
	mac.Write(document)
	return mac.Sum(nil), nil
}

// Marshal returns the document.
func (i *Identity) Marshal() ([]byte, error) { return encode(tagIdentity, i) }

// Marshal returns the document.
func (c *Challenge) Marshal() ([]byte, error) { return encode(tagChallenge, c) }

// Marshal returns the document, which is secret.
func (s *Secret) Marshal() ([]byte, error) { return encode(tagSecret, s) }

// Marshal returns the document.
func (a *Answer) Marshal() ([]byte, error) { return encode(tagAnswer, a) }

// ParseIdentity reads an identity document. Errors: ErrForm.
func ParseIdentity(document []byte) (*Identity, error) {
	i := new(Identity)
	if err := decode(tagIdentity, document, i); err != nil {
		return nil, err
	}
	return i, i.check()
}

// ParseChallenge reads a challenge document. Errors: ErrForm.
func ParseChallenge(document []byte) (*Challenge, error) {
	c := new(Challenge)
	if err := decode(tagChallenge, document, c); err != nil {
		return nil, err
	}
	if c.Version != Version || len(c.Nonce) != nonceLen || c.Credential != nil && len(c.Credential) == 0 {
		return nil, fmt.Errorf("%w: version or lengths", ErrForm)
	}
	return c, nil
}

// ParseSecret reads the verifier's own document. Errors: ErrForm.
func ParseSecret(document []byte) (*Secret, error) {
	s := new(Secret)
	if err := decode(tagSecret, document, s); err != nil {
		return nil, err
	}
	bound := s.Credential != nil
	switch {
	case s.Version != Version || len(s.Challenge) != sha256.Size || bound && len(s.Credential) != secretLen:
		return nil, fmt.Errorf("%w: version or lengths", ErrForm)
	case s.Identity == nil:
		if bound || s.Anchor != "" {
			return nil, fmt.Errorf("%w: secret without identity", ErrForm)
		}
		return s, nil
	}
	return s, s.Identity.check()
}

// ParseAnswer reads an answer document. Errors: ErrForm. Nothing in it is proven before Verify.
func ParseAnswer(document []byte) (*Answer, error) {
	a := new(Answer)
	if err := decode(tagAnswer, document, a); err != nil {
		return nil, err
	}
	if a.Statement.Version != Version {
		return nil, fmt.Errorf("%w: version", ErrForm)
	}
	return a, checkFormat(a.Statement.Format)
}

func (i *Identity) check() error {
	if i.Version != Version || len(i.AttestationKey) == 0 {
		return fmt.Errorf("%w: version or key", ErrForm)
	}
	return checkFormat(i.Format)
}

func checkFormat(f token.AttestFormat) error {
	if f != token.AttestTPM2 && f != token.AttestPIV {
		return fmt.Errorf("%w: unknown format %.16q", ErrForm, string(f))
	}
	return nil
}

// encode writes a document.
func encode(tag string, v any) ([]byte, error) {
	body, err := strictjson.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", tag, err)
	}
	return fmt.Appendf(nil, `{"%s":%s}`+"\n", tag, body), nil
}

// decode reads a document in its one encoding.
func decode(tag string, document []byte, v any) error {
	if len(document) > MaxDocument {
		return fmt.Errorf("%w: longer than %d octets", ErrForm, MaxDocument)
	}
	var tagged strictjson.Tagged
	if err := strictjson.Unmarshal(document, &tagged); err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	if tagged.Tag != tag {
		return fmt.Errorf("%w: it is a %.32q, not a %s", ErrForm, tagged.Tag, tag)
	}
	if err := tagged.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	again, err := encode(tag, v)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	if !bytes.Equal(again, document) {
		return fmt.Errorf("%w: not in its one encoding", ErrForm)
	}
	return nil
}
