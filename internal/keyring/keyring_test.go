package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/softkey"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// TestMain has the tests' folders be this user's alone, as a state folder must be, whatever the umask is.
func TestMain(m *testing.M) {
	syscall.Umask(0o077)
	os.Exit(m.Run())
}

// fixture is a keyring that can be closed and opened again over the same folder.
type fixture struct {
	*Keyring
	dir           string
	software      Software
	rollbackGuard string
	companion     Companion
}

func newRing(t testing.TB, tokens ...token.Token) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir()}
	f.start(t, tokens...)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fixture) start(t testing.TB, tokens ...token.Token) {
	t.Helper()
	st, err := store.Open(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if f.Keyring, err = OpenConfig(Config{Store: st, Tokens: tokens, Software: f.software, RollbackGuard: f.rollbackGuard, Companion: f.companion}); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) restart(t testing.TB, tokens ...token.Token) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f.start(t, tokens...)
}

func (f *fixture) find(t testing.TB, id string) *Entry {
	t.Helper()
	e, err := f.Snapshot().Find(id)
	if err != nil {
		t.Fatalf("Find(%s): %v", id, err)
	}
	return e
}

func (f *fixture) generate(t testing.TB, tok string, a token.Algorithm, u token.Use) *Entry {
	t.Helper()
	spec := GenerateSpec{Token: tok, Algorithm: a, Use: u}
	if u == token.UseSplit {
		spec.ShareTo = recipients(t, token.X25519, token.X448)
	}
	e, err := f.Generate(t.Context(), nil, spec)
	if err != nil {
		t.Fatalf("Generate(%s, %s, %s): %v", tok, a, u, err)
	}
	return e
}

func (f *fixture) recordPath(e *Entry) string {
	return filepath.Join(f.dir, "keys", e.Udf+".json")
}

// edit changes the record of e on disk.
func (f *fixture) edit(t testing.TB, e *Entry, change func(map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(f.recordPath(e))
	if err != nil {
		t.Fatal(err)
	}
	var record map[string]any
	if err := json.Unmarshal(data, &record); err != nil {
		t.Fatal(err)
	}
	change(record)
	if data, err = json.Marshal(record); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.recordPath(e), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func part0(record map[string]any) map[string]any { return record["Parts"].([]any)[0].(map[string]any) }

func fakeTPM() *tokentest.Fake {
	return tokentest.NewFake(tokentest.FakeOptions{Name: "tpm", Kind: "tpm"})
}

func openSoft(t testing.TB, dir string) token.Token {
	t.Helper()
	tok, err := softkey.Open(dir, softkey.Options{Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func recipients(t testing.TB, algorithms ...token.Algorithm) []token.PublicKey {
	t.Helper()
	var out []token.PublicKey
	for _, a := range algorithms {
		out = append(out, token.PublicKey{Algorithm: a, Octets: randomScalar(t, a).Public().Bytes()})
	}
	return out
}

func randomScalar(t testing.TB, a token.Algorithm) *keyshare.Scalar {
	t.Helper()
	curve, ok := mesh.CurveOf(a)
	if !ok {
		t.Fatalf("%s has no curve", a)
	}
	s, err := keyshare.RandomScalar(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// TestKeys makes a key of every algorithm and use, uses it, and uses it again after a restart.
func TestKeys(t *testing.T) {
	t.Parallel()
	softDir := t.TempDir()
	fake := fakeTPM()
	f := newRing(t, openSoft(t, softDir), fake)
	var all []*Entry
	for _, a := range token.Algorithms() {
		for _, u := range []token.Use{token.UseSSH, token.UseSign, token.UseAgree, token.UseDecrypt, token.UseSplit} {
			if u.Allows(a) != nil || a.RSABits() > 2048 {
				continue
			}
			all = append(all, f.generate(t, "soft", a, u))
			if a.RSABits() == 0 {
				all = append(all, f.generate(t, "tpm", a, u))
			}
		}
	}
	for _, e := range all {
		if e.State != "" {
			t.Errorf("state of a new key is %q", e.State)
		}
		useKey(t, e)
	}
	f.restart(t, openSoft(t, softDir), fake.Reopen())
	if n := len(f.Snapshot().Entries()); n != len(all) || len(f.Snapshot().Problems()) != 0 {
		t.Fatalf("%d of %d keys loaded; problems: %q", n, len(all), f.Snapshot().Problems())
	}
	for _, before := range all {
		e := f.find(t, before.Udf)
		if e.State != StateUnverified || !e.Public.Equal(before.Public) || e.Use != before.Use || e.Protection != before.Protection {
			t.Errorf("after restart %+v, before %+v", e, before)
		}
		useKey(t, e)
		if e = f.find(t, before.Udf); e.State != "" {
			t.Errorf("state after use is %q", e.State)
		}
	}
}

// useKey does what the use permits, checks the result, and tries what it does not permit.
func useKey(t *testing.T, e *Entry) {
	t.Helper()
	ctx := t.Context()
	req := tokentest.DefaultSignRequest(e.Algorithm, []byte("message"))
	signature, err := e.Sign(ctx, nil, req)
	if !e.Use.Signs() {
		wantErr(t, "Sign", err, ErrUse)
	} else if err != nil {
		t.Errorf("Sign with %s: %v", e.Algorithm, err)
	} else if err := tokentest.Verify(e.Public, req, signature); err != nil {
		t.Error(err)
	}
	if e.Algorithm.RSABits() == 0 {
		useAgreement(t, e)
	}
	if shares, err := e.Split(ctx, nil, 2); e.Use != token.UseSplit {
		wantErr(t, "Split", err, ErrUse)
	} else if err != nil || len(shares) != len(e.ShareTo) {
		t.Errorf("Split: %d shares, %v", len(shares), err)
	}
	_, err = e.Decrypt(ctx, nil, token.DecryptRequest{Padding: token.PaddingPKCS1v15, Length: 1, Ciphertext: []byte("none")})
	switch {
	case e.Use != token.UseDecrypt:
		wantErr(t, "Decrypt", err, ErrUse)
	case e.Algorithm.RSABits() != 0:
		wantErr(t, "Decrypt", err, token.ErrDecrypt)
	default:
		wantErr(t, "Decrypt", err, token.ErrUnsupported)
	}
	want := map[token.Use][]string{
		token.UseSSH: {"SSH"}, token.UseSign: {"Sign"}, token.UseAgree: {"KeyAgreement", "Decrypt"},
		token.UseDecrypt: {"Decrypt"}, token.UseSplit: {"Share"},
	}[e.Use]
	if !slices.Equal(e.Operations(), want) {
		t.Errorf("operations are %q, want %q", e.Operations(), want)
	}
}

func useAgreement(t *testing.T, e *Entry) {
	t.Helper()
	peer := randomScalar(t, e.Algorithm)
	coefficient := randomScalar(t, e.Algorithm)
	got, err := e.AgreePoint(t.Context(), nil, peer.Public(), nil, token.Auth{})
	if !e.Use.Agrees() {
		wantErr(t, "AgreePoint", err, ErrUse)
		return
	}
	if err != nil {
		t.Errorf("AgreePoint with %s: %v", e.Algorithm, err)
		return
	}
	own, err := keyshare.ParsePoint(peer.Curve(), e.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	want, err := keyshare.Agree(peer, own)
	if err != nil || !got.Equal(want) {
		t.Errorf("AgreePoint with %s is wrong", e.Algorithm)
	}
	if want, err = keyshare.Agree(coefficient, want); err != nil {
		t.Fatal(err)
	}
	got, err = e.AgreePoint(t.Context(), nil, peer.Public(), coefficient, token.Auth{})
	if err != nil || !got.Equal(want) {
		t.Errorf("AgreePoint with %s and a coefficient is wrong (%v)", e.Algorithm, err)
	}
	other := token.P256
	if e.Algorithm == other {
		other = token.P384
	}
	_, err = e.AgreePoint(t.Context(), nil, randomScalar(t, other).Public(), nil, token.Auth{})
	wantErr(t, "AgreePoint with a point of another curve", err, token.ErrBadRequest)
}

// An RSA key has a name in G2 that is not its fingerprint: published KeyData bears it.
func TestFindByEveryAlias(t *testing.T) {
	t.Parallel()
	f := newRing(t, tokentest.NewFake(tokentest.FakeOptions{Name: "tpm", Kind: "tpm", Algorithms: token.Algorithms()}))
	for _, c := range []struct {
		a     token.Algorithm
		use   token.Use
		names int
	}{{token.RSA2048, token.UseSign, 2}, {token.X448, token.UseAgree, 2}, {token.P256, token.UseAgree, 1}} {
		e := f.generate(t, "tpm", c.a, c.use)
		aliases, err := mesh.Aliases(e.Public)
		if err != nil || len(aliases) != c.names {
			t.Fatalf("%s: aliases %v, %v", c.a, aliases, err)
		}
		for _, alias := range aliases {
			if got, err := f.Snapshot().Find(alias[:28]); err != nil || got.Udf != e.Udf {
				t.Errorf("%s: Find(%q): %v", c.a, alias[:28], err)
			}
		}
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	f := newRing(t, fakeTPM())
	e := f.generate(t, "tpm", token.X448, token.UseAgree)
	f.generate(t, "tpm", token.P256, token.UseAgree)
	if e.Udf == e.UdfG2 {
		t.Error("an X448 key has one UDF")
	}
	for _, g := range []mesh.Generation{mesh.G1, mesh.G2} {
		full, err := mesh.FullFingerprint(e.Public, g)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{full[:28], full[:29], full[:50], full, strings.ToLower(full), full[:28] + "-" + full[28:40]} {
			if got, err := f.Snapshot().Find(id); err != nil || got.Udf != e.Udf {
				t.Errorf("Find(%q): %v", id, err)
			}
		}
		wrong := full[:40] + string(otherBase32(full[40]))
		_, err = f.Snapshot().Find(wrong)
		wantErr(t, "Find with a wrong 41st character", err, token.ErrNotFound)
		for _, id := range []string{"", full[:27], full[:27] + "1", full + "A", "../" + full} {
			_, err := f.Snapshot().Find(id)
			if !errors.Is(err, token.ErrBadRequest) && !errors.Is(err, token.ErrNotFound) {
				t.Errorf("Find(%q): %v", id, err)
			}
		}
		_, err = f.Snapshot().Find(full[:27])
		wantErr(t, "Find with 27 characters", err, token.ErrBadRequest)
	}
	if got := f.find(t, e.UdfG2); got.Udf != e.Udf {
		t.Errorf("G2 UDF finds %s", got.Udf)
	}
	if got, err := f.Snapshot().FindPublic(e.Public); err != nil || got.Udf != e.Udf {
		t.Errorf("FindPublic: %v", err)
	}
	if !slices.IsSortedFunc(f.Snapshot().Entries(), func(a, b *Entry) int { return strings.Compare(a.Udf, b.Udf) }) {
		t.Error("Entries are not sorted")
	}
}

func otherBase32(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}

func TestImport(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	soft2 := tokentest.NewFake(tokentest.FakeOptions{Name: "soft2", Protection: token.ProtectionSoftware})
	f := newRing(t, fakeTPM(), soft2)
	private := &token.PrivateKey{Algorithm: token.X25519, Scalar: randomScalar(t, token.X25519).Bytes()}
	shareTo := recipients(t, token.X25519, token.X448)
	spec := ImportSpec{Token: "soft2", Use: token.UseSplit, Private: private, Label: "first", ShareTo: shareTo}
	e, existed, err := f.Import(ctx, nil, spec)
	if err != nil || existed {
		t.Fatalf("Import: existed %v, %v", existed, err)
	}
	if !e.Imported || e.Token != "soft2" || e.Protection != token.ProtectionSoftware || e.Label != "first" || len(e.ShareTo) != 2 {
		t.Errorf("imported %+v", e)
	}
	again := spec
	again.Label = "second"
	e2, existed, err := f.Import(ctx, nil, again)
	if err != nil || !existed || e2.Udf != e.Udf || e2.Label != "first" {
		t.Errorf("second Import: %+v, existed %v, %v", e2, existed, err)
	}
	conflicts := map[string]func(*ImportSpec){
		"use":      func(s *ImportSpec) { s.Use, s.ShareTo = token.UseAgree, nil },
		"token":    func(s *ImportSpec) { s.Token = "tpm" },
		"share-to": func(s *ImportSpec) { s.ShareTo = recipients(t, token.X25519, token.X448) },
		"sign of the public key": func(s *ImportSpec) {
			s.Private = &token.PrivateKey{Algorithm: token.X25519, Scalar: negate(private.Scalar)}
		},
	}
	for differs, change := range conflicts {
		s := spec
		change(&s)
		got, existed, err := f.Import(ctx, nil, s)
		var conflict *ConflictError
		if !errors.As(err, &conflict) || conflict.Differs != differs || conflict.Udf != e.Udf || got != nil || existed {
			t.Errorf("Import with another %s: %v, %v, %v", differs, got, existed, err)
		}
		if !errors.Is(err, ErrConflict) || !errors.Is(err, ErrUse) || !strings.HasPrefix(err.Error(), "use") {
			t.Errorf("Import with another %s: %v", differs, err)
		}
	}
	if soft2.Keys() != 1 || len(f.Snapshot().Entries()) != 1 {
		t.Errorf("%d keys in the token, %d in the ring", soft2.Keys(), len(f.Snapshot().Entries()))
	}
}

// negate returns L - s on Curve25519, so that the public keys differ in sign only.
func negate(scalar []byte) []byte {
	order := []byte{
		0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
	}
	out, borrow := make([]byte, len(order)), 0
	for i := range order {
		d := int(order[i]) - int(scalar[i]) - borrow
		out[i], borrow = byte(d), 0
		if d < 0 {
			borrow = 1
		}
	}
	return out
}

func TestRefusedSpecs(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	two := recipients(t, token.X25519, token.X448)
	wrongSign := token.PublicKey{Algorithm: token.X25519, Octets: two[0].Octets[:32]}
	cases := map[string]struct {
		spec GenerateSpec
		want error
	}{
		"unknown token":        {GenerateSpec{Token: "none", Algorithm: token.P256, Use: token.UseSign}, token.ErrNotFound},
		"unknown algorithm":    {GenerateSpec{Token: "tpm", Algorithm: "P1", Use: token.UseSign}, token.ErrBadRequest},
		"unknown use":          {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: "x"}, token.ErrBadRequest},
		"reserved use":         {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSignShare}, token.ErrUnsupported},
		"tags without use":     {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign, Tags: []string{"A"}}, token.ErrBadRequest},
		"tag twice":            {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSignAssertion, Tags: []string{"A", "A"}}, token.ErrBadRequest},
		"tag of two words":     {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSignAssertion, Tags: []string{"A B"}}, token.ErrBadRequest},
		"X25519 to sign":       {GenerateSpec{Token: "tpm", Algorithm: token.X25519, Use: token.UseSign}, token.ErrUnsupported},
		"label of two lines":   {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign, Label: "a\nb"}, token.ErrBadRequest},
		"share-to not split":   {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseAgree, ShareTo: two}, token.ErrBadRequest},
		"split without":        {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSplit}, token.ErrBadRequest},
		"split to one":         {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSplit, ShareTo: two[:1]}, token.ErrBadRequest},
		"split to one twice":   {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSplit, ShareTo: append(two[:1:1], two[0])}, token.ErrBadRequest},
		"split to P256":        {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSplit, ShareTo: append(two[:1:1], recipients(t, token.P256)...)}, token.ErrBadRequest},
		"recipient half a key": {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSplit, ShareTo: append(two[:1:1], wrongSign)}, token.ErrBadRequest},
		"split to 256":         {GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSplit, ShareTo: make([]token.PublicKey, 256)}, token.ErrBadRequest},
	}
	for what, c := range cases {
		_, err := f.Generate(t.Context(), nil, c.spec)
		wantErr(t, what, err, c.want)
	}
	if fake.Calls(tokentest.OpGenerate) != 0 {
		t.Error("the token was asked")
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	fake := fakeTPM()
	f := newRing(t, fake)
	e := f.generate(t, "tpm", token.P256, token.UseAgree)
	before := f.Snapshot()

	broken := errors.New("broken")
	fake.FailBefore(tokentest.OpDelete, broken)
	_, err := f.Delete(ctx, nil, e.Udf)
	wantErr(t, "Delete while the token fails", err, broken)
	useKey(t, f.find(t, e.Udf))

	if got, err := f.Delete(ctx, nil, e.UdfG2); err != nil || got.Udf != e.Udf {
		t.Fatalf("Delete: %v, %v", got, err)
	}
	_, err = f.Snapshot().Find(e.Udf)
	wantErr(t, "Find after Delete", err, token.ErrNotFound)
	_, err = f.Delete(ctx, nil, e.Udf)
	wantErr(t, "second Delete", err, token.ErrNotFound)
	if _, err := os.Stat(f.recordPath(e)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record is there: %v", err)
	}
	if fake.Keys() != 0 {
		t.Error("the token still has the key")
	}
	if _, err := before.Find(e.Udf); err != nil {
		t.Errorf("the old snapshot changed: %v", err)
	}
	_, err = e.AgreePoint(ctx, nil, randomScalar(t, token.P256).Public(), nil, token.Auth{})
	wantErr(t, "AgreePoint with a deleted key", err, token.ErrNotFound)

	e = f.generate(t, "tpm", token.P256, token.UseSign)
	f.restart(t) // the token is not there any more
	if _, err := f.Delete(ctx, nil, e.Udf); err != nil {
		t.Errorf("Delete without the token: %v", err)
	}
	if len(f.Snapshot().Entries()) != 0 {
		t.Error("the key is there after Delete without the token")
	}
}

// TestDeleteBaseOfBroken deletes the base of a composite whose record does not load, and mends that.
func TestDeleteBaseOfBroken(t *testing.T) {
	t.Parallel()
	fake, soft := fakeTPM(), t.TempDir()
	f := newRing(t, fake, openSoft(t, soft))
	base := f.generate(t, "tpm", token.P256, token.UseAgree)
	sum, err := f.AddComposite(t.Context(), nil, CompositeSpec{
		Base: base.Udf, Token: "soft", Use: token.UseAgree,
		Contribution: &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()},
	})
	if err != nil {
		t.Fatal(err)
	}
	use := ""
	f.edit(t, sum, func(r map[string]any) { use, r["Use"] = r["Use"].(string), "none such" })
	f.restart(t, fake.Reopen(), openSoft(t, soft))
	if _, err := f.Delete(t.Context(), nil, base.Udf); err != nil {
		t.Fatal(err)
	}
	f.edit(t, sum, func(r map[string]any) { r["Use"] = use })
	f.restart(t, fake.Reopen(), openSoft(t, soft))
	useKey(t, f.find(t, sum.Udf))
}

// TestDeletedElsewhere has another program delete the key of a token while it is open here.
func TestDeletedElsewhere(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	e := f.generate(t, "tpm", token.P256, token.UseAgree)
	useKey(t, e)
	fake.FailBefore(tokentest.OpAgree, token.ErrNotFound)
	_, err := e.AgreePoint(t.Context(), nil, randomScalar(t, token.P256).Public(), nil, token.Auth{})
	wantErr(t, "AgreePoint with a key that is gone", err, token.ErrNotFound)
	if now := f.find(t, e.Udf); !strings.HasPrefix(now.State, stateUnreadable) {
		t.Errorf("state is %q, want unreadable", now.State)
	}
	opened := fake.Calls(tokentest.OpOpen)
	useKey(t, e)
	if now := f.find(t, e.Udf); now.State != "" || fake.Calls(tokentest.OpOpen) != opened+1 {
		t.Errorf("state is %q after it came back, opened %d times", now.State, fake.Calls(tokentest.OpOpen)-opened)
	}
}

func TestTokenAbsent(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	e := f.generate(t, "tpm", token.P256, token.UseAgree)
	f.restart(t)
	e = f.find(t, e.Udf)
	if e.State != StateTokenAbsent || e.Operations() != nil {
		t.Errorf("state %q, operations %q", e.State, e.Operations())
	}
	refuse := func(context.Context, string) (func(), error) { return nil, errors.New("no gate of this name") }
	_, err := e.AgreePoint(t.Context(), refuse, randomScalar(t, token.P256).Public(), nil, token.Auth{})
	wantErr(t, "AgreePoint", err, token.ErrAbsent)

	// A token that comes back is found again by use.
	back := fake.Reopen()
	back.SetState(token.StateAbsent)
	f.restart(t, back)
	if e = f.find(t, e.Udf); e.State != StateTokenAbsent {
		t.Errorf("state %q", e.State)
	}
	_, err = e.AgreePoint(t.Context(), nil, randomScalar(t, token.P256).Public(), nil, token.Auth{})
	wantErr(t, "AgreePoint", err, token.ErrAbsent)
	back.SetState(token.StateReady)
	if _, err := e.AgreePoint(t.Context(), nil, randomScalar(t, token.P256).Public(), nil, token.Auth{}); err != nil {
		t.Error(err)
	}
	if e = f.find(t, e.Udf); e.State != "" {
		t.Errorf("state %q after use", e.State)
	}
}

// TestEditedRecords changes identity fields of records on disk. Each is noticed when the
// record is read or at the latest when the key is opened, and no other key suffers.
func TestEditedRecords(t *testing.T) {
	t.Parallel()
	other := recipients(t, token.X25519)[0]
	cases := map[string]struct {
		use    token.Use
		change func(map[string]any)
		atLoad bool
	}{
		"use":          {token.UseSign, func(r map[string]any) { r["Use"] = "ssh" }, false},
		"use of kind":  {token.UseDecrypt, func(r map[string]any) { r["Use"] = "agree" }, false},
		"imported":     {token.UseSign, func(r map[string]any) { part0(r)["Imported"] = true }, false},
		"handle":       {token.UseSign, func(r map[string]any) { part0(r)["Handle"] = "AAAA" }, false},
		"token":        {token.UseSign, func(r map[string]any) { part0(r)["Token"] = "tpm" }, true},
		"protection":   {token.UseSign, func(r map[string]any) { part0(r)["Protection"] = "token" }, true},
		"no such word": {token.UseSign, func(r map[string]any) { part0(r)["Protection"] = "unbreakable" }, true},
		"share-to":     {token.UseSplit, func(r map[string]any) { slices.Reverse(r["ShareTo"].([]any)) }, false},
		"algorithm":    {token.UseSign, func(r map[string]any) { r["Algorithm"] = "P384" }, true},
		"part":         {token.UseSign, func(r map[string]any) { r["Parts"] = append(r["Parts"].([]any), r["Parts"].([]any)[0]) }, true},
		"no share-to":  {token.UseSplit, func(r map[string]any) { delete(r, "ShareTo") }, true},
		"one share-to": {token.UseSplit, func(r map[string]any) { r["ShareTo"] = r["ShareTo"].([]any)[:1] }, true},
		"reserved use": {token.UseSign, func(r map[string]any) { r["Use"] = "sign-share" }, true},
		"tags":         {token.UseSign, func(r map[string]any) { r["Tags"] = []string{"A"} }, true},
		"bad use":      {token.UseSign, func(r map[string]any) { r["Use"] = "split" }, true},
		"public key": {token.UseSign, func(r map[string]any) {
			part0(r)["Public"], r["Public"] = mesh.Parameters(other).PublicKeyECDH.Public, mesh.Parameters(other).PublicKeyECDH.Public
		}, true},
		"unknown member": {token.UseSign, func(r map[string]any) { r["Extra"] = 1 }, true},
	}
	for what, c := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			softDir := t.TempDir()
			fake := fakeTPM()
			f := newRing(t, openSoft(t, softDir), fake)
			good := f.generate(t, "soft", token.P256, token.UseAgree)
			e := f.generate(t, "soft", token.P256, c.use)
			f.edit(t, e, c.change)
			f.restart(t, openSoft(t, softDir), fake.Reopen())
			useKey(t, f.find(t, good.Udf))
			if c.atLoad {
				_, err := f.Snapshot().Find(e.Udf)
				wantErr(t, "Find", err, token.ErrNotFound)
				if p := f.Snapshot().Problems(); len(p) != 1 || !strings.Contains(p[0], e.Udf) {
					t.Errorf("problems are %q", p)
				}
				return
			}
			e = f.find(t, e.Udf)
			if e.State != StateUnverified {
				t.Errorf("state %q before use", e.State)
			}
			err := anyUse(t.Context(), e)
			if !errors.Is(err, token.ErrCorrupt) && !errors.Is(err, token.ErrNotFound) {
				t.Errorf("use of an edited key: %v", err)
			}
			e = f.find(t, e.Udf)
			if !strings.HasPrefix(e.State, "unreadable: ") || e.Operations() != nil {
				t.Errorf("state %q, operations %q after use", e.State, e.Operations())
			}
		})
	}
}

func anyUse(ctx context.Context, e *Entry) error {
	var err error
	switch {
	case e.Use.Signs():
		_, err = e.Sign(ctx, nil, tokentest.DefaultSignRequest(e.Algorithm, nil))
	case e.Use == token.UseSplit:
		_, err = e.Split(ctx, nil, 2)
	default:
		_, err = e.AgreePoint(ctx, nil, keyshare.BasePoint(e.slot.point.Curve()), nil, token.Auth{})
	}
	return err
}

// TestCompositeReservesBase wants nobody to delete the base of a composite while that is
// made: the object in the token would go too.
func TestCompositeReservesBase(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := newRing(t, fakeTPM(), openSoft(t, t.TempDir()))
	base := f.generate(t, "tpm", token.P256, token.UseAgree)
	spec := CompositeSpec{
		Base: base.Udf, Token: "soft", Use: token.UseAgree,
		Contribution: &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()},
	}
	entered := false
	gate := func(context.Context, string) (func(), error) {
		entered = true
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.busy[base.Public.Index()] == nil {
			t.Error("the base could be deleted now")
		}
		return func() {}, nil
	}
	e, err := f.AddComposite(ctx, gate, spec)
	if err != nil || !entered {
		t.Fatal(err, entered)
	}
	for _, key := range []*Entry{e, base} {
		if _, err := f.Delete(ctx, nil, key.Udf); err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.AddComposite(ctx, nil, spec)
	wantErr(t, "AddComposite on a deleted base", err, token.ErrNotFound)
}

// TestDeleteTogether deletes a base while a composite of it is being deleted: the object that they share
// goes with the last of them.
func TestDeleteTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		fake, other := fakeTPM(), tokentest.NewFake(tokentest.FakeOptions{Name: "other"})
		f := newRing(t, fake, other)
		base := f.generate(t, "tpm", token.P256, token.UseAgree)
		composite, err := f.AddComposite(ctx, nil, CompositeSpec{
			Base: base.Udf, Token: "other", Use: token.UseAgree,
			Contribution: &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()},
		})
		if err != nil {
			t.Fatal(err)
		}
		deleted := make(chan error, 1)
		gate := func(context.Context, string) (func(), error) { // once: at the contribution
			go func() {
				_, err := f.Delete(ctx, nil, base.Udf)
				deleted <- err
			}()
			synctest.Wait() // the base is deleted, or waits
			return func() {}, nil
		}
		if _, err := f.Delete(ctx, gate, composite.Udf); err != nil {
			t.Fatal(err)
		}
		if err := <-deleted; err != nil {
			t.Fatal(err)
		}
		if n, m := fake.Keys(), other.Keys(); n != 0 || m != 0 {
			t.Errorf("%d and %d keys are left in the tokens", n, m)
		}
	})
}

// TestComposite adds a software contribution to a key in a token, as activation does.
func TestComposite(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, a := range []token.Algorithm{token.P256, token.X448, token.X25519, token.Ed448} {
		t.Run(string(a), func(t *testing.T) {
			t.Parallel()
			softDir := t.TempDir()
			fake := fakeTPM()
			f := newRing(t, fake, openSoft(t, softDir))
			base := f.generate(t, "tpm", a, token.UseAgree)
			contribution := &token.PrivateKey{Algorithm: a, Scalar: randomScalar(t, a).Bytes()}
			spec := CompositeSpec{Base: base.Udf, Token: "soft", Use: token.UseAgree, Label: "sum", Contribution: contribution}
			e, err := f.AddComposite(ctx, nil, spec)
			if err != nil {
				t.Fatal(err)
			}
			if e.Token != "tpm" || e.Protection != token.ProtectionSoftware || !e.Imported || len(e.Parts()) != 2 || e.Public.Equal(base.Public) {
				t.Errorf("composite is %+v", e)
			}
			checkGates(t, e)
			useKey(t, e)
			useKey(t, f.find(t, base.Udf))
			_, err = f.AddComposite(ctx, nil, spec)
			wantErr(t, "the same composite again", err, ErrConflict)

			f.restart(t, fake.Reopen(), openSoft(t, softDir))
			if p := f.Snapshot().Problems(); len(p) != 0 {
				t.Fatalf("problems: %q", p)
			}
			if e = f.find(t, e.Udf); e.State != StateUnverified {
				t.Errorf("state %q", e.State)
			}
			useKey(t, e)
			if e = f.find(t, e.Udf); e.State != "" {
				t.Errorf("state %q after use", e.State)
			}

			// The base's object in the token is the composite's too.
			if _, err := f.Delete(ctx, nil, base.Udf); err != nil {
				t.Fatal(err)
			}
			useKey(t, f.find(t, e.Udf))
			if fake.Keys() != 1 {
				t.Errorf("%d keys in the token", fake.Keys())
			}
			if _, err := f.Delete(ctx, nil, e.Udf); err != nil || fake.Keys() != 0 {
				t.Errorf("Delete of the composite: %v, %d keys left in the token", err, fake.Keys())
			}
		})
	}
}

// checkGates uses a composite and wants its parts' gates one after another.
func checkGates(t *testing.T, e *Entry) {
	t.Helper()
	var trace []string
	gate := func(_ context.Context, name string) (func(), error) {
		trace = append(trace, "enter "+name)
		return func() { trace = append(trace, "leave "+name) }, nil
	}
	if _, err := e.AgreePoint(t.Context(), gate, randomScalar(t, e.Algorithm).Public(), nil, token.Auth{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"enter tpm", "leave tpm", "enter soft", "leave soft"}; !slices.Equal(trace, want) {
		t.Errorf("gates were %q, want %q", trace, want)
	}
}

func TestCompositeRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	softDir := t.TempDir()
	f := newRing(t, fakeTPM(), openSoft(t, softDir))
	base := f.generate(t, "tpm", token.P256, token.UseAgree)
	signing := f.generate(t, "tpm", token.P256, token.UseSign)
	p256 := &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()}
	p384 := &token.PrivateKey{Algorithm: token.P384, Scalar: randomScalar(t, token.P384).Bytes()}
	cases := map[string]struct {
		spec CompositeSpec
		want error
	}{
		"unknown base":      {CompositeSpec{Base: "MB2GXH443CCD5EFG6HIJ7KLM2NOP", Token: "soft", Use: token.UseAgree, Contribution: p256}, token.ErrNotFound},
		"another use":       {CompositeSpec{Base: base.Udf, Token: "soft", Use: token.UseDecrypt, Contribution: p256}, ErrUse},
		"signing":           {CompositeSpec{Base: signing.Udf, Token: "soft", Use: token.UseSign, Contribution: p256}, token.ErrUnsupported},
		"another algorithm": {CompositeSpec{Base: base.Udf, Token: "soft", Use: token.UseAgree, Contribution: p384}, token.ErrBadRequest},
		"unknown token":     {CompositeSpec{Base: base.Udf, Token: "none", Use: token.UseAgree, Contribution: p256}, token.ErrNotFound},
	}
	for what, c := range cases {
		_, err := f.AddComposite(ctx, nil, c.spec)
		wantErr(t, what, err, c.want)
	}

	// The parts of a composite are bound to each other.
	e, err := f.AddComposite(ctx, nil, CompositeSpec{Base: base.Udf, Token: "soft", Use: token.UseAgree, Contribution: p256})
	if err != nil {
		t.Fatal(err)
	}
	f.edit(t, e, func(r map[string]any) { slices.Reverse(r["Parts"].([]any)) })
	f.restart(t, fakeTPM(), openSoft(t, softDir))
	wantErr(t, "use with parts in another order", anyUse(ctx, f.find(t, e.Udf)), token.ErrCorrupt)
}

// liar is a token that does not stand by what it made.
type liar struct {
	*tokentest.Fake
	create func(token.Created) token.Created
	open   func(token.Key) token.Key
}

func (l *liar) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	c, err := l.Fake.Generate(ctx, req)
	if err == nil && l.create != nil {
		c = l.create(c)
	}
	return c, err
}

func (l *liar) Open(ctx context.Context, req token.OpenRequest) (token.Key, error) {
	k, err := l.Fake.Open(ctx, req)
	if err == nil && l.open != nil {
		k = l.open(k)
	}
	return k, err
}

type badAgreer struct {
	token.PointAgreer
	point []byte
}

func (k badAgreer) AgreePoint(context.Context, token.AgreeRequest) ([]byte, error) {
	return k.point, nil
}

type otherKey struct {
	token.Key
	public token.PublicKey
}

func (k otherKey) Public() token.PublicKey { return k.public }

func TestFaultyPoints(t *testing.T) {
	t.Parallel()
	good := randomScalar(t, token.P256).Public().Bytes()
	offCurve := slices.Clone(good)
	offCurve[64] ^= 1
	for what, point := range map[string][]byte{"off the curve": offCurve, "short": good[:64], "empty": {}, "identity": make([]byte, 65)} {
		l := &liar{Fake: fakeTPM()}
		l.open = func(k token.Key) token.Key { return badAgreer{k.(token.PointAgreer), point} }
		f := newRing(t, l)
		e := f.generate(t, "tpm", token.P256, token.UseAgree)
		_, err := e.AgreePoint(t.Context(), nil, keyshare.BasePoint(keyshare.P256), nil, token.Auth{})
		wantErr(t, "AgreePoint with a result that is "+what, err, token.ErrFault)
	}
}

// TestFaultyCreation makes keys in tokens that lie about them: none appears, none stays.
func TestFaultyCreation(t *testing.T) {
	t.Parallel()
	other := recipients(t, token.P256)[0]
	cases := map[string]*liar{
		"another public key": {create: func(c token.Created) token.Created { c.Public = other; return c }},
		"no point": {create: func(c token.Created) token.Created {
			c.Public.Octets = append([]byte{4}, make([]byte, 64)...)
			return c
		}},
		"another algorithm": {create: func(c token.Created) token.Created { c.Public = recipients(t, token.P384)[0]; return c }},
		"opens another":     {open: func(k token.Key) token.Key { return otherKey{k, other} }},
	}
	for what, l := range cases {
		l.Fake = fakeTPM()
		f := newRing(t, l)
		e, err := f.Generate(t.Context(), nil, GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign})
		if !errors.Is(err, token.ErrFault) && !errors.Is(err, token.ErrCorrupt) {
			t.Errorf("%s: %v, %v", what, e, err)
		}
		wantNothing(t, f, what)
		if l.Keys() != 0 {
			t.Errorf("%s: %d keys left in the token", what, l.Keys())
		}
	}
}

func wantNothing(t *testing.T, f *fixture, what string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(f.dir, "keys"))
	if err != nil || len(files) != 0 || len(f.Snapshot().Entries()) != 0 {
		t.Errorf("%s: %d keys, files %v, %v", what, len(f.Snapshot().Entries()), files, err)
	}
}

// TestFailedWrite makes the record impossible to write: the key must not stay in the token.
func TestFailedWrite(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	if err := f.store.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := f.Generate(t.Context(), nil, GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign})
	if err == nil || fake.Keys() != 0 {
		t.Errorf("Generate: %v, %d keys left in the token", err, fake.Keys())
	}
	wantNothing(t, f, "failed write")
	f.start(t, fake.Reopen())
}

// TestRecordOfLaterVersion imports a key whose record is one of a later version: that one is not written over.
func TestRecordOfLaterVersion(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	spec := ImportSpec{Token: "tpm", Use: token.UseAgree, Private: &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()}}
	e, _, err := f.Import(t.Context(), nil, spec)
	if err != nil {
		t.Fatal(err)
	}
	f.edit(t, e, func(r map[string]any) { r["Version"], r["News"] = 2, true })
	before, err := os.ReadFile(f.recordPath(e))
	if err != nil {
		t.Fatal(err)
	}
	fake = fake.Reopen()
	f.restart(t, fake)
	held := fake.Keys()
	_, _, err = f.Import(t.Context(), nil, spec)
	wantErr(t, "Import", err, token.ErrCorrupt)
	if fake.Keys() != held {
		t.Errorf("%d keys in the token, %d before", fake.Keys(), held)
	}
	if after, err := os.ReadFile(f.recordPath(e)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the record became %s, %v", after, err)
	}
}

func TestGateRefuses(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	e := f.generate(t, "tpm", token.P256, token.UseSign)
	locked := errors.New("locked")
	gate := func(context.Context, string) (func(), error) { return nil, locked }
	_, err := e.Sign(t.Context(), gate, tokentest.DefaultSignRequest(token.P256, nil))
	wantErr(t, "Sign", err, locked)
	_, err = f.Generate(t.Context(), gate, GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign})
	wantErr(t, "Generate", err, locked)
	private := &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()}
	_, _, err = f.Import(t.Context(), gate, ImportSpec{Token: "tpm", Use: token.UseSign, Private: private})
	wantErr(t, "Import", err, locked)
	_, err = f.Delete(t.Context(), gate, e.Udf)
	wantErr(t, "Delete", err, locked)
	if fake.Keys() != 1 || fake.Calls(tokentest.OpSign) != 0 {
		t.Errorf("%d keys, %d signatures", fake.Keys(), fake.Calls(tokentest.OpSign))
	}
	useKey(t, f.find(t, e.Udf))
}

// TestOpenOnce uses a key from many goroutines: it is opened once, although the first
// opener gives up.
func TestOpenOnce(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	e := f.generate(t, "tpm", token.P256, token.UseSign)
	again := fake.Reopen()
	f.restart(t, again)
	e = f.find(t, e.Udf)
	hold := again.Hold(tokentest.OpOpen)
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() { first <- anyUse(ctx, e) }()
	<-hold.Entered()
	var group sync.WaitGroup
	errs := make(chan error, 20)
	for range cap(errs) {
		group.Go(func() { errs <- anyUse(t.Context(), e) })
	}
	cancel()
	wantErr(t, "the first opener", <-first, context.Canceled)
	<-hold.Entered() // one of the others opens now
	hold.Release()
	group.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if n := again.Calls(tokentest.OpOpen); n != 2 {
		t.Errorf("the key was opened %d times, want 2", n)
	}
}

// TestConcurrent imports, uses, lists and deletes the same few keys from many goroutines.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	fake := fakeTPM()
	f := newRing(t, fake)
	var privates []*token.PrivateKey
	for range 3 {
		privates = append(privates, &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()})
	}
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for j := range 6 {
				if err := churn(t.Context(), f.Keyring, privates[(i+j)%len(privates)]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if entries := f.Snapshot().Entries(); len(entries) != fake.Keys() {
		t.Errorf("%d keys in the ring, %d in the token", len(entries), fake.Keys())
	}
	f.restart(t, fake.Reopen())
	for _, e := range f.Snapshot().Entries() {
		useKey(t, e)
	}
	if p := f.Snapshot().Problems(); len(p) != 0 {
		t.Errorf("problems: %q", p)
	}
}

func churn(ctx context.Context, k *Keyring, private *token.PrivateKey) error {
	e, _, err := k.Import(ctx, nil, ImportSpec{Token: "tpm", Use: token.UseSign, Private: private})
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	k.Snapshot().Entries()
	if err := anyUse(ctx, e); err != nil && !errors.Is(err, token.ErrNotFound) {
		return fmt.Errorf("use: %w", err)
	}
	if _, err := k.Delete(ctx, nil, e.Udf); err != nil && !errors.Is(err, token.ErrNotFound) {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

func TestTokens(t *testing.T) {
	t.Parallel()
	f := newRing(t, fakeTPM())
	if tok, err := f.Token("tpm"); err != nil || tok.Info().Name != "tpm" {
		t.Errorf("Token: %v", err)
	}
	_, err := f.Token("none")
	wantErr(t, "Token", err, token.ErrNotFound)
	if len(f.Tokens()) != 1 {
		t.Errorf("Tokens: %v", f.Tokens())
	}
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, err := Open(st, fakeTPM(), fakeTPM()); err == nil {
		t.Error("two tokens of one name were accepted")
	}
}

// TestIdentity pins the encoding that stored keys are bound to.
func TestIdentity(t *testing.T) {
	t.Parallel()
	id := identity{use: token.UseSplit, token: "soft", imported: true,
		shareTo: []token.PublicKey{{Algorithm: token.X25519, Octets: []byte{1, 2}}},
		earlier: []token.PublicKey{{Algorithm: token.P256, Octets: []byte{3}}}}
	want := "\x00\x00\x00\x10mesh-agent key 1\x00\x00\x00\x05split\x00\x00\x00\x04soft\x01" +
		"\x00\x00\x00\x01\x00\x00\x00\x06X25519\x00\x00\x00\x02\x01\x02" +
		"\x00\x00\x00\x01\x00\x00\x00\x04P256\x00\x00\x00\x01\x03"
	if got := string(id.octets()); got != want {
		t.Errorf("identity is %q, want %q", got, want)
	}
}

func BenchmarkFind(b *testing.B) {
	f := newRing(b, fakeTPM())
	var ids []string
	for range 20 {
		ids = append(ids, f.generate(b, "tpm", token.P256, token.UseSign).Udf)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		f.find(b, ids[i%len(ids)])
	}
}

func BenchmarkAgreePoint(b *testing.B) {
	for _, a := range []token.Algorithm{token.X25519, token.X448, token.P256} {
		b.Run(string(a), func(b *testing.B) {
			f := newRing(b, openSoft(b, b.TempDir()))
			e := f.generate(b, "soft", a, token.UseAgree)
			peer := randomScalar(b, a).Public()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := e.AgreePoint(b.Context(), nil, peer, nil, token.Auth{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
