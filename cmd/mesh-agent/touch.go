package main

import (
	"context"
	"time"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// touchLook is how long a request is under way before it is looked whether a token waits for a
// touch, and how long from one look to the next.
const touchLook = 400 * time.Millisecond

// sayTouch says which token waits for a touch, while a request to the agent at path is under way.
// The returned function ends it.
func (a *app) sayTouch(ctx context.Context, path string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(touchLook)
		defer ticker.Stop()
		a.watchTouch(ctx, ticker.C, func() []mesh.TokenInfo { return tokensAt(ctx, path) })
	}()
	return func() {
		cancel()
		<-done
	}
}

// watchTouch looks at each tick until ctx ends, and says once for each touch what to do.
func (a *app) watchTouch(ctx context.Context, ticks <-chan time.Time, look func() []mesh.TokenInfo) {
	said := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		for _, t := range look() {
			switch n := t.Touches; {
			case t.State != string(token.StateTouch) || ctx.Err() != nil:
				delete(said, t.Name)
			case said[t.Name] == n:
			case n > 1:
				said[t.Name] = n
				a.say("%s is waiting for touch, %d times.", t.Name, n)
			default:
				said[t.Name] = n
				a.say("%s is waiting for touch.", t.Name)
			}
		}
	}
}

// tokensAt asks the agent for its tokens, on a connection of its own. That it does not tell is
// no matter.
func tokensAt(ctx context.Context, path string) []mesh.TokenInfo {
	conn, err := client.Dial(ctx, path)
	if err != nil {
		return nil
	}
	defer conn.Close()
	tokens, err := conn.TokenList(ctx)
	if err != nil {
		return nil
	}
	return tokens
}
