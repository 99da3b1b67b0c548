package main

import (
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// harden keeps the daemon's memory out of core files and away from the debuggers of
// other programs of the user, makes what it creates readable by its user only, and lets no process that it
// starts have a file which the daemon was started with.
func harden() error {
	err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) { // Linux before 5.11
		return fmt.Errorf("keep files to itself: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	unix.Umask(0o077)
	return nil
}
