package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/mesh-agent/mesh-agent/internal/config"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm"
)

// tpmChoice is a TPM device; empty for none.
type tpmChoice struct{ device string }

// chooseTPM takes the first that is given, else the machine's own TPM if it has one.
func (a *app) chooseTPM(flag, file string) tpmChoice {
	for _, device := range []string{flag, a.getenv("MESH_AGENT_TPM"), file} {
		switch device {
		case "":
		case config.TPMOff:
			return tpmChoice{}
		default:
			return tpmChoice{device}
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
		t, err := a.openTPM(ctx, s, log)
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, t)
	}
	modules, err := openPKCS11(ctx, s.pkcs11, log, os.Stderr)
	if err != nil {
		return tokens, err
	}
	tokens = append(tokens, modules...)
	cards, err := a.openPIV(ctx, s, log)
	if err != nil {
		return tokens, err
	}
	tokens = append(tokens, cards...)
	if s.software != config.SoftwareKeysNone {
		t, err := a.openSoftware(ctx, s, log)
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, t)
	}
	for _, t := range tokens {
		if u, ok := t.(unlocker); ok {
			if err := a.unlockAtStart(ctx, s.state, u, log); err != nil {
				return tokens, err
			}
		}
	}
	return tokens, nil
}

// tpmName is the name of the TPM's token.
const tpmName = "tpm"

// tpmFolder is where the TPM's files are in the state folder.
const tpmFolder = "tpm"

// openTPM opens the TPM, which need not be there yet: the other tokens work without it.
func (a *app) openTPM(ctx context.Context, s settings, log *slog.Logger) (*tpm.Token, error) {
	t, err := tpm.Open(ctx, tpm.Options{Device: s.tpm.device, StateDir: filepath.Join(s.state, tpmFolder), MayBeAbsent: true})
	if errors.Is(err, fs.ErrPermission) { // to open an absent TPM is no error
		return nil, hint(fmt.Errorf("open TPM: %w", err), "it must belong to this user and be writable by nobody else: chmod go-w; mesh-agent doctor says more")
	}
	if err != nil {
		return nil, hint(fmt.Errorf("open TPM %s: %w", s.tpm.device, err), "check --tpm and $MESH_AGENT_TPM; --tpm off does without")
	}
	switch t.Info().State {
	case token.StateAbsent:
		log.Warn("the TPM does not answer; it is looked for when it is used; mesh-agent doctor says why", "device", s.tpm.device)
	case token.StateReplaced:
		log.Warn("the TPM is another one, was cleared, or something is between", "device", s.tpm.device)
	}
	return t, nil
}
