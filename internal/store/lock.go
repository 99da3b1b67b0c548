package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// LockedError says that another process has the state folder open.
type LockedError struct {
	Dir string
	// PID and Command are those of the holder; 0 and "" if they could not be found out.
	PID     int
	Command string
}

// Error says who holds the folder.
func (e *LockedError) Error() string {
	who := "another process"
	switch {
	case e.PID != 0 && e.Command != "":
		who = fmt.Sprintf("process %d (%s)", e.PID, e.Command)
	case e.PID != 0:
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("folder %s is in use by %s", e.Dir, who)
}

// lock is a file under flock(2). The kernel gives it up when the process ends,
// however it ends; the process id in it is for people only.
type lock struct{ file *os.File }

func takeLock(path string) (*lock, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = flock(file)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return nil, errors.Join(holder(file, filepath.Dir(path)), file.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), file.Close())
	}
	if err := errors.Join(file.Truncate(0), notePID(file)); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock: %w", err), file.Close())
	}
	return &lock{file}, nil
}

// notePID writes the process id. Keys can be used where there is no room for it.
func notePID(file *os.File) error {
	err := writePID(file)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nil
	}
	return err
}

// release empties the lock file and closes it, which gives up the lock. The file stays:
// to delete it would let two processes lock two files of one name.
func (l *lock) release() error {
	return errors.Join(l.file.Truncate(0), l.file.Close())
}

func flock(file *os.File) error {
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func writePID(file *os.File) error {
	_, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// holder finds out who holds the lock, as far as that can be known.
func holder(file *os.File, dir string) *LockedError {
	e := &LockedError{Dir: dir}
	text, err := io.ReadAll(io.LimitReader(file, 32))
	if err != nil {
		return e
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return e
	}
	e.PID = pid
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
		e.Command = strings.TrimSpace(string(comm))
	}
	return e
}
