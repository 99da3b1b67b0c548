package tpm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func encryptOAEP(t testing.TB, k token.Key, plaintext, label []byte) token.DecryptRequest {
	t.Helper()
	public, err := x509.ParsePKCS1PublicKey(k.Public().Octets)
	if err != nil {
		t.Fatal(err)
	}
	c, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, plaintext, label)
	if err != nil {
		t.Fatal(err)
	}
	return token.DecryptRequest{Ciphertext: c, Label: label}
}

func TestOAEPLabels(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	k := openKey(t, tok, generate(t, tok, token.RSA2048, token.UseDecrypt)).(token.Decrypter)
	for _, c := range []struct {
		label string
		want  error
	}{
		{"", nil}, {"\x00", nil}, {"label\x00", nil}, {"in\x00side\x00", nil},
		{"label", token.ErrUnsupported}, {string(make([]byte, maxLabel+1)), token.ErrUnsupported},
	} {
		req := encryptOAEP(t, k, []byte("plaintext"), []byte(c.label))
		got, err := k.Decrypt(t.Context(), req)
		if !errors.Is(err, c.want) || err == nil && !bytes.Equal(got, []byte("plaintext")) {
			t.Errorf("Decrypt with label %q: %q, %v, want %v", c.label, got, err, c.want)
		}
	}
	req := encryptOAEP(t, k, []byte("plaintext"), []byte("label\x00"))
	req.Label = []byte("other\x00")
	if _, err := k.Decrypt(t.Context(), req); !errors.Is(err, token.ErrDecrypt) {
		t.Errorf("Decrypt with another label: %v, want ErrDecrypt", err)
	}
	req.Ciphertext = bytes.Repeat([]byte{0xff}, 256) // not below the modulus
	if _, err := k.Decrypt(t.Context(), req); !errors.Is(err, token.ErrDecrypt) {
		t.Errorf("Decrypt of too large a number: %v, want ErrDecrypt", err)
	}
}

func TestImportRSARefuses(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	exponent, three, wrong := *good, *good, *good
	exponent.E = 3
	three.Primes = append(three.Primes[:2:2], three.Primes[0])
	wrong.N = good.Primes[0]
	for name, k := range map[string]*rsa.PrivateKey{"exponent 3": &exponent, "three primes": &three, "wrong modulus": &wrong} {
		_, err := tok.Import(t.Context(), token.ImportRequest{
			Private: &token.PrivateKey{Algorithm: token.RSA2048, RSA: k}, Use: token.UseSign,
		})
		if !errors.Is(err, token.ErrBadKey) {
			t.Errorf("Import of a key with %s: %v, want ErrBadKey", name, err)
		}
	}
}
