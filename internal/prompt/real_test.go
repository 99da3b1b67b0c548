package prompt_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/prompt/prompttest"
)

// TestRealPinentry asks by the programs that Debian has for terminals.
func TestRealPinentry(t *testing.T) {
	t.Parallel()
	for program, keys := range map[string]struct{ enter, cancel, asks, yes, no string }{
		"/usr/bin/pinentry-curses": {"\r", "\t\t\r", "<No>", "\r", "\t\r"},
		"/usr/bin/pinentry-tty":    {"\n", "\x04", "[yn]", "y", "n"},
	} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			tt := prompttest.NewTerminal(t)
			p := prompt.New(prompt.Options{Kind: prompt.Pinentry, Program: program, Limit: time.Minute, Getenv: func(name string) string {
				return map[string]string{"GPG_TTY": tt.Name, "TERM": "xterm", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}[name]
			}})
			defer p.Close()
			if about, err := p.Test(t.Context()); err != nil {
				t.Errorf("%q, %v", about, err)
			}
			q := prompt.Question{Title: "mesh-agent", Text: "Token <piv> 50% of " + prompt.Line("evil\nGETPIN"), Prompt: "PIN", Error: "That was wrong."}

			done := asks(t.Context(), p, q)
			tt.Until("Token <piv> 50% of evil?GETPIN", "That was wrong.", "PIN")
			tt.Type("12%4 6" + keys.enter)
			if got := <-done; got.err != nil || got.pin != "12%4 6" {
				t.Errorf("PIN: %q, %v", got.pin, got.err)
			}
			q.Error = ""
			done = asks(t.Context(), p, q)
			tt.Until("Token", "PIN")
			tt.Type(keys.cancel)
			if got := <-done; !errors.Is(got.err, prompt.ErrRefused) {
				t.Errorf("cancelled: %q, %v", got.pin, got.err)
			}

			yes := confirms(t.Context(), p, q)
			tt.Until("Token", keys.asks)
			tt.Type(keys.yes)
			if err := <-yes; err != nil {
				t.Errorf("yes: %v", err)
			}
			no := confirms(t.Context(), p, q)
			tt.Until("Token", keys.asks)
			tt.Type(keys.no)
			if err := <-no; !errors.Is(err, prompt.ErrRefused) {
				t.Errorf("no: %v", err)
			}

			down := p.Notice(t.Context(), prompt.Question{Title: "mesh-agent", Text: "Touch the token."})
			tt.Until("Touch the token.")
			down()

			ctx, cancel := context.WithCancel(t.Context())
			done = asks(ctx, p, q)
			tt.Until("Token", "PIN")
			cancel()
			if got := <-done; !errors.Is(got.err, context.Canceled) {
				t.Errorf("hung up: %q, %v", got.pin, got.err)
			}
			if !tt.Echoes() {
				t.Error("the terminal is left without echo")
			}
		})
	}
}
