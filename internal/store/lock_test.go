package store

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestLockWithoutRoom has a full disk, on which keys can still be used, and a file that cannot be written.
func TestLockWithoutRoom(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	if err := notePID(full); err != nil {
		t.Errorf("no room: %v", err)
	}
	closed, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if err := notePID(closed); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed file: %v, want %v", err, os.ErrClosed)
	}
}
