package tpm

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// parseSelection reads a selection of PCRs; an empty text selects none.
func parseSelection(text string) (list tpm2.TPMLPCRSelection, err error) {
	if text == "" {
		return list, nil
	}
	s, err := token.ParsePCRs(text)
	if err != nil {
		return list, err
	}
	indices := make([]uint, len(s.Indices))
	for i, n := range s.Indices {
		indices[i] = uint(n)
	}
	list.PCRSelections = []tpm2.TPMSPCRSelection{{Hash: bankID(s.Bank), PCRSelect: tpm2.PCClientCompatible.PCRs(indices...)}}
	return list, nil
}

func bankID(bank string) tpm2.TPMIAlgHash {
	return map[string]tpm2.TPMIAlgHash{
		"sha256": tpm2.TPMAlgSHA256, "sha384": tpm2.TPMAlgSHA384, "sha512": tpm2.TPMAlgSHA512,
	}[bank]
}

func bankName(id tpm2.TPMIAlgHash) string {
	for _, name := range []string{"sha256", "sha384", "sha512"} {
		if bankID(name) == id {
			return name
		}
	}
	return ""
}

// readPCRs reads the selected PCRs of one bank, of which a TPM gives some at a time. Nothing
// proves that the values are right. A bank that the TPM does not keep is token.ErrUnsupported.
func (d *device) readPCRs(list tpm2.TPMLPCRSelection) ([]token.PCR, error) {
	left := tpm2.TPMSPCRSelection{Hash: list.PCRSelections[0].Hash, PCRSelect: slices.Clone(list.PCRSelections[0].PCRSelect)}
	var out []token.PCR
	for !allZero(left.PCRSelect) {
		rsp, err := run(d, tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{left}}})
		if err != nil {
			return nil, err
		}
		got := rsp.PCRSelectionOut.PCRSelections
		if len(rsp.PCRValues.Digests) == 0 || len(got) != 1 {
			return nil, fmt.Errorf("the TPM does not keep the bank %s: %w", bankName(left.Hash), token.ErrUnsupported)
		}
		values, err := takePCRs(left, got[0].PCRSelect, rsp.PCRValues.Digests)
		if err != nil {
			return nil, err
		}
		out = append(out, values...)
	}
	slices.SortFunc(out, func(a, b token.PCR) int { return a.Index - b.Index })
	return out, nil
}

// takePCRs gives each register of got its value, and takes it out of left.
func takePCRs(left tpm2.TPMSPCRSelection, got []byte, values []tpm2.TPM2BDigest) (out []token.PCR, err error) {
	for n := range 8 * min(len(got), len(left.PCRSelect)) {
		octet, mask := n/8, byte(1)<<(n%8)
		if got[octet]&mask == 0 {
			continue
		}
		if left.PCRSelect[octet]&mask == 0 || len(values) == 0 {
			return nil, fmt.Errorf("%w: PCRs that were not asked for", token.ErrFault)
		}
		out = append(out, token.PCR{Bank: bankName(left.Hash), Index: n, Value: values[0].Buffer})
		values = values[1:]
		left.PCRSelect[octet] &^= mask
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: PCRs that were not asked for", token.ErrFault)
	}
	return out, nil
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
