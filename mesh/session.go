package mesh

import (
	"crypto/hkdf"
	"crypto/sha512"
	"fmt"
)

// The tags of session keys, by who sends.
const (
	tagInitiator = "TagKeyInitiatorResponder"
	tagResponder = "TagKeyResponderInitiator"
)

// SessionKeys are the two AES-256 keys of a session with a service, 32 octets each. The
// holder wipes them.
type SessionKeys struct {
	Initiator []byte // of what the initiator sends
	Responder []byte // of what the responder sends
}

// Wipe overwrites the keys.
func (k *SessionKeys) Wipe() {
	clear(k.Initiator)
	clear(k.Responder)
}

// DeriveSessionKeys derives the keys of a session from its agreements, each as
// keyshare.Point.SharedSecret gives it, in order: that of the client's ephemeral key and the host's
// key, and, for a mutually authenticated session, that of the client's key and the
// host's ephemeral key. The agreements are concatenated and expanded by HKDF-SHA-512 without salt,
// which is what the reference code does; the sum of keys of
// draft-hallambaker-mesh-cryptography-08, Section 7, lets a peer choose the key. No
// published trace allows to check the values.
func DeriveSessionKeys(first, second []byte) (*SessionKeys, error) {
	ikm := append(append(make([]byte, 0, len(first)+len(second)), first...), second...)
	defer clear(ikm)
	if len(first) == 0 {
		return nil, fmt.Errorf("derive session keys: no agreement")
	}
	var k SessionKeys
	var err error
	if k.Initiator, err = hkdf.Key(sha512.New, ikm, nil, tagInitiator, 32); err == nil {
		k.Responder, err = hkdf.Key(sha512.New, ikm, nil, tagResponder, 32)
	}
	if err != nil {
		k.Wipe()
		return nil, fmt.Errorf("derive session keys: %w", err)
	}
	return &k, nil
}
