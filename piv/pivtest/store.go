package pivtest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
)

// Slots of keys (NIST SP 800-73-4 Part 1, Table 4b; F9 is Yubico's). The retired ones are 82 to 95.
const (
	SlotAuthentication = 0x9A
	SlotManagement     = 0x9B // the management key
	SlotSignature      = 0x9C
	SlotKeyManagement  = 0x9D
	SlotCardAuth       = 0x9E
	SlotRetired1       = 0x82
	SlotRetired20      = 0x95
	SlotAttestation    = 0xF9
)

// Algorithms (NIST SP 800-78-4, Table 6-2; from E0 on, and 05 and 16, Yubico's or newer).
const (
	AlgTDES    = 0x03
	AlgRSA3072 = 0x05
	AlgRSA1024 = 0x06
	AlgRSA2048 = 0x07
	AlgAES128  = 0x08
	AlgAES192  = 0x0A
	AlgAES256  = 0x0C
	AlgP256    = 0x11
	AlgP384    = 0x14
	AlgRSA4096 = 0x16
	AlgEd25519 = 0xE0
	AlgX25519  = 0xE1
)

// PIN policies of a key. Zero asks for the slot's own: always for 9C, never for 9E, once for the rest.
const (
	PINPolicyDefault = 0
	PINPolicyNever   = 1
	PINPolicyOnce    = 2
	PINPolicyAlways  = 3
)

// Touch policies of a key. Zero means never.
const (
	TouchPolicyDefault = 0
	TouchPolicyNever   = 1
	TouchPolicyAlways  = 2
	TouchPolicyCached  = 3 // a touch lasts 15 seconds
)

// Origins of a key.
const (
	originGenerated = 1
	originImported  = 2
)

// store is what the card remembers without power.
type store struct {
	pin, puk    secret
	management  managementKey
	keys        map[byte]*slotKey
	objects     map[uint32][]byte
	attestation *attestation // survives a reset of the applet
}

// secret is a PIN or PUK, padded with FF to eight bytes, and its tries.
type secret struct {
	value     [8]byte
	standard  [8]byte // the value after a reset
	left, max int
}

type managementKey struct {
	alg   byte
	value []byte
	touch byte
}

// slotKey is a key and how it may be used. It does not change.
type slotKey struct {
	privateKey
	alg, pin, touch, origin byte
}

// reset makes the applet factory-new.
func (s *store) reset(config Config) {
	s.pin, s.puk = newSecret(DefaultPIN, 3), newSecret(DefaultPUK, 3)
	s.management = managementKey{alg: AlgTDES, value: []byte(DefaultManagementKey), touch: TouchPolicyNever}
	if config.atLeast(5, 7) {
		s.management.alg = AlgAES192
	}
	if config.Plain {
		s.keys, s.objects = map[byte]*slotKey{}, map[uint32][]byte{}
		return
	}
	s.keys = map[byte]*slotKey{SlotAttestation: s.attestation.key}
	s.objects = map[uint32][]byte{objectAttestation: s.attestation.object}
}

func newSecret(standard string, tries int) secret {
	s := secret{left: tries, max: tries}
	copy(s.standard[:], bytes.Repeat([]byte{0xFF}, 8))
	copy(s.standard[:], standard)
	s.value = s.standard
	return s
}

// check compares and counts. On success the tries are full again.
func (s *secret) check(value []byte) sw {
	if s.left == 0 {
		return swBlocked
	}
	if subtle.ConstantTimeCompare(value, s.value[:]) != 1 {
		s.left--
		return swTries | sw(s.left)
	}
	s.left = s.max
	return swOK
}

// change sets a new value, which has 6 to 8 bytes before the padding, of seven bits each if ascii is set.
func (s *secret) change(value []byte, ascii bool) sw {
	if bytes.Contains(value[:6], []byte{0xFF}) {
		return swWrongData
	}
	if ascii && bytes.ContainsFunc(bytes.TrimRight(value, "\xFF"), func(r rune) bool { return r > 0x7F }) {
		return swWrongData
	}
	s.value = [8]byte(value)
	s.left = s.max
	return swOK
}

func (s *secret) isStandard() bool { return s.value == s.standard }

// isKeySlot reports whether the slot holds an asymmetric key.
func isKeySlot(slot byte) bool {
	switch slot {
	case SlotAuthentication, SlotSignature, SlotKeyManagement, SlotCardAuth, SlotAttestation:
		return true
	}
	return slot >= SlotRetired1 && slot <= SlotRetired20
}

// policies replaces the default policies by those of the slot. False means unknown ones.
func policies(slot, pin, touch byte) (pinPolicy, touchPolicy byte, ok bool) {
	if pin > PINPolicyAlways || touch > TouchPolicyCached {
		return 0, 0, false
	}
	if pin == PINPolicyDefault {
		switch slot {
		case SlotSignature:
			pin = PINPolicyAlways
		case SlotCardAuth:
			pin = PINPolicyNever
		default:
			pin = PINPolicyOnce
		}
	}
	if touch == TouchPolicyDefault {
		touch = TouchPolicyNever
	}
	return pin, touch, true
}

// Generate makes a key in a slot as the card's owner would, without PIN or management key,
// and returns its public key. What is in the slot is lost.
func (c *Card) Generate(slot, alg, pinPolicy, touchPolicy byte) (crypto.PublicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, status := c.newKey(slot, alg, pinPolicy, touchPolicy)
	if status != swOK {
		return nil, fmt.Errorf("generate key in slot %02x: status %04x", slot, uint16(status))
	}
	c.state.keys[slot] = key
	return key.public(), nil
}

// Put puts a key in a slot as the card's owner would, without PIN or management key: a
// *rsa.PrivateKey with two primes and the exponent 65537, an *ecdsa.PrivateKey on P-256 or P-384,
// an ed25519.PrivateKey or an X25519 *ecdh.PrivateKey. The card calls it imported. It saves
// the time that the card needs to generate long RSA keys.
func (c *Card) Put(slot byte, key crypto.PrivateKey, pinPolicy, touchPolicy byte) error {
	alg, private, ok := adopt(key)
	pin, touch, known := policies(slot, pinPolicy, touchPolicy)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok || !known || !isKeySlot(slot) || !c.knows(alg) {
		return fmt.Errorf("put key in slot %02x: the card does not take it", slot)
	}
	c.state.keys[slot] = &slotKey{private, alg, pin, touch, originImported}
	return nil
}

// PublicKey returns the public key in a slot: *rsa.PublicKey, *ecdsa.PublicKey,
// ed25519.PublicKey or *ecdh.PublicKey (X25519).
func (c *Card) PublicKey(slot byte) (crypto.PublicKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key, ok := c.state.keys[slot]
	if !ok {
		return nil, errors.New("public key: slot is empty")
	}
	return key.public(), nil
}

// SetObject writes a data object, for example a certificate, past all access rules. Nil deletes it.
func (c *Card) SetObject(tag uint32, value []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.setObject(tag, bytes.Clone(value))
}

// BlockPIN uses up the tries of the PIN.
func (c *Card) BlockPIN() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.pin.left = 0
	c.power.pinVerified, c.power.pinFresh = false, false
}

// BlockPUK uses up the tries of the PUK.
func (c *Card) BlockPUK() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state.puk.left = 0
}

// newKey generates a key for the slot.
func (c *Card) newKey(slot, alg, pin, touch byte) (*slotKey, sw) {
	pin, touch, ok := policies(slot, pin, touch)
	if !isKeySlot(slot) || !ok || !c.knows(alg) {
		return nil, swWrongData
	}
	private, err := generateKey(alg)
	if err != nil {
		return nil, swUnknownFailure
	}
	return &slotKey{private, alg, pin, touch, originGenerated}, swOK
}

// knows reports whether the firmware has the asymmetric algorithm.
func (c *Card) knows(alg byte) bool {
	switch alg {
	case AlgRSA1024, AlgRSA2048, AlgP256, AlgP384:
		return true
	case AlgRSA3072, AlgRSA4096, AlgEd25519, AlgX25519:
		return c.atLeast(5, 7)
	}
	return false
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return b
}
