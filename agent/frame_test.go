package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// stream is a connection from which only a fixed stream can be read.
type stream struct {
	net.Conn
	io.Reader
}

func (s stream) Read(b []byte) (int, error)      { return s.Reader.Read(b) }
func (s stream) SetReadDeadline(time.Time) error { return nil }

func readAll(r *frameReader) (messages [][]byte, err error) {
	for {
		m, err := r.next()
		if err != nil {
			return messages, err
		}
		messages = append(messages, bytes.Clone(m))
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	largest := bytes.Repeat([]byte{7}, maxFrame)
	cases := []struct {
		name   string
		stream []byte
		want   [][]byte
		err    error
	}{
		{"nothing", nil, nil, io.EOF},
		{"one octet", frameOf([]byte{11}), [][]byte{{11}}, io.EOF},
		{"sent ahead", append(frameOf([]byte{1}), frameOf([]byte{2, 3})...), [][]byte{{1}, {2, 3}}, io.EOF},
		{"largest", frameOf(largest), [][]byte{largest}, io.EOF},
		{"largest and another", append(frameOf(largest), frameOf([]byte{1})...), [][]byte{largest, {1}}, io.EOF},
		{"zero", []byte{0, 0, 0, 0}, nil, errFrameLength},
		{"good, then zero", append(frameOf([]byte{1}), 0, 0, 0, 0), [][]byte{{1}}, errFrameLength},
		{"one too large", binary.BigEndian.AppendUint32(nil, maxFrame+1), nil, errFrameLength},
		{"much too large", []byte{0xff, 0xff, 0xff, 0xff, 1}, nil, errFrameLength},
		{"half a length", []byte{0, 0, 0}, nil, io.ErrUnexpectedEOF},
		{"length alone", []byte{0, 0, 0, 1}, nil, io.ErrUnexpectedEOF},
		{"half a message", []byte{0, 0, 0, 2, 1}, nil, io.ErrUnexpectedEOF},
	}
	readers := map[string]func(io.Reader) io.Reader{
		"as it comes": func(r io.Reader) io.Reader { return r },
		"one octet":   iotest.OneByteReader,
		"halves":      iotest.HalfReader,
		"error last":  iotest.DataErrReader,
	}
	for _, c := range cases {
		for how, wrap := range readers {
			t.Run(c.name+"/"+how, func(t *testing.T) {
				t.Parallel()
				r := newFrameReader(stream{Reader: wrap(bytes.NewReader(c.stream))}, time.Second)
				got, err := readAll(r)
				if !errors.Is(err, c.err) {
					t.Errorf("error %v, want %v", err, c.err)
				}
				if len(got) != len(c.want) {
					t.Fatalf("%d messages, want %d", len(got), len(c.want))
				}
				for i := range got {
					if !bytes.Equal(got[i], c.want[i]) {
						t.Errorf("message %d differs", i)
					}
				}
			})
		}
	}
}

// TestFrameMemory makes sure that a length field alone does not take memory, and that a
// large frame's is given back.
func TestFrameMemory(t *testing.T) {
	t.Parallel()
	promise := append(binary.BigEndian.AppendUint32(nil, maxFrame), make([]byte, 100)...)
	r := newFrameReader(stream{Reader: bytes.NewReader(promise)}, time.Second)
	if _, err := r.next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if len(r.buf) > firstBuffer {
		t.Errorf("%d octets held for 104 received", len(r.buf))
	}

	r = newFrameReader(stream{Reader: bytes.NewReader(append(frameOf(make([]byte, maxFrame)), frameOf([]byte{1})...))}, time.Second)
	for range 2 {
		if _, err := r.next(); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.buf) > keepBuffer {
		t.Errorf("%d octets held after a large frame", len(r.buf))
	}
}

func TestFrameIsWiped(t *testing.T) {
	t.Parallel()
	secret := []byte("correct horse battery staple")
	r := newFrameReader(stream{Reader: bytes.NewReader(append(frameOf(secret), frameOf([]byte{1})...))}, time.Second)
	first, err := r.next()
	if err != nil || !bytes.Equal(first, secret) {
		t.Fatal(err)
	}
	buf := r.buf
	if _, err := r.next(); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(buf, []byte("horse")) || bytes.Contains(r.buf, []byte("horse")) {
		t.Error("a frame is still in the buffer after the next one was read")
	}
}

func TestFrameDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		defer server.Close()
		r := newFrameReader(server, 10*time.Second)
		go func() {
			time.Sleep(30 * 24 * time.Hour) // silence between frames is not limited
			client.Write(frameOf([]byte{1}))
			time.Sleep(time.Hour)
			client.Write([]byte{0, 0})
			time.Sleep(9 * time.Second)
			client.Write([]byte{0, 1, 2})
			time.Sleep(time.Hour)
			client.Write([]byte{0})
		}()
		for _, want := range []byte{1, 2} {
			if m, err := r.next(); err != nil || len(m) != 1 || m[0] != want {
				t.Fatalf("%v, %v; want message %d", m, err, want)
			}
		}
		idle := time.Now()
		if _, err := r.next(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("a frame that does not go on: %v", err)
		}
		if d := time.Since(idle); d != time.Hour+10*time.Second {
			t.Errorf("given up after %v", d)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 11}, uint8(3))
	f.Add([]byte{0, 0, 0, 0}, uint8(1))
	f.Add([]byte{0, 4, 0, 1, 1}, uint8(1))
	f.Add([]byte{0, 0, 0, 2, 1, 2, 0, 0, 0, 1, 3, 0}, uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, chunk uint8) {
		r := newFrameReader(stream{Reader: &chunks{data, int(chunk)%17 + 1}}, time.Second)
		got, err := readAll(r)
		var encoded []byte
		for _, m := range got {
			encoded = append(encoded, frameOf(m)...)
		}
		if !bytes.HasPrefix(data, encoded) {
			t.Fatal("the messages read are not those sent")
		}
		rest := data[len(encoded):]
		switch {
		case len(rest) == 0:
			if err != io.EOF {
				t.Fatalf("at the end: %v", err)
			}
		case len(rest) >= 4 && (binary.BigEndian.Uint32(rest) == 0 || binary.BigEndian.Uint32(rest) > maxFrame):
			if !errors.Is(err, errFrameLength) {
				t.Fatalf("bad length: %v", err)
			}
		case !errors.Is(err, io.ErrUnexpectedEOF):
			t.Fatalf("half a frame: %v", err)
		}
	})
}

// chunks reads data n octets at a time.
type chunks struct {
	data []byte
	n    int
}

func (c *chunks) Read(b []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.data[:min(c.n, len(c.data))])
	c.data = c.data[n:]
	return n, nil
}
