package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/mesh-agent/mesh-agent/internal/config"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm"
)

// tpmChoice is a TPM device; empty for none.
type tpmChoice struct {
	device string
	// named says that somebody asked for this device, so that its absence stops the start.
	named bool
}

// chooseTPM takes the first that is given, else the machine's own TPM if it has one.
func (a *app) chooseTPM(flag, file string) tpmChoice {
	for _, device := range []string{flag, a.getenv("MESH_AGENT_TPM"), file} {
		switch device {
		case "":
		case config.TPMOff:
			return tpmChoice{}
		default:
			return tpmChoice{device, true}
		}
	}
	if _, err := os.Stat(tpm.DefaultDevice); errors.Is(err, fs.ErrNotExist) {
		return tpmChoice{}
	}
	return tpmChoice{device: tpm.DefaultDevice}
}

// openTokens opens every token that the settings name.
func (a *app) openTokens(ctx context.Context, s settings, log *slog.Logger) (tokens []token.Token, err error) {
	defer func() {
		if err != nil {
			for _, t := range tokens {
				err = errors.Join(err, t.Close())
			}
			tokens = nil
		}
	}()
	if s.tpm.device != "" {
		t, err := tpm.Open(ctx, tpm.Options{Device: s.tpm.device})
		switch {
		case err == nil:
			tokens = append(tokens, t)
		case s.tpm.named:
			return tokens, hint(fmt.Errorf("open TPM %s: %w", s.tpm.device, err), "check --tpm and $MESH_AGENT_TPM; --tpm off does without")
		default:
			log.Warn("the machine's TPM is not used", "device", s.tpm.device, "err", err)
		}
	}
	if s.software != config.SoftwareKeysNone {
		t, err := a.openSoftware(ctx, s, log)
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, t)
	}
	return tokens, nil
}
