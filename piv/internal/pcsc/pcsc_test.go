package pcsc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
)

const readerName = "Yubico YubiKey OTP+FIDO+CCID 00 00"

// dial connects to a daemon with one card.
func dial(t *testing.T) (*pivtest.Daemon, *pivtest.Reader, *Client) {
	t.Helper()
	d := pivtest.StartDaemon(t)
	r := d.AddReader(readerName, pivtest.NewCard(pivtest.Config{}))
	return d, r, dialDaemon(t, d)
}

func dialDaemon(t *testing.T, d *pivtest.Daemon) *Client {
	t.Helper()
	c, err := Dial(t.Context(), d.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func connect(t *testing.T, c *Client) *Card {
	t.Helper()
	k, err := c.Connect(t.Context(), readerName)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func want(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func selectPIV() []byte { return []byte{0, 0xA4, 4, 0, 5, 0xA0, 0, 0, 3, 8} }

func TestTransaction(t *testing.T) {
	t.Parallel()
	d, r, c := dial(t)
	ctx := t.Context()
	k := connect(t, c)
	other := connect(t, dialDaemon(t, d))
	if err := k.Begin(ctx); err != nil {
		t.Fatal(err)
	}
	b, err := k.Transmit(ctx, selectPIV())
	if err != nil || !bytes.HasSuffix(b, []byte{0x90, 0}) {
		t.Errorf("select: %x, %v", b, err)
	}
	began := make(chan error)
	go func() {
		_, err := other.BeginTransmit(ctx, selectPIV())
		began <- err
	}()
	if err := k.End(ctx, LeaveCard); err != nil {
		t.Fatal(err)
	}
	if err := <-began; err != nil {
		t.Errorf("the other's transaction: %v", err)
	}
	if err := other.End(ctx, LeaveCard); err != nil {
		t.Error(err)
	}
	for _, k := range []*Card{k, other} {
		if err := k.Disconnect(ctx, LeaveCard); err != nil {
			t.Error(err)
		}
	}
	if r.Handles() != 0 || r.InTransaction() {
		t.Error("something is left")
	}
}

// TestWaitsForTransaction lets a context end while another program has the card.
func TestWaitsForTransaction(t *testing.T) {
	t.Parallel()
	d, _, c := dial(t)
	holder, second, third := connect(t, c), connect(t, dialDaemon(t, d)), connect(t, dialDaemon(t, d))
	if err := holder.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	want(t, "begin", second.Begin(short()), context.DeadlineExceeded)
	_, err := third.BeginTransmit(short(), selectPIV())
	want(t, "begin and transmit", err, context.DeadlineExceeded)
	_, err = dialDaemon(t, d).Connect(short(), readerName) // for which pcscd waits too
	want(t, "connect", err, context.DeadlineExceeded)
	if err := holder.End(t.Context(), LeaveCard); err != nil {
		t.Error(err)
	}
}

// TestExchange does transactions of one command, which leave nothing behind, however they end.
func TestExchange(t *testing.T) {
	t.Parallel()
	d, r, c := dial(t)
	ctx := t.Context()
	waiting := dialDaemon(t, d)
	k, other, third := connect(t, c), connect(t, dialDaemon(t, d)), connect(t, waiting)
	b, err := k.Exchange(ctx, selectPIV())
	if err != nil || !bytes.HasSuffix(b, []byte{0x90, 0}) || r.InTransaction() {
		t.Errorf("select: %x, %v, in a transaction: %t", b, err, r.InTransaction())
	}
	if err := other.Begin(ctx); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = third.Exchange(short, selectPIV())
	want(t, "in another's transaction", err, context.DeadlineExceeded)
	if err := waiting.Close(); err != nil || !d.AwaitClients(2, time.Minute) { // else it may have its turn
		t.Fatalf("%d connections, %v", d.Clients(), err)
	}
	exchanged := make(chan error)
	go func() {
		_, err := k.Exchange(ctx, selectPIV())
		exchanged <- err
	}()
	if err := other.End(ctx, LeaveCard); err != nil {
		t.Fatal(err)
	}
	if err := <-exchanged; err != nil || r.InTransaction() {
		t.Errorf("after another's transaction: %v, in a transaction: %t", err, r.InTransaction())
	}
	for _, fails := range []pivtest.Command{pivtest.CommandBegin, pivtest.CommandTransmit, pivtest.CommandEnd} {
		d.Inject(func(c pivtest.Call) pivtest.Code {
			if c.Command == fails {
				return pivtest.CommError
			}
			return pivtest.Success
		})
		_, err = k.Exchange(ctx, selectPIV())
		want(t, fmt.Sprintf("command %02x fails", uint32(fails)), err, CommunicationFail)
		d.Inject(nil)
		if fails == pivtest.CommandEnd {
			if err := k.End(ctx, LeaveCard); err != nil {
				t.Error(err)
			}
		}
		if c.Broken() || r.InTransaction() {
			t.Errorf("command %02x failed: broken: %t, in a transaction: %t", uint32(fails), c.Broken(), r.InTransaction())
		}
	}
	r.ResetByOther()
	_, err = k.Exchange(ctx, selectPIV())
	want(t, "after a reset", err, CardReset)
	r.Remove()
	_, err = k.Exchange(ctx, selectPIV())
	want(t, "without a card", err, CardRemoved)
}

// TestAbandon gives up a card that does not answer. When it does, the connection is ended without a reset, which
// another program would notice.
func TestAbandon(t *testing.T) {
	t.Parallel()
	d, r, c := dial(t)
	k, other := connect(t, c), connect(t, dialDaemon(t, d))
	if err := k.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Silence()
	ctx, cancel := context.WithCancel(t.Context())
	d.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandTransmit { // the client waits for its answer
			cancel()
		}
		return pivtest.Success
	})
	_, err := k.Transmit(ctx, selectPIV())
	want(t, "transmit", err, context.Canceled)
	if !c.Broken() || !c.GaveUp() {
		t.Error("the connection is not given up")
	}
	_, err = c.Readers(t.Context())
	want(t, "readers on a connection given up", err, ErrBroken)
	if readers, err := dialDaemon(t, d).Readers(t.Context()); err != nil || len(readers) != 1 {
		t.Errorf("another connection: %v, %v", readers, err)
	}
	if !r.InTransaction() {
		t.Error("pcscd does not wait for the card")
	}
	r.Speak()
	c.Abandon(k)
	if n := r.Handles(); n != 1 {
		t.Errorf("%d connections to the card", n)
	}
	if err := other.Begin(t.Context()); err != nil {
		t.Errorf("the other's transaction: %v", err)
	}
}

// TestAbandonConnecting gives up a connection to a card that another program holds.
func TestAbandonConnecting(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Card, *Client) error{
		"the card is let go": func(holder *Card, _ *Client) error { return holder.End(t.Context(), LeaveCard) },
		"closed":             func(_ *Card, c *Client) error { return c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, r, c := dial(t)
			holder, other := connect(t, c), connect(t, dialDaemon(t, d))
			if err := holder.Begin(t.Context()); err != nil {
				t.Fatal(err)
			}
			waiting := dialDaemon(t, d)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			defer cancel()
			_, err := waiting.Connect(ctx, readerName)
			want(t, "connect", err, context.DeadlineExceeded)
			done := make(chan struct{})
			go func() {
				waiting.Abandon(nil)
				close(done)
			}()
			if err := end(holder, waiting); err != nil {
				t.Error(err)
			}
			<-done
			if err := holder.Disconnect(t.Context(), LeaveCard); err != nil {
				t.Error(err)
			}
			if err := other.Begin(t.Context()); err != nil {
				t.Errorf("the other's transaction: %v", err)
			}
			if err := other.Disconnect(t.Context(), LeaveCard); err != nil || !r.AwaitFree(time.Minute) {
				t.Errorf("%d connections to the card, %v", r.Handles(), err)
			}
		})
	}
}

// TestLateSilence has a transaction begin after another program's, and the card be silent then: the other program is not to blame.
func TestLateSilence(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe() // on which a write ends when it was read
	c := &Client{conn: near}
	k := &Card{client: c, handle: 9, protocol: 2}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := k.Exchange(ctx, selectPIV())
		done <- err
	}()
	request := make([]byte, 8+8+8+transmitLen+len(selectPIV())+8+12)
	refused := slices.Concat(words(9, uint32(SharingViolation)), words(9, 2, 16, 10, 2, 16, 0, uint32(SharingViolation)), words(9, 0, uint32(SharingViolation)))
	for _, answer := range [][]byte{refused, words(9, 0)} {
		if _, err := io.ReadFull(far, request); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write(answer); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, SharingViolation) {
		t.Errorf("exchange: %v", err)
	}
}

func TestCodes(t *testing.T) {
	t.Parallel()
	d, r, c := dial(t)
	ctx := t.Context()
	_, err := c.Connect(ctx, "no such reader")
	want(t, "unknown reader", err, UnknownReader)
	_, err = c.Connect(ctx, string(make([]byte, 200)))
	want(t, "reader name too long", err, UnknownReader)
	k := connect(t, c)
	r.ResetByOther()
	want(t, "begin after a reset", k.Begin(ctx), CardReset)
	r.Remove()
	want(t, "begin without a card", k.Begin(ctx), CardRemoved)
	_, err = k.BeginTransmit(ctx, selectPIV())
	want(t, "begin and transmit without a card", err, CardRemoved)
	_, err = c.Connect(ctx, readerName)
	want(t, "connect without a card", err, NoSmartcard)
	d.Stop()
	_, err = c.Readers(ctx)
	want(t, "pcscd stopped", err, ErrBroken)
	_, err = Dial(ctx, d.Socket)
	want(t, "pcscd not running", err, NoService)
	d.Refuse(true)
	d.Start()
	for range 100 { // the connection ends before, while or after it is written to
		_, err = Dial(ctx, d.Socket)
		want(t, "user refused", err, ErrRefused)
	}
	for e := range map[Error]bool{CardReset: true, 0x80100099: true} {
		if e.Error() == "" {
			t.Error("no text")
		}
	}
}

// hurried is a context whose deadline has passed by the clock, before it ends.
type hurried struct{ context.Context }

func (hurried) Deadline() (time.Time, bool) { return time.Unix(1, 0), true }

// TestDialAtTheDeadline has the time be over when nothing was tried yet: that does not mean that pcscd does not run.
func TestDialAtTheDeadline(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := Dial(hurried{ctx}, pivtest.StartDaemon(t).Socket)
	if want(t, "dial", err, context.DeadlineExceeded); errors.Is(err, NoService) {
		t.Errorf("dial: %v", err)
	}
}

func TestVersions(t *testing.T) {
	t.Parallel()
	for minor, ok := range map[uint32]bool{3: false, 4: true, 5: true, 6: true} {
		d := pivtest.StartDaemon(t)
		d.SetProtocolMinor(minor)
		c, err := Dial(t.Context(), d.Socket)
		if ok != (err == nil) {
			t.Errorf("daemon of version 4.%d: %v", minor, err)
		}
		if err == nil {
			c.Close()
			continue
		}
		want(t, "old daemon", err, ErrProtocol)
	}
}

func TestWaitChange(t *testing.T) {
	t.Parallel()
	_, r, c := dial(t)
	ctx := t.Context()
	known, err := c.Readers(ctx)
	if err != nil || len(known) != 1 || !known[0].Present || known[0].Name != readerName || len(known[0].ATR) == 0 {
		t.Fatalf("readers are %v, %v", known, err)
	}
	for _, change := range []struct {
		do      func()
		present bool
	}{{r.Remove, false}, {func() { r.Insert(pivtest.NewCard(pivtest.Config{})) }, true}} {
		go change.do()
		for known[0].Present != change.present {
			if known, err = c.WaitChange(ctx, known); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.Remove() // before it is waited for
	if known, err = c.WaitChange(ctx, known); err != nil || known[0].Present {
		t.Errorf("readers are %v, %v", known, err)
	}
	waiting, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	_, err = c.WaitChange(waiting, known)
	want(t, "wait for nothing", err, context.DeadlineExceeded)
}

// TestSocketPath is not parallel: it sets the environment.
func TestSocketPath(t *testing.T) {
	t.Setenv("PCSCLITE_CSOCK_NAME", "")
	if p := SocketPath(); p != DefaultSocket {
		t.Errorf("default is %q", p)
	}
	t.Setenv("PCSCLITE_CSOCK_NAME", "/x/y")
	if p := SocketPath(); p != "/x/y" {
		t.Errorf("path is %q", p)
	}
}

// entry is one reader as the daemon sends it.
func entry(name string, sharing int32, atrLen uint32) []byte {
	b := make([]byte, stateLen)
	copy(b, name)
	binary.NativeEndian.PutUint32(b[nameLen+4:], flagPresent)
	binary.NativeEndian.PutUint32(b[nameLen+8:], uint32(sharing))
	binary.NativeEndian.PutUint32(b[nameLen+48:], atrLen)
	return b
}

func list(entries ...[]byte) []byte {
	b := slices.Concat(entries...)
	return append(b, make([]byte, maxReaders*stateLen-len(b))...)
}

func TestParseReaders(t *testing.T) {
	t.Parallel()
	got, err := parseReaders(list(entry("a", 2, 3), make([]byte, stateLen), entry("b", -1, 0)))
	if err != nil || len(got) != 2 || got[0].Users != 2 || len(got[0].ATR) != 3 || !got[1].Exclusive || got[1].Users != 1 {
		t.Errorf("parsed %v, %v", got, err)
	}
	for name, b := range map[string][]byte{
		"short":        list()[1:],
		"long":         append(list(), 0),
		"endless name": list(entry(string(bytes.Repeat([]byte("x"), nameLen)), 0, 0)),
		"long ATR":     list(entry("a", 0, 34)),
		"sharing":      list(entry("a", -2, 0)),
		"twice":        list(entry("a", 0, 0), entry("a", 0, 0)),
	} {
		if _, err := parseReaders(b); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseReaders(f *testing.F) {
	f.Add(list(entry("a", 2, 3), entry("b", -1, 33)))
	f.Add(list(entry("a", 0, 34)))
	f.Fuzz(func(t *testing.T, b []byte) {
		readers, err := parseReaders(b)
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Errorf("error %v", err)
		}
		for _, r := range readers {
			if r.Name == "" || len(r.Name) >= nameLen || len(r.ATR) > maxATR {
				t.Errorf("reader %v", r)
			}
		}
	})
}

// socketPath returns a path short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pcsc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// FuzzDaemon answers a client with anything: it ends in an error or a result, and does not hang.
func FuzzDaemon(f *testing.F) {
	hello := words(4, 4, 0)
	context := words(2, 7, 0)
	name := make([]byte, nameLen)
	connected := slices.Concat(words(7), name, words(2, 3, 9, 2, 0))
	transmitted := append(words(9, 2, 16, 5, 2, 16, 2, 0), 0x90, 0)
	f.Add(slices.Concat(hello, context, list(entry("a", 0, 3)), connected, words(9, 0), transmitted, words(9, 0, 0)))
	f.Add(slices.Concat(hello, context, list(), connected, words(9, 0), words(9, 2, 16, 5, 2, 16, 1<<30, 0)))
	f.Add(words(4, 3, 0x8010001E))
	f.Fuzz(func(t *testing.T, answers []byte) {
		path := socketPath(t)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write(answers)
			_ = conn.(*net.UnixConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}()
		c, err := Dial(t.Context(), path)
		if err != nil {
			return
		}
		defer c.Close()
		if _, err := c.Readers(t.Context()); err != nil {
			return
		}
		k, err := c.Connect(t.Context(), "a")
		if err != nil {
			return
		}
		if b, err := k.BeginTransmit(t.Context(), selectPIV()); err == nil && (len(b) < 2 || len(b) > maxResponse) {
			t.Errorf("response of %d octets", len(b))
		}
		_ = k.End(t.Context(), LeaveCard)
		_, _ = k.Exchange(t.Context(), selectPIV())
	})
}

func BenchmarkTransmit(b *testing.B) {
	d := pivtest.StartDaemon(b)
	d.AddReader(readerName, pivtest.NewCard(pivtest.Config{}))
	c, err := Dial(b.Context(), d.Socket)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	k, err := c.Connect(b.Context(), readerName)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Transmit(b.Context(), selectPIV()); err != nil {
			b.Fatal(err)
		}
	}
}
