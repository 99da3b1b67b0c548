// Package softkey is the token in software: keys of every algorithm, in the agent's
// memory while they are in use and encrypted where they are stored.
//
// A handle is the private key, sealed with XChaCha20-Poly1305 under a key that follows from
// the token's master key, and bound to its public key, its use and the caller's
// associated data. The master key lies in a file of its own: protected by a passphrase in
// the age format (age-encryption.org/v1, scrypt), or, where that was chosen explicitly, in
// the clear.
//
// The package stores no handles and decides nothing about who may use a key. It does not
// lock memory: an attacker who reads the agent's memory, or its swap, has the open keys.
package softkey

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"github.com/mesh-agent/mesh-agent/internal/durable"
	"github.com/mesh-agent/mesh-agent/token"
)

// Name is the name of this token, of which there is one.
const Name = "soft"

// Options say how the master key is kept. The zero value opens nothing.
type Options struct {
	// Passphrase protects the master key. It is not empty. The caller wipes it; a copy
	// inside the age library cannot be wiped.
	Passphrase []byte
	// Insecure keeps the master key in the clear instead: whoever can read the files has
	// the keys. Passphrase must be empty then.
	Insecure bool
	// WorkFactor is the base-2 logarithm of the cost of scrypt for a new store; 0 is 18,
	// about a second and 256 MB. Smaller values are for tests.
	WorkFactor int
}

// Token is the software token.
type Token struct {
	description string
	sealer      sealer

	mu     sync.Mutex
	open   map[io.Closer]struct{} // guarded by mu: keys that hold a secret
	closed bool                   // guarded by mu
}

var (
	_ token.Token     = (*Token)(nil)
	_ token.Generator = (*Token)(nil)
	_ token.Importer  = (*Token)(nil)
)

// Open opens the token whose master key is in the folder dir, and makes a new one if there
// is none. The folder is created with mode 0700 if it is missing; one process at a time may
// use it, for which the caller sees. How the master key is kept is fixed when it is made:
// the errors are ErrProtected and ErrInsecure for the other way, ErrPassphrase for a wrong
// passphrase, and token.ErrCorrupt for a damaged file.
func Open(dir string, opts Options) (*Token, error) {
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("open software keys: %w", err)
	}
	folder, err := durable.OpenFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("open software keys: %w", err)
	}
	master, err := openMaster(folder, opts)
	if err := errors.Join(err, folder.Close()); err != nil {
		master.Wipe()
		return nil, fmt.Errorf("open software keys: %w", err)
	}
	defer master.Wipe()
	s, err := newSealer(master)
	if err != nil {
		return nil, fmt.Errorf("open software keys: %w", err)
	}
	description := "software keys, protected by a passphrase"
	if opts.Insecure {
		description = "software keys, INSECURE: their master key is not protected"
	}
	return &Token{description: description, sealer: s, open: make(map[io.Closer]struct{})}, nil
}

func (o Options) check() error {
	switch {
	case o.Insecure && len(o.Passphrase) != 0:
		return errors.New("a passphrase and insecure keys exclude each other")
	case !o.Insecure && len(o.Passphrase) == 0:
		return errors.New("empty passphrase")
	case o.WorkFactor < 0 || o.WorkFactor > maxWorkFactor:
		return fmt.Errorf("work factor %d, want 1 to %d", o.WorkFactor, maxWorkFactor)
	}
	return nil
}

// Info describes the token.
func (t *Token) Info() token.Info {
	return token.Info{
		Name: Name, Kind: "software", Description: t.description,
		Parallel: runtime.GOMAXPROCS(0), State: token.StateReady,
		Protection: token.ProtectionSoftware, Algorithms: token.Algorithms(),
	}
}

// Generate makes a key with the operating system's randomness. An RSA key can take
// seconds, during which the end of ctx is not noticed.
func (t *Token) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	if err := t.ready(ctx); err != nil {
		return token.Created{}, err
	}
	if err := errors.Join(supported(req.Algorithm, req.Use), asksNothing(req.Policy)); err != nil {
		return token.Created{}, err
	}
	m, err := generate(req.Algorithm, req.Use)
	if err != nil {
		return token.Created{}, fmt.Errorf("generate %s key: %w", req.Algorithm, err)
	}
	defer m.wipe()
	return t.seal(m, req.Use, req.Associated)
}

// Import takes a seed, a scalar or an RSA key. A scalar on Ed25519 or Ed448 with a use
// that signs becomes a composite signing key.
func (t *Token) Import(ctx context.Context, req token.ImportRequest) (token.Created, error) {
	if err := t.ready(ctx); err != nil {
		return token.Created{}, err
	}
	if req.Private == nil {
		return token.Created{}, fmt.Errorf("import key: %w: none given", token.ErrBadKey)
	}
	if err := errors.Join(supported(req.Private.Algorithm, req.Use), asksNothing(req.Policy)); err != nil {
		return token.Created{}, err
	}
	m, err := newMaterial(req.Private, req.Use)
	if err != nil {
		return token.Created{}, fmt.Errorf("import %s key: %w", req.Private.Algorithm, err)
	}
	defer m.wipe()
	return t.seal(m, req.Use, req.Associated)
}

// seal makes a handle of private material, after making the key of it once to learn
// its public key and that it works.
func (t *Token) seal(m material, use token.Use, associated []byte) (token.Created, error) {
	key, err := m.key(use)
	if err != nil {
		return token.Created{}, err
	}
	defer key.Close()
	public := key.Public()
	handle, err := t.sealer.seal(m, identity{public, use, associated})
	if err != nil {
		return token.Created{}, err
	}
	return token.Created{Handle: handle, Public: public, Protection: token.ProtectionSoftware}, nil
}

// Open decrypts a handle. The key is in memory until it, as an io.Closer, or the token
// is closed. Whatever is wrong with handle and identity is token.ErrCorrupt.
func (t *Token) Open(ctx context.Context, req token.OpenRequest) (token.Key, error) {
	if err := t.ready(ctx); err != nil {
		return nil, err
	}
	m, err := t.sealer.open(req.Handle, identity{req.Public, req.Use, req.Associated})
	if err != nil {
		return nil, err
	}
	defer m.wipe()
	key, err := m.key(req.Use)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrCorrupt, err)
	}
	if !key.Public().Equal(req.Public) {
		return nil, errors.Join(fmt.Errorf("%w: public key differs", token.ErrCorrupt), key.Close())
	}
	if err := t.keep(key); err != nil {
		return nil, errors.Join(err, key.Close())
	}
	return key, nil
}

// Close wipes all open keys, which waits for operations that run. Keys fail with
// token.ErrClosed afterwards.
func (t *Token) Close() error {
	t.mu.Lock()
	keys := t.open
	t.open, t.closed = nil, true
	t.mu.Unlock()
	var errs []error
	for key := range keys {
		errs = append(errs, key.Close())
	}
	return errors.Join(errs...)
}

func (t *Token) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return token.ErrClosed
	}
	return nil
}

// keep remembers an open key for Close, until the key is closed.
func (t *Token) keep(key softKey) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return token.ErrClosed
	}
	t.open[key] = struct{}{}
	key.onClose(func() { t.drop(key) })
	return nil
}

func (t *Token) drop(key softKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, key) // fine on a nil map
}

// asksNothing refuses policies: there is neither a PIN nor anything to touch.
func asksNothing(p token.Policy) error {
	if p.PIN != token.PINDefault && p.PIN != token.PINNever || p.Touch != token.TouchDefault && p.Touch != token.TouchNever {
		return fmt.Errorf("software keys with PIN %q and touch %q: %w", string(p.PIN), string(p.Touch), token.ErrUnsupported)
	}
	return nil
}

func supported(a token.Algorithm, u token.Use) error {
	if !slices.Contains(token.Algorithms(), a) {
		return fmt.Errorf("algorithm %q: %w", string(a), token.ErrUnsupported)
	}
	return u.Allows(a)
}
