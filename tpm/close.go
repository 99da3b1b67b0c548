package tpm

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/mesh-agent/mesh-agent/token"
)

var _ io.Closer = (*key)(nil)

// Close unloads the key, which makes room for others, and waits for that no longer than two
// seconds. A key that is used nevertheless is loaded again. A TPM that is not there has
// unloaded it already.
func (k *key) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	_, err := do(ctx, k.token, "close key", func(d *device) (struct{}, error) { return struct{}{}, d.drop(&k.blob.object) })
	gone := []error{token.ErrClosed, token.ErrAbsent, token.ErrReplaced, context.DeadlineExceeded}
	if slices.ContainsFunc(gone, func(e error) bool { return errors.Is(err, e) }) {
		return nil
	}
	return err
}
