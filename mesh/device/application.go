package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// ApplicationEntry is a device's activation of one application. Nobody signs it: whoever
// knows the device's public key can make one. Its keys are used only after their public
// parts were found in the account's catalog of applications, or by a person's decision.
type ApplicationEntry struct {
	// Tag is ApplicationEntrySsh, ...Mail, ...Group, ...Callsign.
	Tag        string
	Identifier string
	Envelope   *mesh.Envelope // encrypted to the combined key
}

const tagApplicationEntry = "ApplicationEntry"

type wireApplication struct {
	Identifier          string         `json:",omitzero"`
	EnvelopedActivation *mesh.Envelope `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

func readApplicationEntry(t strictjson.Tagged) (*ApplicationEntry, error) {
	if !strings.HasPrefix(t.Tag, tagApplicationEntry) {
		return nil, fmt.Errorf("%.32q among ApplicationEntries", t.Tag)
	}
	var w wireApplication
	if err := decode(t.Body, &w); err != nil {
		return nil, fmt.Errorf("%.32q: %w", t.Tag, err)
	}
	return &ApplicationEntry{Tag: t.Tag, Identifier: w.Identifier, Envelope: w.EnvelopedActivation}, nil
}

func (a *ApplicationEntry) tagged() (strictjson.Tagged, error) {
	return strictjson.NewTagged(a.Tag, wireApplication{Identifier: a.Identifier, EnvelopedActivation: a.Envelope})
}

// ApplicationActivation is a decrypted activation of an application: private keys, as they
// are. Wipe it after use.
type ApplicationActivation struct {
	Tag  string // ActivationApplicationSsh, ...Mail, ...Group
	Keys map[string]*mesh.KeyData
}

const tagActivationApplication = "ActivationApplication"

// applicationKeys are the members that hold private keys.
var applicationKeys = [...]string{"ClientKey", "SmimeSign", "SmimeEncrypt", "OpenpgpSign", "OpenpgpEncrypt",
	"AccountEncryption", "AdministratorSignature", "AccountAuthentication"}

// Wipe overwrites the secrets.
func (a *ApplicationActivation) Wipe() {
	for _, k := range a.Keys {
		wipeKey(k)
	}
}

// ParseApplicationActivation reads a decrypted activation of an application. Public parts and
// Udf members fit the private parts. The caller wipes plaintext and result.
func ParseApplicationActivation(plaintext []byte, g mesh.Generation) (*ApplicationActivation, error) {
	tagged, err := mesh.DecodeBody(plaintext)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrActivation, err)
	}
	defer clear(tagged.Body)
	if !strings.HasPrefix(tagged.Tag, tagActivationApplication) {
		return nil, fmt.Errorf("%w: it is a %.32q, not one of an application", ErrActivation, tagged.Tag)
	}
	var members map[string]strictjson.Value
	if err := decode(tagged.Body, &members); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrActivation, err)
	}
	a := &ApplicationActivation{Tag: tagged.Tag, Keys: map[string]*mesh.KeyData{}}
	for _, name := range applicationKeys {
		body, ok := members[name]
		if !ok {
			continue
		}
		k := new(mesh.KeyData)
		a.Keys[name] = k
		if err = decode(body, k); err == nil {
			err = errors.Join(expandSeed(k, g), checkPrivate(k, g))
		}
		clear(body)
		if err != nil {
			a.Wipe()
			return nil, fmt.Errorf("%w: %s: %w", ErrActivation, name, err)
		}
	}
	return a, nil
}

// Open decrypts the entry with the device's combined key for encryption. The caller wipes
// the result. The errors are those of mesh.Envelope.Decrypt, and ErrActivation for an empty entry:
// nobody signs entries, so that a plaintext that does not parse is token.ErrDecrypt, as with
// OpenRespondConnection.
func (a *ApplicationEntry) Open(ctx context.Context, combined mesh.Agreer, g mesh.Generation) (*ApplicationActivation, error) {
	if a.Envelope == nil {
		return nil, fmt.Errorf("%w: %.32q is empty", ErrActivation, a.Tag)
	}
	plaintext, err := a.Envelope.DecryptToParse(ctx, combined)
	if err != nil {
		return nil, err
	}
	defer clear(plaintext)
	opened, err := ParseApplicationActivation(plaintext, g)
	if err != nil {
		return nil, token.ErrDecrypt
	}
	return opened, nil
}

// TagCatalogedApplicationSSH is the tag of CatalogedApplicationSSH.
const TagCatalogedApplicationSSH = "CatalogedApplicationSsh"

// ErrUnconfirmed says that an application's key is not the one of the account's catalog.
var ErrUnconfirmed = errors.New("key is not the one of the catalog")

// CatalogedApplicationSSH is an SSH key's entry in an account's catalog of applications: the
// public key, and which roles get it. It is as trustworthy as the catalog that it came from.
type CatalogedApplicationSSH struct {
	Key       string // the UDF of ClientKey
	LocalName string
	Grant     []string
	ClientKey token.PublicKey
	Escrow    []*mesh.Envelope // the private key, to the account's escrow key; often absent
}

type wireSSH struct {
	Key             string           `json:",omitzero"`
	LocalName       string           `json:",omitzero"`
	Grant           []string         `json:",omitzero"`
	EnvelopedEscrow []*mesh.Envelope `json:",omitzero"`
	ClientKey       *mesh.KeyData    `json:",omitzero"`

	Other strictjson.Value `json:",embed"`
}

// NewCatalogedApplicationSSH makes the entry of a key, which may be bound to one device.
func NewCatalogedApplicationSSH(pub token.PublicKey, name string, grant []string, g mesh.Generation) (*CatalogedApplicationSSH, error) {
	udf, err := mesh.Fingerprint(pub, g)
	if err != nil {
		return nil, err
	}
	return &CatalogedApplicationSSH{Key: udf, LocalName: name, Grant: grant, ClientKey: pub}, nil
}

// Marshal writes {"CatalogedApplicationSsh":{...}} with the Udf of generation g.
func (c *CatalogedApplicationSSH) Marshal(g mesh.Generation) ([]byte, error) {
	k, err := mesh.NewKeyData(c.ClientKey, g)
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(map[string]wireSSH{TagCatalogedApplicationSSH: {
		Key: c.Key, LocalName: c.LocalName, Grant: c.Grant, EnvelopedEscrow: c.Escrow, ClientKey: k,
	}})
}

// ParseCatalogedApplicationSSH reads an entry. Its key is public, its names are the key's.
func ParseCatalogedApplicationSSH(data []byte, g mesh.Generation, now time.Time) (*CatalogedApplicationSSH, error) {
	tagged, err := mesh.DecodeBody(data)
	if err != nil {
		return nil, err
	}
	var w wireSSH
	if tagged.Tag != TagCatalogedApplicationSSH {
		return nil, fmt.Errorf("parse %s: it is a %.32q", TagCatalogedApplicationSSH, tagged.Tag)
	}
	if err := decode(tagged.Body, &w); err != nil {
		return nil, fmt.Errorf("parse %s: %w", TagCatalogedApplicationSSH, err)
	}
	if w.ClientKey == nil {
		return nil, fmt.Errorf("parse %s: ClientKey: %w", TagCatalogedApplicationSSH, ErrMissing)
	}
	pub, err := readKey(w.ClientKey, g, now)
	if err != nil {
		return nil, fmt.Errorf("parse %s: ClientKey: %w", TagCatalogedApplicationSSH, err)
	}
	if !mesh.Names(w.Key, pub, g) {
		return nil, fmt.Errorf("parse %s: Key: %w", TagCatalogedApplicationSSH, ErrOtherName)
	}
	return &CatalogedApplicationSSH{Key: w.Key, LocalName: w.LocalName, Grant: w.Grant, ClientKey: pub, Escrow: w.EnvelopedEscrow}, nil
}

// Confirm compares the SSH key of an activation, which nobody signed, with the catalog's
// entry. The error is ErrUnconfirmed.
func (c *CatalogedApplicationSSH) Confirm(a *ApplicationActivation) error {
	k := a.Keys["ClientKey"]
	if k == nil || k.PrivateParameters == nil {
		return fmt.Errorf("ClientKey: %w", ErrMissing)
	}
	key, err := k.PrivateParameters.PrivateKey()
	if err != nil {
		return err
	}
	defer key.Wipe()
	pub, err := mesh.PublicOf(key)
	if err != nil {
		return err
	}
	if !sameKey(pub, c.ClientKey) {
		return ErrUnconfirmed
	}
	return nil
}

// TagCatalogedApplicationMail is the tag of CatalogedApplicationMail.
const TagCatalogedApplicationMail = "CatalogedApplicationMail"

// The kinds of applications of which devices are given keys here, which end the tags of their objects.
const (
	KindSSH  = "Ssh"
	KindMail = "Mail"
)

// MailKeys are the keys of a mail address, by their members, with what they are for. All are RSA keys.
func MailKeys() map[string]Operation {
	return map[string]Operation{"SmimeSign": Sign, "SmimeEncrypt": Encrypt, "OpenpgpSign": Sign, "OpenpgpEncrypt": Encrypt}
}

// MailIdentifier is the Key of a mail address's entry in the catalog of applications.
func MailIdentifier(address string) string { return "mailto:" + address }

// CatalogedApplicationMail is a mail address's entry in an account's catalog of applications: its
// public keys, by the members of MailKeys. How mail is fetched and sent is left out.
type CatalogedApplicationMail struct {
	Address string
	Keys    map[string]token.PublicKey
	Escrow  []*mesh.Envelope // private keys, to the account's escrow key
}

// Marshal writes {"CatalogedApplicationMail":{...}} with names of generation g.
func (c *CatalogedApplicationMail) Marshal(g mesh.Generation) ([]byte, error) {
	members := map[string]any{"Key": MailIdentifier(c.Address), "AccountAddress": c.Address}
	for name, pub := range c.Keys {
		k, err := mesh.NewKeyData(pub, g)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		members[name] = k
	}
	if c.Escrow != nil {
		members["EnvelopedEscrow"] = c.Escrow
	}
	return strictjson.Marshal(map[string]any{TagCatalogedApplicationMail: members})
}

// EscrowKey encrypts a private key of an operation to the account's escrow key, as far as
// CheckEscrow allows it. The caller wipes the key.
func EscrowKey(rand io.Reader, account *ProfileUser, o Operation, key *mesh.KeyData) (*mesh.Envelope, error) {
	if err := CheckEscrow(o); err != nil {
		return nil, err
	}
	if account.Escrow == nil {
		return nil, fmt.Errorf("escrow: the account's EscrowEncryption: %w", ErrMissing)
	}
	if err := checkPrivate(key, account.Generation); err != nil {
		return nil, fmt.Errorf("escrow: %w", err)
	}
	body, err := strictjson.Marshal(map[string]*mesh.KeyData{mesh.TagKeyData: key})
	if err != nil {
		return nil, fmt.Errorf("escrow: %w", err)
	}
	defer clear(body)
	options := mesh.EncryptOptions{ContentType: mesh.ContentTypeKeyData, Generation: account.Generation}
	return options.Encrypt(rand, body, *account.Escrow)
}
