package keyring

import (
	"context"
	"errors"

	"github.com/mesh-agent/mesh-agent/token"
)

// Asker attends to the person whom an operation may need.
type Asker struct {
	// PIN gets the PIN for a part of a key. No turn at any token is taken meanwhile, so that it
	// may wait for the person. What it returns is offered with the operation once more and then
	// wiped; it may be nothing, if the token has been unlocked. An error ends the operation.
	PIN func(ctx context.Context, n Need) (token.Auth, error)
	// Context returns ctx with a note of who asks, for backends that tell the person something
	// on the way. nil is ctx.
	Context func(ctx context.Context) context.Context
}

// Need is what a part of a key waits for.
type Need struct {
	Token string // name of the part's token
	// Policy is the part's, as its token enforces it if that tells, else as it was made.
	Policy token.Policy
	// Touches is how many touches the operation may take besides; 0 if unknown.
	Touches int
	// Err is token.ErrAuthNeeded, or token.ErrAuthWrong about what PIN returned before.
	Err error
}

// Asking returns the entry with somebody to ask. Its operations, where no PIN was given and a part
// needs one, ask, and try once more.
func (e *Entry) Asking(a Asker) *Entry {
	asking := *e
	asking.asker = &a
	return &asking
}

// operation is what is done with the opened key of a part.
type operation func(ctx context.Context, key token.Key, auth token.Auth) error

// do runs op with one part, as slot.do, and asks for the part's PIN if that is needed.
func (e *Entry) do(ctx context.Context, gate Gate, p *part, auth token.Auth, op operation) error {
	if e.asker != nil && e.asker.Context != nil {
		ctx = e.asker.Context(ctx)
	}
	try := func(auth token.Auth) error {
		return e.slot.do(ctx, gate, p, func(key token.Key) error { return op(ctx, key, auth) })
	}
	err := try(auth)
	if e.asker == nil || len(auth.PIN) != 0 {
		return err
	}
	for asked := false; errors.Is(err, token.ErrAuthNeeded) || asked && errors.Is(err, token.ErrAuthWrong); asked = true {
		got, failed := e.asker.PIN(ctx, p.need(err))
		if failed != nil {
			return failed
		}
		err = try(got)
		clear(got.PIN)
	}
	return err
}

// need describes what p waits for. The key itself knows best, if it is open.
func (p *part) need(err error) Need {
	n := Need{Token: p.tokenName, Policy: p.policy, Err: err}
	if key, ok := p.opened().(token.Attended); ok {
		n.Policy, n.Touches = key.Policy(), key.Touches()
	}
	return n
}
