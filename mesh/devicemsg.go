package mesh

import (
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
)

// The tags of operations on Mesh data and of messages about devices and accounts. All are this
// agent's own; they exist on the Mesh socket only.
const (
	TagOperationSignEnvelope = "CryptographicOperationSignEnvelope"
	TagResultSignEnvelope    = "CryptographicResultSignEnvelope"
	TagOperationAuthenticate = "CryptographicOperationAuthenticate"
	TagResultAuthenticate    = "CryptographicResultAuthenticate"

	TagDeviceInitRequest        = "DeviceInitRequest"
	TagDeviceInitResponse       = "DeviceInitResponse"
	TagDeviceShowRequest        = "DeviceShowRequest"
	TagDeviceShowResponse       = "DeviceShowResponse"
	TagDeviceConnectRequest     = "DeviceConnectRequest"
	TagDeviceConnectResponse    = "DeviceConnectResponse"
	TagDeviceWitnessRequest     = "DeviceWitnessRequest"
	TagDeviceWitnessResponse    = "DeviceWitnessResponse"
	TagDeviceApproveRequest     = "DeviceApproveRequest"
	TagDeviceApproveResponse    = "DeviceApproveResponse"
	TagDeviceActivateRequest    = "DeviceActivateRequest"
	TagDeviceActivateResponse   = "DeviceActivateResponse"
	TagDeviceDisconnectRequest  = "DeviceDisconnectRequest"
	TagDeviceDisconnectResponse = "DeviceDisconnectResponse"

	TagAccountInitRequest         = "AccountInitRequest"
	TagAccountInitResponse        = "AccountInitResponse"
	TagAccountListRequest         = "AccountListRequest"
	TagAccountListResponse        = "AccountListResponse"
	TagAccountPINRequest          = "AccountPINRequest"
	TagAccountPINResponse         = "AccountPINResponse"
	TagAccountAcknowledgeRequest  = "AccountAcknowledgeRequest"
	TagAccountAcknowledgeResponse = "AccountAcknowledgeResponse"
	TagAccountConnectRequest      = "AccountConnectRequest"
	TagAccountConnectResponse     = "AccountConnectResponse"
	TagAccountGrantRequest        = "AccountGrantRequest"
	TagAccountGrantResponse       = "AccountGrantResponse"
	TagAccountRevokeRequest       = "AccountRevokeRequest"
	TagAccountRevokeResponse      = "AccountRevokeResponse"
	TagAccountEscrowRequest       = "AccountEscrowRequest"
	TagAccountEscrowResponse      = "AccountEscrowResponse"
	TagAccountForgetRequest       = "AccountForgetRequest"
	TagAccountForgetResponse      = "AccountForgetResponse"
)

// OperationSignEnvelope asks for a signed DARE envelope around Body, which is one tagged
// object in JSON or JSON-B. A key of use sign-assertion signs only tags that it was made for.
type OperationSignEnvelope struct {
	KeyId      string
	Body       Binary
	Recipients []strictjson.Value `json:",omitzero"` // public KeyData: the body is encrypted to each
	Generation string             `json:",omitzero"` // "g1" (default) or "g2"
	IncludeKey bool               `json:",omitzero"` // the public key stands beside the signature
	PIN        Binary             `json:",omitzero"` // as of OperationKeyAgreement
}

// ResultSignEnvelope answers OperationSignEnvelope.
type ResultSignEnvelope struct {
	Status   int
	Envelope strictjson.Value
}

// OperationAuthenticate asks for the keys of a session with a service that has shown its
// own key.
type OperationAuthenticate struct {
	KeyId     string
	PublicKey PublicParameters // the service's ephemeral key, on the curve of the key
	// Agreement is the first agreement, of the client's ephemeral key and the service's key, which the client
	// computed: 32, 48, 56, 57 or 66 octets.
	Agreement Binary
	PIN       Binary `json:",omitzero"` // as of OperationKeyAgreement
}

// ResultAuthenticate answers OperationAuthenticate: two AES-256 keys, by who sends.
type ResultAuthenticate struct {
	Status    int
	Initiator Binary
	Responder Binary
}

// Wipe overwrites the keys.
func (r ResultAuthenticate) Wipe() { wipeAll([]Binary{r.Initiator, r.Responder}) }

// DeviceInitRequest makes the device's identity. Token alone holds all keys if it is
// software, SealTo alone seals them; a token with keys of its own holds the two for
// agreement, and SealTo, by default the same token, seals the other.
type DeviceInitRequest struct {
	Home
	Generation  string           `json:",omitzero"` // "g1" (default) or "g2"
	Algorithm   string           `json:",omitzero"` // of the agreement keys that Token makes; default: the first it has of X448, X25519, P256, P384, P521
	Description string           `json:",omitzero"` // goes into the profile, for everybody to read
	Seed        Binary           `json:",omitzero"` // text of an existing device's seed (Z...)
	Profile     strictjson.Value `json:",omitzero"` // that device's enveloped ProfileDevice, instead of a new one
}

// Wipe overwrites the seed.
func (r *DeviceInitRequest) Wipe() { clear(r.Seed) }

// DeviceResponse answers DeviceInitRequest and DeviceShowRequest.
type DeviceResponse struct {
	Reply
	Device *DeviceInfo `json:",omitzero"`
}

// DeviceInfo describes the device's identity.
type DeviceInfo struct {
	Udf        string
	Generation string
	// Tier is "token" if the base keys for agreement are made in a token, "sealed" or
	// "software".
	Tier     string
	Notes    []string `json:",omitzero"` // what holds of such a device, in sentences for people
	Profile  strictjson.Value
	Keys     []NamedKey
	Approved []AccountName   `json:",omitzero"` // accounts that may activate the device
	Requests []DeviceRequest `json:",omitzero"` // which wait for an answer
	Accounts []DeviceAccount `json:",omitzero"` // to which the device is connected
}

// NamedKey is a key of the agent with what it is for.
type NamedKey struct {
	Name       string // such as Encryption, MMM_Contact, ClientKey
	Udf        string
	UdfG2      string `json:",omitzero"` // absent if the key is gone
	Algorithm  string
	Use        string
	Release    string `json:",omitzero"` // as in KeyInfo
	Token      string
	Protection string
}

// AccountName names an account.
type AccountName struct {
	Udf     string
	Address string `json:",omitzero"`
}

// DeviceRequest is a request for connection that the device made.
type DeviceRequest struct {
	MessageId string
	Account   string // address
	Created   time.Time
}

// DeviceAccount is a connection of the device to an account.
type DeviceAccount struct {
	AccountName
	Generation        string
	Roles             []string `json:",omitzero"`
	Keys              []NamedKey
	Profile           strictjson.Value // enveloped ProfileUser
	ConnectionDevice  strictjson.Value // enveloped
	ConnectionService strictjson.Value
}

// DeviceShowRequest asks for the device's identity.
type DeviceShowRequest struct{}

// DeviceConnectRequest makes a request for connection to the account of an address.
type DeviceConnectRequest struct {
	Account string
	PIN     Binary `json:",omitzero"` // text: A... or E...
}

// Wipe overwrites the PIN.
func (r *DeviceConnectRequest) Wipe() { clear(r.PIN) }

// DeviceConnectResponse has the request.
type DeviceConnectResponse struct {
	Reply
	MessageId string           `json:",omitzero"`
	Request   strictjson.Value `json:",omitzero"` // enveloped RequestConnection
}

// DeviceWitnessRequest asks for the witness of a request that was acknowledged.
type DeviceWitnessRequest struct {
	ConnectResponse strictjson.Value // {EnvelopedAcknowledgeConnection, EnvelopedProfileAccount}
}

// DeviceWitnessResponse has the words to compare with the other side, and the account that is
// approved by DeviceApproveRequest if they are the same.
type DeviceWitnessResponse struct {
	Reply
	Witness string      `json:",omitzero"`
	Account AccountName `json:",omitzero"`
}

// DeviceApproveRequest approves an account: it may activate the device from now on.
type DeviceApproveRequest struct {
	Account string // UDF of its profile, at least 28 characters
	Address string `json:",omitzero"` // a label
	Revoke  bool   `json:",omitzero"` // it may no more
}

// CatalogFrame says where in the account's catalog of devices an entry stood.
type CatalogFrame struct {
	Index int64
	Tree  Binary `json:",omitzero"`
}

// DeviceActivateRequest takes a connection to an approved account into use, or a newer one.
type DeviceActivateRequest struct {
	Catalog      strictjson.Value   // enveloped RespondConnection, CatalogedDevice or enveloped DeviceRevocation
	Update       bool               `json:",omitzero"` // only for an account to which the device is connected
	Confirm      bool               `json:",omitzero"` // although nothing shows that it is newer
	Applications []strictjson.Value `json:",omitzero"` // entries of the account's catalog of applications
	Accept       []string           `json:",omitzero"` // UDFs of application keys that a person accepts
	Unsolicited  bool               `json:",omitzero"` // an answer to no request of this device, as one that was preconfigured gets
	AllowUnnamed bool               `json:",omitzero"` // connections before May 2022 do not name the account
	InsideOnly   bool               `json:",omitzero"` // the device's combined key has use seal: it opens activations only, for no client; updates keep to it
	Release      string             `json:",omitzero"` // "seed" (default), "key" or "plaintext", the most that the device's combined key gives out; updates give no more
	Frame        *CatalogFrame      `json:",omitzero"`
}

// DeviceActivateResponse says what the device is and has now.
type DeviceActivateResponse struct {
	Reply
	Account DeviceAccount `json:",omitzero"`
	Revoked bool          `json:",omitzero"` // the device is no more connected
	Refused []string      `json:",omitzero"` // keys that were not taken and why, in sentences for people
}

// DeviceDisconnectRequest deletes what the device has of an account.
type DeviceDisconnectRequest struct{ Account string }

// AccountInitRequest makes an account whose administrator this agent is, or from Shares
// takes one over again.
type AccountInitRequest struct {
	Home
	Address    string           `json:",omitzero"`
	Generation string           `json:",omitzero"` // "g1" (default) or "g2"
	Shares     int              `json:",omitzero"` // of the escrow, default 3; 0 with Recover
	Threshold  int              `json:",omitzero"` // default 2
	Recover    []Binary         `json:",omitzero"` // texts of escrow shares, of an account that exists
	Profile    strictjson.Value `json:",omitzero"` // with Recover: its enveloped ProfileUser
}

// Wipe overwrites the shares.
func (r *AccountInitRequest) Wipe() { wipeAll(r.Recover) }

// AccountInitResponse has the escrow shares, which are in this answer and nowhere else.
type AccountInitResponse struct {
	Reply
	Account *AccountInfo `json:",omitzero"`
	Shares  []Binary     `json:",omitzero"` // texts, S...
}

// Wipe overwrites the shares.
func (r AccountInitResponse) Wipe() { wipeAll(r.Shares) }

// AccountInfo describes an account that this agent administers.
type AccountInfo struct {
	AccountName
	Generation string
	Profile    strictjson.Value // enveloped ProfileUser
	Keys       []NamedKey
	Devices    []AccountDevice `json:",omitzero"`
	// Applications are the entries for the catalog of applications, by which devices confirm their keys.
	// They hold public keys, and the private ones for decryption encrypted to the account's escrow key.
	Applications []strictjson.Value `json:",omitzero"`
}

// AccountDevice is a device of an account.
type AccountDevice struct {
	Udf     string
	Roles   []string `json:",omitzero"`
	Revoked bool     `json:",omitzero"`
	// Of a device that AccountListRequest names: the public KeyData of its combined key, and its CatalogedDevice.
	Encryption strictjson.Value `json:",omitzero"`
	Entry      strictjson.Value `json:",omitzero"`
}

// AccountListRequest asks for all accounts, or for one with its applications, or for one device of one
// with its entry.
type AccountListRequest struct {
	Account string `json:",omitzero"`
	Device  string `json:",omitzero"` // UDF, at least 28 characters
	After   string `json:",omitzero"` // Next of the page before
}

// AccountListResponse lists accounts by their UDFs, each with its devices by theirs. An account that goes on
// on the next page is there again with what it has further.
type AccountListResponse struct {
	Reply
	Accounts []AccountInfo `json:",omitzero"`
	Next     string        `json:",omitzero"` // After of the next page; empty if this is the last one
}

// AccountPINRequest makes a PIN for one device. Account may be absent where there is one only.
type AccountPINRequest struct {
	Account string `json:",omitzero"`
	Hours   int    `json:",omitzero"` // how long it is good, default 24
}

// AccountPINResponse has the PIN, which is in this answer and nowhere else.
type AccountPINResponse struct {
	Reply
	PIN     Binary      `json:",omitzero"` // text: A...
	Account AccountName `json:",omitzero"`
}

// Wipe overwrites the PIN.
func (r AccountPINResponse) Wipe() { clear(r.PIN) }

// AccountAcknowledgeRequest answers a device's request so that both sides get a witness.
type AccountAcknowledgeRequest struct {
	Account string `json:",omitzero"`
	Request strictjson.Value
}

// AccountAcknowledgeResponse has what the device needs, and the witness.
type AccountAcknowledgeResponse struct {
	Reply
	ConnectResponse strictjson.Value `json:",omitzero"`
	Witness         string           `json:",omitzero"`
	Device          string           `json:",omitzero"` // UDF
}

// AccountConnectRequest connects the device of a request. The request proves a PIN, or the
// administrator compared the witness or the device's UDF with what the device shows.
type AccountConnectRequest struct {
	Account    string           `json:",omitzero"`
	Request    strictjson.Value // enveloped RequestConnection
	Witness    string           `json:",omitzero"`
	Device     string           `json:",omitzero"` // UDF, at least 28 characters
	Roles      []string         `json:",omitzero"`
	Super      bool             `json:",omitzero"` // hands over the account's seed
	Administer bool             `json:",omitzero"` // grants the administrator's key
	NoCommon   bool             `json:",omitzero"` // does not grant the account's keys
	Stores     []string         `json:",omitzero"` // grants these stores' keys
	// NoApplications leaves out the keys of applications that a device had which is connected again.
	NoApplications bool `json:",omitzero"`
	ApplicationGrants
}

// ApplicationGrants names applications of the account whose keys a device gets. Those that the account has not are made: RSA
// keys, since the Mesh has no others for these applications.
type ApplicationGrants struct {
	GrantSsh  bool     `json:",omitzero"` // the account's key for SSH, the same on all devices
	GrantMail []string `json:",omitzero"` // the keys for S/MIME and OpenPGP of these addresses
}

// AccountGrantRequest gives keys of applications to a device that is connected. The answer is an
// AccountConnectResponse: the connection stays, with more applications.
type AccountGrantRequest struct {
	Account string `json:",omitzero"`
	Device  string // UDF, at least 28 characters
	ApplicationGrants
}

// AccountConnectResponse has the answer for the device, and its entry for the catalog, which is
// what the answer holds.
type AccountConnectResponse struct {
	Reply
	Response strictjson.Value `json:",omitzero"` // enveloped RespondConnection
	// CatalogedDevice is absent where a frame does not hold both; it is the Entry of an AccountListRequest then.
	CatalogedDevice strictjson.Value `json:",omitzero"`
	Account         string           `json:",omitzero"` // UDF
	Device          string           `json:",omitzero"` // UDF
	// Applications are the Identifiers of the applications whose keys the entry has.
	Applications []string `json:",omitzero"`
}

// AccountRevokeRequest ends the connection of a device.
type AccountRevokeRequest struct {
	Account string `json:",omitzero"`
	Device  string // UDF, at least 28 characters
}

// AccountRevokeResponse has the signed statement by which the device learns of it.
type AccountRevokeResponse struct {
	Reply
	Revocation strictjson.Value `json:",omitzero"` // enveloped DeviceRevocation
}

// AccountEscrowRequest splits the account's seed into new shares.
type AccountEscrowRequest struct {
	Account   string `json:",omitzero"`
	Shares    int    `json:",omitzero"`
	Threshold int    `json:",omitzero"`
}

// AccountForgetRequest deletes the account's seed after a look whether escrow shares give it back. The
// account's keys stay.
type AccountForgetRequest struct {
	Account string   `json:",omitzero"`
	Recover []Binary // texts of escrow shares, as many as are needed
}

// Wipe overwrites the shares.
func (r *AccountForgetRequest) Wipe() { wipeAll(r.Recover) }

func wipeAll(secrets []Binary) {
	for _, s := range secrets {
		clear(s)
	}
}
