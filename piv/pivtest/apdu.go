package pivtest

import "encoding/binary"

// A sw is a status word of ISO/IEC 7816-4, Section 5.6. Which one means what is in SP 800-73-4 Part 2, Section 3, and for
// YubiKeys in Yubico's .NET SDK manual, "PIV APDU commands": 63Cx and 6983 of VERIFY, CHANGE REFERENCE DATA and RESET RETRY
// COUNTER, 6982 of a wrong management key, 6985 of a RESET while PIN or PUK is not blocked. Two come from their
// host programs: 6A88 of GET METADATA for an empty slot (yubikit/piv.py), and 6B00 instead of the standard's
// 6A86 (yubico-piv-tool's ykpiv.h, yubikit's SW). 6A80 for an absent or wrong key is what both take for it.
// That ATTEST answers 6A80 for a key that was not generated, and MOVE KEY 6985 for an occupied slot, is nowhere written.
type sw uint16

const (
	swOK             sw = 0x9000
	swMore           sw = 0x6100 // low byte: how many bytes are left, 0 for 256 or more
	swWrongLength    sw = 0x6700
	swTries          sw = 0x63C0 // low nibble: tries left
	swSecurity       sw = 0x6982 // security status not satisfied
	swBlocked        sw = 0x6983 // authentication method blocked
	swConditions     sw = 0x6985 // conditions of use not satisfied
	swWrongData      sw = 0x6A80
	swNotFound       sw = 0x6A82
	swNoSpace        sw = 0x6A84
	swWrongP1P2      sw = 0x6A86
	swNoReference    sw = 0x6A88 // referenced data not found
	swYubicoP1P2     sw = 0x6B00 // what a YubiKey says for swWrongP1P2
	swUnknownINS     sw = 0x6D00
	swUnknownCLA     sw = 0x6E00
	swUnknownFailure sw = 0x6F00
)

// A command is a decoded command APDU.
type command struct {
	cla, ins, p1, p2 byte
	data             []byte
	le               int // most bytes wanted in one answer: 256 for a short APDU without Le
}

// parseCommand decodes a short or extended command APDU (ISO/IEC 7816-3, Section 12.1.3).
// A short APDU whose body is 00 alone is read as "no data" with Le 256.
func parseCommand(b []byte) (command, sw) {
	if len(b) < 4 {
		return command{}, swWrongLength
	}
	c := command{cla: b[0], ins: b[1], p1: b[2], p2: b[3], le: 256}
	body := b[4:]
	if len(body) >= 3 && body[0] == 0 {
		return c.extended(body[1:])
	}
	switch {
	case len(body) == 0:
	case len(body) == 1:
		c.setLe(int(body[0]), 256)
	default:
		n := int(body[0])
		rest := len(body) - 1 - n
		if n == 0 || rest < 0 || rest > 1 {
			return command{}, swWrongLength
		}
		c.data = body[1 : 1+n]
		if rest == 1 {
			c.setLe(int(body[1+n]), 256)
		}
	}
	return c, swOK
}

// extended decodes what follows the 00 that marks an extended body, at least two bytes.
func (c command) extended(b []byte) (command, sw) {
	c.le = 65536
	n := int(binary.BigEndian.Uint16(b))
	if len(b) == 2 {
		c.setLe(n, 65536)
		return c, swOK
	}
	b = b[2:]
	switch len(b) - n {
	case 0:
	case 2:
		c.setLe(int(binary.BigEndian.Uint16(b[n:])), 65536)
	default:
		return command{}, swWrongLength
	}
	if n == 0 {
		return command{}, swWrongLength
	}
	c.data = b[:n]
	return c, swOK
}

func (c *command) setLe(n, zero int) {
	if c.le = n; n == 0 {
		c.le = zero
	}
}

// appendSW appends the status word to the data of an answer.
func appendSW(data []byte, s sw) []byte {
	return append(data[:len(data):len(data)], byte(s>>8), byte(s))
}
