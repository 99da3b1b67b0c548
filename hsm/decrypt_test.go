package hsm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"errors"
	"maps"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

// withoutBareRSA has a token as if its module did not list CKM_RSA_X_509.
func withoutBareRSA(tok *Token) {
	b := *tok.bound.Load()
	b.mechanisms = maps.Clone(b.mechanisms)
	delete(b.mechanisms, ckmRSAX509)
	tok.bound.Store(&b)
}

// A token without the bare RSA function takes OAEP off, and is not asked about PKCS #1 v1.5, whose errors
// would tell.
func TestPaddingInModule(t *testing.T) {
	t.Parallel()
	for name, s := range setups(t) {
		tok := openUnlocked(t, newTestModule(t, s), s)
		created, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.RSA2048, Use: token.UseDecrypt})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		key, err := tok.Open(t.Context(), token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: token.UseDecrypt})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		k := key.(*decryptKey)
		withoutBareRSA(tok)

		message := []byte("plaintext")
		c, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, k.standard, message, nil)
		if err != nil {
			t.Fatal(err)
		}
		req := token.DecryptRequest{Padding: token.PaddingOAEP, Hash: crypto.SHA1, Ciphertext: c}
		if got, err := k.Decrypt(t.Context(), req); err != nil || !bytes.Equal(got, message) {
			t.Errorf("%s, OAEP: %q, %v", name, got, err)
		}
		req = token.DecryptRequest{Padding: token.PaddingPKCS1v15, Length: 9, Ciphertext: c}
		if _, err := k.Decrypt(t.Context(), req); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("%s, PKCS #1 v1.5: %v, want ErrUnsupported", name, err)
		}
	}
}
