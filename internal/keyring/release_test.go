package keyring

import (
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

// TestReleaseIsKept has keys of each kind with a limit, which they have after a restart too.
func TestReleaseIsKept(t *testing.T) {
	t.Parallel()
	ctx, softDir, tpm := t.Context(), t.TempDir(), sealingTPM()
	f := newSealingRing(t, openSoft(t, softDir), tpm)
	want := map[string]token.Release{}
	for _, r := range []token.Release{token.ReleaseSeed, token.ReleaseKey, token.ReleasePlaintext} {
		e, err := f.Generate(ctx, nil, GenerateSpec{Token: "soft", Algorithm: token.X448, Use: token.UseDecrypt, Release: r})
		if err != nil {
			t.Fatal(err)
		}
		want[e.Udf] = r
		private := &token.PrivateKey{Algorithm: token.X25519, Scalar: randomScalar(t, token.X25519).Bytes()}
		imported := ImportSpec{Token: "soft", Use: token.UseDecrypt, Private: private, Release: r}
		if e, _, err = f.Import(ctx, nil, imported); err != nil {
			t.Fatal(err)
		}
		want[e.Udf] = r
		imported.Release = token.ReleaseKey
		var conflict *ConflictError
		_, existed, err := f.Import(ctx, nil, imported)
		if r == token.ReleaseKey && (err != nil || !existed) || r != token.ReleaseKey && (!errors.As(err, &conflict) || conflict.Differs != "release") {
			t.Errorf("import of a key of release %v with another: existed %t, %v", r, existed, err)
		}
		e, recovery := f.generateSealed(t, GenerateSpec{Algorithm: token.P256, Use: token.UseDecrypt, Policy: machine, PCRs: "sha256:7", Release: r})
		if e, _, err = f.Reseal(ctx, nil, e.Udf, ResealSpec{Recovery: recovery}); err != nil {
			t.Fatal(err)
		}
		want[e.Udf] = r
	}
	f.restart(t, openSoft(t, softDir), tpm.Reopen())
	for udf, r := range want {
		e := f.find(t, udf)
		if err := use(t, e, nil); err != nil || e.Release != r {
			t.Errorf("%s: release %v, want %v; %v", e.Algorithm, e.Release, r, err)
		}
	}
}

// TestReleaseEdited widens the release of a record, narrows it, and writes what is none.
func TestReleaseEdited(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		made   token.Release
		change func(map[string]any)
		atLoad bool
	}{
		"widened":               {token.ReleasePlaintext, func(r map[string]any) { r["Release"] = "key" }, false},
		"taken away":            {token.ReleasePlaintext, func(r map[string]any) { delete(r, "Release") }, false},
		"narrowed":              {token.ReleaseSeed, func(r map[string]any) { r["Release"] = "plaintext" }, false},
		"default written out":   {token.ReleaseSeed, func(r map[string]any) { r["Release"] = "seed" }, true},
		"no such word":          {token.ReleasePlaintext, func(r map[string]any) { r["Release"] = "agreement" }, true},
		"of a key that agrees":  {token.ReleasePlaintext, func(r map[string]any) { r["Use"] = "agree" }, true},
		"taken away, and other": {token.ReleasePlaintext, func(r map[string]any) { delete(r, "Release"); r["Use"] = "agree" }, false},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			softDir, tpm := t.TempDir(), sealingTPM()
			f := newSealingRing(t, openSoft(t, softDir), tpm)
			inSoft, err := f.Generate(t.Context(), nil, GenerateSpec{Token: "soft", Algorithm: token.X448, Use: token.UseDecrypt, Release: c.made})
			if err != nil {
				t.Fatal(err)
			}
			sealed, _ := f.generateSealed(t, GenerateSpec{Algorithm: token.P256, Use: token.UseDecrypt, Policy: machine, Release: c.made})
			for _, e := range []*Entry{inSoft, sealed} {
				f.edit(t, e, c.change)
			}
			f.restart(t, openSoft(t, softDir), tpm.Reopen())
			for _, e := range []*Entry{inSoft, sealed} {
				found, err := f.Snapshot().Find(e.Udf)
				if c.atLoad {
					wantErr(t, "Find", err, token.ErrNotFound)
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				wantErr(t, "use", use(t, found, nil), token.ErrCorrupt)
			}
		})
	}
}

// TestReleaseOfSum adds to keys with and without a limit.
func TestReleaseOfSum(t *testing.T) {
	t.Parallel()
	ctx, softDir, tpm := t.Context(), t.TempDir(), sealingTPM()
	f := newSealingRing(t, openSoft(t, softDir), tpm)
	for _, c := range []struct {
		base         token.Use
		limit, asked token.Release
		want         error
	}{
		{token.UseSeal, token.ReleaseSeed, token.ReleasePlaintext, nil},
		{token.UseSeal, token.ReleaseSeed, token.ReleaseSeed, nil},
		{token.UseDecrypt, token.ReleasePlaintext, token.ReleasePlaintext, nil},
		{token.UseDecrypt, token.ReleasePlaintext, token.ReleaseSeed, token.ErrBadRequest},
		{token.UseDecrypt, token.ReleaseSeed, token.ReleaseKey, token.ErrBadRequest},
	} {
		base, err := f.Generate(ctx, nil, GenerateSpec{Token: "soft", Algorithm: token.P256, Use: c.base, Release: c.limit})
		if err != nil {
			t.Fatal(err)
		}
		for _, home := range []CompositeSpec{{Token: "soft"}, {Token: "tpm", Seal: true, Policy: machine}} {
			home.Base, home.Use, home.Release = base.Udf, token.UseDecrypt, c.asked
			home.Contribution = &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()}
			e, err := f.AddComposite(ctx, nil, home)
			if c.want != nil || err != nil {
				wantErr(t, "AddComposite", err, c.want)
				continue
			}
			tpm = tpm.Reopen()
			f.restart(t, openSoft(t, softDir), tpm)
			if e = f.find(t, e.Udf); e.Release != c.asked || use(t, e, nil) != nil {
				t.Errorf("%+v in %s: release %v, use: %v", c, home.Token, e.Release, use(t, e, nil))
			}
		}
	}
}

// TestReleaseRefused asks for limits of keys that have none.
func TestReleaseRefused(t *testing.T) {
	t.Parallel()
	tpm := sealingTPM()
	f := newSealingRing(t, tpm)
	for what, spec := range map[string]GenerateSpec{
		"agreement":       {Algorithm: token.P256, Use: token.UseAgree, Release: token.ReleasePlaintext},
		"signature":       {Algorithm: token.P256, Use: token.UseSign, Release: token.ReleaseKey},
		"no such release": {Algorithm: token.P256, Use: token.UseDecrypt, Release: "agreement"},
		"RSA":             {Algorithm: token.RSA2048, Use: token.UseDecrypt, Release: token.ReleasePlaintext},
	} {
		spec.Token, spec.Policy = "tpm", machine
		_, _, err := f.GenerateSealed(t.Context(), nil, spec)
		wantErr(t, what, err, token.ErrBadRequest)
	}
	if n := len(f.Snapshot().Entries()); n != 0 {
		t.Errorf("%d keys", n)
	}
}
