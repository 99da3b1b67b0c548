package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/mesh-agent/mesh-agent/token"
)

var _ token.Attester = (*Token)(nil)

// AttestFormat returns token.AttestTPM2.
func (t *Token) AttestFormat() token.AttestFormat { return token.AttestTPM2 }

// AttestIdentity returns the TPM's endorsement key, its certificates, and the key that signs
// evidence. Neither key is stored: a TPM derives both from its endorsement seed whenever
// they are needed, and they are the same until the TPM's maker or owner changes that seed.
func (t *Token) AttestIdentity(ctx context.Context) (token.AttestIdentity, error) {
	return do(ctx, t, "identify", func(d *device) (id token.AttestIdentity, err error) {
		if err := d.evict(0); err != nil {
			return id, err
		}
		err = d.withAttestationKey(func(ak primary) error {
			id = token.AttestIdentity{Format: token.AttestTPM2, AttestationKey: ak.area}
			return d.withEndorsementKey(func(ek primary, e endorsement) error {
				id.Endorsement, id.Certificates = ek.area, e.certificates
				return nil
			})
		})
		return id, err
	})
}

// Attest makes evidence about a key with TPM2_Certify, about PCRs with TPM2_Quote, and opens
// a credential with TPM2_ActivateCredential (TPM 2.0 Part 3, 18.2, 18.4, 12.5).
func (t *Token) Attest(ctx context.Context, req token.AttestRequest) (token.AttestEvidence, error) {
	var none token.AttestEvidence
	if len(req.Qualifying) != sha256.Size {
		return none, fmt.Errorf("tpm: attest: %w: qualifying data of %d octets", token.ErrBadRequest, len(req.Qualifying))
	}
	pcrs, err := parseSelection(req.PCRs)
	if err != nil {
		return none, fmt.Errorf("tpm: attest: %w", err)
	}
	k, err := t.Open(ctx, req.Key)
	if err != nil {
		return none, err
	}
	inside, ok := k.(interface {
		attest(context.Context, attestation) (token.AttestEvidence, error)
	})
	if !ok {
		return none, fmt.Errorf("tpm: attest: not a key inside the TPM: %w", token.ErrUnsupported)
	}
	return inside.attest(ctx, attestation{req, pcrs})
}

// attest makes evidence about the key. To certify a key is to use it: it asks for the PIN.
func (k *key) attest(ctx context.Context, a attestation) (token.AttestEvidence, error) {
	o, err := k.token.pin.offerTo(&k.blob.object, a.req.Auth)
	if err != nil {
		return token.AttestEvidence{}, fmt.Errorf("tpm: attest: %w", err)
	}
	defer o.wipe()
	e, err := do(ctx, k.token, "attest", func(d *device) (token.AttestEvidence, error) {
		value, err := o.keyValue(d, k.blob.valueName())
		if err != nil {
			return token.AttestEvidence{}, err
		}
		defer clear(value)
		e, err := a.evidence(d, &k.blob.object, value)
		return e, k.token.pin.used(&k.blob.object, o, err)
	})
	k.token.pin.learn(a.req.Auth.PIN, err)
	return e, err
}

// primary is a loaded key of the endorsement hierarchy.
type primary struct {
	tpm2.NamedHandle
	area []byte // TPMT_PUBLIC
}

// attestationTemplate is a P-256 key that signs nothing but what the TPM itself states. The
// unique field sets it apart from the keys of other programs, whose templates may be equal
// otherwise; it needs no authorization value.
func attestationTemplate() tpm2.TPMTPublic {
	apart := sha256.Sum256([]byte("mesh-agent attestation key 1"))
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
			Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: apart[:]},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

// withAttestationKey runs f with the attestation key loaded. Beside the storage root key there is
// room for it and one more object.
func (d *device) withAttestationKey(f func(ak primary) error) error {
	ak, err := d.createEndorsed(attestationTemplate())
	if err != nil {
		return fmt.Errorf("make attestation key: %w", err)
	}
	return d.thenFlush(ak, f(ak))
}

// thenFlush unloads a primary key after what was done with it.
func (d *device) thenFlush(o primary, err error) error {
	if err != nil && lost(err) {
		return err
	}
	return errors.Join(err, d.flush(o.Handle))
}

// createEndorsed derives a primary key from the endorsement seed.
func (d *device) createEndorsed(template tpm2.TPMTPublic) (primary, error) {
	rsp, err := run(d, tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	})
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		needed := &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "endorsement password", TriesLeft: token.TriesUnknown}
		return primary{}, fmt.Errorf("%w: %w", needed, err)
	}
	if err != nil {
		return primary{}, err
	}
	return primary{tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}, rsp.OutPublic.Bytes()}, nil
}

// attestation is what evidence is asked for.
type attestation struct {
	req  token.AttestRequest
	pcrs tpm2.TPMLPCRSelection
}

// evidence loads the key, then the attestation key, and when the key is not needed any more the
// endorsement key: more does not fit.
func (a attestation) evidence(d *device, o *object, value []byte) (e token.AttestEvidence, err error) {
	if err := d.evict(0); err != nil {
		return e, err
	}
	h, err := d.use(o)
	if err != nil {
		return e, err
	}
	e = token.AttestEvidence{Format: token.AttestTPM2, Key: o.area}
	err = d.withAttestationKey(func(ak primary) error {
		e.AttestationKey = ak.area
		if err := a.certify(d, ak, d.auth(h, value, inward), &e); err != nil {
			return err
		}
		return a.more(d, ak, &e)
	})
	if err != nil {
		clear(e.Secret)
		return token.AttestEvidence{}, err
	}
	return e, nil
}

// more adds what is not about the key.
func (a attestation) more(d *device, ak primary, e *token.AttestEvidence) error {
	if len(a.pcrs.PCRSelections) != 0 {
		if err := a.quote(d, ak, e); err != nil {
			return err
		}
	}
	if len(a.req.Credential) == 0 {
		return nil
	}
	if err := d.evict(0); err != nil {
		return err
	}
	return a.activate(d, ak, e)
}

func (a attestation) certify(d *device, ak primary, key tpm2.AuthHandle, e *token.AttestEvidence) error {
	rsp, err := run(d, tpm2.Certify{
		ObjectHandle:   key,
		SignHandle:     tpm2.AuthHandle{Handle: ak.Handle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: a.req.Qualifying},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
	})
	if err != nil {
		return fmt.Errorf("certify: %w", err)
	}
	e.Certify = rsp.CertifyInfo.Bytes()
	e.Signature, err = signatureDER(rsp.Signature)
	return err
}

// maxQuotes is how often PCRs are read anew that change between reading and quoting.
const maxQuotes = 4

func (a attestation) quote(d *device, ak primary, e *token.AttestEvidence) error {
	for range maxQuotes {
		values, err := d.readPCRs(a.pcrs)
		if err != nil {
			return fmt.Errorf("read PCRs: %w", err)
		}
		rsp, err := run(d, tpm2.Quote{
			SignHandle:     d.auth(ak.NamedHandle, nil, inward),
			QualifyingData: tpm2.TPM2BData{Buffer: a.req.Qualifying},
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			PCRSelect:      a.pcrs,
		})
		if err != nil {
			return fmt.Errorf("quote: %w", err)
		}
		fits, err := quoted(rsp.Quoted, values)
		if err != nil {
			return fmt.Errorf("quote: %w: %w", token.ErrFault, err)
		}
		if fits {
			e.PCRs, e.Quote = values, rsp.Quoted.Bytes()
			e.QuoteSignature, err = signatureDER(rsp.Signature)
			return err
		}
	}
	return fmt.Errorf("quote: the PCRs keep changing: %w", token.ErrPCR)
}

// quoted reports whether a quote is about these values.
func quoted(quote tpm2.TPM2BAttest, values []token.PCR) (bool, error) {
	attest, err := quote.Contents()
	if err != nil {
		return false, err
	}
	info, err := attest.Attested.Quote()
	if err != nil {
		return false, err
	}
	h := sha256.New() // the attestation key's
	for _, v := range values {
		h.Write(v.Value)
	}
	return bytes.Equal(info.PCRDigest.Buffer, h.Sum(nil)), nil
}

// signatureDER writes an ECDSA signature in ASN.1 DER.
func signatureDER(s tpm2.TPMTSignature) ([]byte, error) {
	ecdsa, err := s.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(ecdsa.SignatureR.Buffer), new(big.Int).SetBytes(ecdsa.SignatureS.Buffer),
	})
}

// activate opens the credential, which the TPM does only if it was made for both this
// endorsement key and this attestation key.
func (a attestation) activate(d *device, ak primary, e *token.AttestEvidence) error {
	blob, rest, err := cut(a.req.Credential)
	if err != nil {
		return fmt.Errorf("activate credential: %w: %w", token.ErrBadRequest, err)
	}
	seed, rest, err := cut(rest)
	if err != nil || len(rest) != 0 {
		return fmt.Errorf("activate credential: %w: it is not two sized buffers", token.ErrBadRequest)
	}
	return d.withEndorsementKey(func(ek primary, kind endorsement) error {
		e.Secret, err = d.activate(ak, kind.authorized(ek), blob, seed)
		return err
	})
}

func (d *device) activate(ak primary, ek tpm2.AuthHandle, blob, seed []byte) ([]byte, error) {
	rsp, err := run(d, tpm2.ActivateCredential{
		ActivateHandle: d.auth(ak.NamedHandle, nil, bothway),
		KeyHandle:      ek,
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: blob},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: seed},
	})
	var refused tpm2.TPMFmt1Error
	switch {
	case errors.As(err, &refused):
		return nil, fmt.Errorf("activate credential: %w: %w", token.ErrDecrypt, err)
	case err != nil:
		return nil, fmt.Errorf("activate credential: %w", err)
	}
	return rsp.CertInfo.Buffer, nil
}

// policyEndorsement satisfies TPM2_PolicySecret(TPM_RH_ENDORSEMENT), with an empty password.
func policyEndorsement(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session,
		NonceTPM:      nonce,
	}.Execute(tpm)
	return err
}
