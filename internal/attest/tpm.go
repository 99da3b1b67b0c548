package attest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// TPMReport is what a TPM says of itself with each statement.
type TPMReport struct {
	Firmware     uint64 // as the maker numbers it
	ResetCount   uint32 // starts of the machine since the TPM was cleared
	RestartCount uint32 // resumptions since the last start
}

// attestationKey is a TPM's restricted signing key.
type attestationKey struct {
	name   []byte
	public *ecdsa.PublicKey
}

// parseArea reads a TPMT_PUBLIC in its one encoding, with a Name of at least 256 bits.
func parseArea(b []byte) (*tpm2.TPMTPublic, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil {
		return nil, errors.New("not a public area")
	}
	if !bytes.Equal(tpm2.Marshal(*public), b) {
		return nil, errors.New("public area is not in its one encoding")
	}
	switch public.NameAlg {
	case tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512:
		return public, nil
	}
	return nil, fmt.Errorf("name algorithm 0x%x", uint16(public.NameAlg))
}

// parseAttestationKey reads the public area of a key that signs nothing but what the TPM states:
// restricted, P-256, ECDSA with SHA-256, never outside of the TPM.
func parseAttestationKey(b []byte) (*attestationKey, error) {
	public, err := parseArea(b)
	if err != nil {
		return nil, err
	}
	a := public.ObjectAttributes
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.SignEncrypt || a.Decrypt {
		return nil, errors.New("not the attributes of an attestation key")
	}
	parms, err := public.Parameters.ECCDetail()
	if err != nil || parms.CurveID != tpm2.TPMECCNistP256 || parms.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return nil, errors.New("not an ECDSA key on P-256")
	}
	scheme, err := parms.Scheme.Details.ECDSA()
	if err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, errors.New("not a key for SHA-256")
	}
	pub, err := publicKey(public)
	if err != nil {
		return nil, err
	}
	standard, err := pub.Standard()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, err
	}
	return &attestationKey{name.Buffer, standard.(*ecdsa.PublicKey)}, nil
}

// publicKey returns the key of a public area; points are checked to be on their curve.
func publicKey(public *tpm2.TPMTPublic) (token.PublicKey, error) {
	key, err := tpm2.Pub(*public)
	if err != nil {
		return token.PublicKey{}, errors.New("key of an unknown kind")
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		for _, a := range token.Algorithms() {
			if a.RSABits() == key.N.BitLen() {
				return token.PublicKey{Algorithm: a, Octets: x509.MarshalPKCS1PublicKey(key)}, nil
			}
		}
		return token.PublicKey{}, fmt.Errorf("RSA key of %d bits", key.N.BitLen())
	case *ecdsa.PublicKey:
		octets, err := key.Bytes()
		if err != nil {
			return token.PublicKey{}, errors.New("point is not on the curve")
		}
		a := map[int]token.Algorithm{65: token.P256, 97: token.P384, 133: token.P521}[len(octets)]
		return token.PublicKey{Algorithm: a, Octets: octets}, nil
	}
	return token.PublicKey{}, errors.New("key of an unknown kind")
}

// checkTPM holds that the TPM certified the stated key, and the stated PCRs if there are any.
func checkTPM(v *verification) error {
	e := &v.answer.Evidence
	ak, err := parseAttestationKey(e.AttestationKey)
	if err != nil {
		return fmt.Errorf("%w: attestation key: %w", ErrEvidence, err)
	}
	area, err := parseArea(e.Key)
	if err != nil {
		return fmt.Errorf("%w: key: %w", ErrEvidence, err)
	}
	if err := v.statedKey(area); err != nil {
		return err
	}
	certify, err := ak.open(e.Certify, e.Signature, v.qualifying, tpm2.TPMSTAttestCertify)
	if err != nil {
		return fmt.Errorf("%w: certification: %w", ErrEvidence, err)
	}
	certified, err := certify.Attested.Certify()
	if err != nil {
		return fmt.Errorf("%w: certification: %w", ErrEvidence, err)
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return fmt.Errorf("%w: key: %w", ErrEvidence, err)
	}
	if !bytes.Equal(certified.Name.Buffer, name.Buffer) {
		return fmt.Errorf("%w: the TPM certified another key", ErrEvidence)
	}
	v.report.Platform = &TPMReport{certify.FirmwareVersion, certify.ClockInfo.ResetCount, certify.ClockInfo.RestartCount}
	v.describe(area)
	return v.quote(ak, certify)
}

// statedKey holds that the public area is that of the stated key.
func (v *verification) statedKey(area *tpm2.TPMTPublic) error {
	pub, err := publicKey(area)
	if err != nil {
		return fmt.Errorf("%w: key: %w", ErrEvidence, err)
	}
	stated, err := v.answer.Statement.PublicKey.PublicKey()
	if err != nil {
		return fmt.Errorf("%w: public key: %w", ErrForm, err)
	}
	if !pub.Equal(stated) {
		return fmt.Errorf("%w: it is about another key", ErrEvidence)
	}
	return nil
}

// open verifies a TPMS_ATTEST: made by a TPM of its own accord, of this type, over these
// qualifying data, signed by a primary key of the endorsement hierarchy that is this key.
func (k *attestationKey) open(attest, signature, qualifying []byte, kind tpm2.TPMISTAttest) (*tpm2.TPMSAttest, error) {
	digest := sha256.Sum256(attest)
	if !ecdsa.VerifyASN1(k.public, digest[:], signature) {
		return nil, errors.New("the signature is wrong")
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](attest)
	if err != nil || !bytes.Equal(tpm2.Marshal(*a), attest) {
		return nil, errors.New("not a statement of a TPM")
	}
	if a.Magic != tpm2.TPMGeneratedValue {
		// A restricted key signs nothing that begins so but what the TPM itself states.
		return nil, errors.New("a statement that the TPM did not make")
	}
	if a.Type != kind {
		return nil, fmt.Errorf("a statement of type 0x%x", uint16(a.Type))
	}
	if !bytes.Equal(a.ExtraData.Buffer, qualifying) {
		return nil, fmt.Errorf("%w: it was made for another challenge or statement", ErrChallenge)
	}
	if !bytes.Equal(a.QualifiedSigner.Buffer, k.qualifiedName()) {
		return nil, errors.New("the signer is not in the endorsement hierarchy")
	}
	return a, nil
}

// qualifiedName is that of a primary key of the endorsement hierarchy, TPM 2.0 Part 1, 26.5.
func (k *attestationKey) qualifiedName() []byte {
	sum := sha256.Sum256(append(tpm2.PrimaryHandleName(tpm2.TPMRHEndorsement), k.name...))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), sum[:]...)
}

// describe adds what the TPM guarantees by the key's attributes.
func (v *verification) describe(area *tpm2.TPMTPublic) {
	a, r := area.ObjectAttributes, v.report
	k := &r.Key
	k.FixedTPM, k.FixedParent, k.SensitiveDataOrigin = a.FixedTPM, a.FixedParent, a.SensitiveDataOrigin
	switch {
	case !a.SensitiveDataOrigin:
		k.Origin = originImported
	case a.FixedTPM && a.FixedParent:
		k.Origin = originGenerated
	default:
		k.Origin = originCopyable
	}
	k.Purpose = purpose(area)
	k.PIN = "guarded by the TPM's dictionary-attack protection, if it has one"
	if a.NoDA {
		k.PIN = "none that the TPM defends against guessing"
	}
	r.Proven = append(r.Proven, "the private key is in the TPM of the attestation key, now")
	if k.Origin == originGenerated {
		r.Proven = append(r.Proven, "the TPM generated it, and it cannot leave the TPM in a form that another one takes")
	}
	r.Proven = append(r.Proven, fmt.Sprintf("the TPM uses it to %s and for nothing else", k.Purpose))
	r.NotProven = append(r.NotProven, "that a PIN was chosen, or a good one")
}

func purpose(area *tpm2.TPMTPublic) string {
	a, ecc := area.ObjectAttributes, area.Type == tpm2.TPMAlgECC
	switch {
	case a.SignEncrypt && a.Decrypt && ecc:
		return "sign and agree"
	case a.SignEncrypt && a.Decrypt:
		return "sign and decrypt"
	case a.SignEncrypt:
		return "sign"
	case a.Decrypt && ecc:
		return "agree"
	case a.Decrypt:
		return "decrypt"
	}
	return "do nothing"
}

// quote holds that the TPM quoted the stated PCRs in the same run in which it certified.
func (v *verification) quote(ak *attestationKey, certify *tpm2.TPMSAttest) error {
	e, stated := &v.answer.Evidence, v.answer.Statement.PCRs
	if stated == "" {
		if e.PCRs != nil || e.Quote != nil || e.QuoteSignature != nil {
			return fmt.Errorf("%w: PCRs that are not stated", ErrEvidence)
		}
		v.report.NotProven = append(v.report.NotProven, "that the platform is in a certain state: no PCRs were asked for")
		return nil
	}
	attest, err := ak.open(e.Quote, e.QuoteSignature, v.qualifying, tpm2.TPMSTAttestQuote)
	if err != nil {
		return fmt.Errorf("%w: quote: %w", ErrEvidence, err)
	}
	quoted, err := attest.Attested.Quote()
	if err != nil {
		return fmt.Errorf("%w: quote: %w", ErrEvidence, err)
	}
	a, b := certify.ClockInfo, attest.ClockInfo
	if a.ResetCount != b.ResetCount || a.RestartCount != b.RestartCount {
		return fmt.Errorf("%w: the quote is of another run of the machine", ErrEvidence)
	}
	selection, err := token.ParsePCRs(stated)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForm, err)
	}
	if err := checkPCRs(selection, e.PCRs, quoted); err != nil {
		return fmt.Errorf("%w: quote: %w", ErrEvidence, err)
	}
	v.report.PCRs = e.PCRs
	v.report.Proven = append(v.report.Proven, "the PCRs had these values")
	v.report.NotProven = append(v.report.NotProven, "that these PCR values are good ones, or will stay")
	return nil
}

// checkPCRs holds that the selection, the values and the quote are of the same PCRs.
func checkPCRs(s token.PCRSelection, values []PCR, quoted *tpm2.TPMSQuoteInfo) error {
	bank := map[string]struct {
		id   tpm2.TPMIAlgHash
		size int
	}{"sha256": {tpm2.TPMAlgSHA256, 32}, "sha384": {tpm2.TPMAlgSHA384, 48}, "sha512": {tpm2.TPMAlgSHA512, 64}}[s.Bank]
	indices := make([]uint, len(s.Indices))
	for i, n := range s.Indices {
		indices[i] = uint(n)
	}
	want := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: bank.id, PCRSelect: tpm2.PCClientCompatible.PCRs(indices...)}}}
	if !bytes.Equal(tpm2.Marshal(want), tpm2.Marshal(quoted.PCRSelect)) || len(values) != len(s.Indices) {
		return errors.New("other PCRs than stated")
	}
	h := sha256.New() // the attestation key's hash
	for i, v := range values {
		if v.Bank != s.Bank || v.Index != s.Indices[i] || len(v.Value) != bank.size {
			return errors.New("other PCRs than stated")
		}
		h.Write(v.Value)
	}
	if !bytes.Equal(h.Sum(nil), quoted.PCRDigest.Buffer) {
		return errors.New("other values than the TPM has signed")
	}
	return nil
}
