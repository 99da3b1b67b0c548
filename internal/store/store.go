// Package store keeps the agent's key records: one JSON file per key in a folder that
// one daemon at a time may open.
//
// It knows the form of a record and nothing of what it means: whether a public key is
// one, whether a handle opens and whether a token exists is for internal/keyring to
// find out. It holds no secret in the clear; handles come from the tokens.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/mesh-agent/mesh-agent/internal/durable"
)

const (
	lockName   = "lock"
	keysName   = "keys"
	recordName = ".json"
)

// ErrNotFound says that there is no record of this name.
var ErrNotFound = errors.New("no such record")

// ErrExists says that there is a record of this name.
var ErrExists = errors.New("there is such a record")

// Store is the folder of key records, locked for one daemon. Its methods may be called
// from several goroutines at once; for one UDF, one at a time.
type Store struct {
	dir  *durable.Folder
	keys *durable.Folder
	lock *lock
}

// Problem is a record that was refused, or a file that has no business in the folder.
type Problem struct {
	File string // its path
	Err  error
}

// Error names the file and says what is wrong.
func (p Problem) Error() string { return p.File + ": " + p.Err.Error() }

// Unwrap returns Err.
func (p Problem) Unwrap() error { return p.Err }

// Open opens the folder at path for this process alone. It creates it with mode 0700 if
// it is missing, refuses one that group or others may write, and removes what
// interrupted writes left behind. The error is a *LockedError if it is in use.
func Open(path string) (*Store, error) {
	dir, err := durable.OpenFolder(path)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	s := &Store{dir: dir}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open state: %w", err), s.Close())
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if s.lock, err = takeLock(filepath.Join(s.dir.Path(), lockName)); err != nil {
		return err
	}
	if s.keys, err = durable.OpenFolder(filepath.Join(s.dir.Path(), keysName)); err != nil {
		return err
	}
	return errors.Join(s.dir.RemoveLeftovers(), s.keys.RemoveLeftovers())
}

// Dir returns the path of the state folder. Tokens keep their files in folders below it.
func (s *Store) Dir() string { return s.dir.Path() }

// Close gives the folder free for others.
func (s *Store) Close() error {
	err := s.dir.Close()
	if s.keys != nil {
		err = errors.Join(err, s.keys.Close())
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.release())
	}
	return err
}

// Load reads all records in the order of their UDFs. A record that is refused is
// a problem and does not stop the others; the error is for the folder as a whole.
func (s *Store) Load() ([]Record, []Problem, error) {
	names, err := s.keys.Names()
	if err != nil {
		return nil, nil, err
	}
	var records []Record
	var problems []Problem
	for _, name := range names {
		r, err := s.load(name)
		if err != nil {
			problems = append(problems, Problem{File: filepath.Join(s.keys.Path(), name), Err: err})
			continue
		}
		records = append(records, *r)
	}
	return records, problems, nil
}

func (s *Store) load(name string) (*Record, error) {
	udf, ok := strings.CutSuffix(name, recordName)
	if !ok || !isUDF(udf) {
		return nil, errors.New("not the name of a key record")
	}
	data, err := s.keys.Read(name, MaxRecord)
	if err != nil {
		return nil, err
	}
	r, err := ParseRecord(data)
	if err != nil {
		return nil, err
	}
	if r.Udf != udf {
		return nil, fmt.Errorf("the record is that of %s", r.Udf)
	}
	return r, nil
}

// Free returns ErrExists if there is a record of this UDF, loaded or not.
func (s *Store) Free(udf string) error {
	_, err := s.keys.Stat(udf + recordName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		err = ErrExists
	}
	return fmt.Errorf("record %s: %w", udf, err)
}

// Put writes a record durably, replacing one of the same UDF.
func (s *Store) Put(r *Record) error {
	data, err := r.Marshal()
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return s.keys.Write(r.Udf+recordName, data)
}

// Remove deletes a record durably. A missing one is ErrNotFound.
func (s *Store) Remove(udf string) error {
	if !isUDF(udf) {
		return fmt.Errorf("remove record %q: %w", udf, ErrNotFound)
	}
	err := s.keys.Remove(udf + recordName)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record %s: %w", udf, ErrNotFound)
	}
	return err
}
