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

// slots is the number of transient objects, and of sessions, that every TPM, and the kernel's
// resource manager for every open file, has room for. Of the sessions this package
// uses two: one for all authorizations, and one for the policy of a sealed object.
const slots = 3

// The storage root key's handle where it is persistent, and the hierarchy that it is
// derived from where it is not (TPM2_CreatePrimary gives the same key each time).
const (
	persistentSRK tpm2.TPMHandle = 0x81000001
	ownerSRK                     = tpm2.TPMRHOwner
)

// parent is a storage key in the TPM.
type parent struct {
	tpm2.NamedHandle // its Name is computed here
	public           tpm2.TPMTPublic
}

// newParent computes the Name: what a TPM says of it proves nothing.
func newParent(h tpm2.TPMHandle, public tpm2.TPM2BPublic) (*parent, error) {
	contents, err := public.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	name, err := nameOf(contents.NameAlg, public.Bytes())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", token.ErrFault, err)
	}
	return &parent{tpm2.NamedHandle{Handle: h, Name: tpm2.TPM2BName{Buffer: name}}, *contents}, nil
}

// device is a connected TPM and what is loaded in it. Only who has the turn uses it.
type device struct {
	link      *link
	exclusive bool // no resource manager between: what dead clients left is in the way
	srk       *parent
	session   *session
	loaded    []tpm2.NamedHandle // keys, most recently used first
}

func openDevice(ctx context.Context, o Options) (*device, error) {
	s, err := o.dial(ctx)
	if err != nil {
		return nil, &linkError{"connect", err}
	}
	_, file := s.(*deviceFile)
	return &device{link: newLink(ctx, s, o.Timeout), exclusive: !file}, nil
}

// command is a command of go-tpm with its response.
type command[R any] interface {
	Execute(transport.TPM, ...tpm2.Session) (*R, error)
}

// run gives one command. A response that cannot be parsed is the link's fault; a handle
// or session that the TPM does not know means that it was reset.
func run[R any](d *device, c command[R], sessions ...tpm2.Session) (*R, error) {
	rsp, err := c.Execute(d.link, sessions...)
	var rc tpm2.TPMRC
	switch {
	case err == nil:
		return rsp, nil
	case lost(err):
		return nil, err
	case !errors.As(err, &rc):
		return nil, broken("parse response", err)
	}
	return nil, d.staleOr(err)
}

// staleOr marks a response code that says that the TPM has forgotten what was loaded, or that its
// session is not the one that this end knows. To try again costs no PIN: TPM_RC_BAD_AUTH is of
// objects without dictionary-attack protection.
func (d *device) staleOr(err error) error {
	const sessions = tpm2.TPMRCReferenceS6
	var rc tpm2.TPMRC
	if !errors.As(err, &rc) {
		return err
	}
	if rc.Is(tpm2.TPMRCInitialize) || rc >= tpm2.TPMRCReferenceH0 && rc <= sessions || d.mistaken(rc) {
		return fmt.Errorf("%w: %w", errStale, err)
	}
	return err
}

// mistaken reports whether a response code says that a handle is none, or a session another one.
func (d *device) mistaken(rc tpm2.TPMRC) bool {
	var e tpm2.TPMFmt1Error
	if d.session == nil || !errors.As(rc, &e) {
		return false
	}
	handle, _ := e.Handle()
	session, _ := e.Session()
	return rc.Is(tpm2.TPMRCValue) && (handle || session) || rc.Is(tpm2.TPMRCBadAuth) && session
}

// auth authorizes the use of an object in a command of go-tpm.
func (d *device) auth(h tpm2.NamedHandle, value []byte, a tpm2Attributes) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: d.authorize(value, a)}
}

// start makes the TPM ready and returns what it is. pinned is the Name of the storage root
// key that the TPM must have; nil takes the one that it has. The error
// token.ErrReplaced comes with the description of the TPM that is there.
func (d *device) start(pinned []byte) (*token.Info, error) {
	if err := d.startup(); err != nil {
		return nil, fmt.Errorf("start TPM: %w", err)
	}
	if d.exclusive {
		if err := d.flushStale(); err != nil {
			return nil, fmt.Errorf("flush stale handles: %w", err)
		}
	}
	info, err := d.probe()
	if err != nil {
		return nil, fmt.Errorf("probe TPM: %w", err)
	}
	if d.srk, err = d.findSRK(pinned); err != nil {
		return info, fmt.Errorf("find storage root key: %w", err)
	}
	if d.session, err = d.startSession(tpm2.TPMSEHMAC); err != nil {
		return nil, fmt.Errorf("start session: %w", err)
	}
	return info, d.tryOut(d.session)
}

// tryOut makes sure that both ends have the same session key, before a PIN would seem wrong because
// they do not, and count as such; and so that the nonce, which came in the clear, is one that the TPM gave this session.
func (d *device) tryOut(s *session) error {
	_, err := run(d, tpm2.GetRandom{BytesRequested: 1}, &authorization{session: s, attributes: outward})
	var refused tpm2.TPMFmt1Error
	if errors.As(err, &refused) {
		err = broken("use session", err)
	}
	if err != nil {
		return fmt.Errorf("try session out: %w", err)
	}
	return nil
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

// flushStale unloads all transient objects and sessions that are not ours: nobody else can be connected.
func (d *device) flushStale() error {
	const transient, loadedSessions, savedSessions = 0x80000000, 0x02000000, 0x03000000
	for _, first := range []uint32{transient, loadedSessions, savedSessions} {
		handles, err := d.handles(first)
		if err != nil {
			return err
		}
		for _, h := range handles {
			if d.owns(h) {
				continue
			}
			if err := d.flush(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *device) owns(h tpm2.TPMHandle) bool {
	return d.srk != nil && h == d.srk.Handle || d.session != nil && h == d.session.handle ||
		slices.ContainsFunc(d.loaded, func(l tpm2.NamedHandle) bool { return l.Handle == h })
}

func (d *device) handles(first uint32) ([]tpm2.TPMHandle, error) {
	list, err := capability(d, tpm2.TPMCapHandles, first, (*tpm2.TPMUCapabilities).Handles)
	if err != nil {
		return nil, err
	}
	return list.Handle, nil
}

// flush unloads an object or a session. If it is not there, nothing else is known to be.
func (d *device) flush(h tpm2.TPMHandle) error {
	_, err := run(d, tpm2.FlushContext{FlushHandle: h})
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCValue) {
		return fmt.Errorf("%w: %w", errStale, err)
	}
	return err
}

// findSRK returns the storage root key of the pinned Name: the persistent one, or one that
// the owner's seed gives. Without a pin, it is the persistent one if that is an ECC
// storage root key (it is often an RSA key), else the one that key files of other programs
// have as their parent where it is derived.
func (d *device) findSRK(pinned []byte) (*parent, error) {
	var seen [][]byte
	fits := func(p *parent) bool {
		seen = append(seen, p.Name.Buffer)
		return isSRK(p.public) && (pinned == nil || bytes.Equal(p.Name.Buffer, pinned))
	}
	p, err := d.persistent(persistentSRK)
	switch {
	case err == nil && fits(p):
		return p, nil
	case err != nil && !errors.Is(err, token.ErrNotFound):
		return nil, err
	}
	for _, template := range []tpm2.TPMTPublic{eccTemplateH2(), tpm2.ECCSRKTemplate} {
		p, err := d.createPrimary(ownerSRK, template)
		if err != nil {
			return nil, err
		}
		if fits(p) {
			return p, nil
		}
		if err := d.flush(p.Handle); err != nil {
			return nil, err
		}
		if pinned == nil {
			return nil, fmt.Errorf("%w: the storage root key is not what its template says", token.ErrFault)
		}
	}
	return nil, fmt.Errorf("%w: storage root key %x is not there, but %x", token.ErrReplaced, pinned, seen)
}

// isSRK reports whether a key has the TCG's ECC template but for its unique field.
func isSRK(public tpm2.TPMTPublic) bool {
	if public.Type != tpm2.TPMAlgECC {
		return false
	}
	public.Unique = tpm2.ECCSRKTemplate.Unique
	return bytes.Equal(tpm2.Marshal(public), tpm2.Marshal(tpm2.ECCSRKTemplate))
}

// eccTemplateH2 is the parent of key files whose parent is a hierarchy: the TCG's template
// with an empty unique field (draft-bottomley-tpm2-keys, 3.1.8).
func eccTemplateH2() tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

func rsaTemplateH1() tpm2.TPMTPublic {
	t := tpm2.RSASRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	return t
}

// persistent returns the key at a persistent handle, or token.ErrNotFound.
func (d *device) persistent(h tpm2.TPMHandle) (*parent, error) {
	rsp, err := run(d, tpm2.ReadPublic{ObjectHandle: h})
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, fmt.Errorf("%w: %w", token.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	return newParent(h, rsp.OutPublic)
}

// createPrimary derives a key, always the same, from a hierarchy's seed.
func (d *device) createPrimary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) (*parent, error) {
	var rsp *tpm2.CreatePrimaryResponse
	err := d.withRoom(1, func() (err error) {
		rsp, err = run(d, tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)})
		return err
	})
	if err != nil {
		return nil, err
	}
	return newParent(rsp.ObjectHandle, rsp.OutPublic)
}

// withParent runs f with the parent of an object. Other parents than the storage root key
// are there for that long only.
func (d *device) withParent(o *object, f func(tpm2.NamedHandle) error) error {
	if bytes.Equal(o.parentName, d.srk.Name.Buffer) {
		return f(d.srk.NamedHandle)
	}
	p, err := d.findParent(o)
	if err != nil {
		return err
	}
	return errors.Join(f(p.NamedHandle), d.dropParent(p))
}

func (d *device) dropParent(p *parent) error {
	if p.Handle>>24 == persistentRange {
		return nil
	}
	return d.flush(p.Handle)
}

const persistentRange = 0x81 // first octet of persistent handles

// findParent looks for a parent that is not the storage root key by its Name.
func (d *device) findParent(o *object) (*parent, error) {
	for p, err := range d.parents(o) {
		if err != nil {
			return nil, err
		}
		if bytes.Equal(p.Name.Buffer, o.parentName) {
			return p, nil
		}
		if err := d.dropParent(p); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: key of another TPM, or from before this one was cleared (its parent %x is not here)",
		token.ErrReplaced, o.parentName)
}

// parents yields the keys that may be the parent that a key file means. Whoever takes one
// drops it.
func (d *device) parents(o *object) func(yield func(*parent, error) bool) {
	return func(yield func(*parent, error) bool) {
		if o.parent>>24 == persistentRange {
			p, err := d.persistent(o.parent)
			if err == nil || !errors.Is(err, token.ErrNotFound) {
				yield(p, err)
			}
			return
		}
		templates := []tpm2.TPMTPublic{eccTemplateH2(), tpm2.ECCSRKTemplate}
		if o.rsaParent {
			templates = []tpm2.TPMTPublic{rsaTemplateH1(), tpm2.RSASRKTemplate}
		}
		for _, t := range templates {
			if p, err := d.createPrimary(o.parent, t); !yield(p, err) || err != nil {
				return
			}
		}
	}
}

// withRoom runs a command that needs n free slots beside the storage root key's (which, if it
// is persistent, takes one while a command uses it), unloading the keys that were not
// used for longest. If the TPM has less room than it should, all are unloaded, and
// whatever dead clients have left.
func (d *device) withRoom(n int, f func() error) error {
	if err := d.evict(slots - 1 - n); err != nil {
		return err
	}
	err := f()
	if !errors.Is(err, tpm2.TPMRCObjectMemory) {
		return err
	}
	if err := d.evict(0); err != nil {
		return err
	}
	if d.exclusive {
		if err := d.flushStale(); err != nil {
			return err
		}
	}
	return f()
}

// evict unloads keys until no more than keep are left.
func (d *device) evict(keep int) error {
	for len(d.loaded) > max(keep, 0) {
		last := len(d.loaded) - 1
		if err := d.flush(d.loaded[last].Handle); err != nil {
			return err
		}
		d.loaded = d.loaded[:last]
	}
	return nil
}

// create makes an object under the storage root key, with an authorization value and, if
// it is to be sealed, with contents. It does not stay loaded.
func (d *device) create(template tpm2.TPMTPublic, value, contents []byte) (object, error) {
	sensitive := tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: value}}
	if contents != nil {
		sensitive.Data = tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: contents})
	}
	var rsp *tpm2.CreateResponse
	err := d.withRoom(1, func() (err error) {
		rsp, err = run(d, tpm2.Create{
			ParentHandle: d.auth(d.srk.NamedHandle, nil, bothway),
			InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &sensitive},
			InPublic:     tpm2.New2B(template),
		})
		return err
	})
	if err != nil {
		return object{}, err
	}
	return d.child(rsp.OutPublic.Bytes(), rsp.OutPrivate.Buffer, value), nil
}

// child is an object under the storage root key.
func (d *device) child(area, private, value []byte) object {
	o := object{
		parent: ownerSRK, parentName: d.srk.Name.Buffer, emptyAuth: len(value) == 0, area: area, private: private,
	}
	if d.srk.Handle == persistentSRK {
		o.parent = persistentSRK
	}
	return o
}

// use returns the loaded key, loading it if need be.
func (d *device) use(o *object) (tpm2.NamedHandle, error) {
	i := slices.IndexFunc(d.loaded, o.is)
	if i < 0 {
		return d.load(o)
	}
	h := d.loaded[i]
	copy(d.loaded[1:i+1], d.loaded[:i])
	d.loaded[0] = h
	return h, nil
}

// reload loads the key even if one of its Name is loaded: only the TPM can tell whether
// the private part is genuine.
func (d *device) reload(o *object) error {
	if err := d.drop(o); err != nil {
		return err
	}
	_, err := d.load(o)
	return err
}

// drop unloads an object if it is loaded.
func (d *device) drop(o *object) error {
	i := slices.IndexFunc(d.loaded, o.is)
	if i < 0 {
		return nil
	}
	if err := d.flush(d.loaded[i].Handle); err != nil {
		return err
	}
	d.loaded = slices.Delete(d.loaded, i, i+1)
	return nil
}

// thenDrop unloads an object after what was done with it.
func (d *device) thenDrop(o *object, err error) error {
	if err != nil && lost(err) {
		return err
	}
	return errors.Join(err, d.drop(o))
}

func (d *device) load(o *object) (h tpm2.NamedHandle, err error) {
	if !bytes.Equal(o.parentName, d.srk.Name.Buffer) {
		if err := d.evict(0); err != nil { // the other parent takes a slot, too
			return h, err
		}
	}
	err = d.withParent(o, func(p tpm2.NamedHandle) error {
		h, err = d.loadUnder(p, o)
		return err
	})
	return h, err
}

func (d *device) loadUnder(p tpm2.NamedHandle, o *object) (tpm2.NamedHandle, error) {
	var rsp *tpm2.LoadResponse
	err := d.withRoom(1, func() (err error) {
		rsp, err = run(d, tpm2.Load{
			ParentHandle: d.auth(p, nil, clearly),
			InPrivate:    tpm2.TPM2BPrivate{Buffer: o.private},
			InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](o.area),
		})
		return err
	})
	if err != nil {
		return tpm2.NamedHandle{}, loadError(err)
	}
	h := tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name}
	d.loaded = slices.Insert(d.loaded, 0, h)
	if !o.is(h) {
		return tpm2.NamedHandle{}, fmt.Errorf("%w: loaded object has another Name", token.ErrFault)
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
	if d.session != nil && err == nil {
		err = d.flush(d.session.handle)
	}
	if d.srk != nil && d.srk.Handle != persistentSRK && err == nil {
		d.flush(d.srk.Handle)
	}
	d.abandon()
}

// abandon closes the connection without another command.
func (d *device) abandon() {
	d.link.close()
	if d.session != nil {
		clear(d.session.key)
	}
}
