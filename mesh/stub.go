// Package mesh: STUB of the agreed API; its owner replaces this file.
package mesh

import (
	"io"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// Generation is the wire generation of Mesh data.
type Generation uint8

const (
	G1 Generation = iota + 1
	G2
)

func ParseGeneration(s string) (Generation, error) { panic("stub") } // "g1", "g2", exactly

// Fingerprint returns the 140-bit UDF text of a public key (28 characters with dashes).
func Fingerprint(pub token.PublicKey, g Generation) (string, error) { panic("stub") }

// FingerprintOctets returns type octet and the 64 digest octets, for prefix matching of longer aliases.
func FingerprintOctets(pub token.PublicKey, g Generation) ([]byte, error) { panic("stub") }

// NormalizeKeyID upper-cases, drops dashes; error unless Base32 alphabet and >= 28 characters.
func NormalizeKeyID(id string) (string, error) { panic("stub") }

// Curve / Algorithm mapping helpers.
func CurveOf(a token.Algorithm) (keyshare.Curve, bool) { panic("stub") }

// PublicOf computes the public key of a private one. ErrBadKey wrapped for what is not a key.
func PublicOf(k *token.PrivateKey) (token.PublicKey, error) { panic("stub") }

// Parameters converts to and from the wire form. X25519 accepts 32 or 33 octets. Points are checked.
func Parameters(pub token.PublicKey) PublicParameters                       { panic("stub") }
func (p PublicParameters) PublicKey() (token.PublicKey, error)              { panic("stub") }
func ParseKeyDataPublic(data []byte) (token.PublicKey, error)               { panic("stub") } // KeyData JSON (tagged or bare) -> public key; refuses private parts and a Udf that disagrees
func MarshalKeyDataPublic(pub token.PublicKey, g Generation) []byte         { panic("stub") } // {"KeyData":{...}}
func MarshalKeyDataScalar(a token.Algorithm, scalar []byte) ([]byte, error) { panic("stub") } // {"KeyData":{... PrivateKeyECDH crv "X448z"}}

// KEK, unwrap, content keys: crypto.md 5.7, schema.md 5.
func UnwrapSeed(agreement *keyshare.Point, info string, wrapped []byte) (seed []byte, err error) {
	panic("stub")
}                                                                           // one error: token.ErrDecrypt
func ContentKeys(seed, salt []byte, enc string) (key, iv []byte, err error) { panic("stub") } // enc "A256CBC" | "A256GCM"

// Envelope is a DARE envelope in JSON form.
type Envelope struct {
	Header  Header
	Body    []byte // payload octets, the ciphertext if encrypted
	Trailer []byte // raw JSON, nil if absent
}
type Header struct {
	Encryption string `json:"enc"`
	Salt       Binary
	Recipients []Recipient `json:"recipients"`
	// ... and the rest
}
type Recipient struct {
	KeyID        string           `json:"kid"`
	EphemeralKey PublicParameters `json:"epk"`
	WrappedKey   Binary           `json:"wmk"`
}

func ParseEnvelope(data []byte) (*Envelope, error)                 { panic("stub") }
func (e *Envelope) Marshal() ([]byte, error)                       { panic("stub") }
func (e *Envelope) Open(seed []byte) (plaintext []byte, err error) { panic("stub") } // one error: token.ErrDecrypt
func Encrypt(rand io.Reader, plaintext []byte, contentType string, recipients ...token.PublicKey) (*Envelope, error) {
	panic("stub") // A256GCM? decide with PROTOCOL.md 4; default as published A256CBC
}
