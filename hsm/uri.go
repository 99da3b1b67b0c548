package hsm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// URI names tokens and objects in them: a PKCS #11 URI (RFC 7512). The zero value of a
// field matches anything.
type URI struct {
	Token        string // label of the token
	Manufacturer string // of the token
	Serial       string // of the token
	Model        string // of the token
	Object       string // label of an object
	ID           []byte // CKA_ID of an object
	Type         string // "public", "private", "cert", "secret-key" or "data"
}

// ErrPINInURI says that a URI carries a PIN or says where to find one.
var ErrPINInURI = errors.New("a PKCS#11 URI must not name a PIN")

const scheme = "pkcs11:"

// The longest values that CK_TOKEN_INFO has room for (PKCS #11, Section 3.2), and bounds of
// this package for the others.
var uriLimits = map[string]int{
	"token": 32, "manufacturer": 32, "serial": 16, "model": 16, "object": 255, "id": 64, "type": 16,
}

var uriTypes = []string{"public", "private", "cert", "secret-key", "data"}

// IsURI reports whether s is written as a PKCS #11 URI.
func IsURI(s string) bool { return strings.HasPrefix(s, scheme) }

// ParseURI parses a PKCS #11 URI (RFC 7512, Section 2.3). It takes the attributes token,
// manufacturer, serial, model, object, id and type, each once; any other attribute, a
// query, a character that RFC 7512 wants escaped, and a value longer than a token can have
// is an error. Attributes pin-value and pin-source give ErrPINInURI.
func ParseURI(s string) (URI, error) {
	var u URI
	rest, ok := strings.CutPrefix(s, scheme)
	if !ok {
		return u, fmt.Errorf("parse PKCS#11 URI: it does not start with %q", scheme)
	}
	path, query, hasQuery := strings.Cut(rest, "?")
	if err := refusePIN(path, query); err != nil {
		return URI{}, fmt.Errorf("parse PKCS#11 URI: %w", err)
	}
	if hasQuery {
		return URI{}, errors.New("parse PKCS#11 URI: query attributes are not supported; modules are named in the configuration")
	}
	if path == "" {
		return u, nil
	}
	seen := map[string]bool{}
	for pair := range strings.SplitSeq(path, ";") {
		name, raw, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return URI{}, errors.New("parse PKCS#11 URI: an attribute is not NAME=VALUE")
		}
		if seen[name] {
			return URI{}, fmt.Errorf("parse PKCS#11 URI: attribute %q is there twice", name)
		}
		seen[name] = true
		if err := u.set(name, raw); err != nil {
			return URI{}, fmt.Errorf("parse PKCS#11 URI: %w", err)
		}
	}
	return u, nil
}

// refusePIN looks at the names alone, so that no part of a PIN gets into an error.
func refusePIN(path, query string) error {
	for pair := range strings.FieldsFuncSeq(path+"&"+query, func(r rune) bool { return r == ';' || r == '&' || r == '?' }) {
		name, _, _ := strings.Cut(pair, "=")
		if name == "pin-value" || name == "pin-source" {
			return fmt.Errorf("%w: give it to `mesh-agent token unlock`", ErrPINInURI)
		}
	}
	return nil
}

func (u *URI) set(name, raw string) error {
	limit, ok := uriLimits[name]
	if !ok {
		return fmt.Errorf("unknown attribute %q (known: token, manufacturer, serial, model, object, id, type)", name)
	}
	value, err := unescape(raw)
	switch {
	case err != nil:
		return fmt.Errorf("attribute %q: %w", name, err)
	case len(value) == 0:
		return fmt.Errorf("attribute %q is empty", name)
	case len(value) > limit:
		return fmt.Errorf("attribute %q has %d octets, at most %d are possible", name, len(value), limit)
	}
	switch name {
	case "token":
		u.Token = string(value)
	case "manufacturer":
		u.Manufacturer = string(value)
	case "serial":
		u.Serial = string(value)
	case "model":
		u.Model = string(value)
	case "object":
		u.Object = string(value)
	case "id":
		u.ID = value
	case "type":
		u.Type = string(value)
		if !slices.Contains(uriTypes, u.Type) {
			return fmt.Errorf("unknown type %q (known: %v)", u.Type, uriTypes)
		}
	}
	return nil
}

// pathChars are the characters besides letters and digits that pk11-pchar allows unescaped
// (RFC 7512, Section 2.3): unreserved of RFC 3986 and pk11-res-avail.
const pathChars = "-._~:[]@!$'()*+,=&"

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(pathChars, c) >= 0
}

func unescape(s string) ([]byte, error) {
	var out []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '%':
			if len(s)-i < 3 {
				return nil, errors.New("percent sign without two hexadecimal digits")
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi < 0 || lo < 0 {
				return nil, errors.New("percent sign without two hexadecimal digits")
			}
			out = append(out, byte(hi<<4|lo))
			i += 2
		case plain(s[i]):
			out = append(out, s[i])
		default:
			return nil, fmt.Errorf("character %q must be percent-encoded", s[i])
		}
	}
	return out, nil
}

// unhex returns the value of a hexadecimal digit, or -1.
func unhex(c byte) int {
	i := strings.IndexByte("0123456789abcdefABCDEF", c)
	if i >= 16 {
		i -= 6
	}
	return i
}

// String returns the URI with its attributes in a fixed order. The octets of id are all
// percent-encoded, as RFC 7512 recommends. ParseURI takes it back.
func (u URI) String() string {
	var b strings.Builder
	b.WriteString(scheme)
	add := func(name, value string) {
		if value == "" {
			return
		}
		if b.Len() > len(scheme) {
			b.WriteByte(';')
		}
		b.WriteString(name)
		b.WriteByte('=')
		for i := range len(value) {
			if c := value[i]; plain(c) && name != "id" {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	add("token", u.Token)
	add("manufacturer", u.Manufacturer)
	add("serial", u.Serial)
	add("model", u.Model)
	add("object", u.Object)
	add("id", string(u.ID))
	add("type", u.Type)
	return b.String()
}

// matches reports whether a token is one that u names.
func (u URI) matches(t tokenInfo) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(u.Token, t.label) && is(u.Manufacturer, t.manufacturer) && is(u.Serial, t.serial) && is(u.Model, t.model)
}
