package hsm

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// backend executes calls in the helper. It may be called from several goroutines at once.
type backend interface {
	execute(c *call) *reply
}

// ServeModule is the helper process: it loads the module that the agent names as its first
// call on descriptor 3, and executes calls, each on its own thread, until the agent closes the
// socket. It does not wait for calls that a module does not finish.
func ServeModule() error {
	file := os.NewFile(helperFD, "agent")
	conn, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("this command is started by the agent: %w", err)
	}
	defer conn.Close()
	return serve(conn, newModule)
}

func serve(conn io.ReadWriter, open func(*call) (backend, error)) error {
	f := newFrames(conn)
	w := &replyWriter{w: conn}
	frame, err := f.next()
	if err != nil {
		return fmt.Errorf("read first call: %w", err)
	}
	id, c, err := decodeCall(frame)
	if err != nil || c.op != opInit || len(c.data) != 2 {
		return fmt.Errorf("first call: %w", errFrame)
	}
	b, err := open(c)
	if err != nil {
		r := failure(err)
		return errors.Join(fmt.Errorf("load module: %w", err), w.send(id, r))
	}
	if err := w.send(id, &reply{}); err != nil {
		return err
	}
	for {
		frame, err := f.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read call: %w", err)
		}
		id, c, err := decodeCall(frame)
		if err != nil {
			return fmt.Errorf("read call: %w", err)
		}
		go func() {
			r := b.execute(c)
			clear(frame)
			w.send(id, r) // if the agent is gone, the reader knows
			r.wipe()
		}()
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

type replyWriter struct {
	mu  sync.Mutex
	w   io.Writer // guarded by mu
	out []byte    // guarded by mu
}

func (w *replyWriter) send(id uint64, r *reply) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = appendReply(w.out[:0], id, r)
	if len(w.out) > maxFrame {
		w.out = appendReply(w.out[:0], id, &reply{text: "the module's answer is too long"})
	}
	_, err := w.w.Write(w.out)
	clear(w.out)
	return err
}
