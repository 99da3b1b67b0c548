// Package keyfile: STUB of the agreed API; its owner replaces this file.
package keyfile

import (
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// Options for what a file alone does not say.
type Options struct {
	Algorithm  token.Algorithm // needed for seed ids 0 and >= 256; must agree otherwise
	KeyName    string
	Generation mesh.Generation
	Passphrase []byte // encrypted OpenSSH keys
}

// Parse reads any accepted private key file (PROTOCOL.md 4). warnings are for people.
func Parse(data []byte, opts Options) (key *token.PrivateKey, warnings []string, err error) {
	panic("stub")
}
