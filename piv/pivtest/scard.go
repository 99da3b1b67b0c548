package pivtest

import "encoding/binary"

// A Code is a result of PC/SC, as pcsclite.h lists them.
type Code uint32

// The results.
const (
	Success            Code = 0
	InternalError      Code = 0x80100001
	Cancelled          Code = 0x80100002
	InvalidHandle      Code = 0x80100003
	InvalidParameter   Code = 0x80100004
	InsufficientBuffer Code = 0x80100008
	UnknownReader      Code = 0x80100009
	Timeout            Code = 0x8010000A
	SharingViolation   Code = 0x8010000B
	NoSmartcard        Code = 0x8010000C
	ProtoMismatch      Code = 0x8010000F
	InvalidValue       Code = 0x80100011
	CommError          Code = 0x80100013
	NotTransacted      Code = 0x80100016
	ReaderUnavailable  Code = 0x80100017
	NoService          Code = 0x8010001D
	ServiceStopped     Code = 0x8010001E
	UnsupportedFeature Code = 0x8010001F
	NoReaders          Code = 0x8010002E
	UnresponsiveCard   Code = 0x80100066
	UnpoweredCard      Code = 0x80100067
	ResetCard          Code = 0x80100068
	RemovedCard        Code = 0x80100069
)

// A Command is a request of libpcsclite's protocol (winscard_msg.h, enum pcsc_msg_commands).
type Command uint32

// The requests.
const (
	CommandEstablish   Command = 0x01
	CommandRelease     Command = 0x02
	CommandConnect     Command = 0x04
	CommandReconnect   Command = 0x05
	CommandDisconnect  Command = 0x06
	CommandBegin       Command = 0x07
	CommandEnd         Command = 0x08
	CommandTransmit    Command = 0x09
	CommandControl     Command = 0x0A
	CommandStatus      Command = 0x0B
	CommandCancel      Command = 0x0D
	CommandGetAttrib   Command = 0x0F
	CommandSetAttrib   Command = 0x10
	CommandVersion     Command = 0x11
	CommandReaders     Command = 0x12
	CommandWaitChange  Command = 0x13
	CommandStopWaiting Command = 0x14
)

const (
	protocolMajor = 4
	protocolMinor = 4 // pcscd 1.8.24 to 1.9.9; later ones still take it

	maxReaders      = 16
	readerNameSize  = 128
	readerStateSize = 184
	attributeSize   = 264
	maxTransmit     = 4 + 3 + 1<<16 + 3 + 2
)

// bodySize returns the length of a request after its header, which is also that of the reply.
// In every body, integers are 32 bits in the byte order of the machine; the result comes last.
func (c Command) bodySize() (int, bool) {
	switch c {
	case CommandRelease, CommandBegin, CommandStatus, CommandCancel:
		return 8, true
	case CommandEstablish, CommandDisconnect, CommandEnd, CommandVersion:
		return 12, true
	case CommandReconnect, CommandControl:
		return 24, true
	case CommandTransmit:
		return 32, true
	case CommandConnect:
		return 24 + readerNameSize, true
	case CommandGetAttrib, CommandSetAttrib:
		return 16 + attributeSize, true
	case CommandReaders, CommandWaitChange, CommandStopWaiting:
		return 0, true
	}
	return 0, false
}

// hasHandle reports whether the first word of the body is a card handle.
func (c Command) hasHandle() bool {
	switch c {
	case CommandReconnect, CommandDisconnect, CommandBegin, CommandEnd, CommandTransmit,
		CommandControl, CommandStatus, CommandGetAttrib, CommandSetAttrib:
		return true
	}
	return false
}

// body is a request, turned into its reply in place.
type body []byte

func (b body) word(at int) uint32       { return binary.NativeEndian.Uint32(b[at:]) }
func (b body) setWord(at int, v uint32) { binary.NativeEndian.PutUint32(b[at:], v) }
func (b body) setResult(code Code)      { b.setWord(len(b)-4, uint32(code)) }

// Share modes, dispositions, protocols and states (pcsclite.h).
const (
	shareExclusive = 1
	shareShared    = 2
	shareDirect    = 3

	leaveCard   = 0
	resetCard   = 1
	unpowerCard = 2
	ejectCard   = 3

	protocolT0  = 1
	protocolT1  = 2
	protocolRaw = 4

	stateAbsent     = 0x02
	statePresent    = 0x04
	statePowered    = 0x10
	stateNegotiable = 0x20

	attrATR = 0x00090303
	// ioctlFeatures asks for PIN pad features (PC/SC Part 10); the answer is an empty list.
	ioctlFeatures = 0x42000D48
)
