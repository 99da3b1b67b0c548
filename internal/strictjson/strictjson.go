// Package strictjson reads and writes JSON as the agent's protocol wants it: member
// names exact, unknown and duplicate members and trailing content refused, binary
// values in base64url. It also repairs the one thing in which all published Mesh
// data departs from RFC 8259: raw line feeds inside strings.
package strictjson

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Value is one JSON value, not yet decoded.
type Value = jsontext.Value

// Unmarshal decodes one JSON value, strictly. Its errors are *Error and hold no value
// of the input, which may be secret; they name the place.
func Unmarshal(data []byte, v any) error {
	return redact(json.Unmarshal(EscapeControls(data), v, json.RejectUnknownMembers(true)))
}

// Error says what is wrong with a JSON text, and where.
type Error struct {
	// Path is the JSON Pointer (RFC 6901) of the place, empty for the whole.
	Path string
	// Reason is one of a few fixed texts.
	Reason string
}

// Error returns the reason and the place.
func (e *Error) Error() string {
	if e.Path == "" {
		return e.Reason
	}
	return fmt.Sprintf("%s: %s", e.Path, e.Reason)
}

// formatError is a reason that this package found; its text is fixed.
type formatError string

func (e formatError) Error() string { return string(e) }

// maxPath bounds what an error repeats of member names.
const maxPath = 128

// redact makes an *Error of an error of the JSON packages, whose own texts quote the
// value that did not fit.
func redact(err error) error {
	if err == nil {
		return nil
	}
	out := &Error{Reason: "malformed JSON"}
	if e, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		out.Path = string(e.JSONPointer)
	} else if e, ok := errors.AsType[*json.SemanticError](err); ok {
		out.Path, out.Reason = string(e.JSONPointer), "unexpected "+kindName(e.JSONKind)
	}
	if e, ok := errors.AsType[formatError](err); ok {
		out.Reason = string(e)
	}
	switch {
	case errors.Is(err, json.ErrUnknownName):
		out.Reason = "unknown member"
	case errors.Is(err, jsontext.ErrDuplicateName):
		out.Reason = "duplicate member"
	}
	if len(out.Path) > maxPath {
		out.Path = strings.ToValidUTF8(out.Path[:maxPath], "") + "..."
	}
	return out
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 'f', 't':
		return "boolean"
	case '"':
		return "string"
	case '0':
		return "number"
	case '{', '}':
		return "object"
	case '[', ']':
		return "array"
	}
	return "value"
}

// Marshal encodes v on one line.
func Marshal(v any) ([]byte, error) { return json.Marshal(v) }

// MarshalIndent encodes v for people, indented by two spaces.
func MarshalIndent(v any) ([]byte, error) {
	return json.Marshal(v, jsontext.WithIndent("  "))
}

// Valid reports whether data is exactly one well-formed JSON value without duplicate
// members, and if not, why.
func Valid(data []byte) error {
	var v jsontext.Value
	return redact(json.Unmarshal(EscapeControls(data), &v))
}

// EscapeControls returns data with raw line feeds, carriage returns and tabs inside
// string literals written as escapes, so that published Mesh objects parse. Valid JSON is returned
// as it is. Signatures are over the original octets: use the result for parsing only.
func EscapeControls(data []byte) []byte {
	if bytes.IndexByte(data, '\n') < 0 && bytes.IndexByte(data, '\r') < 0 && bytes.IndexByte(data, '\t') < 0 {
		return data // nothing to do, found at many octets a time
	}
	var out []byte
	start, inString, escaped := 0, false, false
	for i, c := range data {
		switch {
		case !inString:
			inString = c == '"'
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			inString = false
		case c == '\n', c == '\r', c == '\t':
			out = append(out, data[start:i]...)
			out = fmt.Appendf(out, `\u%04x`, c)
			start = i + 1
		}
	}
	if out == nil {
		return data
	}
	return append(out, data[start:]...)
}

// Binary is octets written as base64url without padding. On input, line feeds,
// carriage returns, tabs and blanks between the characters are skipped; padding and
// any other character, and unused bits that are not zero, are refused.
type Binary []byte

// MarshalJSON writes one string without line breaks.
func (b Binary) MarshalJSON() ([]byte, error) {
	out := make([]byte, 0, base64.RawURLEncoding.EncodedLen(len(b))+2)
	out = append(out, '"')
	out = base64.RawURLEncoding.AppendEncode(out, b)
	return append(out, '"'), nil
}

// UnmarshalJSON reads one string. A value that is not a string is refused, null too.
func (b *Binary) UnmarshalJSON(data []byte) error {
	if len(data) == 0 || data[0] != '"' {
		return formatError("base64url string expected")
	}
	text, err := jsontext.AppendUnquote(nil, data)
	if err != nil {
		return err
	}
	defer clear(text) // the value may be secret
	octets, err := decodeInPlace(text)
	if err != nil {
		return err
	}
	*b = octets
	return nil
}

// DecodeBase64 decodes base64url text as Binary does.
func DecodeBase64(text []byte) ([]byte, error) {
	text = slices.Clone(text)
	defer clear(text)
	return decodeInPlace(text)
}

// decodeInPlace spoils text.
func decodeInPlace(text []byte) ([]byte, error) {
	compact := text[:0]
	for _, c := range text {
		switch c {
		case '\n', '\r', '\t', ' ':
		default:
			compact = append(compact, c)
		}
	}
	out, err := base64.RawURLEncoding.Strict().AppendDecode([]byte{}, compact)
	if err != nil {
		return nil, formatError("not base64url without padding") // not the offset: the value may be secret
	}
	return out, nil
}

// Tagged is a JSON object of exactly one member: the Mesh's way to say which type an object has.
type Tagged struct {
	Tag  string
	Body Value
}

// NewTagged encodes body under tag.
func NewTagged(tag string, body any) (Tagged, error) {
	b, err := json.Marshal(body)
	return Tagged{Tag: tag, Body: b}, err
}

// MarshalJSONTo writes {"Tag":Body}.
func (t Tagged) MarshalJSONTo(e *jsontext.Encoder) error {
	return errors.Join(
		e.WriteToken(jsontext.BeginObject), e.WriteToken(jsontext.String(t.Tag)),
		e.WriteValue(t.Body), e.WriteToken(jsontext.EndObject))
}

// UnmarshalJSONFrom reads an object of exactly one member.
func (t *Tagged) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	v, err := d.ReadValue()
	if err != nil {
		return err
	}
	tag, body, err := CutTagged(v)
	if err != nil {
		return err
	}
	*t = Tagged{Tag: tag, Body: slices.Clone(body)} // the decoder's own is overwritten
	return nil
}

// CutTagged takes an object of exactly one member apart without decoding it once more: v must be known to be
// valid, as every Value that Unmarshal has set is. body is a part of v.
func CutTagged(v Value) (tag string, body Value, err error) {
	v = bytes.Trim(v, blanks)
	if len(v) == 0 || v[0] != '{' {
		return "", nil, errNotTagged
	}
	v = bytes.TrimLeft(v[1:len(v)-1], blanks)
	if len(v) == 0 {
		return "", nil, errNotTagged
	}
	name, rest := cutString(v)
	rest = bytes.TrimLeft(rest, blanks)[1:] // the colon
	if !isOne(rest) {
		return "", nil, errNotTagged
	}
	if tag = string(name[1 : len(name)-1]); strings.IndexByte(tag, '\\') >= 0 {
		text, err := jsontext.AppendUnquote(nil, name)
		if err != nil {
			return "", nil, err
		}
		tag = string(text)
	}
	return tag, bytes.Trim(rest, blanks), nil
}

const blanks = " \t\r\n" // between tokens; RFC 8259, Section 2

// cutString takes a string literal from the front of v.
func cutString(v []byte) (literal, rest []byte) {
	for i := 1; i < len(v); i++ {
		switch v[i] {
		case '\\':
			i++
		case '"':
			return v[:i+1], v[i+1:]
		}
	}
	return v, nil
}

// isOne reports whether v, which valid JSON has between a colon and the end of its object, is one value with
// no further member behind it.
func isOne(v []byte) bool {
	depth := 0
	for len(v) > 0 {
		switch v[0] {
		case '"':
			_, v = cutString(v)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 0 {
				return false
			}
		}
		v = v[1:]
	}
	return true
}

const errNotTagged = formatError("object with exactly one member expected")

// Decode decodes the body as Unmarshal does.
func (t Tagged) Decode(v any) error {
	return Unmarshal(t.Body, v)
}
