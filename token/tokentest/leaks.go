package tokentest

import (
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Main runs the tests of a package, and fails if they leave goroutines, open files or processes behind. It returns
// what TestMain has to call os.Exit with.
func Main(m *testing.M) int {
	syscall.Umask(0o077) // whatever it was: a state folder must be this user's alone
	before := openFiles()
	if code := m.Run(); code != 0 {
		return code
	}
	// What was told to end may still be about to.
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		left := leftovers(before)
		if len(left) == 0 {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "FAIL: the tests leave behind:\n%s\n", strings.Join(left, "\n\n"))
			return 1
		}
	}
}

const patience = 30 * time.Second

// leftovers describes what is there now and should not be.
func leftovers(before map[string]string) []string {
	left := goroutines()
	files := openFiles()
	for _, fd := range slices.Sorted(maps.Keys(files)) {
		if _, known := before[fd]; !known {
			left = append(left, "file descriptor "+fd+": "+files[fd])
		}
	}
	if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != syscall.ECHILD {
		left = append(left, fmt.Sprintf("a child process (%d, %v)", pid, err))
	}
	return left
}

// goroutines returns the stacks of all goroutines but the one that calls it and those of the system.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	return slices.DeleteFunc(stacks[1:], func(stack string) bool { return strings.Contains(stack, "os/signal.") })
}

// openFiles returns what each file descriptor is, but for those of the runtime's own poller.
func openFiles() map[string]string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return map[string]string{"?": err.Error()}
	}
	files := map[string]string{}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" {
			files[e.Name()] = target
		}
	}
	return files
}
