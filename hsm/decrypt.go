package hsm

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"math/big"

	"github.com/mesh-agent/mesh-agent/token"
)

// decryptKey is an RSA key that the token lets only decrypt.
type decryptKey struct {
	key
	standard *rsa.PublicKey
}

var _ token.Decrypter = (*decryptKey)(nil)

// Decrypt opens an RSAES-OAEP ciphertext with SHA-256 for both hashes (RFC 8017, Section 7.1.2).
// Where the token computes the bare RSA function (CKM_RSA_X_509), the padding is taken
// off here, in constant time: SoftHSM has no OAEP with SHA-256, and the errors of modules
// differ in what they tell. Errors: as token.Decrypter.
func (k *decryptKey) Decrypt(ctx context.Context, req token.DecryptRequest) ([]byte, error) {
	size := k.standard.Size()
	if len(req.Ciphertext) != size || new(big.Int).SetBytes(req.Ciphertext).Cmp(k.standard.N) >= 0 {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", token.ErrDecrypt)
	}
	b, err := k.token.bind(ctx)
	if err != nil {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", err)
	}
	c := call{op: opDecrypt, data: [][]byte{req.Ciphertext}}
	raw := b.mechanisms.has(ckmRSAX509)
	if raw {
		c.mech.kind = ckmRSAX509
	} else {
		c.mech = mechanism{kind: ckmRSAOAEP, param: paramOAEP, numbers: [3]uint64{ckmSHA256, ckgMGF1SHA256}, octets: req.Label}
	}
	r, err := k.call(ctx, req.Auth, "decrypt", c)
	if err != nil {
		return nil, decryptError(err)
	}
	if len(r.data) != 1 {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", token.ErrFault)
	}
	if !raw {
		return r.data[0], nil
	}
	defer clear(r.data[0])
	if !k.undoes(r.data[0], req.Ciphertext) {
		return nil, fmt.Errorf("pkcs11: decrypt: %w: not the inverse of encryption", token.ErrFault)
	}
	plain, ok := unpadOAEP(r.data[0], size, req.Label)
	if !ok {
		return nil, fmt.Errorf("pkcs11: decrypt: %w", token.ErrDecrypt)
	}
	return plain, nil
}

// undoes checks what the token returned by encrypting it again. A fault in an RSA computation
// with the Chinese remainder theorem would tell the private key. The exponent is public and
// the time of math/big depends on the message, which is padded at random and used once.
func (k *decryptKey) undoes(plain, ciphertext []byte) bool {
	m := new(big.Int).SetBytes(plain)
	m.Exp(m, big.NewInt(int64(k.standard.E)), k.standard.N)
	return bytes.Equal(m.FillBytes(make([]byte, len(ciphertext))), ciphertext)
}

// decryptError hides what a module says of a ciphertext.
func decryptError(err error) error {
	switch codeOf(err) {
	case ckrEncryptedInvalid, ckrEncryptedLenRange, ckrDataLenRange, ckrFunctionFailed, ckrArgumentsBad:
		return fmt.Errorf("pkcs11: decrypt: %w", token.ErrDecrypt)
	}
	return err
}

// unpadOAEP is EME-OAEP decoding (RFC 8017, Section 7.1.2, step 3) with SHA-256 and MGF1 with
// SHA-256. All failures take the same time.
func unpadOAEP(em []byte, size int, label []byte) ([]byte, bool) {
	const n = sha256.Size
	if len(em) > size || size < 2*n+2 {
		return nil, false
	}
	em = append(make([]byte, size-len(em), size), em...) // some modules drop leading zeros
	defer clear(em)
	seed, db := em[1:1+n], em[1+n:]
	mgf1XOR(seed, db)
	mgf1XOR(db, seed)
	want := sha256.Sum256(label)
	good := subtle.ConstantTimeByteEq(em[0], 0) & subtle.ConstantTimeCompare(db[:n], want[:])
	rest := db[n:]
	looking, at, bad := 1, 0, 0
	for i, b := range rest {
		zero, one := subtle.ConstantTimeByteEq(b, 0), subtle.ConstantTimeByteEq(b, 1)
		at = subtle.ConstantTimeSelect(looking&one, i, at)
		looking = subtle.ConstantTimeSelect(one, 0, looking)
		bad = subtle.ConstantTimeSelect(looking&(1-zero), 1, bad)
	}
	if good&(1-bad)&(1-looking) != 1 {
		return nil, false
	}
	return bytes.Clone(rest[at+1:]), true
}

// mgf1XOR is RFC 8017, Appendix B.2.1, with SHA-256.
func mgf1XOR(out, seed []byte) {
	h := sha256.New()
	for counter, done := uint32(0), 0; done < len(out); counter++ {
		h.Reset()
		h.Write(seed)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		done += subtle.XORBytes(out[done:], out[done:], h.Sum(nil))
	}
}
