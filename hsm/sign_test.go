package hsm

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"testing"
)

// The hand-made DER is that of encoding/asn1.
func TestECDSADER(t *testing.T) {
	t.Parallel()
	for _, size := range []int{32, 48, 66} {
		for _, fill := range []byte{0x01, 0x7f, 0x80, 0xff} {
			for _, zeros := range []int{0, 1, 5, size - 1} {
				raw := bytes.Repeat([]byte{fill}, 2*size)
				clear(raw[:zeros])
				clear(raw[size : size+zeros/2])
				want, err := asn1.Marshal(struct{ R, S *big.Int }{
					new(big.Int).SetBytes(raw[:size]), new(big.Int).SetBytes(raw[size:]),
				})
				if err != nil {
					t.Fatal(err)
				}
				if got := ecdsaDER(raw); !bytes.Equal(got, want) {
					t.Errorf("%x becomes %x, want %x", raw, got, want)
				}
			}
		}
	}
}
