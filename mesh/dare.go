package mesh

import (
	"errors"
	"fmt"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh/jsonb"
)

// Envelope is a DARE envelope in its JSON form, the array [header, body, trailer?]
// (draft-hallambaker-mesh-dare-12, Section 4). Parsing verifies nothing: see Verify and Open.
type Envelope struct {
	Header  Header
	Body    []byte   // payload octets: the ciphertext if Header.Encryption is not empty
	Trailer *Trailer // nil if absent
}

// Header is an envelope's header. It is not signed: all of it is hints. Members that are
// not known here are kept in Other.
type Header struct {
	EnvelopeID      string      `json:"EnvelopeId,omitzero"`
	Encryption      string      `json:"enc,omitzero"`
	Digest          string      `json:"dig,omitzero"`
	KeyID           string      `json:"kid,omitzero"` // published ones name a discarded key: ignore
	Salt            Binary      `json:",omitzero"`
	Recipients      []Recipient `json:"recipients,omitzero"`
	ContentMetaData Binary      `json:",omitzero"` // JSON; see Meta
	// SequenceInfo is there in frames of sequences, such as an account's catalogs.
	SequenceInfo *SequenceInfo `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// SequenceInfo says where in a sequence a frame is.
type SequenceInfo struct {
	Index int64

	Other strictjson.Value `json:",embed"`
}

// Recipient is the way to an envelope's base seed for one key.
type Recipient struct {
	KeyID        string           `json:"kid,omitzero"`
	EphemeralKey PublicParameters `json:"epk"`
	WrappedKey   Binary           `json:"wmk"` // 40 octets

	Other strictjson.Value `json:",embed"`
}

// ContentMeta is what a header says of its contents, in ContentMetaData. Like all of the
// header it is a hint: what a body is, its own tag says.
type ContentMeta struct {
	UniqueID    string    `json:"UniqueId,omitzero"`
	MessageType string    `json:",omitzero"` // the tag of the body, such as ProfileDevice
	ContentType string    `json:"cty,omitzero"`
	Created     time.Time `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

func (m *ContentMeta) isZero() bool {
	return m.UniqueID == "" && m.MessageType == "" && m.ContentType == "" && m.Created.IsZero() && m.Other == nil
}

// DecodeBody reads a body that is one tagged object, in JSON or JSON-B. The tag, not the
// header, says what an envelope holds.
func DecodeBody(body []byte) (Tagged, error) {
	if jsonb.Is(body) {
		v, err := jsonb.Parse(body)
		if err != nil {
			return Tagged{}, err
		}
		if body, err = jsonb.JSON(v); err != nil {
			return Tagged{}, err
		}
	}
	var t Tagged
	if err := strictjson.Unmarshal(body, &t); err != nil {
		return Tagged{}, fmt.Errorf("parse body: %w", err)
	}
	return t, nil
}

// The content types of envelopes that hold a tagged object and a message.
const (
	ContentTypeObject  = "application/mmm/object"
	ContentTypeMessage = "application/mmm/message"
)

// Meta returns what ContentMetaData says; the zero value if there is none or it does not parse.
func (h *Header) Meta() ContentMeta {
	var m ContentMeta
	if strictjson.Unmarshal(h.ContentMetaData, &m) != nil {
		return ContentMeta{}
	}
	return m
}

func (h *Header) setMeta(m ContentMeta) error {
	data, err := strictjson.Marshal(m)
	h.ContentMetaData = data
	return err
}

// ContentType returns the cty of ContentMetaData, empty if there is none.
func (h *Header) ContentType() string { return h.Meta().ContentType }

// ParseEnvelope reads the JSON form. Raw line feeds in strings, which all reference output
// has, are accepted.
func ParseEnvelope(data []byte) (*Envelope, error) {
	var parts []strictjson.Value
	if err := strictjson.Unmarshal(data, &parts); err != nil {
		return nil, fmt.Errorf("parse envelope: %w", err)
	}
	if len(parts) != 2 && len(parts) != 3 {
		return nil, fmt.Errorf("parse envelope: header, body and perhaps a trailer are expected, not %d parts", len(parts))
	}
	var e Envelope
	var body Binary
	if parts[0].Kind() != '{' {
		return nil, errors.New("parse envelope: the header is not an object")
	}
	if err := strictjson.Unmarshal(parts[0], &e.Header); err != nil {
		return nil, fmt.Errorf("parse envelope header: %w", err)
	}
	if err := strictjson.Unmarshal(parts[1], &body); err != nil {
		return nil, fmt.Errorf("parse envelope body: %w", err)
	}
	e.Body = body
	if len(parts) == 3 {
		if parts[2].Kind() != '{' {
			return nil, errors.New("parse envelope: the trailer is not an object")
		}
		if err := strictjson.Unmarshal(parts[2], &e.Trailer); err != nil {
			return nil, fmt.Errorf("parse envelope trailer: %w", err)
		}
	}
	return &e, nil
}

// Marshal writes the JSON form, without line breaks.
func (e *Envelope) Marshal() ([]byte, error) {
	parts := []any{e.Header, Binary(e.Body)}
	if e.Trailer != nil {
		parts = append(parts, e.Trailer)
	}
	return strictjson.Marshal(parts)
}

// MarshalJSON is Marshal, for envelopes inside other objects.
func (e *Envelope) MarshalJSON() ([]byte, error) { return e.Marshal() }

// UnmarshalJSON is ParseEnvelope, for envelopes inside other objects.
func (e *Envelope) UnmarshalJSON(data []byte) error {
	parsed, err := ParseEnvelope(data)
	if err != nil {
		return err
	}
	*e = *parsed
	return nil
}
