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

	TagKeyResealRequest       = "KeyResealRequest"
	TagKeyResealResponse      = "KeyResealResponse"
	TagKeyExportRequest       = "KeyExportRequest"
	TagKeyExportResponse      = "KeyExportResponse"
	TagTokenSetPINRequest     = "TokenSetPINRequest"
	TagTokenSetPINResponse    = "TokenSetPINResponse"
	TagTokenLockRequest       = "TokenLockRequest"
	TagTokenLockResponse      = "TokenLockResponse"
	TagDoctorRequest          = "DoctorRequest"
	TagDoctorResponse         = "DoctorResponse"
	TagAcceptRollbackRequest  = "AcceptRollbackRequest"
	TagAcceptRollbackResponse = "AcceptRollbackResponse"
)

// Reply is what every management response begins with. When Status is not 201 the
// other members are absent and StatusDescription says why.
type Reply struct {
	Status            int
	StatusDescription string `json:",omitzero"`
}

// Home says where a key goes, in requests that make one: exactly one of Token, which holds
// the key, and SealTo, which seals a key that is used in the agent's memory.
type Home struct {
	Token  string `json:",omitzero"`
	SealTo string `json:",omitzero"`
	PIN    string `json:",omitzero"` // "none", "once" or "always"; absent: as the token does, with SealTo "once"
	Touch  string `json:",omitzero"` // "never", "cached" or "always"; absent: as the token does
	PCRs   string `json:",omitzero"` // with SealTo: a selection such as "sha256:7,14"
	// Slot names the place in the token, where it has such: "9a" on a PIV card. Absent: as the token does.
	Slot string `json:",omitzero"`
	// OverwriteSlot says that what the slot holds may be lost.
	OverwriteSlot bool `json:",omitzero"`
}

// KeyGenerateRequest makes a key, with what OperationGenerate cannot say.
type KeyGenerateRequest struct {
	Home
	Algorithm string
	Use       string
	Label     string             `json:",omitzero"`
	ShareTo   []strictjson.Value `json:",omitzero"` // KeyData with an X25519 or X448 public key, for use split
	Tags      []string           `json:",omitzero"` // for use sign-assertion: of the bodies that the key signs
	Release   string             `json:",omitzero"` // for use decrypt on a curve: "seed" (default), "key" or "plaintext", the most that the key gives out
}

// KeyImportRequest imports the key in Key or, without Key, takes over the key in Slot.
type KeyImportRequest struct {
	Home
	Use        string
	Key        Binary             `json:",omitzero"` // the file: UDF seed, Mesh JSON, PKCS #8 PEM, OpenSSH, TSS2 PEM, or with UnwrapWith a DARE envelope
	Passphrase Binary             `json:",omitzero"` // of an encrypted OpenSSH key
	Algorithm  string             `json:",omitzero"`
	KeyName    string             `json:",omitzero"`
	Generation string             `json:",omitzero"` // "g1" (default) or "g2": how a seed derives, and which UDF is answered
	Label      string             `json:",omitzero"`
	UnwrapWith string             `json:",omitzero"` // KeyId of the key that opens the envelope in Key
	ShareTo    []strictjson.Value `json:",omitzero"`
	Tags       []string           `json:",omitzero"`
	Release    string             `json:",omitzero"`
}

// KeyResponse answers KeyGenerateRequest, KeyImportRequest, KeyDeleteRequest and KeyResealRequest.
type KeyResponse struct {
	Reply
	Key      *KeyInfo `json:",omitzero"`
	Warnings []string `json:",omitzero"` // for people, such as a seed below 16 octets
	Existed  bool     `json:",omitzero"` // import: it was here already
	// Recovery opens a key sealed to PCRs after these have changed. It is in this answer and
	// nowhere else.
	Recovery Binary `json:",omitzero"`
}

// KeyInfo describes a key to clients.
type KeyInfo struct {
	Udf        string
	UdfG2      string
	Algorithm  string
	Use        string
	Token      string
	Protection string // "token", "sealed (machine)", "sealed+PIN", "sealed+PCR" or "software"
	PIN        string `json:",omitzero"` // as in Home: the policies that were asked for, or that the token tells
	Touch      string `json:",omitzero"`
	PCRs       string `json:",omitzero"`
	Label      string `json:",omitzero"`
	PublicKey  PublicParameters
	Operations []string
	Imported   bool
	ShareTo    []string `json:",omitzero"` // UDFs of the recipients
	Tags       []string `json:",omitzero"` // of use sign-assertion
	Release    string   `json:",omitzero"` // "key" or "plaintext": that a key of use decrypt gives out no more; absent: the base seed too
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

// KeyResealRequest seals a key that is sealed to PCRs anew, to the PCRs as they are now.
type KeyResealRequest struct {
	KeyId    string
	PCRs     string `json:",omitzero"` // another selection
	Recovery Binary `json:",omitzero"` // where the PCRs have changed
}

// KeyExportRequest asks for the file of a key in a token, for other programs that use the
// same token. Nothing secret is in it.
type KeyExportRequest struct {
	KeyId  string
	Format string // "tss2"
}

// KeyExportResponse has the file.
type KeyExportResponse struct {
	Reply
	Key Binary `json:",omitzero"`
}

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
	Touches     int `json:",omitzero"` // how many it waits for
	Protection  string
	Parallel    int
	Algorithms  []string
	Operations  []string
}

// TokenUnlockRequest presents a token's PIN.
type TokenUnlockRequest struct {
	Token string
	PIN   Binary
	// LastTry says that the token's last try may be used up, where it has a guard against that.
	LastTry bool `json:",omitzero"`
}

// TokenSetPINRequest sets a token's PIN, or changes it from Old.
type TokenSetPINRequest struct {
	Token string
	PIN   Binary
	Old   Binary `json:",omitzero"`
}

// TokenLockRequest makes a token need its PIN again and wipes the keys that it had opened.
type TokenLockRequest struct{ Token string }

// DoctorRequest asks for what is wrong.
type DoctorRequest struct{}

// DoctorResponse says what is wrong and how to mend it.
type DoctorResponse struct {
	Reply
	Findings []Finding `json:",omitzero"`
}

// Finding is one thing that is so, in sentences for people.
type Finding struct {
	Severity string // "info", "warning" or "error"
	About    string // what it is about: "token tpm", "keys", "agent"
	Text     string
	Mend     string `json:",omitzero"` // what to do about it
}

// AcceptRollbackRequest accepts key records that are older than the rollback guard knows.
type AcceptRollbackRequest struct{}

// StatusRequest asks how the agent is.
type StatusRequest struct{}

// StatusResponse says how the agent is. Problems are sentences for people.
type StatusResponse struct {
	Reply
	Build    string   `json:",omitzero"`
	Features []string `json:",omitzero"` // that not every build has: "pkcs11"
	PID      int      `json:",omitzero"`
	Uptime   int      `json:",omitzero"` // seconds
	Socket   string   `json:",omitzero"`
	SSH      string   `json:",omitzero"`
	State    string   `json:",omitzero"` // the state folder
	Keys     int
	Tokens   []TokenInfo `json:",omitzero"`
	Problems []string    `json:",omitzero"`
	Prompt   *PromptInfo `json:",omitzero"` // absent if nothing asks for PINs
}

// PromptInfo says which program asks for PINs, and who waits for an answer.
type PromptInfo struct {
	Program string
	Waiting []PromptWait `json:",omitzero"`
}

// PromptWait is an operation that waits for a PIN.
type PromptWait struct {
	Token  string
	KeyId  string `json:",omitzero"` // the key's UDF; none for one that is not made yet, or what is about a token as a whole
	For    string // what is done, for people
	Client string // for people
	PID    int    // of the process that connected
}
