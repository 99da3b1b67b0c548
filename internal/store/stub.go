// Package store: STUB of the agreed API; its owner replaces this file.
package store

// Store is the folder of key records, locked (flock) for one daemon.
type Store struct{}

func Open(dir string) (*Store, error) { panic("stub") } // creates 0700; error if held by another process
func (s *Store) Close() error         { panic("stub") }
