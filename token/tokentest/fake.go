package tokentest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mesh-agent/mesh-agent/token"
)

// Op names what a test scripts, holds and counts.
type Op string

// The operations of a Fake and of its keys.
const (
	OpOpen     Op = "open"
	OpGenerate Op = "generate"
	OpImport   Op = "import"
	OpDelete   Op = "delete"
	OpUnlock   Op = "unlock"
	OpSign     Op = "sign"
	OpAgree    Op = "agree" // Agree, AgreePoint
	OpDecrypt  Op = "decrypt"
	OpSplit    Op = "split"
)

// FakeOptions configures a Fake. The zero value is a token "fake" that needs no PIN.
type FakeOptions struct {
	// Name is Info.Name; empty means "fake".
	Name string
	// Kind is Info.Kind; empty means "software".
	Kind string
	// Parallel is Info.Parallel; zero means 1. The fake does not enforce it: MaxInFlight
	// tells whether the caller did.
	Parallel int
	// Protection is what the token says of its keys; empty means token.ProtectionToken.
	Protection token.Protection
	// Algorithms are those offered; nil means all but RSA, which is slow to generate.
	Algorithms []token.Algorithm
	// XOnly makes agreement keys token.Agreer instead of token.PointAgreer, as PIV cards are.
	XOnly bool
	// PIN, if not empty, is needed by Generate, Import, Delete and every key operation but
	// Split, which takes no Auth: from Unlock, once for all, or from the request's Auth.
	PIN []byte
	// PINAlways makes the PIN needed in each request; Unlock only checks it.
	PINAlways bool
	// Tries is the number of wrong PINs until lockout; zero means 3.
	Tries int
	// RetryAfter is the time that a lockout says it lasts; zero says nothing. The fake
	// stays locked out until ResetPIN.
	RetryAfter time.Duration
}

// Fake is a token in memory that does what a test tells it to. All methods may be
// called from several goroutines at once.
type Fake struct {
	options FakeOptions
	memory  *memory

	mu       sync.Mutex
	state    token.State // guarded by mu, as all below
	closed   bool
	unlocked bool
	tries    int
	before   map[Op][]error
	after    map[Op][]error
	holds    map[Op]*Hold
	calls    map[Op]int
	inFlight int
	most     int
}

// memory is the part of a Fake that survives Close.
type memory struct {
	mu      sync.Mutex
	objects map[string]*object // guarded by mu
}

var (
	_ token.Token     = (*Fake)(nil)
	_ token.Generator = (*Fake)(nil)
	_ token.Importer  = (*Fake)(nil)
	_ token.Deleter   = (*Fake)(nil)
	_ token.Unlocker  = (*Fake)(nil)
)

// NewFake returns an empty token.
func NewFake(o FakeOptions) *Fake {
	if o.Name == "" {
		o.Name = "fake"
	}
	if o.Kind == "" {
		o.Kind = "software"
	}
	if o.Parallel == 0 {
		o.Parallel = 1
	}
	if o.Protection == "" {
		o.Protection = token.ProtectionToken
	}
	if o.Algorithms == nil {
		o.Algorithms = slices.DeleteFunc(token.Algorithms(), func(a token.Algorithm) bool { return a.RSABits() != 0 })
	}
	if o.Tries == 0 {
		o.Tries = 3
	}
	return newFake(o, &memory{objects: map[string]*object{}})
}

func newFake(o FakeOptions, m *memory) *Fake {
	return &Fake{
		options: o, memory: m, state: token.StateReady, tries: o.Tries,
		before: map[Op][]error{}, after: map[Op][]error{}, holds: map[Op]*Hold{}, calls: map[Op]int{},
	}
}

// Reopen returns a new token over the same keys, with nothing scripted and no
// PIN presented, as if the device had been opened again.
func (f *Fake) Reopen() *Fake { return newFake(f.options, f.memory) }

// FailBefore makes the next calls of op return these errors, one each, without taking effect.
func (f *Fake) FailBefore(op Op, errs ...error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before[op] = append(f.before[op], errs...)
}

// FailAfter makes the next calls of op that would succeed take effect and return these
// errors, one each, as when an answer is lost on its way.
func (f *Fake) FailAfter(op Op, errs ...error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.after[op] = append(f.after[op], errs...)
}

// Hold stops all calls of an operation until Release.
type Hold struct {
	entered  chan struct{}
	released chan struct{}
	once     sync.Once
}

// Entered yields one value for each call that the hold has stopped (1000 at most).
func (h *Hold) Entered() <-chan struct{} { return h.entered }

// Release lets the stopped calls and all later ones pass. It may be called again.
func (h *Hold) Release() { h.once.Do(func() { close(h.released) }) }

// Hold stops the calls of op that come from now on, before they take effect. A stopped call
// returns when it is released or its context ends.
func (f *Fake) Hold(op Op) *Hold {
	h := &Hold{entered: make(chan struct{}, 1000), released: make(chan struct{})}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.holds[op] = h
	return h
}

// SetState makes the token absent, replaced, locked (its PIN is needed again) or ready.
// While it is absent or replaced every operation fails with the error of that name.
func (f *Fake) SetState(s token.State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state = s
	if s == token.StateLocked {
		f.state, f.unlocked = token.StateReady, false
	}
}

// ResetPIN ends a lockout.
func (f *Fake) ResetPIN() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tries = f.options.Tries
}

// Calls returns how often op was called, whatever became of it.
func (f *Fake) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// MaxInFlight returns the largest number of operations that were in the token at once.
func (f *Fake) MaxInFlight() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.most
}

// Keys returns the number of keys in the token.
func (f *Fake) Keys() int {
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	return len(f.memory.objects)
}

// Info describes the token. It is locked while a PIN is needed that no Unlock presented.
func (f *Fake) Info() token.Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	state := f.state
	if state == token.StateReady && len(f.options.PIN) > 0 && !f.unlocked && !f.options.PINAlways {
		state = token.StateLocked
	}
	return token.Info{
		Name: f.options.Name, Kind: f.options.Kind, Description: "fake token for tests",
		Parallel: f.options.Parallel, State: state, Protection: f.options.Protection,
		Algorithms: slices.Clone(f.options.Algorithms),
	}
}

// Close ends the use of this token; Reopen gives one over the same keys.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

// run is the course of every operation: count, hold, fail before, check the PIN, take effect, fail after.
func (f *Fake) run(ctx context.Context, op Op, needsPIN needsPIN, effect func() error) error {
	hold := f.enter(op)
	defer f.leave()
	if hold != nil {
		select {
		case hold.entered <- struct{}{}:
		default:
		}
		select {
		case <-hold.released:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := f.refuse(op, needsPIN); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if err := effect(); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return pop(f.after, op)
}

// needsPIN is what a request offers for an operation that needs the PIN; nil where none is needed.
type needsPIN *token.Auth

func (f *Fake) enter(op Op) *Hold {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	f.inFlight++
	f.most = max(f.most, f.inFlight)
	return f.holds[op]
}

func (f *Fake) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inFlight--
}

func (f *Fake) refuse(op Op, auth needsPIN) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return token.ErrClosed
	case f.state == token.StateAbsent:
		return token.ErrAbsent
	case f.state == token.StateReplaced:
		return token.ErrReplaced
	}
	if err := pop(f.before, op); err != nil {
		return err
	}
	if auth == nil || len(f.options.PIN) == 0 || f.unlocked && !f.options.PINAlways {
		return nil
	}
	return f.checkPINLocked(auth.PIN)
}

func (f *Fake) checkPINLocked(pin []byte) error {
	switch {
	case f.tries <= 0 && f.options.RetryAfter > 0:
		return &token.LockoutError{RetryAfter: f.options.RetryAfter}
	case f.tries <= 0:
		return token.ErrLockedOut
	case pin == nil:
		return &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: f.tries}
	case subtle.ConstantTimeCompare(pin, f.options.PIN) != 1:
		f.tries--
		return &token.AuthError{Reason: token.ErrAuthWrong, Kind: "PIN", TriesLeft: f.tries}
	}
	f.tries = f.options.Tries
	return nil
}

func pop(scripted map[Op][]error, op Op) error {
	errs := scripted[op]
	if len(errs) == 0 {
		return nil
	}
	scripted[op] = errs[1:]
	return errs[0]
}

// Unlock presents the PIN once. A token without PIN takes any.
func (f *Fake) Unlock(ctx context.Context, pin []byte) error {
	return f.run(ctx, OpUnlock, nil, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.options.PIN) == 0 {
			return nil
		}
		if err := f.checkPINLocked(pin); err != nil {
			return err
		}
		f.unlocked = true
		return nil
	})
}

// Generate makes a key.
func (f *Fake) Generate(ctx context.Context, req token.GenerateRequest) (created token.Created, err error) {
	err = f.run(ctx, OpGenerate, &req.Auth, func() error {
		if err := f.offers(req.Algorithm, req.Use); err != nil {
			return err
		}
		o, err := generateObject(req.Algorithm)
		if err != nil {
			return err
		}
		created = f.keep(o, req.Use, req.Associated)
		return nil
	})
	if err != nil {
		return token.Created{}, err
	}
	return created, nil
}

// Import stores a key.
func (f *Fake) Import(ctx context.Context, req token.ImportRequest) (created token.Created, err error) {
	err = f.run(ctx, OpImport, &req.Auth, func() error {
		if req.Private == nil {
			return fmt.Errorf("no private key: %w", token.ErrBadKey)
		}
		if err := f.offers(req.Private.Algorithm, req.Use); err != nil {
			return err
		}
		o, err := importObject(req.Private)
		if err != nil {
			return fmt.Errorf("%w: %w", token.ErrBadKey, err)
		}
		created = f.keep(o, req.Use, req.Associated)
		return nil
	})
	if err != nil {
		return token.Created{}, err
	}
	return created, nil
}

func (f *Fake) offers(a token.Algorithm, u token.Use) error {
	if !slices.Contains(f.options.Algorithms, a) {
		return fmt.Errorf("algorithm %q: %w", string(a), token.ErrUnsupported)
	}
	return u.Allows(a)
}

func (f *Fake) keep(o *object, u token.Use, associated []byte) token.Created {
	o.use, o.associated = u, bytes.Clone(associated)
	handle := "fake-key-" + rand.Text()
	f.memory.mu.Lock()
	defer f.memory.mu.Unlock()
	f.memory.objects[handle] = o
	return token.Created{Handle: []byte(handle), Public: o.Public(), Protection: f.options.Protection}
}

// Open returns a key that this token, or one that it was reopened from, made. The
// public key, the use and the associated data must be those it was made with.
func (f *Fake) Open(ctx context.Context, req token.OpenRequest) (key token.Key, err error) {
	err = f.run(ctx, OpOpen, nil, func() error {
		o, err := f.memory.find(req.Handle)
		if err != nil {
			return err
		}
		if o.use != req.Use || !o.Public().Equal(req.Public) || !bytes.Equal(o.associated, req.Associated) {
			return token.ErrCorrupt
		}
		key = f.keyOf(o, req.Handle)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return key, nil
}

// Delete destroys a key.
func (f *Fake) Delete(ctx context.Context, handle []byte) error {
	return f.run(ctx, OpDelete, nil, func() error {
		if _, err := f.memory.find(handle); err != nil {
			return err
		}
		f.memory.mu.Lock()
		defer f.memory.mu.Unlock()
		delete(f.memory.objects, string(handle))
		return nil
	})
}

func (m *memory) find(handle []byte) (*object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[string(handle)]
	if !ok {
		return nil, token.ErrNotFound
	}
	return o, nil
}
