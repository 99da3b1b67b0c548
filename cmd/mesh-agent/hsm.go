package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/hsm"
	"github.com/mesh-agent/mesh-agent/internal/config"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// helperCommand is the hidden subcommand that the agent runs itself by.
const helperCommand = "pkcs11-helper"

// newHelperCommand is the process that loads a PKCS #11 module for the agent.
func newHelperCommand() *cobra.Command {
	return &cobra.Command{
		Use:    helperCommand,
		Short:  "Load a PKCS#11 module for the agent, which starts this itself",
		Hidden: true,
		Args:   args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if err := harden(); err != nil {
				return err
			}
			return hsm.ServeModule()
		},
	}
}

// openPKCS11 opens the tokens of the configured modules. A token that is not there, or whose module
// does not load, is absent and does not stop the agent; a wrong configuration does. What modules print goes to stderr, if there is one.
func openPKCS11(ctx context.Context, modules []config.PKCS11, log *slog.Logger, stderr *os.File) (tokens []token.Token, err error) {
	defer func() {
		if err != nil {
			for _, t := range tokens {
				err = errors.Join(err, t.Close())
			}
			tokens = nil
		}
	}()
	if len(modules) == 0 {
		return nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	for _, c := range modules {
		m, err := hsm.NewModule(hsm.ModuleOptions{
			Path: c.Module, Arguments: c.Arguments, Environment: c.Environment, Sessions: c.Sessions,
			Helper: []string{self, helperCommand}, Stderr: stderr,
		})
		if err != nil {
			return tokens, explainModule(err)
		}
		for _, name := range slices.Sorted(maps.Keys(c.Tokens)) {
			t, err := openPKCS11Token(ctx, m, name, c.Tokens[name], log)
			if err != nil {
				return tokens, err
			}
			tokens = append(tokens, t)
		}
	}
	return tokens, nil
}

// explainModule says what to do about a binary that cannot load modules.
func explainModule(err error) error {
	if errors.Is(err, hsm.ErrNoSupport) {
		return hint(err, "install a C compiler (gcc and libc6-dev) and run make build, or take [[pkcs11]] out of the configuration")
	}
	return err
}

func openPKCS11Token(ctx context.Context, m *hsm.Module, name, text string, log *slog.Logger) (*hsm.Token, error) {
	uri, err := hsm.ParseURI(text)
	if errors.Is(err, hsm.ErrPINInURI) {
		return nil, hint(fmt.Errorf("token %s: %w", name, err), "unlock it when it is needed: mesh-agent token unlock "+name)
	}
	if err != nil {
		return nil, fmt.Errorf("token %s: %w", name, err)
	}
	t, err := hsm.Open(ctx, hsm.Options{Module: m, URI: uri, Name: name})
	if err != nil {
		return nil, hint(fmt.Errorf("token %s: %w", name, err), "list the module's tokens: pkcs11-tool --module "+m.Path()+" --list-token-slots")
	}
	if t.Info().State == token.StateAbsent {
		log.Warn("the token is not there; it is found when it comes", "token", name, "module", m.Path())
	}
	return t, nil
}

// examineModules looks at the tokens of PKCS #11 modules of the settings where no agent does.
func examineModules(ctx context.Context, modules []config.PKCS11) []mesh.Finding {
	tokens, err := openPKCS11(ctx, modules, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return []mesh.Finding{finding(token.SeverityError, "configuration", adviceOf(err), "%v", err)}
	}
	var out []mesh.Finding
	for _, t := range tokens {
		out = append(out, diagnosed(ctx, t)...)
	}
	return out
}
