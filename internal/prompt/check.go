package prompt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// testLimit is how long a program has to answer Test, which asks nobody.
const testLimit = 5 * time.Second

var errSilent = errors.New("it does not answer")

// checkProgram makes sure that a program is there and that nobody else decides what it is: neither it
// nor a folder on the way to it may be written by others. Errors: *ProgramError.
func checkProgram(path string) error {
	fail := func(mend, format string, args ...any) error {
		return &ProgramError{Program: path, Err: fmt.Errorf(format, args...), Mend: mend}
	}
	real, err := filepath.EvalSymlinks(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fail("install it, or configure one that is there as program of [prompt]", "it does not exist")
	case err != nil:
		return fail("let this user reach it", "%w", err)
	}
	info, err := os.Stat(real)
	switch {
	case err != nil:
		return fail("let this user reach it", "%w", err)
	case !info.Mode().IsRegular():
		return fail("configure a program", "it is not a file")
	case unix.Access(real, unix.X_OK) != nil:
		return fail("chmod +x "+real, "this user may not run it")
	case info.Mode().Perm()&0o022 != 0:
		return fail("chmod go-w "+real, "others may write to it (mode %04o)", info.Mode().Perm())
	case !ours(info):
		return fail("configure one of the system's or of your own", "it belongs to another user")
	}
	for _, folder := range folders(path) {
		info, err := os.Stat(folder)
		switch {
		case err != nil:
			return fail("let this user reach it", "%w", err)
		case !ours(info), info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0:
			return fail("put it where only you or the system write", "others may put another in its place in %s", folder)
		}
	}
	return nil
}

// folders returns every folder that decides what is found at an absolute path: those above it and above
// what it links to, link by link, as named and as they are.
func folders(path string) (out []string) {
	for range 40 { // as Linux
		folder := filepath.Dir(path)
		real, err := filepath.EvalSymlinks(folder)
		if err != nil {
			real = folder // it is looked at, and found out, below
		}
		out = append(append(out, above(folder)...), above(real)...)
		target, err := os.Readlink(path)
		if err != nil {
			return out
		}
		if path = target; !filepath.IsAbs(target) {
			path = filepath.Join(real, target)
		}
	}
	return out
}

// above returns a folder and those above it.
func above(folder string) (out []string) {
	for {
		out = append(out, folder)
		if folder == filepath.Dir(folder) {
			return out
		}
		folder = filepath.Dir(folder)
	}
}

// ours reports whether a file belongs to this user or to root.
func ours(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (stat.Uid == 0 || int(stat.Uid) == os.Geteuid())
}

// splitLines returns the lines of a text that are not blank.
func splitLines(text string) (lines []string) {
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
