package piv

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"fmt"

	"github.com/mesh-agent/mesh-agent/internal/rsapad"
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
	rsapad.MGF1XOR(h.New, db, sum)
	db[0] &= 0x7f // the number is one bit shorter than the modulus
	return b, nil
}
