package tpm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files in Options.StateDir.
const (
	pinnedFile = "srk" // Name of the storage root key, in hexadecimal
	pinFile    = "pin" // the PIN object, encrypted by the TPM
)

// stateDir is Options.StateDir; empty keeps nothing.
type stateDir string

// pinned returns the Name of the storage root key when first seen, nil if none was.
func (s stateDir) pinned() ([]byte, error) {
	text, err := s.read(pinnedFile)
	if err != nil || text == nil {
		return nil, err
	}
	name, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(name) < 2 {
		return nil, fmt.Errorf("%s is not the Name of a key in hexadecimal", s.path(pinnedFile))
	}
	return name, nil
}

func (s stateDir) pin(name []byte) error {
	return s.write(pinnedFile, append(hex.AppendEncode(nil, name), '\n'))
}

func (s stateDir) path(name string) string { return filepath.Join(string(s), name) }

// read returns nil for a file that is not there.
func (s stateDir) read(name string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := os.ReadFile(s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// write replaces a file as a whole or not at all.
func (s stateDir) write(name string, b []byte) (err error) {
	if s == "" {
		return nil
	}
	if err := os.MkdirAll(string(s), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(string(s), name+".new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.path(name)); err != nil {
		return err
	}
	dir, err := os.Open(string(s))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
