package mesh

import (
	"crypto/aes"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// wrapIV is the initial value of AES key wrap (RFC 3394, Section 2.2.3.1).
const wrapIV = 0xa6a6a6a6a6a6a6a6

var errWrapLength = errors.New("key to wrap is not a multiple of 8 octets, at least 16")

// wrapKey wraps key under an AES key (RFC 3394, Section 2.2.1). The result is 8 octets longer.
func wrapKey(kek, key []byte) ([]byte, error) {
	if len(key) < 16 || len(key)%8 != 0 {
		return nil, errWrapLength
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 8+len(key))
	copy(out[8:], key)
	n := len(key) / 8
	var b [aes.BlockSize]byte
	defer clear(b[:])
	binary.BigEndian.PutUint64(b[:8], wrapIV)
	for t := 1; t <= 6*n; t++ {
		r := out[8*((t-1)%n+1):][:8]
		copy(b[8:], r)
		block.Encrypt(b[:], b[:])
		copy(r, b[8:])
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^uint64(t))
	}
	copy(out, b[:8])
	return out, nil
}

// unwrapKey undoes wrapKey (RFC 3394, Section 2.2.2). It reports false if the integrity
// check fails or the length is impossible; nothing of the result is released then.
func unwrapKey(kek, wrapped []byte) ([]byte, bool) {
	if len(wrapped) < 24 || len(wrapped)%8 != 0 {
		return nil, false
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, false
	}
	out := make([]byte, len(wrapped)-8)
	copy(out, wrapped[8:])
	n := len(out) / 8
	var b [aes.BlockSize]byte
	defer clear(b[:])
	copy(b[:8], wrapped)
	for t := 6 * n; t > 0; t-- {
		r := out[8*((t-1)%n):][:8]
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])^uint64(t))
		copy(b[8:], r)
		block.Decrypt(b[:], b[:])
		copy(r, b[8:])
	}
	var want [8]byte
	binary.BigEndian.PutUint64(want[:], wrapIV)
	if subtle.ConstantTimeCompare(b[:8], want[:]) == 0 {
		clear(out)
		return nil, false
	}
	return out, true
}
