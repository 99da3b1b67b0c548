package strictjson

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

type inner struct {
	Number int
	Octets Binary
}

type outer struct {
	Name string
	In   *inner  `json:",omitzero"`
	List []inner `json:",omitzero"`
}

func TestUnmarshal(t *testing.T) {
	t.Parallel()
	var v outer
	if err := Unmarshal([]byte(" {\"Name\":\"x\",\"In\":{\"Number\":7,\"Octets\":\"_-\n  8A\"}} \n"), &v); err != nil {
		t.Fatal(err)
	}
	if v.Name != "x" || v.In.Number != 7 || !bytes.Equal(v.In.Octets, []byte{0xff, 0xef, 0x00}) {
		t.Errorf("%+v %x", v, v.In.Octets)
	}
}

// Every refusal names the place, and none shows the value.
func TestUnmarshalRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, path, reason string }{
		{``, "", "malformed JSON"},
		{`{`, "", "malformed JSON"},
		{`{"Name":"SECRET"} x`, "", "malformed JSON"},
		{`{"Name":"SECRET"}{}`, "", "malformed JSON"},
		{`{"Name":"SECRET",}`, "", "malformed JSON"},
		{"{\"Name\":\"SECRET\x00\"}", "/Name", "malformed JSON"},
		{"{\"Name\":\"SECRET\xff\"}", "/Name", "malformed JSON"},
		{`{"Name":"SECRET","Name":"SECRET"}`, "/Name", "duplicate member"},
		{`{"Name":"a","\u004eame":"SECRET"}`, "/Name", "duplicate member"},
		{`{"name":"SECRET"}`, "/name", "unknown member"},
		{`{"Other":"SECRET"}`, "/Other", "unknown member"},
		{`{"In":{"Other":"SECRET"}}`, "/In/Other", "unknown member"},
		{`{"Name":{"a":"SECRET"}}`, "/Name", "unexpected object"},
		{`{"Name":7}`, "/Name", "unexpected number"},
		{`{"Name":true}`, "/Name", "unexpected boolean"},
		{`{"In":"SECRET"}`, "/In", "unexpected string"},
		{`{"In":["SECRET"]}`, "/In", "unexpected array"},
		{`{"In":{"Number":"SECRET"}}`, "/In/Number", "unexpected string"},
		{`{"In":{"Number":1.5}}`, "/In/Number", "unexpected number"},
		{`{"In":{"Number":99999999999999999999}}`, "/In/Number", "unexpected number"},
		{`{"List":[{"Number":1},{"Number":"SECRET"}]}`, "/List/1/Number", "unexpected string"},
		{`{"In":{"Octets":"SECRET*"}}`, "/In/Octets", "not base64url without padding"},
		{`{"In":{"Octets":null}}`, "/In/Octets", "base64url string expected"},
		{`{"In":{"Octets":[1]}}`, "/In/Octets", "base64url string expected"},
		{`"SECRET"`, "", "unexpected string"},
	} {
		var v outer
		err := Unmarshal([]byte(c.text), &v)
		var e *Error
		if !errors.As(err, &e) || e.Path != c.path || e.Reason != c.reason {
			t.Errorf("%s: %v, want %s: %s", c.text, err, c.path, c.reason)
			continue
		}
		if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error shows the value: %v", c.text, err)
		}
	}
	long := strings.Repeat("é", 1000)
	if err := Unmarshal([]byte(`{"`+long+`":1}`), &outer{}); err == nil || len(err.Error()) > 200 {
		t.Errorf("the error of a long name: %v", err)
	}
}

func TestDecodeBase64(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "AA": "\x00", "AAA": "\x00\x00", "_-8A": "\xff\xef\x00", " A\n\r\tA ": "\x00",
	} {
		if got, err := DecodeBase64([]byte(text)); err != nil || string(got) != want || got == nil {
			t.Errorf("%q: %x, %v", text, got, err)
		}
	}
	for _, text := range []string{"A", "AB", "AA=", "AA==", "A+", "A/", "AAAAA", "A\vA", "A\x00A", "AAB"} {
		if got, err := DecodeBase64([]byte(text)); err == nil {
			t.Errorf("%q: %x", text, got)
		}
	}
}

// The text of a value may be the caller's own memory.
func TestDecodeBase64LeavesText(t *testing.T) {
	t.Parallel()
	text := []byte("AA\nEC")
	if got, err := DecodeBase64(text); err != nil || string(got) != "\x00\x01\x02" || string(text) != "AA\nEC" {
		t.Errorf("%x, %v, text %q", got, err, text)
	}
	data := []byte(`"AAEC"`)
	var b Binary
	if err := b.UnmarshalJSON(data); err != nil || string(b) != "\x00\x01\x02" || string(data) != `"AAEC"` {
		t.Errorf("%x, %v, data %s", b, err, data)
	}
}

func TestEscapeControls(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{"a":"b"}`:             `{"a":"b"}`,
		"{\n\"a\":\t\"b\"}\r\n": "{\n\"a\":\t\"b\"}\r\n",
		"\"a\n\t\rb\"":          `"a\u000a\u0009\u000db"`,
		"\"\\\"\n\"":            `"\"\u000a"`,
		"\"\\\\\"\n":            "\"\\\\\"\n",
		"\"\x01\"":              "\"\x01\"",
		"\"\\\n\"":              "\"\\\n\"",
		"\"\n":                  `"\u000a`,
	} {
		if got := string(EscapeControls([]byte(in))); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestValid(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{
		`{}`: true, `[1,{"a":[]}]`: true, "\"a\nb\"": true, ``: false, `{"a":1,"a":2}`: false, `[{"a":{"b":1,"b":1}}]`: false, `1 2`: false, `{'a':1}`: false,
	} {
		if err := Valid([]byte(text)); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestTagged(t *testing.T) {
	t.Parallel()
	v, err := NewTagged("Tag", inner{Number: 3, Octets: Binary{1}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := Marshal(v)
	if err != nil || string(text) != `{"Tag":{"Number":3,"Octets":"AQ"}}` {
		t.Fatalf("%s, %v", text, err)
	}
	var again Tagged
	var body inner
	if err := Unmarshal(text, &again); err != nil || again.Tag != "Tag" {
		t.Fatalf("%+v, %v", again, err)
	}
	if err := again.Decode(&body); err != nil || body.Number != 3 {
		t.Errorf("%+v, %v", body, err)
	}
	for _, text := range []string{`{}`, `null`, `[]`, `"a"`, `{"a":1,"b":2}`, `{"a":1,"a":2}`} {
		if err := Unmarshal([]byte(text), &again); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
	again.Body = Value(`{"Number":1,"More":2}`)
	if err := again.Decode(&body); err == nil {
		t.Error("an unknown member of the body is accepted")
	}
	if _, err := NewTagged("Tag", func() {}); err == nil {
		t.Error("a function is encoded")
	}
}

// Whatever the decoder finds to be an object of one member, CutTagged takes apart in the same way.
func TestCutTagged(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]string{
		`{"a":1}`:                              {"a", `1`},
		" {\t\"a\" :\r\n [1,{\"b\":\"}\"}] } ": {"a", `[1,{"b":"}"}]`},
		`{"\u0061\"":"x,\"}"}`:                 {`a"`, `"x,\"}"`},
		`{"a":{"b":1,"c":[2,3]}}`:              {"a", `{"b":1,"c":[2,3]}`},
		`{"":""}`:                              {"", `""`},
		`{"\\":null}`:                          {`\`, `null`},
		`{"a":"\\"}`:                           {"a", `"\\"`},
	} {
		tag, body, err := CutTagged(Value(text))
		if err != nil || tag != want[0] || string(body) != want[1] {
			t.Errorf("%s: %q, %s, %v", text, tag, body, err)
		}
	}
	for _, text := range []string{``, ` `, `{}`, ` { } `, `null`, `1`, `"{}"`, `[]`, `[{"a":1}]`, `{"a":1,"b":2}`, `{"a":{"b":1},"c":[]}`, `{"a":"x","b":"y"}`, `{"a":[1,2] , "b":3}`} {
		if tag, body, err := CutTagged(Value(text)); err == nil {
			t.Errorf("%s: %q, %s", text, tag, body)
		}
	}
}

// FuzzCutTagged compares with decoding into a map.
func FuzzCutTagged(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"a":{"b":"}"}}`, `{"a":1,"b":2}`, `{"\u0061":"\\"}`, `{}`, `[{"a":1}]`, ` {"a" : [ 1 , 2 ] } `, `{"a":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if !Value(data).IsValid() {
			return
		}
		var members map[string]Value
		err := json.Unmarshal(data, &members)
		one := err == nil && len(members) == 1
		tag, body, err := CutTagged(Value(data))
		if (err == nil) != one || one && string(members[tag]) != string(body) {
			t.Errorf("%q: %q, %q, %v; decoded %v", data, tag, body, err, members)
		}
	})
}

func TestMarshalIndent(t *testing.T) {
	t.Parallel()
	got, err := MarshalIndent(outer{Name: "x"})
	if err != nil || string(got) != "{\n  \"Name\": \"x\"\n}" {
		t.Errorf("%s, %v", got, err)
	}
}

func FuzzUnmarshal(f *testing.F) {
	for _, s := range []string{`{"Name":"x","In":{"Number":7,"Octets":"_-8A"}}`, `{"List":[{"Number":1}]}`, "{\"Name\":\"a\nb\\\n\"}", `{"Name":"a","Name":"b"}`, ``} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v, again outer
		if err := Unmarshal(data, &v); err != nil {
			return
		}
		if Valid(data) != nil {
			t.Fatalf("%q decodes and is not valid", data)
		}
		text, err := Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := Unmarshal(text, &again); err != nil || fmt.Sprintf("%+v", again.List) != fmt.Sprintf("%+v", v.List) || again.Name != v.Name {
			t.Fatalf("%q: %s, %v", data, text, err)
		}
	})
}

func BenchmarkUnmarshal(b *testing.B) {
	data := []byte(`{"Name":"x","In":{"Number":7,"Octets":"_-8A"},"List":[{"Number":1},{"Number":2}]}`)
	b.ReportAllocs()
	for b.Loop() {
		if err := Unmarshal(data, &outer{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEscapeControls(b *testing.B) {
	data := []byte(`{"a":"` + strings.Repeat("AAAA\n  ", 1000) + `"}`)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		EscapeControls(data)
	}
}
