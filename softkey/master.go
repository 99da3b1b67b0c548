package softkey

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/mesh-agent/mesh-agent/internal/durable"
	"github.com/mesh-agent/mesh-agent/internal/secret"
	"github.com/mesh-agent/mesh-agent/token"
)

// Why a token does not open.
var (
	// ErrProtected says that the keys are protected by a passphrase and were to be opened
	// as insecure ones.
	ErrProtected = errors.New("the software keys were made with a passphrase and stay so")
	// ErrInsecure says that the keys are insecure and were to be opened with a passphrase.
	ErrInsecure = errors.New("the software keys were made without protection and stay so")
	// ErrPassphrase says that the passphrase is wrong.
	ErrPassphrase = errors.New("wrong passphrase")
)

// The master key is in one of these files. Which one is the kind of the token.
const (
	protectedFile = "master.age"
	insecureFile  = "master.insecure"
)

const (
	masterLen     = 32
	masterTitle   = "mesh-agent software keys 1\n"
	maxMasterFile = 4096
	maxWorkFactor = 22 // as age itself reads at most
)

// Exists reports whether the folder dir holds a master key, and so whether Open will open
// one or make one, for which a passphrase is better asked twice. It changes nothing; a
// folder that is missing holds none.
func Exists(dir string) (bool, error) {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	folder, err := durable.OpenFolder(dir)
	if err != nil {
		return false, err
	}
	protected, insecure, err := kinds(folder)
	return protected || insecure, errors.Join(err, folder.Close())
}

func kinds(folder *durable.Folder) (protected, insecure bool, err error) {
	_, errProtected := folder.Stat(protectedFile)
	_, errInsecure := folder.Stat(insecureFile)
	for _, e := range []error{errProtected, errInsecure} {
		if e != nil && !errors.Is(e, fs.ErrNotExist) {
			return false, false, e
		}
	}
	return errProtected == nil, errInsecure == nil, nil
}

// openMaster reads the master key, or makes one if there is none of either kind.
func openMaster(folder *durable.Folder, opts Options) (secret.Bytes, error) {
	protected, insecure, err := kinds(folder)
	switch {
	case err != nil:
		return nil, err
	case protected && insecure:
		return nil, fmt.Errorf("%w: there is both %s and %s", token.ErrCorrupt, protectedFile, insecureFile)
	case protected && opts.Insecure:
		return nil, ErrProtected
	case insecure && !opts.Insecure:
		return nil, ErrInsecure
	case protected:
		return readProtected(folder, opts)
	case insecure:
		return readInsecure(folder)
	}
	return makeMaster(folder, opts)
}

func makeMaster(folder *durable.Folder, opts Options) (secret.Bytes, error) {
	if err := folder.RemoveLeftovers(); err != nil {
		return nil, err
	}
	master := make(secret.Bytes, masterLen)
	if _, err := rand.Read(master); err != nil {
		return nil, err
	}
	text := formatMaster(master)
	defer clear(text)
	name := insecureFile
	if !opts.Insecure {
		sealed, err := protect(text, opts)
		if err != nil {
			return nil, fmt.Errorf("protect master key: %w", err)
		}
		name, text = protectedFile, sealed
	}
	if err := folder.Create(name, text); err != nil {
		master.Wipe()
		return nil, err
	}
	return master, nil
}

func readInsecure(folder *durable.Folder) (secret.Bytes, error) {
	info, err := folder.Stat(insecureFile)
	if err != nil {
		return nil, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, others may read it: %w", insecureFile, perm, fs.ErrPermission)
	}
	text, err := folder.Read(insecureFile, maxMasterFile)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	return parseMaster(text)
}

func readProtected(folder *durable.Folder, opts Options) (secret.Bytes, error) {
	sealed, err := folder.Read(protectedFile, maxMasterFile)
	if err != nil {
		return nil, err
	}
	identity, err := age.NewScryptIdentity(string(opts.Passphrase))
	if err != nil {
		return nil, err
	}
	identity.SetMaxWorkFactor(maxWorkFactor)
	text, err := unprotect(sealed, identity)
	var noMatch *age.NoIdentityMatchError
	switch {
	case errors.As(err, &noMatch):
		return nil, ErrPassphrase
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", protectedFile, token.ErrCorrupt, err)
	}
	defer clear(text)
	return parseMaster(text)
}

// unprotect reads an armored age file whole, and nothing after it.
func unprotect(sealed []byte, identity age.Identity) ([]byte, error) {
	plain, err := age.Decrypt(armor.NewReader(bytes.NewReader(sealed)), identity)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(plain, maxMasterFile))
}

// protect encrypts text to a passphrase, as "age --passphrase --armor" does.
func protect(text []byte, opts Options) ([]byte, error) {
	recipient, err := age.NewScryptRecipient(string(opts.Passphrase))
	if err != nil {
		return nil, err
	}
	if opts.WorkFactor != 0 {
		recipient.SetWorkFactor(opts.WorkFactor)
	}
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, recipient)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), armored.Close()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// formatMaster writes a master key as a title and a line of base64url.
func formatMaster(master secret.Bytes) []byte {
	out := make([]byte, 0, len(masterTitle)+base64.RawURLEncoding.EncodedLen(masterLen)+1)
	out = append(out, masterTitle...)
	out = base64.RawURLEncoding.AppendEncode(out, master)
	return append(out, '\n')
}

// parseMaster reads exactly what formatMaster writes.
func parseMaster(text []byte) (secret.Bytes, error) {
	line, ok := bytes.CutPrefix(text, []byte(masterTitle))
	if !ok {
		return nil, fmt.Errorf("%w: not a master key of version 1", token.ErrCorrupt)
	}
	line, ok = bytes.CutSuffix(line, []byte("\n"))
	if !ok || len(line) != base64.RawURLEncoding.EncodedLen(masterLen) {
		return nil, fmt.Errorf("%w: master key has a wrong length", token.ErrCorrupt)
	}
	master := make(secret.Bytes, masterLen)
	if _, err := base64.RawURLEncoding.Strict().Decode(master, line); err != nil || bytes.ContainsAny(line, "\r\n") {
		return nil, fmt.Errorf("%w: master key is not base64url", token.ErrCorrupt)
	}
	return master, nil
}
