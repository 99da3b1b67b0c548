package main

import (
	"bytes"
	"crypto/rand"
	"path/filepath"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/softkey"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// TestSumWithTPM has a base key b in a TPM and a contribution a beside it: the agreement with
// E = e*G is (a+b)*E, which is e*(A+B), bit for bit.
func TestSumWithTPM(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	hardware, err := tpm.Open(t.Context(), tpm.Options{Device: tpmtest.Start(t).Device()})
	if err != nil {
		t.Fatal(err)
	}
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
	defer ring.Close()
	base, err := ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSeal})
	if err != nil {
		t.Fatal(err)
	}
	scalar := func() *keyshare.Scalar {
		s, err := keyshare.RandomScalar(keyshare.P256, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sum, err := ring.AddComposite(t.Context(), nil, keyring.CompositeSpec{
		Base: base.Udf, Token: "soft", Use: token.UseDecrypt,
		Contribution: &token.PrivateKey{Algorithm: token.P256, Scalar: scalar().Bytes()},
	})
	if err != nil {
		t.Fatal(err)
	}
	e := scalar()
	got, err := sum.AgreePoint(t.Context(), nil, e.Public(), nil, token.Auth{})
	if err != nil {
		t.Fatal(err)
	}
	public, err := keyshare.ParsePoint(keyshare.P256, sum.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	want, err := keyshare.Agree(e, public)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("agreement is %x, want %x", got.Bytes(), want.Bytes())
	}
	if p := sum.Parts()[0]; p.Protection != token.ProtectionToken || p.Imported {
		t.Errorf("the base is %+v, want a key made in the token", p)
	}
}
