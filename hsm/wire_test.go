package hsm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

func someCalls() []*call {
	return []*call{
		{op: opSlots},
		{op: opInit, data: [][]byte{[]byte("/lib/module.so"), {}}, limit: 4},
		{op: opLogin, slot: 1 << 40, pin: []byte("1234")},
		{op: opSign, slot: 1, object: 77, mech: pss(5), data: [][]byte{bytes.Repeat([]byte{7}, 300)}, pin: []byte("1")},
		{op: opDecrypt, mech: mechanism{kind: ckmRSAOAEP, param: paramOAEP, numbers: [3]uint64{1, 2, 3}, octets: []byte("label")}},
		{op: opCreate, template: []attribute{yes(ckaToken), number(ckaClass, 3), {kind: ckaID}, octets(ckaLabel, []byte{})}, template2: wanted(publicAttributes)},
	}
}

func someReplies() []*reply {
	return []*reply{
		{}, {code: ckrPINIncorrect}, {text: "no such file"}, {numbers: []uint64{1, 1 << 63}, data: [][]byte{{1}, {}}},
		{objects: []object{{handle: 5, attributes: []attribute{yes(ckaSign), {kind: ckaECPoint}}}, {handle: 6}}},
	}
}

func TestPackets(t *testing.T) {
	t.Parallel()
	for i, c := range someCalls() {
		n, frame, err := cutNumber(appendCall(nil, 1<<(9*i), c))
		if err != nil || n != 1<<(9*i) {
			t.Fatalf("call %d has number %d, %v", i, n, err)
		}
		got, err := decodeCall(frame)
		if err != nil || !bytes.Equal(appendCall(nil, 0, got), appendCall(nil, 0, c)) {
			t.Errorf("call %d is %v, %v", i, got, err)
		}
	}
	for i, r := range someReplies() {
		n, frame, err := cutNumber(appendReply(nil, 1<<(9*i), r))
		if err != nil || n != 1<<(9*i) {
			t.Fatalf("reply %d has number %d, %v", i, n, err)
		}
		got, err := decodeReply(frame)
		if err != nil || !bytes.Equal(appendReply(nil, 0, got), appendReply(nil, 0, r)) {
			t.Errorf("reply %d is %v, %v", i, got, err)
		}
	}
}

// packetPipe is one end of a socket pair in memory: it keeps what is written, packet by packet.
type packetPipe struct{ in, out [][]byte }

func (p *packetPipe) Read(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.in[0])
	p.in = p.in[1:]
	return n, nil
}

func (p *packetPipe) Write(b []byte) (int, error) {
	p.out = append(p.out, bytes.Clone(b))
	return len(b), nil
}

// echo answers with the data of the call.
type echo struct{}

func (echo) execute(c *call) *reply {
	return &reply{data: [][]byte{bytes.Clone(c.pin), make([]byte, c.limit)}}
}

func (echo) finalize() error { return nil }

// A helper's thread answers by the number, leaves nothing behind, and does not answer what is
// malformed or too long.
func TestServe(t *testing.T) {
	t.Parallel()
	pipe := &packetPipe{in: [][]byte{
		appendCall(nil, 7, &call{op: opSign, pin: []byte("1234")}), appendCall(nil, 1<<40, &call{op: opSign, limit: maxFrame}),
	}}
	s := newServer(pipe)
	if err := s.serve(echo{}); err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{
		appendReply(nil, 7, &reply{data: [][]byte{[]byte("1234"), {}}}), appendReply(nil, 1<<40, &reply{text: "the module's answer is too long"}),
	} {
		if !bytes.Equal(pipe.out[i], want) {
			t.Errorf("reply %d is %x, want %x", i, pipe.out[i], want)
		}
	}
	if set := func(b byte) bool { return b != 0 }; slices.ContainsFunc(s.in, set) || slices.ContainsFunc(s.out[:cap(s.out)], set) {
		t.Error("the buffers keep what they held")
	}
	for _, b := range [][]byte{{0x80}, {1}, {1, 0}, {1, byte(opEnd)}} {
		if err := newServer(&packetPipe{in: [][]byte{b}}).serve(echo{}); !errors.Is(err, errFrame) {
			t.Errorf("%x: %v, want errFrame", b, err)
		}
	}
}

func TestCallsRefuse(t *testing.T) {
	t.Parallel()
	for _, c := range someCalls() {
		frame := appendCall(nil, 0, c)[1:]
		for n := range frame {
			if _, err := decodeCall(frame[:n]); err == nil {
				t.Errorf("the first %d octets of %x are a call", n, frame)
			}
		}
		if _, err := decodeCall(append(frame, 0)); err == nil {
			t.Errorf("%x and a zero are a call", frame)
		}
	}
}

func FuzzDecodeCall(f *testing.F) {
	for _, c := range someCalls() {
		f.Add(appendCall(nil, 0, c)[1:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeCall(b); err == nil && !bytes.Equal(appendCall(nil, 0, c)[1:], b) {
			t.Errorf("%x decodes to %v", b, c)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	for _, r := range someReplies() {
		f.Add(appendReply(nil, 0, r)[1:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeReply(b); err == nil && !bytes.Equal(appendReply(nil, 0, r)[1:], b) {
			t.Errorf("%x decodes to %v", b, r)
		}
	})
}

// FuzzDecodeHandle puts a right sum behind its octets, without which nothing would be decoded.
func FuzzDecodeHandle(f *testing.F) {
	for _, h := range []handle{
		{serial: "12ab", id: newID(token.P256, token.UseSign, 0, nil)},
		{id: []byte{1}, found: true},
		{serial: strings.Repeat("s", 255), id: bytes.Repeat([]byte{1}, maxID), found: true},
	} {
		b := h.encode()
		if _, err := decodeHandle(b); err != nil {
			f.Errorf("%x: %v", b, err)
		}
		f.Add(b[:len(b)-sumLength])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := sha256.Sum256(b)
		b = append(b, sum[:sumLength]...)
		if h, err := decodeHandle(b); err == nil && !bytes.Equal(h.encode(), b) {
			t.Errorf("%x decodes to %v", b, h)
		}
	})
}

func FuzzDecodeSealed(f *testing.F) {
	h := handle{serial: "12ab", id: newID(token.P256, token.UseAgree, 0, nil)}
	f.Add(sealed{form: formECDH, handle: h, public: []byte{4, 5}, ciphertext: []byte{6}}.encode())
	f.Add(sealed{form: formRSA, handle: h}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeSealed(b); err == nil && !bytes.Equal(s.encode(), b) {
			t.Errorf("%x decodes to %v", b, s)
		}
	})
}
