package keyring

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// adopting is a fake that takes over keys: the file is the name of an algorithm, and the key
// is generated when it is first adopted.
type adopting struct {
	*tokentest.Fake
	held   map[string]token.Created
	policy token.Policy // what the keys ask of their user
}

var (
	_ token.Adopter  = adopting{}
	_ token.Exporter = adopting{}
)

func (a adopting) Adopt(ctx context.Context, req token.AdoptRequest) (token.Created, error) {
	name := string(req.File)
	if a.policy != (token.Policy{}) {
		name += string(req.Associated) // which the fake binds
	}
	if held, ok := a.held[name]; ok {
		return held, nil
	}
	alg, err := token.ParseAlgorithm(string(req.File))
	if err != nil {
		return token.Created{}, token.ErrBadKey
	}
	created, err := a.Generate(ctx, token.GenerateRequest{Algorithm: alg, Use: req.Use, Associated: req.Associated})
	created.Policy = a.policy
	if err == nil {
		a.held[name] = created
	}
	return created, err
}

func (a adopting) Export(handle []byte) ([]byte, error) {
	return append([]byte("file of "), handle...), nil
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tpm := adopting{Fake: fakeTPM(), held: map[string]token.Created{}}
	f := newRing(t, tpm, tokentest.NewFake(tokentest.FakeOptions{Name: "plain"}))
	spec := AdoptSpec{Token: "tpm", Use: token.UseSign, Label: "old", File: []byte("P256")}
	e, existed, err := f.Adopt(ctx, nil, spec)
	if err != nil || existed || !e.Imported || e.Protection != token.ProtectionToken || e.Label != "old" {
		t.Fatalf("Adopt: %+v, %v, %v", e, existed, err)
	}
	if err := use(t, e, nil); err != nil {
		t.Error(err)
	}
	again, existed, err := f.Adopt(ctx, nil, spec)
	if err != nil || !existed || again.Udf != e.Udf {
		t.Errorf("second Adopt: %+v, %v, %v", again, existed, err)
	}
	for what, c := range map[string]struct {
		change func(*AdoptSpec)
		want   error
	}{
		"another use":                {func(s *AdoptSpec) { s.Use = token.UseSSH }, token.ErrCorrupt}, // the fake binds it
		"no such file":               {func(s *AdoptSpec) { s.File = []byte("x") }, token.ErrBadKey},
		"use that it cannot have":    {func(s *AdoptSpec) { s.File = []byte("X25519") }, token.ErrUnsupported},
		"token that takes over none": {func(s *AdoptSpec) { s.Token = "plain" }, token.ErrUnsupported},
		"unknown token":              {func(s *AdoptSpec) { s.Token = "none" }, token.ErrNotFound},
		"policy that nobody checks":  {func(s *AdoptSpec) { s.Policy.PIN = token.PINOnce }, token.ErrBadRequest},
	} {
		s := spec
		c.change(&s)
		_, _, err := f.Adopt(ctx, nil, s)
		wantErr(t, what, err, c.want)
	}
	if n := tpm.Calls(tokentest.OpDelete); n != 0 {
		t.Errorf("keys that were there before were deleted %d times", n)
	}
	if err := use(t, f.find(t, e.Udf), nil); err != nil {
		t.Errorf("use after refusals: %v", err)
	}
}

// TestAdoptPolicy has the record hold what the token tells of the policies, bound to the handle.
func TestAdoptPolicy(t *testing.T) {
	t.Parallel()
	policy := token.Policy{PIN: token.PINAlways, Touch: token.TouchCached}
	f := newRing(t, adopting{fakeTPM(), map[string]token.Created{}, policy})
	for _, given := range []token.Policy{{}, policy} {
		algorithm := map[token.Policy]string{{}: "P256", policy: "Ed25519"}[given]
		e, existed, err := f.Adopt(t.Context(), nil, AdoptSpec{Token: "tpm", Use: token.UseSign, File: []byte(algorithm), Policy: given})
		if err != nil || existed || e.Policy != policy {
			t.Fatalf("adopt: %+v, %t, %v, want policy %v", e, existed, err, policy)
		}
		part := e.slot.record.Parts[0]
		if part.PIN != "always" || part.Touch != "cached" {
			t.Errorf("the record has PIN %q, touch %q", part.PIN, part.Touch)
		}
		if err := use(t, e, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	tpm := adopting{Fake: fakeTPM(), held: map[string]token.Created{}}
	soft := tokentest.NewFake(tokentest.FakeOptions{Name: "soft", Protection: token.ProtectionSoftware})
	f := newRing(t, tpm, soft)
	e := f.generate(t, "tpm", token.P256, token.UseSign)
	if file, err := f.Export(e.Udf); err != nil || !strings.HasPrefix(string(file), "file of fake-key-") {
		t.Errorf("Export: %q, %v", file, err)
	}
	_, err := f.Export(f.generate(t, "soft", token.P256, token.UseSign).Udf)
	wantErr(t, "Export of a software key", err, token.ErrUnsupported)
	if _, err := f.Export("MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA"); !errors.Is(err, token.ErrNotFound) {
		t.Errorf("Export of no key: %v", err)
	}
}
