package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/mesh-agent/mesh-agent/internal/config"
	"github.com/mesh-agent/mesh-agent/softkey"
)

// credentialName is that of the passphrase among the credentials that systemd passes.
const credentialName = "softkey-passphrase"

// openSoftware opens the token soft.
func (a *app) openSoftware(ctx context.Context, s settings, log *slog.Logger) (*softkey.Token, error) {
	dir := filepath.Join(s.state, "soft")
	if s.software == config.SoftwareKeysInsecure {
		log.Warn("INSECURE software keys: whoever can read the state folder has the keys", "folder", dir)
		return explained(softkey.Open(dir, softkey.Options{Insecure: true}))
	}
	there, err := softkey.Exists(dir)
	if err != nil {
		return nil, err
	}
	questions := []string{"Passphrase of the software keys"}
	if !there {
		questions = append(questions, "The same again, for the new store")
	}
	passphrase, err := a.passphrase(ctx, questions)
	if err != nil {
		return nil, err
	}
	defer clear(passphrase)
	return explained(softkey.Open(dir, softkey.Options{Passphrase: passphrase}))
}

// explained adds what to do if the software keys do not open.
func explained(t *softkey.Token, err error) (*softkey.Token, error) {
	switch {
	case errors.Is(err, softkey.ErrProtected):
		return nil, hint(err, "start with --software-keys; what protects the keys was fixed when the store was made")
	case errors.Is(err, softkey.ErrInsecure):
		return nil, hint(err, "start with --insecure-software-keys; what protects the keys was fixed when the store was made")
	case errors.Is(err, softkey.ErrPassphrase):
		return nil, hint(err, "try again; nobody can help if the passphrase is lost")
	}
	return t, err
}

// passphrase returns the passphrase of the software keys: the systemd credential, else
// what the terminal answers to all the questions alike. The caller wipes it.
func (a *app) passphrase(ctx context.Context, questions []string) ([]byte, error) {
	passphrase, err := a.credential(credentialName)
	if err != nil || len(passphrase) != 0 {
		return passphrase, err
	}
	tty, ok := a.terminal()
	if !ok {
		return nil, hint(errors.New("the software keys need a passphrase, and there is no terminal to ask"),
			"pass the systemd credential "+credentialName+", or see --insecure-software-keys")
	}
	for i, question := range questions {
		answer, err := a.ask(ctx, tty, question)
		switch {
		case err != nil:
			return nil, err
		case len(answer) == 0:
			clear(passphrase)
			return nil, hint(errors.New("the passphrase is empty"), "type one, or see --insecure-software-keys")
		}
		if i > 0 && !bytes.Equal(answer, passphrase) {
			clear(answer)
			clear(passphrase)
			return nil, errors.New("the passphrases differ")
		}
		clear(passphrase)
		passphrase = answer
	}
	return passphrase, nil
}

// credential returns the secret that systemd passes under a name (systemd.exec(5),
// CREDENTIALS), nil if there is none.
func (a *app) credential(name string) ([]byte, error) {
	dir := a.getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, nil
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read credential: %w", err)
	}
	secret := bytes.TrimRight(text, "\r\n")
	if len(secret) == 0 {
		return nil, hint(fmt.Errorf("the credential %s is empty", name), "write the secret into it")
	}
	return secret, nil
}
