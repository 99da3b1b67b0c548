package mesh

import "github.com/mesh-agent/mesh-agent/internal/strictjson"

// Binary is octets in base64url; see strictjson.Binary.
type Binary = strictjson.Binary

// Tagged is an object of one member whose name is its type.
type Tagged = strictjson.Tagged

// The tags of messages and of operations and their results. Those of the first group
// are the Mesh's own (draft-hallambaker-mesh-protocol, Section 7.6); the second group is
// this agent's extension.
const (
	TagHelloRequest       = "HelloRequest"
	TagMeshHelloResponse  = "MeshHelloResponse"
	TagOperateRequest     = "OperateRequest"
	TagOperateResponse    = "OperateResponse"
	TagOperationAgreement = "CryptographicOperationKeyAgreement"
	TagOperationSign      = "CryptographicOperationSign"
	TagOperationGenerate  = "CryptographicOperationGenerate"
	TagOperationShare     = "CryptographicOperationShare"
	TagResultAgreement    = "CryptographicResultKeyAgreement"
	TagResultSign         = "CryptographicResultSign"
	TagResultGenerate     = "CryptographicResultGenerate"
	TagResultShare        = "CryptographicResultShare"
	TagResult             = "CryptographicResult"
	TagOperationDecrypt   = "CryptographicOperationDecrypt"
	TagResultDecrypt      = "CryptographicResultDecrypt"
)

// StatusOK is the Status of what succeeded.
const StatusOK = 201

// HelloRequest asks what the agent is and supports.
type HelloRequest struct{}

// MeshHelloResponse answers HelloRequest.
type MeshHelloResponse struct {
	Status     int
	Version    Version
	Operations []string
	Build      string
}

// Version is a protocol version.
type Version struct {
	Major     int
	Minor     int
	Encodings []string
}

// OperateRequest carries one or many operations.
type OperateRequest struct {
	AccountAddress string   `json:",omitzero"` // ignored
	Operations     []Tagged // each one of the CryptographicOperation types
}

// OperateResponse answers OperateRequest. Results[i] answers Operations[i].
type OperateResponse struct {
	Status            int
	StatusDescription string   `json:",omitzero"`
	Results           []Tagged `json:",omitzero"`
}

// PublicKeyECDH is a public key or point on one of the seven curves.
type PublicKeyECDH struct {
	Curve  string `json:"crv"`
	Public Binary
}

// PublicParameters is the tagged choice of public key; exactly one member is set. A kind that is not known here is kept in Other
// and is no key: envelopes may have recipients and signers with such keys beside others.
type PublicParameters struct {
	PublicKeyECDH *PublicKeyECDH `json:",omitzero"`
	PublicKeyRSA  *PublicKeyRSA  `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// PublicKeyRSA is an RSA public key in the JOSE names (RFC 7518, 6.3.1), big endian.
type PublicKeyRSA struct {
	KeyID string `json:"kid,omitzero"`
	N     Binary `json:"n"`
	E     Binary `json:"e"`
}

// OperationKeyAgreement asks for a whole or partial agreement.
type OperationKeyAgreement struct {
	KeyId          string
	PublicKey      PublicParameters
	KeyCoefficient Binary `json:",omitzero"` // scalar in the curve's encoding, 1 <= c < L
	PIN            Binary `json:",omitzero"` // of the key's token, for a key that asks for it each time
}

// OperationSign asks for a signature over Data, the message itself.
type OperationSign struct {
	KeyId string
	Data  Binary
	Mode  string `json:",omitzero"` // Ed25519: "mesh" (default) or "pure"; RSA: "pss", else PKCS #1 v1.5
	PIN   Binary `json:",omitzero"` // as of OperationKeyAgreement
}

// OperationGenerate asks for a new key.
type OperationGenerate struct {
	Algorithm string
	Use       string
	Token     string
}

// OperationShare asks a key of use split for its shares.
type OperationShare struct {
	KeyId     string
	Threshold int
	Shares    int
}

// OperationDecrypt asks to open one recipient entry of a DARE envelope, a whole envelope, or an RSA
// ciphertext. Exactly one of Recipient, Envelope and RSA is set.
type OperationDecrypt struct {
	KeyId     string
	Recipient *DecryptRecipient `json:",omitzero"`
	Envelope  strictjson.Value  `json:",omitzero"` // the array of a DARE envelope, with Release "plaintext"
	RSA       *DecryptRSA       `json:",omitzero"`
	PIN       Binary            `json:",omitzero"` // as of OperationKeyAgreement
	// Only with Recipient or Envelope:
	Partials []PublicParameters `json:",omitzero"` // signed points of the other share holders
	Info     string             `json:",omitzero"` // HKDF info of the key encryption key
	Release  string             `json:",omitzero"` // with Recipient "seed" (default) or "key", with Envelope "plaintext"
	Salt     Binary             `json:",omitzero"` // with Release "key"
	Signers  []PublicParameters `json:",omitzero"` // with Envelope: whose signature is wanted; one of them must be there and good
}

// DecryptRecipient is the part of a DARE recipient entry that decryption needs.
type DecryptRecipient struct {
	EphemeralKey PublicParameters `json:"epk"`
	WrappedKey   Binary           `json:"wmk"`
}

// DecryptRSA is what decryption with an RSA key needs.
type DecryptRSA struct {
	Padding    string // "oaep-sha1", "oaep-sha256", "oaep-sha384", "oaep-sha512" or "pkcs1"
	Ciphertext Binary // as long as the modulus
	Label      Binary `json:",omitzero"` // of OAEP
	Length     int    `json:",omitzero"` // with "pkcs1": how many octets the plaintext has
}

// Failure is the body of every result whose Status is not 201.
type Failure struct {
	Status int
	Error  string
}

// ResultKeyAgreement answers OperationKeyAgreement.
type ResultKeyAgreement struct {
	Status       int
	KeyAgreement KeyAgreement
}

// KeyAgreement is the tagged choice of agreement results.
type KeyAgreement struct {
	KeyAgreementECDH KeyAgreementECDH
}

// KeyAgreementECDH is the agreement in signed form: 33, 57, 32, 57, 65, 97, 133 octets.
type KeyAgreementECDH struct {
	Curve  string
	Result Binary
}

// ResultSign answers OperationSign.
type ResultSign struct {
	Status    int
	Signature Binary
}

// ResultGenerate answers OperationGenerate.
type ResultGenerate struct {
	Status    int
	KeyId     string
	PublicKey PublicParameters
}

// ResultShare answers OperationShare.
type ResultShare struct {
	Status int
	Shares []ResultShareItem
}

// ResultShareItem is one share, in an envelope that only its recipient opens.
type ResultShareItem struct {
	X         int `json:",omitzero"`
	Recipient string
	PublicKey PublicParameters
	Envelope  strictjson.Value
}

// ResultDecrypt answers OperationDecrypt: Seed, or Key and IV; or Plaintext and what follows it; or Key
// alone, the plaintext of an RSA ciphertext.
type ResultDecrypt struct {
	Status      int
	Seed        Binary   `json:",omitzero"`
	Key         Binary   `json:",omitzero"`
	IV          Binary   `json:",omitzero"`
	Plaintext   Binary   `json:",omitzero"`
	ContentType string   `json:",omitzero"` // what the header says, which nobody signs
	Signature   string   `json:",omitzero"` // of Plaintext: one of the constants below
	SignedBy    []string `json:",omitzero"` // UDFs of the keys whose signatures were verified, each in its signature's generation
}

// What ResultDecrypt says of the signatures of an envelope.
const (
	SignatureNone       = "none"       // there is none
	SignatureVerified   = "verified"   // by the keys in SignedBy
	SignatureUnverified = "unverified" // there is one, by nobody whose key is known
)

// Wipe overwrites the secrets.
func (r ResultDecrypt) Wipe() {
	wipeAll([]Binary{r.Seed, r.Key, r.IV, r.Plaintext})
}
