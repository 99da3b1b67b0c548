package keyshare

import (
	"fmt"

	"filippo.io/bigmod"
)

// Curve is one of the seven curves. The zero value is none of them.
type Curve uint8

// The curves. Their names equal those of the project's algorithms.
const (
	X25519  Curve = iota + 1 // RFC 7748, Section 4.1
	X448                     // RFC 7748, Section 4.2 (Curve448)
	Ed25519                  // RFC 8032, Section 5.1
	Ed448                    // RFC 8032, Section 5.2
	P256                     // SP 800-186, Section 3.2.1.3
	P384                     // SP 800-186, Section 3.2.1.4
	P521                     // SP 800-186, Section 3.2.1.5
)

// Curves returns every curve.
func Curves() []Curve { return []Curve{X25519, X448, Ed25519, Ed448, P256, P384, P521} }

// ParseCurve returns the curve of exactly this name.
func ParseCurve(name string) (Curve, error) {
	for i := range groups {
		if groups[i].name == name {
			return groups[i].curve, nil
		}
	}
	return 0, fmt.Errorf("parse curve: unknown name %q", name)
}

// String returns the name: "X25519", "P256".
func (c Curve) String() string {
	if g := c.group(); g != nil {
		return g.name
	}
	return fmt.Sprintf("Curve(%d)", uint8(c))
}

// ScalarLen returns the number of octets of an encoded scalar: 32 for X25519 and
// Ed25519, 56 for X448 and Ed448, 32, 48 and 66 for the NIST curves; 0 for an
// unknown curve. Scalars are little endian on the first four, big endian (SEC 1) on
// the others.
func (c Curve) ScalarLen() int {
	if g := c.group(); g != nil {
		return g.scalarLen
	}
	return 0
}

// PointLen returns the number of octets of Point.Bytes: 33 57 32 57 65 97 133; 0 for
// an unknown curve.
func (c Curve) PointLen() int {
	if g := c.group(); g != nil {
		return g.pointLen
	}
	return 0
}

// DeriveLen returns how many octets of keying material the Mesh derives for a private
// key of this curve, to be given to ExpandSeed or DeriveNIST: 32 56 32 56 40 56 74
// (draft-hallambaker-mesh-udf, Section 4.4); 0 for an unknown curve.
func (c Curve) DeriveLen() int {
	if g := c.group(); g != nil {
		return g.deriveLen
	}
	return 0
}

// IsNIST reports whether c is P256, P384 or P521.
func (c Curve) IsNIST() bool { return c == P256 || c == P384 || c == P521 }

func (c Curve) group() *group {
	if c < X25519 || c > P521 {
		return nil
	}
	return &groups[c-X25519]
}

// knownGroup is group with an error for a curve that does not exist.
func (c Curve) knownGroup() (*group, error) {
	if g := c.group(); g != nil {
		return g, nil
	}
	return nil, fmt.Errorf("unknown curve %d", uint8(c))
}

// group is what the package knows about a curve. The table below is never written.
type group struct {
	curve     Curve
	name      string
	scalarLen int
	pointLen  int
	deriveLen int
	// littleEndian says how scalars are encoded.
	littleEndian bool
	// order is the prime order L of the subgroup in use.
	order *bigmod.Modulus
	// inverseCofactor is h^-1 mod L; nil where h is 1.
	inverseCofactor *bigmod.Nat
	// parse decodes a point and makes every check of ParsePoint.
	parse func(b []byte) (element, error)
	base  func() element
	// baseMult multiplies the base point; nil means base().mult.
	baseMult func(s *Scalar) (element, error)
	// recover returns the point with the coordinate r whose sum with public has the
	// coordinate s, and an error if there is none; nil on Edwards curves.
	recover func(public *Point, r, s []byte) (element, error)
}

// element is a point of the prime-order subgroup, immutable. Arguments are of the
// receiver's own type. The identity is returned as an error, badpoint.ErrIdentity.
type element interface {
	// encode returns the signed form, PointLen octets, never shared.
	encode() []byte
	add(q element) (element, error)
	negate() element
	// mult multiplies in constant time by a scalar of the same group, in such a way
	// that a component of small order, were there one, would be dropped: on curves with
	// cofactor h it computes h * ((s * h^-1) mod L) times the point.
	mult(s *Scalar) (element, error)
}

const (
	order25519 = "1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ed"
	order448   = "3fffffffffffffffffffffffffffffffffffffffffffffffffffffff7cca23e9c44edb49aed63690216cc2728dc58f552378c292ab5844f3"
	orderP256  = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"
	orderP384  = "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973"
	orderP521  = "01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409"
)

var groups = [...]group{
	{
		curve: X25519, name: "X25519", scalarLen: 32, pointLen: 33, deriveLen: 32, littleEndian: true,
		order: modulus(order25519), inverseCofactor: inverse(8, order25519),
		parse: parseX25519, base: baseX25519, recover: recoverMontgomery,
	},
	{
		curve: X448, name: "X448", scalarLen: 56, pointLen: 57, deriveLen: 56, littleEndian: true,
		order: modulus(order448), inverseCofactor: inverse(4, order448),
		parse: parseX448, base: baseX448, recover: recoverMontgomery,
	},
	{
		curve: Ed25519, name: "Ed25519", scalarLen: 32, pointLen: 32, deriveLen: 32, littleEndian: true,
		order: modulus(order25519), inverseCofactor: inverse(8, order25519),
		parse: parseEd25519, base: baseEd25519, baseMult: baseMultEd25519,
	},
	{
		curve: Ed448, name: "Ed448", scalarLen: 56, pointLen: 57, deriveLen: 56, littleEndian: true,
		order: modulus(order448), inverseCofactor: inverse(4, order448),
		parse: parseEd448, base: baseEd448, baseMult: baseMultEd448,
	},
	{
		curve: P256, name: "P256", scalarLen: 32, pointLen: 65, deriveLen: 40,
		order: modulus(orderP256),
		parse: p256.parse, base: p256.base, baseMult: p256.baseMult, recover: p256.recover,
	},
	{
		curve: P384, name: "P384", scalarLen: 48, pointLen: 97, deriveLen: 56,
		order: modulus(orderP384),
		parse: p384.parse, base: p384.base, baseMult: p384.baseMult, recover: p384.recover,
	},
	{
		curve: P521, name: "P521", scalarLen: 66, pointLen: 133, deriveLen: 74,
		order: modulus(orderP521),
		parse: p521.parse, base: p521.base, baseMult: p521.baseMult, recover: p521.recover,
	},
}

// modulus panics on anything but a hexadecimal constant above 1.
func modulus(hexadecimal string) *bigmod.Modulus {
	m, err := bigmod.NewModulus(unhex(hexadecimal))
	if err != nil {
		panic("keyshare: " + err.Error())
	}
	return m
}

// inverse returns h^-1 modulo the order. Both are public.
func inverse(h uint, order string) *bigmod.Nat {
	n, ok := new(bigmod.Nat).InverseVarTime(new(bigmod.Nat).SetUint(h), modulus(order))
	if !ok {
		panic("keyshare: cofactor has no inverse")
	}
	return n
}
