package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// policyDigest is the digest of a policy (TPM 2.0 Part 1, 19.7.2).
type policyDigest []byte

func (p policyDigest) extend(parts ...[]byte) policyDigest {
	if p == nil {
		p = make([]byte, sha256.Size)
	}
	h := sha256.New()
	h.Write(p)
	for _, b := range parts {
		h.Write(b)
	}
	return h.Sum(nil)
}

func code(cc tpm2.TPMCC) []byte { return binary.BigEndian.AppendUint32(nil, uint32(cc)) }

// pcr is TPM2_PolicyPCR, Part 3, 23.7.
func (p policyDigest) pcr(list tpm2.TPMLPCRSelection, values []token.PCR) policyDigest {
	h := sha256.New()
	for _, v := range values {
		h.Write(v.Value)
	}
	return p.extend(code(tpm2.TPMCCPolicyPCR), tpm2.Marshal(list), h.Sum(nil))
}

// authValue is TPM2_PolicyAuthValue, Part 3, 23.17.
func (p policyDigest) authValue() policyDigest { return p.extend(code(tpm2.TPMCCPolicyAuthValue)) }

// signed is TPM2_PolicySigned with an empty policyRef, Part 3, 23.3.
func (p policyDigest) signed(keyName []byte) policyDigest {
	return p.extend(code(tpm2.TPMCCPolicySigned), keyName).extend()
}

// or is TPM2_PolicyOR, Part 3, 23.6, which forgets what came before.
func (p policyDigest) or(branches ...[]byte) policyDigest {
	return policyDigest(nil).extend(append([][]byte{code(tpm2.TPMCCPolicyOR)}, branches...)...)
}

// measure returns the policy digest of the registers as they are. The values are read in
// the clear, and so compared with what the TPM itself makes of them in a policy session that is shown to be one. A trial
// session would take whatever values it is given.
func (d *device) measure(pcrs token.PCRSelection) (policyDigest, error) {
	list, err := parseSelection(pcrs.String())
	if err != nil {
		return nil, err
	}
	values, err := d.readPCRs(list)
	if err != nil {
		return nil, fmt.Errorf("read PCRs: %w", err)
	}
	p, err := d.startSession(tpm2.TPMSEPolicy)
	if err != nil {
		return nil, err
	}
	digest, err := d.pcrDigest(p, list)
	if err = errors.Join(err, d.flush(p.handle)); err != nil {
		return nil, err
	}
	want := policyDigest(nil).pcr(list, values)
	if len(values) != len(pcrs.Indices) || !bytes.Equal(digest, want) {
		return nil, fmt.Errorf("PCRs %s: not allocated in this TPM, or changing: %w", pcrs, token.ErrUnsupported)
	}
	return want, nil
}

// pcrDigest returns the digest of a policy session after TPM2_PolicyPCR, over the session that only the TPM can answer.
func (d *device) pcrDigest(p *session, list tpm2.TPMLPCRSelection) ([]byte, error) {
	if err := d.tryOut(p); err != nil {
		return nil, err
	}
	if _, err := run(d, tpm2.PolicyPCR{PolicySession: p.handle, Pcrs: list}); err != nil {
		return nil, err
	}
	rsp, err := run(d, tpm2.PolicyGetDigest{PolicySession: p.handle}, d.authorize(nil, outward))
	if err != nil {
		return nil, err
	}
	return rsp.PolicyDigest.Buffer, nil
}
