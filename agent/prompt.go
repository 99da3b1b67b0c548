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

// maxAsked is how often one operation asks for one PIN, where it was wrong.
const maxAsked = 3

// prompts is who waits for an answer.
type prompts struct {
	mu      sync.Mutex
	waiting []*wait               // guarded by mu
	unlocks map[string]*unlocking // guarded by mu; by name of the token
}

// talk is what one request has to ask: one thing after another, and nothing more once a question had no answer.
type talk struct {
	once    sync.Once
	turn    chan struct{} // holds a value while somebody is asked for this request
	refusal error         // for who has the turn: why a question had no answer; nil until then
}

func (t *talk) enter(ctx context.Context) (leave func(), err error) {
	t.once.Do(func() { t.turn = make(chan struct{}, 1) })
	select {
	case t.turn <- struct{}{}:
		return func() { <-t.turn }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// plea is an operation of a request, or a message, for which somebody may have to be asked. It is a keyring.Asker.
// Its user is bothered once for each key, however often the key is used.
type plea struct {
	*request
	deed     string          // what is done, for people
	held     map[pinOf]*pin  // of keys that ask each time, until the operation is over
	unlocked map[string]bool // tokens
}

var _ keyring.Asker = (*plea)(nil)

// pinOf is what a PIN was asked for: a key in a token.
type pinOf struct{ token, udf string }

// pin is one that somebody has entered for one operation.
type pin struct {
	octets []byte
	asked  int  // times
	again  bool // it is offered to a further use of the key
}

// attend has an operation ask for PINs, if there is a program that can. done wipes those of the operation.
func (r *request) attend(ctx context.Context, deed string) (_ context.Context, done func()) {
	if r.config.Prompter == nil {
		return ctx, func() {}
	}
	p := &plea{request: r, deed: deed, held: make(map[pinOf]*pin), unlocked: make(map[string]bool)}
	return keyring.WithAsker(ctx, p), p.wipe
}

func (p *plea) wipe() {
	for _, held := range p.held {
		clear(held.octets)
	}
}

// Context implements keyring.Asker.
func (p *plea) Context(ctx context.Context, s keyring.Subject) context.Context {
	return prompt.WithReason(ctx, func() string { return p.reason(s) + p.client() })
}

// PIN implements keyring.Asker. A key that asks each time has a prompt of its own; a token that is
// to be unlocked has one for all who wait for it.
func (p *plea) PIN(ctx context.Context, n keyring.Need) (token.Auth, error) {
	var about *token.AuthError
	t, err := p.ring.Token(n.Token)
	if err != nil || !errors.As(n.Err, &about) || about.Kind != "PIN" {
		return token.Auth{}, n.Err
	}
	n.Token = t.Info().Name // it may go by others
	w := &wait{p, n}
	defer p.wait(w)()
	leave, err := p.talk.enter(ctx)
	if err != nil {
		return token.Auth{}, err
	}
	defer leave()
	if p.talk.refusal != nil {
		return token.Auth{}, w.refused(&unanswered{n.Err, p.talk.refusal})
	}
	auth, err := w.ask(ctx, t)
	var none *unanswered
	if errors.As(err, &none) {
		p.talk.refusal = none.why
		err = w.refused(none)
	}
	return auth, err
}

// wait is a plea that waits for a PIN.
type wait struct {
	*plea
	keyring.Need
}

// ask gets the token unlocked, or a PIN for the operation.
func (w *wait) ask(ctx context.Context, t token.Token) (token.Auth, error) {
	unlocker, ok := t.(token.Unlocker)
	unlocked := w.unlocked[w.Token] // by this operation, and that was not enough
	toUnlock := ok && !unlocked && (w.Unlock || !w.eachTime())
	switch {
	case w.Unlock && !toUnlock: // no PIN would help
		return token.Auth{}, w.Err
	case toUnlock && (isLocked(t) || w.Unlock && w.Offered > 0):
		err := w.prompts.unlockOnce(ctx, w.Token, func(ctx context.Context) error { return w.unlock(ctx, t, unlocker) })
		w.unlocked[w.Token] = err == nil
		return token.Auth{}, err
	case toUnlock && w.Offered == 0 && w.held[w.of()] == nil: // it has been unlocked since
		return token.Auth{}, nil
	}
	return w.once(ctx, t) // unlocked is not enough
}

// eachTime reports whether a PIN is for one operation.
func (w *wait) eachTime() bool {
	return w.Policy.PIN == token.PINAlways || errors.Is(w.Err, token.ErrEachTime)
}

func (w *wait) of() pinOf { return pinOf{w.Token, w.Subject.Udf} }

func isLocked(t token.Token) bool { return t.Info().State == token.StateLocked }

// wait notes for StatusRequest that a plea waits, until done is called.
func (a *Agent) wait(w *wait) (done func()) {
	a.prompts.mu.Lock()
	defer a.prompts.mu.Unlock()
	a.prompts.waiting = append(a.prompts.waiting, w)
	return func() {
		a.prompts.mu.Lock()
		defer a.prompts.mu.Unlock()
		i := slices.Index(a.prompts.waiting, w)
		a.prompts.waiting = slices.Delete(a.prompts.waiting, i, i+1)
	}
}

// clients are the processes that wait for the answer: to have a token unlocked, all that want that.
func (w *wait) clients() []int32 {
	w.prompts.mu.Lock()
	defer w.prompts.mu.Unlock()
	pids := []int32{w.pid}
	if u := w.prompts.unlocks[w.Token]; u != nil && !w.eachTime() {
		for _, other := range w.prompts.waiting {
			if other.Token == w.Token && !slices.Contains(pids, other.pid) {
				pids = append(pids, other.pid)
			}
		}
	}
	return pids
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
	for _, w := range waiting[:min(len(waiting), maxListed)] {
		info.Waiting = append(info.Waiting, mesh.PromptWait{Token: w.Token, KeyId: w.Subject.Udf, For: w.deed, Client: w.client(), PID: int(w.pid)})
	}
	return info
}

// once gets a PIN for one operation, or the one with which this operation has used the key already.
func (w *wait) once(ctx context.Context, t token.Token) (token.Auth, error) {
	held := w.held[w.of()]
	switch {
	case held == nil:
		held = &pin{}
		w.held[w.of()] = held
	case w.Offered == 0:
		held.again = true
		if err := w.spare(ctx, t); err != nil {
			return token.Auth{}, err
		}
		return token.Auth{PIN: slices.Clone(held.octets)}, nil
	case held.again: // and it is not right any more
		return token.Auth{}, w.Err
	}
	n := w.Need
	for held.asked < maxAsked {
		held.asked++
		entered, last, err := w.question(ctx, t, n)
		if err != nil {
			return token.Auth{}, err
		}
		if err = w.spend(ctx, t, entered, last); err == nil {
			clear(held.octets)
			held.octets = entered
			return token.Auth{PIN: slices.Clone(entered)}, nil
		}
		clear(entered)
		if !errors.Is(err, token.ErrAuthNeeded) {
			return token.Auth{}, err
		}
		n.Err = err
	}
	return token.Auth{}, &unanswered{n.Err, errWrong}
}

// errWrong is why nobody is asked any more.
var errWrong = errors.New("asked often enough")

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
func (w *wait) unlock(ctx context.Context, t token.Token, u token.Unlocker) error {
	if !isLocked(t) && w.Offered == 0 { // it has been unlocked since
		return nil
	}
	n := w.Need
	for range maxAsked {
		pin, last, err := w.question(ctx, t, n)
		if err != nil {
			return err
		}
		err = w.present(ctx, t, u, pin, last)
		clear(pin)
		if !errors.Is(err, token.ErrAuthWrong) && !errors.Is(err, token.ErrAuthNeeded) {
			return err
		}
		n.Err = err
	}
	return &unanswered{n.Err, errWrong}
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

// question asks for a PIN. With one try left it asks first whether that may be used up; last says that
// it may. The error is *unanswered, or that of the token.
func (w *wait) question(ctx context.Context, t token.Token, n keyring.Need) (pin []byte, last bool, err error) {
	known := token.TriesUnknown
	var about *token.AuthError
	if errors.As(n.Err, &about) {
		known = about.TriesLeft
	}
	left, err := w.triesLeft(ctx, t, known)
	if err != nil {
		return nil, false, err
	}
	w.log.Info("asking for a PIN", "token", n.Token, "key", n.Subject.Udf, "for", w.deed, "pid", w.pid)
	if last = left == 1; last {
		err = w.config.Prompter.Confirm(ctx, prompt.Question{Title: "mesh-agent", Text: w.lastTry(), Clients: w.clients})
	}
	if err == nil {
		pin, err = w.config.Prompter.PIN(ctx, w.words(n, left))
	}
	if err != nil {
		return nil, false, &unanswered{n.Err, err}
	}
	return pin, last, nil
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

// unanswered says that a question had no answer, or no right one.
type unanswered struct {
	needed error // about the PIN
	why    error
}

// Error says what is needed, and why it is not there.
func (u *unanswered) Error() string { return authText(u.needed) + ": " + u.why.Error() }

// refused is the answer to a client if a question has none.
func (w *wait) refused(u *unanswered) error {
	var broken *prompt.ProgramError
	switch {
	case errors.As(u.why, &broken):
		w.log.Warn("prompt failed", "token", w.Token, "err", u.why, "mend", broken.Mend)
	case errors.Is(u.why, prompt.ErrBusy):
		return &failure{statusTooMany, u.why.Error()}
	case !errors.Is(u.why, prompt.ErrRefused) && !errors.Is(u.why, prompt.ErrNoAnswer) && u.why != errWrong:
		return u.why
	}
	return &failure{statusAuth, u.Error()}
}

// lastTry asks whether the last try may be used up.
func (w *wait) lastTry() string {
	return fmt.Sprintf("One try is left for the PIN of the token %s. If the next PIN is wrong, the token takes no PIN any more.\n%s\nUse up the last try?",
		prompt.Line(w.Token), w.reason(w.Subject)+w.askers())
}

// words are what asks for the PIN.
func (w *wait) words(n keyring.Need, left int) prompt.Question {
	lines := []string{"PIN of the token " + prompt.Line(n.Token), w.reason(n.Subject) + w.askers()}
	if w.eachTime() {
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
	q := prompt.Question{Title: "mesh-agent", Text: strings.Join(lines, "\n"), Prompt: "PIN", Clients: w.clients}
	switch {
	case errors.Is(n.Err, token.ErrRefused):
		q.Error = "The token has refused that PIN before. It was not presented again."
	case errors.Is(n.Err, token.ErrAuthWrong):
		q.Error = "That PIN was wrong."
	}
	return q
}

// reason begins the two lines that say what is to be done, with which key if it is one, and who asks for it.
func (p *plea) reason(s keyring.Subject) string {
	names := s.Udf
	switch label := prompt.Line(s.Label); {
	case label != "" && names != "":
		names = label + ", " + names
	case label != "":
		names = label
	}
	what := "For " + p.deed
	if names != "" {
		what = "Key: " + names + ", for " + p.deed
	}
	return what + "\nAsked for by: "
}

// maxAskers is how many programs a question names.
const maxAskers = 3

// askers names the programs that wait for an answer, the one whose words the question has first.
func (w *wait) askers() string {
	pids := w.clients()
	var names []string
	for _, pid := range pids[:min(len(pids), maxAskers)] {
		names = append(names, (&request{pid: pid}).client())
	}
	if more := len(pids) - maxAskers; more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, "; ")
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
