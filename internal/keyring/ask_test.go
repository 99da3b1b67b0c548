package keyring

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// eachTime is a fake that wants its PIN for each operation and has it for making keys.
type eachTime struct {
	*tokentest.Fake
	pin string
}

func newEachTime(name, pin string) eachTime {
	return eachTime{tokentest.NewFake(tokentest.FakeOptions{Name: name, PIN: []byte(pin), PINAlways: true}), pin}
}

func (e eachTime) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	req.Auth.PIN = []byte(e.pin)
	return e.Fake.Generate(ctx, req)
}

func (e eachTime) Import(ctx context.Context, req token.ImportRequest) (token.Created, error) {
	req.Auth.PIN = []byte(e.pin)
	return e.Fake.Import(ctx, req)
}

// TestAsking has the parts of a sum in two tokens, each of which wants a PIN of its own. No PIN
// goes to the wrong one, and nobody is asked inside a gate.
func TestAsking(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b := newEachTime("a", "pin of a"), newEachTime("b", "pin of b")
	f := newRing(t, a, b)
	base := f.generate(t, "a", token.P256, token.UseAgree)
	e, err := f.AddComposite(ctx, nil, CompositeSpec{
		Base: base.Udf, Token: "b", Use: token.UseAgree,
		Contribution: &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()},
	})
	if err != nil {
		t.Fatal(err)
	}
	inside := 0
	gate := func(context.Context, string) (func(), error) {
		inside++
		return func() { inside-- }, nil
	}
	asker := &scriptedAsker{t: t, inside: &inside, answers: []string{"wrong", "pin of a", "pin of b"}}
	peer := randomScalar(t, token.P256).Public()
	point, err := e.AgreePoint(WithAsker(ctx, asker), gate, peer, nil, token.Auth{})
	if err != nil || point == nil {
		t.Fatal(err)
	}
	if want := []string{"a", "a", "b"}; !slices.Equal(asker.asked, want) {
		t.Errorf("asked for the PINs of %q, want %q", asker.asked, want)
	}
	for i, pin := range asker.given {
		if !slices.Equal(pin, make([]byte, len(pin))) {
			t.Errorf("answer %d was not wiped", i)
		}
	}
	if _, err := e.AgreePoint(ctx, nil, peer, nil, token.Auth{}); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("without anybody to ask: %v", err)
	}

	refused := errors.New("refused")
	never := WithAsker(ctx, &scriptedAsker{t: t, refusal: refused})
	if _, err := e.AgreePoint(never, nil, peer, nil, token.Auth{}); !errors.Is(err, refused) {
		t.Errorf("refused: %v", err)
	}
	if _, err := e.AgreePoint(never, nil, peer, nil, token.Auth{PIN: []byte("given")}); !errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("a wrong PIN that was given: %v", err)
	}
	if _, err := e.AgreePoint(WithAsker(never, nil), nil, peer, nil, token.Auth{}); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("with nobody to ask any more: %v", err)
	}
}

// scriptedAsker gives one answer after another, or does what unlock does.
type scriptedAsker struct {
	t       *testing.T
	inside  *int // gates that are held
	answers []string
	unlock  func() error
	refusal error

	needs []Need
	asked []string
	given [][]byte
}

type notedKey struct{}

func (a *scriptedAsker) Context(ctx context.Context, s Subject) context.Context {
	return context.WithValue(ctx, notedKey{}, s)
}

func (a *scriptedAsker) PIN(ctx context.Context, n Need) (token.Auth, error) {
	if a.refusal != nil {
		return token.Auth{}, a.refusal
	}
	if noted := ctx.Value(notedKey{}); noted != n.Subject || a.inside != nil && *a.inside != 0 {
		a.t.Errorf("asked in a gate, or for %v and not %v", noted, n.Subject)
	}
	if wrong := errors.Is(n.Err, token.ErrAuthWrong); wrong != (n.Offered > 0) {
		a.t.Errorf("offered %d times: %v", n.Offered, n.Err)
	}
	a.needs, a.asked = append(a.needs, n), append(a.asked, n.Token)
	if a.unlock != nil {
		return token.Auth{}, a.unlock()
	}
	pin := []byte(a.answers[len(a.given)])
	a.given = append(a.given, pin)
	return token.Auth{PIN: pin}, nil
}

// TestAskingToManage makes, seals, seals anew, attests, takes in and deletes keys in a token that is locked before each: one is asked
// once each time, in no gate, and the key is out of nobody's use meanwhile.
func TestAskingToManage(t *testing.T) {
	t.Parallel()
	f := tokentest.NewSealingFake(tokentest.FakeOptions{Name: "card", PIN: []byte("123456")})
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	k, err := OpenConfig(Config{Store: st, Tokens: []token.Token{lockedDeleter{f}}, Software: software})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	inside := 0
	gate := func(context.Context, string) (func(), error) {
		inside++
		return func() { inside-- }, nil
	}
	private := func() *token.PrivateKey {
		return &token.PrivateKey{Algorithm: token.P256, Scalar: randomScalar(t, token.P256).Bytes()}
	}
	var made, taken, sealed *Entry
	for _, step := range []struct {
		name    string
		subject func() Subject
		unlock  bool
		do      func(ctx context.Context) error
	}{
		{"generate", func() Subject { return Subject{Label: "new"} }, false, func(ctx context.Context) (err error) {
			made, err = k.Generate(ctx, gate, GenerateSpec{Token: "card", Algorithm: token.P256, Use: token.UseAgree, Label: "new"})
			return err
		}},
		{"import", func() Subject { return Subject{} }, false, func(ctx context.Context) (err error) {
			taken, _, err = k.Import(ctx, gate, ImportSpec{Token: "card", Use: token.UseSign, Private: private()})
			return err
		}},
		{"seal to PCRs", func() Subject { return Subject{} }, false, func(ctx context.Context) (err error) {
			sealed, _, err = k.GenerateSealed(ctx, gate, GenerateSpec{Token: "card", Algorithm: token.P256, Use: token.UseSign, PCRs: "sha256:7"})
			return err
		}},
		{"seal an existing one", func() Subject { return Subject{} }, false, func(ctx context.Context) error {
			_, _, _, err := k.ImportSealed(ctx, gate, ImportSpec{Token: "card", Use: token.UseSign, Private: private()})
			return err
		}},
		{"add a contribution", func() Subject { return Subject{} }, false, func(ctx context.Context) error {
			_, err := k.AddComposite(ctx, gate, CompositeSpec{Base: made.Udf, Token: "card", Use: token.UseAgree, Contribution: private()})
			return err
		}},
		{"reseal", func() Subject { return sealed.subject() }, true, func(ctx context.Context) error {
			_, _, err := k.Reseal(ctx, gate, sealed.Udf, ResealSpec{})
			return err
		}},
		{"delete", func() Subject { return taken.subject() }, true, func(ctx context.Context) error {
			_, err := k.Delete(ctx, gate, taken.Udf)
			return err
		}},
		{"something with the token", func() Subject { return Subject{} }, true, func(ctx context.Context) error {
			return k.InTurn(ctx, gate, "card", func(ctx context.Context) error {
				_, err := f.Seal(ctx, token.SealRequest{PIN: token.PINOnce})
				return err
			})
		}},
	} {
		f.SetState(token.StateLocked)
		keys := len(k.Snapshot().Entries())
		if err := step.do(t.Context()); !errors.Is(err, token.ErrAuthNeeded) {
			t.Errorf("%s with nobody to ask: %v", step.name, err)
		}
		refused := errors.New("refused")
		if err := step.do(WithAsker(t.Context(), &scriptedAsker{t: t, refusal: refused})); !errors.Is(err, refused) {
			t.Errorf("%s, refused: %v", step.name, err)
		}
		if n := len(k.Snapshot().Entries()); n != keys {
			t.Errorf("%s, refused: %d keys, want %d", step.name, n, keys)
		}
		a := &scriptedAsker{t: t, inside: &inside, unlock: func() error {
			if step.name == "delete" && taken.slot.deleted.Load() {
				t.Errorf("%s: the key is out of use while somebody is asked", step.name)
			}
			return f.Unlock(t.Context(), []byte("123456"))
		}}
		subject := step.subject()
		if err := step.do(WithAsker(t.Context(), a)); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		if len(a.needs) != 1 || a.needs[0].Token != "card" || a.needs[0].Subject != subject || a.needs[0].Unlock != step.unlock || a.needs[0].Policy != (token.Policy{}) && step.name != "reseal" {
			t.Errorf("%s: asked for %+v", step.name, a.needs)
		}
		if inside != 0 {
			t.Errorf("%s: %d gates are held", step.name, inside)
		}
	}
	if _, err := k.Snapshot().Find(taken.Udf); !errors.Is(err, token.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
}

// lockedDeleter wants the PIN for deleting, as PKCS #11 tokens do.
type lockedDeleter struct{ *tokentest.SealingFake }

func (f lockedDeleter) Delete(ctx context.Context, handle []byte) error {
	if f.Info().State == token.StateLocked {
		return &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: token.TriesUnknown}
	}
	return f.SealingFake.Delete(ctx, handle)
}
