package tpm

import (
	"context"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

var _ token.RandomSource = (*Token)(nil)

// maxRandom is the number of octets that one request may have: TPM2_GetRandom returns at
// most as many as the TPM's largest digest has, at least 32.
const maxRandom = 64

// Random returns octets of the TPM's generator (TPM2_GetRandom, Part 3, 16.1). They cross the
// bus in clear: whoever mixes them with randomness of his own loses nothing by that.
func (t *Token) Random(ctx context.Context, n int) ([]byte, error) {
	if n < 1 || n > maxRandom {
		return nil, fmt.Errorf("tpm: random: %d octets: %w", n, token.ErrBadRequest)
	}
	return do(ctx, t, "random", func(d *device) ([]byte, error) {
		out := make([]byte, 0, n)
		for len(out) < n {
			rsp, err := run(d, tpm2.GetRandom{BytesRequested: uint16(n - len(out))})
			if err != nil {
				return nil, err
			}
			got := rsp.RandomBytes.Buffer
			if len(got) == 0 || len(got) > n-len(out) {
				return nil, fmt.Errorf("%w: %d octets of randomness", token.ErrFault, len(got))
			}
			out = append(out, got...)
			clear(got)
		}
		return out, nil
	})
}
