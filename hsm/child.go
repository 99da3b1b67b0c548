package hsm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is a helper process as the agent sees it. Calls are numbered and may be answered in any
// order, so that one socket serves all sessions at once.
type child struct {
	cmd     *exec.Cmd
	conn    net.Conn
	started time.Time
	dead    chan struct{} // closed when the process has ended; then err and endedAt are set
	err     error
	endedAt time.Time
	reason  atomic.Pointer[error] // why the agent ended it

	writing sync.Mutex
	out     []byte // guarded by writing

	mu      sync.Mutex
	pending map[uint64]*pending // guarded by mu, as last and idle
	last    uint64
	idle    chan struct{} // closed when pending becomes empty; nil if nobody waits
}

// pending is a call that has no answer yet.
type pending struct {
	answer   chan []byte // has room for one
	deadline time.Time
	gone     bool // the caller has left; guarded by child.mu
}

// helperFD is the descriptor of the helper's end of the socket pair.
const helperFD = 3

// startChild starts a helper and has it load the module.
func startChild(o ModuleOptions) (*child, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "helper")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "helper")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	cmd := &exec.Cmd{
		Path: o.Helper[0], Args: o.Helper, Env: append([]string{}, o.Environment...), Dir: "/",
		ExtraFiles: []*os.File{theirs}, Stderr: o.stderr(),
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // the terminal's signals are for the agent
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNotLoaded, err), conn.Close())
	}
	c := &child{
		cmd: cmd, conn: conn, started: time.Now(), dead: make(chan struct{}),
		pending: map[uint64]*pending{},
	}
	go c.read()
	go c.watch(o.Timeout)
	if err := c.load(o); err != nil {
		c.stop()
		return nil, fmt.Errorf("%w: %w", ErrNotLoaded, err)
	}
	return c, nil
}

// stderr avoids an interface that holds a nil pointer.
func (o ModuleOptions) stderr() (w interface{ Write([]byte) (int, error) }) {
	if o.Stderr != nil {
		w = o.Stderr
	}
	return w
}

func (c *child) load(o ModuleOptions) error {
	request := &call{op: opInit, data: [][]byte{[]byte(o.Path), []byte(o.Arguments)}, limit: uint64(o.Sessions)}
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

func (c *child) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

// ended returns when the process ended. It is dead.
func (c *child) ended() time.Time { return c.endedAt }

// call sends a request and waits for its answer, for ctx or for the end of the process.
func (c *child) call(ctx context.Context, request *call, timeout time.Duration) (*reply, error) {
	p := &pending{answer: make(chan []byte, 1), deadline: time.Now().Add(timeout)}
	c.mu.Lock()
	c.last++
	id := c.last
	c.pending[id] = p
	c.mu.Unlock()
	c.send(id, request, p.deadline)
	select {
	case frame := <-p.answer:
		return decodeAnswer(frame)
	case <-c.dead:
	case <-ctx.Done():
		if c.leave(id, p) {
			return nil, ctx.Err()
		}
	}
	select { // the answer may have come together with the end
	case frame := <-p.answer:
		return decodeAnswer(frame)
	default:
		return nil, c.err
	}
}

func decodeAnswer(frame []byte) (*reply, error) {
	_, r, err := decodeReply(frame)
	return r, err
}

// leave gives up waiting; false if the answer has come or the process has ended.
func (c *child) leave(id uint64, p *pending) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.gone = true
	_, ok := c.pending[id]
	return ok
}

// send writes a request. If that fails, so does the process.
func (c *child) send(id uint64, request *call, deadline time.Time) {
	c.writing.Lock()
	c.out = appendCall(c.out[:0], id, request)
	err := c.conn.SetWriteDeadline(deadline)
	if err == nil {
		_, err = c.conn.Write(c.out)
	}
	clear(c.out) // PINs and keys pass through it
	if cap(c.out) > 64<<10 {
		c.out = nil
	}
	c.writing.Unlock()
	if err != nil {
		c.end(fmt.Errorf("%w: %w", ErrCrashed, err))
	}
}

// read hands out answers until the process ends.
func (c *child) read() {
	f := newFrames(c.conn)
	var err error
	for err == nil {
		var frame []byte
		if frame, err = f.next(); err == nil {
			err = c.deliver(frame)
		}
	}
	c.cmd.Process.Kill() // it has ended or is out of step
	state := c.cmd.Wait()
	c.conn.Close()
	c.endedAt = time.Now()
	switch reason := c.reason.Load(); {
	case reason != nil:
		c.err = *reason
	case errors.Is(err, errFrame):
		c.err = fmt.Errorf("%w: %w", ErrCrashed, err)
	default:
		c.err = fmt.Errorf("%w: %w", ErrCrashed, exitError(state))
	}
	c.mu.Lock()
	c.pending = map[uint64]*pending{}
	c.drainedLocked()
	c.mu.Unlock()
	close(c.dead)
}

func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

func (c *child) deliver(frame []byte) error {
	d := decoder{b: frame}
	id := d.number()
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.pending[id]
	if d.failed || !ok {
		return errFrame
	}
	delete(c.pending, id)
	c.drainedLocked()
	if p.gone {
		clear(frame)
		return nil
	}
	p.answer <- frame
	return nil
}

func (c *child) drainedLocked() {
	if c.idle != nil && len(c.pending) == 0 {
		close(c.idle)
		c.idle = nil
	}
}

// watch ends the process when a call is overdue.
func (c *child) watch(timeout time.Duration) {
	tick := time.NewTicker(min(max(timeout/8, time.Millisecond), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-c.dead:
			return
		case now := <-tick.C:
			if c.overdue(now) {
				c.end(ErrHangs)
				return
			}
		}
	}
}

func (c *child) overdue(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pending {
		if now.After(p.deadline) {
			return true
		}
	}
	return false
}

// end ends the process for a reason that its callers will get.
func (c *child) end(reason error) {
	c.reason.CompareAndSwap(nil, &reason)
	c.cmd.Process.Kill()
	c.conn.Close()
}

// stop ends the process and waits for it. The helper ends by itself when the socket is
// closed, but a module may hold it up.
func (c *child) stop() {
	c.end(fmt.Errorf("%w: stopped", ErrCrashed))
	<-c.dead
}

// retire waits until the process has nothing to do, but not longer than grace, and ends it.
func (c *child) retire(grace time.Duration) {
	c.mu.Lock()
	idle := make(chan struct{})
	if len(c.pending) == 0 {
		close(idle)
	} else {
		c.idle = idle
	}
	c.mu.Unlock()
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-idle:
	case <-timer.C:
	case <-c.dead:
	}
	c.stop()
}
