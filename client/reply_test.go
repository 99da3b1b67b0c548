package client

import (
	"bytes"
	"testing"
)

// FuzzReply gives any frame to the decoder of replies: what it accepts encodes to the
// same frame, but for the number of the message.
func FuzzReply(f *testing.F) {
	good := appendFrame(nil, []byte(`{"MeshHelloResponse":{"Status":201}}`))
	good[4] = msgExtensionResponse
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add([]byte{0, 0, 0, 1, msgFailure})
	f.Add([]byte{0, 0, 0, 1, msgExtensionFailure})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		message, err := readFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		json, err := parseReply(message)
		if err != nil {
			return
		}
		again := appendFrame(nil, json)
		again[4] = msgExtensionResponse
		if !bytes.HasPrefix(data, again) {
			t.Errorf("%x decodes and encodes to %x", data, again)
		}
	})
}
