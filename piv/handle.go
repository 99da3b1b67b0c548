package piv

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// A handle is the magic, the serial number (4 octets, big endian), the slot, an octet of flags,
// the index of the public key (token.PublicKey.Index), and a hash over all this and what the key was made for.
// Of the flags the lowest is 1 if the key was adopted; the next two are its PIN policy and the two after those
// its touch policy, numbered as on the card, if it was adopted from a card that does not tell them; else 0.
const (
	handleMagic = "PIV1"
	headLen     = len(handleMagic) + 4 + 1 + 1 + sha256.Size
	handleLen   = headLen + sha256.Size
)

// handle is a decoded handle.
type handle struct {
	serial uint32
	slot   applet.Slot
	found  bool // adopted: other programs use the key, and Delete leaves it
	policy token.Policy
	index  [sha256.Size]byte
	bound  [sha256.Size]byte
}

func (h handle) encode() []byte {
	b := append(make([]byte, 0, handleLen), handleMagic...)
	b = binary.BigEndian.AppendUint32(b, h.serial)
	b = append(b, byte(h.slot), h.flags())
	b = append(b, h.index[:]...)
	return append(b, h.bound[:]...)
}

// decodeHandle decodes a handle without comparing what it is bound to.
func decodeHandle(b []byte) (handle, error) {
	if len(b) != handleLen || string(b[:len(handleMagic)]) != handleMagic {
		return handle{}, fmt.Errorf("%w: not the handle of a PIV card", token.ErrCorrupt)
	}
	rest := b[len(handleMagic):]
	h := handle{serial: binary.BigEndian.Uint32(rest), slot: applet.Slot(rest[4])}
	h.setFlags(rest[5])
	copy(h.index[:], rest[6:])
	copy(h.bound[:], b[headLen:])
	if !h.slot.Valid() || h.flags() != rest[5] {
		return handle{}, fmt.Errorf("%w: slot %v, flags %02x", token.ErrCorrupt, h.slot, rest[5])
	}
	return h, nil
}

const (
	flagFound  = 1
	pinShift   = 1
	touchShift = 3
	policyMask = 3
)

func (h handle) flags() byte {
	pin, touch := applet.PolicyNumbers(h.policy)
	b := pin<<pinShift | touch<<touchShift
	if h.found {
		b |= flagFound
	}
	return b
}

// policyOr returns the key's policies: those that the card tells, those given when the key was adopted, or
// those that the slot has by itself.
func (h handle) policyOr(told token.Policy) token.Policy {
	switch none := (token.Policy{}); {
	case told != none:
		return told
	case h.policy != none:
		return h.policy
	}
	return slotPolicy(h.slot)
}

func (h *handle) setFlags(b byte) {
	h.found = b&flagFound != 0
	h.policy = applet.NumberedPolicy(b>>pinShift&policyMask, b>>touchShift&policyMask)
}

// bind returns the handle of a key in a slot. It is bound to the encoding of the public key too:
// the sign of an X25519 key is not in its index.
func (h handle) bind(public token.PublicKey, use token.Use, associated []byte) handle {
	h.index = public.Index()
	d := sha256.New()
	d.Write(h.encode()[:headLen])
	for _, part := range [][]byte{public.Octets, []byte(use), associated} {
		d.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		d.Write(part)
	}
	d.Sum(h.bound[:0])
	return h
}

// openHandle decodes a handle and compares it with a request.
func openHandle(serial uint32, req token.OpenRequest) (handle, error) {
	h, err := decodeHandle(req.Handle)
	if err != nil {
		return handle{}, err
	}
	if h.serial != serial {
		return handle{}, fmt.Errorf("%w: of card %d", token.ErrCorrupt, h.serial)
	}
	if h != h.bind(req.Public, req.Use, req.Associated) {
		return handle{}, fmt.Errorf("%w: not the key of the record", token.ErrCorrupt)
	}
	return h, nil
}
