package pivtest

import (
	"encoding/binary"
	"slices"
	"time"
)

// A Device is a card as a reader sees it. Transmit returns nil if the card does not answer.
// Reset cuts the power for a moment; a Transmit under way must then return soon.
type Device interface {
	ATR() []byte
	Transmit(apdu []byte) []byte
	Reset()
}

var _ Device = (*Card)(nil)

// Reader is a card reader of a Daemon. A YubiKey is a reader with a card that never leaves it:
// pull it out with Unplug. The methods take effect before they return.
type Reader struct {
	daemon *Daemon
	name   string
	busy   chan struct{} // holds one value while a command is with the card

	// The rest is guarded by daemon.mu.
	device    Device        // nil without a card
	gone      chan struct{} // closed when the card or reader goes away
	voice     chan struct{} // not nil while the card is silent; closed by Speak
	unplugged bool
	powered   bool
	dead      bool // PowerDown: does not come up again
	idleDown  bool
	protocol  uint32 // 0 before it is agreed
	events    uint32
	sharing   int // open handles, exclusive for one that excludes others
	owner     *handle
	depth     int // transactions begun and not ended by owner
}

const exclusive = -1

// handle is a card handle of a client. Guarded by daemon.mu.
type handle struct {
	id     int32
	reader *Reader
	event  Code // ResetCard or RemovedCard since the last connect
}

// Name returns the reader's name as clients see it.
func (r *Reader) Name() string { return r.name }

// Insert puts a card in. A card that is there is taken out first.
func (r *Reader) Insert(device Device) {
	defer r.change()()
	r.eject()
	r.device, r.gone = device, make(chan struct{})
	r.powered, r.protocol = true, 0
	r.events++
}

// Remove takes the card out: handles fail with RemovedCard, a command under way with NotTransacted.
func (r *Reader) Remove() {
	defer r.change()()
	r.eject()
}

// Unplug takes reader and card away: the name vanishes, a command under way fails with
// ReaderUnavailable, later ones with InvalidValue, as with pcscd 1.9.9.
func (r *Reader) Unplug() {
	defer r.change()()
	r.unplugged, r.powered = true, false
	r.forget()
	r.cut()
}

// Plug brings an unplugged reader back with the card that was in it.
func (r *Reader) Plug() {
	defer r.change()()
	r.unplugged, r.powered, r.protocol = false, r.device != nil, 0
	r.gone = make(chan struct{})
	r.events++
}

// ResetByOther resets the card as another program may: all handles fail with ResetCard.
func (r *Reader) ResetByOther() {
	defer r.change()()
	r.resetCard(nil)
}

// PowerDown takes the power from the card until PowerUp: handles fail with ResetCard,
// a new connection with UnpoweredCard.
func (r *Reader) PowerDown() {
	defer r.change()()
	r.resetCard(nil)
	r.powered, r.dead = false, true
}

// PowerUp ends PowerDown.
func (r *Reader) PowerUp() {
	defer r.change()()
	r.powered, r.dead = r.device != nil, false
}

// PowerDownWhenIdle makes the reader take the power from the card as soon as the last handle is
// closed. pcscd does so after a second or later; without this the reader never does.
func (r *Reader) PowerDownWhenIdle() {
	defer r.change()()
	r.idleDown = true
}

// Silence makes the card answer nothing until Speak; then the commands under way fail with
// NotTransacted. Only taking card or reader away or stopping the daemon ends them sooner.
func (r *Reader) Silence() {
	defer r.change()()
	if r.voice == nil {
		r.voice = make(chan struct{})
	}
}

// Speak ends Silence.
func (r *Reader) Speak() {
	defer r.change()()
	if r.voice != nil {
		close(r.voice)
		r.voice = nil
	}
}

// Handles returns how many card handles are open at this reader.
func (r *Reader) Handles() int {
	r.daemon.mu.Lock()
	defer r.daemon.mu.Unlock()
	if r.sharing == exclusive {
		return 1
	}
	return r.sharing
}

// InTransaction reports whether a client holds a transaction, or the reader exclusively.
func (r *Reader) InTransaction() bool {
	r.daemon.mu.Lock()
	defer r.daemon.mu.Unlock()
	return r.owner != nil
}

// AwaitFree waits until no client has a handle or transaction, and reports whether that came in time.
func (r *Reader) AwaitFree(limit time.Duration) bool {
	r.daemon.mu.Lock()
	defer r.daemon.mu.Unlock()
	return r.daemon.waitFor(limit, func() bool { return r.sharing == 0 && r.owner == nil })
}

// change locks the daemon and returns what unlocks it and tells the waiting clients.
func (r *Reader) change() func() {
	r.daemon.mu.Lock()
	return func() {
		r.daemon.signalLocked()
		r.daemon.mu.Unlock()
	}
}

// The methods below need daemon.mu.

func (r *Reader) eject() {
	if r.device == nil {
		return
	}
	r.setEvent(RemovedCard, nil)
	r.cut()
	r.device, r.powered, r.protocol = nil, false, 0
	r.events++
}

// cut ends commands under way and the card's memory.
func (r *Reader) cut() {
	if r.gone != nil {
		close(r.gone)
		r.gone = nil
	}
	r.resetDevice()
}

// resetDevice resets the card. That does not wait for a hook, only for a computation under way.
func (r *Reader) resetDevice() {
	if r.device != nil {
		r.device.Reset()
	}
}

// forget ends all handles and transactions, as the removal of the reader does.
func (r *Reader) forget() {
	for _, c := range r.daemon.clients {
		for _, h := range c.handles {
			if h.reader == r {
				h.reader = nil
			}
		}
	}
	r.sharing, r.owner, r.depth, r.protocol = 0, nil, 0, 0
}

func (r *Reader) resetCard(by *handle) {
	r.setEvent(ResetCard, by)
	r.resetDevice()
	r.protocol = 0
	r.powered = r.device != nil && !r.dead
}

// setEvent tells all handles but one what happened to the card.
func (r *Reader) setEvent(event Code, but *handle) {
	for _, c := range r.daemon.clients {
		for _, h := range c.handles {
			if h.reader == r && h != but {
				h.event = event
			}
		}
	}
}

// state encodes the reader as struct pubReaderStatesList of eventhandler.h.
func (r *Reader) state() []byte {
	b := make([]byte, 0, readerStateSize)
	b = append(b, r.name...)
	b = append(b, make([]byte, readerNameSize-len(r.name))...)
	state := uint32(stateAbsent)
	switch {
	case r.device != nil && r.powered:
		state = statePresent | statePowered | stateNegotiable
	case r.device != nil:
		state = statePresent
	}
	b = binary.NativeEndian.AppendUint32(b, r.events)
	b = binary.NativeEndian.AppendUint32(b, state)
	b = binary.NativeEndian.AppendUint32(b, uint32(int32(r.sharing)))
	var atr []byte
	if r.device != nil {
		atr = r.device.ATR()
	}
	b = append(b, atr...)
	b = append(b, make([]byte, 36-len(atr))...)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(atr)))
	return binary.NativeEndian.AppendUint32(b, r.protocol)
}

// connect checks what SCardConnect checks and counts the new handle.
func (r *Reader) connect(mode, protocols uint32) (*handle, Code) {
	if r.sharing == exclusive {
		return nil, SharingViolation
	}
	if !r.daemon.waitLocked(func() bool { return r.owner == nil || r.unplugged }) {
		return nil, ServiceStopped
	}
	switch {
	case r.unplugged:
		return nil, ReaderUnavailable
	case r.sharing == exclusive:
		return nil, SharingViolation
	}
	if mode != shareDirect {
		if code := r.negotiate(protocols); code != Success {
			return nil, code
		}
	}
	h := &handle{id: r.daemon.nextID(), reader: r}
	if mode == shareExclusive {
		if r.sharing != 0 {
			return nil, SharingViolation
		}
		r.sharing, r.owner, r.depth = exclusive, h, 1
		return h, Success
	}
	r.sharing++
	return h, Success
}

// negotiate powers the card up and agrees on the protocol, T=1 for every card here.
func (r *Reader) negotiate(protocols uint32) Code {
	switch {
	case r.device == nil:
		return NoSmartcard
	case r.dead:
		return UnpoweredCard
	case protocols&protocolRaw != 0:
		r.protocol = protocolRaw
	case protocols&protocolT1 != 0:
		r.protocol = protocolT1
	default:
		return ProtoMismatch
	}
	r.powered = true
	return Success
}

// disconnect ends a handle that belongs to this reader.
func (r *Reader) disconnect(h *handle, disposition uint32) Code {
	if disposition != leaveCard && r.owner != nil && r.owner != h {
		if !r.daemon.waitLocked(func() bool { return r.owner == nil || h.reader == nil }) {
			return ServiceStopped
		}
		if h.reader == nil {
			return Success
		}
	}
	if r.owner == h {
		r.owner, r.depth = nil, 0
	}
	if disposition == resetCard || disposition == unpowerCard {
		r.resetCard(nil)
		r.powered = r.powered && disposition != unpowerCard
	}
	if r.sharing == exclusive {
		r.sharing = 0
	} else {
		r.sharing--
	}
	if r.sharing == 0 && r.idleDown && r.device != nil {
		r.resetDevice()
		r.powered, r.protocol = false, 0
	}
	h.reader = nil
	return Success
}

func (r *Reader) reconnect(h *handle, mode, protocols, disposition uint32) Code {
	if r.owner != nil && r.owner != h {
		return SharingViolation
	}
	if r.device == nil {
		return NoSmartcard
	}
	if disposition != leaveCard {
		r.resetCard(h)
	}
	if mode != shareDirect {
		if code := r.negotiate(protocols); code != Success {
			return code
		}
	}
	switch {
	case mode == shareExclusive && r.sharing == 1:
		r.sharing, r.owner, r.depth = exclusive, h, r.depth+1
	case mode == shareExclusive && r.sharing != exclusive:
		return SharingViolation
	case mode != shareExclusive && r.sharing == exclusive:
		// Like pcscd 1.9.9, in this order: the lock of an exclusive handle stays.
		r.release(h)
		r.sharing = 1
	}
	h.event = Success
	return Success
}

// begin starts a transaction. Like pcscd it gives up after a tenth of a second; the client asks again.
func (r *Reader) begin(h *handle) Code {
	if h.event != Success {
		return h.event
	}
	r.daemon.waitFor(pollRate, func() bool { return r.owner == nil || r.owner == h || h.reader == nil })
	switch {
	case h.reader == nil:
		return ReaderUnavailable
	case h.event != Success:
		return h.event
	case r.owner != nil && r.owner != h:
		return SharingViolation
	}
	r.owner = h
	r.depth++
	return Success
}

func (r *Reader) end(h *handle, disposition uint32) Code {
	if h.event != Success {
		return h.event
	}
	if disposition != leaveCard {
		if r.owner != nil && r.owner != h {
			return SharingViolation
		}
		r.resetCard(nil)
	}
	return r.release(h)
}

func (r *Reader) release(h *handle) Code {
	switch {
	case r.owner != nil && r.owner != h:
		return SharingViolation
	case r.depth == 0, r.sharing == exclusive && r.depth == 1: // the exclusive handle's own lock
		return NotTransacted
	}
	if r.depth--; r.depth == 0 {
		r.owner = nil
	}
	return Success
}

// ready says whether the handle may send a command to the card now.
func (r *Reader) ready(h *handle, protocol uint32) Code {
	switch {
	case r.owner != nil && r.owner != h:
		return SharingViolation
	case h.event != Success:
		return h.event
	case r.device == nil:
		return NoSmartcard
	case !slices.Contains([]uint32{r.protocol, protocolRaw}, protocol):
		return ProtoMismatch
	}
	return Success
}
