package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/token"
)

// point writes a public key as a TPM does.
func point(t *testing.T, key *ecdsa.PublicKey) tpm2.TPMUPublicID {
	t.Helper()
	octets, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: octets[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: octets[33:]},
	})
}

// attestationArea is the public area of an attestation key that is in no TPM.
func attestationArea(t *testing.T, key *ecdsa.PublicKey) tpm2.TPMTPublic {
	t.Helper()
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
			KDF:     tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull},
		}),
		Unique: point(t, key),
	}
}

// endorsed is an identity with a certificate for an endorsement key in software.
func endorsed(t *testing.T, ek tpm2.TPMTPublic, certificate []byte) *attest.Identity {
	t.Helper()
	return attest.NewIdentity(token.AttestIdentity{
		Format: token.AttestTPM2, Certificates: [][]byte{certificate},
		Endorsement: tpm2.Marshal(ek), AttestationKey: tpm2.Marshal(attestationArea(t, &newECDSA(t).PublicKey)),
	})
}

func TestEndorsementCertificate(t *testing.T) {
	t.Parallel()
	rootKey, key := newECDSA(t), newECDSA(t)
	root := certificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true}, nil, &rootKey.PublicKey, rootKey)
	ek := tpm2.ECCEKTemplate
	ek.Unique = point(t, &key.PublicKey)
	purpose := []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
	name, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: []byte{0x30, 0}}})
	if err != nil {
		t.Fatal(err)
	}
	critical := func(id ...int) []pkix.Extension { return []pkix.Extension{{Id: id, Critical: true, Value: name}} }
	for title, test := range map[string]struct {
		template x509.Certificate
		public   any
		want     error
	}{
		"as makers write it":        {x509.Certificate{UnknownExtKeyUsage: purpose, ExtraExtensions: critical(2, 5, 29, 17)}, &key.PublicKey, nil},
		"without purpose":           {x509.Certificate{}, &key.PublicKey, nil},
		"two purposes":              {x509.Certificate{UnknownExtKeyUsage: purpose, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, &key.PublicKey, nil},
		"a server's":                {x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, &key.PublicKey, attest.ErrCertificate},
		"a platform's":              {x509.Certificate{UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 2}}}, &key.PublicKey, attest.ErrCertificate},
		"unknown and critical":      {x509.Certificate{ExtraExtensions: critical(1, 2, 3)}, &key.PublicKey, attest.ErrCertificate},
		"another key's":             {x509.Certificate{UnknownExtKeyUsage: purpose}, &newECDSA(t).PublicKey, attest.ErrCertificate},
		"for a key of another kind": {x509.Certificate{}, rsaKey(t), attest.ErrCertificate},
	} {
		cert := certificate(t, &test.template, root, test.public, rootKey)
		_, s, err := attest.NewChallenge(endorsed(t, ek, cert.Raw), attest.ChallengeOptions{Roots: []*x509.Certificate{root}, Validity: time.Hour})
		if !errors.Is(err, test.want) || err == nil && s.Anchor == "" {
			t.Errorf("%s: %v, want %v", title, err, test.want)
		}
	}

	// An endorsement key that could sign, or be copied, is none.
	cert := certificate(t, &x509.Certificate{}, root, &key.PublicKey, rootKey)
	for title, attributes := range map[string]tpm2.TPMAObject{
		"signs":          {FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, Restricted: true, Decrypt: true, SignEncrypt: true},
		"not restricted": {FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, Decrypt: true},
		"not fixed":      {SensitiveDataOrigin: true, Restricted: true, Decrypt: true},
		"imported":       {FixedTPM: true, FixedParent: true, Restricted: true, Decrypt: true},
	} {
		changed := ek
		changed.ObjectAttributes = attributes
		if _, _, err := attest.NewChallenge(endorsed(t, changed, cert.Raw), attest.ChallengeOptions{AcceptUnverified: true, Validity: time.Hour}); !errors.Is(err, attest.ErrForm) {
			t.Errorf("endorsement key %s: %v", title, err)
		}
	}
}

func rsaKey(t *testing.T) *rsa.PublicKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return &key.PublicKey
}

// TestOAEPCertificate takes RSA certificates that are marked as some makers do.
func TestOAEPCertificate(t *testing.T) {
	t.Parallel()
	rootKey, key := newECDSA(t), rsaKey(t)
	root := certificate(t, &x509.Certificate{Subject: pkix.Name{CommonName: "maker"}, IsCA: true, BasicConstraintsValid: true}, nil, &rootKey.PublicKey, rootKey)
	ordinary := certificate(t, &x509.Certificate{}, root, key, rootKey)
	marked := resign(t, ordinary, rootKey, []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1}, []byte{0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 7})
	ek := tpm2.RSAEKTemplate
	for _, test := range []struct {
		key  *rsa.PublicKey
		want error
	}{{key, nil}, {rsaKey(t), attest.ErrCertificate}} {
		ek.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: test.key.N.Bytes()})
		_, _, err := attest.NewChallenge(endorsed(t, ek, marked.Raw), attest.ChallengeOptions{Roots: []*x509.Certificate{root}, Validity: time.Hour})
		if !errors.Is(err, test.want) {
			t.Errorf("%v, want %v", err, test.want)
		}
	}
}

// resign changes a certificate and signs it anew, for what the standard library does not issue.
func resign(t *testing.T, cert *x509.Certificate, signer *ecdsa.PrivateKey, from, to []byte) *x509.Certificate {
	t.Helper()
	parts := struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{}
	if _, err := asn1.Unmarshal(cert.Raw, &parts); err != nil {
		t.Fatal(err)
	}
	tbs := bytes.Replace(cert.RawTBSCertificate, from, to, 1)
	digest := sha256.Sum256(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, signer, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	parts.TBS = asn1.RawValue{FullBytes: tbs}
	parts.Signature = asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}
	der, err := asn1.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestForged is what a program without a TPM can do: it signs as an attestation key, for a key
// that it has itself. Only the credential tells.
func TestForged(t *testing.T) {
	t.Parallel()
	ak, key := newECDSA(t), newECDSA(t)
	area := attestationArea(t, &ak.PublicKey)
	name, err := tpm2.ObjectName(&area)
	if err != nil {
		t.Fatal(err)
	}
	signer := sha256.Sum256(append(tpm2.PrimaryHandleName(tpm2.TPMRHEndorsement), name.Buffer...))
	keyArea := attestationArea(t, &key.PublicKey)
	keyArea.ObjectAttributes.Restricted = false
	keyName, err := tpm2.ObjectName(&keyArea)
	if err != nil {
		t.Fatal(err)
	}
	octets, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	statement, err := attest.NewStatement(token.AttestTPM2, token.PublicKey{Algorithm: token.P256, Octets: octets}, "")
	if err != nil {
		t.Fatal(err)
	}
	c, s := challenge(t, nil, attest.ChallengeOptions{})
	qualifying, err := statement.Qualifying(c)
	if err != nil {
		t.Fatal(err)
	}
	forge := func(change func(*tpm2.TPMSAttest)) *attest.Answer {
		info := tpm2.TPMSAttest{
			Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify,
			QualifiedSigner: tpm2.TPM2BName{Buffer: append([]byte{0, 0x0b}, signer[:]...)},
			ExtraData:       tpm2.TPM2BData{Buffer: qualifying},
			Attested:        tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: *keyName, QualifiedName: *keyName}),
		}
		change(&info)
		certify := tpm2.Marshal(info)
		digest := sha256.Sum256(certify)
		signature, err := ecdsa.SignASN1(rand.Reader, ak, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		a, err := attest.NewAnswer(statement, token.AttestEvidence{
			Key: tpm2.Marshal(keyArea), AttestationKey: tpm2.Marshal(area), Certify: certify, Signature: signature,
		})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	refused(t, forge(func(*tpm2.TPMSAttest) {}), c, s, attest.ErrUnbound)
	if _, err := attest.Verify(forge(func(*tpm2.TPMSAttest) {}), c, s, attest.VerifyOptions{AcceptUnbound: true}); err != nil {
		t.Errorf("the forgery is not as good as it gets: %v", err)
	}
	for title, change := range map[string]func(*tpm2.TPMSAttest){
		"not of a TPM's making": func(a *tpm2.TPMSAttest) { a.Magic = 1 },
		"another type": func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestQuote
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
		},
		"another key": func(a *tpm2.TPMSAttest) {
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: *name})
		},
		"another hierarchy": func(a *tpm2.TPMSAttest) { a.QualifiedSigner.Buffer[5] ^= 1 },
		"another nonce":     func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = make([]byte, 32) },
	} {
		a := forge(change)
		if r, err := attest.Verify(a, c, s, attest.VerifyOptions{AcceptUnbound: true}); !errors.Is(err, attest.ErrEvidence) {
			t.Errorf("%s: %+v, %v", title, r, err)
		}
	}
}

func TestLoadRoots(t *testing.T) {
	t.Parallel()
	key := newECDSA(t)
	cert := certificate(t, &x509.Certificate{}, nil, &key.PublicKey, key)
	file := func(kind string) *fstest.MapFile {
		return &fstest.MapFile{Data: pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: cert.Raw})}
	}
	good := fstest.MapFS{"a.pem": file("CERTIFICATE"), "b.der": &fstest.MapFile{Data: cert.Raw}, "folder/c.pem": file("CERTIFICATE")}
	if got, err := attest.LoadRoots(good); err != nil || len(got) != 2 {
		t.Errorf("%d certificates, %v", len(got), err)
	}
	for title, bad := range map[string]fstest.MapFS{
		"empty":     {},
		"a key":     {"key.pem": file("PRIVATE KEY")},
		"no PEM":    {"readme": &fstest.MapFile{Data: []byte("hello")}},
		"a bad one": {"a.pem": file("CERTIFICATE"), "b.pem": &fstest.MapFile{Data: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1}})}},
	} {
		if got, err := attest.LoadRoots(bad); err == nil {
			t.Errorf("%s: %d certificates", title, len(got))
		}
	}
}
