package pivtest

import "bytes"

// Data objects that the card treats in its own way (SP 800-73-4 Part 1, Table 3).
const (
	objectDiscovery    = 0x7E
	objectFingerprints = 0x5FC103
	objectFace         = 0x5FC108
	objectPrinted      = 0x5FC109 // here Yubico's tools keep a management key protected by the PIN
	objectIris         = 0x5FC121
	objectAttestation  = 0x5FFF01 // certificate of slot F9
)

// maxObject bounds the value of one data object, in bytes.
const maxObject = 3052

// getData is GET DATA (SP 800-73-4 Part 2, Section 3.1.2).
func (c *Card) getData(cmd command) ([]byte, sw) {
	tag, rest, status := objectTag(cmd)
	if status != swOK || len(rest) > 0 {
		return nil, swWrongData
	}
	switch tag {
	case objectDiscovery:
		return encode(objectDiscovery, encode(0x4F, []byte(aidPIV)), encode(0x5F2F, []byte{0x40, 0})), swOK
	case objectFingerprints, objectFace, objectPrinted, objectIris:
		if !c.power.pinVerified {
			return nil, swSecurity
		}
	}
	value, ok := c.state.objects[tag]
	if !ok {
		return nil, swNotFound
	}
	return encode(0x53, value), swOK
}

// putData is PUT DATA (Section 3.3.2). An empty value deletes the object.
func (c *Card) putData(cmd command) sw {
	if !c.power.admin {
		return swSecurity
	}
	tag, rest, status := objectTag(cmd)
	if status != swOK {
		return status
	}
	value, rest, ok := decode(rest)
	if !ok || value.tag != 0x53 || len(rest) > 0 || tag>>16 != 0x5F || c.config.Plain && tag>>12 != 0x5FC {
		return swWrongData
	}
	if len(value.value) > maxObject {
		return swNoSpace
	}
	c.setObject(tag, bytes.Clone(value.value))
	return swOK
}

func (c *Card) setObject(tag uint32, value []byte) {
	if len(value) == 0 {
		delete(c.state.objects, tag)
		return
	}
	c.state.objects[tag] = value
}

// objectTag reads the tag list 5C that names the object.
func objectTag(cmd command) (tag uint32, rest []byte, status sw) {
	if cmd.p1 != 0x3F || cmd.p2 != 0xFF {
		return 0, nil, swWrongP1P2
	}
	name, rest, ok := decode(cmd.data)
	if !ok || name.tag != 0x5C || len(name.value) == 0 || len(name.value) > 3 {
		return 0, nil, swWrongData
	}
	for _, b := range name.value {
		tag = tag<<8 | uint32(b)
	}
	return tag, rest, swOK
}

// metadata is GET METADATA, Yubico's, of a key or secret.
func (c *Card) metadata(ref byte) ([]byte, sw) {
	if s := c.reference(ref); s != nil {
		return join(encode(0x01, []byte{0xFF}), encode(0x05, flag(s.isStandard())),
			encode(0x06, []byte{byte(s.max), byte(s.left)})), swOK
	}
	if ref == SlotManagement {
		m := c.state.management
		return join(encode(0x01, []byte{m.alg}), encode(0x02, []byte{0, m.touch}),
			encode(0x05, flag(string(m.value) == DefaultManagementKey))), swOK
	}
	key := c.state.keys[ref]
	if key == nil {
		return nil, swNoReference
	}
	return join(encode(0x01, []byte{key.alg}), encode(0x02, []byte{key.pin, key.touch}),
		encode(0x03, []byte{key.origin}), encode(0x04, key.encodePublic())), swOK
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func flag(b bool) []byte {
	if b {
		return []byte{1}
	}
	return []byte{0}
}
