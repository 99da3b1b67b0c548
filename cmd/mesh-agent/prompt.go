package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/mesh-agent/mesh-agent/agent"
	"github.com/mesh-agent/mesh-agent/internal/config"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/piv"
	"github.com/mesh-agent/mesh-agent/token"
)

// prompter is the program that asks for PINs, or nil.
func (a *app) prompter(p config.Prompt) *prompt.Prompter {
	if p.Program == "" {
		return nil
	}
	kind := prompt.Pinentry
	if p.Kind == config.PromptAskpass {
		kind = prompt.Askpass
	}
	return prompt.New(prompt.Options{Kind: kind, Program: p.Program, Getenv: a.getenv})
}

// asker is what the agent is given: an interface that is nil if there is no program.
func asker(p *prompt.Prompter) agent.Prompter {
	if p == nil {
		return nil
	}
	return p
}

// warnOfPrompter says at the start if the program could not ask. What needs no PIN works without it.
func warnOfPrompter(ctx context.Context, p *prompt.Prompter, log *slog.Logger) {
	about, err := p.Test(ctx)
	var broken *prompt.ProgramError
	switch {
	case err == nil:
		log.Info("PINs are asked for", "by", about)
	case errors.As(err, &broken):
		log.Warn("PINs cannot be asked for", "err", err, "mend", broken.Mend)
	default:
		log.Warn("PINs cannot be asked for", "err", err)
	}
}

// examinePrompt looks at the prompt program of the settings where no agent does.
func (a *app) examinePrompt(ctx context.Context, settings config.Prompt) []mesh.Finding {
	p := a.prompter(settings)
	if p == nil {
		return nil
	}
	about, err := p.Test(ctx)
	var broken *prompt.ProgramError
	switch {
	case err == nil:
		return []mesh.Finding{finding(token.SeverityInfo, "prompt", "", "PINs are asked for by %s", about)}
	case errors.As(err, &broken):
		return []mesh.Finding{finding(token.SeverityError, "prompt", broken.Mend, "%v", err)}
	}
	return []mesh.Finding{finding(token.SeverityError, "prompt", "try again", "%v", err)}
}

// touchNotice tells of the touches that one PIV card waits for: in the log, and by the prompt
// program if there is one, until the touch has come or is waited for no more.
func touchNotice(p *prompt.Prompter, log *slog.Logger) func(context.Context, piv.TouchEvent) {
	var mu sync.Mutex
	down := func() {}
	return func(ctx context.Context, e piv.TouchEvent) {
		if e.Waiting {
			log.Info("waiting for touch", "token", e.Token, "slot", e.Slot, "touches", e.Touches)
		}
		if p == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		down()
		down = func() {}
		if e.Waiting {
			down = p.Notice(ctx, touchQuestion(e, prompt.ReasonOf(ctx)))
		}
	}
}

func touchQuestion(e piv.TouchEvent, reason string) prompt.Question {
	text := fmt.Sprintf("Touch the token %s (slot %s).", prompt.Line(e.Token), e.Slot)
	if e.Touches > 1 {
		text = fmt.Sprintf("Touch the token %s (slot %s), %d times: this takes %d operations of the card.", prompt.Line(e.Token), e.Slot, e.Touches, e.Touches)
	}
	if reason != "" {
		text += "\n" + reason
	}
	return prompt.Question{Title: "mesh-agent", Text: text}
}
