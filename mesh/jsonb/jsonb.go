// Package jsonb reads and writes the part of JSON-B that Mesh objects use
// (draft-hallambaker-jsonbcd, Section 3): the structure of JSON with strings and octets
// after their length instead of in quotes.
//
//	{ } [ ]                  as in JSON; nothing stands between elements or after a name
//	B4 B5 B6 B7              name of a member, after a length of 1, 2, 4, 8 octets
//	80 81 82 83              string, likewise
//	84 85 86 87              piece of a string that another piece follows
//	88 89 8A 8B              octets, likewise
//	8C 8D 8E 8F              piece of octets that another piece follows
//	A0 A1 A2 A3              integer of 1, 2, 4, 8 octets
//	A8 A9 AA AB              negative integer, likewise
//	B0 B1 B2                 true, false, null
//
// Other numbers, the compressed forms, and JSON text between are not read. Signatures are over
// encoded octets: what was read is never written again in their place.
package jsonb

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
)

// The codes.
const (
	codeString      = 0x80
	codeStringPiece = 0x84
	codeBinary      = 0x88
	codeBinaryPiece = 0x8c
	codeInteger     = 0xa0
	codeNegative    = 0xa8
	codeTrue        = 0xb0
	codeFalse       = 0xb1
	codeNull        = 0xb2
	codeName        = 0xb4
)

// maxDepth bounds how deep objects and arrays may stand in each other.
const maxDepth = 32

// Object is an object; its members keep their order.
type Object []Member

// Member is a member of an object. Value is Object, []any, string, []byte, int64, bool or nil.
type Member struct {
	Name  string
	Value any
}

// Is reports whether data begins as an object or array of JSON-B does and that of JSON
// text does not. An empty one could be either and is taken as JSON text.
func Is(data []byte) bool {
	return len(data) > 1 && (data[0] == '{' || data[0] == '[') && data[1] >= 0x80
}

// Parse reads one value, strictly: duplicate members, strings that are not UTF-8, and
// anything that follows are errors, which hold nothing of the input. Octets are copied.
func Parse(data []byte) (any, error) {
	p := parser{rest: data}
	v, err := p.value(0)
	if err == nil && len(p.rest) > 0 {
		err = errors.New("more follows the value")
	}
	if err != nil {
		return nil, fmt.Errorf("parse JSON-B at octet %d: %w", len(data)-len(p.rest), err)
	}
	return v, nil
}

var errShort = errors.New("value is cut short")

type parser struct{ rest []byte }

// next takes one octet.
func (p *parser) next() (byte, error) {
	if len(p.rest) == 0 {
		return 0, errShort
	}
	c := p.rest[0]
	p.rest = p.rest[1:]
	return c, nil
}

func (p *parser) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("values stand too deep in each other")
	}
	c, err := p.next()
	if err != nil {
		return nil, err
	}
	switch c {
	case '{':
		return p.object(depth)
	case '[':
		return p.array(depth)
	case codeTrue:
		return true, nil
	case codeFalse:
		return false, nil
	case codeNull:
		return nil, nil
	}
	switch c &^ 7 {
	case codeString:
		octets, err := p.pieces(c, codeString, codeStringPiece)
		if err != nil {
			return nil, err
		}
		return text(octets)
	case codeBinary:
		return p.pieces(c, codeBinary, codeBinaryPiece)
	}
	switch c &^ 3 {
	case codeInteger:
		return p.number(c & 3)
	case codeNegative:
		n, err := p.number(c & 3)
		return -n, err
	}
	return nil, errors.New("unknown code")
}

func text(octets []byte) (string, error) {
	if !utf8.Valid(octets) {
		return "", errors.New("string is not UTF-8")
	}
	return string(octets), nil
}

func (p *parser) object(depth int) (Object, error) {
	out, seen := Object{}, map[string]bool{}
	for {
		c, err := p.next()
		if err != nil || c == '}' {
			return out, err
		}
		if c&^3 != codeName {
			return nil, errors.New("name of a member expected")
		}
		octets, err := p.sized(c - codeName)
		if err != nil {
			return nil, err
		}
		name, err := text(octets)
		if err != nil {
			return nil, err
		}
		if seen[name] {
			return nil, errors.New("duplicate member")
		}
		seen[name] = true
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, Member{Name: name, Value: v})
	}
}

func (p *parser) array(depth int) ([]any, error) {
	out := []any{}
	for {
		if len(p.rest) > 0 && p.rest[0] == ']' {
			p.rest = p.rest[1:]
			return out, nil
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
}

// pieces reads octets whose first code is c, and the pieces that follow until a last one.
func (p *parser) pieces(c, last, piece byte) ([]byte, error) {
	out := []byte{}
	for {
		octets, err := p.sized(c & 3)
		if err != nil {
			return nil, err
		}
		out = append(out, octets...)
		switch {
		case c&^3 == last:
			return out, nil
		case c&^3 != piece:
			return nil, errors.New("piece of another type")
		}
		if c, err = p.next(); err != nil {
			return nil, err
		}
		if c&^3 != last && c&^3 != piece {
			return nil, errors.New("last piece expected")
		}
	}
}

// sized reads a length, as number does, and as many octets.
func (p *parser) sized(class byte) ([]byte, error) {
	n, err := p.number(class)
	if err != nil || n > int64(len(p.rest)) {
		return nil, errShort
	}
	out := p.rest[:n]
	p.rest = p.rest[n:]
	return out, nil
}

// number reads a number that is not negative, of 1, 2, 4 or 8 octets, for a class of 0, 1, 2 or 3.
func (p *parser) number(class byte) (int64, error) {
	size := 1 << class
	if len(p.rest) < size {
		return 0, errShort
	}
	n := uint64(0)
	for _, c := range p.rest[:size] {
		n = n<<8 | uint64(c)
	}
	p.rest = p.rest[size:]
	if n > math.MaxInt64 {
		return 0, errors.New("number is too large")
	}
	return int64(n), nil
}

// JSON writes a value as JSON text, with octets as base64url, for decoding with strictjson.
func JSON(v any) ([]byte, error) {
	text, err := appendJSON(nil, v)
	if err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	return text, nil
}

func appendJSON(out []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case Object:
		out = append(out, '{')
		for i, m := range v {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = appendJSON(out, m.Name); err != nil {
				return nil, err
			}
			out = append(out, ':')
			if out, err = appendJSON(out, m.Value); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	case []any:
		out = append(out, '[')
		for i, e := range v {
			if i > 0 {
				out = append(out, ',')
			}
			if out, err = appendJSON(out, e); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	case []byte:
		out = append(out, '"')
		out = base64.RawURLEncoding.AppendEncode(out, v)
		return append(out, '"'), nil
	case int64:
		return strconv.AppendInt(out, v, 10), nil
	case string, bool, nil:
		text, err := strictjson.Marshal(v)
		return append(out, text...), err
	}
	return nil, fmt.Errorf("value of type %T", v)
}

// Append writes a value after out: lengths as short as they can be, octets and strings in one piece.
func Append(out []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case Object:
		out = append(out, '{')
		for _, m := range v {
			out = appendSized(out, codeName, []byte(m.Name))
			if out, err = Append(out, m.Value); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	case []any:
		out = append(out, '[')
		for _, e := range v {
			if out, err = Append(out, e); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	case []byte:
		return AppendBinary(out, v), nil
	case string:
		return AppendString(out, v), nil
	case int64:
		if v < 0 {
			return appendNumber(out, codeNegative, uint64(-v)), nil
		}
		return appendNumber(out, codeInteger, uint64(v)), nil
	case bool:
		if v {
			return append(out, codeTrue), nil
		}
		return append(out, codeFalse), nil
	case nil:
		return append(out, codeNull), nil
	}
	return nil, fmt.Errorf("write JSON-B: value of type %T", v)
}

// AppendString writes a string.
func AppendString(out []byte, s string) []byte { return appendSized(out, codeString, []byte(s)) }

// AppendBinary writes octets.
func AppendBinary(out, octets []byte) []byte { return appendSized(out, codeBinary, octets) }

func appendSized(out []byte, code byte, octets []byte) []byte {
	return append(appendNumber(out, code, uint64(len(octets))), octets...)
}

func appendNumber(out []byte, code byte, n uint64) []byte {
	switch {
	case n <= math.MaxUint8:
		return append(out, code, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(out, code+1), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(out, code+2), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(out, code+3), n)
}
