package hsm

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"
)

// maxLines is what the largest number of sessions leads to.
const maxLines = 2*maxSessionLimit + 3

// backend executes calls in the helper. It may be called from several goroutines at once.
type backend interface {
	execute(c *call) *reply
}

// ServeModule is the helper process: it loads the module that the agent names in its first
// call on descriptor 3, and then executes calls, on each of the sockets that it inherited one after
// another, until the agent closes them. It does not wait for calls that a module does not finish.
func ServeModule() error {
	first := &socket{firstFD}
	frame, err := newFrames(first).next()
	if err != nil {
		return fmt.Errorf("this command is started by the agent: %w", err)
	}
	c, err := decodeCall(frame)
	if err != nil || c.op != opInit || len(c.data) != 2 || c.other == 0 || c.other > maxLines {
		return fmt.Errorf("first call: %w", errFrame)
	}
	for i := range int(c.other) {
		syscall.CloseOnExec(firstFD + i)
	}
	// A thread in a module or in a read keeps its place in Go's scheduler if there are
	// places enough, and nothing has to be handed over.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), int(c.other)+2))
	b, err := newModule(c)
	if err != nil {
		send(first, nil, failure(err))
		return fmt.Errorf("load module: %w", err)
	}
	if _, err := send(first, nil, &reply{}); err != nil {
		return err
	}
	ended := make(chan error, c.other)
	for i := range int(c.other) {
		go func() { ended <- serve(&socket{firstFD + i}, b) }()
	}
	return <-ended
}

// serve executes the calls of one socket.
func serve(conn io.ReadWriter, b backend) error {
	f := newFrames(conn)
	var out []byte
	for {
		frame, err := f.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read call: %w", err)
		}
		c, err := decodeCall(frame)
		if err != nil {
			return fmt.Errorf("read call: %w", err)
		}
		r := b.execute(c)
		clear(frame)
		out, err = send(conn, out[:0], r)
		r.wipe()
		if err != nil {
			return fmt.Errorf("write reply: %w", err)
		}
	}
}

// socket reads and writes a descriptor in the calling thread, which sleeps in the kernel: a call
// wakes the thread that will execute it, and no other. The agent's end alone is set not to block.
type socket struct{ fd int }

func (s *socket) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(s.fd, b)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(b) != 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (s *socket) Write(b []byte) (done int, err error) {
	for done < len(b) {
		n, err := syscall.Write(s.fd, b[done:])
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return done, os.NewSyscallError("write", err)
		default:
			done += n
		}
	}
	return done, nil
}

// wipe overwrites the octets, which may be secrets.
func (r *reply) wipe() {
	for _, d := range r.data {
		clear(d)
	}
}

// failure makes the reply for an error.
func failure(err error) *reply {
	if c := codeOf(err); c != ckrOK {
		return &reply{code: c}
	}
	return &reply{text: err.Error()}
}

// send writes a reply and returns the buffer, wiped.
func send(w io.Writer, out []byte, r *reply) ([]byte, error) {
	out = appendReply(out, r)
	if len(out) > maxFrame {
		clear(out)
		out = appendReply(out[:0], &reply{text: "the module's answer is too long"})
	}
	_, err := w.Write(out)
	clear(out)
	return out, err
}
