package agent

import (
	"context"
	"fmt"
	"slices"

	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// signEnvelope does CryptographicOperationSignEnvelope: the body comes in, so that it is known
// what is signed.
func (r *request) signEnvelope(ctx context.Context, body strictjson.Value) (any, error) {
	var op mesh.OperationSignEnvelope
	defer func() { clear(op.PIN) }()
	if err := decode(mesh.TagOperationSignEnvelope, body, &op); err != nil {
		return nil, err
	}
	tagged, err := mesh.DecodeBody(op.Body)
	if err != nil {
		return nil, malformed("Body", "one tagged object in JSON or JSON-B expected")
	}
	o := mesh.EnvelopeOptions{
		Generation: mesh.G1, IncludeKey: op.IncludeKey,
		Meta: mesh.ContentMeta{MessageType: tagged.Tag, ContentType: mesh.ContentTypeObject},
	}
	if op.Generation != "" {
		if o.Generation, err = mesh.ParseGeneration(op.Generation); err != nil {
			return nil, malformed("Generation", `"g1" or "g2" expected`)
		}
	}
	if len(op.Recipients) > maxRecipients {
		return nil, malformed("Recipients", "at most %d expected", maxRecipients)
	}
	for i, text := range op.Recipients {
		pub, err := publicOf(text)
		if err != nil {
			return nil, malformed("Recipients", "recipient %d: %v", i+1, err)
		}
		o.Recipients = append(o.Recipients, pub)
	}
	key, err := r.grant(op.KeyId, policy.SignEnvelope)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(key.Tags, tagged.Tag) {
		return nil, forbidden("use", "the key does not sign bodies with the tag %.64q", tagged.Tag)
	}
	auth, err := key.auth(op.PIN)
	if err != nil {
		return nil, err
	}
	o.Signers = []mesh.Signer{ringKey{key.Entry, key.gate, auth}}
	e, err := mesh.NewEnvelope(ctx, op.Body, o)
	if err != nil {
		return nil, err
	}
	envelope, err := e.Marshal()
	if err != nil {
		return nil, err
	}
	return mesh.ResultSignEnvelope{Status: mesh.StatusOK, Envelope: envelope}, nil
}

// authenticate does CryptographicOperationAuthenticate. The second agreement stays inside.
func (r *request) authenticate(ctx context.Context, body strictjson.Value) (any, error) {
	var op mesh.OperationAuthenticate
	defer func() { clear(op.Agreement); clear(op.PIN) }()
	if err := decode(mesh.TagOperationAuthenticate, body, &op); err != nil {
		return nil, err
	}
	if err := checkPoints("PublicKey", op.PublicKey); err != nil {
		return nil, err
	}
	if !slices.Contains([]int{32, 48, 56, 57, 66}, len(op.Agreement)) {
		return nil, malformed("Agreement", "an agreement of 32, 48, 56, 57 or 66 octets expected")
	}
	key, err := r.grant(op.KeyId, policy.Authenticate)
	if err != nil {
		return nil, err
	}
	peer, err := point(key.Entry, "PublicKey", op.PublicKey)
	if err != nil {
		return nil, err
	}
	if r.isOwn(key.Algorithm, peer) {
		return nil, forbidden("policy", "PublicKey is one of this agent's own keys, not that of a service")
	}
	auth, err := key.auth(op.PIN)
	if err != nil {
		return nil, err
	}
	agreement, err := key.AgreePoint(ctx, key.gate, peer, nil, auth)
	if err != nil {
		return nil, err
	}
	second := agreement.SharedSecret()
	defer clear(second)
	keys, err := mesh.DeriveSessionKeys(op.Agreement, second)
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	return mesh.ResultAuthenticate{Status: mesh.StatusOK, Initiator: keys.Initiator, Responder: keys.Responder}, nil
}

// isOwn reports whether a point is the public key of a key here or of a part of one, or its
// opposite, with which an agreement is the same.
func (r *request) isOwn(a token.Algorithm, p *keyshare.Point) bool {
	index := indexOf(a, p)
	for _, e := range r.ring.Snapshot().Entries() {
		if e.Algorithm != a {
			continue
		}
		if unsigned(e.Public) == index {
			return true
		}
		for _, part := range e.Parts() {
			if unsigned(part.Public) == index {
				return true
			}
		}
	}
	return false
}

func indexOf(a token.Algorithm, p *keyshare.Point) string {
	return unsigned(token.PublicKey{Algorithm: a, Octets: p.Bytes()})
}

// unsigned is what a public key and its opposite have in common.
func unsigned(pub token.PublicKey) string {
	octets := slices.Clone(pub.Octets)
	switch pub.Algorithm {
	case token.X25519, token.X448, token.Ed448:
		octets = octets[:len(octets)-1]
	case token.Ed25519:
		octets[31] &= 0x7f
	case token.P256, token.P384, token.P521:
		octets = octets[:(len(octets)+1)/2] // 04 and x
	}
	return string(octets)
}
