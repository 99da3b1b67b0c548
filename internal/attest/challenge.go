package attest

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// ChallengeOptions say how a challenge is made. The zero value refuses every device.
type ChallengeOptions struct {
	// Roots are the certificates by which a device's certificate must be verified: those of the
	// makers of TPMs or cards that are trusted. Each is an anchor of its own.
	Roots []*x509.Certificate
	// AcceptUnverified does without a verified certificate. Then a challenge proves that
	// the attestation key is in the device of the endorsement key, whatever that is.
	AcceptUnverified bool
	// Now is the time at which certificates must be valid; zero means the present.
	Now time.Time
	// Validity is how long an answer will be accepted. It must be positive.
	Validity time.Duration
}

// NewChallenge checks who a device says it is and makes a challenge that only this device can
// answer, with what the verifier must keep. A nil identity gives a challenge for any device:
// its answers are fresh, and unbound. Errors: ErrForm, ErrCertificate.
func NewChallenge(id *Identity, o ChallengeOptions) (*Challenge, *Secret, error) {
	if o.Validity <= 0 {
		return nil, nil, errors.New("make challenge: it would expire at once")
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	c := &Challenge{Version: Version, Nonce: random(nonceLen)}
	s := &Secret{Version: Version, Expires: o.Now.Add(o.Validity).Unix(), Identity: id}
	if id != nil {
		var err error
		if s.Anchor, err = o.verify(id); err != nil {
			return nil, nil, err
		}
		if id.Format == token.AttestTPM2 {
			s.Credential = random(secretLen)
			if c.Credential, err = makeCredential(id, s.Credential); err != nil {
				return nil, nil, err
			}
		}
	}
	document, err := c.Marshal()
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(document)
	s.Challenge = sum[:]
	return c, s, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand
	return b
}

// verify verifies the device's certificate and returns which anchor it leads to.
func (o ChallengeOptions) verify(id *Identity) (anchor string, err error) {
	certificates, err := id.parse()
	if err != nil {
		return "", err
	}
	if id.Format == token.AttestTPM2 {
		if err := checkEndorsement(id, certificates); err != nil {
			return "", err
		}
	}
	switch {
	case len(o.Roots) != 0 && len(certificates) == 0:
		return "", fmt.Errorf("%w: the device has none", ErrCertificate)
	case len(o.Roots) != 0:
		return o.chain(certificates)
	case o.AcceptUnverified:
		return "", nil
	}
	return "", fmt.Errorf("%w: no CA certificates are given to verify it by", ErrCertificate)
}

// parse reads the certificates of an identity. For piv there must be that of the attestation key alone: issuers
// that the device names would let it put a card and one of its keys between the maker and that key.
func (i *Identity) parse() ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for n, der := range i.Certificates {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", ErrForm, n+1, err)
		}
		out = append(out, cert)
	}
	if i.Format != token.AttestPIV {
		return out, nil
	}
	if len(out) != 1 || !bytes.Equal(i.Certificates[0], i.AttestationKey) {
		return nil, fmt.Errorf("%w: not the certificate of the attestation key alone", ErrForm)
	}
	return out, checkAttestation(out[0])
}

// checkEndorsement holds that the endorsement key decrypts credentials and nothing else, and
// that the first certificate, if there is one, is its own.
func checkEndorsement(id *Identity, certificates []*x509.Certificate) error {
	ek, err := parseArea(id.Endorsement)
	if err != nil {
		return fmt.Errorf("%w: endorsement key: %w", ErrForm, err)
	}
	a := ek.ObjectAttributes
	if !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return fmt.Errorf("%w: not the attributes of an endorsement key", ErrForm)
	}
	if len(certificates) == 0 {
		return nil
	}
	key, err := tpm2.Pub(*ek)
	if err != nil {
		return fmt.Errorf("%w: endorsement key: %w", ErrForm, err)
	}
	if !forEndorsement(certificates[0]) {
		return fmt.Errorf("%w: it was issued for another purpose", ErrCertificate)
	}
	certified, err := publicKeyOf(certificates[0])
	if err != nil {
		return err
	}
	same, err := sameKey(key, certified)
	if err != nil || !same {
		return fmt.Errorf("%w: it is for another key than the endorsement key", ErrCertificate)
	}
	return nil
}

// forEndorsement reports whether a certificate that names purposes has tcg-kp-EKCertificate among
// them (EK Credential Profile, 3.2.16): a CA may issue others, too.
func forEndorsement(cert *x509.Certificate) bool {
	if len(cert.ExtKeyUsage) == 0 && len(cert.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.ContainsFunc(cert.UnknownExtKeyUsage, func(id asn1.ObjectIdentifier) bool {
		return id.Equal(asn1.ObjectIdentifier{2, 23, 133, 8, 1})
	})
}

// sameKey compares public keys of the standard library.
func sameKey(a, b any) (bool, error) {
	x, err := x509.MarshalPKIXPublicKey(a)
	if err != nil {
		return false, err
	}
	y, err := x509.MarshalPKIXPublicKey(b)
	return bytes.Equal(x, y), err
}

// publicKeyOf returns a certificate's key, also of two kinds that the standard library does
// not read in certificates: X25519, and RSA marked with id-RSAES-OAEP (RFC 4055, 4.1), as
// some makers of TPMs do.
func publicKeyOf(cert *x509.Certificate) (any, error) {
	if cert.PublicKey != nil {
		return cert.PublicKey, nil
	}
	if key, err := x509.ParsePKIXPublicKey(cert.RawSubjectPublicKeyInfo); err == nil {
		return key, nil
	}
	var info struct {
		Algorithm struct {
			Algorithm  asn1.ObjectIdentifier
			Parameters asn1.RawValue `asn1:"optional"`
		}
		PublicKey asn1.BitString
	}
	rest, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info)
	oaep := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	if err != nil || len(rest) != 0 || !info.Algorithm.Algorithm.Equal(oaep) {
		return nil, fmt.Errorf("%w: its key is of an unknown kind", ErrCertificate)
	}
	var key *rsa.PublicKey
	if key, err = x509.ParsePKCS1PublicKey(info.PublicKey.RightAlign()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	return key, nil
}

// chain verifies the first certificate with the others as intermediates.
func (o ChallengeOptions) chain(certificates []*x509.Certificate) (anchor string, err error) {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range o.Roots {
		roots.AddCert(c)
	}
	for _, c := range certificates[1:] {
		intermediates.AddCert(c)
	}
	leaf := *certificates[0]
	leaf.UnhandledCriticalExtensions = unhandled(leaf.UnhandledCriticalExtensions)
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: o.Now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	last := chains[0][len(chains[0])-1]
	return fmt.Sprintf("%s, SHA-256 %x", last.Subject, sha256.Sum256(last.Raw)), nil
}

// unhandled leaves out the subject alternative name: endorsement certificates have it critical,
// with a directory name of maker, model and version (EK Credential Profile, 3.2.9), in which
// the standard library has no interest and on which nothing here relies.
func unhandled(critical []asn1.ObjectIdentifier) []asn1.ObjectIdentifier {
	var out []asn1.ObjectIdentifier
	for _, id := range critical {
		if !id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			out = append(out, id)
		}
	}
	return out
}

// makeCredential encrypts secret so that only the TPM with both keys opens it, TPM 2.0
// Part 1, 24 (what TPM2_MakeCredential does).
func makeCredential(id *Identity, secret []byte) ([]byte, error) {
	ek, err := parseArea(id.Endorsement)
	if err != nil {
		return nil, fmt.Errorf("%w: endorsement key: %w", ErrForm, err)
	}
	ak, err := parseAttestationKey(id.AttestationKey)
	if err != nil {
		return nil, fmt.Errorf("%w: attestation key: %w", ErrForm, err)
	}
	to, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return nil, fmt.Errorf("%w: endorsement key: %w", ErrForm, err)
	}
	blob, seed, err := tpm2.CreateCredential(rand.Reader, to, ak.name, secret)
	if err != nil {
		return nil, fmt.Errorf("make credential: %w", err)
	}
	return append(tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: blob}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: seed})...), nil
}

// LoadRoots reads every file of a folder as certificates, in PEM or DER; a file that holds
// none is an error, as is a folder without files.
func LoadRoots(folder fs.FS) ([]*x509.Certificate, error) {
	entries, err := fs.ReadDir(folder, ".")
	if err != nil {
		return nil, fmt.Errorf("read CA certificates: %w", err)
	}
	var out []*x509.Certificate
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		data, err := fs.ReadFile(folder, e.Name())
		if err != nil {
			return nil, fmt.Errorf("read CA certificates: %w", err)
		}
		certificates, err := parseRoots(data)
		if err != nil {
			return nil, fmt.Errorf("read CA certificates: %s: %w", e.Name(), err)
		}
		out = append(out, certificates...)
	}
	if len(out) == 0 {
		return nil, errors.New("read CA certificates: there are none")
	}
	return out, nil
}

func parseRoots(data []byte) (out []*x509.Certificate, err error) {
	if cert, err := x509.ParseCertificate(data); err == nil {
		return []*x509.Certificate{cert}, nil
	}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, cert)
	}
	if len(out) == 0 {
		return nil, errors.New("no certificate")
	}
	return out, nil
}
