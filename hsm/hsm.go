// Package hsm keeps keys in PKCS #11 tokens: smart cards, HSMs, SoftHSM, NSS.
//
// A module, the vendor's shared library, is never loaded into the agent. It runs in a helper
// process of its own, which is this binary again (ServeModule), started with an empty
// environment and one socket. If the module crashes, hangs or corrupts its memory, the operations
// that it had fail, and a new process takes its place. Only the configuration names modules.
//
// A token is found by a PKCS #11 URI and bound by its serial number, a key by its CKA_ID and
// its public key. What the token returns is not believed: signatures are verified, and
// agreements are checked by the recovery of the whole point, which takes two multiplications and
// makes tokens that return one coordinate hold key shares (keyshare.RecoverPoint).
//
// The PIN that unlocked a token is kept in memory until the token is closed, to log in again when
// the module's process had to be replaced. A PIN that the token refused is not presented again.
//
// The package does not initialize tokens, set PINs, or read certificates. It needs cgo in
// the helper process only. Raw scalars of Ed25519 and Ed448, and shares of EdDSA and RSA keys, are
// not possible in such tokens.
package hsm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/secret"
	"github.com/mesh-agent/mesh-agent/token"
)

// Options says which token to open.
type Options struct {
	Module *Module
	// URI names one token of the module. Its attributes object, id and type are not looked at.
	URI URI
	// Name is Info.Name; empty means the URI.
	Name string
	// Wait is how long Open waits for a module that does not answer; 0 is 10 seconds.
	Wait time.Duration
}

// Token is a PKCS #11 token. Its methods may be called from several goroutines at once.
type Token struct {
	module *Module
	uri    URI
	name   string
	info   atomic.Pointer[token.Info]
	bound  atomic.Pointer[binding] // nil while there is no token
	seen   atomic.Pointer[tokenInfo]

	copies   sync.Map      // of keys, *place by CKA_ID
	locating chan struct{} // holds one value; taken to find a private key
	closed   atomic.Bool
	life     context.Context // ends with Close
	end      context.CancelFunc
	work     sync.WaitGroup
	search   chan struct{} // asks the searcher to look for the token

	sealing chan struct{}           // holds one value; taken to find or make the sealing key
	sealsTo atomic.Pointer[sealKey] // the sealing key, shown to be whole

	lock     chan struct{} // holds one value; taken to bind and to log in
	identity *tokenInfo    // guarded by lock, as all below: the token first seen
	pin      secret.Bytes  // that the token took last
	rejected rejected
	// mismatches counts the PINs that were offered since, and are not this one.
	mismatches int
	findings   []token.Finding // what probing showed
	probed     bool
}

var (
	_ token.Token     = (*Token)(nil)
	_ token.Generator = (*Token)(nil)
	_ token.Importer  = (*Token)(nil)
	_ token.Deleter   = (*Token)(nil)
	_ token.Unlocker  = (*Token)(nil)
	_ token.Sealer    = (*Token)(nil)
)

// tokenInfo is CK_TOKEN_INFO as far as it is used.
type tokenInfo struct {
	slot                                uint64
	label, manufacturer, model, serial  string
	flags, maxSessions, maxWriteSession uint64
}

// binding is a token in a slot of one helper process, in one state. It is immutable.
type binding struct {
	child      *child
	info       tokenInfo
	mechanisms mechanisms
	kinds      []kind
	loggedIn   bool
}

// needsLogin reports whether private keys are out of reach.
func (b *binding) needsLogin() bool { return b.info.flags&ckfLoginRequired != 0 && !b.loggedIn }

func (b *binding) kind(a token.Algorithm) (kind, bool) {
	for _, k := range b.kinds {
		if k.algorithm == a {
			return k, true
		}
	}
	return kind{}, false
}

const (
	searchInterval = 5 * time.Second
	defaultWait    = 10 * time.Second
)

// Open starts the module if need be and looks for the token. A token that is not there
// now, or whose module does not start or answer, is no error: Info says that it is absent, and it is found
// when it comes. An error means that the URI names several tokens (token.ErrBadRequest).
func Open(ctx context.Context, o Options) (*Token, error) {
	if o.Name == "" {
		u := o.URI
		u.Object, u.ID, u.Type = "", nil, ""
		o.Name = u.String()
	}
	t := &Token{
		module: o.Module, uri: o.URI, name: o.Name,
		lock: make(chan struct{}, 1), search: make(chan struct{}, 1), sealing: make(chan struct{}, 1), locating: make(chan struct{}, 1),
	}
	t.life, t.end = context.WithCancel(context.Background())
	t.setInfo(nil, token.StateAbsent)
	t.module.hold()
	err := t.bindWithin(ctx, cmp.Or(o.Wait, defaultWait))
	if err != nil && !errors.Is(err, token.ErrAbsent) && !errors.Is(err, token.ErrReplaced) {
		t.end()
		t.module.release()
		return nil, fmt.Errorf("pkcs11: open token: %w", err)
	}
	t.work.Go(t.searcher)
	if err != nil {
		t.lookAgain()
	}
	return t, nil
}

// bindWithin finds the token. A module that takes longer than wait is absent.
func (t *Token) bindWithin(ctx context.Context, wait time.Duration) error {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, err := t.bind(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return ErrHangs
	}
	return err
}

// Info describes the token as it was last seen.
func (t *Token) Info() token.Info {
	info := *t.info.Load()
	info.Algorithms = slices.Clone(info.Algorithms)
	return info
}

// Named reports whether name is a URI of this token: one that matches the token as it was last seen.
// A URI that names an object, or nothing, is of no token.
func (t *Token) Named(name string) bool {
	if !IsURI(name) {
		return false
	}
	u, err := ParseURI(name)
	if err != nil || u.Object != "" || u.ID != nil || u.Type != "" || u.String() == scheme {
		return false
	}
	seen := t.seen.Load()
	return seen != nil && u.matches(*seen)
}

// Close logs out and forgets the PIN. The last token of a module to close ends the module's
// process. A second Close does nothing.
func (t *Token) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	t.end()
	t.work.Wait()
	t.lock <- struct{}{}
	defer func() { <-t.lock }()
	t.pin.Wipe()
	t.pin = nil
	if b := t.bound.Swap(nil); b != nil && b.loggedIn && b.child.alive() {
		ctx, cancel := context.WithTimeout(context.Background(), retireGrace)
		defer cancel()
		t.module.call(ctx, b.child, &call{op: opLogout, slot: b.info.slot}) // a courtesy
	}
	t.setInfo(nil, token.StateAbsent)
	t.module.release()
	return nil
}

// setInfo publishes a state; b is nil if there is no token.
func (t *Token) setInfo(b *binding, s token.State) {
	info := token.Info{Name: t.name, Kind: "pkcs11", Parallel: 1, Protection: token.ProtectionToken}
	if old := t.info.Load(); old != nil {
		info = *old
	}
	info.State = s
	if b != nil {
		info.Description = b.info.describe()
		info.Parallel = b.info.parallel(t.module.options.Sessions)
		info.Algorithms = nil
		for _, k := range b.kinds {
			info.Algorithms = append(info.Algorithms, k.algorithm)
		}
	}
	t.info.Store(&info)
}

// describe names maker, model, serial number and label, in UTF-8 even if the token's own texts are not.
func (i tokenInfo) describe() string {
	text := strings.TrimSpace(fmt.Sprintf("%s %s, serial %s, %q", i.manufacturer, i.model, i.serial, i.label))
	return strings.ToValidUTF8(text, "\uFFFD")
}

// parallel returns how many operations are worth having under way: as many as there are sessions that
// do operations, and as many again that are on their way there or being verified here. One
// session is the anchor's, if there are two at least.
func (i tokenInfo) parallel(limit int) int {
	for _, most := range []uint64{i.maxSessions, i.maxWriteSession} {
		if most != 0 && most < 1<<31 { // 0 and CK_UNAVAILABLE_INFORMATION say nothing
			limit = min(limit, max(int(most)-1, 1))
		}
	}
	return 2 * limit
}

// take takes the lock unless ctx or the token ends.
func (t *Token) take(ctx context.Context) error {
	select {
	case t.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.life.Done():
		return token.ErrClosed
	}
}

// bind returns the token where it is now.
func (t *Token) bind(ctx context.Context) (*binding, error) {
	if t.life.Err() != nil {
		return nil, token.ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if b := t.bound.Load(); b != nil && b.child.alive() {
		return b, nil
	}
	if err := t.take(ctx); err != nil {
		return nil, err
	}
	defer func() { <-t.lock }()
	if b := t.bound.Load(); b != nil && b.child.alive() {
		return b, nil
	}
	b, err := t.findLocked(ctx)
	if err != nil {
		state := token.StateAbsent
		if errors.Is(err, token.ErrReplaced) {
			state = token.StateReplaced
		}
		t.setInfo(nil, state)
		t.lookAgain()
		return nil, err
	}
	if b = t.loginAgainLocked(ctx, b); !b.needsLogin() {
		t.probeLocked(ctx, b)
	}
	t.publishLocked(b)
	return b, nil
}

func (t *Token) publishLocked(b *binding) {
	t.bound.Store(b)
	state := token.StateReady
	if b.needsLogin() {
		state = token.StateLocked
	}
	t.setInfo(b, state)
}

// findLocked looks for the token in the module's slots.
func (t *Token) findLocked(ctx context.Context) (*binding, error) {
	c, err := t.module.ensure(ctx)
	if err != nil {
		return nil, err
	}
	slots, err := t.module.call(ctx, c, &call{op: opSlots})
	if err != nil {
		return nil, err
	}
	var found []tokenInfo
	for _, slot := range slots.numbers {
		info, err := t.tokenInfo(ctx, c, slot)
		if err != nil && (errors.Is(err, ErrCrashed) || errors.Is(err, ErrHangs) || ctx.Err() != nil) {
			return nil, err
		}
		if err == nil && info.flags&ckfTokenInitialized != 0 && t.uri.matches(info) {
			found = append(found, info)
		}
	}
	info, err := t.chooseLocked(found)
	if err != nil {
		if errors.Is(err, token.ErrAbsent) {
			t.module.reload(c) // a module may know its slots as they were when it was loaded
		}
		return nil, err
	}
	b := &binding{child: c, info: info, mechanisms: mechanisms{}}
	list, err := t.module.call(ctx, c, &call{op: opMechanism, slot: info.slot})
	if err != nil {
		return nil, err
	}
	for i := 0; i+2 < len(list.numbers); i += 3 {
		b.mechanisms[list.numbers[i]] = list.numbers[i+2]
	}
	if len(b.mechanisms) == 0 {
		return nil, fmt.Errorf("%w: the token has no mechanisms", token.ErrAbsent)
	}
	b.kinds = kinds(info.manufacturer, b.mechanisms)
	t.identity = &info
	t.seen.Store(&info)
	return b, nil
}

func (t *Token) chooseLocked(found []tokenInfo) (tokenInfo, error) {
	if len(found) == 0 {
		return tokenInfo{}, fmt.Errorf("%w: no token is %s", token.ErrAbsent, t.uri)
	}
	if t.identity == nil {
		if len(found) > 1 {
			return tokenInfo{}, fmt.Errorf("%w: %d tokens are %s; name one by its serial", token.ErrBadRequest, len(found), t.uri)
		}
		return found[0], nil
	}
	for _, i := range found {
		if i.serial == t.identity.serial && i.manufacturer == t.identity.manufacturer && i.model == t.identity.model {
			return i, nil
		}
	}
	return tokenInfo{}, fmt.Errorf("%w: serial %q instead of %q", token.ErrReplaced, found[0].serial, t.identity.serial)
}

// tokenInfo reads CK_TOKEN_INFO.
func (t *Token) tokenInfo(ctx context.Context, c *child, slot uint64) (tokenInfo, error) {
	r, err := t.module.call(ctx, c, &call{op: opToken, slot: slot})
	if err != nil {
		return tokenInfo{}, err
	}
	if len(r.numbers) != 3 || len(r.data) != 4 {
		return tokenInfo{}, errFrame
	}
	text := func(i int) string { return strings.TrimRight(string(r.data[i]), " \x00") }
	return tokenInfo{
		slot: slot, flags: r.numbers[0], maxSessions: r.numbers[1], maxWriteSession: r.numbers[2],
		label: text(0), manufacturer: text(1), model: text(2), serial: text(3),
	}, nil
}

// still reads CK_TOKEN_INFO anew. It is an error, as if the module had said so, if the token in the slot is another.
func (t *Token) still(ctx context.Context, b *binding) (tokenInfo, error) {
	now, err := t.tokenInfo(ctx, b.child, b.info.slot)
	if err == nil && now.serial != b.info.serial {
		err = fmt.Errorf("serial %q instead of %q: %w", now.serial, b.info.serial, ckrTokenNotPresent)
	}
	return now, err
}

// searcher looks for a token that went away, until Close.
func (t *Token) searcher() {
	for {
		select {
		case <-t.life.Done():
			return
		case <-t.search:
		}
		for wait := firstBackOff; ; wait = min(2*wait, searchInterval) {
			ctx, cancel := context.WithTimeout(t.life, t.module.options.Timeout)
			_, err := t.bind(ctx)
			cancel()
			if err == nil {
				break
			}
			timer := time.NewTimer(wait)
			select {
			case <-t.life.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
		}
	}
}

// lookAgain wakes the searcher.
func (t *Token) lookAgain() {
	select {
	case t.search <- struct{}{}:
	default:
	}
}

// use runs f with the token, logged in if it asks for that. If the module says that it has
// lost the device, its sessions or the login, f runs once more after that was mended; f
// must be an operation that had no effect in that case. When the module crashed or hangs, f is not
// run again: it may be what did it.
func (t *Token) use(ctx context.Context, auth token.Auth, what string, f func(*binding) error) error {
	ready := func(ctx context.Context) (*binding, error) { return t.ready(ctx, auth) }
	if err := t.again(ctx, ready, f); err != nil {
		return fmt.Errorf("pkcs11: %s: %w", what, err)
	}
	return nil
}

// again runs f with the token that find finds, once more if the token was lost before it had a PIN.
func (t *Token) again(ctx context.Context, find func(context.Context) (*binding, error), f func(*binding) error) error {
	err := t.try(ctx, find, f)
	if stale(err) && !errors.Is(err, errPresented) {
		err = t.try(ctx, find, f)
	}
	return err
}

func (t *Token) try(ctx context.Context, find func(context.Context) (*binding, error), f func(*binding) error) error {
	b, err := find(ctx)
	if err != nil {
		return err
	}
	err = f(b)
	if deviceLost(err) {
		t.module.reload(b.child)
	}
	if lost(err) {
		t.lose(b)
	}
	return err
}

// ready returns the token, logged in.
func (t *Token) ready(ctx context.Context, auth token.Auth) (*binding, error) {
	b, err := t.bind(ctx)
	if err != nil || !b.needsLogin() {
		return b, err
	}
	if len(auth.PIN) == 0 {
		return nil, t.pinNeeded(b)
	}
	if err := t.login(ctx, auth.PIN); err != nil {
		return nil, err
	}
	return t.bind(ctx)
}

// lost reports whether what is known of the token has to be found out again.
func lost(err error) bool {
	return stale(err) || errors.Is(err, ErrCrashed) || errors.Is(err, ErrHangs)
}

// stale reports whether an operation failed before it began, in a way that finding the
// token again may mend.
func stale(err error) bool {
	switch codeOf(err) {
	case ckrSessionInvalid, ckrSessionClosed, ckrUserNotLoggedIn:
		return true
	}
	return deviceLost(err) || errors.Is(err, errRetired)
}

func deviceLost(err error) bool {
	switch codeOf(err) {
	case ckrDeviceRemoved, ckrTokenNotPresent, ckrTokenNotRecognized, ckrDeviceError, ckrGeneralError,
		ckrNotInitialized, ckrSlotIDInvalid:
		return true
	}
	return false
}

// lose forgets where the token was.
func (t *Token) lose(b *binding) {
	if !t.bound.CompareAndSwap(b, nil) {
		return
	}
	t.setInfo(nil, token.StateAbsent)
	t.lookAgain()
}
