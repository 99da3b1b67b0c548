package hsm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/subtle"
	"fmt"

	"github.com/mesh-agent/mesh-agent/internal/rsapad"
	"github.com/mesh-agent/mesh-agent/token"
)

// decryptKey is an RSA key that the token lets only decrypt.
type decryptKey struct {
	key
	standard *rsa.PublicKey
}

var _ token.Decrypter = (*decryptKey)(nil)

// Decrypt opens an RSA ciphertext. Where the token computes the bare RSA function (CKM_RSA_X_509), the
// padding is taken off here, in constant time: SoftHSM has no OAEP with SHA-256, and the errors of modules
// differ in what they tell. Elsewhere the module takes it off. Errors: as token.Decrypter.
func (k *decryptKey) Decrypt(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	if err := rsapad.Check(k.standard, req); err != nil {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", err)
	}
	b, err := k.token.bind(ctx)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", err)
	}
	switch {
	case b.mechanisms.has(ckmRSAX509):
		return k.decryptHere(ctx, req)
	case req.Padding == token.PaddingOAEP:
		return k.decryptOAEP(ctx, req)
	case b.mechanisms.has(ckmRSAPKCS):
		return k.decryptPKCS(ctx, req)
	}
	return nil, fmt.Errorf("pkcs11: decrypt: the token has neither CKM_RSA_X_509 nor CKM_RSA_PKCS: %w", token.ErrUnsupported)
}

// decryptHere takes the padding off what CKM_RSA_X_509 returns.
func (k *decryptKey) decryptHere(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	em, err := k.decrypt(ctx, req, mechanism{kind: ckmRSAX509})
	if err != nil {
		return nil, decryptError(err)
	}
	defer clear(em)
	size := k.standard.Size()
	block := make([]byte, size)
	defer clear(block)
	if len(em) > size {
		return nil, fmt.Errorf("pkcs11: decrypt: %w: longer than the modulus", token.ErrFault)
	}
	copy(block[size-len(em):], em) // some modules drop leading zeros
	if !rsapad.Encrypts(k.standard, block, req.Ciphertext) {
		return nil, fmt.Errorf("pkcs11: decrypt: %w: not the inverse of encryption", token.ErrFault)
	}
	plain, err := rsapad.Unpad(req, block)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", err)
	}
	return plain, nil
}

// decryptOAEP has the module do all of it.
func (k *decryptKey) decryptOAEP(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	numbers := map[crypto.Hash][3]uint64{
		crypto.SHA1: {ckmSHA1, ckgMGF1SHA1}, crypto.SHA256: {ckmSHA256, ckgMGF1SHA256},
		crypto.SHA384: {ckmSHA384, ckgMGF1SHA384}, crypto.SHA512: {ckmSHA512, ckgMGF1SHA512},
	}[req.Hash]
	plain, err := k.decrypt(ctx, req, mechanism{kind: ckmRSAOAEP, param: paramOAEP, numbers: numbers, octets: req.Label})
	if err != nil {
		return nil, decryptError(err)
	}
	return plain, nil
}

// decryptPKCS has the module do all of it. An error that is about the padding is none here, and the
// result is chosen in constant time, but how long the module took for it cannot be hidden.
func (k *decryptKey) decryptPKCS(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	plain, err := k.decrypt(ctx, req, mechanism{kind: ckmRSAPKCS})
	if err != nil && !aboutCiphertext(err) {
		return nil, err
	}
	defer clear(plain)
	// The token keeps the private exponent, so that the secret lives as long as this process.
	out := rsapad.Fallback(k.token.fallback, req.Ciphertext, req.Length)
	same := make([]byte, len(out))
	defer clear(same)
	copy(same, plain)
	good := subtle.ConstantTimeEq(int32(len(plain)), int32(len(out)))
	subtle.ConstantTimeCopy(good, out, same)
	return out, nil
}

func (k *decryptKey) decrypt(ctx context.Context, req token.DecryptRequest, m mechanism) ([]byte, error) {
	r, err := k.call(ctx, req.Auth, "decrypt", call{op: opDecrypt, mech: m, data: [][]byte{req.Ciphertext}})
	if err != nil {
		return nil, err
	}
	if len(r.data) != 1 {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", token.ErrFault)
	}
	return r.data[0], nil
}

// decryptError hides what a module says of a ciphertext.
func decryptError(err error) error {
	if aboutCiphertext(err) {
		return fmt.Errorf("pkcs11: decrypt: %w", token.ErrDecrypt)
	}
	return err
}

// aboutCiphertext reports whether a module may mean the ciphertext, with whichever code.
func aboutCiphertext(err error) bool {
	switch codeOf(err) {
	case ckrEncryptedInvalid, ckrEncryptedLenRange, ckrDataInvalid, ckrDataLenRange, ckrFunctionFailed, ckrArgumentsBad:
		return true
	}
	return false
}
