package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/mesh-agent/mesh-agent/token"
)

// slots is the number of transient objects that every TPM, and the kernel's resource
// manager for every open file, has room for.
const slots = 3

// The parents that keys are made under. The owner hierarchy stands for the storage root
// key that TPM2_CreatePrimary derives from it (the convention of TSS2 key files).
const (
	persistentSRK tpm2.TPMHandle = 0x81000001
	ownerSRK                     = tpm2.TPMRHOwner
)

// device is a connected TPM and what is loaded in it. Only the worker uses it.
type device struct {
	link      *link
	exclusive bool // no resource manager between: what dead clients left is in the way
	parents   map[tpm2.TPMHandle]tpm2.NamedHandle
	parent    tpm2.TPMHandle     // of new keys: persistentSRK or ownerSRK
	loaded    []tpm2.NamedHandle // keys, most recently used first
}

func openDevice(ctx context.Context, o Options) (*device, error) {
	s, err := o.dial(ctx)
	if err != nil {
		return nil, &linkError{"connect", err}
	}
	_, file := s.(*deviceFile)
	return &device{
		link:      &link{stream: s, timeout: o.Timeout, life: ctx},
		exclusive: !file,
		parents:   map[tpm2.TPMHandle]tpm2.NamedHandle{},
	}, nil
}

// command is a command of go-tpm with its response.
type command[R any] interface {
	Execute(transport.TPM, ...tpm2.Session) (*R, error)
}

// run gives one command. A response that cannot be parsed is the link's fault; a handle
// or session that the TPM does not know means that it was reset.
func run[R any](d *device, c command[R]) (*R, error) {
	rsp, err := c.Execute(d.link)
	var rc tpm2.TPMRC
	switch {
	case err == nil:
		return rsp, nil
	case lost(err):
		return nil, err
	case !errors.As(err, &rc):
		return nil, broken("parse response", err)
	case reset(rc):
		return nil, fmt.Errorf("%w: %w", errStale, err)
	}
	return nil, err
}

// reset reports whether a response code says that the TPM has forgotten what was loaded.
func reset(rc tpm2.TPMRC) bool {
	const sessions = tpm2.TPMRCReferenceS6
	return rc.Is(tpm2.TPMRCInitialize) || rc >= tpm2.TPMRCReferenceH0 && rc <= sessions
}

// start makes the TPM ready and returns what it is and the Name of its storage root key.
func (d *device) start() (*token.Info, []byte, error) {
	if err := d.startup(); err != nil {
		return nil, nil, fmt.Errorf("start TPM: %w", err)
	}
	if d.exclusive {
		if err := d.flushStale(); err != nil {
			return nil, nil, fmt.Errorf("flush stale handles: %w", err)
		}
	}
	info, err := d.probe()
	if err != nil {
		return nil, nil, fmt.Errorf("probe TPM: %w", err)
	}
	d.parent = persistentSRK
	srk, err := d.findPersistentSRK()
	if errors.Is(err, token.ErrNotFound) {
		d.parent = ownerSRK
		srk, err = d.createSRK()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find storage root key: %w", err)
	}
	return info, srk.Name.Buffer, nil
}

// startup gives TPM2_Startup to a TPM that was initialised and not started, which the
// firmware does for a real one.
func (d *device) startup() error {
	_, err := d.properties(tpm2.TPMPTManufacturer)
	if !errors.Is(err, tpm2.TPMRCInitialize) {
		return err
	}
	_, err = run(d, tpm2.Startup{StartupType: tpm2.TPMSUClear})
	return err
}

// flushStale unloads all transient objects and sessions: nobody else can be connected.
func (d *device) flushStale() error {
	const transient, loadedSessions, savedSessions = 0x80000000, 0x02000000, 0x03000000
	for _, first := range []uint32{transient, loadedSessions, savedSessions} {
		handles, err := d.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if err := d.flush(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *device) handles(first uint32) ([]tpm2.TPMHandle, error) {
	list, err := capability(d, tpm2.TPMCapHandles, first, (*tpm2.TPMUCapabilities).Handles)
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

func (d *device) flush(h tpm2.TPMHandle) error {
	_, err := run(d, tpm2.FlushContext{FlushHandle: h})
	return err
}

// findPersistentSRK returns the key at 0x81000001 if it is an ECC storage root key; it is often
// an RSA key. Otherwise token.ErrNotFound.
func (d *device) findPersistentSRK() (tpm2.NamedHandle, error) {
	rsp, err := run(d, tpm2.ReadPublic{ObjectHandle: persistentSRK})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return tpm2.NamedHandle{}, token.ErrNotFound
	}
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	public, err := rsp.OutPublic.Contents()
	if err != nil || !isSRK(*public) {
		return tpm2.NamedHandle{}, token.ErrNotFound
	}
	return d.keepParent(persistentSRK, persistentSRK, rsp.Name), nil
}

func isSRK(public tpm2.TPMTPublic) bool {
	if public.Type != tpm2.TPMAlgECC {
		return false
	}
	public.Unique = tpm2.ECCSRKTemplate.Unique
	return bytes.Equal(tpm2.Marshal(public), tpm2.Marshal(tpm2.ECCSRKTemplate))
}

// createSRK derives the storage root key, which is always the same, from the owner's seed.
func (d *device) createSRK() (tpm2.NamedHandle, error) {
	var rsp *tpm2.CreatePrimaryResponse
	err := d.withRoom(func() (err error) {
		rsp, err = run(d, tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner,
			InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
		})
		return err
	})
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	return d.keepParent(ownerSRK, rsp.ObjectHandle, rsp.Name), nil
}

func (d *device) keepParent(as, h tpm2.TPMHandle, name tpm2.TPM2BName) tpm2.NamedHandle {
	d.parents[as] = tpm2.NamedHandle{Handle: h, Name: name}
	return d.parents[as]
}

// parentOf returns the parent that a key file names. A persistent one that is no longer there
// was in all likelihood the one that the owner's seed gives.
func (d *device) parentOf(h tpm2.TPMHandle) (tpm2.NamedHandle, error) {
	if p, ok := d.parents[h]; ok {
		return p, nil
	}
	if h == persistentSRK {
		p, err := d.findPersistentSRK()
		if !errors.Is(err, token.ErrNotFound) {
			return p, err
		}
		if p, ok := d.parents[ownerSRK]; ok {
			return p, nil
		}
	}
	return d.createSRK()
}

// room is the number of keys that fit beside their parents. A persistent parent takes a
// slot, too, while a command uses it.
func (d *device) room() int {
	return slots - max(1, len(d.parents))
}

// withRoom runs a command that needs a free slot, unloading the keys that were not used for
// longest, and all of them if the TPM has less room than it should.
func (d *device) withRoom(f func() error) error {
	if err := d.evict(d.room() - 1); err != nil {
		return err
	}
	err := f()
	if !errors.Is(err, tpm2.TPMRCObjectMemory) {
		return err
	}
	if err := d.evict(0); err != nil {
		return err
	}
	return f()
}

// evict unloads keys until no more than keep are left.
func (d *device) evict(keep int) error {
	for len(d.loaded) > keep {
		last := len(d.loaded) - 1
		if err := d.flush(d.loaded[last].Handle); err != nil {
			return err
		}
		d.loaded = d.loaded[:last]
	}
	return nil
}

// create makes a key under the storage root key. It does not stay loaded.
func (d *device) create(template tpm2.TPMTPublic) (*blob, error) {
	parent, err := d.parentOf(d.parent)
	if err != nil {
		return nil, err
	}
	var rsp *tpm2.CreateResponse
	err = d.withRoom(func() (err error) {
		rsp, err = run(d, tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(template)})
		return err
	})
	if err != nil {
		return nil, err
	}
	b, err := newBlob(d.parent, rsp.OutPublic.Bytes(), rsp.OutPrivate.Buffer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	return b, nil
}

// use returns the loaded key, loading it if need be.
func (d *device) use(b *blob) (tpm2.NamedHandle, error) {
	i := slices.IndexFunc(d.loaded, b.is)
	if i < 0 {
		return d.load(b)
	}
	h := d.loaded[i]
	copy(d.loaded[1:i+1], d.loaded[:i])
	d.loaded[0] = h
	return h, nil
}

// reload loads the key even if one of its Name is loaded: only the TPM can tell whether
// the private part is genuine.
func (d *device) reload(b *blob) error {
	if i := slices.IndexFunc(d.loaded, b.is); i >= 0 {
		if err := d.flush(d.loaded[i].Handle); err != nil {
			return err
		}
		d.loaded = slices.Delete(d.loaded, i, i+1)
	}
	_, err := d.load(b)
	return err
}

func (d *device) load(b *blob) (tpm2.NamedHandle, error) {
	parent, err := d.parentOf(b.parent)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	var rsp *tpm2.LoadResponse
	err = d.withRoom(func() (err error) {
		rsp, err = run(d, tpm2.Load{
			ParentHandle: parent,
			InPrivate:    tpm2.TPM2BPrivate{Buffer: b.private},
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](b.area),
		})
		return err
	})
	if err != nil {
		return tpm2.NamedHandle{}, loadError(err)
	}
	h := tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}
	d.loaded = slices.Insert(d.loaded, 0, h)
	if !b.is(h) {
		return tpm2.NamedHandle{}, fmt.Errorf("%w: loaded key has another Name", token.ErrFault)
	}
	return h, nil
}

// loadError says of a refused parameter of TPM2_Load that the key file is damaged or
// belongs to another TPM.
func loadError(err error) error {
	var e tpm2.TPMFmt1Error
	if errors.As(err, &e) {
		if parameter, _ := e.Parameter(); parameter {
			return fmt.Errorf("%w: %w", token.ErrCorrupt, err)
		}
	}
	return err
}

// leave unloads what this connection loaded and closes it.
func (d *device) leave() {
	err := d.evict(0)
	if p, ok := d.parents[ownerSRK]; ok && err == nil {
		d.flush(p.Handle)
	}
	d.abandon()
}

// abandon closes the connection without another command.
func (d *device) abandon() { d.link.stream.Close() }
