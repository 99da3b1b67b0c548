package pivtest

import (
	"bytes"
	"encoding/binary"
)

// applet is which application of the card is selected.
type applet int

const (
	appletNone applet = iota // after reset
	appletPIV
	appletOTP        // answers its serial number
	appletManagement // answers the device information
)

// Application identifiers (AIDs).
const (
	aidPIV        = "\xA0\x00\x00\x03\x08\x00\x00\x10\x00\x01\x00"
	aidOTP        = "\xA0\x00\x00\x05\x27\x20\x01\x01"
	aidManagement = "\xA0\x00\x00\x05\x27\x47\x11\x17"
)

// swMute is no status word: the card does not answer.
const swMute sw = 0

// Commands of PIV (SP 800-73-4 Part 2, Section 3) and Yubico's.
const (
	insVerify       = 0x20
	insChange       = 0x24
	insUnblock      = 0x2C
	insGenerate     = 0x47
	insAuthenticate = 0x87
	insSelect       = 0xA4
	insGetData      = 0xCB
	insPutData      = 0xDB
	insMoveKey      = 0xF6
	insMetadata     = 0xF7
	insSerial       = 0xF8
	insAttest       = 0xF9
	insSetTries     = 0xFA
	insReset        = 0xFB
	insVersion      = 0xFD
	insImport       = 0xFE
	insSetManage    = 0xFF
)

// dispatch runs a whole command and returns the whole answer.
func (c *Card) dispatch(cmd command) ([]byte, sw) {
	fresh := c.power.pinFresh
	c.power.pinFresh = false
	if cmd.ins == insSelect {
		return c.selectApplet(cmd)
	}
	switch c.power.applet {
	case appletPIV:
		return c.piv(cmd, fresh)
	case appletOTP:
		if cmd.ins == 0x01 && cmd.p1 == 0x10 {
			return binary.BigEndian.AppendUint32(nil, c.config.Serial), swOK
		}
	case appletManagement:
		if cmd.ins == 0x1D {
			return c.deviceInfo(), swOK
		}
	}
	return nil, swUnknownINS
}

func (c *Card) piv(cmd command, fresh bool) ([]byte, sw) {
	switch cmd.ins {
	case insVerify:
		return nil, c.verify(cmd)
	case insChange:
		return nil, c.change(cmd)
	case insUnblock:
		return nil, c.unblock(cmd)
	case insGenerate:
		return c.generate(cmd)
	case insAuthenticate:
		return c.authenticate(cmd, fresh)
	case insGetData:
		return c.getData(cmd)
	case insPutData:
		return nil, c.putData(cmd)
	}
	return c.yubico(cmd)
}

// yubico runs the commands that came with a firmware.
func (c *Card) yubico(cmd command) ([]byte, sw) {
	switch {
	case c.config.Plain:
		return nil, swUnknownINS
	case cmd.ins == insVersion:
		return c.config.Version[:], swOK
	case cmd.ins == insImport:
		return nil, c.importKey(cmd)
	case cmd.ins == insSetManage:
		return nil, c.setManagementKey(cmd)
	case cmd.ins == insSetTries:
		return nil, c.setTries(cmd)
	case cmd.ins == insReset:
		return nil, c.resetApplet()
	case cmd.ins == insAttest && c.atLeast(4, 3):
		return c.attest(cmd.p1)
	case cmd.ins == insSerial && c.atLeast(5, 0):
		return binary.BigEndian.AppendUint32(nil, c.config.Serial), swOK
	case cmd.ins == insMetadata && c.atLeast(5, 3):
		return c.metadata(cmd.p2)
	case cmd.ins == insMoveKey && c.atLeast(5, 7):
		return nil, c.moveKey(cmd.p1, cmd.p2)
	}
	return nil, swUnknownINS
}

// selectApplet selects by a full or partial name. Selecting PIV again keeps the PIN's state
// (SP 800-73-4 Part 2, Section 3.1.1), selecting another applet loses it.
func (c *Card) selectApplet(cmd command) ([]byte, sw) {
	if cmd.p1 != 0x04 || cmd.p2 != 0x00 {
		return nil, swWrongP1P2
	}
	next := appletNone
	switch {
	case len(cmd.data) >= 5 && bytes.HasPrefix([]byte(aidPIV), cmd.data):
		next = appletPIV
	case string(cmd.data) == aidOTP && !c.config.Plain:
		next = appletOTP
	case string(cmd.data) == aidManagement && !c.config.Plain:
		next = appletManagement
	default:
		return nil, swNotFound
	}
	verified := c.power.pinVerified && next == appletPIV && c.power.applet == appletPIV
	c.power = volatile{applet: next, pinVerified: verified}
	switch next {
	case appletPIV:
		// Application property template (SP 800-73-4 Part 2, Table 3).
		return encode(0x61, encode(0x4F, []byte(aidPIV[5:])), encode(0x79, encode(0x4F, []byte(aidPIV[:5])))), swOK
	case appletOTP:
		return append(c.config.Version[:3:3], 0, 0, 0), swOK
	}
	return []byte("Virtual mgr - FW version"), swOK
}

// deviceInfo answers READ CONFIG of the management applet: serial, form factor, version.
func (c *Card) deviceInfo() []byte {
	info := encode(0x02, binary.BigEndian.AppendUint32(nil, c.config.Serial))
	info = append(info, encode(0x04, []byte{formFactor})...)
	info = append(info, encode(0x05, c.config.Version[:])...)
	return append([]byte{byte(len(info))}, info...)
}

// resetApplet makes the applet new, which only a card with PIN and PUK blocked does.
func (c *Card) resetApplet() sw {
	if c.state.pin.left > 0 || c.state.puk.left > 0 {
		return swConditions
	}
	c.state.reset(c.config)
	c.power = volatile{applet: appletPIV}
	return swOK
}
