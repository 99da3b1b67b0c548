package applet

import (
	"fmt"
	"strconv"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
)

// Slot is a place for a key (SP 800-73-4 Part 1, Table 4b), named by its reference.
type Slot byte

// The slots. The retired ones are from SlotRetired to SlotRetiredLast.
const (
	SlotRetired        Slot = 0x82
	SlotRetiredLast    Slot = 0x95
	SlotAuthentication Slot = 0x9A
	SlotSignature      Slot = 0x9C
	SlotManagement     Slot = 0x9D
	SlotCard           Slot = 0x9E
	SlotAttestation    Slot = 0xF9
)

// The references that are not slots.
const (
	refPIN        = 0x80
	refPUK        = 0x81
	refManagement = 0x9B
)

// ParseSlot returns the slot of a name such as "9a" or "82".
func ParseSlot(name string) (Slot, error) {
	n, err := strconv.ParseUint(name, 16, 8)
	if s := Slot(n); err == nil && len(name) == 2 && s.Valid() {
		return s, nil
	}
	return 0, fmt.Errorf("unknown slot %q (known: 9a, 9c, 9d, 9e, 82 to 95)", name)
}

// Valid reports whether s is a slot for keys of the card's holder.
func (s Slot) Valid() bool {
	switch s {
	case SlotAuthentication, SlotSignature, SlotManagement, SlotCard:
		return true
	}
	return s >= SlotRetired && s <= SlotRetiredLast
}

// String returns the name: "9a".
func (s Slot) String() string { return fmt.Sprintf("%02x", byte(s)) }

// certificate returns the data object of the slot's certificate.
func (s Slot) certificate() apdu.Tag {
	switch s {
	case SlotAuthentication:
		return 0x5FC105
	case SlotSignature:
		return 0x5FC10A
	case SlotManagement:
		return 0x5FC10B
	case SlotCard:
		return 0x5FC101
	case SlotAttestation:
		return 0x5FFF01
	}
	return 0x5FC10D + apdu.Tag(s-SlotRetired)
}
