package piv

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"math/big"

	"filippo.io/bigmod"
	"github.com/mesh-agent/mesh-agent/token"
)

// digestInfo returns the DER of a DigestInfo up to the digest (RFC 8017, 9.2, note 1).
func digestInfo(h crypto.Hash) []byte {
	last := map[crypto.Hash]byte{crypto.SHA256: 1, crypto.SHA384: 2, crypto.SHA512: 3}[h]
	if last == 0 {
		return nil
	}
	n := byte(h.Size())
	return []byte{0x30, 0x11 + n, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last, 0x05, 0x00, 0x04, n}
}

// padPKCS1v15 is EMSA-PKCS1-v1_5-ENCODE (RFC 8017, 9.2).
func padPKCS1v15(k *rsa.PublicKey, h crypto.Hash, digest []byte) ([]byte, error) {
	info := digestInfo(h)
	n := k.Size()
	padding := n - 3 - len(info) - len(digest)
	if info == nil || padding < 8 {
		return nil, fmt.Errorf("hash %v: %w", h, token.ErrUnsupported)
	}
	b := append(make([]byte, 0, n), 0, 1)
	for range padding {
		b = append(b, 0xff)
	}
	return append(append(append(b, 0), info...), digest...), nil
}

// padPSS is EMSA-PSS-ENCODE (RFC 8017, 9.1.1) with a salt as long as the hash, for a
// modulus of a whole number of octets.
func padPSS(k *rsa.PublicKey, h crypto.Hash, digest []byte) ([]byte, error) {
	n, hLen := k.Size(), h.Size()
	if k.N.BitLen() != 8*n || n < 2*hLen+2 {
		return nil, fmt.Errorf("hash %v: %w", h, token.ErrUnsupported)
	}
	salt := make([]byte, hLen)
	rand.Read(salt)
	w := h.New()
	w.Write(make([]byte, 8))
	w.Write(digest)
	w.Write(salt)
	sum := w.Sum(nil)

	b := make([]byte, n)
	db := b[:n-hLen-1]
	db[len(db)-hLen-1] = 1
	copy(db[len(db)-hLen:], salt)
	copy(b[n-hLen-1:], sum)
	b[n-1] = 0xbc
	mask(h, db, sum)
	db[0] &= 0x7f // the number is one bit shorter than the modulus
	return b, nil
}

// mask adds MGF1 of the seed (RFC 8017, B.2.1) to b.
func mask(h crypto.Hash, b, seed []byte) {
	for i := uint32(0); len(b) > 0; i++ {
		w := h.New()
		w.Write(seed)
		w.Write(binary.BigEndian.AppendUint32(nil, i))
		sum := w.Sum(nil)
		n := subtle.XORBytes(b, b, sum)
		clear(sum)
		b = b[n:]
	}
}

// unpadOAEP is EME-OAEP decoding (RFC 8017, 7.1.2, step 3) of a block as long as the modulus.
// Time and error do not tell what is wrong with it; the length of a right plaintext shows. The block is overwritten.
func unpadOAEP(h crypto.Hash, block, label []byte) ([]byte, error) {
	hLen := h.Size()
	if len(block) < 2*hLen+2 {
		return nil, token.ErrDecrypt
	}
	w := h.New()
	w.Write(label)
	labelHash := w.Sum(nil)

	seed, db := block[1:1+hLen], block[1+hLen:]
	mask(h, seed, db)
	mask(h, db, seed)
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

// encrypts reports whether the RSA public operation turns block into ciphertext: the card
// computed right. Its time depends on the public key only.
func encrypts(k *rsa.PublicKey, block, ciphertext []byte) bool {
	n, err := bigmod.NewModulus(k.N.Bytes())
	if err != nil {
		return false
	}
	m, err := bigmod.NewNat().SetBytes(block, n)
	if err != nil {
		return false // not below the modulus
	}
	out := bigmod.NewNat().ExpShortVarTime(m, uint(k.E), n).Bytes(n)
	return subtle.ConstantTimeCompare(out, ciphertext) == 1
}

// below reports whether a ciphertext is a number below the modulus. Both are public.
func below(b []byte, n *big.Int) bool { return new(big.Int).SetBytes(b).Cmp(n) < 0 }
