package tpm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/mesh-agent/mesh-agent/internal/durable"
	"github.com/mesh-agent/mesh-agent/token"
)

// Files in Options.StateDir.
const (
	pinnedFile = "srk" // Name of the storage root key, in hexadecimal
	pinFile    = "pin" // the PIN object, encrypted by the TPM
)

// stateDir is Options.StateDir; empty keeps nothing.
type stateDir string

// errState says that it is the state folder with which something is wrong.
var errState = errors.New("state folder")

// pinned returns the Name of the storage root key when first seen, nil if none was.
func (s stateDir) pinned() ([]byte, error) {
	text, err := s.read(pinnedFile)
	if err != nil || text == nil {
		return nil, err
	}
	name, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(name) < 2 {
		return nil, fmt.Errorf("%w: %s is not the Name of a key in hexadecimal", token.ErrCorrupt, filepath.Join(string(s), pinnedFile))
	}
	return name, nil
}

func (s stateDir) pin(name []byte) error {
	return s.write(pinnedFile, append(hex.AppendEncode(nil, name), '\n'))
}

// read returns nil for a file that is not there.
func (s stateDir) read(name string) (b []byte, err error) {
	if s == "" {
		return nil, nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: %w", errState, err)
		}
	}()
	if _, err := os.Stat(string(s)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil // and is not made before there is something to keep
	}
	folder, err := durable.OpenFolder(string(s))
	if err != nil {
		return nil, err
	}
	b, err = folder.Read(name, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return b, errors.Join(err, folder.Close())
}

// write replaces a file as a whole or not at all.
func (s stateDir) write(name string, b []byte) error {
	if s == "" {
		return nil
	}
	folder, err := durable.OpenFolder(string(s))
	if err == nil {
		err = errors.Join(folder.Write(name, b), folder.Close())
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errState, err)
	}
	return nil
}
