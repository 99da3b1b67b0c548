package store

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
)

// Version is the version of the records that this package writes and the only one it reads.
const Version = 1

// Bounds of a record, in octets or entries.
const (
	MaxRecord  = 128 << 10 // the whole file
	MaxLabel   = 256
	MaxHandle  = 32 << 10
	MaxParts   = 16
	MaxShareTo = 255
	MaxTags    = 32
	maxPublic  = 2 << 10
	maxWord    = 256 // algorithm, use, protection, token
)

// Binary is octets written in base64url.
type Binary = strictjson.Binary

// Record describes one key. What follows from Public (the UDFs of the other generation,
// the sum of the parts) is not in it.
type Record struct {
	Version   int
	Udf       string // G1, 28 characters in groups of four; also the name of the file
	Algorithm string
	Use       string
	Public    Binary // encoded as token.PublicKey.Octets
	Label     string `json:",omitzero"`
	Created   time.Time
	Tags      []string    `json:",omitzero"` // of use sign-assertion: what bodies it signs
	Release   string      `json:",omitzero"` // of use decrypt: what it gives out, if that is less than the base seed
	ShareTo   []PublicKey `json:",omitzero"` // of use split: who gets the shares, in their order
	Parts     []Part      // one; more for a composite key
}

// PublicKey is a public key of somebody else.
type PublicKey struct {
	Algorithm string
	Public    Binary
}

// Part is one of the contributions whose sum is the key.
type Part struct {
	Token      string
	Handle     Binary // as the token made it
	Public     Binary // of this part alone
	Protection string
	Imported   bool   `json:",omitzero"` // it was outside of the token once
	Use        string `json:",omitzero"` // that of this part alone, if it is not that of the key
	PIN        string `json:",omitzero"` // the policies it was made with, if any was asked for
	Touch      string `json:",omitzero"`
	// Guard says what opens a sealed part, whose Handle is what the token sealed. Other
	// parts have none. PCRs is the selection of a part sealed to PCRs.
	Guard string `json:",omitzero"`
	PCRs  string `json:",omitzero"`
}

// ParseRecord reads one record strictly: a version other than Version, an unknown,
// duplicate or missing member, trailing data and whatever is out of bounds are refused.
func ParseRecord(data []byte) (*Record, error) {
	if len(data) > MaxRecord {
		return nil, fmt.Errorf("record larger than %d octets", MaxRecord)
	}
	if err := checkVersion(data); err != nil {
		return nil, err
	}
	r := new(Record)
	if err := strictjson.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	return r, nil
}

// Marshal writes the record. What ParseRecord would refuse is refused.
func (r *Record) Marshal() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	data, err := strictjson.MarshalIndent(r)
	if err != nil {
		return nil, err
	}
	if data = append(data, '\n'); len(data) > MaxRecord {
		return nil, fmt.Errorf("record larger than %d octets", MaxRecord)
	}
	return data, nil
}

// checkVersion looks at the version alone, because a later version may have any members.
func checkVersion(data []byte) error {
	var members map[string]strictjson.Value
	if err := strictjson.Unmarshal(data, &members); err != nil {
		return fmt.Errorf("read record: %w", err)
	}
	version, ok := members["Version"]
	if !ok {
		return errors.New("read record: Version missing")
	}
	if v := string(version); v != "1" {
		return fmt.Errorf("read record: version %.20s, this program knows %d only", v, Version)
	}
	return nil
}

func (r *Record) check() error {
	switch {
	case r.Version != Version:
		return fmt.Errorf("version %d, this program knows %d only", r.Version, Version)
	case !isUDF(r.Udf):
		return fmt.Errorf("malformed Udf %.40q", r.Udf)
	case r.Created.IsZero():
		return errors.New("no member Created")
	case len(r.ShareTo) > MaxShareTo:
		return fmt.Errorf("%d keys in ShareTo, at most %d are allowed", len(r.ShareTo), MaxShareTo)
	case len(r.Tags) > MaxTags:
		return fmt.Errorf("%d tags, at most %d are allowed", len(r.Tags), MaxTags)
	case len(r.Parts) == 0 || len(r.Parts) > MaxParts:
		return fmt.Errorf("%d parts, want 1 to %d", len(r.Parts), MaxParts)
	}
	errs := []error{checkWord("Algorithm", r.Algorithm), checkWord("Use", r.Use),
		checkOctets("Public", r.Public, maxPublic), CheckLabel(r.Label)}
	if r.Release != "" {
		errs = append(errs, checkWord("Release", r.Release))
	}
	for _, tag := range r.Tags {
		errs = append(errs, checkWord("Tags", tag))
	}
	for _, p := range r.ShareTo {
		errs = append(errs, checkWord("ShareTo: Algorithm", p.Algorithm), checkOctets("ShareTo: Public", p.Public, maxPublic))
	}
	for _, p := range r.Parts {
		errs = append(errs, checkWord("Parts: Token", p.Token), checkOctets("Parts: Handle", p.Handle, MaxHandle),
			checkOctets("Parts: Public", p.Public, maxPublic), checkWord("Parts: Protection", p.Protection))
		for member, word := range map[string]string{"Use": p.Use, "PIN": p.PIN, "Touch": p.Touch, "Guard": p.Guard, "PCRs": p.PCRs} {
			if word != "" {
				errs = append(errs, checkWord("Parts: "+member, word))
			}
		}
	}
	return errors.Join(errs...)
}

// CheckLabel refuses labels that are too long, not UTF-8, or not printable on one line.
func CheckLabel(label string) error {
	if len(label) > MaxLabel {
		return fmt.Errorf("label of more than %d octets", MaxLabel)
	}
	return checkText("label", label)
}

func checkWord(member, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s: missing", member)
	case len(s) > maxWord:
		return fmt.Errorf("%s: more than %d octets", member, maxWord)
	}
	return checkText(member, s)
}

func checkText(member, s string) error {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return fmt.Errorf("%s: not printable text", member)
	}
	return nil
}

func checkOctets(member string, b []byte, limit int) error {
	switch {
	case len(b) == 0:
		return fmt.Errorf("%s: missing", member)
	case len(b) > limit:
		return fmt.Errorf("%s: more than %d octets", member, limit)
	}
	return nil
}

// isUDF reports whether s is written as every record is named: seven groups of four
// Base32 characters. Such a name is safe in a path.
func isUDF(s string) bool {
	if len(s) != 34 {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case i%5 == 4 && c == '-':
		case i%5 != 4 && ('A' <= c && c <= 'Z' || '2' <= c && c <= '7'):
		default:
			return false
		}
	}
	return true
}
