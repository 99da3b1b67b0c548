// Package piv keeps keys in a PIV card: a YubiKey, or another card that has the PIV application
// (NIST SP 800-73-4) with Yubico's extensions. It signs with P-256, P-384, RSA and Ed25519,
// decrypts with RSA, and agrees with P-256, P-384 and X25519, returning the whole point.
//
// The card is shared. It is reached through pcscd, without a C library, in transactions that
// last one operation; between operations other programs have it, and the card is let go when
// there has been nothing to do for some milliseconds. A token is one card, known by its serial number: an
// unplugged card, another one in the reader, a reset, a restart of pcscd are each an error of
// their own, and the next call finds the card again. Each time it is found, the public key
// of a slot is compared before the key is used.
//
// The PIN is kept until the card is removed, the token is locked or the card refuses it. The card's last try
// is not used up without being told to, and no PIN is given twice that was wrong.
//
// A handle is the serial number, the slot and hashes of the public key, its use and associated
// data: it finds mistakes, and anyone can make one. The card lets a key do whatever its
// algorithm can; the use is the agent's to hold. The package does not put certificates on the
// card, uses no contactless or biometric policies, and cannot tell what a card without
// metadata (before firmware 5.3) has in a slot unless there is a certificate or attestation.
package piv

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/token"
)

// Options says which card to use and how. Serial is required; the zero value of the rest is
// sensible.
type Options struct {
	// Serial is the serial number of the card, as printed on it.
	Serial uint32
	// Socket is pcscd's: $PCSCLITE_CSOCK_NAME or /run/pcscd/pcscd.comm by default.
	Socket string
	// ManagementKey is for cards on which the PIN does not open it (see Setup). The
	// token keeps it.
	ManagementKey []byte
	// Timeout is how long a call may take once its turn has come, touches included. Zero means
	// a minute, and five for generating keys.
	Timeout time.Duration
	// Patience is how long to wait for a program that has the card for itself. Zero means two seconds.
	Patience time.Duration
	// Linger is how long the card is kept connected, outside transactions, for the next call.
	// Zero means 20 milliseconds; programs that want the card for themselves are refused meanwhile.
	Linger time.Duration
	// Touch is told when the card begins to wait for a touch, and when that ends. It must
	// return at once. The context is that of the call which waits.
	Touch func(context.Context, TouchEvent)
	// State is told each new state of the card, without touches. It must return at once.
	State func(token.State)

	// For tests.
	only []token.Algorithm // instead of all that the firmware has
	hold time.Duration     // instead of maxHold
}

// TouchEvent says that a card waits for its user's touch, or no longer.
type TouchEvent struct {
	Token   string // Info.Name
	Slot    string // "9a"
	Waiting bool
	// Touches is how many the operation needs, this one included; 0 when not Waiting.
	Touches int
}

const (
	defaultTimeout  = time.Minute
	generateTimeout = 5 * time.Minute
	// openTimeout is how long Open waits for a card that does not answer, or that another program
	// has: its agent is not to be late for the others.
	openTimeout     = 3 * time.Second
	defaultPatience = 2 * time.Second
	defaultLinger   = 20 * time.Millisecond
	// maxHold is how long the card stays connected under load, so that other programs find a gap.
	maxHold    = 250 * time.Millisecond
	closeGrace = 2 * time.Second
)

// Token is a PIV card. Its methods may be called from several goroutines at once; the card
// does one thing at a time.
type Token struct {
	options   Options
	requests  chan *request
	gone      chan struct{} // has room for one: the card was seen to go
	quit      chan struct{} // closed by Close: no more requests
	quitOnce  sync.Once
	interrupt context.CancelFunc // ends what runs
	running   sync.WaitGroup     // worker and watcher
	info      atomic.Pointer[token.Info]
	bound     atomic.Pointer[place] // where the card was seen last; nil if it is not there
	touches   atomic.Int32          // how many are waited for
}

// place is a card's stay in a reader.
type place struct {
	reader string
	events uint32
}

var (
	_ token.Token           = (*Token)(nil)
	_ token.Generator       = (*Token)(nil)
	_ token.Importer        = (*Token)(nil)
	_ token.Deleter         = (*Token)(nil)
	_ token.Adopter         = (*Token)(nil)
	_ token.PINSetter       = (*Token)(nil)
	_ token.Locker          = (*Token)(nil)
	_ token.LastTryUnlocker = (*Token)(nil)
	_ token.Doctor          = (*Token)(nil)
	_ token.Attester        = (*Token)(nil)
)

// Open returns the token of a card and looks for the card, for three seconds at most. That it is not there, or does
// not answer, is no error: Info says so, and the token is ready when it comes. Errors: token.ErrBadRequest for options,
// the context's.
func Open(ctx context.Context, o Options) (*Token, error) {
	if o.Serial == 0 {
		return nil, fmt.Errorf("open PIV card: %w: no serial number", token.ErrBadRequest)
	}
	t := newToken(o.withDefaults())
	first := &request{ctx: ctx, timeout: min(orDefault(o.Timeout, defaultTimeout), openTimeout)}
	if _, err := perform[struct{}](t, "open", first, nil); ctx.Err() != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

func (o Options) withDefaults() Options {
	if o.Socket == "" {
		o.Socket = pcsc.SocketPath()
	}
	o.Patience = orDefault(o.Patience, defaultPatience)
	o.Linger = orDefault(o.Linger, defaultLinger)
	o.hold = orDefault(o.hold, maxHold)
	if o.Touch == nil {
		o.Touch = func(context.Context, TouchEvent) {}
	}
	if o.State == nil {
		o.State = func(token.State) {}
	}
	o.ManagementKey = slices.Clone(o.ManagementKey)
	return o
}

func orDefault(d, standard time.Duration) time.Duration {
	if d <= 0 {
		return standard
	}
	return d
}

func newToken(o Options) *Token {
	life, interrupt := context.WithCancel(context.Background())
	t := describe(o, interrupt)
	w := newWorker(t, life)
	t.running.Go(w.loop)
	t.running.Go(func() { watch(life, t) })
	return t
}

// describe returns a token without the goroutines that make it work.
func describe(o Options, interrupt context.CancelFunc) *Token {
	t := &Token{
		options: o, requests: make(chan *request), gone: make(chan struct{}, 1), quit: make(chan struct{}),
		interrupt: interrupt,
	}
	t.info.Store(&token.Info{
		Name: Name(o.Serial), Kind: "piv", Description: "PIV card", Parallel: 1,
		State: token.StateAbsent, Protection: token.ProtectionToken,
	})
	return t
}

// Name returns the name of the token of a serial number: "piv:5700001".
func Name(serial uint32) string { return "piv:" + strconv.FormatUint(uint64(serial), 10) }

// Info describes the card as it was last seen.
func (t *Token) Info() token.Info {
	info := *t.info.Load()
	info.Algorithms = slices.Clone(info.Algorithms)
	if n := t.touches.Load(); n > 0 {
		info.State, info.Touches = token.StateTouch, int(n)
	}
	return info
}

// Close waits for the operation that runs, no longer than two seconds, takes the PIN back from the card if it was kept, lets the card go and
// forgets the PIN. A second Close does nothing.
func (t *Token) Close() error {
	t.quitOnce.Do(func() { close(t.quit) })
	timer := time.AfterFunc(closeGrace, t.interrupt)
	defer timer.Stop()
	t.running.Wait()
	t.interrupt()
	return nil
}

// setState notes what is known of the card.
func (t *Token) setState(s token.State) {
	for {
		old := t.info.Load()
		if old.State == s {
			return
		}
		info := *old
		info.State = s
		if t.info.CompareAndSwap(old, &info) {
			t.options.State(s)
			return
		}
	}
}

// setFirmware notes what kind of card it is.
func (t *Token) setFirmware(v applet.Version) {
	for {
		old := t.info.Load()
		info := *old
		info.Description = fmt.Sprintf("PIV card %d, firmware %v", t.options.Serial, v)
		info.Algorithms = t.options.only
		if info.Algorithms == nil {
			info.Algorithms = applet.Algorithms(v)
		}
		if t.info.CompareAndSwap(old, &info) {
			return
		}
	}
}
