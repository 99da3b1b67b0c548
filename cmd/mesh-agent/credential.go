package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/mesh-agent/mesh-agent/internal/durable"
	"github.com/mesh-agent/mesh-agent/token"
)

// unlocker is a token that waits for its PIN.
type unlocker interface {
	token.Token
	token.Unlocker
}

// pinCredential is the name of the credential with a token's PIN: that of the token, in the
// characters that credentials may have, and -pin.
func pinCredential(name string) string {
	return strings.Map(func(c rune) rune {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' {
			return c
		}
		return '-'
	}, name) + "-pin"
}

// unlockAtStart presents the PIN that systemd passes as a credential, if it does and the
// token waits for one. What a token refuses is presented once, not at each start: a card takes three
// wrong PINs, and a service is started again when it fails. The other tokens work without it.
func (a *app) unlockAtStart(ctx context.Context, state string, t unlocker, log *slog.Logger) error {
	info := t.Info()
	name := pinCredential(info.Name)
	pin, err := a.credential(name)
	if err != nil || len(pin) == 0 {
		return err
	}
	defer clear(pin)
	log = log.With("credential", name)
	switch info.State {
	case token.StateLocked:
	case token.StateReady:
		log.Warn("the PIN of the credential is not needed")
		return nil
	default:
		log.Warn("the token cannot take the PIN of the credential now; unlock it when it is there", "token", info.Name, "state", info.State)
		return nil
	}
	r := refusal{folder: filepath.Join(state, refusedFolder), name: name}
	refused, err := r.is(pin)
	if err != nil {
		return err
	}
	if refused {
		log.Warn("the PIN of the credential was refused at an earlier start and is not presented again; if it is right now, remove the file", "file", r.path())
		return nil
	}
	err = t.Unlock(ctx, pin)
	switch {
	case errors.Is(err, token.ErrAuthWrong):
		log.Warn("the PIN of the credential does not unlock the token", "err", err)
		return r.remember(pin)
	case err != nil:
		log.Warn("the PIN of the credential does not unlock the token", "err", err)
		return nil
	}
	return r.forget()
}

// refusedFolder is where the agent notes, in the state folder, which credentials were refused.
const refusedFolder = "refused"

// refusal is a note that a credential was refused. It holds one octet of a hash of the PIN: enough to tell a
// credential that was corrected, but for one in 256, and too little to find out the PIN that was
// refused, which may be nearly the right one, or that of another device.
type refusal struct{ folder, name string }

func (r refusal) path() string { return filepath.Join(r.folder, r.name) }

func (r refusal) note(pin []byte) []byte {
	h := sha256.New()
	h.Write([]byte("mesh-agent refused credential\x00" + r.name + "\x00"))
	h.Write(pin)
	return append(hex.AppendEncode(nil, h.Sum(nil)[:1]), '\n')
}

func (r refusal) in(f func(*durable.Folder) error) (err error) {
	folder, err := durable.OpenFolder(r.folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.Close()) }()
	return f(folder)
}

func (r refusal) is(pin []byte) (refused bool, err error) {
	err = r.in(func(folder *durable.Folder) error {
		note := r.note(pin)
		noted, err := folder.Read(r.name, len(note))
		refused = err == nil && bytes.Equal(noted, note)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return refused, err
}

func (r refusal) remember(pin []byte) error {
	return r.in(func(folder *durable.Folder) error { return folder.Write(r.name, r.note(pin)) })
}

func (r refusal) forget() error {
	return r.in(func(folder *durable.Folder) error {
		if err := folder.Remove(r.name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}
