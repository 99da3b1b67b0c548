package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// The counter is an NV index of type TPM_NT_COUNTER (TPM 2.0 Part 1, 37.2.4). It cannot be
// set, only incremented, and one that is undefined and defined again starts above the highest
// value that any counter had which was ever undefined. It has no authorization value:
// who reaches the TPM may increment it, which raises a false alarm and hides nothing.

var _ token.Counter = (*Token)(nil)

// counterFile in Options.StateDir names the index, in hexadecimal.
const counterFile = "counter"

// ownerIndexes is the beginning of the NV indexes for the owner's programs (TCG Registry of
// Reserved TPM 2.0 Handles, 2.2), of which a random one is taken.
const (
	ownerIndexes  = 0x01800000
	ownerIndexLen = 0x00400000
)

// ReadCounter returns the value of the counter that is this Options.StateDir's.
// Errors: as token.Counter; token.ErrReplaced if the TPM has no such counter any more.
func (t *Token) ReadCounter(ctx context.Context) (uint64, error) {
	index, err := t.state.counter()
	if err != nil {
		return 0, fmt.Errorf("tpm: read counter: %w", err)
	}
	return do(ctx, t, "read counter", func(d *device) (uint64, error) {
		c, err := d.findCounter(index)
		if err != nil {
			return 0, err
		}
		return d.readCounter(c)
	})
}

// IncrementCounter adds one to the counter with TPM2_NV_Increment, Part 3, 31.8.
func (t *Token) IncrementCounter(ctx context.Context) (uint64, error) {
	index, err := t.state.counter()
	if errors.Is(err, token.ErrNotFound) {
		index, err = t.makeCounter(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("tpm: increment counter: %w", err)
	}
	step := &increment{index: index}
	return do(ctx, t, "increment counter", step.run)
}

// makeCounter defines an index. Its number is kept before it is used.
func (t *Token) makeCounter(ctx context.Context) (tpm2.TPMHandle, error) {
	if t.state == "" {
		return 0, fmt.Errorf("no state folder to keep it in: %w", token.ErrUnsupported)
	}
	index, err := do(ctx, t, "define counter", func(d *device) (tpm2.TPMHandle, error) { return d.defineCounter() })
	if err != nil {
		return 0, err
	}
	return index, t.state.write(counterFile, fmt.Appendf(nil, "%08x\n", uint32(index)))
}

// counter returns the index, or token.ErrNotFound if there is none yet.
func (s stateDir) counter() (tpm2.TPMHandle, error) {
	text, err := s.read(counterFile)
	if err != nil {
		return 0, err
	}
	if text == nil {
		return 0, token.ErrNotFound
	}
	b, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(b) != 4 {
		return 0, fmt.Errorf("%w: %s is not an NV index in hexadecimal", token.ErrCorrupt, s.path(counterFile))
	}
	return tpm2.TPMHandle(binary.BigEndian.Uint32(b)), nil
}

// increment is one step, even if it is run twice because the connection broke in between.
type increment struct {
	index  tpm2.TPMHandle
	known  bool
	before uint64
}

func (i *increment) run(d *device) (uint64, error) {
	c, err := d.findCounter(i.index)
	if err != nil {
		return 0, err
	}
	if c.written {
		value, err := d.readCounter(c)
		if err != nil {
			return 0, err
		}
		if i.known && value > i.before {
			return value, nil // the first attempt was heard
		}
		i.before = value
	}
	i.known = true
	if _, err := run(d, tpm2.NVIncrement{AuthHandle: d.auth(c.NamedHandle, nil, clearly), NVIndex: c.NamedHandle}); err != nil {
		return 0, err
	}
	if c, err = d.findCounter(i.index); err != nil { // its Name changes when it is first written
		return 0, err
	}
	return d.readCounter(c)
}

// nvCounter is a counter as it is now.
type nvCounter struct {
	tpm2.NamedHandle
	written bool
}

func counterArea(index tpm2.TPMHandle) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 8,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, AuthRead: true, AuthWrite: true, NoDA: true},
	}
}

// defineCounter makes an index where none is. TPM2_NV_DefineSpace, Part 3, 31.3.
func (d *device) defineCounter() (tpm2.TPMHandle, error) {
	for range 8 {
		var random [4]byte
		rand.Read(random[:])
		index := tpm2.TPMHandle(ownerIndexes + binary.BigEndian.Uint32(random[:])%ownerIndexLen)
		owner := tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}
		_, err := run(d, tpm2.NVDefineSpace{
			AuthHandle: d.auth(owner, nil, clearly),
			PublicInfo: tpm2.New2B(counterArea(index)),
		})
		if errors.Is(err, tpm2.TPMRCNVDefined) {
			continue
		}
		return index, err
	}
	return 0, errors.New("no free NV index")
}

// findCounter checks that an index is such a counter, and computes its Name.
func (d *device) findCounter(index tpm2.TPMHandle) (nvCounter, error) {
	rsp, err := run(d, tpm2.NVReadPublic{NVIndex: index})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nvCounter{}, fmt.Errorf("%w: the counter is not in this TPM: %w", token.ErrReplaced, err)
	}
	if err != nil {
		return nvCounter{}, err
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nvCounter{}, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	want := counterArea(index)
	written := public.Attributes.Written
	want.Attributes.Written = written
	area := tpm2.Marshal(want)
	if !bytes.Equal(tpm2.Marshal(public), area) {
		return nvCounter{}, fmt.Errorf("%w: another program uses the NV index 0x%08x", token.ErrReplaced, uint32(index))
	}
	digest := sha256.Sum256(area)
	name := append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), digest[:]...)
	return nvCounter{tpm2.NamedHandle{Handle: index, Name: tpm2.TPM2BName{Buffer: name}}, written}, nil
}

// readCounter gives TPM2_NV_Read, Part 3, 31.13. The session's HMAC holds the answer.
func (d *device) readCounter(c nvCounter) (uint64, error) {
	if !c.written {
		return 0, fmt.Errorf("%w: counter without a value", token.ErrNotFound)
	}
	rsp, err := run(d, tpm2.NVRead{AuthHandle: d.auth(c.NamedHandle, nil, clearly), NVIndex: c.NamedHandle, Size: 8})
	if err != nil {
		return 0, err
	}
	if len(rsp.Data.Buffer) != 8 {
		return 0, fmt.Errorf("%w: counter of %d octets", token.ErrFault, len(rsp.Data.Buffer))
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}
