package jsonb_test

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/mesh/jsonb"
)

var samples = []struct {
	name, octets string
	value        any
	json         string
}{
	{"empty object", "{}", jsonb.Object{}, `{}`},
	{"empty array", "[]", []any{}, `[]`},
	{"string", "\x80\x02hi", "hi", `"hi"`},
	{"empty string", "\x80\x00", "", `""`},
	{"octets", "\x88\x03\x00\xff\x10", []byte{0, 255, 16}, `"AP8Q"`},
	{"constants", "[\xb0\xb1\xb2]", []any{true, false, nil}, `[true,false,null]`},
	{"member", "{\xb4\x01a\x80\x01b\xb4\x01c{}}", jsonb.Object{{"a", "b"}, {"c", jsonb.Object{}}}, `{"a":"b","c":{}}`},
	{"quotes", "\x80\x03\"\\\n", "\"\\\n", `"\"\\\n"`},
	{"integers", "[\xa0\x00\xa0\xff\xa1\x01\x00\xa8\x01\xaa\x00\x01\x00\x00\xa3\x7f\xff\xff\xff\xff\xff\xff\xff]",
		[]any{int64(0), int64(255), int64(256), int64(-1), int64(-65536), int64(math.MaxInt64)}, `[0,255,256,-1,-65536,9223372036854775807]`},
	{"long string", "\x81\x01\x00" + strings.Repeat("x", 256), strings.Repeat("x", 256), `"` + strings.Repeat("x", 256) + `"`},
}

func TestValues(t *testing.T) {
	t.Parallel()
	for _, s := range samples {
		v, err := jsonb.Parse([]byte(s.octets))
		if err != nil || !reflect.DeepEqual(v, s.value) {
			t.Errorf("%s: %#v, %v", s.name, v, err)
		}
		out, err := jsonb.Append(nil, s.value)
		if err != nil || string(out) != s.octets {
			t.Errorf("%s: writes %x, %v", s.name, out, err)
		}
		text, err := jsonb.JSON(s.value)
		if err != nil || string(text) != s.json {
			t.Errorf("%s: JSON %s, %v", s.name, text, err)
		}
	}
}

func TestOtherForms(t *testing.T) {
	t.Parallel()
	for octets, want := range map[string]any{
		"\x81\x00\x02hi":                        "hi",
		"\x82\x00\x00\x00\x02hi":                "hi",
		"\x84\x01h\x80\x01i":                    "hi",
		"\x84\x01\xc3\x80\x01\xa4":              "ä", // cut inside a character
		"\x8c\x01\x01\x8d\x00\x01\x02\x88\x00":  []byte{1, 2},
		"\x83\x00\x00\x00\x00\x00\x00\x00\x01a": "a",
		"\x8f\x00\x00\x00\x00\x00\x00\x00\x01a\x8b\x00\x00\x00\x00\x00\x00\x00\x00": []byte("a"),
		"\xa3\x00\x00\x00\x00\x00\x00\x00\x05":                                      int64(5),
		"\xa8\x00":                                                                  int64(0),
		"{\xb7\x00\x00\x00\x00\x00\x00\x00\x01a\xb2}":                               jsonb.Object{{"a", nil}},
		"{\xb5\x00\x01a\xb0\xb6\x00\x00\x00\x01b\xb1}":                              jsonb.Object{{"a", true}, {"b", false}},
	} {
		v, err := jsonb.Parse([]byte(octets))
		if err != nil || !reflect.DeepEqual(v, want) {
			t.Errorf("%x: %#v, %v", octets, v, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for name, octets := range map[string]string{
		"nothing":                "",
		"more follows":           "{}{}",
		"white space":            " {}",
		"JSON text":              `{"a":1}`,
		"comma":                  "[\xb0,\xb0]",
		"open object":            "{",
		"open array":             "[\xb0",
		"wrong bracket":          "[}",
		"name without value":     "{\xb4\x01a}",
		"value without name":     "{\x80\x01a}",
		"duplicate":              "{\xb4\x01a\xb0\xb4\x01a\xb1}",
		"duplicate in two forms": "{\xb4\x01a\xb0\xb5\x00\x01a\xb1}",
		"short string":           "\x80\x03ab",
		"short length":           "\x81\x01",
		"huge length":            "\x82\xff\xff\xff\xffa",
		"long length":            "\x83\x00\x00\x00\x01\x00\x00\x00\x01a",
		"length beyond all":      "\x83\xff\xff\xff\xff\xff\xff\xff\xffa",
		"integer beyond all":     "\xa3\x80\x00\x00\x00\x00\x00\x00\x00",
		"short integer":          "\xa1\x01",
		"not UTF-8":              "\x80\x01\xff",
		"name not UTF-8":         "{\xb4\x01\xff\xb0}",
		"open pieces":            "\x84\x01a",
		"mixed pieces":           "\x84\x01a\x88\x01b",
		"piece and value":        "\x84\x01a\xb0",
		"large integer":          "\xa5\x01",
		"real number":            "\x92\x00\x00\x00\x00\x00\x00\x00\x00",
		"name outside":           "\xb4\x01a",
		"unknown code":           "\xff",
		"too deep":               strings.Repeat("[", 40) + strings.Repeat("]", 40),
	} {
		if v, err := jsonb.Parse([]byte(octets)); err == nil {
			t.Errorf("%s: %#v", name, v)
		}
	}
	if _, err := jsonb.Append(nil, []any{1.5}); err == nil {
		t.Error("a real number is written")
	}
	if _, err := jsonb.JSON(jsonb.Object{{"a", []any{1.5}}}); err == nil {
		t.Error("a real number is written as JSON")
	}
}

func TestIs(t *testing.T) {
	t.Parallel()
	for octets, want := range map[string]bool{"{\xb4": true, "[\x80": true, "{}": false, `{"a"`: false, "{\n": false, "": false, "\x80\x00": false} {
		if jsonb.Is([]byte(octets)) != want {
			t.Errorf("Is(%x) is not %v", octets, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range samples[:len(samples)-1] {
		f.Add([]byte(s.octets))
	}
	f.Add([]byte("{\xb4\x01a\x84\x01x\x81\x00\x01y}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := jsonb.Parse(data)
		if err != nil {
			return
		}
		out, err := jsonb.Append(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		if len(out) > len(data) {
			t.Fatalf("%x becomes longer: %x", data, out)
		}
		again, err := jsonb.Parse(out)
		if err != nil || !reflect.DeepEqual(v, again) {
			t.Fatalf("%x becomes %x: %v", data, out, err)
		}
		if third, _ := jsonb.Append(nil, again); !bytes.Equal(out, third) {
			t.Fatalf("%x is written as %x", out, third)
		}
		if _, err := jsonb.JSON(v); err != nil {
			t.Fatal(err)
		}
	})
}
