package tpm

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// curve is one of the NIST curves in the words of the TPM.
type curve struct {
	algorithm token.Algorithm
	id        tpm2.TPMECCCurve
	size      int // octets of a coordinate
}

func curves() []curve {
	return []curve{
		{token.P256, tpm2.TPMECCNistP256, 32},
		{token.P384, tpm2.TPMECCNistP384, 48},
		{token.P521, tpm2.TPMECCNistP521, 66},
	}
}

// probe finds out what the TPM is and which keys it has: a curve counts if the TPM lists it
// and TPM2_TestParms takes keys on it, an RSA length if TPM2_TestParms does.
func (d *device) probe() (*token.Info, error) {
	properties, err := d.properties(tpm2.TPMPTManufacturer)
	if err != nil {
		return nil, err
	}
	info := &token.Info{
		Name: "tpm", Kind: "tpm", Description: describe(properties), Parallel: 1,
		State: token.StateReady, Protection: token.ProtectionToken,
	}
	listed, err := d.eccCurves()
	if err != nil {
		return nil, err
	}
	for _, a := range token.Algorithms() {
		parms, ok := parmsOf(a, listed)
		if !ok {
			continue
		}
		if ok, err = d.testParms(parms); err != nil {
			return nil, err
		}
		if ok {
			info.Algorithms = append(info.Algorithms, a)
		}
	}
	return info, nil
}

func parmsOf(a token.Algorithm, listed []tpm2.TPMECCCurve) (tpm2.TPMTPublicParms, bool) {
	if bits := a.RSABits(); bits != 0 {
		return tpm2.TPMTPublicParms{Type: tpm2.TPMAlgRSA, Parameters: rsaParms(bits)}, true
	}
	for _, c := range curves() {
		if c.algorithm == a && slices.Contains(listed, c.id) {
			return tpm2.TPMTPublicParms{Type: tpm2.TPMAlgECC, Parameters: eccParms(c.id)}, true
		}
	}
	return tpm2.TPMTPublicParms{}, false
}

func (d *device) eccCurves() ([]tpm2.TPMECCCurve, error) {
	list, err := capability(d, tpm2.TPMCapECCCurves, 1, (*tpm2.TPMUCapabilities).ECCCurves)
	if err != nil {
		return nil, err
	}
	return list.ECCCurves, nil
}

func (d *device) testParms(parms tpm2.TPMTPublicParms) (bool, error) {
	_, err := run(d, tpm2.TestParms{Parameters: parms})
	if err != nil && lost(err) {
		return false, err
	}
	return err == nil, nil
}

// capability returns a list of what the TPM has, from first on, as much as goes into one response.
func capability[L any](d *device, c tpm2.TPMCap, first uint32, list func(*tpm2.TPMUCapabilities) (*L, error)) (*L, error) {
	rsp, err := run(d, tpm2.GetCapability{Capability: c, Property: first, PropertyCount: 64})
	if err != nil {
		return nil, err
	}
	l, err := list(&rsp.CapabilityData.Data)
	if err != nil {
		return nil, broken("parse capabilities", err)
	}
	return l, nil
}

// properties returns the fixed and variable properties from first on.
func (d *device) properties(first tpm2.TPMPT) (map[tpm2.TPMPT]uint32, error) {
	list, err := capability(d, tpm2.TPMCapTPMProperties, uint32(first), (*tpm2.TPMUCapabilities).TPMProperties)
	if err != nil {
		return nil, err
	}
	out := map[tpm2.TPMPT]uint32{}
	for _, p := range list.TPMProperty {
		out[p.Property] = p.Value
	}
	return out, nil
}

// describe names manufacturer, model and firmware, as far as they are printable.
func describe(properties map[tpm2.TPMPT]uint32) string {
	text := func(tags ...tpm2.TPMPT) string {
		var b []byte
		for _, tag := range tags {
			b = binary.BigEndian.AppendUint32(b, properties[tag])
		}
		return strings.Join(strings.FieldsFunc(string(b), func(r rune) bool { return r <= ' ' || r > '~' }), " ")
	}
	v1, v2 := properties[tpm2.TPMPTFirmwareVersion1], properties[tpm2.TPMPTFirmwareVersion2]
	return fmt.Sprintf("TPM 2.0 %s %s, firmware %d.%d.%d.%d", text(tpm2.TPMPTManufacturer),
		text(tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2, tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4),
		v1>>16, v1&0xffff, v2>>16, v2&0xffff)
}
