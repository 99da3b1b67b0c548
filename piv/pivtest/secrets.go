package pivtest

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/subtle"
)

// References of secrets in P2.
const (
	refPIN = 0x80
	refPUK = 0x81
)

// verify is VERIFY (SP 800-73-4 Part 2, Section 3.2.1). P1 FF forgets the PIN.
func (c *Card) verify(cmd command) sw {
	if cmd.p2 != refPIN {
		return swNoReference
	}
	switch {
	case cmd.p1 == 0xFF && len(cmd.data) == 0:
		c.power.pinVerified = false
		return swOK
	case cmd.p1 != 0:
		return swWrongP1P2
	case len(cmd.data) == 0:
		return c.pinStatus()
	case len(cmd.data) != 8:
		return swWrongData
	}
	status := c.state.pin.check(cmd.data)
	c.power.pinVerified = status == swOK
	c.power.pinFresh = status == swOK
	return status
}

// pinStatus answers an empty VERIFY.
func (c *Card) pinStatus() sw {
	switch {
	case c.power.pinVerified:
		return swOK
	case c.state.pin.left == 0:
		return swBlocked
	}
	return swTries | sw(c.state.pin.left)
}

// change is CHANGE REFERENCE DATA (Section 3.2.2): old and new value, eight bytes each.
func (c *Card) change(cmd command) sw {
	ref := c.reference(cmd.p2)
	if ref == nil {
		return swNoReference
	}
	return c.replace(ref, ref, cmd)
}

// unblock is RESET RETRY COUNTER (Section 3.2.3): PUK and new PIN.
func (c *Card) unblock(cmd command) sw {
	if cmd.p2 != refPIN {
		return swNoReference
	}
	return c.replace(&c.state.puk, &c.state.pin, cmd)
}

func (c *Card) reference(ref byte) *secret {
	switch ref {
	case refPIN:
		return &c.state.pin
	case refPUK:
		return &c.state.puk
	}
	return nil
}

// replace checks the first eight bytes against one secret and sets another to the rest. From firmware 5.7 on it has
// ASCII characters (Yubico's .NET SDK manual, "Change reference data").
func (c *Card) replace(check, set *secret, cmd command) sw {
	if cmd.p1 != 0 {
		return swWrongP1P2
	}
	if len(cmd.data) != 16 {
		return swWrongData
	}
	if status := check.check(cmd.data[:8]); status != swOK {
		return status
	}
	return set.change(cmd.data[8:], c.atLeast(5, 7))
}

// setTries sets how many tries PIN and PUK have, and with that their default values.
func (c *Card) setTries(cmd command) sw {
	if !c.power.admin || !c.power.pinVerified {
		return swSecurity
	}
	if cmd.p1 == 0 || cmd.p2 == 0 {
		return swWrongP1P2
	}
	c.state.pin = newSecret(DefaultPIN, int(cmd.p1))
	c.state.puk = newSecret(DefaultPUK, int(cmd.p2))
	c.power.pinVerified = false
	return swOK
}

// managementCipher returns the block cipher of a management key, nil if the length does not fit.
func managementCipher(alg byte, key []byte) cipher.Block {
	var block cipher.Block
	var err error
	switch {
	case alg == AlgTDES && len(key) == 24:
		block, err = des.NewTripleDESCipher(key)
	case alg == AlgAES128 && len(key) == 16, alg == AlgAES192 && len(key) == 24, alg == AlgAES256 && len(key) == 32:
		block, err = aes.NewCipher(key)
	}
	if err != nil {
		return nil
	}
	return block
}

// setManagementKey takes algorithm, 9B, length, key. P2 is FF, or FE or FD to ask for touch.
func (c *Card) setManagementKey(cmd command) sw {
	if !c.power.admin {
		return swSecurity
	}
	touch, ok := map[byte]byte{0xFF: TouchPolicyNever, 0xFE: TouchPolicyAlways, 0xFD: TouchPolicyCached}[cmd.p2]
	if cmd.p1 != 0xFF || !ok {
		return swWrongP1P2
	}
	if len(cmd.data) < 3 || cmd.data[1] != SlotManagement || int(cmd.data[2]) != len(cmd.data)-3 {
		return swWrongData
	}
	alg, key := cmd.data[0], bytes.Clone(cmd.data[3:])
	if alg != AlgTDES && !c.atLeast(5, 4) || managementCipher(alg, key) == nil {
		return swWrongData
	}
	c.state.management = managementKey{alg, key, touch}
	return swOK
}

// proveManagement is GENERAL AUTHENTICATE with the management key (SP 800-73-4 Part 2, A.1 and A.2).
func (c *Card) proveManagement(alg byte, t map[uint32][]byte) ([]byte, sw) {
	m := c.state.management
	block := managementCipher(m.alg, m.value)
	if alg != m.alg && !(alg == 0 && m.alg == AlgTDES) {
		return nil, swWrongP1P2
	}
	size := block.BlockSize()
	witness, challenge := c.power.witness, c.power.challenge
	c.power.witness, c.power.challenge = nil, nil
	given := func(tag uint32, n int) bool { v, ok := t[tag]; return ok && len(v) == n }
	switch {
	case given(0x80, 0): // the host wants a witness
		c.power.witness = random(size)
		return encode(0x7C, encode(0x80, crypt(block.Encrypt, c.power.witness))), swOK
	case given(0x81, 0): // the host wants a challenge
		c.power.challenge = random(size)
		return encode(0x7C, encode(0x81, c.power.challenge)), swOK
	case given(0x80, size) && given(0x81, size) && witness != nil:
		return c.admit(subtle.ConstantTimeCompare(t[0x80], witness) == 1,
			encode(0x7C, encode(0x82, crypt(block.Encrypt, t[0x81]))))
	case given(0x82, size) && challenge != nil:
		return c.admit(subtle.ConstantTimeCompare(t[0x82], crypt(block.Encrypt, challenge)) == 1, nil)
	}
	return nil, swWrongData
}

// admit ends a proof of the management key.
func (c *Card) admit(proved bool, answer []byte) ([]byte, sw) {
	c.power.admin = false
	if !proved {
		return nil, swSecurity
	}
	if status := c.touch.ask(c.state.management.touch); status != swOK {
		return nil, status
	}
	c.power.admin = true
	return answer, swOK
}

func crypt(f func(dst, src []byte), src []byte) []byte {
	dst := make([]byte, len(src))
	f(dst, src)
	return dst
}
