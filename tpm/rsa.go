package tpm

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// rsaSigner is an RSA key that signs.
type rsaSigner struct {
	key
	public *rsa.PublicKey
}

var _ token.Signer = (*rsaSigner)(nil)

func newRSASigner(t *Token, b *blob) (token.Key, error) {
	p, err := x509.ParsePKCS1PublicKey(b.key.Octets)
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	return &rsaSigner{key{token: t, blob: b}, p}, nil
}

// Sign makes an RSASSA-PKCS1-v1_5 or RSASSA-PSS signature over a digest computed here, and
// verifies it before it is released: one wrong signature by the Chinese remainder theorem
// gives the key away.
// Errors: as token.Signer; token.ErrUnsupported also for a hash that the TPM does not have.
func (k *rsaSigner) Sign(ctx context.Context, req token.SignRequest) ([]byte, error) {
	scheme := map[token.Scheme]tpm2.TPMAlgID{
		token.SchemePKCS1v15: tpm2.TPMAlgRSASSA, token.SchemePSS: tpm2.TPMAlgRSAPSS,
	}[req.Scheme]
	if scheme == 0 {
		return nil, fmt.Errorf("tpm: sign: scheme %d: %w", req.Scheme, token.ErrUnsupported)
	}
	digest, out, err := k.sign(ctx, req, scheme)
	if err != nil {
		return nil, err
	}
	signature, err := unsized(out)
	if err == nil && req.Scheme == token.SchemePKCS1v15 {
		err = rsa.VerifyPKCS1v15(k.public, req.Hash, digest, signature)
	} else if err == nil {
		salt := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		err = rsa.VerifyPSS(k.public, req.Hash, digest, signature, salt)
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: sign: %w: %w", token.ErrFault, err)
	}
	return signature, nil
}

// rsaDecrypter is an RSA key that decrypts.
type rsaDecrypter struct{ key }

var _ token.Decrypter = (*rsaDecrypter)(nil)

// Decrypt opens RSAES-OAEP with SHA-256 by TPM2_RSA_Decrypt (TPM 2.0 Part 3, 14.3). A TPM takes a
// label only if its last octet is zero (Part 1, B.4): others give token.ErrUnsupported.
func (k *rsaDecrypter) Decrypt(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	if n := len(req.Label); n != 0 && req.Label[n-1] != 0 || n > maxLabel {
		return nil, fmt.Errorf("tpm: decrypt: label that does not end in a zero octet: %w", token.ErrUnsupported)
	}
	if len(req.Ciphertext) != k.blob.key.Algorithm.RSABits()/8 {
		return nil, fmt.Errorf("tpm: decrypt: %w", token.ErrDecrypt)
	}
	parameters := sized(req.Ciphertext)
	parameters = binary.BigEndian.AppendUint16(parameters, uint16(tpm2.TPMAlgOAEP))
	parameters = binary.BigEndian.AppendUint16(parameters, uint16(tpm2.TPMAlgSHA256))
	parameters = appendSized(parameters, req.Label)
	out, err := k.operate(ctx, "decrypt", req.Auth, tpm2.TPMCCRSADecrypt, bothway, parameters)
	if errors.Is(err, tpm2.TPMRCValue) || errors.Is(err, tpm2.TPMRCSize) || errors.Is(err, errCommandFailed) {
		// Not the TPM's own code: it says too much of what is wrong.
		return nil, fmt.Errorf("tpm: decrypt: %w", token.ErrDecrypt)
	}
	if err != nil {
		return nil, err
	}
	plaintext, err := unsized(out)
	if err != nil {
		return nil, fmt.Errorf("tpm: decrypt: %w: %w", token.ErrFault, err)
	}
	return plaintext, nil
}

// errCommandFailed says that a command failed, and not the TPM.
var errCommandFailed = errors.New("command failed")

// failed tells the two apart: libtpms answers an RSA ciphertext that does not open with
// TPM_RC_FAILURE and goes on. A TPM that failed answers nothing but questions about that.
func (d *device) failed(err error) error {
	if !errors.Is(err, tpm2.TPMRCFailure) {
		return err
	}
	if _, alive := run(d, tpm2.ReadClock{}); alive != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errCommandFailed, err)
}

const maxLabel = 64 // octets of the TPM2B_DATA that every TPM takes
