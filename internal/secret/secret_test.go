package secret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// TestRedacted looks for the octets in everything that prints values.
func TestRedacted(t *testing.T) {
	t.Parallel()
	s := Bytes("hunter2")
	holder := struct {
		Name string
		Key  Bytes
	}{"name", s}
	shows := map[string]string{"String": s.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%o", "%b", "%c", "%U", "%t", "%5.3s"} {
		shows[verb] = fmt.Sprintf(verb, s)
		shows["struct "+verb] = fmt.Sprintf(verb, holder)
	}
	text, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	shows["json"] = string(text)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("message", "key", s)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("message", "key", s, "holder", holder)
	shows["log"] = log.String()
	for how, shown := range shows {
		for _, form := range []string{"hunter2", "68756e74", "68 75", "104 117", "aHVudGVy", "U+0068", "1101000"} {
			if strings.Contains(strings.ToLower(shown), strings.ToLower(form)) {
				t.Errorf("%s shows %q", how, shown)
			}
		}
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	s := Bytes("hunter2")
	s.Wipe()
	if !bytes.Equal(s, make([]byte, 7)) {
		t.Error("octets are left")
	}
	Bytes(nil).Wipe()
}
