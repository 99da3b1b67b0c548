package mesh

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/token"
)

// Generation is the wire generation of Mesh data. A CFRG key has one fingerprint, and a
// seed derives one key, in each.
type Generation uint8

// The generations.
const (
	G1 Generation = iota + 1 // the drafts of 2021, the reference code until 2023
	G2                       // the reference code of 2024
)

// ParseGeneration reads "g1" or "g2".
func ParseGeneration(s string) (Generation, error) {
	switch s {
	case "g1":
		return G1, nil
	case "g2":
		return G2, nil
	}
	return 0, fmt.Errorf("unknown generation %q (known: g1, g2)", s)
}

// String returns "g1" or "g2".
func (g Generation) String() string {
	switch g {
	case G1:
		return "g1"
	case G2:
		return "g2"
	}
	return fmt.Sprintf("generation %d", uint8(g))
}

// algorithmIdentifier with an absent Parameters is what G2 writes.
type algorithmIdentifier struct {
	Algorithm  asn1.ObjectIdentifier
	Parameters asn1.RawValue `asn1:"optional"`
}

// keyInfo is a SubjectPublicKeyInfo.
type keyInfo struct {
	Algorithm algorithmIdentifier
	PublicKey asn1.BitString
}

// KeyInfoDER returns the DER that a key's fingerprint is over. For RSA and the NIST curves
// it is the standard SubjectPublicKeyInfo. For the CFRG curves it is not that of RFC 8410:
// the key is wrapped in an OCTET STRING, G1 adds NULL parameters, and G2 writes the
// identifier of Ed25519 whatever the curve. X25519 keys enter without sign (32 octets),
// X448 keys with it (57).
func KeyInfoDER(pub token.PublicKey, g Generation) ([]byte, error) {
	arc := cfrgArc(pub.Algorithm)
	if arc == 0 {
		standard, err := pub.Standard()
		if err != nil {
			return nil, fmt.Errorf("encode key info: %w: %w", token.ErrBadKey, err)
		}
		return x509.MarshalPKIXPublicKey(standard)
	}
	curve, _ := CurveOf(pub.Algorithm)
	if len(pub.Octets) != curve.PointLen() {
		return nil, fmt.Errorf("encode key info: %s public key of %d octets: %w", pub.Algorithm, len(pub.Octets), token.ErrBadKey)
	}
	var id algorithmIdentifier
	switch g {
	case G1:
		id = algorithmIdentifier{asn1.ObjectIdentifier{1, 3, 101, arc}, asn1.NullRawValue}
	case G2:
		id = algorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 101, 112}}
	default:
		return nil, fmt.Errorf("encode key info: unknown %v", g)
	}
	wrapped, err := asn1.Marshal(pub.Ordinary())
	if err != nil {
		return nil, fmt.Errorf("encode key info: %w", err)
	}
	return asn1.Marshal(keyInfo{id, asn1.BitString{Bytes: wrapped, BitLength: 8 * len(wrapped)}})
}

// cfrgArc is the last arc of the object identifiers 1.3.101.110 to 113 (RFC 8410, Section 3), else 0.
func cfrgArc(a token.Algorithm) int {
	switch a {
	case token.X25519:
		return 110
	case token.X448:
		return 111
	case token.Ed25519:
		return 112
	case token.Ed448:
		return 113
	}
	return 0
}

// FingerprintOctets returns the type octet and the 64 digest octets of a public key's UDF
// (draft-hallambaker-mesh-udf-13, Section 5.3, with the content type PKIXKey).
func FingerprintOctets(pub token.PublicKey, g Generation) ([]byte, error) {
	der, err := KeyInfoDER(pub, g)
	if err != nil {
		return nil, err
	}
	return ContentDigest(der, ContentTypePKIXKey), nil
}

// Fingerprint returns the 140-bit UDF of a public key: 28 characters with dashes. For
// RSA and the NIST curves both generations have the same.
func Fingerprint(pub token.PublicKey, g Generation) (string, error) {
	octets, err := FingerprintOctets(pub, g)
	if err != nil {
		return "", err
	}
	return UDFTextBits(octets, UDFBits)
}

// FullFingerprint returns all 104 characters of a public key's UDF without dashes. A key
// id names the key if NormalizeKeyID of it is a prefix of one of its Aliases.
func FullFingerprint(pub token.PublicKey, g Generation) (string, error) {
	octets, err := FingerprintOctets(pub, g)
	if err != nil {
		return "", err
	}
	return base32Text(octets), nil
}

// Aliases returns FullFingerprint in each generation, without repetition: every name by
// which the key may be asked for. An RSA key has a second one although its fingerprint is
// the same in both generations here: the reference code of G2 leaves the NULL parameters
// out, and its published KeyData bears a Udf over that.
func Aliases(pub token.PublicKey) ([]string, error) {
	var out []string
	for _, g := range []Generation{G1, G2} {
		full, err := FullFingerprint(pub, g)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, full) {
			out = append(out, full)
		}
	}
	if pub.Algorithm.RSABits() != 0 {
		der, err := asn1.Marshal(keyInfo{
			algorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}}, // rsaEncryption
			asn1.BitString{Bytes: pub.Octets, BitLength: 8 * len(pub.Octets)},
		})
		if err != nil {
			return nil, fmt.Errorf("encode key info: %w", err)
		}
		out = append(out, base32Text(ContentDigest(der, ContentTypePKIXKey)))
	}
	return out, nil
}

// OIDUDF returns the public key itself as text: O..., the G1 key info.
func OIDUDF(pub token.PublicKey) (string, error) {
	der, err := KeyInfoDER(pub, G1)
	if err != nil {
		return "", err
	}
	return typedText(UDFOID, der), nil
}
