// Package keyring: STUB of the agreed API; its owner replaces this file.
package keyring

import (
	"context"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// Gate admits one operation to a token: it waits for a turn and returns the function that ends it.
// It may refuse (lock, policy, key deleted meanwhile). nil admits everything.
type Gate func(ctx context.Context, tokenName string) (leave func(), err error)

// Entry is one key, immutable.
type Entry struct {
	Udf, UdfG2 string // 28 characters with dashes
	Algorithm  token.Algorithm
	Use        token.Use
	Token      string // name of the (first) token
	Protection token.Protection
	Label      string
	Public     token.PublicKey
	Imported   bool
	ShareTo    []token.PublicKey
	State      string // "" if in order, "unverified" until first opened, "unreadable: why", "token absent"
}

// Operations: what this key can do now, by Operate names without the prefix: "Sign", "KeyAgreement", "Decrypt", "Share"; "ssh" keys: "SSH".
func (e *Entry) Operations() []string { panic("stub") }

// Each opens the key on first use (kept open), goes through the gate for each part, one after another.
func (e *Entry) Sign(ctx context.Context, gate Gate, req token.SignRequest) ([]byte, error) {
	panic("stub")
}
func (e *Entry) AgreePoint(ctx context.Context, gate Gate, peer *keyshare.Point, coefficient *keyshare.Scalar, auth token.Auth) (*keyshare.Point, error) {
	panic("stub")
}
func (e *Entry) Split(ctx context.Context, gate Gate, threshold int) ([]token.Share, error) {
	panic("stub")
} // len(ShareTo) shares

// Snapshot is an immutable view of all keys.
type Snapshot struct{}

func (s *Snapshot) Find(keyID string) (*Entry, error) { panic("stub") } // token.ErrNotFound; token.ErrBadRequest for a malformed or ambiguous id
func (s *Snapshot) Entries() []*Entry                 { panic("stub") } // sorted by Udf
func (s *Snapshot) Problems() []string                { panic("stub") } // records that did not load

type Keyring struct{}

// Open reads the records. It never fails because one record is bad.
func Open(st *store.Store, tokens ...token.Token) (*Keyring, error) { panic("stub") }
func (k *Keyring) Snapshot() *Snapshot                              { panic("stub") } // atomic pointer
func (k *Keyring) Tokens() []token.Token                            { panic("stub") }
func (k *Keyring) Token(name string) (token.Token, error)           { panic("stub") } // token.ErrNotFound

type GenerateSpec struct {
	Token     string
	Algorithm token.Algorithm
	Use       token.Use
	Label     string
	ShareTo   []token.PublicKey
}

func (k *Keyring) Generate(ctx context.Context, gate Gate, spec GenerateSpec) (*Entry, error) {
	panic("stub")
}

type ImportSpec struct {
	Token   string
	Use     token.Use
	Label   string
	Private *token.PrivateKey
	ShareTo []token.PublicKey
}

// Import: existed is true if the same key with the same use and token was there.
// Another use or token: ErrConflict (a use error).
func (k *Keyring) Import(ctx context.Context, gate Gate, spec ImportSpec) (e *Entry, existed bool, err error) {
	panic("stub")
}
func (k *Keyring) Delete(ctx context.Context, gate Gate, keyID string) (*Entry, error) { panic("stub") }

// Close closes tokens and store.
func (k *Keyring) Close() error { panic("stub") }
