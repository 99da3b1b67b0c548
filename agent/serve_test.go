package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/peercred"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

var listMessage = []byte{sshRequestIdentities}

// signMessage asks for a Mesh signature.
func signMessage(keyID string) []byte {
	return operateMessage(`{"OperateRequest":{"Operations":[{"CryptographicOperationSign":{"KeyId":"` + keyID + `","Data":"AAAA"}}]}}`)
}

func TestPeerMustBeTheOwner(t *testing.T) {
	t.Parallel()
	own := uint32(os.Geteuid())
	cases := []struct {
		name string
		cred func(net.Conn) (peercred.Credentials, error)
		log  string
	}{
		{"another user", func(net.Conn) (peercred.Credentials, error) { return peercred.Credentials{UID: own + 1, PID: 7}, nil }, "another user"},
		{"unknown", func(net.Conn) (peercred.Credentials, error) { return peercred.Credentials{UID: own}, errors.New("no") }, "peer unknown"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAgent(t, Limits{}, newFake("t"))
			var log syncBuffer
			a.log = slog.New(slog.NewTextHandler(&log, nil))
			a.creds = c.cred
			s := serve(t, a)
			for _, path := range []string{s.mesh, s.ssh} {
				conn := dial(t, path)
				conn.Write(frameOf(listMessage)) // may fail already
				if n, err := conn.Read(make([]byte, 1)); err == nil {
					t.Errorf("%d octets were answered", n)
				}
			}
			if !strings.Contains(log.String(), c.log) {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestBrokenFramesEndTheConnection(t *testing.T) {
	t.Parallel()
	s := serve(t, newAgent(t, Limits{}, newFake("t")))
	for _, broken := range [][]byte{{0, 0, 0, 0}, {0, 4, 0, 1}, {0xff, 0xff, 0xff, 0xff}} {
		c := dial(t, s.mesh)
		send(t, c, listMessage)
		if _, err := c.Write(broken); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, c); got[0] != sshIdentitiesAnswer {
			t.Errorf("before %x: %x", broken, got)
		}
		if _, err := readMessage(c); err == nil {
			t.Errorf("the connection survived %x", broken)
		}
	}
}

func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	srv := newServer(newAgent(t, Limits{Connections: 2}, newFake("t")))
	s := srv.run(t)
	var held []net.Conn
	for n := range 2 {
		c := dial(t, s.mesh)
		send(t, c, listMessage)
		receive(t, c)
		srv.settle(n + 1)
		held = append(held, c)
	}
	third := dial(t, s.ssh)
	send(t, third, listMessage)
	receive(t, third)
	if _, err := readMessage(held[0]); err == nil {
		t.Error("the one that was idle longest goes on")
	}
	send(t, held[1], listMessage) // the other does not suffer
	receive(t, held[1])
	srv.settle(2)
	third.Close()
	held[1].Close()
	c := dial(t, s.mesh)
	send(t, c, listMessage)
	receive(t, c)
}

// settle waits until there are n connections and all of them idle, which the agent notes after it has answered.
func (s *server) settle(n int) {
	for idle := -1; idle != n; runtime.Gosched() {
		s.mu.Lock()
		idle = 0
		for c := range s.conns {
			if _, ok := c.idleSince(); ok {
				idle++
			}
		}
		if len(s.conns) != n {
			idle = -1
		}
		s.mu.Unlock()
	}
}

// TestConnectionLimitSparesWork has each connection but one at work: one waits for a token, one has sent half a frame, one has
// sent a request ahead. The idle one makes room, and when there is none any more, the next one is refused.
func TestConnectionLimitSparesWork(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{Connections: 4, Frame: time.Hour}, fake)
	var log syncBuffer
	a.log = slog.New(slog.NewTextHandler(&log, nil))
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	srv := newServer(a)
	s := srv.run(t)
	half, ahead, busy, idle := dial(t, s.mesh), dial(t, s.mesh), dial(t, s.mesh), dial(t, s.mesh)
	for _, c := range []net.Conn{half, ahead, busy, idle} { // in this order, so that the idle one is the youngest
		send(t, c, listMessage)
		receive(t, c)
	}
	srv.settle(4)
	request := frameOf(listMessage)
	if _, err := half.Write(append(slices.Clone(request), request[:3]...)); err != nil { // the answer tells that the rest is there
		t.Fatal(err)
	}
	receive(t, half)
	send(t, busy, signMessage(key.Udf))
	<-hold.Entered()
	send(t, ahead, signMessage(key.Udf))
	untilWaiting(a.gates["t"], 1)
	send(t, ahead, listMessage)

	fifth := dial(t, s.ssh)
	send(t, fifth, signMessage(key.Udf)) // on ssh.sock: refused, but the connection is served
	receive(t, fifth)
	if _, err := readMessage(idle); err == nil {
		t.Error("the idle one goes on")
	}
	send(t, fifth, listMessage)
	receive(t, fifth)
	if _, err := fifth.Write(request[:2]); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(dial(t, s.mesh)); err == nil || !strings.Contains(log.String(), "a request is under way on each") {
		t.Errorf("one too many: %v; log %s", err, log.String())
	}
	hold.Release()
	for _, c := range []net.Conn{busy, ahead, ahead} {
		receive(t, c)
	}
	if _, err := half.Write(request[3:]); err != nil {
		t.Fatal(err)
	}
	receive(t, half)
}

// TestLongestIdle chooses among processes, and among the connections of one.
func TestLongestIdle(t *testing.T) {
	t.Parallel()
	now := time.Now()
	idleFor := func(pid int32, seconds int) *conn {
		c := &conn{peer: peercred.Credentials{PID: pid}}
		if seconds > 0 {
			c.idle = now.Add(time.Duration(-seconds) * time.Second)
		}
		return c
	}
	one, many, older, busy := idleFor(1, 100), idleFor(2, 5), idleFor(2, 7), idleFor(2, 0)
	closing := idleFor(2, 1000)
	closing.closing = true
	set := func(conns ...*conn) map[*conn]struct{} {
		out := map[*conn]struct{}{}
		for _, c := range conns {
			out[c] = struct{}{}
		}
		return out
	}
	for i, test := range []struct {
		conns map[*conn]struct{}
		want  *conn
	}{
		{set(), nil},
		{set(busy, closing), nil},
		{set(one, many, busy, closing), one},
		{set(one, many, older, busy, closing), older},
	} {
		if got := longestIdle(test.conns); got != test.want {
			t.Errorf("%d: %+v", i, got)
		}
	}
}

// TestUnreadIsUnderWay has a request in the socket that nobody has read yet.
func TestUnreadIsUnderWay(t *testing.T) {
	t.Parallel()
	_, listeners := listen(t)
	client := dial(t, listeners[0].Addr().String())
	served, err := listeners[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	c := newConn(&server{Agent: newAgent(t, Limits{}, newFake("t"))}, served, sshOnly, peercred.Credentials{})
	send(t, client, listMessage)
	if c.giveWay() {
		t.Error("a connection with a request was closed")
	}
	if _, idle := c.idleSince(); idle {
		t.Error("it counts as idle")
	}
	other := dial(t, listeners[0].Addr().String())
	accepted, err := listeners[0].Accept()
	if err != nil {
		t.Fatal(err)
	}
	if c = newConn(c.server, accepted, sshOnly, peercred.Credentials{}); !c.giveWay() || c.giveWay() || c.begin() {
		t.Error("an idle connection did not give way, once and for all")
	}
	if _, err := readMessage(other); err == nil {
		t.Error("it goes on")
	}
	listeners[0].Close()
	listeners[1].Close()
}

// scriptedListener fails to accept with one error after another.
type scriptedListener struct {
	net.Listener
	errs   []error
	times  []time.Time
	closed chan struct{}
	once   sync.Once
}

func (l *scriptedListener) Accept() (net.Conn, error) {
	l.times = append(l.times, time.Now())
	if len(l.errs) == 0 {
		<-l.closed
		return nil, net.ErrClosed
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}

func (l *scriptedListener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

func TestAcceptErrors(t *testing.T) {
	t.Parallel()
	emfile := &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	permanent := errors.New("the listener is broken")
	t.Run("temporary, then permanent", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			l := &scriptedListener{closed: make(chan struct{})}
			for range 12 {
				l.errs = append(l.errs, emfile)
			}
			l.errs = append(l.errs, permanent)
			other := &scriptedListener{closed: make(chan struct{})}
			err := newAgent(t, Limits{}).Serve(t.Context(), l, other)
			if !errors.Is(err, permanent) {
				t.Errorf("Serve: %v", err)
			}
			if n := len(l.times); n != 13 {
				t.Fatalf("%d attempts", n)
			}
			if first, last := l.times[1].Sub(l.times[0]), l.times[12].Sub(l.times[11]); first != 5*time.Millisecond || last != time.Second {
				t.Errorf("pauses from %v to %v", first, last)
			}
		})
	})
	t.Run("cancelled in a pause", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Millisecond)
			defer cancel()
			l := &scriptedListener{closed: make(chan struct{}), errs: []error{emfile}}
			if err := newAgent(t, Limits{}).Serve(ctx, nil, l); err != nil {
				t.Errorf("Serve: %v", err)
			}
		})
	})
}

func TestShutdown(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{Shutdown: time.Hour}, fake)
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	paths, listeners := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, listeners[0], listeners[1]) }()

	idle, busy := dial(t, paths.ssh), dial(t, paths.mesh)
	send(t, idle, listMessage)
	receive(t, idle)
	send(t, busy, signMessage(key.Udf))
	<-hold.Entered()
	cancel()
	if _, err := readMessage(idle); err == nil {
		t.Error("the idle connection goes on")
	}
	hold.Release()
	if got := replyJSON(t, receive(t, busy)); !strings.Contains(got, `"Signature"`) {
		t.Errorf("the request under way got %s", got)
	}
	if _, err := readMessage(busy); err == nil {
		t.Error("the busy connection goes on")
	}
	if err := <-done; err != nil {
		t.Error("Serve:", err)
	}
	if _, err := net.Dial("unix", paths.mesh); err == nil {
		t.Error("the socket still listens")
	}
}

func TestShutdownCancels(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{Shutdown: time.Millisecond}, fake)
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	paths, listeners := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, listeners[0], listeners[1]) }()
	c := dial(t, paths.mesh)
	send(t, c, signMessage(key.Udf))
	<-hold.Entered()
	cancel()
	if got := replyJSON(t, receive(t, c)); !strings.Contains(got, `{"Status":499,"Error":"cancelled"}`) {
		t.Errorf("got %s", got)
	}
	if err := <-done; err != nil {
		t.Error("Serve:", err)
	}
}

// A client that takes no answers does not keep the agent from ending.
func TestShutdownDrops(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{Shutdown: time.Millisecond, Write: time.Hour}, newFake("t"))
	paths, listeners := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Serve(ctx, listeners[0], listeners[1]) }()
	c := dial(t, paths.mesh)
	if err := c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for { // until the agent, whose answers nobody reads, stops reading
		if _, err := c.Write(frameOf(listMessage)); err != nil {
			break
		}
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error("Serve:", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Serve goes on")
	}
}

// TestHangUpCancels has clients go while their operations run and while they wait.
func TestHangUpCancels(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{}, fake)
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	s := serve(t, a)

	running, waiting, patient := dial(t, s.mesh), dial(t, s.mesh), dial(t, s.mesh)
	send(t, running, signMessage(key.Udf))
	<-hold.Entered()
	send(t, waiting, signMessage(key.Udf))
	send(t, waiting, listMessage) // what is sent ahead does not hide that the client has gone
	untilWaiting(a.gates["t"], 1)
	waiting.Close()
	untilWaiting(a.gates["t"], 0)
	send(t, patient, signMessage(key.Udf))
	untilWaiting(a.gates["t"], 1)
	running.Close()
	<-hold.Entered() // the slot is free: the patient one's turn
	hold.Release()
	if got := replyJSON(t, receive(t, patient)); !strings.Contains(got, `"Signature"`) {
		t.Errorf("got %s", got)
	}
	if n := fake.Calls(tokentest.OpSign); n != 2 {
		t.Errorf("the token was asked %d times, want 2", n)
	}
}

// untilWaiting returns when n operations wait at the gate.
func untilWaiting(g *gate, n int) {
	for {
		g.mu.Lock()
		waiting := 0
		for _, q := range g.waiting {
			waiting += len(q.waiters)
		}
		g.mu.Unlock()
		if waiting == n {
			return
		}
		runtime.Gosched()
	}
}

// TestHalfClosedClientIsAnswered serves clients that close their sending side when they have
// asked, as socat does.
func TestHalfClosedClientIsAnswered(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{}, fake)
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	s := serve(t, a)
	c := dial(t, s.mesh)
	send(t, c, signMessage(key.Udf))
	send(t, c, listMessage)
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-hold.Entered()
	time.AfterFunc(4*hangupAfter, hold.Release) // time for a watch that would be wrong
	if got := replyJSON(t, receive(t, c)); !strings.Contains(got, `"Signature"`) {
		t.Errorf("got %s", got)
	}
	if got := receive(t, c); got[0] != sshIdentitiesAnswer {
		t.Errorf("the second request got %x", got)
	}
	if _, err := readMessage(c); err != io.EOF {
		t.Errorf("then %v", err)
	}
}

// TestSlowTokenDelaysNobodyElse holds one token and uses another, and lists.
func TestSlowTokenDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	slow, quick := newFake("slow"), newFake("quick")
	a := newAgent(t, Limits{}, slow, quick)
	slowKey := generate(t, a, "slow", token.Ed25519, token.UseSign)
	quickKey := generate(t, a, "quick", token.Ed25519, token.UseSign)
	hold := slow.Hold(tokentest.OpSign)
	s := serve(t, a)
	stuck, half, other := dial(t, s.mesh), dial(t, s.mesh), dial(t, s.mesh)
	send(t, stuck, signMessage(slowKey.Udf))
	<-hold.Entered()
	half.Write([]byte{0, 0, 0, 9, 1})
	send(t, other, signMessage(quickKey.Udf))
	send(t, other, listMessage)
	send(t, other, operateMessage(`{"KeyListRequest":{}}`))
	if got := replyJSON(t, receive(t, other)); !strings.Contains(got, `"Signature"`) {
		t.Errorf("got %s", got)
	}
	receive(t, other)
	if got := replyJSON(t, receive(t, other)); !strings.Contains(got, slowKey.Udf) {
		t.Errorf("got %s", got)
	}
	hold.Release()
	receive(t, stuck)
}

// TestBulkDoesNotStarve sends a large batch over one connection; another connection's
// operation is done after one of the batch.
func TestBulkDoesNotStarve(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{}, fake)
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	s := serve(t, a)
	one := `{"CryptographicOperationSign":{"KeyId":"` + key.Udf + `","Data":"AAAA"}}`
	bulk, human := dial(t, s.mesh), dial(t, s.mesh)
	send(t, bulk, operateMessage(`{"OperateRequest":{"Operations":[`+one+strings.Repeat(","+one, 499)+`]}}`))
	<-hold.Entered()
	send(t, human, signMessage(key.Udf))
	untilWaiting(a.gates["t"], 1)
	// From now on each operation is let through singly and waits for the next hold.
	next := fake.Hold(tokentest.OpSign)
	hold.Release()
	<-next.Entered() // the human's: the batch's second one came later
	untilWaiting(a.gates["t"], 1)
	next.Release()
	receive(t, human)
	receive(t, bulk)
	if got := fake.Calls(tokentest.OpSign); got != 501 {
		t.Errorf("%d signatures", got)
	}
}

func TestQueueFull(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{Queue: 1}, fake)
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	s := serve(t, a)
	first, second, third := dial(t, s.mesh), dial(t, s.mesh), dial(t, s.mesh)
	send(t, first, signMessage(key.Udf))
	<-hold.Entered()
	send(t, second, signMessage(key.Udf))
	untilWaiting(a.gates["t"], 1)
	send(t, third, signMessage(key.Udf))
	if got := replyJSON(t, receive(t, third)); !strings.Contains(got, `"Status":429`) {
		t.Errorf("got %s", got)
	}
	hold.Release()
	receive(t, first)
	receive(t, second)
}

// pipeListener hands out one end of pipes, whose time can be faked.
type pipeListener struct {
	net.Listener
	conns chan net.Conn
}

func (l *pipeListener) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l *pipeListener) Close() error { close(l.conns); return nil }

// TestClientThatDoesNotRead is given up after the write deadline.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, Limits{Write: 7 * time.Second})
		a.creds = func(net.Conn) (peercred.Credentials, error) { return peercred.Credentials{UID: a.uid}, nil }
		client, server := net.Pipe()
		l := &pipeListener{conns: make(chan net.Conn, 1)}
		l.conns <- server
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Serve(ctx, l, nil) }()
		if _, err := client.Write(frameOf(listMessage)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		time.Sleep(8 * time.Second)
		if n, err := client.Read(make([]byte, 100)); err != io.EOF {
			t.Errorf("%d octets after %v: %v", n, time.Since(start), err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestKeyDeletedWhileWaiting has a key vanish between the look-up and the turn.
func TestKeyDeletedWhileWaiting(t *testing.T) {
	t.Parallel()
	fake := newFake("t")
	a := newAgent(t, Limits{}, fake)
	held := generate(t, a, "t", token.Ed25519, token.UseSign)
	victim := generate(t, a, "t", token.Ed25519, token.UseSign)
	hold := fake.Hold(tokentest.OpSign)
	s := serve(t, a)
	first, second := dial(t, s.mesh), dial(t, s.mesh)
	send(t, first, signMessage(held.Udf))
	<-hold.Entered()
	send(t, second, signMessage(victim.Udf))
	untilWaiting(a.gates["t"], 1)
	if _, err := a.ring.Delete(t.Context(), nil, victim.Udf); err != nil {
		t.Fatal(err)
	}
	hold.Release()
	receive(t, first)
	if got := replyJSON(t, receive(t, second)); !strings.Contains(got, `"Status":404`) {
		t.Errorf("got %s", got)
	}
}

// TestManyConnections has connections come and go in all ways at once.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	fake := tokentest.NewFake(tokentest.FakeOptions{Name: "t", Parallel: 2})
	a := newAgent(t, Limits{}, fake)
	key := generate(t, a, "t", token.Ed25519, token.UseSign)
	s := serve(t, a)
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			c, err := net.Dial("unix", s.mesh)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for j := range 5 {
				if _, err := c.Write(frameOf(signMessage(key.Udf))); err != nil {
					t.Error(err)
					return
				}
				if i%4 == 0 && j == 3 {
					return
				}
				if m, err := readMessage(c); err != nil || !bytes.Contains(m, []byte(`"Signature"`)) {
					t.Error(fmt.Errorf("connection %d: %q, %w", i, m, err))
					return
				}
			}
		})
	}
	all.Wait()
	if n := fake.MaxInFlight(); n > 2 {
		t.Errorf("%d operations in the token at once", n)
	}
}
