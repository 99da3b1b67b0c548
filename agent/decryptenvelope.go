package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// maxSignatures is the number of signatures that an envelope may have.
const maxSignatures = 64

// errOpen is the one error for a wrapped seed, a witness, a digest, padding or a tag that is wrong.
var errOpen = malformed("Envelope", "%v", token.ErrDecrypt)

// decryptEnvelope opens a whole envelope, of which the plaintext leaves. Signatures are verified before the key is used.
func (r *request) decryptEnvelope(ctx context.Context, op mesh.OperationDecrypt) (any, error) {
	e, err := checkEnvelope(op)
	if err != nil {
		return nil, err
	}
	if err := checkPoints("Partials", op.Partials...); err != nil {
		return nil, err
	}
	key, err := r.grantRelease(op.KeyId, token.ReleasePlaintext)
	if err != nil {
		return nil, err
	}
	if _, ok := mesh.CurveOf(key.Algorithm); !ok {
		return nil, fmt.Errorf("an envelope for an %s key: %w", key.Algorithm, token.ErrUnsupported)
	}
	signed, err := r.verifyEnvelope(e, op.Signers)
	if err != nil {
		return nil, err
	}
	if err := r.mayShow(key, e, signed); err != nil {
		return nil, err
	}
	out := mesh.ResultDecrypt{Status: mesh.StatusOK, ContentType: e.Header.ContentType(), Signature: signatureWord(e, signed)}
	for _, s := range signed {
		udf, err := mesh.Fingerprint(s.Key, s.Generation)
		if err != nil {
			return nil, err
		}
		out.SignedBy = append(out.SignedBy, udf)
	}
	if out.Plaintext, err = r.plaintext(ctx, key, e, op); err != nil {
		return nil, err
	}
	return out, nil
}

// checkEnvelope looks at the members that belong to an envelope, and reads it.
func checkEnvelope(op mesh.OperationDecrypt) (*mesh.Envelope, error) {
	switch {
	case op.Recipient != nil:
		return nil, malformed("Recipient", "not together with Envelope")
	case op.Release != string(token.ReleasePlaintext):
		return nil, malformed("Release", `"plaintext" expected with Envelope`)
	case op.Salt != nil:
		return nil, malformed("Salt", "only with Release key")
	}
	e, err := mesh.ParseEnvelope(op.Envelope)
	switch {
	case err != nil:
		return nil, malformed("Envelope", "%v", err)
	case e.Header.Encryption == "":
		return nil, malformed("Envelope", "it is not encrypted")
	case len(e.Header.Recipients) > maxRecipients:
		return nil, malformed("Envelope", "more than %d recipients", maxRecipients)
	case len(op.Signers) > maxSignatures:
		return nil, malformed("Signers", "at most %d expected", maxSignatures)
	case e.Trailer != nil && len(e.Trailer.Signatures) > maxSignatures:
		return nil, malformed("Envelope", "more than %d signatures", maxSignatures)
	}
	return e, nil
}

// verifyEnvelope verifies the signatures of an envelope: one by the keys that the client names must be there, or
// else those by keys that the agent knows are returned.
func (r *request) verifyEnvelope(e *mesh.Envelope, signers []mesh.PublicParameters) (by []mesh.SignedBy, err error) {
	if len(signers) != 0 {
		var wanted []token.PublicKey
		for _, s := range signers {
			key, err := s.PublicKey()
			if err != nil {
				return nil, malformed("Signers", "%v", err)
			}
			wanted = append(wanted, key)
		}
		by, err = e.Verify(wanted...)
	} else {
		by, err = e.VerifyKnown(r.knownSigners(e)...)
	}
	if err != nil && !errors.Is(err, token.ErrUnsupported) {
		return nil, malformed("Envelope", "%v", err)
	}
	return by, err
}

func signatureWord(e *mesh.Envelope, verified []mesh.SignedBy) string {
	switch {
	case len(verified) != 0:
		return mesh.SignatureVerified
	case e.Trailer != nil && len(e.Trailer.Signatures) != 0:
		return mesh.SignatureUnverified
	}
	return mesh.SignatureNone
}

// knownSigners are the keys that an envelope's signatures may be by: the agent's own, those of the device's profile,
// and those of the accounts to which it is connected.
func (r *request) knownSigners(e *mesh.Envelope) []token.PublicKey {
	if e.Trailer == nil || len(e.Trailer.Signatures) == 0 {
		return nil
	}
	var keys []token.PublicKey
	snapshot := r.ring.Snapshot()
	for _, s := range e.Trailer.Signatures {
		if own, err := snapshot.Find(s.KeyID); err == nil && own.Use.Signs() {
			keys = append(keys, own.Public)
		}
	}
	d, err := r.deviceRecord()
	if err != nil || d == nil { // nobody is known by a record that cannot be read
		return keys
	}
	if own, err := parsed(d.Profile, device.ParseProfileDevice); err == nil {
		keys = append(keys, own.Signers()...)
	}
	for _, m := range d.Accounts {
		keys = append(keys, accountSigners(m)...)
	}
	return keys
}

// deviceRecord reads the device's record; nil if there is none.
func (r *request) deviceRecord() (*devicestate.Device, error) {
	if r.config.Device == nil {
		return nil, nil
	}
	d, err := r.config.Device.Device()
	if errors.Is(err, devicestate.ErrNotFound) {
		return nil, nil
	}
	return d, err
}

// accountSigners are the keys by which the account of a connection signs; none if there is no connection any more.
func accountSigners(m devicestate.Membership) []token.PublicKey {
	account, err := parsed(m.ProfileUser, device.ParseProfileUser)
	if err != nil {
		return nil
	}
	return account.Signers()
}

// parsed reads an enveloped object with a function that validates it.
func parsed[T any](text strictjson.Value, parse func(*mesh.Envelope, time.Time) (T, error)) (T, error) {
	e, err := mesh.ParseEnvelope(text)
	if err != nil {
		var none T
		return none, err
	}
	return parse(e, time.Now())
}

// mayShow reports whether the plaintext of an envelope may leave, of a combined key that gives out nothing else. A
// client that is not to have activations could cut the ciphertext of one to pieces, which is A256CBC, and have them
// decrypted as something else. So the ciphertext must be somebody else's work: its tag shows that (A256GCM), or
// a signature of the account by a key with which no client of this agent can sign.
func (r *request) mayShow(key grant, e *mesh.Envelope, signed []mesh.SignedBy) error {
	if key.Release != token.ReleasePlaintext || !isCombined(key.Entry) || e.Header.Encryption == mesh.A256GCM {
		return nil
	}
	d, err := r.deviceRecord()
	if err != nil {
		return err
	}
	if d != nil {
		for _, m := range d.Accounts {
			if slices.ContainsFunc(m.Keys, func(k devicestate.Key) bool { return k.Udf == key.Udf }) && r.signedOutside(signed, accountSigners(m)) {
				return nil
			}
		}
	}
	return forbidden("policy", "the device's combined key opens A256GCM, or what a key of the account signed that is not in this agent: without either the contents could be an activation that was altered")
}

// signedOutside reports whether one of the signatures is by a key of accepted that the agent has not.
func (r *request) signedOutside(signed []mesh.SignedBy, accepted []token.PublicKey) bool {
	return slices.ContainsFunc(signed, func(s mesh.SignedBy) bool {
		_, err := r.ring.Snapshot().FindPublic(s.Key)
		return errors.Is(err, token.ErrNotFound) && slices.ContainsFunc(accepted, s.Key.Equal)
	})
}

// plaintext opens an envelope whose signatures were looked at. What is for the agent alone stays here.
func (r *request) plaintext(ctx context.Context, key grant, e *mesh.Envelope, op mesh.OperationDecrypt) ([]byte, error) {
	partials, err := points(key.Entry, op.Partials)
	if err != nil {
		return nil, err
	}
	seed, err := r.baseSeed(ctx, key, e.Header.Recipients, op, partials)
	if err == nil {
		defer clear(seed)
		err = e.CheckWitness(seed)
	}
	var plaintext []byte
	if err == nil {
		plaintext, err = e.Open(seed)
	}
	switch {
	case errors.Is(err, token.ErrDecrypt):
		return nil, errOpen
	case err != nil:
		return nil, err
	}
	if tag := device.InsideOnly(plaintext); tag != "" {
		clear(plaintext)
		return nil, forbidden("use", "it is an %.64s, which opens inside the agent only: device activate takes the connection that it came with", tag)
	}
	return plaintext, nil
}
