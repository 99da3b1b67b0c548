package hsm

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// backend executes calls in the helper. It may be called from several goroutines at once.
type backend interface {
	execute(c *call) *reply
	// finalize is called once, when nobody executes anything any more.
	finalize() error
}

// ServeModule is the helper process: it loads the module that the agent names in its first
// call on descriptor 3, and then executes calls on as many threads as the agent says. When the agent sends no more it
// finalizes the module. When the agent ends it ends at once, whatever the module does.
func ServeModule() error {
	conn := &socket{helperFD}
	syscall.CloseOnExec(helperFD)
	s := newServer(conn)
	number, first, err := s.next()
	if err != nil {
		return fmt.Errorf("this command is started by the agent: %w", err)
	}
	if first.op != opInit || len(first.data) != 2 || first.other == 0 || first.other > maxSessionLimit+1 {
		return fmt.Errorf("first call: %w", errFrame)
	}
	ended := make(chan error, 2)
	go func() { ended <- awaitHangUp(helperFD) }()
	go func() { ended <- s.load(number, first) }()
	return <-ended
}

// awaitHangUp waits until the other end of a socket is closed: threads that are in the module do not hear of that.
func awaitHangUp(fd int32) error {
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: fd}}, -1)
		if err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
}

// load loads the module that the first call names, and executes calls.
func (s *server) load(number uint64, first *call) error {
	threads := int(first.other)
	// A thread in a module or in a read keeps its place in Go's scheduler if there are
	// places enough, and nothing has to be handed over.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), threads+2))
	b, err := newModule(first)
	if err != nil {
		s.reply(number, failure(err))
		return fmt.Errorf("load module: %w", err)
	}
	if err := s.reply(number, &reply{}); err != nil {
		return err
	}
	ended := make(chan error, threads)
	for range threads {
		go func() { ended <- newServer(s.conn).serve(b) }()
	}
	for range threads {
		if err := <-ended; err != nil {
			return err
		}
	}
	if err := b.finalize(); err != nil {
		return fmt.Errorf("finalize module: %w", err)
	}
	return nil
}

// server is one thread of the helper. All read from one socket, which gives each packet to one of them.
type server struct {
	conn    io.ReadWriter
	in, out []byte
	taken   int // octets of in that the last packet takes up
}

func newServer(conn io.ReadWriter) *server {
	return &server{conn: conn, in: make([]byte, maxFrame)}
}

// serve executes calls until there are no more.
func (s *server) serve(b backend) error {
	for {
		number, c, err := s.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		r := b.execute(c)
		err = s.reply(number, r)
		r.wipe()
		if err != nil {
			return err
		}
	}
}

// next returns the next call, which is valid until the one after it, and its number. Packets are wiped:
// they carry PINs and keys to import.
func (s *server) next() (number uint64, c *call, err error) {
	clear(s.in[:s.taken])
	s.taken, err = s.conn.Read(s.in)
	if err == io.EOF {
		return 0, nil, err
	}
	var frame []byte
	if err == nil {
		number, frame, err = cutNumber(s.in[:s.taken])
	}
	if err == nil {
		c, err = decodeCall(frame)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("read call: %w", err)
	}
	return number, c, nil
}

// reply answers a call.
func (s *server) reply(number uint64, r *reply) error {
	s.out = appendReply(s.out[:0], number, r)
	if len(s.out) > maxFrame {
		clear(s.out)
		s.out = appendReply(s.out[:0], number, &reply{text: "the module's answer is too long"})
	}
	_, err := s.conn.Write(s.out)
	clear(s.out)
	if err != nil {
		return fmt.Errorf("write reply: %w", err)
	}
	return nil
}

// socket reads and writes packets in the calling thread, which sleeps in the kernel: a call wakes the
// thread that will execute it, and no other. The agent's end alone is set not to block.
type socket struct{ fd int }

func (s *socket) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(s.fd, b)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (s *socket) Write(b []byte) (int, error) {
	for {
		n, err := syscall.Write(s.fd, b)
		if err != syscall.EINTR {
			return n, os.NewSyscallError("write", err)
		}
	}
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
