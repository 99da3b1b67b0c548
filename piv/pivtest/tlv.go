package pivtest

import "slices"

// A tlv is one BER-TLV data object (ISO/IEC 7816-4, Section 6.1) with a tag of up to three bytes.
type tlv struct {
	tag   uint32
	value []byte
}

// encode returns tag, shortest length and the values joined.
func encode(tag uint32, values ...[]byte) []byte {
	value := slices.Concat(values...)
	var b []byte
	for shift := 24; shift >= 0; shift -= 8 {
		if v := byte(tag >> shift); v != 0 || len(b) > 0 || shift == 0 {
			b = append(b, v)
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

// decode splits off the first data object of b. Lengths of up to two bytes are known.
func decode(b []byte) (t tlv, rest []byte, ok bool) {
	if len(b) < 2 {
		return tlv{}, nil, false
	}
	t.tag, b = uint32(b[0]), b[1:]
	if t.tag&0x1F == 0x1F {
		for more := true; more; {
			if len(b) == 0 || t.tag > 0xFFFF {
				return tlv{}, nil, false
			}
			t.tag, more = t.tag<<8|uint32(b[0]), b[0]&0x80 != 0
			b = b[1:]
		}
	}
	n, b, ok := decodeLength(b)
	if !ok || n > len(b) {
		return tlv{}, nil, false
	}
	t.value = b[:n:n]
	return t, b[n:], true
}

func decodeLength(b []byte) (n int, rest []byte, ok bool) {
	switch {
	case len(b) >= 1 && b[0] < 0x80:
		return int(b[0]), b[1:], true
	case len(b) >= 2 && b[0] == 0x81:
		return int(b[1]), b[2:], true
	case len(b) >= 3 && b[0] == 0x82:
		return int(b[1])<<8 | int(b[2]), b[3:], true
	}
	return 0, nil, false
}

// decodeAll decodes a sequence of data objects by tag. A tag that comes twice is refused.
func decodeAll(b []byte) (map[uint32][]byte, bool) {
	all := map[uint32][]byte{}
	for len(b) > 0 {
		t, rest, ok := decode(b)
		if !ok {
			return nil, false
		}
		if _, twice := all[t.tag]; twice {
			return nil, false
		}
		all[t.tag], b = t.value, rest
	}
	return all, true
}

// decodeOnly decodes b as one data object of the tag and its value as a sequence.
func decodeOnly(tag uint32, b []byte) (map[uint32][]byte, bool) {
	t, rest, ok := decode(b)
	if !ok || t.tag != tag || len(rest) > 0 {
		return nil, false
	}
	return decodeAll(t.value)
}
