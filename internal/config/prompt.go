package config

import (
	"errors"
	"fmt"
	"path/filepath"
)

// Prompt names a program that asks for PINs when an operation needs one. Without it such an
// operation is refused, and the PIN has to be presented before. An example:
//
//	[prompt]
//	program = "/usr/bin/pinentry-gnome3"
type Prompt struct {
	// Program is its absolute path.
	Program string `toml:"program"`
	// Kind is how it is talked to: PromptPinentry or PromptAskpass. Absent: PromptPinentry.
	Kind string `toml:"kind"`
}

// The kinds of prompt programs.
const (
	PromptPinentry = "pinentry" // as GnuPG does
	PromptAskpass  = "askpass"  // as OpenSSH does with SSH_ASKPASS
)

// checkPrompt finds what cannot be right without looking at the machine, and fills in the kind.
func checkPrompt(p *Prompt) error {
	switch {
	case *p == Prompt{}:
		return nil
	case p.Program == "":
		return errors.New("prompt: program is missing")
	case !filepath.IsAbs(p.Program) || filepath.Clean(p.Program) != p.Program:
		return fmt.Errorf("prompt: program %q is not an absolute path", p.Program)
	case p.Kind == "":
		p.Kind = PromptPinentry
	case p.Kind != PromptPinentry && p.Kind != PromptAskpass:
		return fmt.Errorf("prompt: kind is %q, not %q or %q", p.Kind, PromptPinentry, PromptAskpass)
	}
	return nil
}
