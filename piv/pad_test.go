package piv

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"math/big"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

func newRSA(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// raw is what a card does.
func raw(k *rsa.PrivateKey, b []byte) []byte {
	return new(big.Int).Exp(new(big.Int).SetBytes(b), k.D, k.N).FillBytes(make([]byte, k.Size()))
}

// TestPadding compares the padding with the standard library's verification.
func TestPadding(t *testing.T) {
	t.Parallel()
	k := newRSA(t)
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		w := h.New()
		w.Write([]byte("message"))
		digest := w.Sum(nil)
		b, err := padPKCS1v15(&k.PublicKey, h, digest)
		if err != nil {
			t.Fatal(err)
		}
		if err := rsa.VerifyPKCS1v15(&k.PublicKey, h, digest, raw(k, b)); err != nil {
			t.Errorf("PKCS #1 v1.5, %v: %v", h, err)
		}
		if b, err = padPSS(&k.PublicKey, h, digest); err != nil {
			t.Fatal(err)
		}
		for _, salt := range []int{h.Size(), rsa.PSSSaltLengthAuto} {
			if err := rsa.VerifyPSS(&k.PublicKey, h, digest, raw(k, b), &rsa.PSSOptions{SaltLength: salt}); err != nil {
				t.Errorf("PSS, %v: %v", h, err)
			}
		}
	}
	if _, err := padPKCS1v15(&k.PublicKey, crypto.SHA1, make([]byte, 20)); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("SHA-1: %v", err)
	}
}

// TestOAEP opens what the standard library encrypts, and nothing that was changed.
func TestOAEP(t *testing.T) {
	t.Parallel()
	k := newRSA(t)
	longest := k.Size() - 2*sha256.Size - 2
	for _, n := range []int{0, 1, 32, longest} {
		for _, label := range [][]byte{nil, []byte("label")} {
			plain := bytes.Repeat([]byte{1}, n)
			c, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &k.PublicKey, plain, label)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := unpadOAEP(crypto.SHA256, raw(k, c), label); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d octets: %x, %v", n, got, err)
			}
			if _, err := unpadOAEP(crypto.SHA256, raw(k, c), []byte("other")); err != token.ErrDecrypt {
				t.Errorf("other label: %v", err)
			}
			if !encrypts(&k.PublicKey, raw(k, c), c) || encrypts(&k.PublicKey, c, c) {
				t.Error("the check of the card's result is wrong")
			}
		}
	}
}

// TestOAEPRefuses makes blocks with one thing wrong and compares with the standard library.
func TestOAEPRefuses(t *testing.T) {
	t.Parallel()
	k := newRSA(t)
	labelHash := sha256.Sum256(nil)
	// encode is EME-OAEP encoding of a data block that the caller makes.
	encode := func(first byte, db []byte) []byte {
		b := make([]byte, k.Size())
		b[0] = first
		seed := b[1 : 1+sha256.Size]
		rand.Read(seed)
		copy(b[1+sha256.Size:], db)
		mask(crypto.SHA256, b[1+sha256.Size:], seed)
		mask(crypto.SHA256, seed, b[1+sha256.Size:])
		return b
	}
	n := k.Size() - 1 - sha256.Size
	block := func(change func([]byte)) []byte {
		db := make([]byte, n)
		copy(db, labelHash[:])
		db[n-6] = 1
		copy(db[n-5:], "plain")
		change(db)
		return db
	}
	for name, c := range map[string]struct {
		block []byte
		want  bool
	}{
		"right":           {encode(0, block(func([]byte) {})), true},
		"first octet":     {encode(1, block(func([]byte) {})), false},
		"hash":            {encode(0, block(func(b []byte) { b[3] ^= 1 })), false},
		"no one":          {encode(0, block(func(b []byte) { clear(b[n-6:]) })), false},
		"two before one":  {encode(0, block(func(b []byte) { b[n-9] = 2 })), false},
		"an earlier one":  {encode(0, block(func(b []byte) { b[n-9] = 1 })), true},
		"two after a one": {encode(0, block(func(b []byte) { b[n-2] = 2 })), true},
	} {
		ciphertext := new(big.Int).Exp(new(big.Int).SetBytes(c.block), big.NewInt(int64(k.E)), k.N)
		var want []byte
		std := errors.New("not below the modulus")
		if new(big.Int).SetBytes(c.block).Cmp(k.N) < 0 {
			want, std = rsa.DecryptOAEP(sha256.New(), nil, k, ciphertext.FillBytes(make([]byte, k.Size())), nil)
		}
		if (std == nil) != c.want {
			t.Fatalf("%s: the standard library says %v", name, std)
		}
		got, err := unpadOAEP(crypto.SHA256, bytes.Clone(c.block), nil)
		if (err == nil) != c.want || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, %v, want %x, %t", name, got, err, want, c.want)
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 65)} {
		if _, err := unpadOAEP(crypto.SHA256, b, nil); err != token.ErrDecrypt {
			t.Errorf("block of %d octets: %v", len(b), err)
		}
	}
}

func FuzzDecodeHandle(f *testing.F) {
	h := handle{serial: 5700001, slot: applet.SlotSignature}.bind(token.PublicKey{Algorithm: token.P256, Octets: []byte("x")}, token.UseSign, nil)
	f.Add(h.encode())
	h.found = true
	f.Add(h.encode())
	f.Add([]byte(handleMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHandle(b)
		if err != nil {
			if !errors.Is(err, token.ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		if !bytes.Equal(h.encode(), b) {
			t.Errorf("%x encodes to %x", b, h.encode())
		}
	})
}
