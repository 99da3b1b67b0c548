package attest_test

import (
	"crypto/x509"
	"fmt"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/piv"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestCard has the virtual card attest keys of every kind, through the backend.
func TestCard(t *testing.T) {
	t.Parallel()
	card, daemon := pivtest.NewCard(pivtest.Config{}), pivtest.StartDaemon(t)
	daemon.AddReader("Yubico YubiKey OTP+FIDO+CCID 00 00", card)
	pin := []byte("846213")
	tok, err := piv.Open(t.Context(), piv.Options{Serial: card.Serial(), Socket: daemon.Socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := tok.Setup(t.Context(), piv.SetupRequest{PIN: pin, PUK: []byte("19283746")}); err != nil {
		t.Fatal(err)
	}
	id, err := tok.AttestIdentity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, s := challenge(t, attest.NewIdentity(id), attest.ChallengeOptions{Roots: []*x509.Certificate{card.AttestationRoot()}})
	for _, kind := range []struct {
		algorithm token.Algorithm
		use       token.Use
	}{{token.P256, token.UseSign}, {token.P384, token.UseAgree}, {token.Ed25519, token.UseSSH}, {token.X25519, token.UseAgree}, {token.RSA2048, token.UseSign}} {
		key, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: kind.algorithm, Use: kind.use, Auth: token.Auth{PIN: pin}})
		if err != nil {
			t.Errorf("%s: %v", kind.algorithm, err)
			continue
		}
		statement, err := attest.NewStatement(tok.AttestFormat(), key.Public, "")
		if err != nil {
			t.Fatal(err)
		}
		qualifying, err := statement.Qualifying(c)
		if err != nil {
			t.Fatal(err)
		}
		e, err := tok.Attest(t.Context(), token.AttestRequest{
			Key:        token.OpenRequest{Handle: key.Handle, Public: key.Public, Use: kind.use},
			Qualifying: qualifying, Auth: token.Auth{PIN: pin},
		})
		if err != nil {
			t.Errorf("%s: %v", kind.algorithm, err)
			continue
		}
		a, err := attest.NewAnswer(statement, e)
		if err != nil {
			t.Fatal(err)
		}
		r, err := attest.Verify(reread(t, a, attest.ParseAnswer), c, s, attest.VerifyOptions{
			Asked: attest.Asked{Key: statement.Udf, Serial: card.Serial(), Slot: fmt.Sprintf("%02x", key.Handle[8])},
		})
		if err != nil || r.Card.Serial != int(card.Serial()) || r.Card.Fresh != kind.use.Signs() {
			t.Errorf("%s: %+v, %v", kind.algorithm, r, err)
		}
	}
}
