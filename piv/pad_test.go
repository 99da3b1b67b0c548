package piv

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
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
