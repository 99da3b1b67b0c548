package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/token"
)

// usageError is a command line that was not understood.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// hintError is an error with advice.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }

// hint adds advice to an error: what to do, as an imperative.
func hint(err error, advice string) error { return hintError{err, advice} }

// report prints an error, what failed and what to do about it, and returns the exit status.
func report(w io.Writer, command *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	what := strings.TrimPrefix(command.CommandPath(), "mesh-agent ")
	if what == "mesh-agent" {
		what = "read command line"
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	fmt.Fprintf(w, "mesh-agent: %s: %s\n", what, oneLine(err.Error()))
	if advice := adviceFor(command, err); advice != "" {
		fmt.Fprintf(w, "hint: %s\n", oneLine(advice))
	}
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// oneLine returns text with joined errors in one line, and without what a terminal could
// obey: a name in an error may come out of a file of somebody else's.
func oneLine(text string) string {
	var b strings.Builder
	for _, r := range strings.ReplaceAll(text, "\n", "; ") {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\u%04x", r)
		}
	}
	return b.String()
}

// adviceFor finds what to do about an error.
func adviceFor(command *cobra.Command, err error) string {
	var hinted hintError
	var usage usageError
	var status *client.StatusError
	switch {
	case errors.As(err, &hinted):
		return hinted.hint
	case errors.As(err, &usage):
		return fmt.Sprintf("`%s --help` shows how", command.CommandPath())
	case errors.As(err, &status) && strings.HasPrefix(status.Text, token.ErrAuthWrong.Error()):
		return "a wrong PIN may cost a try: see how many are left by mesh-agent doctor; for a key file, check its passphrase"
	case errors.As(err, &status) && strings.HasPrefix(status.Text, token.ErrPCR.Error()):
		return "if an update was made, seal the key to the new state with its recovery secret: mesh-agent key reseal --recovery - UDF"
	case errors.As(err, &status) && strings.HasSuffix(status.Text, token.ErrEachTime.Error()):
		return "give it with the request: mesh-agent sign --pin"
	case errors.As(err, &status) && status.Status == 401 && strings.Contains(status.Text, ": prompt program "):
		return "mesh-agent doctor says how to mend that; mesh-agent token unlock NAME does without"
	case errors.As(err, &status) && status.Status == 400:
		return fmt.Sprintf("check what was asked for; `%s --help` says what there is", command.CommandPath())
	case errors.As(err, &status):
		return adviceForStatus[status.Status]
	case errors.Is(err, client.ErrNotMesh):
		return "name agent.sock, not ssh.sock, by --socket or $MESH_AGENT_SOCK"
	case errors.Is(err, client.ErrMalformed):
		return "a message is one JSON object with one member, its tag: {\"HelloRequest\":{}}; docs/protocol.md has them all"
	case errors.Is(err, token.ErrAbsent):
		return adviceForStatus[503]
	}
	return ""
}

// adviceForStatus says what to do about an answer that is neither 201 nor 400; see docs/protocol.md.
var adviceForStatus = map[int]string{
	401: "present the token's PIN: mesh-agent token unlock NAME; for a key file, check its passphrase",
	403: "a key does only what its use permits: mesh-agent key show UDF",
	404: "see what is there: mesh-agent key list, mesh-agent token list; the token soft needs serve --software-keys",
	408: "try again and touch the token when it blinks",
	409: "see what is wrong, and how to mend it: mesh-agent doctor",
	422: "the point is not one that a correct program sends; get a new one from where it came",
	423: "wait, and find out who tried wrong PINs; mesh-agent doctor says what else helps",
	429: "try again in a moment",
	500: "the agent's log has the incident of this number; mesh-agent doctor looks for what is wrong with disk and tokens",
	501: "see what the token can do: mesh-agent token list",
	503: "see what is wrong, and how to mend it: mesh-agent doctor",
}
