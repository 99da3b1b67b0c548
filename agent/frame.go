package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxFrame is the largest message, without its length field. OpenSSH has the same
// limit (AGENT_MAX_LEN).
const maxFrame = 256 << 10

const (
	lengthField = 4
	firstBuffer = 4 << 10  // what an idle connection holds
	keepBuffer  = 64 << 10 // a larger buffer is given up after its frame
)

var errFrameLength = errors.New("frame length is zero or above 262144")

// frameReader reads frames: a big-endian uint32 length, then that many octets. Memory
// grows with what has arrived, not with what the length field promises. Requests may
// hold PINs, so octets are overwritten when their frame is done.
type frameReader struct {
	conn    net.Conn
	timeout time.Duration // for the rest of a frame, from its first octet on
	begun   func()        // called when the first octet of a frame is there; nil for nothing
	buf     []byte
	end     int // buf[:end] has been read
	frame   int // octets at the front of buf that the last frame returned takes up
}

func newFrameReader(conn net.Conn, timeout time.Duration) *frameReader {
	return &frameReader{conn: conn, timeout: timeout, buf: make([]byte, firstBuffer)}
}

// next returns the next message, valid until the call after. It waits for the first
// octet for ever. Errors: io.EOF between frames, io.ErrUnexpectedEOF inside one,
// errFrameLength, and those of the connection.
func (r *frameReader) next() ([]byte, error) {
	r.discard()
	armed, heard := false, false
	for {
		if r.end > 0 && !heard && r.begun != nil {
			heard = true
			r.begun()
		}
		size, err := r.size()
		if err != nil {
			return nil, err
		}
		if r.end >= size {
			r.frame = size
			return r.buf[lengthField:size], r.disarm(armed)
		}
		if r.end > 0 && !armed {
			armed = true
			if err := r.conn.SetReadDeadline(time.Now().Add(r.timeout)); err != nil {
				return nil, err
			}
		}
		if err := r.fill(size); err != nil {
			return nil, err
		}
	}
}

// ahead reports whether octets were read that belong to the next frame.
func (r *frameReader) ahead() bool { return r.end > r.frame }

// size returns the length of the frame at the front of the buffer, its length field
// included, or the length of that field while it is incomplete.
func (r *frameReader) size() (int, error) {
	if r.end < lengthField {
		return lengthField, nil
	}
	n := binary.BigEndian.Uint32(r.buf)
	if n == 0 || n > maxFrame {
		return 0, fmt.Errorf("read frame: %w", errFrameLength)
	}
	return lengthField + int(n), nil
}

// fill reads once, after making room: the buffer doubles when it is full, up to size.
func (r *frameReader) fill(size int) error {
	if r.end == len(r.buf) {
		grown := make([]byte, min(2*len(r.buf), max(size, firstBuffer)))
		copy(grown, r.buf)
		clear(r.buf)
		r.buf = grown
	}
	n, err := r.conn.Read(r.buf[r.end:])
	r.end += n
	switch {
	case n > 0:
		return nil
	case errors.Is(err, io.EOF) && r.end > 0:
		return io.ErrUnexpectedEOF
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// discard overwrites the last frame and moves what follows it to the front.
func (r *frameReader) discard() {
	rest := r.buf[r.frame:r.end]
	to := r.buf
	if len(r.buf) > keepBuffer {
		to = make([]byte, max(firstBuffer, len(rest)))
	}
	n := copy(to, rest)
	if len(r.buf) > keepBuffer {
		clear(r.buf[:r.end])
	} else {
		clear(r.buf[n:r.end])
	}
	r.buf, r.end, r.frame = to, n, 0
}

// wipe overwrites everything read.
func (r *frameReader) wipe() { clear(r.buf) }

func (r *frameReader) disarm(armed bool) error {
	if !armed {
		return nil
	}
	return r.conn.SetReadDeadline(time.Time{})
}

// writeFrame writes frame, whose first lengthField octets it fills in, within timeout.
func writeFrame(conn net.Conn, frame []byte, timeout time.Duration) error {
	binary.BigEndian.PutUint32(frame, uint32(len(frame)-lengthField))
	if err := conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := conn.Write(frame)
	return err
}
