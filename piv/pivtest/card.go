// Package pivtest is a test program: a virtual PIV card ([Card]), a small pcscd of our own
// that serves it over libpcsclite's socket protocol ([Daemon]), and a private instance of the
// real pcscd that reaches the same card through the vpcd virtual reader ([Pcscd]).
//
// The card answers NIST SP 800-73-4 Part 2 and the extensions of YubiKeys that piv-go,
// yubico-piv-tool and OpenSC use. It keeps its keys in the clear, computes in variable time
// and can be told to lie: it is not for use outside tests. It does no secure messaging, no
// virtual contact interface, no biometrics, and no other applet than PIV and the two questions
// (serial number, form factor) that tools ask of its neighbours.
package pivtest

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"
)

// Secrets of a factory-new card.
const (
	DefaultPIN = "123456"
	DefaultPUK = "12345678"
	// DefaultManagementKey has 24 bytes: AES-192 from firmware 5.7 on, triple DES before.
	DefaultManagementKey = "\x01\x02\x03\x04\x05\x06\x07\x08" +
		"\x01\x02\x03\x04\x05\x06\x07\x08\x01\x02\x03\x04\x05\x06\x07\x08"
)

// yubikeyATR is the answer to reset of a YubiKey 5. OpenSC knows a card's abilities by it.
const yubikeyATR = "\x3B\xFD\x13\x00\x00\x81\x31\xFE\x15\x80\x73\xC0\x21\xC0\x57\x59\x75\x62\x69\x4B\x65\x79\x40"

// plainATR says T=1 and nothing more.
const plainATR = "\x3B\x80\x81\x01\x00"

// maxMessage bounds one command after chaining, in bytes.
const maxMessage = 3072

// Config describes a new card. The zero value is a YubiKey of firmware 5.7.1.
type Config struct {
	Version [3]byte // firmware: the card's abilities and the tools' behaviour differ by it. Zero means 5.7.1.
	Serial  uint32  // zero means 5700001
	// Plain makes it a card of SP 800-73-4 alone, with none of Yubico's commands, algorithms and
	// policies, not even a serial number. Keys come into it by Generate, Put and its own command.
	Plain bool

	Now func() time.Time // clock of the touch cache; nil means time.Now
	// TouchTimeout is how long the card waits for a touch before it refuses.
	// Zero means for ever; YubiKeys wait 15 seconds.
	TouchTimeout time.Duration
}

// A Hook stands between the reader and the card. It is called with each command APDU and may
// change it, delay it, answer itself, or pass it on by calling card, any number of times.
// A nil answer means that the card stays mute: the reader reports a transmission error.
// The hook is called without a lock and may block.
type Hook func(apdu []byte, card func(apdu []byte) []byte) []byte

// Card is a virtual PIV card. Several goroutines may call its methods at once;
// commands are done one at a time.
type Card struct {
	config Config
	hook   atomic.Pointer[Hook]
	touch  touchSensor
	trace  trace

	mu    sync.Mutex // held while a command runs
	state store      // guarded by mu
	power volatile   // guarded by mu
}

// volatile is what the card forgets without power.
type volatile struct {
	applet      applet
	pinVerified bool
	pinFresh    bool   // the command before this one was a successful VERIFY
	admin       bool   // the management key was proved
	witness     []byte // expected back, nil if none is out
	challenge   []byte // expected back encrypted, nil if none is out
	chain       []byte // the data of a chained command so far
	chainHead   []byte // its INS, P1, P2; nil outside a chain
	pending     []byte // rest of an answer, for GET RESPONSE
}

// NewCard returns a factory-new card: default secrets, no keys but the attestation key in slot F9.
func NewCard(config Config) *Card {
	return newCard(config, newAttestation())
}

// newCard does the same with an attestation key made before.
func newCard(config Config, attestation *attestation) *Card {
	if config.Version == [3]byte{} {
		config.Version = [3]byte{5, 7, 1}
	}
	if config.Serial == 0 {
		config.Serial = 5700001
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	c := &Card{config: config}
	c.touch.init(config.Now, config.TouchTimeout)
	c.state.attestation = attestation
	c.state.reset(c.config)
	return c
}

// ATR returns the answer to reset.
func (c *Card) ATR() []byte {
	if c.config.Plain {
		return []byte(plainATR)
	}
	return []byte(yubikeyATR)
}

// Serial returns the card's serial number.
func (c *Card) Serial() uint32 { return c.config.Serial }

// Reset does what a loss of power or a reset line does: the card forgets the selected applet,
// the PIN, a command half sent. A command that waits for a touch ends without an answer.
func (c *Card) Reset() {
	c.touch.cutPower()
	defer c.touch.restorePower()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.power = volatile{}
}

// OnAPDU puts a hook before the card, nil for none.
func (c *Card) OnAPDU(hook Hook) {
	if hook == nil {
		c.hook.Store(nil)
		return
	}
	c.hook.Store(&hook)
}

// Transmit answers one command APDU, short or extended. It returns nil if the card stays mute:
// a hook said so, or the card was reset while it waited for a touch.
func (c *Card) Transmit(apdu []byte) []byte {
	c.trace.add(apdu)
	if hook := c.hook.Load(); hook != nil {
		return (*hook)(bytes.Clone(apdu), c.transmit)
	}
	return c.transmit(apdu)
}

func (c *Card) transmit(apdu []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	answer := c.answer(apdu)
	if n := len(answer); n == 2 && !c.config.Plain && sw(binary.BigEndian.Uint16(answer)) == swWrongP1P2 {
		return appendSW(nil, swYubicoP1P2)
	}
	return answer
}

func (c *Card) answer(apdu []byte) []byte {
	cmd, status := parseCommand(apdu)
	if status == swOK {
		cmd, status = c.gather(cmd)
	}
	if status != swOK {
		return appendSW(nil, status)
	}
	if cmd.cla == claMore {
		return appendSW(nil, swOK)
	}
	if cmd.ins == insGetResponse {
		return c.nextPart(cmd.le)
	}
	c.power.pending = nil
	data, status := c.dispatch(cmd)
	if status == swMute {
		return nil
	}
	if len(data) > 0 && status == swOK {
		c.power.pending = data
		return c.nextPart(cmd.le)
	}
	return appendSW(nil, status)
}

const (
	claLast        = 0x00
	claMore        = 0x10 // more of this command follows (ISO/IEC 7816-4, Section 5.1.1)
	insGetResponse = 0xC0
)

// gather joins the parts of a chained command. It returns the whole command with the last part.
func (c *Card) gather(cmd command) (command, sw) {
	head := []byte{cmd.ins, cmd.p1, cmd.p2}
	if cmd.cla != claLast && cmd.cla != claMore {
		return cmd, swUnknownCLA
	}
	if !bytes.Equal(head, c.power.chainHead) {
		c.power.chain, c.power.chainHead = nil, nil // an unfinished command is forgotten
	}
	if cmd.cla == claLast && c.power.chainHead == nil {
		return cmd, swOK
	}
	if len(c.power.chain)+len(cmd.data) > maxMessage {
		c.power.chain, c.power.chainHead = nil, nil
		return cmd, swNoSpace
	}
	c.power.chain = append(c.power.chain, cmd.data...)
	c.power.chainHead = head
	if cmd.cla == claLast {
		cmd.data = c.power.chain
		c.power.chain, c.power.chainHead = nil, nil
	}
	return cmd, swOK
}

// nextPart answers with at most le bytes of what is left to be sent.
func (c *Card) nextPart(le int) []byte {
	rest := c.power.pending
	if len(rest) == 0 {
		return appendSW(nil, swConditions)
	}
	if len(rest) <= le {
		c.power.pending = nil
		return appendSW(rest, swOK)
	}
	c.power.pending = rest[le:]
	left := len(rest) - le
	if left > 0xFF {
		left = 0
	}
	return appendSW(rest[:le], swMore|sw(left))
}

// atLeast reports whether the firmware is this version or later.
func (c *Card) atLeast(major, minor byte) bool {
	return c.config.atLeast(major, minor)
}

func (c *Config) atLeast(major, minor byte) bool {
	v := c.Version
	return !c.Plain && (v[0] > major || v[0] == major && v[1] >= minor)
}

// trace counts the commands that reached the card.
type trace struct {
	mu    sync.Mutex
	total int
	byINS [256]int
}

func (t *trace) add(apdu []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total++
	if len(apdu) > 1 {
		t.byINS[apdu[1]]++
	}
}

// Commands returns how many APDUs were sent to the card so far, chained parts and GET RESPONSE included.
func (c *Card) Commands() int {
	c.trace.mu.Lock()
	defer c.trace.mu.Unlock()
	return c.trace.total
}

// Count returns how many APDUs with this INS were sent to the card so far.
func (c *Card) Count(ins byte) int {
	c.trace.mu.Lock()
	defer c.trace.mu.Unlock()
	return c.trace.byINS[ins]
}
