package prompt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

// askpass has a program of the SSH_ASKPASS kind do one thing (ssh-add(1), "SSH_ASKPASS"). What it
// shows is its argument; SSH_ASKPASS_PROMPT tells it that a yes or nothing is wanted.
func (p *Prompter) askpass(ctx context.Context, a act, q Question) ([]byte, error) {
	env := p.environment()
	switch a {
	case askConfirm:
		env = append(env, "SSH_ASKPASS_PROMPT=confirm")
	case showNotice:
		env = append(env, "SSH_ASKPASS_PROMPT=none")
	}
	r, err := p.start(ctx, []string{askpassText(a, q)}, env)
	if err != nil {
		return nil, err
	}
	var buf [maxAnswer + 3]byte // so that one too long shows, and its end
	defer clear(buf[:])
	n, err := readUpTo(r.out, buf[:])
	r.finish()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, p.broken(r.explain(err), "try it by hand, or configure another")
	}
	if err := r.askpassEnd(p); err != nil {
		return nil, err
	}
	return askpassAnswer(p, a, buf[:n])
}

// askpassText is the argument. It starts with a word of ours and so is never an option.
func askpassText(a act, q Question) string {
	lines := []string{q.Text}
	if q.Error != "" {
		lines = []string{q.Error, q.Text}
	}
	text := strings.Join(lines, "\n")
	if a == askPIN {
		text += "\n" + q.Prompt + ":"
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' && c != '\n' || c == 0x7f {
			return '?'
		}
		return c
	}, text)
}

// readUpTo reads to the end, which must come before buf is full.
func readUpTo(r io.Reader, buf []byte) (int, error) {
	n, err := io.ReadFull(r, buf)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return n, nil
	case errors.Is(err, os.ErrClosed):
		return n, err
	case err == nil:
		return n, fmt.Errorf("an answer of more than %d octets", maxAnswer)
	}
	return n, err
}

// askpassEnd says what the end of the program means: any status but 0 is a no.
func (r *process) askpassEnd(p *Prompter) error {
	exit := (*exec.ExitError)(nil)
	switch {
	case r.err == nil:
		return nil
	case errors.As(r.err, &exit) && exit.Exited() && r.noise.String() == "":
		return ErrRefused
	case errors.As(r.err, &exit) && exit.Exited():
		return fmt.Errorf("%w, or %w", ErrRefused, p.broken(r.explain(errors.New("it failed")), noScreen))
	}
	return p.broken(r.explain(errors.New("it did not end by itself")), "try it by hand, or configure another")
}

// askpassAnswer reads the first line. As to OpenSSH, nothing and "yes" are a yes.
func askpassAnswer(p *Prompter, a act, out []byte) ([]byte, error) {
	line, _, _ := bytes.Cut(out, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case a == showNotice:
		return nil, nil
	case a == askConfirm && (len(line) == 0 || bytes.EqualFold(line, []byte("yes"))):
		return nil, nil
	case a == askConfirm:
		return nil, ErrRefused
	case len(line) > maxAnswer:
		return nil, p.broken(fmt.Errorf("an answer of more than %d octets", maxAnswer), "configure another")
	}
	return bytes.Clone(line), nil
}
