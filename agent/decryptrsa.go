package agent

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// decryptRSA opens an RSA ciphertext.
func (r *request) decryptRSA(ctx context.Context, op mesh.OperationDecrypt) (any, error) {
	if err := checkRSAForm(op); err != nil {
		return nil, err
	}
	req, err := rsaRequest(*op.RSA)
	if err != nil {
		return nil, err
	}
	key, err := r.grant(op.KeyId, policy.Decrypt)
	if err != nil {
		return nil, err
	}
	if err := checkRSALengths(key.Public, req); err != nil {
		return nil, err
	}
	if req.Auth, err = key.auth(op.PIN); err != nil {
		return nil, err
	}
	plaintext, err := key.Decrypt(ctx, key.gate, req)
	if errors.Is(err, token.ErrDecrypt) {
		return nil, malformed("RSA", "%v", token.ErrDecrypt)
	}
	if err != nil {
		return nil, err
	}
	return mesh.ResultDecrypt{Status: mesh.StatusOK, Key: plaintext}, nil
}

// checkRSAForm refuses what belongs to the recipient entry of an envelope.
func checkRSAForm(op mesh.OperationDecrypt) error {
	for _, m := range []struct {
		name  string
		there bool
	}{
		{"Recipient", op.Recipient != nil}, {"Envelope", op.Envelope != nil}, {"Partials", op.Partials != nil}, {"Info", op.Info != ""},
		{"Release", op.Release != ""}, {"Salt", op.Salt != nil}, {"Signers", op.Signers != nil},
	} {
		if m.there {
			return malformed(m.name, "not together with RSA")
		}
	}
	return nil
}

// rsaRequest reads what is asked for.
func rsaRequest(op mesh.DecryptRSA) (token.DecryptRequest, error) {
	req := token.DecryptRequest{Padding: token.PaddingOAEP, Ciphertext: op.Ciphertext, Label: op.Label, Length: op.Length}
	switch op.Padding {
	case "oaep-sha1":
		req.Hash = crypto.SHA1
	case "oaep-sha256":
		req.Hash = crypto.SHA256
	case "oaep-sha384":
		req.Hash = crypto.SHA384
	case "oaep-sha512":
		req.Hash = crypto.SHA512
	case "pkcs1":
		req.Padding = token.PaddingPKCS1v15
	default:
		return token.DecryptRequest{}, malformed("RSA", `Padding: one of "oaep-sha1", "oaep-sha256", "oaep-sha384", "oaep-sha512", "pkcs1" expected`)
	}
	oaep := req.Padding == token.PaddingOAEP
	switch {
	case op.Ciphertext == nil:
		return token.DecryptRequest{}, malformed("RSA", "Ciphertext missing")
	case oaep && op.Length != 0:
		return token.DecryptRequest{}, malformed("RSA", "Length: only with Padding pkcs1")
	case !oaep && op.Label != nil:
		return token.DecryptRequest{}, malformed("RSA", "Label: only with OAEP")
	case !oaep && op.Length < 1:
		return token.DecryptRequest{}, malformed("RSA", "Length: the octets of the plaintext expected, as Padding is pkcs1")
	}
	return req, nil
}

// checkRSALengths compares lengths, which everybody knows, with the key's.
func checkRSALengths(key token.PublicKey, req token.DecryptRequest) error {
	if key.Algorithm.RSABits() == 0 {
		return fmt.Errorf("RSA decryption with an %s key: %w", key.Algorithm, token.ErrUnsupported)
	}
	standard, err := key.Standard()
	if err != nil {
		return err
	}
	size := standard.(*rsa.PublicKey).Size()
	if len(req.Ciphertext) != size {
		return malformed("RSA", "Ciphertext: %d octets, %d expected, with leading zeros", len(req.Ciphertext), size)
	}
	if longest := size - 11; req.Length > longest {
		return malformed("RSA", "Length: at most %d octets expected", longest)
	}
	return nil
}
