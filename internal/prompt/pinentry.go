package prompt

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// pinentry has a pinentry do one thing.
func (p *Prompter) pinentry(ctx context.Context, a act, q Question) (answer []byte, err error) {
	s, err := p.openPinentry(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = s.close(ctx, err) }()
	if err := s.set(a, q, p.options); err != nil {
		return nil, err
	}
	switch a {
	case askPIN:
		return s.call("GETPIN", "")
	case askConfirm:
		_, err = s.call("CONFIRM", "")
	case showNotice:
		_, err = s.call("MESSAGE", "")
	}
	return nil, err
}

// session is a pinentry that runs.
type session struct {
	*process
	assuan
	prompter *Prompter
}

// openPinentry starts a pinentry and tells it about the screen or terminal.
func (p *Prompter) openPinentry(ctx context.Context) (*session, error) {
	r, err := p.start(ctx, nil, p.environment())
	if err != nil {
		return nil, err
	}
	s := &session{process: r, assuan: assuan{r: r.out, w: r.in}, prompter: p}
	if _, err := s.reply(); err != nil { // the greeting
		return nil, s.close(ctx, err)
	}
	for _, option := range [][2]string{{"ttyname", "GPG_TTY"}, {"ttytype", "TERM"}, {"lc-ctype", "LANG"}, {"display", "DISPLAY"}} {
		value := p.options.Getenv(option[1])
		if value == "" {
			continue
		}
		_, err := s.call("OPTION", option[0]+"="+value)
		if refused := (*replyError)(nil); err != nil && !errors.As(err, &refused) { // not every program has every option
			return nil, s.close(ctx, err)
		}
	}
	return s, nil
}

// set says what is shown. A program that does not take the text is not let ask without it.
func (s *session) set(a act, q Question, o Options) error {
	yes, no := "", ""
	if a == askConfirm {
		yes, no = "Yes", "No"
	}
	for _, c := range []struct {
		command, argument string
		necessary         bool
	}{
		{"SETTITLE", q.Title, false},
		{"SETDESC", q.Text, true},
		{"SETPROMPT", q.Prompt, false},
		{"SETERROR", q.Error, true},
		{"SETOK", yes, false},
		{"SETCANCEL", no, false},
		{"SETTIMEOUT", strconv.Itoa(int(o.Limit.Seconds())), false}, // outlives an agent that is killed by that only
	} {
		if c.argument == "" {
			continue
		}
		_, err := s.call(c.command, c.argument)
		refused := (*replyError)(nil)
		if err != nil && (c.necessary || !errors.As(err, &refused)) {
			return err
		}
	}
	return nil
}

// close ends the program and says what an error of the session means.
func (s *session) close(ctx context.Context, err error) error {
	s.wipe()
	s.finish()
	var reply *replyError
	switch {
	case err == nil:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.As(err, &reply):
		return s.prompter.broken(s.explain(err), "try it by hand, or configure another")
	}
	switch reply.code {
	case codeCanceled, codeFullyCancelled, codeNotConfirmed:
		return ErrRefused
	case codeTimeout:
		return ErrNoAnswer
	}
	return s.prompter.broken(s.explain(err), noScreen)
}

const noScreen = "let the agent know the screen (DISPLAY or WAYLAND_DISPLAY) or the terminal (GPG_TTY) when it starts"

// flavor asks a pinentry of what kind it is, such as "gnome3", "curses", or "gtk2:curses" if it
// fell back to the terminal.
func (p *Prompter) flavor(ctx context.Context) (flavor string, err error) {
	s, err := p.openPinentry(ctx)
	if err != nil {
		return "", err
	}
	defer func() { err = s.close(ctx, err) }()
	data, err := s.call("GETINFO", "flavor")
	if refused := (*replyError)(nil); errors.As(err, &refused) {
		return "", nil // of another maker
	}
	return Line(string(data)), err
}

var errNoTerminal = errors.New("it asks on a terminal, and the agent knows of none that is there")

// needsTerminal reports whether a flavor asks on a terminal.
func needsTerminal(flavor string) bool {
	switch flavor {
	case "curses", "tty":
		return true
	}
	return len(flavor) > len(":curses") && flavor[len(flavor)-len(":curses"):] == ":curses"
}

// Test looks whether the program is there, may be trusted with a PIN, and answers as far as
// that can be seen without asking anybody. It returns what it is. Errors: *ProgramError.
func (p *Prompter) Test(ctx context.Context) (about string, err error) {
	if err := checkProgram(p.options.Program); err != nil {
		return "", err
	}
	if p.options.Kind == Askpass {
		return fmt.Sprintf("%s, an askpass", p.options.Program), nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, testLimit, errSilent)
	defer cancel()
	flavor, err := p.flavor(ctx)
	switch {
	case errors.Is(err, errSilent):
		return "", p.broken(errSilent, "try it by hand, or configure another")
	case err != nil:
		return "", err
	case needsTerminal(flavor) && !hasTerminal(p.options.Getenv("GPG_TTY")):
		return "", p.broken(errNoTerminal, "start the agent with GPG_TTY=$(tty), or configure a program with windows")
	case flavor == "":
		return fmt.Sprintf("%s, a pinentry", p.options.Program), nil
	}
	return fmt.Sprintf("%s, a pinentry (%s)", p.options.Program, flavor), nil
}
