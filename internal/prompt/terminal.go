package prompt

import (
	"os"

	"golang.org/x/sys/unix"
)

// keepTerminal remembers how a terminal is set. A program that is ended while it reads a PIN
// leaves it without echo.
func keepTerminal(name string) (restore func()) {
	var before *unix.Termios
	withTerminal(name, func(fd int) { before, _ = unix.IoctlGetTermios(fd, unix.TCGETS) })
	return func() {
		withTerminal(name, func(fd int) {
			// A process in the background of this very terminal would be stopped.
			if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil && group != unix.Getpgrp() {
				return
			}
			if before != nil {
				_ = unix.IoctlSetTermios(fd, unix.TCSETS, before) // it may be gone
			}
		})
	}
}

// hasTerminal reports whether a terminal is there and may be written to.
func hasTerminal(name string) (ok bool) {
	withTerminal(name, func(fd int) {
		_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		ok = err == nil
	})
	return ok
}

func withTerminal(name string, f func(fd int)) {
	if name == "" {
		return
	}
	file, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer file.Close()
	f(int(file.Fd()))
}
