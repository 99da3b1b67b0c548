package main

import (
	"bytes"
	"crypto/rand"
	"path/filepath"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/piv"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/softkey"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// sumRing is a keyring of a hardware token and software keys.
func sumRing(t *testing.T, hardware token.Token) *keyring.Keyring {
	t.Helper()
	dir := t.TempDir()
	soft, err := softkey.Open(filepath.Join(dir, "soft"), softkey.Options{Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keyring.Open(st, hardware, soft)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	})
	return ring
}

// checkSum has a base key b in a token and a contribution a beside it: the agreement with
// E = e*G is (a+b)*E, which is e*(A+B), bit for bit.
func checkSum(t *testing.T, ring *keyring.Keyring, tokenName string, curve keyshare.Curve) {
	t.Helper()
	algorithm := token.Algorithm(curve.String())
	base, err := ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: tokenName, Algorithm: algorithm, Use: token.UseSeal})
	if err != nil {
		t.Fatal(err)
	}
	scalar := func() *keyshare.Scalar {
		s, err := keyshare.RandomScalar(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sum, err := ring.AddComposite(t.Context(), nil, keyring.CompositeSpec{
		Base: base.Udf, Token: "soft", Use: token.UseDecrypt,
		Contribution: &token.PrivateKey{Algorithm: algorithm, Scalar: scalar().Bytes()},
	})
	if err != nil {
		t.Fatal(err)
	}
	e := scalar()
	got, err := sum.AgreePoint(t.Context(), nil, e.Public(), nil, token.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	public, err := keyshare.ParsePoint(curve, sum.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	want, err := keyshare.Agree(e, public)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%s: agreement is %x, want %x", curve, got.Bytes(), want.Bytes())
	}
	if p := sum.Parts()[0]; p.Protection != token.ProtectionToken || p.Imported {
		t.Errorf("%s: the base is %+v, want a key made in the token", curve, p)
	}
}

func TestSumWithTPM(t *testing.T) {
	t.Parallel()
	hardware, err := tpm.Open(t.Context(), tpm.Options{Device: tpmtest.Start(t).Device()})
	if err != nil {
		t.Fatal(err)
	}
	checkSum(t, sumRing(t, hardware), "tpm", keyshare.P256)
}

// TestSumWithCard is the same with a card, which tells one coordinate at a time. Of an X25519 key it does not
// tell the sign: several keys have either.
func TestSumWithCard(t *testing.T) {
	t.Parallel()
	daemon := pivtest.StartDaemon(t)
	card := pivtest.NewCard(pivtest.Config{})
	daemon.AddReader("Yubico YubiKey OTP+FIDO+CCID 00 00", card)
	hardware, err := piv.Open(t.Context(), piv.Options{Serial: card.Serial(), Socket: daemon.Socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := hardware.Setup(t.Context(), piv.SetupRequest{PIN: []byte("846213"), PUK: []byte("19283746")}); err != nil {
		t.Fatal(err)
	}
	ring := sumRing(t, hardware)
	for _, curve := range []keyshare.Curve{keyshare.P256, keyshare.P384, keyshare.X25519, keyshare.X25519, keyshare.X25519, keyshare.X25519} {
		checkSum(t, ring, piv.Name(card.Serial()), curve)
	}
}
