package keyshare

import (
	"crypto/sha3"
	"crypto/sha512"
	"fmt"
	"slices"

	"filippo.io/bigmod"
)

// ExpandSeed turns a private key as the standards write it into the scalar that it
// stands for:
//
//	X25519   32 octets, X448 56: clamped as RFC 7748, Section 5; prefix is nil
//	Ed25519  32 octets: RFC 8032, Section 5.1.5; prefix is the second half of the hash, 32 octets
//	Ed448    57 octets (RFC 8032, Section 5.2.5) or, as the Mesh has it, 56, hashed as they
//	         are; prefix is the second half of the hash, 57 octets
//
// The scalar is reduced modulo L, which changes no result on points of order L. The
// caller wipes seed, scalar and prefix. NIST curves are an error: see DeriveNIST.
// A wrong length wraps ErrScalarLength.
func ExpandSeed(c Curve, seed []byte) (s *Scalar, prefix []byte, err error) {
	g, err := c.knownGroup()
	if err != nil {
		return nil, nil, fmt.Errorf("expand seed: %w", err)
	}
	if c.IsNIST() {
		return nil, nil, fmt.Errorf("expand seed: %s keys are scalars, not seeds", g.name)
	}
	if len(seed) != g.deriveLen && (c != Ed448 || len(seed) != 57) {
		return nil, nil, fmt.Errorf("expand seed: %w: %d octets, %s has %d", ErrScalarLength, len(seed), g.name, g.deriveLen)
	}
	var k []byte
	switch c {
	case X25519, X448:
		k = slices.Clone(seed)
	case Ed25519:
		h := sha512.Sum512(seed)
		k, prefix = slices.Clone(h[:32]), slices.Clone(h[32:])
		clear(h[:])
	case Ed448:
		h := sha3.SumSHAKE256(seed, 114)
		k, prefix = slices.Clone(h[:56]), slices.Clone(h[57:]) // octet 56 is cleared
		clear(h)
	}
	defer clear(k)
	clamp(c, k)
	s, err = g.reduce(k)
	if err != nil {
		return nil, nil, fmt.Errorf("expand seed: %w", err)
	}
	return s, prefix, nil
}

// clamp is the pruning that RFC 7748 and RFC 8032 share.
func clamp(c Curve, k []byte) {
	last := len(k) - 1
	if c == X25519 || c == Ed25519 {
		k[0] &= 0xf8
		k[last] = k[last]&0x7f | 0x40
		return
	}
	k[0] &= 0xfc
	k[last] |= 0x80
}

// DeriveNIST returns (BE(okm) mod (n-1)) + 1, where n is the group order: the private key
// of P256, P384 or P521 that the Mesh derives from DeriveLen octets (40, 56, 74) of keying
// material (draft-hallambaker-mesh-udf, Section 4.4.3, with n-1 where it prints p-1). The caller
// wipes okm. Another length wraps ErrScalarLength; another curve is an error.
func DeriveNIST(c Curve, okm []byte) (*Scalar, error) {
	g, err := c.knownGroup()
	if err != nil {
		return nil, fmt.Errorf("derive scalar: %w", err)
	}
	if !c.IsNIST() {
		return nil, fmt.Errorf("derive scalar: %s is not a NIST curve", g.name)
	}
	if len(okm) != g.deriveLen {
		return nil, fmt.Errorf("derive scalar: %w: %d octets, %s has %d", ErrScalarLength, len(okm), g.name, g.deriveLen)
	}
	// n is odd: its predecessor differs in the lowest bit only.
	predecessor := g.order.Nat().Bytes(g.order)
	predecessor[len(predecessor)-1] &^= 1
	m, err := bigmod.NewModulus(predecessor)
	if err != nil {
		return nil, fmt.Errorf("derive scalar: %w", err)
	}
	d := reduceBigEndian(okm, m)
	return &Scalar{g, d.Add(natural([]byte{1}, g.order), g.order)}, nil
}
