package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestEveryErrorHasARow finds errors of the vocabularies that nobody decided about.
func TestEveryErrorHasARow(t *testing.T) {
	t.Parallel()
	if len(token.Errors()) == 0 {
		t.Fatal("no errors to look for")
	}
	points := []error{keyshare.ErrLength, keyshare.ErrSignOctet, keyshare.ErrNonCanonical, keyshare.ErrTwist,
		keyshare.ErrIdentity, keyshare.ErrLowOrder, keyshare.ErrTorsion}
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	for _, err := range append(token.Errors(), points...) {
		if f := a.answerTo(fmt.Errorf("do something: %w", err)); f.status == statusInternal {
			t.Errorf("%v has no row", err)
		}
	}
}

func TestAnswerTo(t *testing.T) {
	t.Parallel()
	wrap := func(err error) error { return fmt.Errorf("open key: %w", err) }
	cases := []struct {
		err    error
		status int
		start  string
	}{
		{malformed("Data", "missing"), 400, "Data: missing"},
		{wrap(malformed("Data", "missing")), 400, "Data: missing"},
		{forbidden("use", "no"), 403, "use: no"},
		{wrap(&token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: token.TriesUnknown}), 401, "pin needed"},
		{wrap(&token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: 3}), 401, "pin needed"},
		{wrap(&token.AuthError{Reason: token.ErrAuthWrong, Kind: "PIN", TriesLeft: 2}), 401, "pin wrong, 2 left"},
		{wrap(token.ErrAuthWrong), 401, "pin wrong"},
		{wrap(token.ErrAuthNeeded), 401, "pin needed"},
		{wrap(&token.LockoutError{RetryAfter: 90 * time.Second}), 423, "90 "},
		{wrap(&token.LockoutError{RetryAfter: 1500 * time.Millisecond}), 423, "2 "},
		{wrap(token.ErrLockedOut), 423, "token locked out"},
		{wrap(token.ErrTouchTimeout), 408, "no touch in time"},
		{wrap(token.ErrNotFound), 404, "no such key"},
		{wrap(token.ErrAbsent), 503, "open key: token absent"},
		{wrap(token.ErrReplaced), 503, ""},
		{wrap(token.ErrClosed), 503, ""},
		{wrap(token.ErrFault), 503, "token returned a wrong result"},
		{wrap(&fs.PathError{Op: "write", Path: "file", Err: syscall.ENOSPC}), 503, "no space left on the agent's disk"},
		{wrap(context.DeadlineExceeded), 503, ""},
		{wrap(token.ErrCorrupt), 409, ""},
		{wrap(token.ErrUnsupported), 501, ""},
		{wrap(token.ErrDecrypt), 400, "Recipient"},
		{wrap(token.ErrBadKey), 400, "Key"},
		{wrap(context.Canceled), 499, "cancelled"},
		{fmt.Errorf("sign: %w: %w", token.ErrAbsent, context.Canceled), 499, "cancelled"},
		{errQueueFull, 429, ""},
		{wrap(keyring.ErrUse), 403, "use"},
		{wrap(&keyring.ConflictError{Udf: "M", Use: token.UseSign, Token: "t", Differs: "use"}), 403, "use"},
		{fmt.Errorf("%w: %w", token.ErrBadPoint, keyshare.ErrTwist), 422, "twist"},
		{keyshare.ErrIdentity, 422, "identity"},
	}
	a := &Agent{log: slog.New(slog.DiscardHandler)}
	for _, c := range cases {
		if f := a.answerTo(c.err); f.status != c.status || !strings.HasPrefix(f.text, c.start) || f.text == "" {
			t.Errorf("%v: %d %q, want %d %q...", c.err, f.status, f.text, c.status, c.start)
		}
	}
}

// TestIncident makes sure that what nobody foresaw is told to the log alone.
func TestIncident(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a := &Agent{log: slog.New(slog.NewTextHandler(&log, nil))}
	f := a.answerTo(errors.New("the disk is on fire"))
	id := regexp.MustCompile(`^incident ([0-9a-f]{16})$`).FindStringSubmatch(f.text)
	if f.status != 500 || id == nil {
		t.Fatalf("%d %q", f.status, f.text)
	}
	if !strings.Contains(log.String(), id[1]) || !strings.Contains(log.String(), "the disk is on fire") {
		t.Errorf("log: %s", &log)
	}
	if again := a.answerTo(errors.New("the disk is on fire")); again.text == f.text {
		t.Error("two incidents have one number")
	}
}
