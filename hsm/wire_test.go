package hsm

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

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

func TestFrames(t *testing.T) {
	t.Parallel()
	var stream []byte
	for _, c := range someCalls() {
		stream = appendCall(stream, c)
	}
	for _, r := range someReplies() {
		stream = appendReply(stream, r)
	}
	large := &call{op: opSign, data: [][]byte{make([]byte, 300<<10)}}
	stream = appendCall(stream, large)
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "one octet at a time": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves": iotest.HalfReader(bytes.NewReader(stream)), "end with data": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		f := newFrames(r)
		for i, c := range someCalls() {
			frame, err := f.next()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := decodeCall(frame)
			if err != nil || !bytes.Equal(appendCall(nil, got), appendCall(nil, c)) {
				t.Errorf("%s: call %d is %v, %v", name, i, got, err)
			}
		}
		for i, want := range someReplies() {
			frame, err := f.next()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := decodeReply(frame)
			if err != nil || !bytes.Equal(appendReply(nil, got), appendReply(nil, want)) {
				t.Errorf("%s: reply %d is %v, %v", name, i, got, err)
			}
		}
		if frame, err := f.next(); err != nil || !bytes.Equal(frame, appendCall(nil, large)[4:]) {
			t.Errorf("%s: the large frame has %d octets, %v", name, len(frame), err)
		}
		if _, err := f.next(); err != io.EOF {
			t.Errorf("%s: %v, want EOF", name, err)
		}
		if slices.ContainsFunc(f.buf, func(b byte) bool { return b != 0 }) {
			t.Errorf("%s: the buffer keeps what was handed out", name)
		}
	}
}

func TestFramesRefuse(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{"too long": {0, 0x10, 0, 1}, "far too long": {0xff, 0xff, 0xff, 0xff}} {
		if _, err := newFrames(bytes.NewReader(b)).next(); !errors.Is(err, errFrame) {
			t.Errorf("%s: %v, want errFrame", name, err)
		}
	}
	for _, b := range [][]byte{{0}, {0, 0, 0, 2, 1}} {
		if _, err := newFrames(bytes.NewReader(b)).next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%x: %v, want an unexpected end", b, err)
		}
	}
	for _, c := range someCalls() {
		frame := appendCall(nil, c)[4:]
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
		f.Add(appendCall(nil, c)[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeCall(b); err == nil && !bytes.Equal(appendCall(nil, c)[4:], b) {
			t.Errorf("%x decodes to %v", b, c)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	for _, r := range someReplies() {
		f.Add(appendReply(nil, r)[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := decodeReply(b); err == nil && !bytes.Equal(appendReply(nil, r)[4:], b) {
			t.Errorf("%x decodes to %v", b, r)
		}
	})
}

func FuzzDecodeHandle(f *testing.F) {
	f.Add(handle{serial: "12ab", id: newID(token.P256, token.UseSign, 0, nil)}.encode())
	f.Add(handle{id: []byte{1}, found: true}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
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
