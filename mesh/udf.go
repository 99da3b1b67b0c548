package mesh

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha3"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// UDFType is the first octet of a Uniform Data Fingerprint and says what it is
// (draft-hallambaker-mesh-udf-13, Section 4).
type UDFType byte

// The types. Digest types have five compression levels: the base type is level 0.
const (
	UDFAuthenticator     UDFType = 0   // A: HMAC-SHA-2-512
	UDFAuthenticatorSHA3 UDFType = 1   // A: HMAC-SHA-3-512; nothing published uses it
	UDFEncryption        UDFType = 32  // E: symmetric key
	UDFEncryptionSign    UDFType = 33  // E: symmetric key for encryption and signature
	UDFDigestSHA3        UDFType = 80  // K: SHA-3-512 content digest, to 84
	UDFDigestSHA2        UDFType = 96  // M: SHA-2-512 content digest, to 100
	UDFNonce             UDFType = 104 // N: nonce
	UDFOID               UDFType = 112 // O: DER sequence
	UDFShare             UDFType = 144 // S: Shamir share
	UDFSeed              UDFType = 200 // Z: private key seed
)

// The precision of digests in bits, the 8 bits of the type included.
const (
	UDFBits    = 140 // 28 characters, what the Mesh writes
	MinUDFBits = 96
	MaxUDFBits = 440
)

// The content types that enter digests. The first is what all published fingerprints
// use; the draft says application/pkix-keyinfo.
const (
	ContentTypePKIXKey    = "PKIXKey"
	ContentTypeEncryption = "UDFEncryption"
	ContentTypePrivateKey = "PrivateKey"
)

// UDFText writes UDF octets, type octet first, as text: Base32 in groups of four
// characters. Unused bits of the last character are zero.
func UDFText(octets []byte) string { return group(base32Text(octets)) }

// UDFTextBits writes the first ceil(n/5) characters of UDFText, for digests. n counts the
// type octet and is from MinUDFBits to MaxUDFBits.
func UDFTextBits(octets []byte, n int) (string, error) {
	if n < MinUDFBits || n > MaxUDFBits {
		return "", fmt.Errorf("precision of %d bits: from %d to %d are possible", n, MinUDFBits, MaxUDFBits)
	}
	if n > 8*len(octets) {
		return "", fmt.Errorf("precision of %d bits: there are %d", n, 8*len(octets))
	}
	return group(base32Text(octets)[:(n+4)/5]), nil
}

// ParseUDF returns the octets of a UDF, type octet first. Dashes, blanks and tabs are
// skipped and lower case is accepted. Left-over bits are dropped, whatever they are:
// published seeds are not canonical, and some have a whole character too many.
func ParseUDF(text string) ([]byte, error) {
	out := make([]byte, 0, len(text)*5/8)
	var acc, n uint32
	for i := range len(text) {
		c := text[i]
		if c == '-' || c == ' ' || c == '\t' {
			continue
		}
		v := base32Value(c)
		if v < 0 {
			clear(out)
			return nil, fmt.Errorf("parse UDF: character %d is not Base32", i+1)
		}
		acc = acc<<5 | uint32(v)
		if n += 5; n >= 8 {
			n -= 8
			out = append(out, byte(acc>>n))
		}
	}
	if len(out) == 0 {
		return nil, errors.New("parse UDF: too short")
	}
	return out, nil
}

// base32Text encodes without padding or groups, and without table look-ups.
func base32Text(octets []byte) string {
	var b strings.Builder
	b.Grow((8*len(octets) + 4) / 5)
	var acc, n int
	emit := func(v int) {
		v &= 31
		b.WriteByte(byte(v + 'A' - ((25-v)>>8)&('A'-'2'+26))) // from 26 on: '2' + v - 26
	}
	for _, o := range octets {
		acc = (acc<<8 | int(o)) & 0xfff
		for n += 8; n >= 5; {
			n -= 5
			emit(acc >> n)
		}
	}
	if n > 0 {
		emit(acc << (5 - n))
	}
	return b.String()
}

// base32Value returns the value of a character of either case, -1 if it has none, in
// time that does not depend on it.
func base32Value(char byte) int {
	c, v := int(char), -1
	v += ((0x40 - c) & (c - 0x5b)) >> 8 & (c - 'A' + 1)
	v += ((0x60 - c) & (c - 0x7b)) >> 8 & (c - 'a' + 1)
	v += ((0x31 - c) & (c - 0x38)) >> 8 & (c - '2' + 26 + 1)
	return v
}

func group(s string) string {
	var b strings.Builder
	b.Grow(len(s) + len(s)/4)
	for len(s) > 4 {
		b.WriteString(s[:4])
		b.WriteByte('-')
		s = s[4:]
	}
	b.WriteString(s)
	return b.String()
}

// ContentDigest returns the 65 octets of a SHA-2-512 content digest: the type octet with
// its compression level, then the typed content digest value (draft-hallambaker-mesh-udf-13, Section 5.1).
func ContentDigest(data []byte, contentType string) []byte {
	inner := sha512.Sum512(data)
	outer := sha512.Sum512(typed(contentType, inner[:]))
	return compressed(UDFDigestSHA2, outer[:])
}

// ContentDigestSHA3 is ContentDigest with SHA-3-512.
func ContentDigestSHA3(data []byte, contentType string) []byte {
	inner := sha3.Sum512(data)
	outer := sha3.Sum512(typed(contentType, inner[:]))
	return compressed(UDFDigestSHA3, outer[:])
}

func typed(contentType string, data []byte) []byte {
	return append([]byte(contentType+":"), data...)
}

// compressed puts the type octet before a digest; the level tells how many zero bits the
// digest ends with.
func compressed(base UDFType, digest []byte) []byte {
	level := 0
	switch z := trailingZeroBits(digest); {
	case z >= 50:
		level = 4
	case z >= 40:
		level = 3
	case z >= 30:
		level = 2
	case z >= 20:
		level = 1
	}
	return append([]byte{byte(base) + byte(level)}, digest...)
}

func trailingZeroBits(b []byte) int {
	n := 0
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return n + bits.TrailingZeros8(b[i])
		}
		n += 8
	}
	return n
}

// Authenticator returns the 65 octets of an authenticator of data under a key, which is
// the text of a UDF with its dashes (draft-hallambaker-mesh-udf-13, Section 5.2).
func Authenticator(key string, data []byte, contentType string) ([]byte, error) {
	okm, err := hkdf.Key(sha512.New, []byte(key), []byte("KeyedUDFMaster"), "KeyedUDFExpand", sha512.Size)
	if err != nil {
		return nil, fmt.Errorf("derive authenticator key: %w", err)
	}
	defer clear(okm)
	digest := sha512.Sum512(data)
	mac := hmac.New(sha512.New, okm)
	mac.Write(typed(contentType, digest[:]))
	return mac.Sum([]byte{byte(UDFAuthenticator)}), nil
}

// SymmetricKeyUDF returns a symmetric key as text: E....
func SymmetricKeyUDF(key []byte) string { return typedText(UDFEncryption, key) }

// SymmetricKeyID returns the 140-bit identifier of a symmetric key, which begins EBQ. The
// key is hashed once, with its content type, not twice as content is.
func SymmetricKeyID(key []byte) string {
	digest := sha512.Sum512(typed(ContentTypeEncryption, key))
	return typedText(UDFEncryption, compressed(UDFDigestSHA2, digest[:]))[:udfTextLen]
}

// GenerateNonce returns a 128-bit nonce as text: N....
func GenerateNonce(rand io.Reader) (string, error) {
	var nonce [16]byte
	if _, err := io.ReadFull(rand, nonce[:]); err != nil {
		return "", fmt.Errorf("draw nonce: %w", err)
	}
	return typedText(UDFNonce, nonce[:]), nil
}

// typedText is the text of a type octet and data. The copy is wiped: data may be secret.
func typedText(t UDFType, data []byte) string {
	octets := append([]byte{byte(t)}, data...)
	defer clear(octets)
	return UDFText(octets)
}

const (
	udfChars    = UDFBits / 5               // 28
	udfTextLen  = udfChars + udfChars/4 - 1 // with dashes, 34
	udfMaxChars = (8*65 + 4) / 5            // 104
)

// NormalizeKeyID returns a key identifier in upper case and without dashes: a prefix of
// one of the Aliases of the key, if there is one. Fewer than 28 characters, more than the 104 of
// a whole digest, and characters outside Base32 are errors.
func NormalizeKeyID(id string) (string, error) {
	out := strings.ReplaceAll(id, "-", "")
	if len(out) < udfChars || len(out) > udfMaxChars {
		return "", fmt.Errorf("key id of %d characters: from %d to %d are expected", len(out), udfChars, udfMaxChars)
	}
	for i := range len(out) {
		if base32Value(out[i]) < 0 {
			return "", fmt.Errorf("key id: character %d is not Base32", i+1)
		}
	}
	return strings.ToUpper(out), nil // ASCII only, by now
}
