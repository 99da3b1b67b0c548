package token

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Attester is a Token whose device proves to somebody far away which keys are in it.
// What the evidence means, and what it takes to believe it, is internal/attest's.
type Attester interface {
	Token
	// AttestFormat says of which format its identity and evidence are. It does no I/O.
	AttestFormat() AttestFormat
	// AttestIdentity returns what the device is known by. Errors: ErrAbsent, ErrReplaced.
	AttestIdentity(ctx context.Context) (AttestIdentity, error)
	// Attest makes evidence about one key. Errors: as Token.Open; ErrUnsupported (the key
	// is not one that the device can speak of), ErrBadRequest (PCRs), ErrDecrypt (the credential is
	// not for this device), ErrAuthNeeded, ErrAuthWrong, ErrLockedOut.
	Attest(ctx context.Context, req AttestRequest) (AttestEvidence, error)
}

// AttestFormat says what the fields of an identity and of evidence hold.
type AttestFormat string

// The formats.
const (
	AttestTPM2 AttestFormat = "tpm2"
	AttestPIV  AttestFormat = "piv"
)

// AttestIdentity is what a device is known by. Nothing in it is secret.
type AttestIdentity struct {
	Format AttestFormat
	// Certificates in DER, the device's own first, then its issuers as far as the device has
	// them. tpm2: of the endorsement key, none if the TPM has no certificate. piv: that of slot F9.
	Certificates [][]byte
	// Endorsement is, for tpm2, the TPMT_PUBLIC of the endorsement key; else empty.
	Endorsement []byte
	// AttestationKey is the key that signs evidence: TPMT_PUBLIC; for piv the certificate of
	// slot F9 once more.
	AttestationKey []byte
}

// AttestRequest asks for evidence about a key.
type AttestRequest struct {
	Key OpenRequest
	// Qualifying is a digest of 32 octets that the evidence is bound to, where the device can.
	Qualifying []byte
	// PCRs is a selection such as "sha256:0,7" of platform measurements to vouch for, or
	// empty. A device without any returns ErrUnsupported.
	PCRs string
	// Credential is a challenge that only the device of this identity can open, or empty.
	// tpm2: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, one after the other.
	Credential []byte
	Auth       Auth
}

// AttestEvidence is what a device says about a key.
type AttestEvidence struct {
	Format AttestFormat
	// Key is the key as the device describes it: TPMT_PUBLIC; for piv the certificate that
	// slot F9 issued for it.
	Key []byte
	// AttestationKey is that of the identity.
	AttestationKey []byte
	// Certify is the TPMS_ATTEST of TPM2_Certify; empty for piv, where Key is signed.
	Certify []byte
	// Signature by AttestationKey over Certify: ECDSA with SHA-256, ASN.1 DER. For piv it is
	// by the attested key itself over Qualifying, as the message, with SHA-256 (Ed25519: pure), and
	// empty if that key does not sign.
	Signature []byte
	// PCRs are the values that Quote is about, in the order of the selection.
	PCRs []PCR
	// Quote is the TPMS_ATTEST of TPM2_Quote, QuoteSignature as Signature; empty without PCRs.
	Quote, QuoteSignature []byte
	// Secret is what was in the request's Credential. The caller wipes it.
	Secret []byte
}

// PCR is the value of a platform configuration register.
type PCR struct {
	Bank  string // "sha256"
	Index int
	Value []byte
}

// PCRSelection is a choice of PCRs of one bank.
type PCRSelection struct {
	Bank    string // "sha256", "sha384" or "sha512"; SHA-1 is refused
	Indices []int  // ascending, each once
}

// maxPCR is the last PCR of a TPM of the PC Client Platform.
const maxPCR = 23

// ParsePCRs reads a selection such as "sha256:0,7" in any order. The error wraps ErrBadRequest.
func ParsePCRs(text string) (PCRSelection, error) {
	bank, list, ok := strings.Cut(text, ":")
	if !ok || !slices.Contains([]string{"sha256", "sha384", "sha512"}, bank) {
		return PCRSelection{}, fmt.Errorf("%w: PCRs %.32q are not of the form sha256:0,7", ErrBadRequest, text)
	}
	s := PCRSelection{Bank: bank}
	for _, word := range strings.Split(list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 0 || n > maxPCR || strconv.Itoa(n) != word || slices.Contains(s.Indices, n) {
			return PCRSelection{}, fmt.Errorf("%w: PCR %.32q is not a number from 0 to %d given once", ErrBadRequest, word, maxPCR)
		}
		s.Indices = append(s.Indices, n)
	}
	slices.Sort(s.Indices)
	return s, nil
}

// String returns the one text of a selection.
func (s PCRSelection) String() string {
	words := make([]string, len(s.Indices))
	for i, n := range s.Indices {
		words[i] = strconv.Itoa(n)
	}
	return s.Bank + ":" + strings.Join(words, ",")
}
