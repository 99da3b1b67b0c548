package main

import (
	"context"
	"os"
	"time"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// touchLook is how long a request is under way before it is looked whether a person is waited for,
// and how long from one look to the next.
const touchLook = 400 * time.Millisecond

// sayTouch says which token waits for a touch, and that this command waits for a PIN, while a request to
// the agent at path is under way. The returned function ends it.
func (a *app) sayTouch(ctx context.Context, path string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(touchLook)
		defer ticker.Stop()
		a.watchWaits(ctx, ticker.C, func() *mesh.StatusResponse { return statusAt(ctx, path) })
	}()
	return func() {
		cancel()
		<-done
	}
}

// watchWaits looks at each tick until ctx ends, and says once for each touch and PIN what to do.
func (a *app) watchWaits(ctx context.Context, ticks <-chan time.Time, look func() *mesh.StatusResponse) {
	touches, pins := map[string]int{}, map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		status := look()
		if status == nil || ctx.Err() != nil {
			continue
		}
		a.sayTouches(status.Tokens, touches)
		pins = a.sayPINs(status.Prompt, pins)
	}
}

// sayTouches says which tokens wait for a touch; said is what was said of which before.
func (a *app) sayTouches(tokens []mesh.TokenInfo, said map[string]int) {
	for _, t := range tokens {
		switch n := t.Touches; {
		case t.State != string(token.StateTouch):
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

// sayPINs says that this process waits for the PIN of a token, and returns for which ones it does.
func (a *app) sayPINs(p *mesh.PromptInfo, said map[string]bool) (now map[string]bool) {
	now = map[string]bool{}
	if p == nil {
		return now
	}
	for _, w := range p.Waiting {
		if w.PID != os.Getpid() {
			continue
		}
		if !said[w.Token] && !now[w.Token] {
			a.say("%s asks for the PIN of %s.", p.Program, w.Token)
		}
		now[w.Token] = true
	}
	return now
}

// statusAt asks the agent how it is, on a connection of its own. That it does not tell is
// no matter.
func statusAt(ctx context.Context, path string) *mesh.StatusResponse {
	conn, err := client.Dial(ctx, path)
	if err != nil {
		return nil
	}
	defer conn.Close()
	status, err := conn.Status(ctx)
	if err != nil {
		return nil
	}
	return status
}
