package token

import (
	"fmt"
	"slices"
)

// Algorithm names a kind of key, the same everywhere: configuration, command line, JSON.
type Algorithm string

// The algorithms.
const (
	X25519  Algorithm = "X25519"
	X448    Algorithm = "X448"
	Ed25519 Algorithm = "Ed25519"
	Ed448   Algorithm = "Ed448"
	P256    Algorithm = "P256"
	P384    Algorithm = "P384"
	P521    Algorithm = "P521"
	RSA2048 Algorithm = "RSA2048"
	RSA3072 Algorithm = "RSA3072"
	RSA4096 Algorithm = "RSA4096"
)

var algorithms = [...]Algorithm{X25519, X448, Ed25519, Ed448, P256, P384, P521, RSA2048, RSA3072, RSA4096}

// Algorithms returns every algorithm, in the order of the seed identifiers 1 to 10 of
// draft-hallambaker-mesh-udf, Section 4.4.
func Algorithms() []Algorithm { return slices.Clone(algorithms[:]) }

// ParseAlgorithm returns the algorithm of exactly this name.
func ParseAlgorithm(name string) (Algorithm, error) {
	if a := Algorithm(name); slices.Contains(algorithms[:], a) {
		return a, nil
	}
	return "", fmt.Errorf("unknown algorithm %q (known: %v)", name, algorithms)
}

// RSABits returns the modulus length of an RSA algorithm, 0 for the others.
func (a Algorithm) RSABits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	}
	return 0
}

// Use is the one purpose of a key, set when it is made.
type Use string

// The uses. SignShare is a reserved word as yet. Seal is that of keys which the agent
// makes for itself: what was encrypted to them is opened and used inside.
const (
	UseSSH           Use = "ssh"
	UseSign          Use = "sign"
	UseSignAssertion Use = "sign-assertion"
	UseSignShare     Use = "sign-share"
	UseDecrypt       Use = "decrypt"
	UseAgree         Use = "agree"
	UseAuthenticate  Use = "authenticate"
	UseSplit         Use = "split"
	UseSeal          Use = "seal"
)

var usesNow = []Use{UseSSH, UseSign, UseSignAssertion, UseDecrypt, UseAgree, UseAuthenticate, UseSplit}
var usesReserved = []Use{UseSignShare, UseSeal}

// ParseUse returns the use of exactly this name. A reserved one is an error that
// wraps ErrUnsupported.
func ParseUse(name string) (Use, error) {
	u := Use(name)
	switch {
	case slices.Contains(usesNow, u):
		return u, nil
	case slices.Contains(usesReserved, u):
		return "", fmt.Errorf("use %q is reserved and not available: %w", name, ErrUnsupported)
	}
	return "", fmt.Errorf("unknown use %q (known: %v)", name, usesNow)
}

// ParseKeyUse is ParseUse for keys that the agent makes and for its records, which may have
// UseSeal too.
func ParseKeyUse(name string) (Use, error) {
	if u := Use(name); u == UseSeal {
		return u, nil
	}
	return ParseUse(name)
}

// Signs reports whether keys of this use make signatures.
func (u Use) Signs() bool { return u == UseSSH || u == UseSign || u == UseSignAssertion }

// Agrees reports whether keys of this use take part in key agreement inside the agent.
func (u Use) Agrees() bool {
	return u == UseAgree || u == UseDecrypt || u == UseAuthenticate || u == UseSeal
}

// OfSum returns the use that a key must have to be a part of one of use u: the base keys of a
// device are of no use alone, and those of other uses have the use of the sum.
func (u Use) OfSum() []Use {
	switch u {
	case UseDecrypt:
		return []Use{u, UseSeal}
	case UseSign:
		return []Use{u, UseSignAssertion}
	}
	return []Use{u}
}

// Allows reports whether a key of algorithm a can have this use; the error says why not.
func (u Use) Allows(a Algorithm) error {
	montgomery := a == X25519 || a == X448
	rsa := a.RSABits() != 0
	ok := false
	switch u {
	case UseSSH:
		ok = !montgomery && a != Ed448 // RFC 8709 defines ssh-ed448; OpenSSH does not have it.
	case UseSign, UseSignAssertion:
		ok = !montgomery
	case UseDecrypt:
		ok = true
	case UseAgree, UseAuthenticate, UseSplit, UseSeal:
		ok = !rsa
	}
	if !ok {
		return fmt.Errorf("a key of algorithm %s cannot have use %q: %w", a, string(u), ErrUnsupported)
	}
	return nil
}
