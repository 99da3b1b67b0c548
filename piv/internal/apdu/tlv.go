package apdu

import "fmt"

// Tag is the tag of a data object, of one to three octets: 0x7C, 0x7F49, 0x5FC105.
type Tag uint32

// maxTag is the longest tag in octets.
const maxTag = 3

// Object is a data object.
type Object struct {
	Tag   Tag
	Value []byte // part of what was parsed
}

// Parse decodes the first data object of b and returns what follows it. Lengths must be
// definite and as short as possible, as in DER.
func Parse(b []byte) (o Object, rest []byte, err error) {
	tag, b, err := parseTag(b)
	if err != nil {
		return Object{}, nil, err
	}
	n, b, err := parseLength(b)
	if err != nil {
		return Object{}, nil, err
	}
	if n > len(b) {
		return Object{}, nil, fmt.Errorf("%w: object %X of %d octets in %d", ErrMalformed, uint32(tag), n, len(b))
	}
	return Object{tag, b[:n:n]}, b[n:], nil
}

func parseTag(b []byte) (Tag, []byte, error) {
	const number, more = 0x1F, 0x80
	if len(b) == 0 {
		return 0, nil, fmt.Errorf("%w: no tag", ErrMalformed)
	}
	tag := Tag(b[0])
	if tag == 0 {
		return 0, nil, fmt.Errorf("%w: tag zero", ErrMalformed)
	}
	if b[0]&number != number {
		return tag, b[1:], nil
	}
	for i := 1; i < maxTag && i < len(b); i++ {
		tag = tag<<8 | Tag(b[i])
		if b[i]&more == 0 {
			return tag, b[i+1:], nil
		}
	}
	// PIV's own tags, 5FC1xx and 5FFFxx, have the bit set in the second octet only.
	return 0, nil, fmt.Errorf("%w: tag too long", ErrMalformed)
}

func parseLength(b []byte) (int, []byte, error) {
	if len(b) == 0 {
		return 0, nil, fmt.Errorf("%w: no length", ErrMalformed)
	}
	first, b := int(b[0]), b[1:]
	if first < 0x80 {
		return first, b, nil
	}
	octets := first - 0x80
	if octets == 0 || octets > 2 || octets > len(b) {
		return 0, nil, fmt.Errorf("%w: length in %d octets", ErrMalformed, octets)
	}
	n := 0
	for _, c := range b[:octets] {
		n = n<<8 | int(c)
	}
	if n < 0x80 || octets == 2 && n < 0x100 {
		return 0, nil, fmt.Errorf("%w: length not in its shortest form", ErrMalformed)
	}
	return n, b[octets:], nil
}

// ParseAll decodes data objects until nothing is left. A tag that comes twice is refused.
func ParseAll(b []byte) (map[Tag][]byte, error) {
	objects := map[Tag][]byte{}
	for len(b) > 0 {
		o, rest, err := Parse(b)
		if err != nil {
			return nil, err
		}
		if _, twice := objects[o.Tag]; twice {
			return nil, fmt.Errorf("%w: object %X comes twice", ErrMalformed, uint32(o.Tag))
		}
		objects[o.Tag] = o.Value
		b = rest
	}
	return objects, nil
}

// Unwrap decodes one data object of the given tag and nothing after it.
func Unwrap(b []byte, tag Tag) ([]byte, error) {
	o, rest, err := Parse(b)
	switch {
	case err != nil:
		return nil, err
	case o.Tag != tag:
		return nil, fmt.Errorf("%w: object %X, not %X", ErrMalformed, uint32(o.Tag), uint32(tag))
	case len(rest) != 0:
		return nil, fmt.Errorf("%w: %d octets after object %X", ErrMalformed, len(rest), uint32(tag))
	}
	return o.Value, nil
}

// Append appends a data object of up to 65535 octets to b.
func Append(b []byte, tag Tag, value []byte) []byte {
	for shift := 16; shift >= 0; shift -= 8 {
		if shift == 0 || tag>>shift != 0 {
			b = append(b, byte(tag>>shift))
		}
	}
	switch n := len(value); {
	case n < 0x80:
		b = append(b, byte(n))
	case n < 0x100:
		b = append(b, 0x81, byte(n))
	default:
		b = append(b, 0x82, byte(n>>8), byte(n))
	}
	return append(b, value...)
}
