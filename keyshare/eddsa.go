package keyshare

import (
	"bytes"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"

	"filippo.io/edwards25519"
	"github.com/cloudflare/circl/ecc/goldilocks"
)

// Mode selects the domain separation of an EdDSA signature. The zero value is none.
type Mode uint8

// The modes. On Ed448 both are dom4(0, ""), Ed448 of RFC 8032 with an empty context.
const (
	// ModePure is Ed25519 of RFC 8032, Section 5.1.
	ModePure Mode = iota + 1
	// ModeMesh is Ed25519 with dom2(0, ""): Ed25519ctx with the empty context, which RFC
	// 8032 discourages and the Mesh uses. Such signatures do not verify as pure Ed25519.
	ModeMesh
)

// SigningKey signs with EdDSA on Ed25519 or Ed448. It may be used by several goroutines
// at once, until Wipe.
type SigningKey struct {
	scalar *Scalar
	prefix []byte
	hedged bool
	public *Point
}

// NewSigningKey returns the key of a seed (ExpandSeed says which lengths). Its signatures
// are those of RFC 8032, deterministic. The caller wipes the seed.
func NewSigningKey(c Curve, seed []byte) (*SigningKey, error) {
	if c != Ed25519 && c != Ed448 {
		return nil, fmt.Errorf("make signing key: %v is not an EdDSA curve", c)
	}
	s, prefix, err := ExpandSeed(c, seed)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	return &SigningKey{scalar: s, prefix: prefix, public: s.Public()}, nil
}

// NewCompositeSigningKey returns the key of a bare scalar, for instance a sum of two keys'
// scalars, of which no seed is known. The prefix that RFC 8032 takes from the seed is
// SHA-256(LE32(s)) or SHAKE256(LE56(s), 57) (draft-hallambaker-threshold-06, Section 5.1), and
// signatures are hedged: 32 fresh random octets follow the prefix in the nonce's hash. With
// an empty prefix, as in older Mesh software, one signature gives the key away. The key holds a
// copy of s; the caller wipes s.
func NewCompositeSigningKey(s *Scalar) (*SigningKey, error) {
	c := s.Curve()
	if c != Ed25519 && c != Ed448 {
		return nil, fmt.Errorf("make signing key: %v is not an EdDSA curve", c)
	}
	if s.n.IsZero() == 1 {
		return nil, fmt.Errorf("make signing key: %w", ErrZeroScalar)
	}
	b := s.Bytes()
	defer clear(b)
	var prefix []byte
	if c == Ed25519 {
		h := sha256.Sum256(b)
		prefix = h[:]
	} else {
		prefix = sha3.SumSHAKE256(b, 57)
	}
	return &SigningKey{scalar: s.clone(), prefix: prefix, hedged: true, public: s.Public()}, nil
}

// Public returns the public key.
func (k *SigningKey) Public() *Point { return k.public }

// Wipe overwrites the secrets. Sign fails afterwards.
func (k *SigningKey) Wipe() {
	k.scalar.Wipe()
	clear(k.prefix)
}

// Sign signs the message, which is not hashed before (RFC 8032, Sections 5.1.6 and 5.2.6),
// and returns 64 octets (Ed25519) or 114 (Ed448). Only composite keys read from rand; nil
// is crypto/rand.Reader. The secrets are used in constant time.
func (k *SigningKey) Sign(rand io.Reader, mode Mode, message []byte) ([]byte, error) {
	g := k.scalar.group
	dom, err := domain(g.curve, mode)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if k.scalar.n.IsZero() == 1 {
		return nil, errors.New("sign: key was wiped")
	}
	r, err := k.nonce(rand, dom, message)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	defer r.Wipe()
	encodedR := r.Public().encoded
	s, err := challenge(k.public, dom, encodedR, message)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	s.n.Mul(k.scalar.n, g.order).Add(r.n, g.order) // s = r + k*a
	// Ed448 writes S in 57 octets.
	signature := make([]byte, 2*len(encodedR))
	copy(signature, encodedR)
	copy(signature[len(encodedR):], s.Bytes())
	return signature, nil
}

// nonce returns H(dom || prefix || M) mod L, with fresh octets after the prefix of a
// composite key.
func (k *SigningKey) nonce(rand io.Reader, dom, message []byte) (*Scalar, error) {
	var fresh []byte
	if k.hedged {
		if rand == nil {
			rand = cryptorand.Reader
		}
		fresh = make([]byte, 32)
		defer clear(fresh)
		if _, err := io.ReadFull(rand, fresh); err != nil {
			return nil, fmt.Errorf("draw nonce: %w", err)
		}
	}
	return hashToScalar(k.scalar.group, dom, k.prefix, fresh, message)
}

// challenge returns H(dom || R || A || M) mod L.
func challenge(public *Point, dom, encodedR, message []byte) (*Scalar, error) {
	return hashToScalar(public.group, dom, encodedR, public.encoded, message)
}

// hashToScalar hashes with SHA-512 (Ed25519) or SHAKE256 to 114 octets (Ed448) and
// reduces. It fails if the result is zero, which does not happen.
func hashToScalar(g *group, parts ...[]byte) (*Scalar, error) {
	var digest [114]byte
	defer clear(digest[:])
	if g.curve == Ed25519 {
		h := sha512.New()
		for _, p := range parts {
			h.Write(p)
		}
		return g.reduce(h.Sum(digest[:0]))
	}
	h := sha3.NewSHAKE256()
	for _, p := range parts {
		h.Write(p)
	}
	h.Read(digest[:])
	return g.reduce(digest[:])
}

// domain returns dom2 or dom4 with F = 0 and an empty context (RFC 8032, Section 2), or
// nothing for pure Ed25519.
func domain(c Curve, mode Mode) ([]byte, error) {
	switch {
	case mode != ModePure && mode != ModeMesh:
		return nil, fmt.Errorf("unknown mode %d", mode)
	case c == Ed448:
		return []byte("SigEd448\x00\x00"), nil
	case mode == ModeMesh:
		return []byte("SigEd25519 no Ed25519 collisions\x00\x00"), nil
	}
	return nil, nil
}

// Verify reports whether the signature of the message by p's key is valid, strictly: S is
// below L, R is the canonical encoding, and S*B = R + k*A without the cofactor (the checks of
// RFC 8032, Sections 5.1.7 and 5.2.7, and p is a checked point). A point on another curve than
// Ed25519 and Ed448, or an unknown mode, has no valid signatures.
func Verify(p *Point, mode Mode, message, signature []byte) bool {
	q, ok := readSignature(p, mode, message, signature)
	return ok && bytes.Equal(expectedR(p, q.k, q.s), q.r)
}

// equation is what a signature claims: r is the encoding of s*B - k*p.
type equation struct {
	r    []byte
	s, k *Scalar
}

// readSignature checks a signature's form and computes its challenge.
func readSignature(p *Point, mode Mode, message, signature []byte) (q equation, ok bool) {
	c := p.group.curve
	if c != Ed25519 && c != Ed448 || len(signature) != 2*p.group.pointLen {
		return q, false
	}
	dom, err := domain(c, mode)
	if err != nil {
		return q, false
	}
	encodedR, encodedS := signature[:p.group.pointLen], signature[p.group.pointLen:]
	if c == Ed448 {
		if encodedS[56] != 0 {
			return q, false
		}
		encodedS = encodedS[:56]
	}
	s := p.group.reduceOctets(encodedS)
	if !bytes.Equal((&Scalar{p.group, s}).Bytes(), encodedS) {
		return q, false
	}
	k, err := challenge(p, dom, encodedR, message)
	if err != nil {
		return q, false
	}
	return equation{encodedR, &Scalar{p.group, s}, k}, true
}

// expectedR returns the encoding of s*B - k*p, which may be the identity; s may be zero.
// It is not constant time: all is public.
func expectedR(p *Point, k, s *Scalar) []byte {
	switch e := p.element.(type) {
	case ed25519Element:
		minus := new(edwards25519.Point).Negate(e.p)
		return new(edwards25519.Point).VarTimeDoubleScalarBaseMult(scalar25519(k), minus, scalar25519(s)).Bytes()
	case ed448Element:
		minus := e.negate().(ed448Element)
		m, n := scalar448(s), scalar448(k)
		return ed448Element{*goldilocks.Curve{}.CombinedMult(&m, &n, &minus.p)}.encode()
	}
	return nil
}
