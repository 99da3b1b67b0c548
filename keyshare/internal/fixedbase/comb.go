package fixedbase

import (
	"encoding/binary"
	"math/big"
)

// comb is the fixed-base table of Lim and Lee ("More Flexible Exponentiation with Precomputation",
// CRYPTO '94): the bits of a scalar are arranged in rows, and a table entry of type P is the sum for one column of
// bits. Each block of columns has its own table, which saves doublings.
type comb[P any] struct {
	tables         [blocks][1 << teeth]P // entry 0 is not used; first, so that a point of P-256 is one cache line
	columns, block int
}

const (
	teeth  = 9 // rows: with more, the tables crowd the cache that the device's software needs, too
	blocks = 2
)

func newComb[P any](bits int) *comb[P] {
	columns := (bits + teeth - 1) / teeth
	return &comb[P]{columns: columns, block: (columns + blocks - 1) / blocks}
}

// append appends copies of the entries to add for a column and the scalar k, least significant word first. They
// are copied together because most are not in the cache: so the processor fetches them at the same time.
func (t *comb[P]) append(terms []P, column int, k []uint64) []P {
	for block := range t.tables {
		at := column + block*t.block
		if at >= t.columns {
			break
		}
		index := 0
		for i := range teeth {
			if at < 64*len(k) {
				index |= int(k[at/64]>>(at%64)&1) << i
			}
			at += t.columns
		}
		if index != 0 {
			terms = append(terms, t.tables[block][index])
		}
	}
	return terms
}

// heads returns the first column's point of each row in each block: those of row 0 first. next returns the
// point times 1, 2, 4 and so on.
func heads[S any](columns, block int, next func() S) (heads []S) {
	for i := range teeth * columns {
		if s := next(); i%columns%block == 0 {
			heads = append(heads, s)
		}
	}
	return heads
}

// sums returns the tables' entries, those of block 0 first. Entry 0 is zero. No other is infinity, whatever the
// point is: the group's order would divide a number with no more than nine bits set.
func sums[S, H any](zero S, heads []H, add func(S, H) S) []S {
	out := make([]S, blocks<<teeth)
	for b := range blocks {
		entries := out[b<<teeth : (b+1)<<teeth]
		entries[0] = zero
		for i := range teeth {
			for j := range 1 << i {
				entries[1<<i+j] = add(entries[j], heads[i*blocks+b])
			}
		}
	}
	return out
}

// fill takes over the entries.
func (t *comb[P]) fill(entries []P) {
	for b := range blocks {
		copy(t.tables[b][:], entries[b<<teeth:])
	}
}

// words returns the words of a number, least significant first.
func words(n *big.Int, count int) []uint64 {
	octets := n.FillBytes(make([]byte, 8*count))
	out := make([]uint64, count)
	for i := range out {
		out[count-1-i] = binary.BigEndian.Uint64(octets[8*i:])
	}
	return out
}
