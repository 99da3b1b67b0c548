package pivtest

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"time"
)

// Extensions of attestation certificates
// (https://developers.yubico.com/PIV/Introduction/PIV_attestation.html).
var (
	oidFirmware   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 3}
	oidSerial     = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 7}
	oidPolicy     = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 8}
	oidFormFactor = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 9}
)

const formFactor = 0x01 // USB-A keychain

// attestation is the key in slot F9 and the chain above it. It does not change.
type attestation struct {
	key    *slotKey
	cert   *x509.Certificate
	root   *x509.Certificate
	object []byte // as stored in object 5FFF01
}

// newAttestation makes a root of its own for every card.
func newAttestation() *attestation {
	rootKey, deviceKey := mustP256(), mustP256()
	rootTemplate := caTemplate("pivtest root", 1)
	root := mustCertificate(rootTemplate, rootTemplate, rootKey, rootKey)
	cert := mustCertificate(caTemplate("pivtest PIV Attestation", 0), root, deviceKey, rootKey)
	return &attestation{
		key:    &slotKey{(*ecKey)(deviceKey), AlgP256, PINPolicyAlways, TouchPolicyNever, originImported},
		cert:   cert,
		root:   root,
		object: certificateObject(cert.Raw),
	}
}

func caTemplate(name string, pathLength int) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		SerialNumber:          new(big.Int).SetBytes(random(8)),
		NotBefore:             time.Date(2016, 3, 14, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(2052, 4, 17, 0, 0, 0, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            pathLength,
		MaxPathLenZero:        pathLength == 0,
		KeyUsage:              x509.KeyUsageCertSign,
	}
}

func mustP256() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return key
}

func mustCertificate(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		panic(err) // the templates are our own
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

// certificateObject wraps a certificate as SP 800-73-4 Part 1, Table 10 says.
func certificateObject(der []byte) []byte {
	return append(append(encode(0x70, der), encode(0x71, []byte{0})...), encode(0xFE)...)
}

// AttestationRoot returns the certificate authority above the key that the card came with in
// slot F9. Every card has its own.
func (c *Card) AttestationRoot() *x509.Certificate { return c.state.attestation.root }

// attest makes the statement about a key generated in a slot, signed with the key that is in F9 now.
func (c *Card) attest(slot byte) ([]byte, sw) {
	key, device := c.state.keys[slot], c.state.keys[SlotAttestation]
	if slot == SlotAttestation || key == nil || key.origin != originGenerated || device == nil {
		return nil, swWrongData
	}
	private, ok := device.privateKey.(*ecKey)
	if !ok {
		return nil, swConditions // a key imported into F9 that is not EC: not simulated
	}
	serial, err := asn1.Marshal(int64(c.config.Serial))
	if err != nil {
		return nil, swUnknownFailure
	}
	template := &x509.Certificate{
		Subject:            pkix.Name{CommonName: fmt.Sprintf("YubiKey PIV Attestation %x", slot)},
		SerialNumber:       new(big.Int).SetBytes(random(16)),
		NotBefore:          c.state.attestation.cert.NotBefore,
		NotAfter:           c.state.attestation.cert.NotAfter,
		SignatureAlgorithm: x509.ECDSAWithSHA256,
		ExtraExtensions: []pkix.Extension{
			{Id: oidFirmware, Value: c.config.Version[:]},
			{Id: oidPolicy, Value: []byte{key.pin, key.touch}},
		},
	}
	if c.atLeast(5, 0) { // a YubiKey 4 has the two others only, as its published statements show
		template.ExtraExtensions = append(template.ExtraExtensions,
			pkix.Extension{Id: oidSerial, Value: serial}, pkix.Extension{Id: oidFormFactor, Value: []byte{formFactor}})
	}
	der, err := certify(template, c.issuer(), key.public(), private.key())
	if err != nil {
		return nil, swUnknownFailure
	}
	return der, swOK
}

// certify is x509.CreateCertificate for X25519 keys too.
func certify(template, parent *x509.Certificate, public crypto.PublicKey, signer *ecdsa.PrivateKey) ([]byte, error) {
	u, ok := public.(*ecdh.PublicKey)
	if !ok {
		return x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, ed25519.PublicKey(u.Bytes()), signer)
	if err != nil {
		return nil, err
	}
	var cert struct {
		TBS       asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &cert); err != nil {
		return nil, err
	}
	// The two keys are encoded alike but for the last byte of the algorithm (RFC 8410, Section 3).
	spki := join([]byte{0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00}, u.Bytes())
	montgomery := bytes.Clone(spki)
	montgomery[6] = 0x6E
	cert.TBS.FullBytes = bytes.Replace(cert.TBS.FullBytes, spki, montgomery, 1)
	digest := sha256.Sum256(cert.TBS.FullBytes)
	cert.Signature.Bytes, err = ecdsa.SignASN1(rand.Reader, signer, digest[:])
	if err != nil {
		return nil, err
	}
	cert.Signature.BitLength = 8 * len(cert.Signature.Bytes)
	return asn1.Marshal(cert)
}

// issuer returns what stands as issuer in statements: the certificate stored for F9, or the
// one the card came with if there is none to be read. A statement fails if another key is in F9.
func (c *Card) issuer() *x509.Certificate {
	parts, ok := decodeAll(c.state.objects[objectAttestation])
	if ok {
		if cert, err := x509.ParseCertificate(parts[0x70]); err == nil {
			return cert
		}
	}
	return c.state.attestation.cert
}
