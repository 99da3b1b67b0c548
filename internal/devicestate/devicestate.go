// Package devicestate keeps what the agent remembers of the device's Mesh identity and of the
// accounts that it administers: profiles, which account may activate the device, what
// activated it, and which devices an account has. One JSON file for the device and one for
// each account, in a folder of their own.
//
// It holds no key: those are in the key records, and the seed of an account is encrypted
// to one of them. It verifies nothing that it reads but its form; who uses a profile
// validates it. It does not lock: the folder of the key records above is locked.
package devicestate

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/durable"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// Version is the version of the files that this package writes and the only one it reads.
const Version = 2

// MaxFile is the largest size of a file in octets.
const MaxFile = 64 << 20

const (
	deviceName    = "device.json"
	accountPrefix = "account-"
	suffix        = ".json"
)

// ErrNotFound says that there is no such device or account.
var ErrNotFound = errors.New("not found")

// RecordError says that a file is there and cannot be used.
type RecordError struct {
	Name string // of the file
	Err  error
}

// Error names the file.
func (e *RecordError) Error() string {
	return fmt.Sprintf("record %s cannot be read: %v", e.Name, e.Err)
}

// Unwrap returns Err.
func (e *RecordError) Unwrap() error { return e.Err }

// Home is where keys of the device or account go that are not made inside a token.
type Home struct {
	Token  string `json:",omitzero"`
	SealTo string `json:",omitzero"`
	PIN    string `json:",omitzero"`
}

// Key is a key record with what it is for.
type Key struct {
	Name string
	Udf  string
	// Own says that the key was made for this and is deleted with it.
	Own bool `json:",omitzero"`
}

// Device is the device's identity.
type Device struct {
	Version    int
	Generation string
	Tier       string
	Home       Home
	Profile    strictjson.Value // enveloped ProfileDevice
	Keys       []Key
	Pins       []Pin        `json:",omitzero"`
	Requests   []Request    `json:",omitzero"`
	Accounts   []Membership `json:",omitzero"` // also those that ended, for their history
}

// Pin is an account that a person approved.
type Pin struct {
	Udf      string
	Address  string `json:",omitzero"`
	Approved time.Time
	// Unused says that nothing was activated since the approval, which therefore covers an
	// activation of which nothing shows that it is newer.
	Unused bool `json:",omitzero"`
}

// Request is a request for connection that waits for its answer.
type Request struct {
	MessageID string
	Account   string // address
	Created   time.Time
	Envelope  strictjson.Value
	// Acknowledged is the MessageId of an acknowledgement, to which an answer may refer.
	Acknowledged string `json:",omitzero"`
}

// Membership is the device's connection to one account, or what is left of it.
type Membership struct {
	Udf     string
	Address string   `json:",omitzero"`
	Active  bool     `json:",omitzero"`
	Roles   []string `json:",omitzero"`
	Keys    []Key    `json:",omitzero"`
	// The enveloped objects of an active one.
	ProfileUser       strictjson.Value `json:",omitzero"`
	ConnectionDevice  strictjson.Value `json:",omitzero"`
	ConnectionService strictjson.Value `json:",omitzero"`
	History           device.History
	// InsideOnly says that DeviceEncryption has use seal.
	InsideOnly bool `json:",omitzero"`
	// Release is that of DeviceEncryption, as token.Release.
	Release string `json:",omitzero"`
	// Inside are digests of the ephemeral keys of activations: what these wrap is
	// opened inside the agent only.
	Inside device.DigestSet `json:",omitzero"`
}

// Account is an account that this agent administers.
type Account struct {
	Version    int
	Generation string
	Udf        string
	Address    string           `json:",omitzero"`
	Profile    strictjson.Value // enveloped ProfileUser
	Home       Home
	Keys       []Key
	Seal       string           // UDF of the key of use seal
	Seed       strictjson.Value `json:",omitzero"` // DARE envelope to that key: text of the account's seed, unless it was forgotten
	// Granted says that the seed came with a connection of this device, and ends with it.
	Granted bool  `json:",omitzero"`
	PINs    []PIN `json:",omitzero"`
	// Acknowledged are the nonces of acknowledgements, by the MessageId of the request.
	Acknowledged []Nonce `json:",omitzero"`
	// Answered are the MessageIds of requests that were answered.
	Answered     []string      `json:",omitzero"`
	Devices      []Connected   `json:",omitzero"`
	Applications []Application `json:",omitzero"`
}

// Application is an application of an account whose keys devices are given.
type Application struct {
	Kind       string           // Ssh, Mail
	Identifier string           // the Key of its catalog entry
	Catalog    strictjson.Value // the entry
	Keys       strictjson.Value // DARE envelope to the account's key of use seal: the activation with the private keys
}

// PIN is a PIN that was made for one device.
type PIN struct {
	ID      string           // as requests name it
	Text    strictjson.Value // DARE envelope to the account's key of use seal
	Expires time.Time
}

// Nonce is a server's nonce.
type Nonce struct {
	MessageID string
	Nonce     mesh.Binary
}

// Connected is a device that was connected.
type Connected struct {
	Udf   string
	Roles []string         `json:",omitzero"`
	Entry strictjson.Value // CatalogedDevice
	// Encryption is the public KeyData of its combined key.
	Encryption strictjson.Value `json:",omitzero"`
	Revoked    bool             `json:",omitzero"`
	// Revocation is the signed statement, of a revoked one.
	Revocation strictjson.Value `json:",omitzero"`
}

// Folder is where the files are. Its methods may be called from several goroutines at once; of
// two writes of one file the later one wins.
type Folder struct{ files *durable.Folder }

// Open opens the folder, which it creates if it is missing.
func Open(path string) (*Folder, error) {
	files, err := durable.OpenFolder(path)
	if err != nil {
		return nil, fmt.Errorf("open device state: %w", err)
	}
	if err := files.RemoveLeftovers(); err != nil {
		return nil, errors.Join(fmt.Errorf("open device state: %w", err), files.Close())
	}
	return &Folder{files}, nil
}

// Close releases the folder.
func (f *Folder) Close() error { return f.files.Close() }

// Device reads the device's identity. If there is none the error is ErrNotFound, else a *RecordError.
func (f *Folder) Device() (*Device, error) {
	d := new(Device)
	if err := f.read(deviceName, d); err != nil {
		return nil, err
	}
	if err := check(d.Version, d.Generation, d.Profile); err != nil {
		return nil, &RecordError{deviceName, err}
	}
	return d, nil
}

// Change is a change of one file that can be foreseen: it is what a guard against rollback asks for.
type Change struct {
	folder *Folder
	name   string
	data   []byte // nil if the file is removed
}

// PutDevice returns the change that writes the device's identity.
func (f *Folder) PutDevice(d *Device) (*Change, error) {
	d.Version = Version
	return f.put(deviceName, d)
}

// Accounts reads all accounts, sorted by their names. One that does not load is a *RecordError.
func (f *Folder) Accounts() ([]*Account, error) {
	names, err := f.files.Names()
	if err != nil {
		return nil, err
	}
	var out []*Account
	for _, name := range names {
		udf, ok := strings.CutPrefix(strings.TrimSuffix(name, suffix), accountPrefix)
		if !ok {
			continue
		}
		a := new(Account)
		err := f.read(name, a)
		if errors.Is(err, ErrNotFound) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		err = check(a.Version, a.Generation, a.Profile)
		if err == nil && a.Udf != udf {
			err = errors.New("it is that of another account")
		}
		if err != nil {
			return nil, &RecordError{name, err}
		}
		out = append(out, a)
	}
	return out, nil
}

// Unusable is the error of what is in the record of an account.
func (a *Account) Unusable(err error) error { return &RecordError{accountPrefix + a.Udf + suffix, err} }

// Unusable is the error of what is in the record of the device.
func (d *Device) Unusable(err error) error { return &RecordError{deviceName, err} }

// PutAccount returns the change that writes an account.
func (f *Folder) PutAccount(a *Account) (*Change, error) {
	a.Version = Version
	return f.put(accountPrefix+a.Udf+suffix, a)
}

// RemoveAccount returns the change that removes an account.
func (f *Folder) RemoveAccount(udf string) *Change {
	return &Change{f, accountPrefix + udf + suffix, nil}
}

// Do makes the change, durably.
func (c *Change) Do() error {
	if c.data == nil {
		return c.folder.files.Remove(c.name)
	}
	return c.folder.files.Write(c.name, c.data)
}

// After returns what Digest will be after Do.
func (c *Change) After() ([]byte, error) { return c.folder.digest(c.name, c.data) }

// Digest returns the SHA-256 of all files as they are on the disk: of each, in the order of their names,
// the SHA-256 of its name and of its contents. It is nil if there is no file.
func (f *Folder) Digest() ([]byte, error) { return f.digest("", nil) }

// digest leaves the file of a name out, and takes data for it if that is not nil.
func (f *Folder) digest(other string, data []byte) ([]byte, error) {
	names, err := f.files.Names()
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return name == other })
	if data != nil {
		names = append(names, other)
	}
	if len(names) == 0 {
		return nil, nil
	}
	slices.Sort(names)
	all := sha256.New()
	for _, name := range names {
		contents := data
		if name != other {
			if contents, err = f.files.Read(name, MaxFile); err != nil {
				return nil, err
			}
		}
		n, c := sha256.Sum256([]byte(name)), sha256.Sum256(contents)
		all.Write(n[:])
		all.Write(c[:])
	}
	return all.Sum(nil), nil
}

func check(version int, generation string, profile strictjson.Value) error {
	if version != Version {
		return fmt.Errorf("version %d, this program knows %d only", version, Version)
	}
	if len(profile) == 0 {
		return errors.New("no profile")
	}
	_, err := mesh.ParseGeneration(generation)
	return err
}

func (f *Folder) read(name string, v any) error {
	data, err := f.files.Read(name, MaxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err == nil {
		err = strictjson.Unmarshal(data, v)
	}
	if err != nil {
		return &RecordError{name, err}
	}
	return nil
}

func (f *Folder) put(name string, v any) (*Change, error) {
	data, err := strictjson.MarshalIndent(v)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("write %s: larger than %d octets", name, MaxFile)
	}
	return &Change{f, name, append(data, '\n')}, nil
}
