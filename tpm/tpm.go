// Package tpm keeps keys in a TPM 2.0, as far as the TPM has their algorithms: ECDSA and
// key agreement that returns the whole point on P-256, P-384 and P-521, RSA signatures and
// decryption. It seals secrets of any length, to the TPM alone, to a PIN, and to the
// platform's measured state, and proves to others far away which keys are in it.
//
// Keys are generated in the TPM, or imported, under its ECC storage root key (TCG TPM v2.0
// Provisioning Guidance, 7.5.1) and leave it encrypted under that key: a handle is a TSS2
// key file and its parent's Name, useless without this TPM. A key has one use, which is bound
// to it with the request's associated data: the TPM refuses to load a key with other ones
// (see binding). Keys made by other programs can be adopted; those are not bound.
//
// One session, salted to the storage root key, authorizes every command and encrypts its
// parameters, so that no authorization value, no unsealed secret and no agreement is ever
// seen between this process and the TPM, and nothing between them can answer in the
// TPM's place. Which TPM that is, is decided at first use: Options.StateDir keeps the Name of
// its storage root key.
//
// Keys stay loaded while there is room, so that a warm operation is one TPM command. Operations
// take turns; a restarted or reset TPM is found out on next use, and everything
// is loaded again.
//
// The package does not make the TPM's owner hierarchy usable if it has a password, does not
// count what it does against several processes (one Token per StateDir), and keeps the
// secret behind the PIN in ordinary memory while unlocked.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// DefaultDevice is the TPM behind the kernel's resource manager.
const DefaultDevice = "/dev/tpmrm0"

// Options says which TPM to use and how. The zero value is the machine's own TPM.
type Options struct {
	// Device is a device file, "/dev/tpmrm0" by default, also written "device:PATH"; or
	// "swtpm:PATH" for the data socket of a software TPM, or "tcp:HOST:PORT" for one that
	// talks as Microsoft's simulator does (swtpm does). Of the last two, which
	// nothing protects on their way but this package's sessions, this process must have
	// the TPM to itself.
	Device string
	// StateDir is a folder, made if need be, for what is to be known of the TPM next time:
	// the file "srk" with the Name of its storage root key, and "pin" with the
	// PIN object. Another storage root key makes the token StateReplaced. To enrol the TPM
	// that is there now, remove the folder: keys, sealed secrets and PIN of the earlier one
	// are lost with it. Empty keeps nothing, and takes any TPM.
	StateDir string
	// Timeout is how long one TPM command may take until the TPM counts as absent. Zero
	// means a minute: some TPMs need many seconds for CreatePrimary.
	Timeout time.Duration

	// MayBeAbsent makes Open succeed where the TPM is not there: the token is StateAbsent and
	// looks for the TPM at each use.
	MayBeAbsent bool

	dial dialer // instead of Device, for tests
}

const (
	defaultTimeout = time.Minute
	closeGrace     = 2 * time.Second
)

// Token is a TPM. Its methods may be called from several goroutines at once; the TPM
// does one thing at a time.
type Token struct {
	device     string // Options.Device
	state      stateDir
	pin        *pinState
	turn       chan struct{} // holds one value while somebody uses the connection
	connection connection
	quit       chan struct{} // closed by Close: no more operations
	closing    sync.Once
	interrupt  context.CancelFunc // ends the command in flight
	info       atomic.Pointer[token.Info]
}

var (
	_ token.Token     = (*Token)(nil)
	_ token.Generator = (*Token)(nil)
	_ token.Importer  = (*Token)(nil)
	_ token.PINSetter = (*Token)(nil)
	_ token.Locker    = (*Token)(nil)
	_ token.Sealer    = (*Token)(nil)
	_ token.Adopter   = (*Token)(nil)
	_ token.Exporter  = (*Token)(nil)
	_ token.Doctor    = (*Token)(nil)
)

// Open connects to the TPM, finds out what it can do and makes the storage root key
// ready. A TPM that is not the one of Options.StateDir gives a Token all the same, which is
// StateReplaced and does nothing until the right TPM is back.
// Errors: token.ErrAbsent if the TPM is not there or does not answer, unless it may be;
// token.ErrCorrupt if a file of StateDir is damaged.
func Open(ctx context.Context, o Options) (*Token, error) {
	if o.Device == "" {
		o.Device = DefaultDevice
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.dial == nil {
		var err error
		if o.dial, err = parseDevice(o.Device); err != nil {
			return nil, err
		}
	}
	t, err := newToken(o)
	if err != nil {
		return nil, fmt.Errorf("tpm: open %s: %w", o.Device, err)
	}
	_, err = do(ctx, t, "open "+o.Device, func(*device) (struct{}, error) { return struct{}{}, nil })
	if err != nil && !errors.Is(err, token.ErrReplaced) && !(o.MayBeAbsent && errors.Is(err, token.ErrAbsent)) {
		t.interrupt()
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// newToken returns the token of a TPM that is not connected yet.
func newToken(o Options) (*Token, error) {
	state := stateDir(o.StateDir)
	pinned, err := state.pinned()
	if err != nil {
		return nil, err
	}
	file, err := state.read(pinFile)
	if err != nil {
		return nil, err
	}
	pin, err := newPINState(file)
	if err != nil {
		return nil, err
	}
	life, interrupt := context.WithCancel(context.Background())
	t := &Token{
		device: o.Device, state: state, pin: pin,
		turn: make(chan struct{}, 1), quit: make(chan struct{}), interrupt: interrupt,
	}
	t.connection = connection{token: t, options: o, life: life, pinned: pinned}
	t.info.Store(&token.Info{Name: "tpm", Kind: "tpm", Parallel: 1, State: token.StateAbsent, Protection: token.ProtectionToken})
	return t, nil
}

// Info describes the TPM as it was last seen. It is StateLocked while there is a PIN that
// was not presented; keys that need none can be used.
func (t *Token) Info() token.Info {
	info := *t.info.Load()
	info.Algorithms = slices.Clone(info.Algorithms)
	if info.State == token.StateReady && t.pin.locked() {
		info.State = token.StateLocked
	}
	return info
}

// Close waits for the command in flight, no longer than two seconds, unloads the keys
// and closes the device. A second Close does nothing.
func (t *Token) Close() error {
	t.closing.Do(func() {
		close(t.quit)
		timer := time.AfterFunc(closeGrace, t.interrupt)
		defer timer.Stop()
		t.turn <- struct{}{} // for good
		t.connection.leave()
		t.interrupt()
		t.pin.close()
	})
	return nil
}

// Generate makes a key in the TPM and binds it to its use and associated data.
// Errors: token.ErrUnsupported, token.ErrAuthNeeded (with ErrNoPIN if there is none), token.ErrAuthWrong,
// token.ErrLockedOut, token.ErrAbsent, token.ErrReplaced.
func (t *Token) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	if err := t.find(ctx); err != nil {
		return token.Created{}, err
	}
	o, err := t.prepare(req.Algorithm, req.Use, req.Policy, req.Auth)
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: generate key: %w", err)
	}
	defer o.wipe()
	p := purposeOf(req.Algorithm, req.Use)
	b, err := do(ctx, t, "generate key", func(d *device) (*blob, error) {
		value, err := o.keyValue(d, ownKeys)
		if err != nil {
			return nil, err
		}
		defer clear(value)
		template, err := keyTemplate(req.Algorithm, p, o != nil, keyBinding(d.srk.Name.Buffer, req.Use, req.Associated))
		if err != nil {
			return nil, err
		}
		created, err := d.create(template, value, nil)
		if err != nil {
			return nil, err
		}
		return checkCreated(created, template)
	})
	t.pin.learn(req.Auth.PIN, err)
	if err != nil {
		return token.Created{}, err
	}
	return created(b)
}

// prepare checks what is asked of a new key. The offer is nil if the key needs no PIN.
func (t *Token) prepare(a token.Algorithm, u token.Use, policy token.Policy, auth token.Auth) (*offer, error) {
	if err := t.supports(a, u); err != nil {
		return nil, err
	}
	if policy.Touch != token.TouchDefault && policy.Touch != token.TouchNever {
		return nil, fmt.Errorf("a TPM feels no touch: %w", token.ErrUnsupported)
	}
	return t.offerFor(policy.PIN, auth)
}

func (t *Token) offerFor(policy token.PINPolicy, auth token.Auth) (*offer, error) {
	switch policy {
	case token.PINDefault, token.PINNever:
		return nil, nil
	case token.PINOnce:
		return t.pin.offer(auth)
	}
	return nil, fmt.Errorf("a TPM cannot hold a key to PIN policy %q: %w", string(policy), token.ErrUnsupported)
}

// checkCreated holds a new key to its template: all but the key itself must be the same.
func checkCreated(o object, template tpm2.TPMTPublic) (*blob, error) {
	b, err := newBlob(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	if !b.fits(template) {
		return nil, fmt.Errorf("%w: not the key that was asked for", token.ErrFault)
	}
	return b, nil
}

func created(b *blob) (token.Created, error) {
	handle, err := b.encode()
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: encode key: %w", err)
	}
	return token.Created{Handle: handle, Public: b.key, Protection: token.ProtectionToken}, nil
}

// find looks for a TPM that was never there, before it is said what it cannot do.
func (t *Token) find(ctx context.Context) error {
	if len(t.info.Load().Algorithms) != 0 {
		return nil
	}
	_, err := do(ctx, t, "find TPM", func(*device) (struct{}, error) { return struct{}{}, nil })
	return err
}

func (t *Token) supports(a token.Algorithm, u token.Use) error {
	if err := u.Allows(a); err != nil {
		return err
	}
	if !slices.Contains(t.info.Load().Algorithms, a) {
		return fmt.Errorf("this TPM has no %s keys: %w", string(a), token.ErrUnsupported)
	}
	if purposeOf(a, u) == purposeNone {
		return fmt.Errorf("a key in a TPM cannot have use %q: %w", string(u), token.ErrUnsupported)
	}
	return nil
}

// Open loads a key into the TPM and checks that it is the key of req.Public, made for
// req.Use and with req.Associated. Of a key that was adopted it checks that it can be used for
// req.Use. Of one that is not said to be imported it checks that it was generated here. It needs no PIN.
// Errors: token.ErrCorrupt; token.ErrReplaced for a key of another TPM; token.ErrAbsent.
func (t *Token) Open(ctx context.Context, req token.OpenRequest) (token.Key, error) {
	b, err := decodeBlob(req.Handle)
	if err == nil {
		err = b.check(req)
	}
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	load := func(d *device) (struct{}, error) { return struct{}{}, d.reload(&b.object) }
	if _, err := do(ctx, t, "open key", load); err != nil {
		return nil, err
	}
	return newKey(t, b, purposeOf(b.key.Algorithm, req.Use))
}
