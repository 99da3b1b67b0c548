package tpm

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// endorsement is one kind of endorsement key of the TCG EK Credential Profile for TPM Family 2.0,
// version 2.5 (its annex B): the template that derives it and where its certificate is.
type endorsement struct {
	template    tpm2.TPMTPublic
	certificate tpm2.TPMHandle // NV index
	persistent  tpm2.TPMHandle // where makers and operating systems keep the key, if they do
	policy      bool           // needs TPM2_PolicySecret; otherwise its empty password does
	// certificates of this TPM's key, DER, its own first.
	certificates [][]byte
}

// endorsements are the kinds, in the order of preference: elliptic curves are made at
// once where RSA primes may take a minute.
func endorsements() []endorsement {
	return []endorsement{
		{template: tpm2.ECCEKTemplate, certificate: 0x01c0000a, persistent: 0x81010002, policy: true},                          // L-2
		{template: highTemplate(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 128), certificate: 0x01c00014, persistent: 0x81010014}, // H-2
		{template: highTemplate(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, 256), certificate: 0x01c00016, persistent: 0x81010016}, // H-3
		{template: tpm2.RSAEKTemplate, certificate: 0x01c00002, persistent: 0x81010001, policy: true},                          // L-1
	}
}

// Certificates of issuers, one after another through the indices (EK Credential Profile, 2.2.1.5.2).
const firstChain, lastChain = tpm2.TPMHandle(0x01c00100), tpm2.TPMHandle(0x01c001ff)

// highTemplate is a template of the high range for a curve. Its policy, PolicyB, is
// TPM2_PolicyOR of TPM2_PolicySecret(TPM_RH_ENDORSEMENT) and TPM2_PolicyAuthorizeNV.
func highTemplate(curve tpm2.TPMECCCurve, hash tpm2.TPMAlgID, bits tpm2.TPMKeyBits) tpm2.TPMTPublic {
	policy, err := hex.DecodeString(map[tpm2.TPMAlgID]string{
		tpm2.TPMAlgSHA256: "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0",
		tpm2.TPMAlgSHA384: "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12",
	}[hash])
	if err != nil {
		panic("tpm: " + err.Error())
	}
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: hash,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true,
			AdminWithPolicy: true, Restricted: true, Decrypt: true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			Scheme:  tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull},
			CurveID: curve,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// authorized returns the key with what its use asks for.
func (e endorsement) authorized(ek primary) tpm2.AuthHandle {
	h := tpm2.AuthHandle{Handle: ek.Handle, Name: ek.Name, Auth: tpm2.PasswordAuth(nil)}
	if e.policy {
		h.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, nonceLen, policyEndorsement)
	}
	return h
}

// withEndorsementKey runs f with the endorsement key that has a certificate, or if none has
// one with the first that the TPM can make. There must be room for one object.
func (d *device) withEndorsementKey(f func(ek primary, e endorsement) error) error {
	kinds := endorsements()
	for _, e := range kinds {
		found, err := d.endorsed(e, f)
		if found || err != nil {
			return err
		}
	}
	for _, e := range kinds {
		ek, flush, err := d.openEndorsement(e)
		var refused tpm2.TPMFmt1Error
		if errors.As(err, &refused) {
			continue // no such curve, or its template is not supported
		}
		if err != nil {
			return err
		}
		return flush(f(ek, e))
	}
	return fmt.Errorf("no endorsement key: %w", token.ErrUnsupported)
}

// endorsed runs f if there is a certificate of this kind and it belongs to the key. A
// certificate of another key, after the endorsement seed was changed, counts as none.
func (d *device) endorsed(e endorsement, f func(ek primary, e endorsement) error) (found bool, err error) {
	stored, err := d.readNV(e.certificate)
	if err != nil || stored == nil {
		return false, err
	}
	own := splitDER(stored)
	if len(own) == 0 {
		return false, nil
	}
	ek, flush, err := d.openEndorsement(e)
	if err != nil {
		return false, fmt.Errorf("make endorsement key: %w", err)
	}
	if !certifies(own[0], ek) {
		return false, flush(nil)
	}
	e.certificates = own
	chain, err := d.readChain()
	if err == nil {
		e.certificates = append(e.certificates, chain...)
		err = f(ek, e)
	}
	return true, flush(err)
}

// openEndorsement returns the key and the function that unloads it. A persistent one saves
// the time of making it.
func (d *device) openEndorsement(e endorsement) (primary, func(error) error, error) {
	keep := func(err error) error { return err }
	rsp, err := run(d, tpm2.ReadPublic{ObjectHandle: e.persistent})
	if err != nil && !errors.Is(err, tpm2.TPMRCHandle) {
		return primary{}, nil, err
	}
	if err == nil && sameTemplate(rsp.OutPublic.Bytes(), e.template) {
		return primary{tpm2.NamedHandle{Handle: e.persistent, Name: rsp.Name}, rsp.OutPublic.Bytes()}, keep, nil
	}
	ek, err := d.createEndorsed(e.template)
	if err != nil {
		return primary{}, nil, err
	}
	return ek, func(err error) error { return d.thenFlush(ek, err) }, nil
}

// sameTemplate reports whether a public area is that of a template but for the key itself.
func sameTemplate(area []byte, template tpm2.TPMTPublic) bool {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil || public.Type != template.Type {
		return false
	}
	public.Unique = template.Unique
	return bytes.Equal(tpm2.Marshal(*public), tpm2.Marshal(template))
}

// certifies reports whether a certificate is for the key. One that the standard library
// cannot read is left to the verifier.
func certifies(der []byte, ek primary) bool {
	cert, err := x509.ParseCertificate(der)
	if err != nil || cert.PublicKey == nil {
		return true
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ek.area)
	if err != nil {
		return false
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return false
	}
	encoded, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return false
	}
	certified, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
	return err == nil && bytes.Equal(encoded, certified)
}

// readChain returns the certificates of issuers that the TPM's maker put into it.
func (d *device) readChain() ([][]byte, error) {
	handles, err := d.handles(uint32(firstChain))
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, h := range handles {
		if h > lastChain {
			break
		}
		part, err := d.readNV(h)
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	return splitDER(all), nil
}

const (
	maxNV   = 8192 // octets of an NV index that are read: certificates have one or two thousand
	nvChunk = 512  // octets that every TPM gives at once
)

// readNV reads an NV index with its empty authorization value; nil if there is none, or it
// cannot be read so.
func (d *device) readNV(index tpm2.TPMHandle) ([]byte, error) {
	rsp, err := run(d, tpm2.NVReadPublic{NVIndex: index})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil || public.DataSize > maxNV || !public.Attributes.AuthRead || !public.Attributes.Written {
		return nil, nil
	}
	var out []byte
	for len(out) < int(public.DataSize) {
		rsp, err := run(d, tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: index, Name: rsp.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: rsp.NVName},
			Size:       min(nvChunk, public.DataSize-uint16(len(out))),
			Offset:     uint16(len(out)),
		})
		if err != nil {
			return nil, fmt.Errorf("read NV index 0x%x: %w", uint32(index), err)
		}
		if len(rsp.Data.Buffer) == 0 {
			return nil, fmt.Errorf("read NV index 0x%x: %w: nothing came", uint32(index), token.ErrFault)
		}
		out = append(out, rsp.Data.Buffer...)
	}
	return out, nil
}

// splitDER takes DER objects one after another, up to the padding that some indices end in.
func splitDER(b []byte) [][]byte {
	var out [][]byte
	for {
		var one asn1.RawValue
		rest, err := asn1.Unmarshal(b, &one)
		if err != nil || one.Tag != asn1.TagSequence || one.Class != asn1.ClassUniversal {
			return out
		}
		out = append(out, one.FullBytes)
		b = rest
	}
}
