package keyring

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/token"
)

// ErrRollback says that the key records are not the last that this agent wrote. No key is
// used until Keyring.AcceptRollback. It is inside a *RollbackError.
var ErrRollback = errors.New("key records rolled back")

// ErrNoGuard says that the records are guarded against rollback, and that the configuration
// names no token that counts.
var ErrNoGuard = errors.New("the key records are guarded against rollback, and no token is named that counts")

// RollbackError is ErrRollback with what was found.
type RollbackError struct{ Found string }

// Error says what was found.
func (e *RollbackError) Error() string { return ErrRollback.Error() + ": " + e.Found }

// Unwrap returns ErrRollback.
func (e *RollbackError) Unwrap() error { return ErrRollback }

// guard binds the set of records to a counter in a token, so that a copy of the folder from
// before a change is noticed when it is put back.
//
// Each change of the set takes the generation n to n+1: the generation file says n+1 and the
// digests of the records before and after; then the counter is incremented; then the
// record is written, and the file says one digest. Wherever that is interrupted, the
// file says the counter's value or one more, and the records are one of its digests.
//
// Where the token seals, a MAC over the file, by a key that only the token opens, keeps somebody
// who has the disk and not the token from writing such a file for older records.
type guard struct {
	store     *store.Store
	companion Companion // nil if there is none
	name      string    // of the token
	counter   token.Counter
	sealer    token.Sealer // nil if the token does not seal

	verdict atomic.Pointer[verdict] // nil until the records were compared with the counter
	turn    chan struct{}           // holds one value; who has taken it owns what is below
	now     store.Generation
	key     []byte // of the MAC; nil if there is none
}

// verdict is what comparing showed: a *RollbackError, or nil.
type verdict struct{ err error }

// newGuard returns the guard that the configuration asks for; nil for none.
func (k *Keyring) newGuard(name string, companion Companion) (*guard, error) {
	_, err := k.store.ReadGeneration()
	switch {
	case name == "" && errors.Is(err, store.ErrNotFound):
		return nil, nil
	case name == "":
		return nil, ErrNoGuard
	}
	tok, err := k.Token(name)
	if err != nil {
		return nil, err
	}
	counter, ok := tok.(token.Counter)
	if !ok {
		return nil, fmt.Errorf("token %q does not count: %w", name, token.ErrUnsupported)
	}
	g := &guard{store: k.store, companion: companion, name: name, counter: counter, turn: make(chan struct{}, 1)}
	g.sealer, _ = tok.(token.Sealer)
	g.turn <- struct{}{}
	return g, nil
}

// CheckRollback compares the records with the counter, if there is a guard and it was not
// done yet. The error is a *RollbackError, or one of the token's, which leaves the
// question open. What uses or changes keys does this first.
func (k *Keyring) CheckRollback(ctx context.Context, gate Gate) error {
	if k.guard == nil {
		return nil
	}
	return k.guard.check(ctx, gate)
}

// RolledBack returns the *RollbackError that CheckRollback found, else nil. It does not block.
func (k *Keyring) RolledBack() error {
	if k.guard == nil {
		return nil
	}
	if v := k.guard.verdict.Load(); v != nil {
		return v.err
	}
	return nil
}

// AcceptRollback takes the records as they are for the last ones.
func (k *Keyring) AcceptRollback(ctx context.Context, gate Gate) error {
	if k.guard == nil {
		return fmt.Errorf("key records are not guarded against rollback: %w", token.ErrUnsupported)
	}
	return k.guard.accept(ctx, gate)
}

func (g *guard) take(ctx context.Context) (leave func(), err error) {
	select {
	case <-g.turn:
		return func() { g.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *guard) check(ctx context.Context, gate Gate) error {
	if v := g.verdict.Load(); v != nil {
		return v.err
	}
	leave, err := g.take(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if v := g.verdict.Load(); v != nil {
		return v.err
	}
	err = g.inGate(ctx, gate, g.compare)
	var rollback *RollbackError
	if err != nil && !errors.As(err, &rollback) {
		return fmt.Errorf("check for rollback: %w", err)
	}
	g.verdict.Store(&verdict{err})
	return err
}

func (g *guard) inGate(ctx context.Context, gate Gate, f func(context.Context) error) error {
	leave, err := gate.enter(ctx, g.name)
	if err != nil {
		return err
	}
	defer leave()
	return f(ctx)
}

// compare is the check. It finishes a change that was interrupted, and takes the records
// for the present ones where neither file nor counter exist.
func (g *guard) compare(ctx context.Context) error {
	now, err := g.store.ReadGeneration()
	first := errors.Is(err, store.ErrNotFound)
	if err != nil && !first {
		return &RollbackError{Found: err.Error()}
	}
	count, err := g.counter.ReadCounter(ctx)
	uncounted := errors.Is(err, token.ErrNotFound)
	switch {
	case first && uncounted:
		return g.begin(ctx)
	case err != nil && !uncounted:
		return err
	case first:
		return &RollbackError{Found: "the generation file is missing"}
	case uncounted:
		return &RollbackError{Found: "the token has lost its counter"}
	case now.Number < count:
		return &RollbackError{Found: fmt.Sprintf("they are of generation %d, the last one is %d", now.Number, count)}
	case now.Number > count+1:
		return &RollbackError{Found: fmt.Sprintf("they are of generation %d, the token counted to %d only", now.Number, count)}
	}
	if err := g.compareRecords(ctx, now); err != nil {
		return err
	}
	return g.settle(ctx, now, count)
}

// compareRecords makes sure that the file is this agent's and the records are those of the file.
func (g *guard) compareRecords(ctx context.Context, now *store.Generation) error {
	if err := g.openKey(ctx, now); err != nil {
		return err
	}
	if g.key != nil && !hmac.Equal(now.MAC, g.mac(now.Number, now.Records)) {
		return &RollbackError{Found: "somebody else wrote the generation file"}
	}
	digest, err := g.digest()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(now.Records, func(d store.Binary) bool { return bytes.Equal(d, digest) }) {
		return &RollbackError{Found: fmt.Sprintf("they are not those of generation %d", now.Number)}
	}
	g.now = *now
	g.now.Records = []store.Binary{digest}
	return nil
}

// settle finishes a change that was interrupted.
func (g *guard) settle(ctx context.Context, found *store.Generation, count uint64) error {
	if found.Number == count+1 {
		if err := g.increment(ctx, found.Number); err != nil {
			return err
		}
	}
	if len(found.Records) == 1 {
		return nil
	}
	return g.write(g.now.Number, g.now.Records...)
}

// increment wants the counter to reach a number.
func (g *guard) increment(ctx context.Context, want uint64) error {
	got, err := g.counter.IncrementCounter(ctx)
	if err != nil {
		return err
	}
	if got != want {
		return &RollbackError{Found: fmt.Sprintf("somebody else made the token count: to %d, not %d", got, want)}
	}
	return nil
}

// begin makes the records as they are the ones of a new generation, with a new key.
func (g *guard) begin(ctx context.Context) error {
	digest, err := g.digest()
	if err != nil {
		return err
	}
	if err := g.newKey(ctx); err != nil {
		return err
	}
	count, err := g.counter.IncrementCounter(ctx)
	if err != nil {
		return err
	}
	return g.write(count, digest)
}

// write writes the generation file.
func (g *guard) write(number uint64, records ...store.Binary) error {
	next := store.Generation{Number: number, Records: records, Key: g.now.Key}
	if g.key != nil {
		next.MAC = g.mac(number, records)
	}
	if err := g.store.WriteGeneration(next); err != nil {
		return err
	}
	g.now = next
	return nil
}

// guardLabel separates the uses of the key, and binds the sealed key to its use.
const guardLabel = "mesh-agent generation 1"

func (g *guard) mac(number uint64, records []store.Binary) []byte {
	h := hmac.New(sha256.New, g.key)
	h.Write([]byte(guardLabel))
	h.Write(binary.BigEndian.AppendUint64(nil, number))
	for _, d := range records { // all of one length
		h.Write(d)
	}
	return h.Sum(nil)
}

// newKey draws the key of the MAC, if the token seals.
func (g *guard) newKey(ctx context.Context) error {
	g.key, g.now.Key = nil, nil
	if g.sealer == nil {
		return nil
	}
	key := make([]byte, sha256.Size)
	rand.Read(key)
	sealed, err := g.sealer.Seal(ctx, token.SealRequest{Secret: key, Associated: []byte(guardLabel), PIN: token.PINNever})
	if err != nil {
		return err
	}
	g.key, g.now.Key = key, sealed.Blob
	return nil
}

// openKey has the token open the key of the MAC.
func (g *guard) openKey(ctx context.Context, now *store.Generation) error {
	g.key = nil
	if g.sealer == nil {
		return nil
	}
	if len(now.Key) == 0 {
		return &RollbackError{Found: "somebody else wrote the generation file"}
	}
	key, err := g.sealer.Unseal(ctx, token.UnsealRequest{Blob: now.Key, Associated: []byte(guardLabel)})
	if errors.Is(err, token.ErrCorrupt) {
		return &RollbackError{Found: "the key of the generation file does not open"}
	}
	g.key = key
	return err
}

func (g *guard) accept(ctx context.Context, gate Gate) error {
	leave, err := g.take(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := g.inGate(ctx, gate, g.begin); err != nil {
		g.verdict.Store(nil)
		return fmt.Errorf("accept rollback: %w", err)
	}
	g.verdict.Store(&verdict{})
	return nil
}

// change does do, which puts the record of a key, or removes it if r is nil, as a new generation.
func (k *Keyring) change(ctx context.Context, gate Gate, udf string, r *store.Record, do func() error) error {
	if k.guard == nil {
		return do()
	}
	if err := k.guard.check(ctx, gate); err != nil {
		return err
	}
	return k.guard.change(ctx, gate, func() ([]byte, error) { return k.guard.digestAfter(udf, r) }, do)
}

// digestAfter is what digest will be after Put of a record, or Remove if r is nil.
func (g *guard) digestAfter(udf string, r *store.Record) ([]byte, error) {
	records, err := g.store.DigestAfter(udf, r)
	if err != nil || g.companion == nil {
		return records, err
	}
	files, err := g.companion.Digest()
	return together(records, files), err
}

// change does do as a new generation; after says what digest will be then.
func (g *guard) change(ctx context.Context, gate Gate, after func() ([]byte, error), do func() error) error {
	leave, err := g.take(ctx)
	if err != nil {
		return err
	}
	defer leave()
	before := g.now.Records[0]
	planned, err := after()
	if err != nil {
		return err
	}
	next := g.now.Number + 1
	if err := g.write(next, before, planned); err != nil {
		g.verdict.Store(nil) // the file may say this or that: look again
		return err
	}
	if err := g.inGate(ctx, gate, func(ctx context.Context) error { return g.increment(ctx, next) }); err != nil {
		g.verdict.Store(nil)
		return fmt.Errorf("count generation: %w", err)
	}
	err = do()
	digest, failed := g.digest()
	if failed == nil {
		failed = g.write(next, digest)
	}
	if failed != nil { // the file with both digests holds all the same
		g.verdict.Store(nil)
	}
	return err
}

// addRecord writes the record of a new key, or leaves none. It does not write over one that did not load: another version of
// this program may know what that says.
func (k *Keyring) addRecord(ctx context.Context, gate Gate, r *store.Record) error {
	switch err := k.store.Free(r.Udf); {
	case errors.Is(err, store.ErrExists):
		return fmt.Errorf("%w: its record is there and did not load", token.ErrCorrupt)
	case err != nil:
		return err
	}
	return k.change(ctx, gate, r.Udf, r, func() error {
		err := k.store.Put(r)
		if err == nil {
			return nil
		}
		// The record may be there nevertheless; it must not outlive the key.
		if e := k.store.Remove(r.Udf); e != nil && !errors.Is(e, store.ErrNotFound) {
			err = errors.Join(err, e)
		}
		return err
	})
}

func (k *Keyring) putRecord(ctx context.Context, gate Gate, r *store.Record) error {
	return k.change(ctx, gate, r.Udf, r, func() error { return k.store.Put(r) })
}

func (k *Keyring) removeRecord(ctx context.Context, gate Gate, udf string) error {
	return k.change(ctx, gate, udf, nil, func() error { return k.store.Remove(udf) })
}
