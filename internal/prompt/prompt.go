// Package prompt asks the person at this machine: for a PIN, for a yes or a no, or for nothing
// more than to be seen. It does so by a program of theirs, one that speaks the Assuan protocol
// as GnuPG's pinentry does, or one as OpenSSH's SSH_ASKPASS.
//
// It does not decide what is asked, keeps no answer, and cannot tell who answered: whoever may
// draw on the person's screen, or run programs as the same user, may imitate a prompt.
package prompt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Kind is how a program is talked to.
type Kind string

// The kinds.
const (
	Pinentry Kind = "pinentry" // the Assuan protocol, on standard input and output
	Askpass  Kind = "askpass"  // the question is the argument, the answer standard output
)

// The errors of a question that has no answer. That the context ended is its own error.
var (
	// ErrRefused says that the person said no, or closed the prompt.
	ErrRefused = errors.New("the user refused")
	// ErrNoAnswer says that nobody answered in time.
	ErrNoAnswer = errors.New("nobody answered the prompt")
	// ErrBusy says that too many questions wait already.
	ErrBusy = errors.New("too many prompts are waiting")
)

// ProgramError says that the program did not do its part. No answer is in it.
type ProgramError struct {
	Program string
	Err     error
	Mend    string // what to do about it, as an imperative
}

// Error names the program and what is wrong with it.
func (e *ProgramError) Error() string { return fmt.Sprintf("prompt program %s: %v", e.Program, e.Err) }

// Unwrap returns Err.
func (e *ProgramError) Unwrap() error { return e.Err }

// Options says which program asks.
type Options struct {
	Kind Kind
	// Program is its absolute path.
	Program string
	// Getenv looks up the environment of which the program gets a part: see environment.
	Getenv func(string) string
	// Limit is how long a person has to answer; zero means two minutes.
	Limit time.Duration
}

const defaultLimit = 2 * time.Minute

// Question is what a person reads. Names in it that come from elsewhere have gone through Line.
type Question struct {
	Title  string
	Text   string // lines
	Prompt string // before the field of a PIN: "PIN"
	Error  string // what was wrong with the answer before; empty for none
	// Clients returns the processes that wait for the answer, each once, and at least one; clients take turns. nil is
	// one that has no number. It must not block, nor ask.
	Clients func() []int32
}

// Prompter asks one question at a time; further ones wait, and the clients for which they are asked take
// turns. Its methods may be called from several goroutines at once.
type Prompter struct {
	options Options
	desk    *desk
	life    context.Context
	end     context.CancelFunc

	mu      sync.Mutex     // held while a notice is begun, or life ended: none begins that Close does not wait for
	notices sync.WaitGroup // one for each notice
}

// New returns a Prompter. It looks at nothing: Test does, and each question.
func New(o Options) *Prompter {
	if o.Limit == 0 {
		o.Limit = defaultLimit
	}
	life, end := context.WithCancel(context.Background())
	return &Prompter{options: o, desk: newDesk(), life: life, end: end}
}

// Program returns the path of the program.
func (p *Prompter) Program() string { return p.options.Program }

// Close takes down what is shown, for good. Questions end with context.Canceled; notices have ended when it returns.
func (p *Prompter) Close() {
	p.mu.Lock()
	p.end()
	p.mu.Unlock()
	p.notices.Wait()
}

// PIN asks for a PIN, which the caller wipes; it is not empty. The program is ended when ctx is.
// Errors: ErrRefused, ErrNoAnswer, ErrBusy, *ProgramError, and ctx's.
func (p *Prompter) PIN(ctx context.Context, q Question) (pin []byte, err error) {
	err = p.ask(ctx, q, func(ctx context.Context) error {
		pin, err = p.run(ctx, askPIN, q)
		if err == nil && len(pin) == 0 {
			return fmt.Errorf("%w: the answer is empty", ErrRefused)
		}
		return err
	})
	return pin, err
}

// Confirm asks for a yes. Errors as PIN; a no is ErrRefused.
func (p *Prompter) Confirm(ctx context.Context, q Question) error {
	return p.ask(ctx, q, func(ctx context.Context) error {
		_, err := p.run(ctx, askConfirm, q)
		return err
	})
}

// ask gives f its turn and the time that a person has.
func (p *Prompter) ask(ctx context.Context, q Question, f func(context.Context) error) error {
	ctx, cancel := p.living(ctx)
	defer cancel()
	leave, err := p.desk.enter(ctx, q.Clients)
	if err != nil {
		return err
	}
	defer leave()
	ctx, expire := context.WithTimeoutCause(ctx, p.options.Limit, ErrNoAnswer)
	defer expire()
	err = f(ctx)
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// Notice shows a text until down is called, ctx ends, or the person puts it away. It returns
// at once, and neither delays a question nor fails: a question that comes takes it down
// meanwhile. A program that does not show it is no reason to fail what the notice is about.
func (p *Prompter) Notice(ctx context.Context, q Question) (down func()) {
	ctx, cancel := p.living(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.life.Err() != nil {
		return cancel
	}
	p.notices.Go(func() {
		defer cancel()
		p.desk.show(ctx, func(ctx context.Context) { _, _ = p.run(ctx, showNotice, q) })
	})
	return cancel
}

// living returns a context that ends with the Prompter too.
func (p *Prompter) living(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(p.life, cancel)
	if p.life.Err() != nil {
		cancel() // not only soon
	}
	return ctx, func() {
		stop()
		cancel()
	}
}

// act is what a program is to do.
type act int

const (
	askPIN act = iota
	askConfirm
	showNotice
)

// run has the program do one thing. The caller wipes the answer to askPIN; others have none.
func (p *Prompter) run(ctx context.Context, a act, q Question) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := checkProgram(p.options.Program); err != nil {
		return nil, err
	}
	if p.options.Kind == Askpass {
		return p.askpass(ctx, a, q)
	}
	return p.pinentry(ctx, a, q)
}
