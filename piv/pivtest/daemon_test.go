package pivtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

const readerA, readerB = "Yubico YubiKey OTP+FIDO+CCID 00 00", "Other Reader 01 00"

var getVersion = []byte{0, insVersion, 0, 0}

// session is a client of the daemon with a context.
type session struct {
	t       testing.TB
	conn    net.Conn
	context uint32
}

func dial(t testing.TB, socket string) *session {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &session{t: t, conn: conn}
}

func open(t testing.TB, socket string) *session {
	t.Helper()
	s := dial(t, socket)
	b := make(body, 12)
	b.setWord(0, protocolMajor)
	b.setWord(4, protocolMinor)
	s.want(Success, CommandVersion, b)
	b = make(body, 12)
	s.want(Success, CommandEstablish, b)
	s.context = b.word(4)
	return s
}

// call sends a request, whose body becomes the reply, and returns the code in it.
func (s *session) call(command Command, b body) Code {
	s.t.Helper()
	if err := request(s.conn, command, b, len(b)); err != nil {
		s.t.Fatal(err)
	}
	return Code(b.word(len(b) - 4))
}

func (s *session) want(want Code, command Command, b body) {
	s.t.Helper()
	if got := s.call(command, b); got != want {
		s.t.Fatalf("request %02X: got %08X, want %08X", command, got, want)
	}
}

// handle sends a request about a card handle with up to three more words.
func (s *session) handle(want Code, command Command, h uint32, words ...uint32) {
	s.t.Helper()
	size, _ := command.bodySize()
	b := make(body, size)
	b.setWord(0, h)
	for i, w := range words {
		b.setWord(4*i+4, w)
	}
	s.want(want, command, b)
}

func (s *session) connect(want Code, reader string, mode uint32) uint32 {
	s.t.Helper()
	b := connectBody(s.context, reader, mode)
	s.want(want, CommandConnect, b)
	return b.word(12 + readerNameSize)
}

func connectBody(context uint32, reader string, mode uint32) body {
	b := make(body, 24+readerNameSize)
	b.setWord(0, context)
	copy(b[4:], reader)
	b.setWord(4+readerNameSize, mode)
	b.setWord(8+readerNameSize, protocolT0|protocolT1)
	return b
}

func (s *session) transmit(want Code, h uint32, apdu []byte) []byte {
	s.t.Helper()
	s.send(h, apdu)
	return s.receive(want)
}

func (s *session) send(h uint32, apdu []byte) {
	s.t.Helper()
	b := make(body, 32)
	b.setWord(0, h)
	b.setWord(4, protocolT1)
	b.setWord(12, uint32(len(apdu)))
	b.setWord(24, 258)
	header := binary.NativeEndian.AppendUint32(nil, uint32(len(b)))
	header = binary.NativeEndian.AppendUint32(header, uint32(CommandTransmit))
	if _, err := s.conn.Write(slices.Concat(header, b, apdu)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) receive(want Code) []byte {
	s.t.Helper()
	b := make(body, 32)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		s.t.Fatal(err)
	}
	code := Code(b.word(28))
	if code != want {
		s.t.Fatalf("transmit: got %08X, want %08X", code, want)
	}
	if code != Success {
		return nil
	}
	answer := make([]byte, b.word(24))
	if _, err := io.ReadFull(s.conn, answer); err != nil {
		s.t.Fatal(err)
	}
	return answer
}

// closed fails unless the daemon has closed the connection.
func (s *session) closed() {
	s.t.Helper()
	if _, err := s.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		s.t.Errorf("the connection is not closed: %v", err)
	}
}

// station is a daemon with a card in one reader and an empty second one.
func station(t testing.TB) (*Daemon, *Reader, *Card) {
	t.Helper()
	d := StartDaemon(t)
	card := NewCard(Config{})
	r := d.AddReader(readerA, card)
	d.AddReader(readerB, nil)
	return d, r, card
}

func TestDaemonFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		fault    func(*Reader)
		transmit Code // with the old handle
		connect  Code // a new handle
		heal     func(*Reader)
	}{
		{"nothing", func(*Reader) {}, Success, Success, nil},
		{"card removed", (*Reader).Remove, RemovedCard, NoSmartcard, func(r *Reader) { r.Insert(NewCard(Config{})) }},
		{"card swapped", func(r *Reader) { r.Insert(NewCard(Config{})) }, RemovedCard, Success, nil},
		{"reader unplugged", (*Reader).Unplug, InvalidValue, UnknownReader, (*Reader).Plug},
		{"reader unplugged and back", func(r *Reader) { r.Unplug(); r.Plug() }, InvalidValue, Success, nil},
		{"reset by another", (*Reader).ResetByOther, ResetCard, Success, nil},
		{"power down", (*Reader).PowerDown, ResetCard, UnpoweredCard, (*Reader).PowerUp},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d, r, _ := station(t)
			s := open(t, d.Socket)
			h := s.connect(Success, readerA, shareShared)
			s.transmit(Success, h, append([]byte{0, insSelect, 4, 0, 11}, aidPIV...))
			c.fault(r)
			s.transmit(c.transmit, h, getVersion)
			other := s.connect(c.connect, readerA, shareShared)
			if c.heal != nil {
				c.heal(r)
				other = s.connect(Success, readerA, shareShared)
			}
			s.transmit(Success, other, append([]byte{0, insSelect, 4, 0, 11}, aidPIV...))
			s.handle(Success, CommandDisconnect, h, leaveCard)
			s.handle(Success, CommandDisconnect, other, leaveCard)
			if n := r.Handles(); n != 0 {
				t.Errorf("%d handles are left", n)
			}
		})
	}
}

// What ends a command that the card does not answer, and with which code.
func TestDaemonSilence(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(*Reader)
		want Code
	}{
		"speak":  {(*Reader).Speak, NotTransacted},
		"remove": {(*Reader).Remove, NotTransacted},
		"unplug": {(*Reader).Unplug, ReaderUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, r, _ := station(t)
			s := open(t, d.Socket)
			h := s.connect(Success, readerA, shareShared)
			r.Silence()
			s.send(h, getVersion)
			other := open(t, d.Socket)
			other.connect(NoSmartcard, readerB, shareShared) // others are served
			for !r.isBusy() {
				other.handle(Success, CommandStatus, other.connect(Success, readerA, shareShared))
			}
			c.end(r)
			s.receive(c.want)
		})
	}
}

// isBusy reports whether a command is with the card.
func (r *Reader) isBusy() bool { return len(r.busy) == 1 }

func TestDaemonMuteCard(t *testing.T) {
	t.Parallel()
	d, _, card := station(t)
	card.OnAPDU(func([]byte, func([]byte) []byte) []byte { return nil })
	s := open(t, d.Socket)
	h := s.connect(Success, readerA, shareShared)
	s.transmit(NotTransacted, h, getVersion)
	card.OnAPDU(nil)
	s.transmit(Success, h, getVersion)
}

// A transaction's end is noticed by who waits for it.
func TestDaemonWaitsForTransaction(t *testing.T) {
	t.Parallel()
	d, _, _ := station(t)
	one, two := open(t, d.Socket), open(t, d.Socket)
	h1 := one.connect(Success, readerA, shareShared)
	one.handle(Success, CommandBegin, h1)
	connected := make(chan Code)
	go func() { connected <- two.call(CommandConnect, connectBody(two.context, readerA, shareShared)) }()
	one.handle(Success, CommandEnd, h1, leaveCard)
	if code := <-connected; code != Success {
		t.Errorf("connect after the transaction: %08X", code)
	}
}

// stopWaiting makes the daemon send a change if it has not sent one already.
func (s *session) stopWaiting() {
	s.t.Helper()
	if err := request(s.conn, CommandStopWaiting, nil, 0); err != nil {
		s.t.Fatal(err)
	}
}

// states asks for the readers and for word of the next change.
func (s *session) states() []byte {
	s.t.Helper()
	if err := request(s.conn, CommandWaitChange, nil, 0); err != nil {
		s.t.Fatal(err)
	}
	states := make([]byte, maxReaders*readerStateSize)
	if _, err := io.ReadFull(s.conn, states); err != nil {
		s.t.Fatal(err)
	}
	return states
}

func (s *session) change() Code {
	s.t.Helper()
	b := make(body, 8)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		s.t.Fatal(err)
	}
	return Code(b.word(4))
}

func TestDaemonReaderStates(t *testing.T) {
	t.Parallel()
	d, r, _ := station(t)
	s := open(t, d.Socket)
	for _, step := range []struct {
		name string
		do   func(*Reader)
		want uint32
	}{
		{"present", nil, statePresent | statePowered | stateNegotiable},
		{"removed", (*Reader).Remove, stateAbsent},
		{"unplugged", (*Reader).Unplug, 0},
		{"plugged in without a card", (*Reader).Plug, stateAbsent},
		{"inserted", func(r *Reader) { r.Insert(NewCard(Config{})) }, statePresent | statePowered | stateNegotiable},
		{"without power", (*Reader).PowerDown, statePresent},
	} {
		if step.do != nil {
			step.do(r)
			if code := s.change(); code != Success {
				t.Fatalf("%s: change %08X", step.name, code)
			}
		}
		if state, there := readerState(s.states(), readerA); state != step.want || there != (step.want != 0) {
			t.Errorf("%s: state %02X, want %02X", step.name, state, step.want)
		}
	}
}

func TestDaemonCancel(t *testing.T) {
	t.Parallel()
	d, _, _ := station(t)
	s, other := open(t, d.Socket), open(t, d.Socket)
	cancel := make(body, 8)
	cancel.setWord(0, s.context)
	other.want(InvalidHandle, CommandCancel, cancel)
	s.states()
	cancel = make(body, 8)
	cancel.setWord(0, s.context)
	other.want(Success, CommandCancel, cancel)
	if code := s.change(); code != Cancelled {
		t.Errorf("the waiting client gets %08X", code)
	}
	s.states()
	s.stopWaiting()
	if code := s.change(); code != Success {
		t.Errorf("stop waiting: %08X", code)
	}
}

func TestDaemonInject(t *testing.T) {
	t.Parallel()
	d, _, _ := station(t)
	s := open(t, d.Socket)
	h := s.connect(Success, readerA, shareShared)
	fault := InternalError
	d.Inject(func(c Call) Code {
		if c.Command == CommandTransmit && c.Reader == readerA || c.Command == CommandConnect && c.Reader == readerB {
			return fault
		}
		return Success
	})
	for _, fault = range []Code{CommError, ResetCard, 0x80100099} {
		s.transmit(fault, h, getVersion)
		s.connect(fault, readerB, shareShared)
		s.connect(Success, readerA, shareShared)
	}
	d.Inject(nil)
	s.transmit(Success, h, getVersion)
}

func TestDaemonRestart(t *testing.T) {
	t.Parallel()
	d, r, _ := station(t)
	s := open(t, d.Socket)
	h := s.connect(Success, readerA, shareExclusive)
	r.Silence()
	s.send(h, getVersion)
	d.Stop()
	s.closed()
	if _, err := net.Dial("unix", d.Socket); err == nil {
		t.Error("a stopped daemon takes connections")
	}
	r.Speak()
	d.Start()
	s = open(t, d.Socket)
	s.transmit(Success, s.connect(Success, readerA, shareExclusive), getVersion)
}

func TestDaemonPowerDownWhenIdle(t *testing.T) {
	t.Parallel()
	d, r, card := station(t)
	r.PowerDownWhenIdle()
	s := open(t, d.Socket)
	h := s.connect(Success, readerA, shareShared)
	s.transmit(Success, h, append([]byte{0, insSelect, 4, 0, 11}, aidPIV...))
	s.handle(Success, CommandDisconnect, h, leaveCard)
	if got := card.Transmit(getVersion); !bytes.Equal(got, []byte{0x6D, 0}) {
		t.Errorf("the card kept its state: % X", got)
	}
	s.connect(Success, readerA, shareShared)
}

func TestDaemonVersions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		server, major, minor uint32
		want                 Code
	}{
		{4, 4, 4, Success}, {4, 4, 5, ServiceStopped}, {4, 4, 3, ServiceStopped}, {4, 5, 4, ServiceStopped},
		{6, 4, 4, Success}, {6, 4, 5, Success}, {6, 4, 6, Success}, {6, 4, 3, ServiceStopped}, {3, 4, 4, ServiceStopped},
	} {
		d := StartDaemon(t)
		d.SetProtocolMinor(c.server)
		b := make(body, 12)
		b.setWord(0, c.major)
		b.setWord(4, c.minor)
		dial(t, d.Socket).want(c.want, CommandVersion, b)
		if b.word(4) != c.server {
			t.Errorf("the daemon says version 4.%d, want 4.%d", b.word(4), c.server)
		}
	}
}

// A request out of form ends the connection, and nothing else.
func TestDaemonBadRequests(t *testing.T) {
	t.Parallel()
	d, _, _ := station(t)
	word := func(v ...uint32) (b []byte) {
		for _, w := range v {
			b = binary.NativeEndian.AppendUint32(b, w)
		}
		return b
	}
	for name, request := range map[string][]byte{
		"unknown command":  word(0, 0x77),
		"wrong size":       word(4, uint32(CommandVersion), 0),
		"huge size":        word(1<<31, uint32(CommandConnect)),
		"unknown handle":   word(8, uint32(CommandStatus), 99, 0),
		"transmit too big": word(32, uint32(CommandTransmit), 1, 2, 8, 1<<30, 2, 8, 258, 0),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, d.Socket)
			if _, err := s.conn.Write(request); err != nil {
				t.Fatal(err)
			}
			s.closed()
		})
	}
	s := open(t, d.Socket)
	s.connect(UnknownReader, "no such reader", shareShared)
	s.connect(InvalidValue, readerA, 9)
	s.transmit(Success, s.connect(Success, readerA, shareShared), getVersion)
}

func TestDaemonAttribute(t *testing.T) {
	t.Parallel()
	d, _, card := station(t)
	s := open(t, d.Socket)
	b := make(body, 16+attributeSize)
	b.setWord(0, s.connect(Success, readerA, shareShared))
	b.setWord(4, attrATR)
	s.want(Success, CommandGetAttrib, b)
	if n := b.word(8 + attributeSize); !bytes.Equal(b[8:8+n], card.ATR()) {
		t.Errorf("ATR % X", b[8:8+n])
	}
}

func BenchmarkTransmit(b *testing.B) {
	d, _, _ := station(b)
	s := open(b, d.Socket)
	h := s.connect(Success, readerA, shareShared)
	if err := s.conn.SetDeadline(time.Time{}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s.transmit(Success, h, getVersion)
	}
}
