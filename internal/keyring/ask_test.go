package keyring

import (
	"context"
	"errors"
	"slices"
	"testing"

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
	type noted struct{}
	var asked []string
	var given [][]byte
	answers := []string{"wrong", "pin of a", "pin of b"}
	asking := e.Asking(Asker{
		Context: func(ctx context.Context) context.Context { return context.WithValue(ctx, noted{}, true) },
		PIN: func(ctx context.Context, n Need) (token.Auth, error) {
			if inside != 0 || ctx.Value(noted{}) == nil {
				t.Errorf("asked in %d gates, context noted: %v", inside, ctx.Value(noted{}))
			}
			if wrong := errors.Is(n.Err, token.ErrAuthWrong); wrong != (len(asked) == 1) {
				t.Errorf("question %d: %v", len(asked), n.Err)
			}
			pin := []byte(answers[len(asked)])
			asked, given = append(asked, n.Token), append(given, pin)
			return token.Auth{PIN: pin}, nil
		},
	})
	peer := randomScalar(t, token.P256).Public()
	point, err := asking.AgreePoint(ctx, gate, peer, nil, token.Auth{})
	if err != nil || point == nil {
		t.Fatal(err)
	}
	if want := []string{"a", "a", "b"}; !slices.Equal(asked, want) {
		t.Errorf("asked for the PINs of %q, want %q", asked, want)
	}
	for i, pin := range given {
		if !slices.Equal(pin, make([]byte, len(pin))) {
			t.Errorf("answer %d was not wiped", i)
		}
	}
	if _, err := e.AgreePoint(ctx, nil, peer, nil, token.Auth{}); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("without anybody to ask: %v", err)
	}

	refused := errors.New("refused")
	never := e.Asking(Asker{PIN: func(context.Context, Need) (token.Auth, error) { return token.Auth{}, refused }})
	if _, err := never.AgreePoint(ctx, nil, peer, nil, token.Auth{}); !errors.Is(err, refused) {
		t.Errorf("refused: %v", err)
	}
	if _, err := never.AgreePoint(ctx, nil, peer, nil, token.Auth{PIN: []byte("given")}); !errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("a wrong PIN that was given: %v", err)
	}
}
