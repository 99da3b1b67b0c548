package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Prompter asks the person at this machine; package prompt has one. Its methods may be called from
// several goroutines at once, and return soon after ctx has ended.
type Prompter interface {
	// PIN asks for a PIN, which the caller wipes; it is not empty. Errors: prompt.ErrRefused,
	// prompt.ErrNoAnswer, prompt.ErrBusy, *prompt.ProgramError, ctx's cause.
	PIN(ctx context.Context, q prompt.Question) ([]byte, error)
	// Confirm asks for a yes. Errors as PIN.
	Confirm(ctx context.Context, q prompt.Question) error
	// Program names what asks.
	Program() string
	// Test finds out whether it could ask, and says what it is. Errors: *prompt.ProgramError.
	Test(ctx context.Context) (about string, err error)
}

// maxAsked is how often one operation asks for the PIN of one token.
const maxAsked = 3

// prompts is who waits for an answer.
type prompts struct {
	mu      sync.Mutex
	waiting []*wait               // guarded by mu
	unlocks map[string]*unlocking // guarded by mu; by name of the token
}

// plea is an operation for which somebody may have to be asked.
type plea struct {
	*request
	entry *keyring.Entry
	op    policy.Operation
	asked map[string]int // by token; the parts of a key are worked on one after another
}

// wait is a plea that waits for the PIN of a token. It is immutable.
type wait struct {
	*plea
	token string
}

// attend has the operations of a key ask for PINs, if there is a program that can.
func (r *request) attend(e *keyring.Entry, op policy.Operation) *keyring.Entry {
	if r.config.Prompter == nil {
		return e
	}
	p := &plea{request: r, entry: e, op: op, asked: make(map[string]int)}
	return e.Asking(keyring.Asker{PIN: p.pin, Context: func(ctx context.Context) context.Context {
		return prompt.WithReason(ctx, p.reason)
	}})
}

// pin is keyring.Asker.PIN. A key that asks each time has a prompt of its own; a token that is
// to be unlocked has one for all who wait for it.
func (p *plea) pin(ctx context.Context, n keyring.Need) (token.Auth, error) {
	var about *token.AuthError
	if !errors.As(n.Err, &about) || about.Kind != "PIN" || p.asked[n.Token] == maxAsked {
		return token.Auth{}, n.Err
	}
	p.asked[n.Token]++
	t, err := p.ring.Token(n.Token)
	if err != nil {
		return token.Auth{}, err
	}
	defer p.wait(n.Token)()
	unlocker, ok := t.(token.Unlocker)
	switch {
	case !ok, eachTime(n):
		return p.once(ctx, t, n)
	case isLocked(t):
		return token.Auth{}, p.unlockOnce(ctx, t.Info().Name, func(ctx context.Context) error {
			return p.unlock(ctx, t, unlocker, n)
		})
	case p.asked[n.Token] == 1: // it has been unlocked since
		return token.Auth{}, nil
	}
	return p.once(ctx, t, n) // that is not enough
}

// eachTime reports whether a PIN is for one operation.
func eachTime(n keyring.Need) bool {
	return n.Policy.PIN == token.PINAlways || errors.Is(n.Err, token.ErrEachTime)
}

func isLocked(t token.Token) bool { return t.Info().State == token.StateLocked }

// wait notes for StatusRequest that the plea waits, until done is called.
func (p *plea) wait(tokenName string) (done func()) {
	p.prompts.mu.Lock()
	defer p.prompts.mu.Unlock()
	w := &wait{p, tokenName}
	p.prompts.waiting = append(p.prompts.waiting, w)
	return func() {
		p.prompts.mu.Lock()
		defer p.prompts.mu.Unlock()
		i := slices.Index(p.prompts.waiting, w)
		p.prompts.waiting = slices.Delete(p.prompts.waiting, i, i+1)
	}
}

// promptInfo says who waits, or nil if there is no program.
func (a *Agent) promptInfo() *mesh.PromptInfo {
	if a.config.Prompter == nil {
		return nil
	}
	info := &mesh.PromptInfo{Program: a.config.Prompter.Program()}
	a.prompts.mu.Lock()
	waiting := slices.Clone(a.prompts.waiting)
	a.prompts.mu.Unlock()
	for _, w := range waiting {
		info.Waiting = append(info.Waiting, mesh.PromptWait{Token: w.token, KeyId: w.entry.Udf, Client: w.client(), PID: int(w.pid)})
	}
	return info
}

// once gets a PIN for one operation.
func (p *plea) once(ctx context.Context, t token.Token, n keyring.Need) (token.Auth, error) {
	for range maxAsked {
		pin, last, err := p.ask(ctx, t, n)
		if err != nil {
			return token.Auth{}, err
		}
		if err = p.spend(ctx, t, pin, last); err == nil {
			return token.Auth{PIN: pin}, nil
		}
		clear(pin)
		if !errors.Is(err, token.ErrAuthNeeded) {
			return token.Auth{}, err
		}
		n.Err = err
	}
	return token.Auth{}, n.Err
}

// spend makes sure that a PIN may be offered: the last try is used up here, by a token that
// guards it, or not without the person being told.
func (p *plea) spend(ctx context.Context, t token.Token, pin []byte, last bool) error {
	guarded, ok := t.(token.LastTryUnlocker)
	switch {
	case last && ok:
		return p.inTurn(ctx, t, func() error { return guarded.UnlockLastTry(ctx, pin) })
	case last:
		return nil
	}
	return p.spare(ctx, t)
}

// unlock asks until the token is unlocked, or has refused too often.
func (p *plea) unlock(ctx context.Context, t token.Token, u token.Unlocker, n keyring.Need) error {
	if !isLocked(t) { // it has been unlocked since
		return nil
	}
	for range maxAsked {
		pin, last, err := p.ask(ctx, t, n)
		if err != nil {
			return err
		}
		err = p.present(ctx, t, u, pin, last)
		clear(pin)
		if !errors.Is(err, token.ErrAuthWrong) && !errors.Is(err, token.ErrAuthNeeded) {
			return err
		}
		n.Err = err
	}
	return n.Err
}

func (p *plea) present(ctx context.Context, t token.Token, u token.Unlocker, pin []byte, last bool) error {
	if err := p.spend(ctx, t, pin, last); err != nil {
		return err
	}
	return p.inTurn(ctx, t, func() error { return u.Unlock(ctx, pin) })
}

// spare is an error if one try is left now, which the person was not told. A token that guards
// its last try itself is not asked.
func (p *plea) spare(ctx context.Context, t token.Token) error {
	if _, ok := t.(token.LastTryUnlocker); ok {
		return nil
	}
	left, err := p.triesLeft(ctx, t, token.TriesUnknown)
	if err == nil && left == 1 {
		err = &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: 1}
	}
	return err
}

// ask asks for a PIN. With one try left it asks first whether that may be used up; last says that
// it may.
func (p *plea) ask(ctx context.Context, t token.Token, n keyring.Need) (pin []byte, last bool, err error) {
	known := token.TriesUnknown
	var about *token.AuthError
	if errors.As(n.Err, &about) {
		known = about.TriesLeft
	}
	left, err := p.triesLeft(ctx, t, known)
	if err != nil {
		return nil, false, err
	}
	p.log.Info("asking for a PIN", "token", n.Token, "key", p.entry.Udf, "pid", p.pid)
	if last = left == 1; last {
		err = p.config.Prompter.Confirm(ctx, prompt.Question{Title: "mesh-agent", Text: p.lastTry(n)})
	}
	if err == nil {
		pin, err = p.config.Prompter.PIN(ctx, p.question(n, left))
	}
	return pin, last, p.unanswered(n, err)
}

// triesLeft asks the token, if it tells.
func (p *plea) triesLeft(ctx context.Context, t token.Token, known int) (left int, err error) {
	counter, ok := t.(token.TryCounter)
	if !ok {
		return known, nil
	}
	err = p.inTurn(ctx, t, func() error {
		left, err = counter.TriesLeft(ctx)
		return err
	})
	return left, err
}

// inTurn does something with a token in its queue.
func (p *plea) inTurn(ctx context.Context, t token.Token, do func() error) error {
	leave, err := p.manageGate(ctx, t.Info().Name)
	if err != nil {
		return err
	}
	defer leave()
	return do()
}

// unanswered is the answer to a client if a question has none.
func (p *plea) unanswered(n keyring.Need, err error) error {
	var broken *prompt.ProgramError
	switch {
	case errors.As(err, &broken):
		p.log.Warn("prompt failed", "token", n.Token, "err", err, "mend", broken.Mend)
	case errors.Is(err, prompt.ErrBusy):
		return &failure{statusTooMany, err.Error()}
	case !errors.Is(err, prompt.ErrRefused) && !errors.Is(err, prompt.ErrNoAnswer):
		return err
	}
	return &failure{statusAuth, authText(n.Err) + ": " + err.Error()}
}

// unlocking is a token that a person is asked to unlock, for all who wait for that.
type unlocking struct {
	waiters int // guarded by prompts.mu
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // to be read when done is closed
}

// unlockOnce has unlock done for all who want the same token unlocked meanwhile. It is cancelled
// when the last of them has gone.
func (p *plea) unlockOnce(ctx context.Context, name string, unlock func(context.Context) error) error {
	u := p.join(ctx, name, unlock)
	select {
	case <-u.done:
		return u.err
	case <-ctx.Done():
	}
	if p.leave(name, u) {
		u.cancel()
		<-u.done
	}
	return context.Cause(ctx)
}

// join begins to unlock a token unless somebody does already.
func (p *plea) join(ctx context.Context, name string, unlock func(context.Context) error) *unlocking {
	p.prompts.mu.Lock()
	defer p.prompts.mu.Unlock()
	if u := p.prompts.unlocks[name]; u != nil {
		u.waiters++
		return u
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	u := &unlocking{waiters: 1, cancel: cancel, done: make(chan struct{})}
	if p.prompts.unlocks == nil {
		p.prompts.unlocks = make(map[string]*unlocking)
	}
	p.prompts.unlocks[name] = u
	go func() { // ends before the last of those who wait goes on
		defer cancel()
		u.err = unlock(work)
		p.forget(name, u)
		close(u.done)
	}()
	return u
}

// leave reports whether nobody waits for u any more; then nobody joins it either.
func (p *plea) leave(name string, u *unlocking) (last bool) {
	p.prompts.mu.Lock()
	defer p.prompts.mu.Unlock()
	u.waiters--
	if u.waiters == 0 && p.prompts.unlocks[name] == u {
		delete(p.prompts.unlocks, name)
	}
	return u.waiters == 0
}

func (p *plea) forget(name string, u *unlocking) {
	p.prompts.mu.Lock()
	defer p.prompts.mu.Unlock()
	if p.prompts.unlocks[name] == u {
		delete(p.prompts.unlocks, name)
	}
}

// lastTry asks whether the last try may be used up.
func (p *plea) lastTry(n keyring.Need) string {
	return fmt.Sprintf("One try is left for the PIN of the token %s. If the next PIN is wrong, the token takes no PIN any more.\n%s\nUse up the last try?",
		prompt.Line(n.Token), p.reason())
}

// question asks for the PIN.
func (p *plea) question(n keyring.Need, left int) prompt.Question {
	lines := []string{"PIN of the token " + prompt.Line(n.Token), p.reason()}
	if eachTime(n) {
		lines = append(lines, "This key asks for it each time.")
	}
	switch {
	case left == 1:
		lines = append(lines, "THIS IS THE LAST TRY.")
	case left > 1:
		lines = append(lines, fmt.Sprintf("%d tries are left.", left))
	}
	switch always := n.Policy.Touch == token.TouchAlways; {
	case n.Touches > 1:
		lines = append(lines, fmt.Sprintf("Afterwards the token wants to be touched %d times.", n.Touches))
	case always:
		lines = append(lines, "Afterwards the token wants to be touched.")
	case n.Touches == 1:
		lines = append(lines, "Afterwards the token may want to be touched.")
	}
	q := prompt.Question{Title: "mesh-agent", Text: strings.Join(lines, "\n"), Prompt: "PIN"}
	switch {
	case errors.Is(n.Err, token.ErrRefused):
		q.Error = "The token has refused that PIN before. It was not presented again."
	case errors.Is(n.Err, token.ErrAuthWrong):
		q.Error = "That PIN was wrong."
	}
	return q
}

// reason says in two lines what is to be done, with which key, and who asks for it.
func (p *plea) reason() string {
	key := p.entry.Udf
	if p.entry.Label != "" {
		key = prompt.Line(p.entry.Label) + ", " + key
	}
	return fmt.Sprintf("Key: %s, for %s\nAsked for by: %s", key, deed(p.op), p.client())
}

// deed says what an operation does.
func deed(op policy.Operation) string {
	switch op {
	case policy.SSH:
		return "a signature for SSH"
	case policy.Sign:
		return "a signature"
	case policy.SignEnvelope:
		return "a signed envelope"
	case policy.Agree:
		return "an agreement"
	case policy.Decrypt:
		return "decryption"
	case policy.Unwrap:
		return "opening a key that is imported"
	case policy.Authenticate:
		return "authentication"
	case policy.Share:
		return "shares of it"
	}
	return op.String()
}

// client names the program that asks. The process that connected may be another one by now, or
// run something else: this is for people, and decides nothing.
func (r *request) client() string {
	process := fmt.Sprintf("process %d", r.pid)
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.pid))
	if err != nil {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.pid))
		if err != nil {
			return process
		}
		program = strings.TrimSpace(string(name))
	}
	return prompt.Line(program) + ", " + process
}

// promptFindings says whether the program that asks for PINs could ask.
func (r *request) promptFindings(ctx context.Context) []mesh.Finding {
	if r.config.Prompter == nil {
		return nil
	}
	about, err := r.config.Prompter.Test(ctx)
	var broken *prompt.ProgramError
	switch {
	case err == nil:
		return []mesh.Finding{{Severity: string(token.SeverityInfo), About: "prompt", Text: "PINs are asked for by " + about}}
	case errors.As(err, &broken):
		return []mesh.Finding{{Severity: string(token.SeverityError), About: "prompt", Text: err.Error(), Mend: broken.Mend}}
	}
	return []mesh.Finding{{Severity: string(token.SeverityError), About: "prompt", Text: err.Error(), Mend: "try again"}}
}
