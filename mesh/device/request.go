package device

import (
	"context"
	"crypto/hmac"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// The tags of messages about connections.
const (
	TagRequestConnection     = "RequestConnection"
	TagAcknowledgeConnection = "AcknowledgeConnection"
)

// ErrRequest says that a message about a connection is not well formed.
var ErrRequest = errors.New("bad request for connection")

// ErrPIN says that a request's proof of a PIN is missing or wrong.
var ErrPIN = errors.New("request does not prove the PIN")

const (
	nonceLen  = 16
	pinLen    = 15 // octets of a new PIN, 120 bits
	pinAction = "Device"

	maxMessageID = 128 // characters; they have 34
)

// RequestConnection asks for a device to be connected to an account. Its envelope is not
// signed: it shows whose profile this is, not that the device sent it. The PIN, or
// people who compare the witness on both sides, show that.
type RequestConnection struct {
	MessageID   string
	Account     string         // address
	Profile     *ProfileDevice // validated
	ClientNonce []byte         // 16 octets
	PinID       string         // which PIN; empty without
	PinWitness  []byte         // 64 octets
	envelope    *mesh.Envelope
}

type wireRequest struct {
	MessageID         string         `json:"MessageId,omitzero"`
	AuthenticatedData *mesh.Envelope `json:",omitzero"` // the profile
	ClientNonce       mesh.Binary    `json:",omitzero"`
	PinID             string         `json:"PinId,omitzero"`
	PinWitness        mesh.Binary    `json:",omitzero"`
	AccountAddress    string         `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// NewRequestConnection makes a request, with proof of a PIN unless it is empty.
func NewRequestConnection(rand io.Reader, profile *ProfileDevice, account, pin string) (*RequestConnection, error) {
	id, err := mesh.GenerateNonce(rand)
	if err != nil {
		return nil, err
	}
	r := &RequestConnection{MessageID: id, Account: account, Profile: profile, ClientNonce: make([]byte, nonceLen)}
	if _, err := io.ReadFull(rand, r.ClientNonce); err != nil {
		return nil, fmt.Errorf("draw nonce: %w", err)
	}
	if pin != "" {
		salted, err := saltPIN(pin)
		if err != nil {
			return nil, err
		}
		defer clear(salted)
		r.PinID, r.PinWitness = pinID(salted, account), r.pinWitness(salted, account)
	}
	return r, r.seal()
}

// seal puts the request into its envelope.
func (r *RequestConnection) seal() error {
	body, err := strictjson.Marshal(map[string]wireRequest{TagRequestConnection: {
		MessageID: r.MessageID, AuthenticatedData: r.Profile.Envelope, ClientNonce: r.ClientNonce,
		PinID: r.PinID, PinWitness: r.PinWitness, AccountAddress: r.Account,
	}})
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	r.envelope, err = messageEnvelope(body, TagRequestConnection, r.MessageID)
	return err
}

func messageEnvelope(body []byte, tag, id string) (*mesh.Envelope, error) {
	envelopeID, err := EnvelopeID(id)
	if err != nil {
		return nil, err
	}
	return mesh.NewEnvelope(context.Background(), body, mesh.EnvelopeOptions{ // nothing waits: no signer
		ID: envelopeID,
		Meta: mesh.ContentMeta{
			UniqueID: id, MessageType: tag, ContentType: mesh.ContentTypeMessage, Created: time.Now().UTC().Truncate(time.Second),
		},
	})
}

// Envelope returns the request as it is sent.
func (r *RequestConnection) Envelope() *mesh.Envelope { return r.envelope }

// ParseRequestConnection reads a request, in its envelope or as a bare tagged object, and
// validates the profile in it at a time. PIN and witness are not checked.
func ParseRequestConnection(data []byte, now time.Time) (*RequestConnection, error) {
	body, e, err := messageBody(data, TagRequestConnection)
	if err != nil {
		return nil, err
	}
	var w wireRequest
	if err := decode(body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if _, err := mesh.ParseUDF(w.MessageID); err != nil || len(w.MessageID) > maxMessageID {
		return nil, fmt.Errorf("%w: MessageId is missing or no UDF", ErrRequest)
	}
	if len(w.ClientNonce) != nonceLen {
		return nil, fmt.Errorf("%w: ClientNonce of %d octets", ErrRequest, len(w.ClientNonce))
	}
	if w.AuthenticatedData == nil {
		return nil, fmt.Errorf("%w: AuthenticatedData is missing", ErrRequest)
	}
	profile, err := ParseProfileDevice(w.AuthenticatedData, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	r := &RequestConnection{
		MessageID: w.MessageID, Account: w.AccountAddress, Profile: profile, ClientNonce: w.ClientNonce,
		PinID: w.PinID, PinWitness: w.PinWitness, envelope: e,
	}
	if e == nil {
		return r, r.seal()
	}
	return r, nil
}

// messageBody returns the body of a message of a tag, and its envelope if it has one.
func messageBody(data []byte, tag string) (strictjson.Value, *mesh.Envelope, error) {
	var e *mesh.Envelope
	if strings.HasPrefix(strings.TrimLeft(string(data[:min(len(data), 64)]), " \t\r\n"), "[") {
		var err error
		if e, err = mesh.ParseEnvelope(data); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		if _, err := e.Manifest(mesh.G1); err != nil { // unsigned, but with a digest perhaps
			return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		data = e.Body
	}
	tagged, err := mesh.DecodeBody(data)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if tagged.Tag != tag {
		return nil, nil, fmt.Errorf("%w: it is a %.32q", ErrRequest, tagged.Tag)
	}
	return tagged.Body, e, nil
}

// Witness returns the words that both sides compare, 28 characters: they bind the account's
// profile and the server's nonce, the device's profile and the client's nonce
// (draft-hallambaker-mesh-protocol-09, Section 4). For G2 no published value shows it.
func (r *RequestConnection) Witness(account *ProfileUser, serverNonce []byte) string {
	server := sha512.Sum512(append(append([]byte{}, account.short()...), serverNonce...))
	client := sha512.Sum512(append(append([]byte{}, r.Profile.short()...), r.ClientNonce...))
	both := sha512.Sum512(append(server[:], client[:]...))
	return mesh.UDFText(both[:])[:34]
}

// CheckPIN verifies the request's proof of a PIN for the account that it names. It is bound
// to the nonce and to the exact profile. The error is ErrPIN.
func (r *RequestConnection) CheckPIN(pin, account string) error {
	salted, err := saltPIN(pin)
	if err != nil {
		return err
	}
	defer clear(salted)
	if !strings.EqualFold(r.Account, account) || r.PinID != pinID(salted, account) {
		return ErrPIN
	}
	if subtle.ConstantTimeCompare(r.PinWitness, r.pinWitness(salted, account)) == 0 {
		return ErrPIN
	}
	return nil
}

func (r *RequestConnection) pinWitness(salted []byte, account string) []byte {
	digest := r.Profile.Envelope.Digest()
	return hmac512(salted, []byte(strings.ToLower(account)), r.ClientNonce, digest[:])
}

// GeneratePIN draws a PIN of 120 bits: A....
func GeneratePIN(rand io.Reader) (string, error) {
	octets := make([]byte, 1+pinLen)
	defer clear(octets)
	octets[0] = byte(mesh.UDFAuthenticator)
	if _, err := io.ReadFull(rand, octets[1:]); err != nil {
		return "", fmt.Errorf("draw PIN: %w", err)
	}
	return mesh.UDFText(octets), nil
}

// PinID returns the identifier by which a request names its PIN.
func PinID(pin, account string) (string, error) {
	salted, err := saltPIN(pin)
	if err != nil {
		return "", err
	}
	defer clear(salted)
	return pinID(salted, account), nil
}

// saltPIN returns the 16 octets of a PIN salted for connections of devices, without type octet.
func saltPIN(pin string) ([]byte, error) {
	octets, err := mesh.ParseUDF(pin)
	if err != nil {
		return nil, fmt.Errorf("PIN: %w: %w", ErrPIN, err)
	}
	defer clear(octets)
	switch mesh.UDFType(octets[0]) {
	case mesh.UDFAuthenticator, mesh.UDFEncryption, mesh.UDFEncryptionSign:
	default:
		return nil, fmt.Errorf("PIN is not an authenticator: %w", ErrPIN)
	}
	if len(octets) < 8 {
		return nil, fmt.Errorf("PIN is too short: %w", ErrPIN)
	}
	return hmac512(octets[1:], []byte(pinAction))[:16], nil
}

func pinID(salted []byte, account string) string {
	mac := hmac512(salted, []byte(strings.ToLower(account)))
	return mesh.UDFText(append([]byte{byte(mesh.UDFAuthenticator)}, mac...))[:34]
}

func hmac512(key []byte, parts ...[]byte) []byte {
	mac := hmac.New(sha512.New, key)
	for _, p := range parts {
		mac.Write(p)
	}
	return mac.Sum(nil)
}

// AcknowledgeConnection is a service's record of a request, by which an administrator sees it.
// Nothing of it is proof.
type AcknowledgeConnection struct {
	MessageID   string
	Request     *RequestConnection
	ServerNonce []byte
	Witness     string
}

type wireAcknowledge struct {
	MessageID                  string         `json:"MessageId,omitzero"`
	EnvelopedRequestConnection *mesh.Envelope `json:",omitzero"`
	ServerNonce                mesh.Binary    `json:",omitzero"`
	Witness                    string         `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// NewAcknowledgeConnection records a request to an account under a fresh nonce.
func NewAcknowledgeConnection(rand io.Reader, r *RequestConnection, account *ProfileUser) (*AcknowledgeConnection, error) {
	nonce := make([]byte, nonceLen)
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return nil, fmt.Errorf("draw nonce: %w", err)
	}
	witness := r.Witness(account, nonce)
	return &AcknowledgeConnection{MessageID: witness, Request: r, ServerNonce: nonce, Witness: witness}, nil
}

// Marshal writes {"AcknowledgeConnection":{...}}.
func (a *AcknowledgeConnection) Marshal() ([]byte, error) {
	return strictjson.Marshal(map[string]wireAcknowledge{TagAcknowledgeConnection: {
		MessageID: a.MessageID, EnvelopedRequestConnection: a.Request.envelope, ServerNonce: a.ServerNonce, Witness: a.Witness,
	}})
}

// ParseAcknowledgeConnection reads an acknowledgement, in an envelope or bare, and the
// request in it. The witness is recomputed from the account's profile; another one is refused.
func ParseAcknowledgeConnection(data []byte, account *ProfileUser, now time.Time) (*AcknowledgeConnection, error) {
	body, _, err := messageBody(data, TagAcknowledgeConnection)
	if err != nil {
		return nil, err
	}
	var w wireAcknowledge
	if err := decode(body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if w.EnvelopedRequestConnection == nil || len(w.ServerNonce) < nonceLen {
		return nil, fmt.Errorf("%w: no request, or a short ServerNonce", ErrRequest)
	}
	inner, err := w.EnvelopedRequestConnection.Marshal()
	if err != nil {
		return nil, err
	}
	r, err := ParseRequestConnection(inner, now)
	if err != nil {
		return nil, err
	}
	a := &AcknowledgeConnection{MessageID: w.MessageID, Request: r, ServerNonce: w.ServerNonce, Witness: r.Witness(account, w.ServerNonce)}
	if a.Witness != w.Witness {
		return nil, fmt.Errorf("%w: the witness is not that of this account, device and nonces", ErrRequest)
	}
	return a, nil
}

// TagConnectResponse is the tag of a ConnectResponse.
const TagConnectResponse = "ConnectResponse"

// ConnectResponse is a service's answer to a request for connection, as far as it is looked at: the
// acknowledgement, and the profile of the account.
type ConnectResponse struct {
	Acknowledged *AcknowledgeConnection
	Account      *ProfileUser
}

type wireConnectResponse struct {
	EnvelopedAcknowledgeConnection *mesh.Envelope `json:",omitzero"`
	EnvelopedProfileAccount        *mesh.Envelope `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// ParseConnectResponse reads {"ConnectResponse":{...}} or a bare object. The account's profile and that
// of the device are validated, and the witness is recomputed. Whose they are it does not know.
func ParseConnectResponse(data []byte, now time.Time) (*ConnectResponse, error) {
	body := strictjson.Value(data)
	if tagged, err := mesh.DecodeBody(data); err == nil && tagged.Tag == TagConnectResponse {
		body = tagged.Body
	}
	var w wireConnectResponse
	if err := decode(body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if w.EnvelopedAcknowledgeConnection == nil || w.EnvelopedProfileAccount == nil {
		return nil, fmt.Errorf("%w: EnvelopedAcknowledgeConnection and EnvelopedProfileAccount expected", ErrRequest)
	}
	account, err := ParseProfileUser(w.EnvelopedProfileAccount, now)
	if err != nil {
		return nil, fmt.Errorf("%w: EnvelopedProfileAccount: %w", ErrRequest, err)
	}
	text, err := w.EnvelopedAcknowledgeConnection.Marshal()
	if err != nil {
		return nil, err
	}
	acknowledged, err := ParseAcknowledgeConnection(text, account, now)
	if err != nil {
		return nil, fmt.Errorf("EnvelopedAcknowledgeConnection: %w", err)
	}
	return &ConnectResponse{acknowledged, account}, nil
}

// Marshal writes {"ConnectResponse":{...}}.
func (c *ConnectResponse) Marshal() ([]byte, error) {
	text, err := c.Acknowledged.Marshal()
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(map[string]wireConnectResponse{TagConnectResponse: {
		EnvelopedAcknowledgeConnection: &mesh.Envelope{Body: text}, EnvelopedProfileAccount: c.Account.Envelope,
	}})
}

// EnvelopeID returns the EnvelopeId of a message: a digest of its MessageId.
func EnvelopeID(messageID string) (string, error) {
	return messageName(messageID, "application/mmm/envelopeid")
}

// ResponseID returns the MessageId of the answer to a message.
func ResponseID(messageID string) (string, error) {
	return messageName(messageID, "application/mmm/responseid")
}

// messageName hashes the octets of a MessageId without the type octet.
func messageName(messageID, contentType string) (string, error) {
	octets, err := mesh.ParseUDF(messageID)
	if err != nil {
		return "", fmt.Errorf("MessageId: %w", err)
	}
	return mesh.UDFText(mesh.ContentDigest(octets[1:], contentType))[:34], nil
}
