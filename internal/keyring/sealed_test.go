package keyring

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/softkey"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

var software = Software{NewPrivate: softkey.NewPrivate, NewKey: softkey.NewKey}

func newSealingRing(t testing.TB, tokens ...token.Token) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir(), software: software}
	f.start(t, tokens...)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func sealingTPM() *tokentest.SealingFake {
	return tokentest.NewSealingFake(tokentest.FakeOptions{Name: "tpm", Kind: "tpm", Algorithms: []token.Algorithm{token.P256}})
}

var machine = token.Policy{PIN: token.PINNever}

func (f *fixture) generateSealed(t testing.TB, spec GenerateSpec) (*Entry, []byte) {
	t.Helper()
	if spec.Token == "" {
		spec.Token = "tpm"
	}
	if spec.Use == token.UseSplit {
		spec.ShareTo = recipients(t, token.X25519, token.X448)
	}
	e, recovery, err := f.GenerateSealed(t.Context(), nil, spec)
	if err != nil {
		t.Fatalf("GenerateSealed(%+v): %v", spec, err)
	}
	return e, recovery
}

// use does with a key what its use permits.
func use(t testing.TB, e *Entry, gate Gate) error {
	t.Helper()
	switch {
	case e.Use.Signs():
		_, err := e.Sign(t.Context(), gate, tokentest.DefaultSignRequest(e.Algorithm, []byte("message")))
		return err
	case e.Use == token.UseSplit:
		_, err := e.Split(t.Context(), gate, 2)
		return err
	}
	curve := e.slot.point.Curve()
	peer, err := keyshare.ParsePoint(curve, recipients(t, e.Algorithm)[0].Octets)
	if err != nil {
		t.Fatal(err)
	}
	_, err = e.AgreePoint(t.Context(), gate, peer, nil, token.Auth{})
	return err
}

// TestSealed makes a sealed key of every algorithm in a token that has P-256 only, and
// uses it after a restart.
func TestSealed(t *testing.T) {
	t.Parallel()
	tpm := sealingTPM()
	f := newSealingRing(t, tpm)
	var ids []string
	for _, a := range token.Algorithms() {
		if a.RSABits() > 2048 {
			continue // the same code, slowly
		}
		for _, u := range []token.Use{token.UseSSH, token.UseSign, token.UseAgree, token.UseSplit} {
			if u.Allows(a) != nil {
				continue
			}
			e, recovery := f.generateSealed(t, GenerateSpec{Algorithm: a, Use: u, Policy: machine})
			if e.Protection != token.ProtectionSealed || e.Protected() != "sealed (machine)" || e.Imported || len(recovery) != 0 || e.State != "" {
				t.Errorf("%s %s: %+v", a, u, e)
			}
			ids = append(ids, e.Udf)
		}
	}
	tpm = tpm.Reopen()
	f.restart(t, tpm)
	for _, id := range ids {
		e := f.find(t, id)
		if e.State != StateUnverified {
			t.Errorf("%s: state %q after restart", id, e.State)
		}
		for range 2 {
			if err := use(t, e, nil); err != nil {
				t.Errorf("%s %s: %v", e.Algorithm, e.Use, err)
			}
		}
		if e = f.find(t, id); e.State != "" || e.Protected() != "sealed (machine)" {
			t.Errorf("%s: state %q, %s", id, e.State, e.Protected())
		}
	}
	if n := tpm.Calls(tokentest.OpUnseal); n != len(ids) {
		t.Errorf("%d keys were unsealed %d times", len(ids), n)
	}
}

// TestSealedGate wants the token's gate for opening and the gate in memory for use.
func TestSealedGate(t *testing.T) {
	t.Parallel()
	tpm := sealingTPM()
	f := newSealingRing(t, tpm)
	e, _ := f.generateSealed(t, GenerateSpec{Algorithm: token.Ed448, Use: token.UseSign, Policy: machine})
	f.restart(t, tpm.Reopen())
	e = f.find(t, e.Udf)
	var entered []string
	inside := 0
	gate := func(_ context.Context, name string) (func(), error) {
		if inside++; inside > 1 {
			t.Error("two gates at once")
		}
		entered = append(entered, name)
		return func() { inside-- }, nil
	}
	for range 2 {
		if err := use(t, e, gate); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"tpm", InMemory, InMemory}; !slices.Equal(entered, want) {
		t.Errorf("entered %q, want %q", entered, want)
	}
}

func TestSealedImport(t *testing.T) {
	t.Parallel()
	f := newSealingRing(t, sealingTPM())
	private := &token.PrivateKey{Algorithm: token.X448, Seed: bytes.Repeat([]byte{7}, 56)}
	spec := ImportSpec{Token: "tpm", Use: token.UseAgree, Private: private, Policy: machine}
	e, existed, recovery, err := f.ImportSealed(t.Context(), nil, spec)
	if err != nil || existed || len(recovery) != 0 || !e.Imported || e.Protected() != "sealed (machine)" {
		t.Fatalf("ImportSealed: %+v, %v, %v", e, existed, err)
	}
	again, existed, _, err := f.ImportSealed(t.Context(), nil, spec)
	if err != nil || !existed || again.Udf != e.Udf {
		t.Errorf("second ImportSealed: %v, %v, %v", again, existed, err)
	}
	var conflict *ConflictError
	spec.PCRs = "sha256:7"
	if _, _, _, err = f.ImportSealed(t.Context(), nil, spec); !errors.As(err, &conflict) || conflict.Differs != "protection" {
		t.Errorf("ImportSealed with another guard: %v", err)
	}
	data, err := os.ReadFile(f.recordPath(e))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("BwcHBwcHBwcH")) {
		t.Error("the record holds the seed")
	}
}

func TestSealedPIN(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tpm := sealingTPM()
	f := newSealingRing(t, tpm)
	spec := GenerateSpec{Token: "tpm", Algorithm: token.Ed448, Use: token.UseSign}
	_, _, err := f.GenerateSealed(ctx, nil, spec)
	wantErr(t, "default guard without PIN", err, token.ErrAuthNeeded)
	if n := len(f.Snapshot().Entries()); n != 0 {
		t.Fatalf("%d keys", n)
	}
	if err := tpm.SetPIN(ctx, nil, []byte("1234")); err != nil {
		t.Fatal(err)
	}
	e, _ := f.generateSealed(t, spec)
	if e.Protected() != "sealed+PIN" || e.Policy.PIN != token.PINOnce {
		t.Errorf("%s, %+v", e.Protected(), e.Policy)
	}
	tpm = tpm.Reopen()
	f.restart(t, tpm)
	e = f.find(t, e.Udf)
	wantErr(t, "use while locked", use(t, e, nil), token.ErrAuthNeeded)
	if tpm.Calls(tokentest.OpUnseal) != 0 {
		t.Error("a locked token was asked")
	}
	if err := tpm.Unlock(ctx, []byte("1234")); err != nil {
		t.Fatal(err)
	}
	if err := use(t, e, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.Lock(ctx, nil, "tpm"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "use after Lock", use(t, e, nil), token.ErrAuthNeeded)
	wantErr(t, "Lock of no token", f.Lock(ctx, nil, "none"), token.ErrNotFound)
}

func TestSealedPCRs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tpm := sealingTPM()
	f := newSealingRing(t, tpm)
	e, recovery := f.generateSealed(t, GenerateSpec{Algorithm: token.Ed448, Use: token.UseSign, Policy: machine, PCRs: "sha256:7,14"})
	if e.Protected() != "sealed+PCR" || e.PCRs != "sha256:7,14" || len(recovery) == 0 {
		t.Fatalf("%s, PCRs %q, %d octets of recovery", e.Protected(), e.PCRs, len(recovery))
	}
	public := e.Public
	tpm.SetPCRs("after an update")
	f.restart(t, tpm.Reopen())
	e = f.find(t, e.Udf)
	var pcr *token.PCRError
	if err := use(t, e, nil); !errors.As(err, &pcr) || pcr.PCRs != "sha256:7,14" {
		t.Errorf("use after an update: %v", err)
	}
	if e = f.find(t, e.Udf); !strings.Contains(e.State, "sha256:7,14") || e.Operations() != nil {
		t.Errorf("state %q, operations %q", e.State, e.Operations())
	}
	_, _, err := f.Reseal(ctx, nil, e.Udf, ResealSpec{})
	wantErr(t, "Reseal without recovery", err, token.ErrPCR)
	_, _, err = f.Reseal(ctx, nil, e.Udf, ResealSpec{Recovery: []byte("wrong")})
	wantErr(t, "Reseal with wrong recovery", err, token.ErrPCR)
	e, second, err := f.Reseal(ctx, nil, e.Udf, ResealSpec{Recovery: recovery, PCRs: "sha256:7"})
	if err != nil || len(second) == 0 || bytes.Equal(second, recovery) || e.PCRs != "sha256:7" || e.State != "" || !e.Public.Equal(public) {
		t.Fatalf("Reseal: %+v, %v", e, err)
	}
	if err := use(t, e, nil); err != nil {
		t.Error(err)
	}
	f.restart(t, tpm.Reopen())
	if err := use(t, f.find(t, e.Udf), nil); err != nil {
		t.Errorf("use of the resealed key: %v", err)
	}
	plain, _ := f.generateSealed(t, GenerateSpec{Algorithm: token.Ed448, Use: token.UseSign, Policy: machine})
	_, _, err = f.Reseal(ctx, nil, plain.Udf, ResealSpec{})
	wantErr(t, "Reseal of a key without PCRs", err, ErrUse)
}

// TestSealedEdited changes members of a record that the token's seal holds.
func TestSealedEdited(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(map[string]any){
		"use":      func(r map[string]any) { r["Use"] = "ssh" },
		"imported": func(r map[string]any) { part0(r)["Imported"] = true },
		"guard": func(r map[string]any) {
			part0(r)["Guard"], part0(r)["PCRs"] = "PCR", "sha256:7"
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			tpm := sealingTPM()
			f := newSealingRing(t, tpm)
			e, _ := f.generateSealed(t, GenerateSpec{Algorithm: token.Ed25519, Use: token.UseSign, Policy: machine})
			f.edit(t, e, change)
			f.restart(t, tpm.Reopen())
			wantErr(t, "use", use(t, f.find(t, e.Udf), nil), token.ErrCorrupt)
		})
	}
	tpm := sealingTPM()
	f := newSealingRing(t, tpm)
	for what, change := range map[string]func(map[string]any){
		"guard that does not follow": func(r map[string]any) { part0(r)["Guard"] = "PCR" },
		"no guard":                   func(r map[string]any) { delete(part0(r), "Guard") },
		"guard of a token key":       func(r map[string]any) { part0(r)["Protection"] = "token" },
	} {
		e, _ := f.generateSealed(t, GenerateSpec{Algorithm: token.Ed25519, Use: token.UseSign, Policy: machine})
		f.edit(t, e, change)
		tpm = tpm.Reopen()
		f.restart(t, tpm)
		if _, err := f.Snapshot().Find(e.Udf); !errors.Is(err, token.ErrNotFound) || len(f.Snapshot().Problems()) != 1 {
			t.Errorf("%s: %v, problems %q", what, err, f.Snapshot().Problems())
		}
		os.Remove(f.recordPath(e))
	}
}

// TestSealedRefused wants no weaker key and no key elsewhere instead.
func TestSealedRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tpm := sealingTPM()
	f := newSealingRing(t, tpm, tokentest.NewFake(tokentest.FakeOptions{Name: "plain"}))
	spec := GenerateSpec{Token: "tpm", Algorithm: token.Ed448, Use: token.UseSign, Policy: machine}
	for what, c := range map[string]struct {
		change func(*GenerateSpec)
		want   error
	}{
		"token that seals nothing": {func(s *GenerateSpec) { s.Token = "plain" }, token.ErrUnsupported},
		"unknown token":            {func(s *GenerateSpec) { s.Token = "none" }, token.ErrNotFound},
		"PIN always":               {func(s *GenerateSpec) { s.Policy.PIN = token.PINAlways }, token.ErrUnsupported},
		"touch":                    {func(s *GenerateSpec) { s.Policy.Touch = token.TouchAlways }, token.ErrUnsupported},
		"no PCRs":                  {func(s *GenerateSpec) { s.PCRs = "7" }, token.ErrBadRequest},
	} {
		s := spec
		c.change(&s)
		_, _, err := f.GenerateSealed(ctx, nil, s)
		wantErr(t, what, err, c.want)
	}
	_, err := f.Generate(ctx, nil, GenerateSpec{Token: "plain", Algorithm: token.P256, Use: token.UseSign, PCRs: "sha256:7"})
	wantErr(t, "PCRs of a token key", err, token.ErrBadRequest)
	tpm.FailAfter(tokentest.OpSeal, token.ErrAbsent)
	_, _, err = f.GenerateSealed(ctx, nil, spec)
	wantErr(t, "answer lost", err, token.ErrAbsent)
	tpm.FailBefore(tokentest.OpUnseal, token.ErrCorrupt)
	_, _, err = f.GenerateSealed(ctx, nil, spec)
	wantErr(t, "blob that does not open", err, token.ErrCorrupt)
	if n := len(f.Snapshot().Entries()); n != 0 {
		t.Errorf("%d keys", n)
	}
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	without, err := Open(st, sealingTPM())
	if err != nil {
		t.Fatal(err)
	}
	defer without.Close()
	_, _, err = without.GenerateSealed(ctx, nil, spec)
	wantErr(t, "without software", err, token.ErrUnsupported)
}

// TestSealedDelete deletes the record and wipes the open key.
func TestSealedDelete(t *testing.T) {
	t.Parallel()
	f := newSealingRing(t, sealingTPM())
	e, _ := f.generateSealed(t, GenerateSpec{Algorithm: token.Ed25519, Use: token.UseSign, Policy: machine})
	if _, err := f.Delete(t.Context(), nil, e.Udf); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "use", use(t, e, nil), token.ErrNotFound)
	if e.slot.parts[0].isOpen() {
		t.Error("the key is still open")
	}
}

// TestSealedContribution adds a sealed contribution to a key in a token.
func TestSealedContribution(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tpm := sealingTPM()
	f := newSealingRing(t, tpm)
	base := f.generate(t, "tpm", token.P256, token.UseAgree)
	contribution := &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()}
	e, err := f.AddComposite(ctx, nil, CompositeSpec{
		Base: base.Udf, Token: "tpm", Seal: true, Policy: machine, Use: token.UseAgree, Contribution: contribution,
	})
	if err != nil {
		t.Fatal(err)
	}
	if e.Protected() != "sealed (machine)" || !e.Imported {
		t.Errorf("%s, imported %v", e.Protected(), e.Imported)
	}
	f.restart(t, tpm.Reopen())
	if err := use(t, f.find(t, e.Udf), nil); err != nil {
		t.Error(err)
	}
}

func TestDecodePrivate(t *testing.T) {
	t.Parallel()
	for _, bad := range [][]byte{nil, {1}, {0, 1, 2}, {4, 1, 2}, {3, 1, 2}} {
		_, err := decodePrivate(token.Ed25519, bad)
		wantErr(t, "decodePrivate", err, token.ErrCorrupt)
	}
	for _, bad := range []*token.PrivateKey{{}, {Seed: []byte{1}, Scalar: []byte{2}}} {
		_, err := encodePrivate(bad)
		wantErr(t, "encodePrivate", err, token.ErrBadKey)
	}
}
