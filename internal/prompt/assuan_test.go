package prompt

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestEncode holds that no text makes a second line, or a line that is too long.
func TestEncode(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                       "SETDESC\n",
		"two\nlines\r100%":       "SETDESC two%0Alines%0D100%25\n",
		"x\nGETPIN\n\x00\x7f":    "SETDESC x%0AGETPIN%0A%00%7F\n",
		"ü\xff":                  "SETDESC ü?\n",
		strings.Repeat("ü", 600): "SETDESC " + strings.Repeat("ü", 494) + "...\n",
	} {
		if got := string(encode("SETDESC", in)); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("a\nb")
	f.Add(strings.Repeat("\n", 400))
	f.Fuzz(func(t *testing.T, in string) {
		line := encode("SETDESC", in)
		if len(line) > maxLine+1 || bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' || !utf8.Valid(line) {
			t.Fatalf("%q: %q", in, line)
		}
		for _, c := range line[:len(line)-1] {
			if c < ' ' {
				t.Fatalf("%q: %q", in, line)
			}
		}
	})
}

// FuzzReply has programs answer anything. Nothing of an answer may be in an error.
func FuzzReply(f *testing.F) {
	for _, seed := range []string{
		"OK\n", "D 1234\nOK\n", "D %31%\nOK\n", "ERR 83886179 cancelled\n", "S x\n# y\n\nOK hello\n", "ERR\n", "D\n",
		"D " + strings.Repeat("1", 300) + "\nOK\n", strings.Repeat("x", 2000), "INQUIRE a\n", "ERR 99999999999 x\n", "#\nOK\r\n",
	} {
		f.Add([]byte(seed), 7)
	}
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		a := &assuan{r: &slow{in, max(step, 1)}}
		data, err := a.reply()
		reply := (*replyError)(nil)
		switch {
		case err == nil && len(data) > maxAnswer, err != nil && data != nil:
			t.Fatalf("%q: %q, %v", in, data, err)
		case errors.As(err, &reply) && (reply.code > 0xffff || strings.ContainsAny(reply.text, "\n\x1b")):
			t.Fatalf("%q: %v", in, err)
		}
		a.wipe()
		if a.buf != ([len(a.buf)]byte{}) {
			t.Fatal("octets are left")
		}
	})
}

// slow reads a few octets at a time.
type slow struct {
	text []byte
	step int
}

func (s *slow) Read(b []byte) (int, error) {
	n := copy(b[:min(len(b), s.step)], s.text)
	s.text = s.text[n:]
	if n == 0 {
		return 0, errors.New("end")
	}
	return n, nil
}
