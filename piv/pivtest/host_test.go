package pivtest

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// host sends commands to a card as a driver does, with chaining and GET RESPONSE.
type host struct {
	t    testing.TB
	card *Card
}

// newHost returns a new card with PIV selected.
func newHost(t testing.TB, config Config) *host {
	t.Helper()
	h := &host{t, NewCard(config)}
	h.want(swOK, insSelect, 0x04, 0, []byte(aidPIV))
	return h
}

// raw sends one APDU and splits the answer.
func (h *host) raw(apdu []byte) ([]byte, sw) {
	h.t.Helper()
	answer := h.card.Transmit(apdu)
	if len(answer) < 2 {
		h.t.Fatalf("answer to % X: %d bytes", apdu, len(answer))
	}
	n := len(answer) - 2
	return answer[:n], sw(binary.BigEndian.Uint16(answer[n:]))
}

func (h *host) do(ins, p1, p2 byte, data []byte) ([]byte, sw) {
	h.t.Helper()
	for len(data) > 255 {
		if _, status := h.raw(append([]byte{claMore, ins, p1, p2, 255}, data[:255]...)); status != swOK {
			return nil, status
		}
		data = data[255:]
	}
	apdu := append([]byte{claLast, ins, p1, p2, byte(len(data))}, data...)
	all, status := h.raw(apdu)
	for status&0xFF00 == swMore {
		var part []byte
		part, status = h.raw([]byte{claLast, insGetResponse, 0, 0, 0})
		all = append(all, part...)
	}
	return all, status
}

// want fails unless the command is answered with the status.
func (h *host) want(status sw, ins, p1, p2 byte, data []byte) []byte {
	h.t.Helper()
	answer, got := h.do(ins, p1, p2, data)
	if got != status {
		h.t.Fatalf("command %02X %02X %02X: got %04X, want %04X", ins, p1, p2, got, status)
	}
	return answer
}

func (h *host) pin(status sw, value string) {
	h.t.Helper()
	h.want(status, insVerify, 0, refPIN, padded(value))
}

func padded(value string) []byte {
	return append([]byte(value), bytes.Repeat([]byte{0xFF}, 8-len(value))...)
}

// admin proves the management key, mutually.
func (h *host) admin() {
	h.t.Helper()
	m := h.card.state.management
	block := managementCipher(m.alg, m.value)
	size := block.BlockSize()
	answer := h.want(swOK, insAuthenticate, m.alg, SlotManagement, encode(0x7C, encode(0x80)))
	witness := crypt(block.Decrypt, answer[4:])
	challenge := bytes.Repeat([]byte{7}, size)
	answer = h.want(swOK, insAuthenticate, m.alg, SlotManagement,
		encode(0x7C, encode(0x80, witness), encode(0x81, challenge)))
	if want := encode(0x7C, encode(0x82, crypt(block.Encrypt, challenge))); !bytes.Equal(answer, want) {
		h.t.Fatalf("the card proves the management key with % X, want % X", answer, want)
	}
}

// use does GENERAL AUTHENTICATE and returns what is in tag 82.
func (h *host) use(status sw, alg, slot byte, tag uint32, data []byte) []byte {
	h.t.Helper()
	answer := h.want(status, insAuthenticate, alg, slot, encode(0x7C, encode(0x82), encode(tag, data)))
	if status != swOK {
		return nil
	}
	t, ok := decodeOnly(0x7C, answer)
	if !ok {
		h.t.Fatalf("answer % X is no template 7C", answer)
	}
	return t[0x82]
}

func (h *host) object(status sw, tag []byte) []byte {
	h.t.Helper()
	return h.want(status, insGetData, 0x3F, 0xFF, encode(0x5C, tag))
}

func (h *host) generate(slot, alg, pin, touch byte) {
	h.t.Helper()
	if _, err := h.card.Generate(slot, alg, pin, touch); err != nil {
		h.t.Fatal(err)
	}
}
