package tpm

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/internal/rsapad"
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
type rsaDecrypter struct {
	key
	public *rsa.PublicKey
}

var _ token.Decrypter = (*rsaDecrypter)(nil)

func newRSADecrypter(t *Token, b *blob) (token.Key, error) {
	p, err := x509.ParsePKCS1PublicKey(b.key.Octets)
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	return &rsaDecrypter{key{token: t, blob: b}, p}, nil
}

// Decrypt has the TPM compute the bare RSA function, by TPM2_RSA_Decrypt without a scheme (TPM 2.0 Part 3,
// 14.3), and takes the padding off here. A TPM's own errors would say what is wrong with a padding; besides, TPMs
// have not all hashes, and take a label only if its last octet is zero (Part 1, B.4).
// Errors: as token.Decrypter; token.ErrUnsupported also where the TPM keeps the bare function to itself.
func (k *rsaDecrypter) Decrypt(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	if err := rsapad.Check(k.public, req); err != nil {
		return nil, fmt.Errorf("tpm: decrypt: %w", err)
	}
	parameters := binary.BigEndian.AppendUint16(sized(req.Ciphertext), uint16(tpm2.TPMAlgNull))
	parameters = appendSized(parameters, nil) // no label
	out, err := k.operate(ctx, "decrypt", req.Auth, tpm2.TPMCCRSADecrypt, bothway, parameters)
	if errors.Is(err, tpm2.TPMRCScheme) {
		return nil, fmt.Errorf("%w: %w", token.ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	defer clear(out)
	block, err := unsized(out)
	if err != nil {
		return nil, fmt.Errorf("tpm: decrypt: %w: %w", token.ErrFault, err)
	}
	if len(block) != k.public.Size() || !rsapad.Encrypts(k.public, block, req.Ciphertext) {
		return nil, fmt.Errorf("tpm: decrypt: %w: not the plaintext of this ciphertext", token.ErrFault)
	}
	plaintext, err := rsapad.Unpad(req, block)
	if err != nil {
		return nil, fmt.Errorf("tpm: decrypt: %w", err)
	}
	return plaintext, nil
}
