package apdu

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"testing"
)

// script answers commands one after another.
type script struct {
	t     *testing.T
	steps []step
}

type step struct{ command, response string } // hex

func (s *script) Transmit(_ context.Context, command []byte) ([]byte, error) {
	s.t.Helper()
	if len(s.steps) == 0 {
		s.t.Fatalf("command %x is one too many", command)
	}
	next := s.steps[0]
	s.steps = s.steps[1:]
	if got := hex.EncodeToString(command); got != next.command {
		s.t.Errorf("command %s, want %s", got, next.command)
	}
	return unhex(s.t, next.response), nil
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSend(t *testing.T) {
	t.Parallel()
	long := bytes.Repeat([]byte{0xAB}, 300)
	for name, c := range map[string]struct {
		command Command
		steps   []step
		want    string
		err     error
	}{
		"no data":   {Command{INS: 0xFD}, []step{{"00fd000000", "0507019000"}}, "050701", nil},
		"data":      {Command{INS: 0xA4, P1: 4, Data: []byte{1, 2}}, []step{{"00a40400020102", "9000"}}, "", nil},
		"in parts":  {Command{INS: 0xCB}, []step{{"00cb000000", "016102"}, {"00c0000002", "02036100"}, {"00c0000000", "049000"}}, "01020304", nil},
		"length":    {Command{INS: 0xCB}, []step{{"00cb000000", "6c03"}, {"00cb000003", "0102039000"}}, "010203", nil},
		"refused":   {Command{INS: 0xCB}, []step{{"00cb000000", "6a82"}}, "", NotFound},
		"mid parts": {Command{INS: 0xCB}, []step{{"00cb000000", "016102"}, {"00c0000002", "6982"}}, "", SecurityStatus},
		"short":     {Command{INS: 0xCB}, []step{{"00cb000000", "90"}}, "", ErrMalformed},
		"empty":     {Command{INS: 0xCB}, []step{{"00cb000000", ""}}, "", ErrMalformed},
		"chain": {Command{INS: 0x87, Data: long}, []step{
			{"10870000ff" + hex.EncodeToString(long[:255]), "9000"}, {"008700002d" + hex.EncodeToString(long[:45]), "9000"}}, "", nil},
		"chain refused": {Command{INS: 0x87, Data: long}, []step{{"10870000ff" + hex.EncodeToString(long[:255]), "6700"}}, "", WrongLength},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &script{t, c.steps}
			got, err := Send(t.Context(), s, c.command)
			if !errors.Is(err, c.err) || hex.EncodeToString(got) != c.want {
				t.Errorf("%x, %v, want %s, %v", got, err, c.want, c.err)
			}
			if len(s.steps) != 0 {
				t.Errorf("%d commands were not sent", len(s.steps))
			}
		})
	}
}

// endless is a card that has always more to say.
type endless []byte

func (e endless) Transmit(context.Context, []byte) ([]byte, error) { return e, nil }

func TestEndless(t *testing.T) {
	t.Parallel()
	for _, e := range []endless{{0x61, 0}, append(make(endless, 256), 0x61, 0)} {
		if _, err := Send(t.Context(), e, Command{INS: 0xCB}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v", err)
		}
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	if n, ok := Status(0x63C2).Tries(); n != 2 || !ok {
		t.Errorf("%d tries, %t", n, ok)
	}
	if _, ok := Status(0x6982).Tries(); ok {
		t.Error("6982 has tries")
	}
	for s, want := range map[Status]string{0x63C2: "not verified, 2 tries left (63c2)", 0x6F00: "card error (6f00)", NotFound: "not found (6a82)"} {
		if s.Error() != want {
			t.Errorf("%q, want %q", s.Error(), want)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"5300", "53020102", "7f490100", "5fc1050155", "5fff000155", "538180" + hex.EncodeToString(make([]byte, 128))} {
		b := unhex(t, good)
		o, rest, err := Parse(b)
		if err != nil || len(rest) != 0 {
			t.Errorf("%s: %v", good, err)
		}
		if again := Append(nil, o.Tag, o.Value); !bytes.Equal(again, b) {
			t.Errorf("%s encodes to %x", good, again)
		}
	}
	for name, bad := range map[string]string{
		"empty": "", "no length": "53", "beyond": "530201", "indefinite": "5380", "zero tag": "0000",
		"long form of a short length": "53810100", "three octets": "5383000001" + "00", "two octets for one": "5382007f",
		"unfinished tag": "7f", "long tag": "5fc1850155", "length cut": "5382",
	} {
		if _, _, err := Parse(unhex(t, bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseAll(unhex(t, "810081008200")); !errors.Is(err, ErrMalformed) {
		t.Errorf("twice: %v", err)
	}
	for name, bad := range map[string]string{"other tag": "5400", "rest": "530000", "malformed": "53"} {
		if _, err := Unwrap(unhex(t, bad), 0x53); !errors.Is(err, ErrMalformed) {
			t.Errorf("unwrap %s: %v", name, err)
		}
	}
}

func FuzzParseAll(f *testing.F) {
	f.Add([]byte{0x53, 2, 1, 2, 0x5f, 0xc1, 5, 0})
	f.Add([]byte{0x7c, 0x81, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		for rest := b; len(rest) > 0; {
			o, next, err := Parse(rest)
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Error(err)
				}
				break
			}
			if again := Append(nil, o.Tag, o.Value); !bytes.Equal(again, rest[:len(rest)-len(next)]) {
				t.Errorf("%x encodes to %x", rest[:len(rest)-len(next)], again)
			}
			rest = next
		}
		_, _ = ParseAll(b)
	})
}
