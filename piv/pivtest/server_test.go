package pivtest

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// server is a pcscd with a card in one of two readers: our own or the real one. What is tested
// here is that ours behaves as the real one does.
type server struct {
	t      testing.TB
	socket string
	reader string // the one with the card
	empty  string
	card   *Card
	insert func(*Card)
	remove func()
}

func overServers(t *testing.T, test func(t *testing.T, s *server)) {
	t.Run("own pcscd", func(t *testing.T) {
		t.Parallel()
		d, r, card := station(t)
		test(t, &server{t, d.Socket, readerA, readerB, card, func(c *Card) { r.Insert(c) }, r.Remove})
	})
	t.Run("real pcscd", func(t *testing.T) {
		t.Parallel()
		p := StartPcscd(t)
		card := NewCard(Config{})
		p.Insert(0, card)
		test(t, &server{t, p.Socket, p.ReaderName(0), p.ReaderName(1), card,
			func(c *Card) { p.Insert(0, c) }, func() { p.Remove(0) }})
	})
}

func (s *server) open() *session { return open(s.t, s.socket) }

var selectPIV = append([]byte{0, insSelect, 4, 0, 11}, aidPIV...)

func TestServerConnect(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		c := s.open()
		c.connect(UnknownReader, "no such reader", shareShared)
		c.connect(InvalidValue, s.reader, 9)
		c.connect(NoSmartcard, s.empty, shareShared)
		c.handle(Success, CommandDisconnect, c.connect(Success, s.empty, shareDirect), leaveCard)
		h := c.connect(Success, s.reader, shareExclusive)
		c.connect(SharingViolation, s.reader, shareShared)
		c.transmit(Success, h, selectPIV)
		if got := c.transmit(Success, h, getVersion); !bytes.Equal(got, []byte{5, 7, 1, 0x90, 0}) {
			t.Errorf("version % X", got)
		}
		c.handle(Success, CommandDisconnect, h, leaveCard)
		c.transmit(Success, c.connect(Success, s.reader, shareShared), getVersion) // PIV is still selected
	})
}

func TestServerSharing(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		one, two := s.open(), s.open()
		h1 := one.connect(Success, s.reader, shareShared)
		h2 := two.connect(Success, s.reader, shareShared)
		two.connect(SharingViolation, s.reader, shareExclusive)
		one.handle(Success, CommandBegin, h1)
		one.handle(Success, CommandBegin, h1) // they nest
		two.handle(SharingViolation, CommandBegin, h2)
		two.transmit(SharingViolation, h2, getVersion)
		two.handle(SharingViolation, CommandStatus, h2)
		one.transmit(Success, h1, getVersion)
		one.handle(Success, CommandEnd, h1, leaveCard)
		two.transmit(SharingViolation, h2, getVersion)
		two.handle(SharingViolation, CommandEnd, h2, leaveCard)
		one.handle(Success, CommandEnd, h1, leaveCard)
		one.handle(NotTransacted, CommandEnd, h1, leaveCard)
		two.transmit(Success, h2, getVersion)
		two.handle(Success, CommandDisconnect, h2, leaveCard)
		one.handle(Success, CommandReconnect, h1, shareExclusive, protocolT1, leaveCard)
		two.connect(SharingViolation, s.reader, shareShared)
		one.handle(Success, CommandBegin, h1)
		one.handle(Success, CommandEnd, h1, leaveCard)
		one.handle(NotTransacted, CommandEnd, h1, leaveCard)
		one.handle(Success, CommandDisconnect, h1, leaveCard)
		two.connect(Success, s.reader, shareShared)
	})
}

// A reset by one program is told to the others, and to the one itself but after Reconnect.
func TestServerReset(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		one, two := s.open(), s.open()
		h1 := one.connect(Success, s.reader, shareShared)
		h2 := two.connect(Success, s.reader, shareShared)
		one.handle(Success, CommandReconnect, h1, shareShared, protocolT1, resetCard)
		one.transmit(Success, h1, getVersion)
		for _, command := range []Command{CommandStatus, CommandBegin} {
			two.handle(ResetCard, command, h2)
		}
		two.transmit(ResetCard, h2, getVersion)
		two.handle(Success, CommandReconnect, h2, shareShared, protocolT1, leaveCard)
		two.transmit(Success, h2, getVersion)
		two.handle(Success, CommandDisconnect, h2, resetCard)
		one.transmit(ResetCard, h1, getVersion)
		one.handle(ResetCard, CommandEnd, h1, leaveCard)
		one.handle(Success, CommandDisconnect, h1, leaveCard)
		h1 = one.connect(Success, s.reader, shareShared)
		one.handle(Success, CommandBegin, h1)
		one.handle(Success, CommandEnd, h1, resetCard)
		one.transmit(ResetCard, h1, getVersion)
	})
}

// A handle of a card that was taken out never heals; a new one finds the new card.
func TestServerRemove(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		c := s.open()
		h := c.connect(Success, s.reader, shareShared)
		s.remove()
		c.transmit(RemovedCard, h, getVersion)
		c.handle(RemovedCard, CommandStatus, h)
		c.handle(RemovedCard, CommandBegin, h)
		c.handle(NoSmartcard, CommandReconnect, h, shareShared, protocolT1, leaveCard)
		c.connect(NoSmartcard, s.reader, shareShared)
		s.insert(NewCard(Config{Serial: 77}))
		c.transmit(RemovedCard, h, getVersion)
		c.handle(Success, CommandDisconnect, h, leaveCard)
		h = c.connect(Success, s.reader, shareShared)
		c.transmit(Success, h, selectPIV)
		if got := c.transmit(Success, h, []byte{0, insSerial, 0, 0}); !bytes.Equal(got, []byte{0, 0, 0, 77, 0x90, 0}) {
			t.Errorf("serial number % X", got)
		}
	})
}

// A client that goes away leaves no handle and no transaction; the card is reset.
func TestServerAbandonedHandle(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		one, two := s.open(), s.open()
		h1 := one.connect(Success, s.reader, shareShared)
		h2 := two.connect(Success, s.reader, shareShared)
		one.transmit(Success, h1, selectPIV)
		one.handle(Success, CommandBegin, h1)
		one.conn.Close()
		b := make(body, 8)
		for b.setWord(0, h2); two.call(CommandBegin, b) == SharingViolation; b.setWord(4, 0) {
		}
		two.transmit(ResetCard, h2, getVersion)
	})
}

// users returns how many handles of the reader with the card are open.
func (s *server) users() uint32 {
	s.t.Helper()
	c := s.open()
	defer c.conn.Close()
	if err := request(c.conn, CommandReaders, nil, 0); err != nil {
		s.t.Fatal(err)
	}
	states := make([]byte, maxReaders*readerStateSize)
	if _, err := io.ReadFull(c.conn, states); err != nil {
		s.t.Fatal(err)
	}
	for ; len(states) > 0; states = states[readerStateSize:] {
		if name, _, _ := bytes.Cut(states[:readerNameSize], []byte{0}); string(name) == s.reader {
			return body(states).word(readerNameSize + 8)
		}
	}
	s.t.Fatal("the reader is not listed")
	return 0
}

// A client that goes away without a transaction leaves the card as it is.
func TestServerAbandonedConnection(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		one, two := s.open(), s.open()
		h1 := one.connect(Success, s.reader, shareShared)
		h2 := two.connect(Success, s.reader, shareShared)
		one.transmit(Success, h1, selectPIV)
		one.conn.Close()
		for s.users() != 1 {
		}
		two.transmit(Success, h2, getVersion)
	})
}

// Connecting lasts as long as another client's transaction. The client that ended its side of the connection meanwhile gets
// its answer, and then its handle is gone without a trace.
func TestServerConnectingWaits(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		one, two := s.open(), s.open()
		h1 := one.connect(Success, s.reader, shareShared)
		one.handle(Success, CommandBegin, h1)
		b := connectBody(two.context, s.reader, shareShared)
		if err := request(two.conn, CommandConnect, b, 0); err != nil {
			t.Fatal(err)
		}
		if err := two.conn.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		one.transmit(Success, h1, selectPIV)
		if n := s.users(); n != 1 {
			t.Errorf("%d users in a transaction", n)
		}
		one.handle(Success, CommandEnd, h1, leaveCard)
		answer, err := io.ReadAll(two.conn)
		if err != nil || len(answer) != len(b) || Code(body(answer).word(len(b)-4)) != Success {
			t.Errorf("answer to connecting: % X, %v", answer, err)
		}
		for s.users() != 1 {
		}
		one.transmit(Success, h1, getVersion)
	})
}

func TestServerRelease(t *testing.T) {
	t.Parallel()
	overServers(t, func(t *testing.T, s *server) {
		one, two := s.open(), s.open()
		one.connect(Success, s.reader, shareExclusive)
		b := make(body, 8)
		b.setWord(0, one.context)
		one.want(Success, CommandRelease, b)
		two.connect(Success, s.reader, shareExclusive)
	})
}

func TestPcscdRestart(t *testing.T) {
	t.Parallel()
	p := StartPcscd(t)
	p.Insert(1, NewCard(Config{}))
	s := open(t, p.Socket)
	s.connect(Success, p.ReaderName(1), shareShared)
	p.Kill()
	s.closed()
	p.Start()
	p.Insert(1, NewCard(Config{}))
	s = open(t, p.Socket)
	s.transmit(Success, s.connect(Success, p.ReaderName(1), shareShared), getVersion)
}

// Between a pull and its discovery a command fails in the driver.
func TestPcscdPull(t *testing.T) {
	t.Parallel()
	p := StartPcscd(t)
	p.Insert(0, NewCard(Config{}))
	s := open(t, p.Socket)
	h := s.connect(Success, p.ReaderName(0), shareShared)
	if !p.Pull(0) || p.Pull(0) {
		t.Error("Pull does not say whether there was a card")
	}
	s.send(h, getVersion)
	b := make(body, 32)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		t.Fatal(err)
	}
	if code := Code(b.word(28)); code != NotTransacted && code != RemovedCard {
		t.Errorf("transmit: %08X", code)
	}
}

func BenchmarkPcscdTransmit(b *testing.B) {
	p := StartPcscd(b)
	p.Insert(0, NewCard(Config{}))
	s := open(b, p.Socket)
	h := s.connect(Success, p.ReaderName(0), shareShared)
	b.ReportAllocs()
	for b.Loop() {
		s.transmit(Success, h, getVersion)
	}
}
