package piv

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// AttestIdentity returns the certificate of the attestation key in slot F9. Its issuers are
// the manufacturer's; the card does not have them.
func (t *Token) AttestIdentity(ctx context.Context) (token.AttestIdentity, error) {
	cert, err := do(ctx, t, "read attestation certificate", func(ctx context.Context, s *session) (*x509.Certificate, error) {
		return s.attestationCertificate(ctx)
	})
	if err != nil {
		return token.AttestIdentity{}, err
	}
	return token.AttestIdentity{Format: token.AttestPIV, Certificates: [][]byte{cert.Raw}, AttestationKey: cert.Raw}, nil
}

func (s *session) attestationCertificate(ctx context.Context) (*x509.Certificate, error) {
	cert, err := s.Certificate(ctx, applet.SlotAttestation)
	if errors.Is(err, apdu.NotFound) {
		return nil, fmt.Errorf("the card has no attestation key: %w: %w", token.ErrUnsupported, err)
	}
	return cert, err
}

// Attest has the card state that a key was generated in it, and the key sign req.Qualifying if it
// signs. The statement is compared with slot, serial number and public key, and its
// signature verified, before it is returned. Errors as token.Attester; token.ErrUnsupported for
// an imported key.
func (t *Token) Attest(ctx context.Context, req token.AttestRequest) (token.AttestEvidence, error) {
	fail := func(err error) (token.AttestEvidence, error) {
		return token.AttestEvidence{}, fmt.Errorf("%s: attest key: %w", Name(t.options.Serial), err)
	}
	if req.PCRs != "" || len(req.Credential) != 0 {
		return fail(fmt.Errorf("a PIV card has no PCRs and opens no credentials: %w", token.ErrUnsupported))
	}
	h, err := openHandle(t.options.Serial, req.Key)
	if err != nil {
		return fail(err)
	}
	evidence, err := do(ctx, t, "attest key", func(ctx context.Context, s *session) (token.AttestEvidence, error) {
		return s.attest(ctx, h, req.Key.Public)
	})
	if err != nil {
		return token.AttestEvidence{}, err
	}
	evidence.Signature, err = t.possess(ctx, req)
	return evidence, err
}

func (s *session) attest(ctx context.Context, h handle, public token.PublicKey) (token.AttestEvidence, error) {
	issuer, err := s.attestationCertificate(ctx)
	if err != nil {
		return token.AttestEvidence{}, err
	}
	cert, err := s.Applet.Attest(ctx, h.slot)
	if errors.Is(err, apdu.BadData) || errors.Is(err, apdu.ReferenceMissing) {
		return token.AttestEvidence{}, fmt.Errorf("the card generated no key in slot %v: %w: %w", h.slot, token.ErrUnsupported, err)
	}
	if err != nil {
		return token.AttestEvidence{}, err
	}
	if err := compareStatement(issuer, cert, h, public); err != nil {
		return token.AttestEvidence{}, fmt.Errorf("%w: statement of slot %v: %w", token.ErrFault, h.slot, err)
	}
	return token.AttestEvidence{Format: token.AttestPIV, Key: cert.Raw, AttestationKey: issuer.Raw}, nil
}

// compareStatement holds that a statement is signed by the attestation key and about the key asked for.
func compareStatement(issuer, cert *x509.Certificate, h handle, public token.PublicKey) error {
	// Not CheckSignatureFrom: the attestation certificates of early cards do not say that they
	// are a CA's.
	if err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		return err
	}
	if name := "YubiKey PIV Attestation " + h.slot.String(); cert.Subject.CommonName != name {
		return fmt.Errorf("it is named %q, not %q", cert.Subject.CommonName, name)
	}
	statement, err := applet.ParseStatement(cert)
	if err != nil {
		return err
	}
	if statement.Serial != h.serial && statement.Serial != 0 {
		return fmt.Errorf("it is about card %d", statement.Serial)
	}
	stated, err := certified(cert)
	if err != nil {
		return err
	}
	if stated.Index() != public.Index() {
		return errors.New("it is about another key")
	}
	return nil
}

// possess signs the qualifying data, if the key signs.
func (t *Token) possess(ctx context.Context, req token.AttestRequest) ([]byte, error) {
	if !req.Key.Use.Signs() {
		return nil, nil
	}
	k, err := t.Open(ctx, req.Key)
	if err != nil {
		return nil, err
	}
	sign := token.SignRequest{Message: req.Qualifying, Hash: crypto.SHA256, Auth: req.Auth}
	switch k.(type) {
	case *ecdsaKey:
		sign.Scheme = token.SchemeECDSA
	case *rsaKey:
		sign.Scheme = token.SchemePKCS1v15
	default:
		sign.Scheme, sign.Hash = token.SchemeEdDSA, 0
	}
	signer, ok := k.(token.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: attest key: %w", Name(t.options.Serial), token.ErrUnsupported)
	}
	return signer.Sign(ctx, sign)
}

// AttestFormat returns token.AttestPIV.
func (t *Token) AttestFormat() token.AttestFormat { return token.AttestPIV }
