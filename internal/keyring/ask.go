package keyring

import (
	"context"
	"errors"
	"slices"

	"github.com/mesh-agent/mesh-agent/token"
)

// Asker attends to the person whom a request may need. It belongs to one request and is in the context of all that
// is done for it; several operations of the request may call it at once.
type Asker interface {
	// PIN gets the PIN of a token. No turn at any token is taken meanwhile, so that it may wait for the person. What
	// it returns is offered once more and then wiped; it may be nothing, if the token has been unlocked. An
	// error ends the operation.
	PIN(ctx context.Context, n Need) (token.Auth, error)
	// Context returns ctx with a note of who asks, for backends that tell the person something on the way.
	Context(ctx context.Context, s Subject) context.Context
}

// Subject is the key that something is done with. It has no Udf before it is made, and neither if it is about a
// token as a whole.
type Subject struct{ Udf, Label string }

// Need is what an operation waits for.
type Need struct {
	Token   string // name of the token
	Subject Subject
	// Unlock says that the PIN is of use to unlock the token only: it cannot be offered with the operation.
	Unlock bool
	// Policy is that of the part of the key, as its token enforces it if that tells, else as it was made. It is zero
	// for what is not done with a key that is there.
	Policy token.Policy
	// Touches is how many touches the operation may take besides; 0 if unknown.
	Touches int
	// Offered is how often what PIN returned has been offered with this operation already.
	Offered int
	// Err is token.ErrAuthNeeded, or token.ErrAuthWrong about what PIN returned before.
	Err error
}

type askerKey struct{}

// WithAsker returns a context in which operations where no PIN was given and a token needs one ask, and try
// once more. With nil they do not.
func WithAsker(ctx context.Context, a Asker) context.Context {
	return context.WithValue(ctx, askerKey{}, a)
}

// attended runs try with auth. If that has no PIN and the token wants one, it asks, and tries again.
func attended(ctx context.Context, s Subject, auth token.Auth, need func() Need, try func(ctx context.Context, auth token.Auth) error) error {
	a, _ := ctx.Value(askerKey{}).(Asker)
	if a == nil {
		return try(ctx, auth)
	}
	ctx = a.Context(ctx, s)
	err := try(ctx, auth)
	if len(auth.PIN) != 0 {
		return err
	}
	for offered := 0; errors.Is(err, token.ErrAuthNeeded) || offered > 0 && errors.Is(err, token.ErrAuthWrong); offered++ {
		n := need()
		n.Subject, n.Offered, n.Err = s, offered, err
		got, failed := a.PIN(ctx, n)
		if failed != nil {
			return failed
		}
		err = try(ctx, got)
		clear(got.PIN)
	}
	return err
}

// inTurn runs f in a turn of a token, outside of which its PIN is asked for if it needs that. With unlock f has no use for auth.
func inTurn(ctx context.Context, gate Gate, s Subject, n Need, f func(ctx context.Context, auth token.Auth) error) error {
	return attended(ctx, s, token.Auth{}, func() Need { return n }, func(ctx context.Context, auth token.Auth) error {
		leave, err := gate.enter(ctx, n.Token)
		if err != nil {
			return err
		}
		defer leave()
		return f(ctx, auth)
	})
}

// InTurn runs f in a turn of a token, and again if it needs its PIN and somebody has unlocked it meanwhile, as
// WithAsker has it. It is for what is done with the token as a whole.
func (k *Keyring) InTurn(ctx context.Context, gate Gate, tokenName string, f func(ctx context.Context) error) error {
	n := Need{Token: tokenName, Unlock: true}
	return inTurn(ctx, gate, Subject{}, n, func(ctx context.Context, _ token.Auth) error { return f(ctx) })
}

// operation is what is done with the opened key of a part.
type operation func(ctx context.Context, key token.Key, auth token.Auth) error

// do runs op with one part, as slot.do, and asks for the part's PIN if that is needed.
func (e *Entry) do(ctx context.Context, gate Gate, p *part, auth token.Auth, op operation) error {
	return attended(ctx, e.subject(), auth, p.need, func(ctx context.Context, auth token.Auth) error {
		return e.slot.do(ctx, gate, p, func(key token.Key) error { return op(ctx, key, auth) })
	})
}

func (e *Entry) subject() Subject { return Subject{e.Udf, e.Label} }

// need describes what p waits for. The key itself knows best, if it is open.
func (p *part) need() Need {
	n := Need{Token: p.tokenName, Policy: p.policy, Unlock: p.guard != ""}
	if key, ok := p.opened().(token.Attended); ok {
		n.Policy, n.Touches = key.Policy(), key.Touches()
	}
	return n
}

// AsksEachTime reports whether a part of the key wants a PIN or a touch for each operation, as far as is known.
func (e *Entry) AsksEachTime() bool {
	return e.wants(func(p token.Policy) bool { return p.PIN == token.PINAlways || p.Touch == token.TouchAlways })
}

// TouchedEachTime reports whether a part of the key wants a touch for each operation, as far as is known.
func (e *Entry) TouchedEachTime() bool {
	return e.wants(func(p token.Policy) bool { return p.Touch == token.TouchAlways })
}

func (e *Entry) wants(what func(token.Policy) bool) bool {
	return what(e.Policy) || slices.ContainsFunc(e.slot.parts, func(p *part) bool { return what(p.known(p.policy)) })
}
