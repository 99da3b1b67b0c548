package config

import (
	"strings"
	"testing"
)

func TestParsePrompt(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Prompt{
		"": {},
		"[prompt]\nprogram = '/usr/bin/pinentry'":                  {Program: "/usr/bin/pinentry", Kind: PromptPinentry},
		"[prompt]\nprogram = '/usr/bin/pinentry'\nkind='pinentry'": {Program: "/usr/bin/pinentry", Kind: PromptPinentry},
		"[prompt]\nprogram = '/usr/bin/a'\nkind = 'askpass'":       {Program: "/usr/bin/a", Kind: PromptAskpass},
	} {
		if got, err := Parse([]byte(text)); err != nil || got.Prompt != want {
			t.Errorf("%q: %+v, %v", text, got.Prompt, err)
		}
	}
	for text, want := range map[string]string{
		"[prompt]\nkind = 'askpass'":                         "program is missing",
		"[prompt]\nprogram = 'pinentry'":                     "not an absolute path",
		"[prompt]\nprogram = '/usr/bin/../pinentry'":         "not an absolute path",
		"[prompt]\nprogram = '/usr/bin/a'\nkind = 'x'":       `kind is "x"`,
		"[prompt]\nprogram = '/usr/bin/a'\nargs = ['x']":     "unknown key",
		"[[prompt]]\nprogram = '/usr/bin/a'":                 "prompt",
		"prompt = '/usr/bin/pinentry'":                       "prompt",
		"[prompt]\nprogram = '/usr/bin/a'\nprogram = '/b'\n": "already been defined",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
