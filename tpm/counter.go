package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// The counter is an NV index of type TPM_NT_COUNTER (TPM 2.0 Part 1, 37.2.4). It cannot be
// set, only incremented, and one that is undefined and defined again starts above the highest
// value that any counter had which was ever undefined. It has no authorization value:
// who reaches the TPM may increment it, which raises a false alarm and hides nothing.

var _ token.Counter = (*Token)(nil)

// ownerIndexes is the beginning of the NV indexes for the owner's programs (TCG Registry of
// Reserved TPM 2.0 Handles, 2.2). Which one is taken follows from the path of
// Options.StateDir, so that no file says it which could be removed.
const (
	ownerIndexes  = 0x01800000
	ownerIndexLen = 0x00400000
)

// ReadCounter returns the value of the counter that is this Options.StateDir's.
// Errors: as token.Counter; token.ErrReplaced if another program uses the NV index.
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
	if err != nil {
		return 0, fmt.Errorf("tpm: increment counter: %w", err)
	}
	step := &increment{index: index}
	return do(ctx, t, "increment counter", step.run)
}

// counter returns the index of the counter.
func (s stateDir) counter() (tpm2.TPMHandle, error) {
	if s == "" {
		return 0, fmt.Errorf("no state folder that it is of: %w", token.ErrUnsupported)
	}
	path, err := filepath.Abs(string(s))
	if err != nil {
		return 0, err
	}
	digest := sha256.Sum256([]byte("mesh-agent counter\x00" + path))
	return tpm2.TPMHandle(ownerIndexes + binary.BigEndian.Uint32(digest[:])%ownerIndexLen), nil
}

// increment is one step, even if it is run twice because the connection broke in between.
type increment struct {
	index  tpm2.TPMHandle
	known  bool
	before uint64
}

func (i *increment) run(d *device) (uint64, error) {
	c, err := d.findCounter(i.index)
	if errors.Is(err, token.ErrNotFound) {
		c, err = d.defineCounter(i.index)
	}
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

// defineCounter makes the index. TPM2_NV_DefineSpace, Part 3, 31.3.
func (d *device) defineCounter(index tpm2.TPMHandle) (nvCounter, error) {
	owner := tpm2.NamedHandle{Handle: tpm2.TPMRHOwner, Name: tpm2.HandleName(tpm2.TPMRHOwner)}
	_, err := run(d, tpm2.NVDefineSpace{
		AuthHandle: d.auth(owner, nil, clearly),
		PublicInfo: tpm2.New2B(counterArea(index)),
	})
	if err != nil {
		return nvCounter{}, err
	}
	return d.findCounter(index)
}

// findCounter checks that an index is such a counter, and computes its Name.
func (d *device) findCounter(index tpm2.TPMHandle) (nvCounter, error) {
	rsp, err := run(d, tpm2.NVReadPublic{NVIndex: index})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nvCounter{}, fmt.Errorf("counter: %w: %w", token.ErrNotFound, err)
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
