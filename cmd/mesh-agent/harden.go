package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// harden keeps the daemon's memory out of core files and away from the debuggers of
// other programs of the user, and makes what it creates readable by its user only.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	unix.Umask(0o077)
	return nil
}
