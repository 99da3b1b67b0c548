package keyring

import (
	"context"
	"crypto/sha256"
)

// Companion is a folder of files beside the records, which the guard against rollback covers too.
type Companion interface {
	// Digest returns a digest of the files as they are on the disk; nil if there are none.
	Digest() ([]byte, error)
}

// ChangeCompanion does do, which changes the companion, as a new generation. After says what its
// Digest will be. Without a guard it only does do. Errors: those of CheckRollback and of do.
func (k *Keyring) ChangeCompanion(ctx context.Context, gate Gate, after func() ([]byte, error), do func() error) error {
	if k.guard == nil {
		return do()
	}
	if err := k.guard.check(ctx, gate); err != nil {
		return err
	}
	return k.guard.change(ctx, gate, func() ([]byte, error) {
		records, err := k.store.Digest()
		if err != nil {
			return nil, err
		}
		files, err := after()
		return together(records, files), err
	}, do)
}

// companionLabel separates digests of records with a companion from those without.
const companionLabel = "mesh-agent records and companion 1"

// together is the digest of the records and the companion, all of one length. Without files it is
// that of the records.
func together(records, files []byte) []byte {
	if files == nil {
		return records
	}
	h := sha256.New()
	h.Write([]byte(companionLabel))
	h.Write(records)
	h.Write(files)
	return h.Sum(nil)
}

// digest is that of the records and the companion as they are.
func (g *guard) digest() ([]byte, error) {
	records, err := g.store.Digest()
	if err != nil || g.companion == nil {
		return records, err
	}
	files, err := g.companion.Digest()
	return together(records, files), err
}
