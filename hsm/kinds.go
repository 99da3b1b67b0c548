package hsm

import (
	"bytes"
	"cmp"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/big"
	"strings"
	"unsafe"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// kind is how one module has keys of one algorithm.
type kind struct {
	algorithm token.Algorithm
	curve     keyshare.Curve // 0 for RSA
	keyType   uint64
	params    []byte // CKA_EC_PARAMS
	makes     bool   // generate is there; the number of RSA's is 0
	generate  uint64
	sign      uint64 // mechanisms; 0 where the module has none
	derive    uint64
	// rawPoint is set where CKA_EC_POINT is not wrapped in an OCTET STRING.
	rawPoint bool
}

// curveParams are CKA_EC_PARAMS: the object identifiers of RFC 5480, Section 2.1.1.1, and RFC 8410,
// Section 3.
func curveParams(a token.Algorithm) []byte {
	oids := map[token.Algorithm]asn1.ObjectIdentifier{
		token.P256: {1, 2, 840, 10045, 3, 1, 7}, token.P384: {1, 3, 132, 0, 34}, token.P521: {1, 3, 132, 0, 35},
		token.X25519: {1, 3, 101, 110}, token.X448: {1, 3, 101, 111},
		token.Ed25519: {1, 3, 101, 112}, token.Ed448: {1, 3, 101, 113},
	}
	return marshal(oids[a])
}

func marshal(v any) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic("hsm: " + err.Error())
	}
	return b
}

// mechanisms are those of a token, with the largest key size (in bits) that it says.
type mechanisms map[uint64]uint64

func (m mechanisms) has(kind uint64) bool { _, ok := m[kind]; return ok }

// only returns kind if the token has it, else 0.
func (m mechanisms) only(kind uint64) uint64 {
	if m.has(kind) {
		return kind
	}
	return 0
}

// kinds returns what a token of a manufacturer can hold. Three modules differ from
// PKCS #11 3.0 in how they have X25519 and X448:
//
//	SoftHSM 2.6   CKM_EC_EDWARDS_KEY_PAIR_GEN and CKK_EC_EDWARDS, with the identifiers of RFC 8410
//	NSS 3.87      X25519 only: CKM_EC_KEY_PAIR_GEN and CKK_EC, with an identifier of its own, and
//	              the point not wrapped
//	others        CKM_EC_MONTGOMERY_KEY_PAIR_GEN and CKK_EC_MONTGOMERY, if they list it
func kinds(manufacturer string, m mechanisms) []kind {
	var out []kind
	add := func(k kind) {
		k.makes = m.has(k.generate) && (k.generate != 0 || k.curve == 0)
		if k.sign == 0 && k.derive == 0 || isMontgomery(k.curve) && !k.makes {
			return // CKM_ECDH1_DERIVE alone does not say for which curves it is
		}
		if k.params == nil && k.curve != 0 {
			k.params = curveParams(k.algorithm)
		}
		out = append(out, k)
	}
	add(montgomeryKind(manufacturer, m, token.X25519, keyshare.X25519))
	add(montgomeryKind(manufacturer, m, token.X448, keyshare.X448))
	for _, k := range []kind{{algorithm: token.Ed25519, curve: keyshare.Ed25519}, {algorithm: token.Ed448, curve: keyshare.Ed448}} {
		k.keyType, k.generate, k.sign = ckkECEdwards, m.only(ckmECEdwardsKeyPairGen), m.only(ckmEDDSA)
		if largest := m[ckmEDDSA]; k.algorithm == token.Ed448 && largest != 0 && largest < 448 {
			continue
		}
		add(k)
	}
	for _, k := range []kind{
		{algorithm: token.P256, curve: keyshare.P256}, {algorithm: token.P384, curve: keyshare.P384},
		{algorithm: token.P521, curve: keyshare.P521},
	} {
		k.keyType, k.generate, k.sign, k.derive = ckkEC, m.only(ckmECKeyPairGen), m.only(ckmECDSA), m.only(ckmECDH1Derive)
		if largest := cmp.Or(m[ckmECKeyPairGen], m[ckmECDSA]); largest != 0 && largest < fieldBits(k.curve) {
			continue
		}
		add(k)
	}
	for _, a := range []token.Algorithm{token.RSA2048, token.RSA3072, token.RSA4096} {
		if largest := cmp.Or(m[ckmRSAKeyPairGen], m[ckmRSAPKCS]); largest != 0 && largest < uint64(a.RSABits()) {
			continue
		}
		add(kind{algorithm: a, keyType: ckkRSA, generate: ckmRSAKeyPairGen, sign: m.only(ckmRSAPKCS)})
	}
	return out
}

func isMontgomery(c keyshare.Curve) bool { return c == keyshare.X25519 || c == keyshare.X448 }

// hasParams reports whether a value of CKA_EC_PARAMS means the curve: the identifier, or for Edwards curves the
// name, which PKCS #11 3.0, Section 2.3.5, allows as well and OpenSC writes.
func (k kind) hasParams(b []byte) bool {
	if bytes.Equal(b, k.params) {
		return true
	}
	var name string
	rest, err := asn1.UnmarshalWithParams(b, &name, "printable")
	return err == nil && len(rest) == 0 && name != "" && name == map[token.Algorithm]string{
		token.Ed25519: "edwards25519", token.Ed448: "edwards448", token.X25519: "curve25519", token.X448: "curve448",
	}[k.algorithm]
}

// fieldBits returns the size of the field of a NIST curve.
func fieldBits(c keyshare.Curve) uint64 {
	return map[keyshare.Curve]uint64{keyshare.P256: 256, keyshare.P384: 384, keyshare.P521: 521}[c]
}

func montgomeryKind(manufacturer string, m mechanisms, a token.Algorithm, c keyshare.Curve) kind {
	k := kind{algorithm: a, curve: c, keyType: ckkECMontgomery, generate: m.only(ckmECMontgomeryKeyPairGen), derive: m.only(ckmECDH1Derive)}
	switch {
	case k.generate != 0:
	case isSoftHSM(manufacturer):
		k.keyType, k.generate = ckkECEdwards, m.only(ckmECEdwardsKeyPairGen)
	case isNSS(manufacturer) && a == token.X25519:
		k.keyType, k.generate, k.rawPoint = ckkEC, m.only(ckmECKeyPairGen), true
		k.params = marshal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11591, 15, 1})
	}
	return k
}

func isSoftHSM(manufacturer string) bool { return strings.HasPrefix(manufacturer, "SoftHSM") }

func isNSS(manufacturer string) bool { return strings.HasPrefix(manufacturer, "Mozilla") }

// supports reports whether the token can hold a key for this use.
func (k kind) supports(u token.Use, m mechanisms) bool {
	switch {
	case u.Signs():
		return k.sign != 0
	case k.curve == 0:
		return u == token.UseDecrypt && (m.has(ckmRSAOAEP) || m.has(ckmRSAX509))
	}
	return u.Agrees() && k.derive != 0
}

// public reads a public key from the attributes of a public key object, or of a private
// one where the module keeps a copy there.
func (k kind) public(o object) (token.PublicKey, error) {
	if k.curve == 0 {
		return rsaPublic(k.algorithm, o)
	}
	point := o.value(ckaECPoint)
	octets := point
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 && len(inner) > 0 {
		octets = inner
	}
	p, err := keyshare.ParsePoint(k.curve, octets)
	if err != nil && !bytes.Equal(octets, point) {
		p, err = keyshare.ParsePoint(k.curve, point) // a raw point that looks like DER
	}
	if err != nil {
		return token.PublicKey{}, fmt.Errorf("public key in the token: %w", err)
	}
	return token.PublicKey{Algorithm: k.algorithm, Octets: p.Bytes()}, nil
}

func rsaPublic(a token.Algorithm, o object) (token.PublicKey, error) {
	n, e := new(big.Int).SetBytes(o.value(ckaModulus)), new(big.Int).SetBytes(o.value(ckaPublicExponent))
	if n.BitLen() != a.RSABits() || n.Bit(0) == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 {
		return token.PublicKey{}, fmt.Errorf("public key in the token is not %s: %w", a, token.ErrBadKey)
	}
	return token.PublicKey{Algorithm: a, Octets: x509.MarshalPKCS1PublicKey(&rsa.PublicKey{N: n, E: int(e.Int64())})}, nil
}

// point returns CKA_EC_POINT for a public key.
func (k kind) point(p token.PublicKey) []byte {
	octets := p.Octets
	if isMontgomery(k.curve) {
		octets = octets[:len(octets)-1]
	}
	if k.rawPoint {
		return octets
	}
	return marshal(octets)
}

// value returns an attribute, nil if the object does not tell it.
func (o object) value(kind uint64) []byte {
	for _, a := range o.attributes {
		if a.kind == kind {
			return a.value
		}
	}
	return nil
}

// is reports whether a Boolean attribute is true, and whether it is there.
func (o object) is(kind uint64) (value, known bool) {
	v := o.value(kind)
	return len(v) == 1 && v[0] != 0, len(v) == 1
}

// number returns an attribute of type CK_ULONG.
func (o object) number(kind uint64) (uint64, bool) {
	switch v := o.value(kind); len(v) {
	case 8:
		return binary.NativeEndian.Uint64(v), true
	case 4:
		return uint64(binary.NativeEndian.Uint32(v)), true
	}
	return 0, false
}

// yes, no, number and octets make attributes. CK_ULONG is as long as a pointer on the
// systems that the agent runs on, and agent and helper are the same binary.
func yes(kind uint64) attribute { return attribute{kind, []byte{1}} }
func no(kind uint64) attribute  { return attribute{kind, []byte{0}} }

func number(kind, v uint64) attribute {
	if unsafe.Sizeof(uintptr(0)) == 4 {
		return attribute{kind, binary.NativeEndian.AppendUint32(nil, uint32(v))}
	}
	return attribute{kind, binary.NativeEndian.AppendUint64(nil, v)}
}

func octets(kind uint64, v []byte) attribute { return attribute{kind, v} }
