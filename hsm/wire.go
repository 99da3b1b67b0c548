package hsm

import (
	"encoding/binary"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

// The agent and its helper speak in packets: the number of a call, then the call; or the number of
// the call that is answered, then the reply. Replies come in any order. Numbers are uvarints, octets are
// preceded by their number. Both ends are the same binary, so there are no versions.

// maxFrame bounds a packet: the agent's own frames have at most 256 KiB.
const maxFrame = 320 << 10

// operation says what a call asks of the module.
type operation uint8

const (
	opInit      operation = iota + 1 // load and initialize the module
	opSlots                          // the slots with a token
	opToken                          // one slot's token
	opMechanism                      // mechanisms of a slot
	opLogin
	opLogout
	opState    // of a session: whether the user is logged in
	opFind     // objects that match template, with the attributes of template2
	opRead     // attributes of template2 of an object
	opGenerate // key pair
	opSecret   // secret key, for probes
	opCreate
	opCopy // of an object, living as long as the login
	opDestroy
	opSign
	opDerive
	opDecrypt
	opWrap // for probes
	opEnd
)

// paramKind says what the parameter of a mechanism is.
type paramKind uint8

const (
	paramNone  paramKind = iota
	paramPSS             // numbers: hash, MGF, octets of salt
	paramOAEP            // numbers: hash, MGF; octets: label
	paramOctet           // octets as they are
	paramEnd
)

// mechanism is a CK_MECHANISM.
type mechanism struct {
	kind    uint64
	param   paramKind
	numbers [3]uint64
	octets  []byte
}

// attribute is a CK_ATTRIBUTE. A nil value stands for one that the module does not tell.
type attribute struct {
	kind  uint64
	value []byte
}

// call is what the agent asks of the helper. Operations use the fields that they need.
type call struct {
	op        operation
	slot      uint64
	object    uint64 // handle of a key or object
	other     uint64 // handle of a second object
	mech      mechanism
	template  []attribute
	template2 []attribute
	data      [][]byte
	pin       []byte
	limit     uint64
}

// object is a handle with attributes.
type object struct {
	handle     uint64
	attributes []attribute
}

// reply is the answer to a call.
type reply struct {
	code    Code
	text    string // why there is no code
	numbers []uint64
	data    [][]byte
	objects []object
}

var errFrame = fmt.Errorf("%w: malformed packet", token.ErrFault)

func appendOctets(b, v []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(v)))
	return append(b, v...)
}

func appendAttributes(b []byte, list []attribute) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, a := range list {
		b = binary.AppendUvarint(b, a.kind)
		if a.value == nil {
			b = append(b, 0)
			continue
		}
		b = appendOctets(append(b, 1), a.value)
	}
	return b
}

func appendList(b []byte, list [][]byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, v := range list {
		b = appendOctets(b, v)
	}
	return b
}

// cutNumber takes the number of a call from the front of a packet.
func cutNumber(b []byte) (number uint64, frame []byte, err error) {
	d := decoder{b: b}
	number = d.number()
	if d.failed {
		return 0, nil, errFrame
	}
	return number, d.b, nil
}

// appendCall appends the packet of a call.
func appendCall(b []byte, number uint64, c *call) []byte {
	b = append(binary.AppendUvarint(b, number), byte(c.op))
	b = binary.AppendUvarint(b, c.slot)
	b = binary.AppendUvarint(b, c.object)
	b = binary.AppendUvarint(b, c.other)
	b = binary.AppendUvarint(b, c.mech.kind)
	b = append(b, byte(c.mech.param))
	for _, n := range c.mech.numbers {
		b = binary.AppendUvarint(b, n)
	}
	b = appendOctets(b, c.mech.octets)
	b = appendAttributes(b, c.template)
	b = appendAttributes(b, c.template2)
	b = appendList(b, c.data)
	b = appendOctets(b, c.pin)
	return binary.AppendUvarint(b, c.limit)
}

// appendReply appends the packet of a reply.
func appendReply(b []byte, number uint64, r *reply) []byte {
	b = binary.AppendUvarint(binary.AppendUvarint(b, number), uint64(r.code))
	b = appendOctets(b, []byte(r.text))
	b = binary.AppendUvarint(b, uint64(len(r.numbers)))
	for _, n := range r.numbers {
		b = binary.AppendUvarint(b, n)
	}
	b = appendList(b, r.data)
	b = binary.AppendUvarint(b, uint64(len(r.objects)))
	for _, o := range r.objects {
		b = binary.AppendUvarint(b, o.handle)
		b = appendAttributes(b, o.attributes)
	}
	return b
}

// decoder takes a packet apart. After an error everything it returns is zero.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) fail() { d.b, d.failed = nil, true }

func (d *decoder) octet() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// number takes a uvarint in its shortest form.
func (d *decoder) number() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// octets returns a part of the packet; nil for none.
func (d *decoder) octets() []byte {
	n := d.number()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// count takes the length of a list, each of whose elements has an octet at least.
func (d *decoder) count() int {
	n := d.number()
	if n > uint64(len(d.b)) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) attributes() []attribute {
	n := d.count()
	if n == 0 {
		return nil
	}
	list := make([]attribute, 0, min(n, 32))
	for range n {
		a := attribute{kind: d.number()}
		switch d.octet() {
		case 0:
		case 1:
			a.value = d.octets()
		default:
			d.fail()
		}
		if d.failed {
			return nil
		}
		list = append(list, a)
	}
	return list
}

func (d *decoder) list() [][]byte {
	n := d.count()
	if n == 0 {
		return nil
	}
	list := make([][]byte, 0, min(n, 32))
	for range n {
		list = append(list, d.octets())
		if d.failed {
			return nil
		}
	}
	return list
}

func (d *decoder) err() error {
	if d.failed || len(d.b) != 0 {
		return errFrame
	}
	return nil
}

// decodeCall decodes a packet without its number. The call refers to b.
func decodeCall(b []byte) (*call, error) {
	d := decoder{b: b}
	c := new(call)
	c.op = operation(d.octet())
	c.slot, c.object, c.other = d.number(), d.number(), d.number()
	c.mech.kind = d.number()
	c.mech.param = paramKind(d.octet())
	for i := range c.mech.numbers {
		c.mech.numbers[i] = d.number()
	}
	c.mech.octets = d.octets()
	c.template, c.template2 = d.attributes(), d.attributes()
	c.data = d.list()
	c.pin = d.octets()
	c.limit = d.number()
	if err := d.err(); err != nil {
		return nil, err
	}
	if c.op == 0 || c.op >= opEnd || c.mech.param >= paramEnd {
		return nil, errFrame
	}
	return c, nil
}

// decodeReply decodes a packet without its number. The reply refers to b.
func decodeReply(b []byte) (*reply, error) {
	d := decoder{b: b}
	r := new(reply)
	r.code = Code(d.number())
	r.text = string(d.octets())
	if n := d.count(); n > 0 {
		r.numbers = make([]uint64, 0, min(n, 64))
		for range n {
			r.numbers = append(r.numbers, d.number())
			if d.failed {
				break
			}
		}
	}
	r.data = d.list()
	if n := d.count(); n > 0 {
		r.objects = make([]object, 0, min(n, 64))
		for range n {
			r.objects = append(r.objects, object{d.number(), d.attributes()})
			if d.failed {
				break
			}
		}
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return r, nil
}
