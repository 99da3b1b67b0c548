// Package rsapad takes the padding off what the bare RSA function of a device returns, in time
// that does not depend on it, and checks requests for decryption.
//
// It holds no private key and computes nothing with one. What a device does while it raises to
// the private exponent, blinding among it, is the device's.
package rsapad

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"math/big"

	"filippo.io/bigmod"
	"github.com/mesh-agent/mesh-agent/token"
)

// NewHash returns one of the hash functions that OAEP is used with; nil for others. SHA-1 is among them:
// in OAEP nothing rests on its resistance to collisions, and mail programs use it.
func NewHash(h crypto.Hash) func() hash.Hash {
	switch h {
	case crypto.SHA1:
		return sha1.New
	case crypto.SHA256:
		return sha256.New
	case crypto.SHA384:
		return sha512.New384
	case crypto.SHA512:
		return sha512.New
	}
	return nil
}

// MaxLength is the length of the longest plaintext that PKCS #1 v1.5 pads to a modulus of
// size octets (RFC 8017, Section 7.2.1).
func MaxLength(size int) int { return size - 11 }

// Check looks at all of a request that is public: whether padding and hash are known (else
// token.ErrUnsupported), whether the other members are those of the padding and Length is possible
// (token.ErrBadRequest), and whether the ciphertext is a number below the modulus, in as many octets
// (token.ErrDecrypt).
func Check(public *rsa.PublicKey, req token.DecryptRequest) error {
	size := public.Size()
	switch req.Padding {
	case token.PaddingOAEP:
		h := NewHash(req.Hash)
		if h == nil || size < 2*h().Size()+2 {
			return fmt.Errorf("OAEP with hash %d: %w", req.Hash, token.ErrUnsupported)
		}
		if req.Length != 0 {
			return fmt.Errorf("%w: length of an OAEP plaintext", token.ErrBadRequest)
		}
	case token.PaddingPKCS1v15:
		if req.Hash != 0 || len(req.Label) != 0 {
			return fmt.Errorf("%w: hash or label with PKCS #1 v1.5", token.ErrBadRequest)
		}
		if req.Length < 1 || req.Length > MaxLength(size) {
			return fmt.Errorf("%w: plaintext of %d octets, want 1 to %d", token.ErrBadRequest, req.Length, MaxLength(size))
		}
	default:
		return fmt.Errorf("padding %d: %w", req.Padding, token.ErrUnsupported)
	}
	if len(req.Ciphertext) != size || new(big.Int).SetBytes(req.Ciphertext).Cmp(public.N) >= 0 {
		return token.ErrDecrypt
	}
	return nil
}

// Encrypts reports whether the RSA public operation turns block into ciphertext: the device
// computed right. A fault in an RSA computation by the Chinese remainder theorem would tell the
// private key. The time depends on the public key only.
func Encrypts(public *rsa.PublicKey, block, ciphertext []byte) bool {
	n, err := bigmod.NewModulus(public.N.Bytes())
	if err != nil || public.N.Bit(0) == 0 { // an even one, which a device may tell, bigmod answers with a panic
		return false
	}
	m, err := bigmod.NewNat().SetBytes(block, n)
	if err != nil {
		return false // not below the modulus
	}
	out := bigmod.NewNat().ExpShortVarTime(m, uint(public.E), n).Bytes(n)
	return subtle.ConstantTimeCompare(out, ciphertext) == 1
}

// Unpad takes the padding off a block as long as the modulus, which it overwrites. The request has
// passed Check, and the block Encrypts. OAEP has one error, token.ErrDecrypt, for whatever is
// wrong; only the length of a right plaintext shows. PKCS #1 v1.5 has no errors: what is not padded right, or not
// to the length that was asked for, gives what Fallback makes of the block.
func Unpad(req token.DecryptRequest, block []byte) ([]byte, error) {
	defer clear(block)
	if req.Padding == token.PaddingOAEP {
		return unpadOAEP(NewHash(req.Hash), block, req.Label)
	}
	// Who does not know the block learns nothing from its hash that the ciphertext does not tell, so
	// that no other secret is needed. Who knows it knows how it is padded.
	out := Fallback(sha256.Sum256(block), req.Ciphertext, req.Length)
	unpadPKCS1v15(out, block)
	return out, nil
}

// Fallback returns what stands in for a plaintext of length octets that is padded wrong: the output of that length of the
// function IRPRF of draft-irtf-cfrg-rsa-guidance, Section 7, for the label "message". It is always the same for a key, a
// ciphertext and a length, so that asking again does not tell it from a plaintext; and for another length it is
// another one altogether, not a part of the same as in the draft, where nobody chooses the length: else the length for which the answer does
// not fit to the others would be the right one. In software, secret is SHA-256 of the
// private exponent in as many octets as the ciphertext has.
func Fallback(secret [32]byte, ciphertext []byte, length int) []byte {
	mac := hmac.New(sha256.New, secret[:])
	mac.Write(ciphertext)
	kdk := mac.Sum(nil)
	defer clear(kdk)

	out := make([]byte, 0, length+sha256.Size)
	for i := uint16(0); len(out) < length; i++ {
		mac := hmac.New(sha256.New, kdk)
		mac.Write(binary.BigEndian.AppendUint16(nil, i))
		mac.Write([]byte("message"))
		mac.Write(binary.BigEndian.AppendUint16(nil, uint16(8*length)))
		out = mac.Sum(out)
	}
	return out[:length:length]
}

// unpadPKCS1v15 is EME-PKCS1-v1_5 decoding (RFC 8017, Section 7.2.2, step 3) where the length
// of the plaintext is known: it puts that into out if all is right, and else leaves out as it is.
func unpadPKCS1v15(out, block []byte) {
	at := len(block) - len(out)
	good := subtle.ConstantTimeByteEq(block[0], 0) & subtle.ConstantTimeByteEq(block[1], 2) & subtle.ConstantTimeByteEq(block[at-1], 0)
	for _, b := range block[2 : at-1] { // 8 octets at least: MaxLength
		good &= 1 - subtle.ConstantTimeByteEq(b, 0)
	}
	subtle.ConstantTimeCopy(good, out, block[at:])
}

// unpadOAEP is EME-OAEP decoding (RFC 8017, Section 7.1.2, step 3) with the same hash for MGF1.
func unpadOAEP(newHash func() hash.Hash, block, label []byte) ([]byte, error) {
	h := newHash()
	hLen := h.Size()
	h.Write(label)
	labelHash := h.Sum(nil)

	seed, db := block[1:1+hLen], block[1+hLen:]
	MGF1XOR(newHash, seed, db)
	MGF1XOR(newHash, db, seed)
	good := subtle.ConstantTimeByteEq(block[0], 0) & subtle.ConstantTimeCompare(db[:hLen], labelHash)

	// After the hash: zeros, a one, the plaintext.
	rest := db[hLen:]
	looking, index := 1, 0
	for i, c := range rest {
		zero, one := subtle.ConstantTimeByteEq(c, 0), subtle.ConstantTimeByteEq(c, 1)
		index = subtle.ConstantTimeSelect(looking&one, i, index)
		good &= 1 - looking&(1-zero)&(1-one)
		looking = subtle.ConstantTimeSelect(one, 0, looking)
	}
	if good&(1-looking) != 1 {
		return nil, token.ErrDecrypt
	}
	return append([]byte{}, rest[index+1:]...), nil
}

// MGF1XOR adds MGF1 of the seed (RFC 8017, Section B.2.1) to b.
func MGF1XOR(newHash func() hash.Hash, b, seed []byte) {
	h := newHash()
	for i := uint32(0); len(b) > 0; i++ {
		h.Reset()
		h.Write(seed)
		h.Write(binary.BigEndian.AppendUint32(nil, i))
		sum := h.Sum(nil)
		n := subtle.XORBytes(b, b, sum)
		clear(sum)
		b = b[n:]
	}
}
