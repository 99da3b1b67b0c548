package tokentest

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestLeftovers leaves one of each kind behind for a while.
func TestLeftovers(t *testing.T) {
	before := openFiles()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	child := exec.Command("cat")
	input, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	go waitFor(begun, release)
	<-begun
	left := strings.Join(leftovers(before), "\n")
	for _, want := range []string{dir.Name(), "a child process", "tokentest.waitFor("} {
		if !strings.Contains(left, want) {
			t.Errorf("%q is not among what is left:\n%s", want, left)
		}
	}
	close(release)
	if err := input.Close(); err != nil {
		t.Error(err)
	}
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

func waitFor(begun, c chan struct{}) {
	close(begun)
	<-c
}
