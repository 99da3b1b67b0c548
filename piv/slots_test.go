package piv

import (
	"crypto/x509"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestCertified reads what a card without metadata would tell: the key from its attestation, of
// every kind. The standard library leaves the public key of an X25519 certificate out.
func TestCertified(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	for _, a := range []token.Algorithm{token.P256, token.P384, token.Ed25519, token.X25519, token.RSA2048} {
		use := token.UseAgree
		if a == token.Ed25519 || a.RSABits() != 0 {
			use = token.UseSign
		}
		policy := token.Policy{PIN: token.PINOnce, Touch: token.TouchCached}
		c, err := b.token.Generate(t.Context(), token.GenerateRequest{Algorithm: a, Use: use, Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		e, err := b.token.Attest(t.Context(), token.AttestRequest{
			Key: token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: use}, Qualifying: make([]byte, 32),
		})
		if err != nil {
			t.Fatalf("%s: %v", a, err)
		}
		cert, err := x509.ParseCertificate(e.Key)
		if err != nil {
			t.Fatal(err)
		}
		m, err := metadataOf(cert)
		if err != nil || !m.Public.Equal(c.Public) || m.Policy != policy || !m.Generated {
			t.Errorf("%s: %+v, %v, want %+v", a, m, err, c.Public)
		}
	}
}
