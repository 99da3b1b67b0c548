package hsm

import (
	"context"
	"crypto"
	"crypto/rsa"
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
// differ in what they tell. Elsewhere the module takes OAEP off. It is not asked to take PKCS #1 v1.5 off
// (CKM_RSA_PKCS): codes and times tell wrong padding, and SoftHSM's code for that is the one for a
// device that failed. Errors: as token.Decrypter.
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
	}
	return nil, fmt.Errorf("pkcs11: decrypt: PKCS #1 v1.5 in a token without CKM_RSA_X_509: %w", token.ErrUnsupported)
}

// decryptHere takes the padding off what CKM_RSA_X_509 returns.
func (k *decryptKey) decryptHere(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	em, err := k.decrypt(ctx, req, mechanism{kind: ckmRSAX509})
	if err != nil {
		return nil, err
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
	return k.decrypt(ctx, req, mechanism{kind: ckmRSAOAEP, param: paramOAEP, numbers: numbers, octets: req.Label})
}

func (k *decryptKey) decrypt(ctx context.Context, req token.DecryptRequest, m mechanism) ([]byte, error) {
	r, err := k.call(ctx, req.Auth, "decrypt", call{op: opDecrypt, mech: m, data: [][]byte{req.Ciphertext}})
	if err != nil {
		return nil, decryptError(err)
	}
	if len(r.data) != 1 {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", token.ErrFault)
	}
	return r.data[0], nil
}

// decryptError hides what a module says of a ciphertext.
func decryptError(err error) error {
	switch codeOf(err) {
	case ckrEncryptedInvalid, ckrEncryptedLenRange, ckrDataLenRange, ckrFunctionFailed, ckrArgumentsBad:
		return fmt.Errorf("pkcs11: decrypt: %w", token.ErrDecrypt)
	}
	return err
}
