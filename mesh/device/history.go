package device

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// The reasons for which History refuses a CatalogedDevice.
var (
	// ErrSuperseded says that a part of it was already replaced by another.
	ErrSuperseded = errors.New("it was superseded")
	// ErrFrame says that the catalog's frame is older than one seen before, or another of
	// the same index.
	ErrFrame = errors.New("the catalog went back")
	// ErrHistoryFull says that as many connections were replaced as are remembered. To forget one would be
	// to take it again.
	ErrHistoryFull = errors.New("no more connections can be remembered, and none must be forgotten: a new device is needed")
)

// Frame is where in the account's catalog of devices an entry stood.
type Frame struct {
	Index int64
	// Tree is the apex digest of the catalog's Merkle tree with this frame, 64 octets.
	Tree mesh.Binary `json:",omitzero"`
}

// FrameOf returns where a frame of a catalog stands, from its header and trailer. Nobody signs
// either: it helps against who replays old frames, not against who makes new ones.
// The error is ErrFrame if it is no frame, mesh.ErrPayloadDigest if the body is another.
func FrameOf(e *mesh.Envelope) (*Frame, error) {
	if e.Header.SequenceInfo == nil || e.Header.SequenceInfo.Index < 0 {
		return nil, fmt.Errorf("no SequenceInfo with an index: %w", ErrFrame)
	}
	if _, err := e.Manifest(mesh.G1); err != nil {
		return nil, err
	}
	f := &Frame{Index: e.Header.SequenceInfo.Index}
	if e.Trailer != nil {
		f.Tree = e.Trailer.TreeDigest
	}
	return f, nil
}

// History is what to remember of a device's connection to one account, so that an old
// CatalogedDevice is not taken for a new one: signed parts carry no version and no date
// that is signed. It is public; whoever keeps it protects it against change and loss.
//
// Not the whole entry is remembered but the digest of each signed body, for two reasons:
// what is not signed could be altered to make an old entry look new, and old and new parts
// could be mixed.
type History struct {
	// Current are the digests of the signed bodies in use.
	Current []mesh.Binary `json:",omitzero"`
	// Superseded are the digests of those in use before, all of them: nothing that is signed says how old a body is, so that
	// a shorter summary, or the newest ones alone, would let an old one pass. There are up to MaxDigests.
	Superseded DigestSet `json:",omitzero"`
	// Frame is the newest seen; nil if none was ever given.
	Frame *Frame `json:",omitzero"`
}

// UnmarshalJSON reads a history. Digests of another length than those of SHA-512 are an error.
func (h *History) UnmarshalJSON(text []byte) error {
	type plain History
	var read plain
	if err := strictjson.Unmarshal(text, &read); err != nil {
		return err
	}
	if slices.ContainsFunc(read.Current, func(d mesh.Binary) bool { return len(d) != sha512.Size }) {
		return fmt.Errorf("digests of %d octets expected", sha512.Size)
	}
	*h = History(read)
	return nil
}

// Order is how a CatalogedDevice stands to what was seen before.
type Order int

// The orders.
const (
	// OrderUnknown says that it is another one, and nothing shows whether it is newer. A
	// person may know.
	OrderUnknown Order = iota
	// OrderFirst says that nothing was seen before.
	OrderFirst
	// OrderSame says that all signed parts are those in use.
	OrderSame
	// OrderNewer says that its frame has a higher index than those before. That the frames
	// before are still the same is not shown by that.
	OrderNewer
)

// SignedDigests returns the digests of the signed bodies, in a fixed order.
func (c *CatalogedDevice) SignedDigests() []mesh.Binary {
	var out []mesh.Binary
	for _, e := range append([]*mesh.Envelope{c.ProfileUser, c.ConnectionService, c.ConnectionDevice}, c.Activations...) {
		if e != nil {
			digest := e.Digest()
			out = append(out, digest[:])
		}
	}
	return out
}

func has(digests []mesh.Binary, d []byte) bool {
	return slices.ContainsFunc(digests, func(x mesh.Binary) bool { return bytes.Equal(x, d) })
}

// Check compares a CatalogedDevice, and the frame in which it stood unless that is nil, with
// what was seen. Errors: ErrSuperseded, ErrFrame, ErrHistoryFull.
func (h *History) Check(c *CatalogedDevice, f *Frame) (Order, error) {
	if f != nil && f.Tree != nil && len(f.Tree) != sha512.Size {
		return OrderUnknown, fmt.Errorf("tree digest of %d octets: %w", len(f.Tree), ErrFrame)
	}
	digests := c.SignedDigests()
	same := len(digests) == len(h.Current)
	for _, d := range digests {
		if h.Superseded.Has(d) {
			return OrderUnknown, ErrSuperseded
		}
		same = same && has(h.Current, d)
	}
	if h.Frame != nil && f != nil {
		switch {
		case f.Index < h.Frame.Index:
			return OrderUnknown, fmt.Errorf("frame %d after %d: %w", f.Index, h.Frame.Index, ErrFrame)
		case f.Index == h.Frame.Index && (!same || !bytes.Equal(f.Tree, h.Frame.Tree)):
			return OrderUnknown, fmt.Errorf("another frame %d: %w", f.Index, ErrFrame)
		}
	}
	switch {
	case !same && h.Superseded.Len()+len(h.Current) > MaxDigests:
		return OrderUnknown, ErrHistoryFull
	case len(h.Current) == 0 && h.Superseded.IsZero():
		return OrderFirst, nil
	case same:
		return OrderSame, nil
	case h.Frame != nil && f != nil:
		return OrderNewer, nil
	}
	return OrderUnknown, nil
}

// Adopt returns the history after a CatalogedDevice that Check did not refuse was taken into use.
func (h *History) Adopt(c *CatalogedDevice, f *Frame) *History {
	next := &History{Current: c.SignedDigests(), Frame: h.Frame}
	next.Superseded = h.Superseded.Add(slices.DeleteFunc(slices.Clone(h.Current), func(d mesh.Binary) bool { return has(next.Current, d) })...)
	if f != nil {
		next.Frame = &Frame{Index: f.Index, Tree: bytes.Clone(f.Tree)}
	}
	return next
}

// AllSuperseded reports whether all that a revocation, which was verified, names was replaced before: then it is an
// old one, and not about the connection in use. One of a connection that never arrived counts.
func (h *History) AllSuperseded(named []mesh.Binary) bool {
	return !slices.ContainsFunc(named, func(d mesh.Binary) bool { return !h.Superseded.Has(d) })
}

// Revoke returns the history after the device was disconnected: nothing is in use, and all that
// was, and what a revocation names beside, is superseded. The account's profile, if it is given, stays: with it the
// device may be connected again.
func (h *History) Revoke(profile *mesh.Envelope, named ...mesh.Binary) *History {
	next := h.Adopt(&CatalogedDevice{ProfileUser: profile}, nil)
	next.Superseded = next.Superseded.Add(slices.DeleteFunc(slices.Clone(named), func(d mesh.Binary) bool { return has(next.Current, d) })...)
	return next
}
