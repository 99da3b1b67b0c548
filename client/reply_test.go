package client

import (
	"bytes"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
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

// TestCutReply has replies as the agent writes them, as others might, and what is no reply: found by cutReply or by
// decoding what it returns.
func TestCutReply(t *testing.T) {
	t.Parallel()
	for text, status := range map[string]int{
		`{"MeshHelloResponse":{"Status":201}}`:                201,
		" {\n\"MeshHelloResponse\" : {\"Status\":201} } ":     201,
		`{"MeshHelloResponse":{"Status":201} }`:               201,
		`{"MeshHelloResponse":{"Status":201},"More":1}`:       0,
		`{"MeshHelloResponse":{"Status":201},"More":{"a":1}}`: 0,
		`{"MeshHelloResponse":{"Status":201}}}`:               0,
		`{"MeshHelloResponse":{"Status":201}`:                 0,
		`{"MeshHelloResponse":}`:                              0,
		`{"MeshHelloResponse":{"Status":201,"Status":201}}`:   0,
		`{"KeyResponse":{"Status":201}}`:                      0,
		`{"MeshHelloResponse"`:                                0,
		``:                                                    0,
	} {
		var out struct{ Status int }
		body, err := cutReply([]byte(text), "MeshHelloResponse")
		if err == nil {
			err = strictjson.Unmarshal(body, &out)
		}
		if (err == nil) != (status != 0) || out.Status != status && status != 0 {
			t.Errorf("%s: %d, %v", text, out.Status, err)
		}
	}
}
