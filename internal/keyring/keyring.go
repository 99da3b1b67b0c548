// Package keyring assembles keys from their records: keys in tokens, software keys and
// composites whose parts may live in several tokens. It is the one place that knows
// several tokens at once.
//
// It decides about uses only as far as a record's one use goes; who may do what is for
// the policy, whose turn it is for the gate, and both belong to the agent. It never sees
// a private key except on its way from an import into a token.
package keyring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/token"
)

// ErrUse says that the one use of a key does not permit this. Errors that wrap it begin with it.
var ErrUse = errors.New("use")

// ErrConflict says that the key is held already with another use, in another token or for
// other recipients. It wraps ErrUse; the *ConflictError around it says which.
var ErrConflict = fmt.Errorf("%w: key is held", ErrUse)

// ConflictError is ErrConflict with what the key is held as.
type ConflictError struct {
	Udf   string
	Use   token.Use
	Token string
	// Differs is "use", "token", "protection", "share-to", "tags", "sign of the public key" or
	// "composition".
	Differs string
}

// Error begins with "use" and says what the key is held as.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v: %s has use %q in token %q, the %s differs", ErrConflict, e.Udf, string(e.Use), e.Token, e.Differs)
}

// Unwrap returns ErrConflict.
func (e *ConflictError) Unwrap() error { return ErrConflict }

// Gate admits one operation to a token: it waits for a turn and returns the function that
// ends it. It may refuse, because the agent was locked or the policy changed meanwhile.
// A composite takes its parts' gates one after another, never two at once.
// A nil Gate admits everything.
type Gate func(ctx context.Context, tokenName string) (leave func(), err error)

func (g Gate) enter(ctx context.Context, tokenName string) (leave func(), err error) {
	if g == nil {
		return func() {}, ctx.Err()
	}
	return g(ctx, tokenName)
}

// Keyring holds the keys of one store. Its methods may be called from several goroutines
// at once.
type Keyring struct {
	store    *store.Store
	tokens   []token.Token
	software Software
	guard    *guard       // nil if the records are not guarded against rollback
	broken   []store.Part // of records that did not load: other keys leave these in their tokens
	snapshot atomic.Pointer[Snapshot]

	mu   sync.Mutex                 // never held across I/O
	busy map[[sha256.Size]byte]wait // guarded by mu: keys that are being added or deleted
}

// wait is closed when what is waited for is over.
type wait chan struct{}

// Config is what a Keyring is made of.
type Config struct {
	Store  *store.Store
	Tokens []token.Token
	// Software makes the keys that tokens seal. Without it sealed keys do not open.
	Software Software
	// RollbackGuard is the name of a token that counts changes of the records, so that
	// an old copy of them is noticed; empty for none. Once it was given it must be.
	RollbackGuard string
	// Companion is what the guard covers beside the records; nil for nothing. It is changed by
	// ChangeCompanion only.
	Companion Companion
}

// Open is OpenConfig without sealed keys.
func Open(st *store.Store, tokens ...token.Token) (*Keyring, error) {
	return OpenConfig(Config{Store: st, Tokens: tokens})
}

// OpenConfig reads the records of the store and takes over store and tokens: Close closes
// them, but after an error the caller does. It opens no key. It fails if the folder cannot be
// read or two tokens have one name, never because one record is bad: those are in
// Snapshot.Problems.
func OpenConfig(c Config) (*Keyring, error) {
	st := c.Store
	k := &Keyring{store: st, tokens: slices.Clone(c.Tokens), software: c.Software, busy: make(map[[sha256.Size]byte]wait)}
	if err := k.checkNames(); err != nil {
		return nil, err
	}
	var err error
	if k.guard, err = k.newGuard(c.RollbackGuard, c.Companion); err != nil {
		return nil, fmt.Errorf("open keyring: %w", err)
	}
	records, refused, err := st.Load()
	if err != nil {
		return nil, fmt.Errorf("open keyring: %w", err)
	}
	var problems []string
	for _, p := range refused {
		problems = append(problems, p.Error())
	}
	var slots []*slot
	for _, r := range records {
		s, err := k.newSlot(r)
		if err != nil {
			problems = append(problems, fmt.Sprintf("key %s: %v", r.Udf, err))
			k.broken = append(k.broken, r.Parts...)
			continue
		}
		slots = append(slots, s)
	}
	k.snapshot.Store(newSnapshot(slots, problems))
	return k, nil
}

func (k *Keyring) checkNames() error {
	seen := make(map[string]bool)
	for _, t := range k.tokens {
		name := t.Info().Name
		if seen[name] {
			return fmt.Errorf("open keyring: two tokens are named %q", name)
		}
		seen[name] = true
	}
	return nil
}

// Snapshot returns all keys as they are now. It does not block.
func (k *Keyring) Snapshot() *Snapshot { return k.snapshot.Load() }

// Tokens returns the tokens in the order given to Open.
func (k *Keyring) Tokens() []token.Token { return slices.Clone(k.tokens) }

// Token returns the token of this name, or token.ErrNotFound.
func (k *Keyring) Token(name string) (token.Token, error) {
	if t := k.lookup(name); t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("no token is named %q: %w", name, token.ErrNotFound)
}

// Named is a token that goes by other names than Info.Name too: a PKCS #11 token by each URI that
// names it. It must not do I/O.
type Named interface{ Named(name string) bool }

// lookup returns nil if there is no such token, or several go by this name.
func (k *Keyring) lookup(name string) token.Token {
	var found token.Token
	for _, t := range k.tokens {
		if t.Info().Name == name {
			return t
		}
	}
	for _, t := range k.tokens {
		if n, ok := t.(Named); ok && n.Named(name) {
			if found != nil {
				return nil
			}
			found = t
		}
	}
	return found
}

// Close closes the tokens, which ends all keys, wipes the sealed keys that are open, and
// closes the store.
func (k *Keyring) Close() error {
	errs := []error{k.forgetSealed("")}
	for _, t := range k.tokens {
		errs = append(errs, t.Close())
	}
	return errors.Join(append(errs, k.store.Close())...)
}

// reserve keeps others from adding or deleting the key of this index until release is
// called. It waits for its turn.
func (k *Keyring) reserve(ctx context.Context, index [sha256.Size]byte) (release func(), err error) {
	for {
		k.mu.Lock()
		turn, taken := k.busy[index]
		if !taken {
			turn = make(wait)
			k.busy[index] = turn
		}
		k.mu.Unlock()
		if !taken {
			return func() { k.release(index, turn) }, nil
		}
		select {
		case <-turn:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// reserveAll is reserve for several keys, of which some may be one. All take them in the same order.
func (k *Keyring) reserveAll(ctx context.Context, indices ...[sha256.Size]byte) (release func(), err error) {
	slices.SortFunc(indices, func(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) })
	var held []func()
	release = func() {
		for _, f := range slices.Backward(held) {
			f()
		}
	}
	for _, index := range slices.Compact(indices) {
		one, err := k.reserve(ctx, index)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, one)
	}
	return release, nil
}

func (k *Keyring) release(index [sha256.Size]byte, turn wait) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.busy, index)
	close(turn)
}

// publish replaces the snapshot by a changed one.
func (k *Keyring) publish(change func(*Snapshot) *Snapshot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.snapshot.Store(change(k.snapshot.Load()))
}
