package hsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a helper process as the agent sees it. Both have one end of a socket pair that keeps the
// borders of packets (SOCK_SEQPACKET): a packet is a call or a reply. The threads of the helper read
// calls from the same socket, so that the kernel is the queue: a thread that is done takes the next
// call without having slept, and nothing in the helper hands calls on.
type child struct {
	cmd     *exec.Cmd
	started time.Time
	conn    *net.UnixConn
	slots   chan struct{} // holds one value for each call that may be under way

	mu         sync.Mutex
	last       uint64              // guarded by mu, as all below: number of the last call
	pending    map[uint64]*pending // by number: calls without an answer yet
	generating int                 // how many of these generate a key
	clock      *time.Timer         // looks for calls whose time is over; one for all, as in package agent
	next       time.Time           // when the clock fires; zero if it does not
	retiring   bool                // no call begins any more
	quiet      chan struct{}       // closed when retiring and nothing is pending

	drained chan struct{} // closed when nothing more is read from it
	dead    chan struct{} // closed when the process has ended; then err and endedAt are set
	err     error
	endedAt time.Time
	reason  atomic.Pointer[error] // why the agent ended it
	ending  sync.Once
}

// pending is a call that was sent.
type pending struct {
	answer    chan []byte // has room for the reply
	deadline  time.Time   // when the process is ended
	generates bool
	abandoned bool // guarded by child.mu: nobody waits for the answer
}

// helperFD is the descriptor of the helper's end.
const helperFD = 3

// threads returns how many calls a helper executes at once: one in each session, and one that needs no
// session. As many again and two may wait for them.
func (o ModuleOptions) threads() int { return o.Sessions + 1 }

func (o ModuleOptions) calls() int { return 2 * (o.threads() + 1) }

// startChild starts a helper and has it load the module.
func startChild(o ModuleOptions) (*child, error) {
	c, theirs, err := newChild(o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	c.cmd = &exec.Cmd{
		Path: o.Helper[0], Args: o.Helper, Env: append([]string{}, o.Environment...), Dir: "/",
		ExtraFiles: []*os.File{theirs}, Stderr: o.stderr(),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // the terminal's signals are for the agent
	}
	c.started = time.Now()
	err = c.cmd.Start()
	theirs.Close()
	if err != nil {
		c.conn.Close()
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	go c.wait()
	go c.read()
	if err := c.load(o); err != nil {
		c.stop()
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	return c, nil
}

// newChild makes the socket pair and returns the helper's end.
func newChild(o ModuleOptions) (c *child, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours := os.NewFile(uintptr(fds[0]), "helper")
	defer ours.Close()
	theirs = os.NewFile(uintptr(fds[1]), "helper")
	for _, fd := range fds {
		// The kernel doubles it. If it allows less, large packets are refused, with an error.
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, maxFrame))
	}
	c = &child{
		slots: make(chan struct{}, o.calls()), pending: make(map[uint64]*pending),
		quiet: make(chan struct{}), drained: make(chan struct{}), dead: make(chan struct{}),
	}
	if err == nil {
		var conn net.Conn
		conn, err = net.FileConn(ours)
		c.conn, _ = conn.(*net.UnixConn)
	}
	if err != nil {
		theirs.Close()
	}
	return c, theirs, err
}

// stderr avoids an interface that holds a nil pointer.
func (o ModuleOptions) stderr() io.Writer {
	if o.Stderr == nil {
		return nil
	}
	return o.Stderr
}

// load has the helper load the module, which one thread does before there are others.
func (c *child) load(o ModuleOptions) error {
	request := &call{op: opInit, data: [][]byte{[]byte(o.Path), []byte(o.Arguments)}, limit: uint64(o.Sessions), other: uint64(o.threads())}
	r, err := c.call(context.Background(), request, o.Timeout)
	switch {
	case err != nil:
		return err
	case r.text != "":
		return errors.New(r.text)
	case r.code != ckrOK:
		return r.code
	}
	return nil
}

// wait waits for the end of the process.
func (c *child) wait() {
	state := c.cmd.Wait()
	c.conn.SetReadDeadline(time.Now().Add(time.Second)) // if something that it started holds the socket
	<-c.drained
	c.endedAt = time.Now()
	if reason := c.reason.Load(); reason != nil {
		c.err = *reason
	} else if state != nil {
		c.err = fmt.Errorf("%w: %w", ErrCrashed, state)
	} else {
		c.err = fmt.Errorf("%w: exit status 0", ErrCrashed)
	}
	close(c.dead)
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clock != nil {
		c.clock.Stop()
	}
}

func (c *child) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return c.reason.Load() == nil
	}
}

// endOr returns when the process ended; now if it is still ending.
func (c *child) endOr(now time.Time) time.Time {
	select {
	case <-c.dead:
		return c.endedAt
	default:
		return now
	}
}

// call sends a request and waits for its answer, for ctx or for the end of the process. When ctx
// ends first, the call goes on without its caller, and so does its time.
func (c *child) call(ctx context.Context, request *call, timeout time.Duration) (*reply, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.dead:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	number, p, err := c.begin(request.op, timeout)
	if err != nil {
		return nil, err
	}
	if err := c.send(number, request); err != nil {
		c.finish(number, nil)
		return nil, c.unsent(err)
	}
	select {
	case frame := <-p.answer:
		return c.decode(frame)
	case <-c.dead:
		select {
		case frame := <-p.answer: // the last thing that it said
			return c.decode(frame)
		default:
			return nil, c.err
		}
	case <-ctx.Done():
		c.abandon(p)
		return nil, ctx.Err()
	}
}

func (c *child) decode(frame []byte) (*reply, error) {
	r, err := decodeReply(frame)
	if err != nil {
		c.garbled(err)
		<-c.dead
		return nil, c.err
	}
	return r, nil
}

// begin takes a number for a call and starts its clock. A call that may wait for keys to be generated
// has as much time as these.
func (c *child) begin(op operation, timeout time.Duration) (number uint64, p *pending, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retiring {
		<-c.slots
		return 0, nil, errRetired
	}
	p = &pending{answer: make(chan []byte, 1), generates: op == opGenerate}
	if p.generates {
		c.generating++
	}
	if c.generating > 0 {
		timeout *= generateFactor
	}
	p.deadline = time.Now().Add(timeout)
	if c.next.IsZero() || p.deadline.Before(c.next) {
		c.setClock(p.deadline)
	}
	c.last++
	c.pending[c.last] = p
	return c.last, p, nil
}

// setClock has the clock fire at a time. The caller holds mu.
func (c *child) setClock(at time.Time) {
	c.next = at
	if c.clock == nil {
		c.clock = time.AfterFunc(time.Until(at), c.tick)
	} else {
		c.clock.Reset(time.Until(at))
	}
}

// tick ends the process if the time of a call is over, and else sets the clock for the call whose time is over next.
func (c *child) tick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = time.Time{}
	for _, p := range c.pending {
		if c.next.IsZero() || p.deadline.Before(c.next) {
			c.next = p.deadline
		}
	}
	switch {
	case c.next.IsZero():
	case time.Now().Before(c.next):
		c.setClock(c.next)
	default:
		c.end(ErrHangs)
	}
}

// finish takes a call from the pending ones and gives a copy of the reply to who waits for it. It
// returns false for a number that is none.
func (c *child) finish(number uint64, frame []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.pending[number]
	if !ok {
		return false
	}
	delete(c.pending, number)
	<-c.slots
	if p.generates {
		c.generating--
	}
	if c.retiring && len(c.pending) == 0 {
		close(c.quiet)
	}
	if !p.abandoned {
		p.answer <- bytes.Clone(frame)
	}
	return true
}

// abandon leaves a call to itself. If the answer came just now, it is wiped.
func (c *child) abandon(p *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.abandoned = true
	select {
	case frame := <-p.answer:
		clear(frame)
	default:
	}
}

// packets are buffers for calls on their way out.
var packets = sync.Pool{New: func() any { return new([]byte) }}

func (c *child) send(number uint64, request *call) error {
	buf := packets.Get().(*[]byte)
	*buf = appendCall((*buf)[:0], number, request)
	defer func() {
		clear(*buf) // PINs and keys pass through it
		if cap(*buf) <= 64<<10 {
			packets.Put(buf)
		}
	}()
	if len(*buf) > maxFrame {
		return fmt.Errorf("%d octets: %w", len(*buf), unix.EMSGSIZE)
	}
	_, err := c.conn.Write(*buf)
	return err
}

// unsent returns why a call could not be sent: it is too large, or the process has ended.
func (c *child) unsent(err error) error {
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		return fmt.Errorf("send to the module's process: %w", err)
	}
	c.hungUp(err)
	<-c.dead
	return c.err
}

// read hands replies to those who wait for them, until the process ends.
func (c *child) read() {
	buf := make([]byte, maxFrame)
	for {
		n, err := c.conn.Read(buf)
		if err != nil {
			close(c.drained)
			c.hungUp(err)
			return
		}
		number, frame, err := cutNumber(buf[:n])
		if err == nil && !c.finish(number, frame) {
			err = errors.New("an answer to no call")
		}
		if err != nil {
			close(c.drained)
			c.garbled(err)
			return
		}
		clear(buf[:n])
	}
}

// garbled ends a process that sends what is no answer.
func (c *child) garbled(err error) { c.end(fmt.Errorf("%w: %w", ErrCrashed, err)) }

// hungUp makes sure that a process whose socket is closed ends.
func (c *child) hungUp(err error) {
	timer := time.AfterFunc(closedGrace, func() { c.end(fmt.Errorf("%w: %w", ErrCrashed, err)) })
	<-c.dead
	timer.Stop()
}

// closedGrace is the time between the end of a process's socket and its own.
const closedGrace = 100 * time.Millisecond

// end ends the process for a reason that its callers will get.
func (c *child) end(reason error) {
	c.reason.CompareAndSwap(nil, &reason)
	c.ending.Do(func() { c.cmd.Process.Kill() })
}

// stop ends the process and waits for it.
func (c *child) stop() {
	c.end(fmt.Errorf("%w: stopped", ErrCrashed))
	<-c.dead
}

// retire waits until the process has nothing to do, has it finalize its module, and ends it, all within grace.
func (c *child) retire(grace time.Duration) {
	c.mu.Lock()
	c.retiring = true
	if len(c.pending) == 0 {
		close(c.quiet)
	}
	c.mu.Unlock()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	reason := errRetired
	select {
	case <-c.quiet:
		c.reason.CompareAndSwap(nil, &reason)
		c.conn.CloseWrite()
		select {
		case <-timer.C:
		case <-c.dead:
		}
	case <-timer.C:
		reason = ErrHangs
	case <-c.dead:
	}
	c.end(reason)
	<-c.dead
}

// errRetired says that an operation came to a helper that was being replaced. It did not begin.
var errRetired = fmt.Errorf("%w: replaced", ErrCrashed)
