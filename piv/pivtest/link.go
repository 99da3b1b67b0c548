package pivtest

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"syscall"
)

// Controls of vpcd: messages of one byte. Any other message is a command APDU.
const (
	vpcdPowerOff = 0x00
	vpcdPowerOn  = 0x01
	vpcdReset    = 0x02
	vpcdATR      = 0x04
)

// serveVPCD is the card's end of a vpcd connection: messages with a 16-bit length before each.
// It returns when the connection ends.
func serveVPCD(conn *net.TCPConn, device Device) error {
	in := bufio.NewReader(conn)
	for {
		message, err := readVPCD(conn, in)
		if err != nil {
			return err
		}
		var answer []byte
		switch {
		case len(message) != 1:
			answer = device.Transmit(message)
			if answer == nil {
				return errors.New("the card is mute") // the reader sees it leave
			}
		case message[0] == vpcdATR:
			answer = device.ATR()
		default: // power off, power on, reset
			device.Reset()
			continue
		}
		b := binary.BigEndian.AppendUint16(nil, uint16(len(answer)))
		if _, err := conn.Write(append(b, answer...)); err != nil {
			return err
		}
	}
}

// readVPCD reads one message. vpcd sends length and message apart and without TCP_NODELAY:
// unless the length is acknowledged at once, each APDU takes 40 ms more. The option does not last.
func readVPCD(conn *net.TCPConn, in *bufio.Reader) ([]byte, error) {
	quickAck(conn)
	var size [2]byte
	if _, err := io.ReadFull(in, size[:]); err != nil {
		return nil, err
	}
	quickAck(conn)
	message := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(in, message)
	return message, err
}

func quickAck(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return // closed: the next read says so
	}
	raw.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1) // slower without
	})
}
