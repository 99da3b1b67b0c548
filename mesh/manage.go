package mesh

import "github.com/mesh-agent/mesh-agent/internal/strictjson"

// The tags of this agent's own management messages. They exist on the Mesh socket only.
const (
	TagKeyGenerateRequest  = "KeyGenerateRequest"
	TagKeyGenerateResponse = "KeyGenerateResponse"
	TagKeyImportRequest    = "KeyImportRequest"
	TagKeyImportResponse   = "KeyImportResponse"
	TagKeyListRequest      = "KeyListRequest"
	TagKeyListResponse     = "KeyListResponse"
	TagKeyDeleteRequest    = "KeyDeleteRequest"
	TagKeyDeleteResponse   = "KeyDeleteResponse"
	TagTokenListRequest    = "TokenListRequest"
	TagTokenListResponse   = "TokenListResponse"
	TagTokenUnlockRequest  = "TokenUnlockRequest"
	TagTokenUnlockResponse = "TokenUnlockResponse"
	TagStatusRequest       = "StatusRequest"
	TagStatusResponse      = "StatusResponse"
)

// Reply is what every management response begins with. When Status is not 201 the
// other members are absent and StatusDescription says why.
type Reply struct {
	Status            int
	StatusDescription string `json:",omitzero"`
}

// KeyGenerateRequest makes a key, with what OperationGenerate cannot say.
type KeyGenerateRequest struct {
	Token     string
	Algorithm string
	Use       string
	Label     string             `json:",omitzero"`
	ShareTo   []strictjson.Value `json:",omitzero"` // KeyData with an X25519 or X448 public key, for use split
}

// KeyImportRequest imports the key in Key.
type KeyImportRequest struct {
	Token      string
	Use        string
	Key        Binary             // the file: UDF seed, Mesh JSON, PKCS #8 PEM, OpenSSH, or with UnwrapWith a DARE envelope
	Passphrase Binary             `json:",omitzero"` // of an encrypted OpenSSH key
	Algorithm  string             `json:",omitzero"`
	KeyName    string             `json:",omitzero"`
	Generation string             `json:",omitzero"` // "g1" (default) or "g2": how a seed derives, and which UDF is answered
	Label      string             `json:",omitzero"`
	UnwrapWith string             `json:",omitzero"` // KeyId of the key that opens the envelope in Key
	ShareTo    []strictjson.Value `json:",omitzero"`
}

// KeyResponse answers KeyGenerateRequest and KeyImportRequest.
type KeyResponse struct {
	Reply
	Key      *KeyInfo `json:",omitzero"`
	Warnings []string `json:",omitzero"` // for people, such as a seed below 16 octets
	Existed  bool     `json:",omitzero"` // import: it was here already
}

// KeyInfo describes a key to clients.
type KeyInfo struct {
	Udf        string
	UdfG2      string
	Algorithm  string
	Use        string
	Token      string
	Protection string
	Label      string `json:",omitzero"`
	PublicKey  PublicParameters
	Operations []string
	Imported   bool
	ShareTo    []string `json:",omitzero"` // UDFs of the recipients
	State      string   `json:",omitzero"` // absent if the key is in order, else "unverified", "unreadable: ...", "token absent"
}

// KeyListRequest lists keys, a page at a time.
type KeyListRequest struct {
	KeyId string `json:",omitzero"` // one key only
	After string `json:",omitzero"` // Udf of the last key of the page before
	Limit int    `json:",omitzero"`
}

// KeyListResponse is one page. More says that there are further keys.
type KeyListResponse struct {
	Reply
	Keys []KeyInfo `json:",omitzero"`
	More bool      `json:",omitzero"`
}

// KeyDeleteRequest deletes a key for good.
type KeyDeleteRequest struct{ KeyId string }

// TokenListRequest lists the tokens.
type TokenListRequest struct{}

// TokenListResponse lists the tokens.
type TokenListResponse struct {
	Reply
	Tokens []TokenInfo `json:",omitzero"`
}

// TokenInfo describes a token to clients.
type TokenInfo struct {
	Name        string
	Kind        string
	Description string
	State       string
	Protection  string
	Parallel    int
	Algorithms  []string
	Operations  []string
}

// TokenUnlockRequest presents a token's PIN.
type TokenUnlockRequest struct {
	Token string
	PIN   Binary
}

// StatusRequest asks how the agent is.
type StatusRequest struct{}

// StatusResponse says how the agent is. Problems are sentences for people.
type StatusResponse struct {
	Reply
	Build    string `json:",omitzero"`
	PID      int    `json:",omitzero"`
	Uptime   int    `json:",omitzero"` // seconds
	Socket   string `json:",omitzero"`
	SSH      string `json:",omitzero"`
	State    string `json:",omitzero"` // the state folder
	Keys     int
	Tokens   []TokenInfo `json:",omitzero"`
	Problems []string    `json:",omitzero"`
}
