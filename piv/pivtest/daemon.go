package pivtest

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// pollRate is how long pcscd lets a client wait for a transaction before it answers.
const pollRate = 100 * time.Millisecond

// A Call is a request that a client of the Daemon made.
type Call struct {
	Command Command
	Reader  string // empty if the request names none
}

// Daemon is a pcscd in the test's own process: libpcsclite's socket protocol 4.4 on a Unix
// socket, with virtual readers that can be unplugged. It needs neither root nor packages.
// Clients in other processes find it by the environment variable that Env returns; libpcsclite
// reads that once for each process. A Daemon does not authorize its clients and knows no
// readers with PIN pads.
type Daemon struct {
	// Socket is the path of the socket, short enough for sun_path.
	Socket string

	tb testing.TB
	wg sync.WaitGroup // the accepting goroutine and those of the clients

	mu       sync.Mutex
	changed  *sync.Cond // by mu: a transaction ended, something went away, the daemon stopped
	listener net.Listener
	stopped  chan struct{} // closed by Stop
	readers  []*Reader
	clients  map[uint32]*client // by number, which is also the context
	inject   func(Call) Code
	refuse   bool
	minor    uint32
	lastID   int32
	lastNum  uint32
}

// client is one connection. Its context and handles are guarded by Daemon.mu.
type client struct {
	number  uint32
	conn    net.Conn
	in      *bufio.Reader // of the reading goroutine
	out     chan []byte   // to the writing goroutine, nil at the end; closed by the reading one
	context uint32        // 0 before SCardEstablishContext
	handles map[int32]*handle
	waiting bool // for a change of the readers
}

// StartDaemon starts a daemon without readers that lives until the test ends.
func StartDaemon(tb testing.TB) *Daemon {
	tb.Helper()
	dir, err := os.MkdirTemp("", "piv") // tb.TempDir may be too long for a socket's path
	if err != nil {
		tb.Fatal(err)
	}
	d := &Daemon{Socket: filepath.Join(dir, "pcscd.comm"), tb: tb, minor: protocolMinor}
	d.changed = sync.NewCond(&d.mu)
	tb.Cleanup(func() {
		d.Stop()
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	d.Start()
	return d
}

// Env returns the environment variable by which libpcsclite finds the daemon.
func (d *Daemon) Env() string { return "PCSCLITE_CSOCK_NAME=" + d.Socket }

// AddReader adds a reader with a card in it, nil for an empty one.
func (d *Daemon) AddReader(name string, device Device) *Reader {
	r := &Reader{daemon: d, name: name, busy: make(chan struct{}, 1)}
	d.mu.Lock()
	if len(d.readers) == maxReaders || len(name) >= readerNameSize {
		d.mu.Unlock()
		d.tb.Fatalf("add reader %q: no room", name)
	}
	d.readers = append(d.readers, r)
	d.signalLocked()
	d.mu.Unlock()
	if device != nil {
		r.Insert(device)
	}
	return r
}

// Inject puts a fault before the daemon, nil for none: it is asked about each request and returns
// the code to answer with, or Success to go on. It is called without a lock and may block.
// Requests whose reply has no code (CommandReaders, CommandWaitChange) only pass by.
func (d *Daemon) Inject(fault func(Call) Code) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inject = fault
}

// Refuse makes the daemon close new connections without a word, as pcscd does where polkit does not let the user
// in (winscard_svc.c: ContextThread), or serve them again.
func (d *Daemon) Refuse(refuse bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = refuse
}

// SetProtocolMinor makes the daemon claim another minor version of the protocol. It then refuses
// other clients as pcscd does, but for clients from 4.4 on, which later daemons still serve.
func (d *Daemon) SetProtocolMinor(minor uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.minor = minor
}

// Clients returns how many connections are open: one for each context, as libpcsclite does it.
func (d *Daemon) Clients() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.clients)
}

// AwaitClients waits until no more than n connections are open, and reports whether that came in time.
func (d *Daemon) AwaitClients(n int, limit time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waitFor(limit, func() bool { return len(d.clients) <= n })
}

// Start starts a stopped daemon again at the same socket, with the same readers and cards.
func (d *Daemon) Start() {
	d.tb.Helper()
	listener, err := net.Listen("unix", d.Socket)
	if err != nil {
		d.tb.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listener, d.stopped, d.clients = listener, make(chan struct{}), map[uint32]*client{}
	for _, r := range d.readers {
		r.powered, r.gone = r.device != nil && !r.dead, make(chan struct{})
	}
	d.wg.Go(func() { d.accept(listener) })
}

// Stop ends the daemon as a kill does: every connection is closed, every card loses its power.
func (d *Daemon) Stop() {
	d.mu.Lock()
	if d.listener == nil {
		d.mu.Unlock()
		return
	}
	for _, r := range d.readers { // before anybody can notice
		r.forget()
		r.cut()
		r.powered = false
	}
	d.listener.Close()
	d.listener = nil
	close(d.stopped)
	for _, c := range d.clients {
		c.conn.Close()
	}
	d.changed.Broadcast()
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *Daemon) accept(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // closed by Stop
		}
		if d.refuses() {
			conn.Close()
			continue
		}
		c := &client{conn: conn, out: make(chan []byte, 64), handles: map[int32]*handle{}}
		if !d.add(c) {
			conn.Close()
			return
		}
		d.wg.Go(func() { d.serve(c) })
		d.wg.Go(c.write)
	}
}

func (d *Daemon) refuses() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refuse
}

func (d *Daemon) add(c *client) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener == nil {
		return false
	}
	d.lastNum++
	c.number = d.lastNum
	d.clients[c.number] = c
	return true
}

// write sends what the daemon says, at once what is there already, and closes the connection where nil says
// that it is all. After an error it drains the channel.
func (c *client) write() {
	for b := range c.out {
		end := b == nil
		for range len(c.out) {
			more := <-c.out
			b, end = append(b, more...), end || more == nil
		}
		c.conn.Write(b) // a dead client is noticed by serve
		if end {
			c.conn.Close()
		}
	}
}

// serve reads requests until the client goes away or breaks the protocol. Either ends its handles.
func (d *Daemon) serve(c *client) {
	defer d.drop(c)
	c.in = bufio.NewReader(c.conn)
	header := make(body, 8)
	for {
		if _, err := io.ReadFull(c.in, header); err != nil {
			return
		}
		command := Command(header.word(4))
		size, known := command.bodySize()
		if !known || int(header.word(0)) != size {
			return
		}
		b := make(body, size)
		if _, err := io.ReadFull(c.in, b); err != nil {
			return
		}
		if !d.answer(c, command, b) {
			return
		}
	}
}

// answer serves one request. False means that the connection is to be closed.
func (d *Daemon) answer(c *client, command Command, b body) bool {
	var payload []byte
	if command == CommandTransmit || command == CommandControl {
		at := 12
		if command == CommandControl {
			at = 8
		}
		if b.word(at) > maxTransmit {
			return false
		}
		payload = make([]byte, b.word(at))
		if _, err := io.ReadFull(c.in, payload); err != nil {
			return false
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var h *handle
	if command.hasHandle() {
		if h = c.handles[int32(b.word(0))]; h == nil {
			return false
		}
	}
	if code := d.faultLocked(command, h, b); code != Success && len(b) > 0 {
		b.setResult(code)
		d.send(c, b)
		return true
	}
	if h != nil {
		d.onCard(c, command, h, b, payload)
	} else {
		d.onContext(c, command, b)
	}
	return true
}

// faultLocked asks the injected fault, without the lock.
func (d *Daemon) faultLocked(command Command, h *handle, b body) Code {
	inject := d.inject
	if inject == nil {
		return Success
	}
	call := Call{Command: command}
	if command == CommandConnect {
		call.Reader = readerName(b)
	}
	if h != nil && h.reader != nil {
		call.Reader = h.reader.name
	}
	d.mu.Unlock()
	defer d.mu.Lock()
	return inject(call)
}

// onContext serves the requests that need no card handle.
func (d *Daemon) onContext(c *client, command Command, b body) {
	switch command {
	case CommandVersion:
		minor := b.word(4)
		fits := b.word(0) == protocolMajor && (minor == d.minor || minor >= protocolMinor && minor < d.minor)
		b.setWord(0, protocolMajor)
		b.setWord(4, d.minor)
		b.setResult(Success)
		if !fits {
			b.setResult(ServiceStopped)
		}
		d.send(c, b)
	case CommandEstablish:
		c.context = c.number
		b.setWord(4, c.context)
		b.setResult(Success)
		d.send(c, b)
	case CommandRelease:
		b.setResult(d.release(c, b.word(0)))
		d.send(c, b)
	case CommandConnect:
		d.connect(c, b)
		d.send(c, b)
	case CommandCancel:
		b.setResult(d.cancel(b.word(0)))
		d.send(c, b)
	case CommandReaders:
		d.send(c, d.states())
	case CommandWaitChange:
		c.waiting = true
		d.send(c, d.states())
	case CommandStopWaiting:
		d.stopWaiting(c, Success)
	}
}

// onCard serves the requests about a card handle.
func (d *Daemon) onCard(c *client, command Command, h *handle, b body, payload []byte) {
	var data []byte
	code := Success
	switch r := h.reader; {
	case command == CommandDisconnect:
		if r != nil {
			code = r.disconnect(h, b.word(4))
		}
		delete(c.handles, h.id)
	case r == nil:
		code = InvalidValue // the reader was unplugged
	case command == CommandReconnect:
		code = r.reconnect(h, b.word(4), b.word(8), b.word(12))
		b.setWord(16, r.protocol)
	case command == CommandBegin:
		code = r.begin(h)
	case command == CommandEnd:
		code = r.end(h, b.word(4))
	case command == CommandTransmit:
		data, code = d.transmit(h, b.word(4), payload)
		if code == Success && len(data) > int(b.word(24)) {
			data, code = nil, InsufficientBuffer
		}
		b.setWord(24, uint32(len(data)))
	case command == CommandControl:
		code = control(b)
	case command == CommandStatus:
		code = r.status(h)
	case command == CommandGetAttrib:
		code = r.attribute(b)
	default:
		code = UnsupportedFeature
	}
	b.setResult(code)
	d.send(c, append(b, data...))
	switch command { // what may change what clients see of the readers
	case CommandReconnect, CommandDisconnect:
		d.signalLocked()
	case CommandEnd: // changes nothing that they see (pcscd, winscard.c: SCardEndTransaction)
		d.changed.Broadcast()
	}
}

func (d *Daemon) connect(c *client, b body) {
	mode, protocols := b.word(4+readerNameSize), b.word(8+readerNameSize)
	code := InvalidHandle
	if c.context != 0 && b.word(0) == c.context {
		var h *handle
		var r *Reader
		code = UnknownReader
		if r = d.find(readerName(b)); r != nil && (mode < shareExclusive || mode > shareDirect) {
			code = InvalidValue
		} else if r != nil {
			h, code = r.connect(mode, protocols)
		}
		if code == Success {
			c.handles[h.id] = h
			b.setWord(12+readerNameSize, uint32(h.id))
			b.setWord(16+readerNameSize, r.protocol)
			d.signalLocked()
		}
	}
	b.setResult(code)
}

func readerName(b body) string {
	name, _, _ := bytes.Cut(b[4:4+readerNameSize], []byte{0})
	return string(name)
}

func (d *Daemon) find(name string) *Reader {
	for _, r := range d.readers {
		if r.name == name && !r.unplugged {
			return r
		}
	}
	return nil
}

// transmit sends one command to the card. The lock is not held meanwhile.
func (d *Daemon) transmit(h *handle, protocol uint32, apdu []byte) ([]byte, Code) {
	r := h.reader
	if code := r.ready(h, protocol); code != Success {
		return nil, code
	}
	device, gone, voice, stopped := r.device, r.gone, r.voice, d.stopped
	d.mu.Unlock()
	data := r.exchange(device, gone, voice, stopped, apdu)
	d.mu.Lock()
	switch {
	case h.reader == nil:
		return nil, ReaderUnavailable
	case len(data) < 2:
		return nil, NotTransacted
	}
	return data, Success
}

// exchange waits its turn at the card, then for the answer. It returns nil if card, reader or
// daemon go away or a silent card may speak again.
func (r *Reader) exchange(device Device, gone, voice, stopped <-chan struct{}, apdu []byte) []byte {
	select {
	case r.busy <- struct{}{}:
		defer func() { <-r.busy }()
	case <-gone:
		return nil
	case <-stopped:
		return nil
	}
	answer := make(chan []byte, 1)
	if voice == nil {
		go func() { answer <- device.Transmit(apdu) }() // ends when the device answers
	}
	select {
	case data := <-answer:
		if isClosed(gone) {
			return nil // as if the card had gone just before it answered
		}
		return data
	case <-voice:
	case <-gone:
	case <-stopped:
	}
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func control(b body) Code {
	b.setWord(16, 0)
	if b.word(4) == ioctlFeatures {
		return Success
	}
	return NotTransacted
}

func (r *Reader) status(h *handle) Code {
	if r.owner != nil && r.owner != h {
		return SharingViolation
	}
	return h.event
}

func (r *Reader) attribute(b body) Code {
	if b.word(4) != attrATR || r.device == nil {
		return UnsupportedFeature
	}
	n := copy(b[8:8+attributeSize], r.device.ATR())
	b.setWord(8+attributeSize, uint32(n))
	return Success
}

// cancel ends the waiting of the client that has the context.
func (d *Daemon) cancel(context uint32) Code {
	for _, c := range d.clients {
		if c.context == context && c.waiting {
			d.stopWaiting(c, Cancelled)
			return Success
		}
	}
	return InvalidHandle
}

// stopWaiting answers a client that still waits; else it had its answer already.
func (d *Daemon) stopWaiting(c *client, code Code) {
	if !c.waiting {
		return
	}
	c.waiting = false
	b := make(body, 8)
	b.setResult(code)
	d.send(c, b)
}

// signalLocked tells all who wait that something changed.
func (d *Daemon) signalLocked() {
	for _, c := range d.clients {
		d.stopWaiting(c, Success)
	}
	d.changed.Broadcast()
}

// states encodes the list of readers, always of the same length.
func (d *Daemon) states() []byte {
	b := make([]byte, 0, maxReaders*readerStateSize)
	for _, r := range d.readers {
		if !r.unplugged {
			b = append(b, r.state()...)
		}
	}
	return b[:cap(b)]
}

// release ends the context and, as pcscd does, resets the cards of handles left open in a transaction.
func (d *Daemon) release(c *client, context uint32) Code {
	if c.context == 0 || context != c.context {
		return InvalidHandle
	}
	c.context = 0
	d.abandon(c)
	return Success
}

func (d *Daemon) abandon(c *client) {
	for id, h := range c.handles {
		delete(c.handles, id)
		r := h.reader
		if r == nil {
			continue
		}
		disposition := uint32(leaveCard) // winscard_svc.c: MSGRemoveContext
		if r.owner == h && h.event == Success {
			disposition = resetCard
		}
		r.disconnect(h, disposition)
		d.signalLocked()
	}
}

func (d *Daemon) drop(c *client) {
	c.out <- nil
	d.mu.Lock()
	defer d.mu.Unlock()
	d.abandon(c)
	delete(d.clients, c.number)
	close(c.out)
	d.changed.Broadcast()
}

// send queues bytes for a client. One that does not read is cut off.
func (d *Daemon) send(c *client, b []byte) {
	select {
	case c.out <- b:
	default:
		c.conn.Close()
	}
}

func (d *Daemon) nextID() int32 {
	d.lastID++
	return d.lastID
}

// waitLocked waits until ok. False means that the daemon stopped.
func (d *Daemon) waitLocked(ok func() bool) bool {
	for !ok() {
		if d.listener == nil {
			return false
		}
		d.changed.Wait()
	}
	return d.listener != nil
}

// waitFor waits until ok, the limit is over or the daemon stops, and returns what ok says then.
func (d *Daemon) waitFor(limit time.Duration, ok func() bool) bool {
	if ok() {
		return true
	}
	late := false
	timer := time.AfterFunc(limit, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		late = true
		d.changed.Broadcast()
	})
	defer timer.Stop()
	d.waitLocked(func() bool { return late || ok() })
	return ok()
}

// It fails to compile if the layout of a reader's state does not add up.
var _ = [1]struct{}{}[readerNameSize+12+36+8-readerStateSize]
