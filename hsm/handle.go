package hsm

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

// handle says where a key is. It holds no secret, and its sum is against accidents only:
// what binds the key to its identity is the CKA_ID in the token.
type handle struct {
	serial string
	id     []byte
	// found is set for keys that other programs made, whose CKA_ID says nothing.
	found bool
}

const (
	handleVersion = 1
	sumLength     = 8
	idRandom      = 8
	idLength      = 20
	maxID         = 255 // octets of a CKA_ID that goes into a handle
)

// encode writes version, found, serial and id, each with its length, and a sum.
func (h handle) encode() []byte {
	b := []byte{handleVersion, 0}
	if h.found {
		b[1] = 1
	}
	b = append(b, byte(len(h.serial)))
	b = append(b, h.serial...)
	b = append(b, byte(len(h.id)))
	b = append(b, h.id...)
	sum := sha256.Sum256(b)
	return append(b, sum[:sumLength]...)
}

func decodeHandle(b []byte) (handle, error) {
	fail := fmt.Errorf("%w: not a handle of a PKCS#11 key", token.ErrCorrupt)
	if len(b) < sumLength {
		return handle{}, fail
	}
	body, sum := b[:len(b)-sumLength], sha256.Sum256(b[:len(b)-sumLength])
	if !bytes.Equal(sum[:sumLength], b[len(b)-sumLength:]) {
		return handle{}, fail
	}
	if len(body) < 3 || body[0] != handleVersion || body[1] > 1 {
		return handle{}, fail
	}
	serial, rest, ok := lengthPrefixed(body[2:])
	if !ok {
		return handle{}, fail
	}
	id, rest, ok := lengthPrefixed(rest)
	if !ok || len(rest) != 0 || len(id) == 0 {
		return handle{}, fail
	}
	return handle{string(serial), bytes.Clone(id), body[1] == 1}, nil
}

func lengthPrefixed(b []byte) (v, rest []byte, ok bool) {
	if len(b) == 0 || int(b[0]) > len(b)-1 {
		return nil, nil, false
	}
	n := 1 + int(b[0])
	return b[1:n], b[n:], true
}

// newID makes the CKA_ID of a key: random octets, and a hash of them with what is bound to the
// key. So the token's own object says what the key is for.
func newID(a token.Algorithm, u token.Use, sign byte, associated []byte) []byte {
	id := make([]byte, idRandom, idLength)
	rand.Read(id)
	return append(id, bindID(id, a, u, sign, associated)...)
}

// bindID returns the second part of a CKA_ID. The sign is the last octet of an X25519 or
// X448 public key, which the token does not know, and 0 for others.
func bindID(random []byte, a token.Algorithm, u token.Use, sign byte, associated []byte) []byte {
	h := sha256.New()
	h.Write(random)
	for _, s := range []string{string(a), string(u)} {
		h.Write([]byte{byte(len(s))})
		h.Write([]byte(s))
	}
	h.Write([]byte{sign})
	h.Write(associated)
	return h.Sum(nil)[:idLength-idRandom]
}

// signOctet returns the sign of an X25519 or X448 key.
func signOctet(p token.PublicKey) byte {
	if (p.Algorithm == token.X25519 || p.Algorithm == token.X448) && len(p.Octets) > 0 {
		return p.Octets[len(p.Octets)-1]
	}
	return 0
}

// check compares a handle with the identity that a record gives its key.
func (h handle) check(req token.OpenRequest) error {
	switch {
	case h.found && !req.Imported:
		return fmt.Errorf("%w: another program's key, although its record calls it the agent's own", token.ErrCorrupt)
	case h.found:
		return nil
	}
	if len(h.id) != idLength {
		return fmt.Errorf("%w: identifier of %d octets", token.ErrCorrupt, len(h.id))
	}
	want := bindID(h.id[:idRandom], req.Public.Algorithm, req.Use, signOctet(req.Public), req.Associated)
	if !bytes.Equal(h.id[idRandom:], want) {
		return fmt.Errorf("%w: the key was made for another use, or with other associated data", token.ErrCorrupt)
	}
	return nil
}

// sameKey compares public keys; the token does not know the sign of X25519 and X448.
func sameKey(p, q token.PublicKey) bool {
	if p.Algorithm != q.Algorithm || len(p.Octets) != len(q.Octets) {
		return false
	}
	n := len(p.Octets)
	if p.Algorithm == token.X25519 || p.Algorithm == token.X448 {
		n--
	}
	return bytes.Equal(p.Octets[:n], q.Octets[:n])
}

var errNoKey = errors.New("nothing in the token has this CKA_ID")
