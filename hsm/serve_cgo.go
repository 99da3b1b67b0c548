//go:build cgo

package hsm

// #include <stdlib.h>
import "C"

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/miekg/pkcs11"
)

// Supported reports whether this binary can load PKCS #11 modules: it was built with cgo.
const Supported = true

// module is a loaded module in the helper process.
type module struct {
	ctx      *pkcs11.Ctx
	sessions int

	mu    sync.Mutex
	slots map[uint]*slot // guarded by mu
}

var _ backend = (*module)(nil)

// newModule loads the shared library and initializes it for several threads.
func newModule(c *call) (backend, error) {
	path, arguments := string(c.data[0]), string(c.data[1])
	m := &module{ctx: pkcs11.New(path), sessions: int(c.limit), slots: map[uint]*slot{}}
	if m.ctx == nil {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%s is not a PKCS#11 module, or needs a library that is not there", path)
	}
	options := []pkcs11.InitializeOption{pkcs11.InitializeWithFlags(pkcs11.CKF_OS_LOCKING_OK)}
	if arguments != "" {
		// The string stays allocated: modules may keep the pointer.
		options = append(options, pkcs11.InitializeWithReserved(C.CBytes(append([]byte(arguments), 0))))
	}
	if err := m.ctx.Initialize(options...); err != nil {
		return nil, asCode(err)
	}
	return m, nil
}

// asCode turns the library's error into this package's.
func asCode(err error) error {
	var e pkcs11.Error
	if errors.As(err, &e) {
		return Code(e)
	}
	return err
}

// finalize closes what the module has open: devices may allow few sessions, and keep those of a process that has ended.
func (m *module) finalize() error {
	if err := m.ctx.Finalize(); err != nil {
		return asCode(err)
	}
	return nil
}

func (m *module) execute(c *call) *reply {
	r, err := m.try(c)
	if err != nil {
		r.wipe()
		return failure(asCode(err))
	}
	return r
}

func (m *module) try(c *call) (*reply, error) {
	r := new(reply)
	switch c.op {
	case opSlots:
		ids, err := m.ctx.GetSlotList(true)
		for _, id := range ids {
			r.numbers = append(r.numbers, uint64(id))
		}
		return r, err
	case opToken:
		info, err := m.ctx.GetTokenInfo(uint(c.slot))
		r.numbers = []uint64{uint64(info.Flags), uint64(info.MaxSessionCount), uint64(info.MaxRwSessionCount)}
		for _, s := range []string{info.Label, info.ManufacturerID, info.Model, info.SerialNumber} {
			r.data = append(r.data, []byte(s))
		}
		return r, err
	case opMechanism:
		return m.mechanisms(c)
	case opLogout:
		return r, m.slot(c.slot).logout()
	}
	s := m.slot(c.slot)
	if c.op == opLogin {
		return r, s.login(c.pin)
	}
	if c.op == opCopy {
		err := s.doAnchor(func(h pkcs11.SessionHandle) error {
			copied, err := m.ctx.CopyObject(h, pkcs11.ObjectHandle(c.object), attrs(c.template))
			r.numbers = []uint64{uint64(copied)}
			return err
		})
		return r, err
	}
	err := s.do(func(h pkcs11.SessionHandle) (err error) {
		r, err = m.operate(h, c)
		return err
	})
	return r, err
}

func (m *module) slot(id uint64) *slot {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.slots[uint(id)]
	if !ok {
		s = newSlot(m.ctx, uint(id), m.sessions)
		m.slots[uint(id)] = s
	}
	return s
}

func (m *module) mechanisms(c *call) (*reply, error) {
	r := new(reply)
	list, err := m.ctx.GetMechanismList(uint(c.slot))
	if err != nil {
		return r, err
	}
	for _, mech := range list {
		info, err := m.ctx.GetMechanismInfo(uint(c.slot), []*pkcs11.Mechanism{mech})
		if err != nil {
			continue // listed and not known: not there
		}
		r.numbers = append(r.numbers, uint64(mech.Mechanism), uint64(info.MinKeySize), uint64(info.MaxKeySize))
	}
	return r, nil
}

// operate runs a call that needs a session.
func (m *module) operate(h pkcs11.SessionHandle, c *call) (*reply, error) {
	r := new(reply)
	key := pkcs11.ObjectHandle(c.object)
	switch c.op {
	case opState:
		info, err := m.ctx.GetSessionInfo(h)
		r.numbers = []uint64{uint64(info.State)}
		return r, err
	case opFind:
		return m.find(h, c)
	case opRead:
		r.objects = []object{{c.object, m.attributes(h, key, c.template2)}}
		return r, nil
	case opGenerate:
		public, private, err := m.ctx.GenerateKeyPair(h, mech(c.mech), attrs(c.template), attrs(c.template2))
		r.numbers = []uint64{uint64(public), uint64(private)}
		return r, err
	case opSecret:
		secret, err := m.ctx.GenerateKey(h, mech(c.mech), attrs(c.template))
		r.numbers = []uint64{uint64(secret)}
		return r, err
	case opCreate:
		created, err := m.ctx.CreateObject(h, attrs(c.template))
		r.numbers = []uint64{uint64(created)}
		return r, err
	case opDestroy:
		return r, m.ctx.DestroyObject(h, key)
	case opSign:
		return m.sign(h, c)
	case opDerive:
		return m.derive(h, c)
	case opDecrypt:
		return m.decrypt(h, c)
	case opWrap:
		wrapped, err := m.ctx.WrapKey(h, mech(c.mech), pkcs11.ObjectHandle(c.other), key)
		r.data = [][]byte{wrapped}
		return r, err
	}
	return r, errFrame
}

func (m *module) find(h pkcs11.SessionHandle, c *call) (*reply, error) {
	r := new(reply)
	if err := m.ctx.FindObjectsInit(h, attrs(c.template)); err != nil {
		return r, err
	}
	var found []pkcs11.ObjectHandle
	var err error
	for len(found) < int(c.limit) {
		var some []pkcs11.ObjectHandle
		some, _, err = m.ctx.FindObjects(h, int(c.limit)-len(found))
		if err != nil || len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	if err = errors.Join(err, m.ctx.FindObjectsFinal(h)); err != nil {
		return r, err
	}
	for _, o := range found {
		r.objects = append(r.objects, object{uint64(o), m.attributes(h, o, c.template2)})
	}
	return r, nil
}

// attributes reads attributes, all at once if the object has all of them.
func (m *module) attributes(h pkcs11.SessionHandle, o pkcs11.ObjectHandle, want []attribute) []attribute {
	out := make([]attribute, len(want))
	for i, a := range want {
		out[i].kind = a.kind
	}
	if len(want) == 0 {
		return out
	}
	if got, err := m.ctx.GetAttributeValue(h, o, attrs(want)); err == nil {
		for i, a := range got {
			out[i].value = a.Value
		}
		return out
	}
	for i, a := range want {
		if got, err := m.ctx.GetAttributeValue(h, o, attrs([]attribute{a})); err == nil {
			out[i].value = got[0].Value
		}
	}
	return out
}

func (m *module) sign(h pkcs11.SessionHandle, c *call) (*reply, error) {
	r := new(reply)
	if len(c.data) != 1 {
		return r, errFrame
	}
	if err := m.ctx.SignInit(h, mech(c.mech), pkcs11.ObjectHandle(c.object)); err != nil {
		return r, err
	}
	if err := m.authorize(h, c.pin); err != nil {
		return r, err
	}
	signature, err := m.ctx.Sign(h, c.data[0])
	r.data = [][]byte{signature}
	return r, err
}

// authorize presents the PIN for one operation with a key of CKA_ALWAYS_AUTHENTICATE.
func (m *module) authorize(h pkcs11.SessionHandle, pin []byte) error {
	if len(pin) == 0 {
		return nil
	}
	return m.ctx.Login(h, pkcs11.CKU_CONTEXT_SPECIFIC, string(pin))
}

// derive multiplies every point of data and returns the coordinates.
func (m *module) derive(h pkcs11.SessionHandle, c *call) (r *reply, err error) {
	r = new(reply)
	for _, point := range c.data {
		params := pkcs11.NewECDH1DeriveParams(pkcs11.CKD_NULL, nil, point)
		mechanism := []*pkcs11.Mechanism{pkcs11.NewMechanism(uint(c.mech.kind), params)}
		secret, err := m.ctx.DeriveKey(h, mechanism, pkcs11.ObjectHandle(c.object), attrs(c.template))
		if err != nil {
			return r, err
		}
		got, err := m.ctx.GetAttributeValue(h, secret, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)})
		err = errors.Join(err, m.ctx.DestroyObject(h, secret))
		if err != nil {
			return r, err
		}
		r.data = append(r.data, got[0].Value)
	}
	return r, nil
}

func (m *module) decrypt(h pkcs11.SessionHandle, c *call) (*reply, error) {
	r := new(reply)
	if len(c.data) != 1 {
		return r, errFrame
	}
	if err := m.ctx.DecryptInit(h, mech(c.mech), pkcs11.ObjectHandle(c.object)); err != nil {
		return r, err
	}
	if err := m.authorize(h, c.pin); err != nil {
		return r, err
	}
	plain, err := m.ctx.Decrypt(h, c.data[0])
	r.data = [][]byte{plain}
	return r, err
}

func mech(c mechanism) []*pkcs11.Mechanism {
	var param any
	n := c.numbers
	switch c.param {
	case paramPSS:
		param = pkcs11.NewPSSParams(uint(n[0]), uint(n[1]), uint(n[2]))
	case paramOAEP:
		param = pkcs11.NewOAEPParams(uint(n[0]), uint(n[1]), pkcs11.CKZ_DATA_SPECIFIED, c.octets)
	case paramOctet:
		param = c.octets
	}
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(uint(c.kind), param)}
}

func attrs(list []attribute) []*pkcs11.Attribute {
	out := make([]*pkcs11.Attribute, len(list))
	for i, a := range list {
		out[i] = &pkcs11.Attribute{Type: uint(a.kind), Value: a.value}
	}
	return out
}
