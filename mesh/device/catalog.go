package device

import (
	"context"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// The tags of what arrives at a device.
const (
	TagCatalogedDevice   = "CatalogedDevice"
	TagRespondConnection = "RespondConnection"
)

// ErrCatalog says that a CatalogedDevice is not well formed.
var ErrCatalog = errors.New("bad CatalogedDevice")

// CatalogedDevice is a device's entry in an account's catalog: all that connects it. Parsing
// verifies nothing. Envelopes that are not there are nil.
type CatalogedDevice struct {
	DeviceUdf         string
	ProfileUser       *mesh.Envelope
	ProfileDevice     *mesh.Envelope
	ConnectionService *mesh.Envelope
	ConnectionDevice  *mesh.Envelope
	// Activations are those of the device and of the account, in this order by their
	// names; which is which, their contents decide.
	Activations  []*mesh.Envelope
	Applications []ApplicationEntry
}

type wireCatalog struct {
	DeviceUdf                  string              `json:",omitzero"`
	EnvelopedProfileUser       *mesh.Envelope      `json:",omitzero"`
	EnvelopedProfileDevice     *mesh.Envelope      `json:",omitzero"`
	EnvelopedConnectionService *mesh.Envelope      `json:",omitzero"`
	EnvelopedConnectionDevice  *mesh.Envelope      `json:",omitzero"`
	EnvelopedActivationAccount *mesh.Envelope      `json:",omitzero"`
	EnvelopedActivationCommon  *mesh.Envelope      `json:",omitzero"`
	ApplicationEntries         []strictjson.Tagged `json:",omitzero"`

	// Until 2022.
	EnvelopedConnectionUser   *mesh.Envelope `json:",omitzero"`
	EnvelopedConnection       *mesh.Envelope `json:",omitzero"`
	EnvelopedActivationDevice *mesh.Envelope `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// ParseCatalogedDevice reads {"CatalogedDevice":{...}}, a bare object, or a RespondConnection
// that accepts, in the clear.
func ParseCatalogedDevice(data []byte) (*CatalogedDevice, error) {
	var members map[string]strictjson.Value
	if err := strictjson.Unmarshal(data, &members); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCatalog, err)
	}
	if len(members) == 1 {
		for tag, body := range members {
			switch tag {
			case TagCatalogedDevice:
				return readCatalog(body)
			case TagRespondConnection:
				r, err := readRespond(body)
				if err != nil {
					return nil, err
				}
				return r.CatalogedDevice, r.accepted()
			}
		}
	}
	return readCatalog(data)
}

// OpenCatalogedDevice decrypts an entry with the device's combined key, to which catalogs of accounts give them.
// That it does not parse is token.ErrDecrypt, as with OpenRespondConnection.
func OpenCatalogedDevice(ctx context.Context, e *mesh.Envelope, combined mesh.Agreer) (*CatalogedDevice, error) {
	plaintext, err := e.DecryptToParse(ctx, combined)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	c, err := CatalogedDeviceBody(plaintext)
	if err != nil {
		return nil, token.ErrDecrypt
	}
	return c, nil
}

// CatalogedDeviceBody reads the body of an envelope that holds {"CatalogedDevice":{...}}, such as a frame of a
// catalog, in JSON or JSON-B.
func CatalogedDeviceBody(body []byte) (*CatalogedDevice, error) {
	tagged, err := mesh.DecodeBody(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCatalog, err)
	}
	if tagged.Tag != TagCatalogedDevice {
		return nil, fmt.Errorf("%w: it is a %.32q", ErrCatalog, tagged.Tag)
	}
	return readCatalog(tagged.Body)
}

func readCatalog(body strictjson.Value) (*CatalogedDevice, error) {
	var w wireCatalog
	if err := decode(body, &w); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCatalog, err)
	}
	c := &CatalogedDevice{
		DeviceUdf: w.DeviceUdf, ProfileUser: w.EnvelopedProfileUser, ProfileDevice: w.EnvelopedProfileDevice,
		ConnectionService: w.EnvelopedConnectionService, ConnectionDevice: w.EnvelopedConnectionDevice,
	}
	for _, e := range []*mesh.Envelope{w.EnvelopedConnectionUser, w.EnvelopedConnection} {
		if e != nil && c.ConnectionDevice != nil {
			return nil, fmt.Errorf("%w: ConnectionDevice is there under two names", ErrCatalog)
		}
		if e != nil {
			c.ConnectionDevice = e
		}
	}
	for _, e := range []*mesh.Envelope{w.EnvelopedActivationDevice, w.EnvelopedActivationAccount, w.EnvelopedActivationCommon} {
		if e != nil {
			c.Activations = append(c.Activations, e)
		}
	}
	if len(c.Activations) > 2 {
		return nil, fmt.Errorf("%w: three activations", ErrCatalog)
	}
	for _, t := range w.ApplicationEntries {
		a, err := readApplicationEntry(t)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCatalog, err)
		}
		c.Applications = append(c.Applications, *a)
	}
	return c, nil
}

// Marshal writes {"CatalogedDevice":{...}} with the names of today.
func (c *CatalogedDevice) Marshal() ([]byte, error) {
	w, err := c.wire()
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(map[string]*wireCatalog{TagCatalogedDevice: w})
}

func (c *CatalogedDevice) wire() (*wireCatalog, error) {
	w := &wireCatalog{
		DeviceUdf: c.DeviceUdf, EnvelopedProfileUser: c.ProfileUser, EnvelopedProfileDevice: c.ProfileDevice,
		EnvelopedConnectionService: c.ConnectionService, EnvelopedConnectionDevice: c.ConnectionDevice,
	}
	for i, e := range c.Activations {
		if i == 0 {
			w.EnvelopedActivationAccount = e
		} else {
			w.EnvelopedActivationCommon = e
		}
	}
	for _, a := range c.Applications {
		t, err := a.tagged()
		if err != nil {
			return nil, err
		}
		w.ApplicationEntries = append(w.ApplicationEntries, t)
	}
	return w, nil
}

// The results of a request for connection.
const (
	ResultAccept = "Accept"
	ResultReject = "Reject"
)

// ErrRejected says that an administrator did not accept a request for connection.
var ErrRejected = errors.New("request for connection was rejected")

// RespondConnection answers a request for connection. It is encrypted to the device's base
// key and nobody signs it: what it says is true only as far as CatalogedDevice verifies.
type RespondConnection struct {
	MessageID       string // see ResponseID
	Result          string
	CatalogedDevice *CatalogedDevice // nil if rejected
}

type wireRespond struct {
	MessageID       string           `json:"MessageId,omitzero"`
	Result          string           `json:",omitzero"`
	CatalogedDevice strictjson.Value `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

func readRespond(body strictjson.Value) (*RespondConnection, error) {
	var w wireRespond
	if err := decode(body, &w); err != nil {
		return nil, fmt.Errorf("parse RespondConnection: %w", err)
	}
	r := &RespondConnection{MessageID: w.MessageID, Result: w.Result}
	if w.CatalogedDevice != nil {
		var err error
		if r.CatalogedDevice, err = readCatalog(w.CatalogedDevice); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *RespondConnection) accepted() error {
	if r.Result != ResultAccept || r.CatalogedDevice == nil {
		return ErrRejected
	}
	return nil
}

// OpenRespondConnection decrypts an answer with the device's base key for encryption. It is
// one to the message whose ResponseID it bears; the caller compares, and takes one answer
// only. An answer that rejects is ErrRejected. Nobody signs an answer, and its encryption does not
// protect integrity: that it does not parse is token.ErrDecrypt as well, so that who alters it
// learns nothing about the plaintext of whatever was encrypted to the key.
func OpenRespondConnection(ctx context.Context, e *mesh.Envelope, base mesh.Agreer) (*RespondConnection, error) {
	plaintext, err := e.DecryptToParse(ctx, base)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	tagged, err := mesh.DecodeBody(plaintext)
	if err != nil || tagged.Tag != TagRespondConnection {
		return nil, token.ErrDecrypt
	}
	r, err := readRespond(tagged.Body)
	if err != nil {
		return nil, token.ErrDecrypt
	}
	return r, r.accepted()
}

// Marshal writes {"RespondConnection":{...}}.
func (r *RespondConnection) Marshal() ([]byte, error) {
	w := wireRespond{MessageID: r.MessageID, Result: r.Result}
	if r.CatalogedDevice != nil {
		wire, err := r.CatalogedDevice.wire()
		if err != nil {
			return nil, err
		}
		if w.CatalogedDevice, err = strictjson.Marshal(wire); err != nil {
			return nil, err
		}
	}
	return strictjson.Marshal(map[string]wireRespond{TagRespondConnection: w})
}
