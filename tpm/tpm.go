// Package tpm keeps P-256, P-384 and P-521 keys in a TPM 2.0, as far as the TPM has
// these curves: ECDSA signatures and key agreement that returns the whole point.
//
// Keys are generated in the TPM under its ECC storage root key (TCG TPM v2.0 Provisioning
// Guidance, 7.5.1) and leave it encrypted under that key: the handle of a key is a
// TSS2 key file in DER, useless without this TPM. A key signs or agrees, never both, and
// the TPM enforces it. Keys stay loaded while there is room, so that a warm operation is one
// TPM command. One goroutine owns the TPM; a restarted or reset TPM is found out on next
// use, and everything is loaded again.
//
// The package does not bind the associated data of a request: the TPM has no place for it
// in a key. It tells signing from agreement, not one signing use from another. It does not
// use PINs, seal, attest, or import keys, and the commands to the TPM are not encrypted.
package tpm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mesh-agent/mesh-agent/token"
)

// DefaultDevice is the TPM behind the kernel's resource manager.
const DefaultDevice = "/dev/tpmrm0"

// Options says which TPM to use and how. The zero value is the machine's own TPM.
type Options struct {
	// Device is a device file, "/dev/tpmrm0" by default, or "swtpm:PATH" for the data
	// socket of a software TPM, which this process must have to itself.
	Device string
	// Timeout is how long one TPM command may take until the TPM counts as absent. Zero
	// means a minute: some TPMs need many seconds for CreatePrimary.
	Timeout time.Duration

	dial dialer // instead of Device, for tests
}

const (
	defaultTimeout = time.Minute
	closeGrace     = 2 * time.Second
)

// Token is a TPM. Its methods may be called from several goroutines at once; the TPM
// does one thing at a time.
type Token struct {
	requests  chan *request
	quit      chan struct{} // closed by Close: no more requests
	quitOnce  sync.Once
	interrupt context.CancelFunc // ends the command in flight
	done      chan struct{}      // closed when the worker has ended
	info      atomic.Pointer[token.Info]
}

var (
	_ token.Token     = (*Token)(nil)
	_ token.Generator = (*Token)(nil)
)

// Open connects to the TPM, finds out what it can do and makes the storage root key
// ready. Errors: token.ErrAbsent if the TPM is not there or does not answer.
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
	t := newToken(o)
	if _, err := do(ctx, t, "open "+o.Device, func(*device) (struct{}, error) { return struct{}{}, nil }); err != nil {
		t.interrupt()
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// newToken starts the worker of a TPM that is not connected yet.
func newToken(o Options) *Token {
	life, interrupt := context.WithCancel(context.Background())
	t := &Token{
		requests: make(chan *request), quit: make(chan struct{}),
		interrupt: interrupt, done: make(chan struct{}),
	}
	t.info.Store(&token.Info{Name: "tpm", Kind: "tpm", Parallel: 1, State: token.StateAbsent, Protection: token.ProtectionToken})
	w := &worker{token: t, options: o, life: life}
	go w.loop()
	return t
}

// Info describes the TPM as it was last seen.
func (t *Token) Info() token.Info {
	info := *t.info.Load()
	info.Algorithms = slices.Clone(info.Algorithms)
	return info
}

// Close waits for the command in flight, no longer than two seconds, unloads the keys
// and closes the device. A second Close does nothing.
func (t *Token) Close() error {
	t.quitOnce.Do(func() { close(t.quit) })
	timer := time.AfterFunc(closeGrace, t.interrupt)
	defer timer.Stop()
	<-t.done
	t.interrupt()
	return nil
}

// Generate makes a key in the TPM. Associated data is not bound.
// Errors: token.ErrUnsupported, token.ErrAbsent, token.ErrReplaced.
func (t *Token) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	if err := t.supports(req.Algorithm, req.Use); err != nil {
		return token.Created{}, fmt.Errorf("tpm: generate key: %w", err)
	}
	template, err := keyTemplate(req.Algorithm, purposeOf(req.Use))
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: generate key: %w", err)
	}
	b, err := do(ctx, t, "generate key", func(d *device) (*blob, error) { return d.create(template) })
	if err != nil {
		return token.Created{}, err
	}
	if b.public.Algorithm != req.Algorithm || b.purpose != purposeOf(req.Use) {
		return token.Created{}, fmt.Errorf("tpm: generate key: %w: not the key that was asked for", token.ErrFault)
	}
	handle, err := b.encode()
	if err != nil {
		return token.Created{}, fmt.Errorf("tpm: generate key: %w", err)
	}
	return token.Created{Handle: handle, Public: b.public, Protection: token.ProtectionToken}, nil
}

func (t *Token) supports(a token.Algorithm, u token.Use) error {
	if err := u.Allows(a); err != nil {
		return err
	}
	if !slices.Contains(t.info.Load().Algorithms, a) {
		return fmt.Errorf("this TPM has no %s keys: %w", string(a), token.ErrUnsupported)
	}
	if purposeOf(u) == purposeNone {
		return fmt.Errorf("a key in a TPM cannot have use %q: %w", string(u), token.ErrUnsupported)
	}
	return nil
}

// Open loads a key into the TPM and checks that it is the key of req.Public, made for
// the purpose of req.Use. Associated data is not compared.
// Errors: token.ErrCorrupt, which a key of another TPM gives too: the TPM does not tell them apart;
// token.ErrAbsent, token.ErrReplaced.
func (t *Token) Open(ctx context.Context, req token.OpenRequest) (token.Key, error) {
	b, err := decodeBlob(req.Handle)
	if err != nil {
		return nil, fmt.Errorf("tpm: open key: %w: %w", token.ErrCorrupt, err)
	}
	if !b.public.Equal(req.Public) {
		return nil, fmt.Errorf("tpm: open key: %w: public key is not that of the record", token.ErrCorrupt)
	}
	if b.purpose != purposeOf(req.Use) {
		return nil, fmt.Errorf("tpm: open key: %w: made to %s, used as %q", token.ErrCorrupt, b.purpose, string(req.Use))
	}
	load := func(d *device) (struct{}, error) { return struct{}{}, d.reload(b) }
	if _, err := do(ctx, t, "open key", load); err != nil {
		return nil, err
	}
	if b.purpose == purposeSign {
		return newSignKey(t, b)
	}
	return newAgreeKey(t, b)
}
