package tpm

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/internal/secret"
	"github.com/mesh-agent/mesh-agent/token"
)

// A TPM has no PIN of its own, only authorization values of objects. The PIN here is that of
// one sealed object with dictionary-attack protection, which holds a random secret.
// The authorization values of all keys and sealed data that need the PIN are derived from
// the secret, so that one TPM2_Unseal checks a PIN, changing the PIN leaves the keys alone,
// and nothing that the TPM compares with a key can be guessed.

// ErrNoPIN says that a PIN is needed and none was ever set. It comes with token.ErrAuthNeeded.
var ErrNoPIN = errors.New("no PIN has been set")

const (
	minPIN    = 4
	maxPIN    = 256
	secretLen = 32
)

// pinState is what is known of the PIN.
type pinState struct {
	mu      sync.Mutex
	object  *object      // the PIN object; nil if no PIN was set. Guarded by mu, as all below
	secret  secret.Bytes // what it holds; nil while locked
	closed  bool
	refused [][sha256.Size]byte // PINs that the TPM refused, under nonce
	nonce   [sha256.Size]byte   // of this process
	strange map[string]bool     // Names of objects to which the TPM refused the value that the secret gives
}

// maxLockout is the longest lockout that is told of, in seconds: more does not go into a time.Duration.
const maxLockout = uint64(math.MaxInt64 / time.Second)

// maxRefused bounds the memory of refused PINs; a TPM takes about as many before it locks.
const maxRefused = 32

func newPINState(file []byte) (*pinState, error) {
	p := &pinState{strange: map[string]bool{}}
	rand.Read(p.nonce[:])
	if file == nil {
		return p, nil
	}
	o, err := decodePIN(file)
	if err != nil {
		return nil, fmt.Errorf("read PIN file: %w: %w", token.ErrCorrupt, err)
	}
	p.object = o
	return p, nil
}

func decodePIN(file []byte) (*object, error) {
	o, err := decodeObject(file)
	if err != nil {
		return nil, err
	}
	if err := o.parseArea(); err != nil {
		return nil, err
	}
	if !o.fits(pinTemplate(o.parentName)) {
		return nil, errors.New("not a PIN object")
	}
	return &o, nil
}

// pinTemplate is the public area of the PIN object under a parent.
func pinTemplate(parentName []byte) tpm2.TPMTPublic {
	return sealTemplate(true, true, binding([]byte("pin"), parentName))
}

// locked reports whether there is a PIN that was not presented.
func (p *pinState) locked() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.object != nil && p.secret == nil
}

func (p *pinState) isSet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.object != nil
}

// offer is what a request has to get at the secret.
type offer struct {
	secret []byte  // set if the token is unlocked
	object *object // else the PIN object
	value  []byte  // and the authorization value that the PIN gives
}

// wipe forgets the offer.
func (o *offer) wipe() {
	if o != nil {
		clear(o.secret)
		clear(o.value)
	}
}

// offer finds out, without the TPM, whether a request can have the secret. A PIN that the
// TPM has refused is not offered again.
func (p *pinState) offer(auth token.Auth) (*offer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, token.ErrClosed
	case p.object == nil:
		return nil, fmt.Errorf("%w: %w", pinError(token.ErrAuthNeeded, token.TriesUnknown), ErrNoPIN)
	case p.secret != nil:
		return &offer{secret: bytes.Clone(p.secret)}, nil
	case len(auth.PIN) == 0:
		return nil, pinError(token.ErrAuthNeeded, token.TriesUnknown)
	}
	return p.offerLocked(auth.PIN)
}

var errOtherPIN = fmt.Errorf("%w: it was made with another PIN file", token.ErrCorrupt)

// offerTo is offer for the use of an object: nil if that needs no PIN. A value that the TPM has refused to the object is
// not offered again, because the TPM counts it as a wrong PIN.
func (p *pinState) offerTo(o *object, auth token.Auth) (*offer, error) {
	if o.emptyAuth {
		return nil, nil
	}
	p.mu.Lock()
	strange := p.strange[string(o.name)]
	p.mu.Unlock()
	if strange {
		return nil, errOtherPIN
	}
	return p.offer(auth)
}

// used is the error of a command that used an object with the value of an offer. It remembers a value that was refused.
func (p *pinState) used(o *object, with *offer, err error) error {
	if with == nil || known(err) || !errors.Is(err, tpm2.TPMRCAuthFail) && !errors.Is(err, tpm2.TPMRCBadAuth) {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strange[string(o.name)] = true
	return fmt.Errorf("%w: %w", errOtherPIN, err)
}

func (p *pinState) offerLocked(pin []byte) (*offer, error) {
	if slices.Contains(p.refused, p.markLocked(pin)) {
		return nil, &token.AuthError{Reason: token.ErrAuthWrong, Kind: "PIN", TriesLeft: token.TriesUnknown, Detail: token.ErrRefused}
	}
	return &offer{object: p.object, value: pinValue(pin)}, nil
}

func (p *pinState) markLocked(pin []byte) [sha256.Size]byte {
	h := hmac.New(sha256.New, p.nonce[:])
	h.Write(pin)
	return [sha256.Size]byte(h.Sum(nil))
}

// learn remembers a PIN that the TPM has refused.
func (p *pinState) learn(pin []byte, err error) {
	if !errors.Is(err, token.ErrAuthWrong) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.markLocked(pin); !slices.Contains(p.refused, m) && len(p.refused) < maxRefused {
		p.refused = append(p.refused, m)
	}
}

// set takes over a new PIN object and the secret in it.
func (p *pinState) set(o *object, s []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.object = o
	p.unlockLocked(s)
}

// unlock takes over the secret in the PIN object, which may have become another one meanwhile: the secret stays.
func (p *pinState) unlock(s []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unlockLocked(s)
}

func (p *pinState) unlockLocked(s []byte) {
	p.secret.Wipe()
	p.secret, p.refused = s, nil
	if p.closed {
		p.secret.Wipe()
		p.secret = nil
	}
}

func (p *pinState) lock() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.secret.Wipe()
	p.secret = nil
}

// close locks for good.
func (p *pinState) close() {
	p.lock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

func pinError(reason error, tries int) error {
	return &token.AuthError{Reason: reason, Kind: "PIN", TriesLeft: tries}
}

// pinValue is the PIN object's authorization value. It needs no slow hash: only the TPM can
// tell a right one from a wrong one, and counts.
func pinValue(pin []byte) []byte {
	h := sha256.New()
	h.Write([]byte("mesh-agent TPM PIN\x00"))
	h.Write(pin)
	return h.Sum(nil)
}

// open returns the secret, from the TPM if need be.
func (o *offer) open(d *device) ([]byte, error) {
	if o.secret != nil {
		return bytes.Clone(o.secret), nil
	}
	return d.openPIN(o.object, o.value)
}

// ownKeys is what keyValue derives the value of this program's own keys for.
const ownKeys = "key"

// valueName is what keyValue derives the value of a key for. An adopted key has a value of its own: the TPM gives it out
// encrypted under the parent that it came with, and others may know that one.
func (o *object) valueName() string {
	if o.bound() {
		return ownKeys
	}
	return "adopted key " + string(o.name)
}

// keyValue derives the authorization value of keys, or of sealed data, from the secret.
// A nil offer gives the empty value.
func (o *offer) keyValue(d *device, what string) ([]byte, error) {
	if o == nil {
		return nil, nil
	}
	s, err := o.open(d)
	if err != nil {
		return nil, err
	}
	defer clear(s)
	h := hmac.New(sha256.New, s)
	h.Write([]byte("mesh-agent TPM " + what))
	return h.Sum(nil), nil
}

// openPIN checks an authorization value of the PIN object and returns what it holds.
func (d *device) openPIN(o *object, value []byte) (s []byte, err error) {
	h, err := d.use(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = d.thenDrop(o, err) }()
	s, err = d.unseal(h, value)
	if err != nil {
		return nil, d.pinFault(err)
	}
	if len(s) != secretLen {
		return nil, fmt.Errorf("%w: PIN object of %d octets", token.ErrFault, len(s))
	}
	return s, nil
}

// unseal gives TPM2_Unseal. TPM 2.0 Part 3, 12.7.
func (d *device) unseal(h tpm2.NamedHandle, value []byte) ([]byte, error) {
	out, err := d.operate(tpm2.TPMCCUnseal, h, d.authorize(value, outward), nil)
	if err != nil {
		return nil, err
	}
	contents, rest, err := cut(out)
	if err != nil || len(rest) != 0 {
		return nil, broken("parse response", errors.New("unsealed data"))
	}
	return contents, nil
}

// pinFault is the error of a command that offered a PIN. If the connection broke, nobody
// knows whether the TPM has counted the PIN, and it is not offered again.
func (d *device) pinFault(err error) error {
	var link *linkError
	switch {
	case errors.As(err, &link):
		return &linkError{link.op, fmt.Errorf("%v; the PIN is not offered again", link.err)}
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		return fmt.Errorf("%w: %w", pinError(token.ErrAuthWrong, d.triesLeft()), err)
	}
	return err
}

// triesLeft returns how many wrong PINs the TPM takes before it locks, or TriesUnknown.
func (d *device) triesLeft() int {
	left, err := d.countTries()
	if err != nil {
		return token.TriesUnknown
	}
	return left
}

func (d *device) countTries() (int, error) {
	p, err := d.properties(tpm2.TPMPTLockoutCounter)
	if err != nil {
		return 0, err
	}
	return max(0, int(p[tpm2.TPMPTMaxAuthFail])-int(p[tpm2.TPMPTLockoutCounter])), nil
}

// lockout adds to TPM_RC_LOCKOUT how long it lasts: each interval without a wrong value
// takes one off the counter (TPM 2.0 Part 1, 19.8.2).
func (d *device) lockout(err error) error {
	if !errors.Is(err, tpm2.TPMRCLockout) {
		return err
	}
	p, failed := d.properties(tpm2.TPMPTLockoutCounter)
	if failed != nil {
		return err
	}
	intervals := 1 + max(0, int64(p[tpm2.TPMPTLockoutCounter])-int64(p[tpm2.TPMPTMaxAuthFail]))
	seconds := uint64(intervals) * uint64(p[tpm2.TPMPTLockoutInterval]) // nobody vouches for either
	wait := time.Duration(min(seconds, maxLockout)) * time.Second
	return fmt.Errorf("%w: %w", &token.LockoutError{RetryAfter: wait}, err)
}

// Unlock checks the PIN with one TPM2_Unseal and keeps what it opens, not the PIN, until
// Lock or Close. A PIN that the TPM has refused is not offered to it again.
// Errors: as token.Unlocker; ErrNoPIN.
func (t *Token) Unlock(ctx context.Context, pin []byte) error {
	o, err := t.pin.present(pin)
	if err != nil {
		return fmt.Errorf("tpm: unlock: %w", err)
	}
	defer o.wipe()
	s, err := do(ctx, t, "unlock", func(d *device) ([]byte, error) { return d.openPIN(o.object, o.value) })
	t.pin.learn(pin, err)
	if err != nil {
		return err
	}
	t.pin.unlock(s)
	return nil
}

// present offers a PIN even if the token is unlocked.
func (p *pinState) present(pin []byte) (*offer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, token.ErrClosed
	case p.object == nil:
		return nil, fmt.Errorf("%w: %w", pinError(token.ErrAuthNeeded, token.TriesUnknown), ErrNoPIN)
	case len(pin) == 0:
		return nil, pinError(token.ErrAuthNeeded, token.TriesUnknown)
	}
	return p.offerLocked(pin)
}

// Lock forgets what Unlock opened. It does no I/O.
func (t *Token) Lock(context.Context) error {
	t.pin.lock()
	return nil
}

// SetPIN sets the PIN, 4 to 256 octets, or changes it. Keys stay as they are. It is kept
// in Options.StateDir, without which it lasts as long as the Token.
// A copy of the folder from before still opens with the old PIN.
// Errors: as token.PINSetter.
func (t *Token) SetPIN(ctx context.Context, old, pin []byte) error {
	if len(pin) < minPIN || len(pin) > maxPIN {
		return fmt.Errorf("tpm: set PIN: %w: a PIN has %d to %d octets", token.ErrBadRequest, minPIN, maxPIN)
	}
	o, err := t.pin.present(old)
	if err != nil && !errors.Is(err, ErrNoPIN) {
		return fmt.Errorf("tpm: set PIN: %w", err)
	}
	if err != nil && len(old) != 0 {
		return fmt.Errorf("tpm: set PIN: %w: %w", token.ErrBadRequest, ErrNoPIN)
	}
	defer o.wipe()
	value := pinValue(pin)
	defer clear(value)
	_, err = do(ctx, t, "set PIN", func(d *device) (struct{}, error) {
		made, s, err := d.makePIN(o, value)
		if err != nil {
			return struct{}{}, err
		}
		return struct{}{}, t.keepPIN(&made, s)
	})
	t.pin.learn(old, err)
	return err
}

// keepPIN writes a new PIN object to the disk and takes it over. Who calls it has the turn, so that there is one order of both.
func (t *Token) keepPIN(o *object, s []byte) error {
	err := o.parseArea()
	var file []byte
	if err == nil {
		file, err = o.encode()
	}
	if err == nil {
		_, err = decodePIN(file)
	}
	if err == nil {
		err = t.state.write(pinFile, file)
	}
	if err != nil {
		clear(s)
		return fmt.Errorf("keep PIN: %w", err)
	}
	t.pin.set(o, s)
	return nil
}

// makePIN makes the first PIN object, or another one for the secret in the one of an offer.
func (d *device) makePIN(o *offer, value []byte) (object, []byte, error) {
	if o == nil {
		return d.createPIN(value)
	}
	return d.changePIN(o, value)
}

func (d *device) createPIN(value []byte) (object, []byte, error) {
	s := make([]byte, secretLen)
	rand.Read(s)
	o, err := d.create(pinTemplate(d.srk.Name.Buffer), value, s)
	return o, s, err
}

func (d *device) changePIN(o *offer, value []byte) (object, []byte, error) {
	s, err := d.openPIN(o.object, o.value)
	if err != nil {
		return object{}, nil, err
	}
	changed, err := d.changeAuth(o.object, o.value, value)
	if err != nil {
		return object{}, nil, d.pinFault(err)
	}
	return changed, s, nil
}

// changeAuth gives an object another authorization value: a new object file for the same
// object. TPM 2.0 Part 3, 12.8.
func (d *device) changeAuth(o *object, old, value []byte) (changed object, err error) {
	h, err := d.use(o)
	if err != nil {
		return object{}, err
	}
	defer func() { err = d.thenDrop(o, err) }()
	err = d.withParent(o, func(parent tpm2.NamedHandle) error {
		rsp, err := run(d, tpm2.ObjectChangeAuth{
			ObjectHandle: d.auth(h, old, bothway),
			ParentHandle: parent,
			NewAuth:      tpm2.TPM2BAuth{Buffer: value},
		})
		if err == nil {
			changed = *o
			changed.private, changed.emptyAuth = rsp.OutPrivate.Buffer, len(value) == 0
		}
		return err
	})
	return changed, err
}
