// Command mesh-agent guards private keys for the Mathematical Mesh and for SSH: it is
// the daemon (mesh-agent serve) and the command line that talks to it.
//
// It only wires: what a request means is decided in the packages it imports. It never
// takes a secret as an argument.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// world is everything outside the program that a command may touch, so that tests
// can replace it.
type world struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], world{os.Stdin, os.Stdout, os.Stderr, os.Getenv})
	stop()
	os.Exit(code)
}

// run executes one command line and returns the exit status: 0 if it was done, 1 if
// not, 2 if it was not understood.
func run(ctx context.Context, args []string, w world) int {
	a := &app{world: w}
	root := newRootCommand(a)
	root.SetArgs(args)
	command, err := root.ExecuteContextC(ctx)
	return report(w.stderr, command, err)
}
