package tokentest

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/mesh-agent/mesh-agent/token"
)

// The operations of a SealingFake beside those of a Fake.
const (
	OpSeal      Op = "seal"
	OpUnseal    Op = "unseal"
	OpSetPIN    Op = "set-pin"
	OpLock      Op = "lock"
	OpCounter   Op = "counter" // ReadCounter
	OpIncrement Op = "increment"
)

// SealingFake is a Fake that seals, as a TPM does: with PIN, and to PCRs that a test changes.
// It has a monotonic counter and a PIN that SetPIN sets, and it can be locked.
type SealingFake struct {
	*Fake
	sealing *sealing
}

// sealing is the part of a SealingFake that survives Close.
type sealing struct {
	aead cipher.AEAD

	mu      sync.Mutex
	pcrs    string // guarded by mu: stands for the values of all PCRs
	counter uint64 // guarded by mu; 0 before it was created
}

var (
	_ token.Sealer    = (*SealingFake)(nil)
	_ token.PINSetter = (*SealingFake)(nil)
	_ token.Locker    = (*SealingFake)(nil)
	_ token.Counter   = (*SealingFake)(nil)
)

// NewSealingFake returns an empty token that seals.
func NewSealingFake(o FakeOptions) *SealingFake {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the length is right
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // AES has blocks of 16 octets
	}
	return &SealingFake{Fake: NewFake(o), sealing: &sealing{aead: aead}}
}

// Reopen is that of Fake.
func (f *SealingFake) Reopen() *SealingFake { return &SealingFake{f.Fake.Reopen(), f.sealing} }

// SetPCRs changes the measured state: what was sealed to another one no longer opens.
func (f *SealingFake) SetPCRs(state string) {
	f.sealing.mu.Lock()
	defer f.sealing.mu.Unlock()
	f.sealing.pcrs = state
}

// TurnBack sets the counter, as no real device lets anybody do.
func (f *SealingFake) TurnBack(value uint64) {
	f.sealing.mu.Lock()
	defer f.sealing.mu.Unlock()
	f.sealing.counter = value
}

func (s *sealing) measured() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pcrs
}

// A blob is the octet of the PIN policy, selection, measured state and recovery secret's
// stand-in, each after its length, then nonce and ciphertext. All before the nonce is
// associated data, with the caller's.
type fakeBlob struct {
	pin      byte
	pcrs     string
	measured string
	head     []byte
	sealed   []byte
}

const recoveryLen = 16

// Seal encrypts a secret, with a PIN only if one is set.
func (f *SealingFake) Seal(ctx context.Context, req token.SealRequest) (sealed token.Sealed, err error) {
	var auth needsPIN
	guard := token.GuardMachine
	pin := byte(0)
	switch req.PIN {
	case token.PINNever:
	case token.PINOnce:
		auth, guard, pin = &req.Auth, token.GuardPIN, 1
	default:
		return token.Sealed{}, fmt.Errorf("seal: PIN policy %q: %w", string(req.PIN), token.ErrUnsupported)
	}
	err = f.run(ctx, OpSeal, auth, func() error {
		if pin == 1 && !f.hasPIN() {
			return &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: token.TriesUnknown}
		}
		head := appendField([]byte{pin}, req.PCRs)
		measured := ""
		if req.PCRs != "" {
			guard, measured = token.GuardPCR, f.sealing.measured()
			sealed.Recovery = make([]byte, recoveryLen)
			rand.Read(sealed.Recovery)
		}
		head = appendField(head, measured)
		secret := append(bytes.Clone(sealed.Recovery), req.Secret...)
		nonce := make([]byte, f.sealing.aead.NonceSize())
		rand.Read(nonce)
		out := append(bytes.Clone(head), nonce...)
		sealed.Blob = f.sealing.aead.Seal(out, nonce, secret, bind(head, req.Associated))
		sealed.Guard = guard
		return nil
	})
	if err != nil {
		return token.Sealed{}, err
	}
	return sealed, nil
}

func bind(head, associated []byte) []byte { return append(bytes.Clone(head), associated...) }

func appendField(out []byte, field string) []byte {
	out = binary.BigEndian.AppendUint16(out, uint16(len(field)))
	return append(out, field...)
}

func cutField(in []byte) (field string, rest []byte, err error) {
	if len(in) < 2 {
		return "", nil, errors.New("too short")
	}
	n := int(binary.BigEndian.Uint16(in))
	if n > len(in)-2 {
		return "", nil, errors.New("too short")
	}
	return string(in[2 : 2+n]), in[2+n:], nil
}

func parseFakeBlob(blob []byte) (b fakeBlob, err error) {
	if len(blob) == 0 || blob[0] > 1 {
		return b, errors.New("no blob")
	}
	b.pin = blob[0]
	rest := blob[1:]
	if b.pcrs, rest, err = cutField(rest); err != nil {
		return b, err
	}
	if b.measured, rest, err = cutField(rest); err != nil {
		return b, err
	}
	b.head, b.sealed = blob[:len(blob)-len(rest)], rest
	return b, nil
}

// Unseal opens what Seal made.
func (f *SealingFake) Unseal(ctx context.Context, req token.UnsealRequest) (secret []byte, err error) {
	b, parseErr := parseFakeBlob(req.Blob)
	var auth needsPIN
	if b.pin == 1 {
		auth = &req.Auth
	}
	err = f.run(ctx, OpUnseal, auth, func() error {
		nonceSize := f.sealing.aead.NonceSize()
		if parseErr != nil || len(b.sealed) < nonceSize {
			return token.ErrCorrupt
		}
		plain, err := f.sealing.aead.Open(nil, b.sealed[:nonceSize], b.sealed[nonceSize:], bind(b.head, req.Associated))
		if err != nil {
			return token.ErrCorrupt
		}
		if b.pcrs == "" {
			secret = plain
			return nil
		}
		if f.sealing.measured() != b.measured && !bytes.Equal(req.Recovery, plain[:recoveryLen]) {
			return &token.PCRError{PCRs: b.pcrs}
		}
		secret = plain[recoveryLen:]
		return nil
	})
	if err != nil {
		return nil, err
	}
	return secret, nil
}

func (f *SealingFake) hasPIN() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.options.PIN) != 0
}

// SetPIN sets the PIN that all PIN-protected operations need from then on.
func (f *SealingFake) SetPIN(ctx context.Context, old, pin []byte) error {
	return f.run(ctx, OpSetPIN, nil, func() error {
		if len(pin) == 0 {
			return fmt.Errorf("empty PIN: %w", token.ErrBadRequest)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.options.PIN) != 0 {
			if len(old) == 0 {
				old = nil
			}
			if err := f.checkPINLocked(old); err != nil {
				return err
			}
		}
		f.options.PIN, f.unlocked = bytes.Clone(pin), true
		return nil
	})
}

// Lock makes the PIN needed again.
func (f *SealingFake) Lock(ctx context.Context) error {
	return f.run(ctx, OpLock, nil, func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.unlocked = false
		return nil
	})
}

// ReadCounter returns the counter.
func (f *SealingFake) ReadCounter(ctx context.Context) (value uint64, err error) {
	err = f.run(ctx, OpCounter, nil, func() error {
		f.sealing.mu.Lock()
		defer f.sealing.mu.Unlock()
		if value = f.sealing.counter; value == 0 {
			return token.ErrNotFound
		}
		return nil
	})
	return value, err
}

// IncrementCounter adds one to the counter, whose first value is arbitrary.
func (f *SealingFake) IncrementCounter(ctx context.Context) (value uint64, err error) {
	err = f.run(ctx, OpIncrement, nil, func() error {
		f.sealing.mu.Lock()
		defer f.sealing.mu.Unlock()
		if f.sealing.counter == 0 {
			f.sealing.counter = 40
		}
		f.sealing.counter++
		value = f.sealing.counter
		return nil
	})
	return value, err
}
