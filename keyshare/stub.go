// Package keyshare: STUB of the agreed API; its owner replaces this file.
package keyshare

import (
	"io"

	"github.com/mesh-agent/mesh-agent/keyshare/internal/badpoint"
)

// Curve is one of the seven curves. Its names equal those of token.Algorithm.
type Curve uint8

const (
	X25519 Curve = iota + 1
	X448
	Ed25519
	Ed448
	P256
	P384
	P521
)

func ParseCurve(name string) (Curve, error) { panic("stub") }
func (c Curve) String() string              { panic("stub") }

// ScalarLen: 32 56 32 56 32 48 66. PointLen (signed form): 33 57 32 57 65 97 133.
func (c Curve) ScalarLen() int { panic("stub") }
func (c Curve) PointLen() int  { panic("stub") }

// Reasons for refused points; ParsePoint and Add wrap one of them, and the error text STARTS with it.
var (
	ErrLength       = badpoint.Length
	ErrSignOctet    = badpoint.SignOctet
	ErrNonCanonical = badpoint.NonCanonical
	ErrTwist        = badpoint.Twist
	ErrIdentity     = badpoint.Identity
	ErrLowOrder     = badpoint.LowOrder
	ErrTorsion      = badpoint.Torsion
)

// Point is a checked point: on the curve, in the prime-order subgroup, not the identity. Immutable.
type Point struct{}

// ParsePoint decodes and checks. Accepts the signed form, and X25519 of 32 / X448 of 56 octets, lifted to even v.
func ParsePoint(c Curve, b []byte) (*Point, error) { panic("stub") }
func BasePoint(c Curve) *Point                     { panic("stub") }
func (p *Point) Curve() Curve                      { panic("stub") }
func (p *Point) Bytes() []byte                     { panic("stub") } // signed form
func (p *Point) SharedSecret() []byte              { panic("stub") } // crypto.md 5.6; NIST: x-coordinate, big endian, full length
func (p *Point) Add(q *Point) (*Point, error)      { panic("stub") }
func (p *Point) Negate() *Point                    { panic("stub") }
func (p *Point) Equal(q *Point) bool               { panic("stub") }

// Scalar is a secret scalar, 1 <= s < L, reduced. Operations constant time.
type Scalar struct{}

// ParseScalar: exact length, any value, reduced mod L, zero refused.
func ParseScalar(c Curve, b []byte) (*Scalar, error) { panic("stub") }

// ParseCoefficient: exact length, 1 <= c < L, otherwise error.
func ParseCoefficient(c Curve, b []byte) (*Scalar, error)   { panic("stub") }
func RandomScalar(c Curve, rand io.Reader) (*Scalar, error) { panic("stub") }
func ReduceScalar(c Curve, wide []byte, order any)          { panic("stub") } // decide what derivation needs
func (s *Scalar) Curve() Curve                              { panic("stub") }
func (s *Scalar) Bytes() []byte                             { panic("stub") } // caller wipes
func (s *Scalar) Add(t *Scalar) (*Scalar, error)            { panic("stub") } // zero refused
func (s *Scalar) Multiply(t *Scalar) *Scalar                { panic("stub") }
func (s *Scalar) Public() *Point                            { panic("stub") } // s * base point
func (s *Scalar) Wipe()                                     { panic("stub") }
func ExpandSeed(c Curve, seed []byte) (s *Scalar, prefix []byte, err error) {
	panic("stub") // X25519 32, X448 56: clamp, reduce; prefix nil. Ed25519 32, Ed448 56|57: RFC 8032 hash, prune, reduce; prefix 32/57.
}

// Agree returns s*p. PartialAgreement returns (coefficient*s)*p; nil coefficient is 1.
func Agree(s *Scalar, p *Point) (*Point, error)                         { panic("stub") }
func PartialAgreement(s, coefficient *Scalar, p *Point) (*Point, error) { panic("stub") }

// Combine adds points; at least one. Identity sum refused.
func Combine(points ...*Point) (*Point, error) { panic("stub") }

// Share of a split scalar; X is 0 for additive shares.
type Share struct {
	X      int
	Scalar *Scalar
}

func SplitDirect(s *Scalar, n int, rand io.Reader) ([]Share, error)            { panic("stub") }
func SplitShamir(s *Scalar, threshold, n int, rand io.Reader) ([]Share, error) { panic("stub") }

// Coefficient is the Lagrange coefficient of xs[i] at 0.
func Coefficient(c Curve, xs []int, i int) (*Scalar, error) { panic("stub") }

// EdDSA: SigningKey signs with an expanded key; CompositeKey with a bare scalar (hedged prefix, crypto.md 15).
type SigningKey struct{}

func NewSigningKey(c Curve, seed []byte) (*SigningKey, error) { panic("stub") }
func NewCompositeSigningKey(s *Scalar) (*SigningKey, error)   { panic("stub") }
func (k *SigningKey) Public() *Point                          { panic("stub") }

// Mode selects dom for Ed25519: ModePure or ModeMesh (dom2, F=0, empty context); Ed448 is dom4(0,"") in both.
type Mode uint8

const (
	ModePure Mode = iota + 1
	ModeMesh
)

func (k *SigningKey) Sign(rand io.Reader, mode Mode, message []byte) ([]byte, error) { panic("stub") }
func (k *SigningKey) Wipe()                                                          { panic("stub") }
func Verify(p *Point, mode Mode, message, signature []byte) bool                     { panic("stub") }
