package pcsc

import "fmt"

// Error is a result code of PC/SC (pcsclite.h).
type Error uint32

// The codes that this project tells apart.
const (
	InvalidHandle     Error = 0x80100003
	UnknownReader     Error = 0x80100009
	Timeout           Error = 0x8010000A
	SharingViolation  Error = 0x8010000B
	NoSmartcard       Error = 0x8010000C
	ProtocolMismatch  Error = 0x8010000F
	InvalidValue      Error = 0x80100011
	NotReady          Error = 0x80100010
	CommunicationFail Error = 0x80100013
	NotTransacted     Error = 0x80100016
	ReaderUnavailable Error = 0x80100017
	NoService         Error = 0x8010001D
	ServiceStopped    Error = 0x8010001E
	NoReaders         Error = 0x8010002E
	CommDataLost      Error = 0x8010002F
	Unresponsive      Error = 0x80100066
	Unpowered         Error = 0x80100067
	CardReset         Error = 0x80100068
	CardRemoved       Error = 0x80100069
	SecurityViolation Error = 0x8010006A
)

// Error describes the code.
func (e Error) Error() string {
	text := map[Error]string{
		InvalidHandle:     "invalid handle",
		UnknownReader:     "no such reader",
		Timeout:           "timed out",
		SharingViolation:  "another program holds the card",
		NoSmartcard:       "no card in the reader",
		ProtocolMismatch:  "card speaks another protocol",
		NotReady:          "card not ready",
		InvalidValue:      "invalid value",
		CommunicationFail: "communication with the reader failed",
		NotTransacted:     "communication with the card failed",
		ReaderUnavailable: "reader was unplugged",
		NoService:         "pcscd is not running",
		ServiceStopped:    "pcscd has stopped",
		NoReaders:         "no readers",
		CommDataLost:      "communication with the card lost",
		Unresponsive:      "card does not respond to a reset",
		Unpowered:         "card was powered down",
		CardReset:         "card was reset",
		CardRemoved:       "card was removed",
		SecurityViolation: "pcscd refuses access to the card",
	}[e]
	if text == "" {
		text = "PC/SC error"
	}
	return fmt.Sprintf("%s (%08x)", text, uint32(e))
}

func check(rv uint32) error {
	if rv != 0 {
		return Error(rv)
	}
	return nil
}
