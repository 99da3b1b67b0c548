package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// operation is one operation of OperateRequest. run returns the body of the result.
type operation struct {
	tag, result string
	deed        string // what it does, for people
	run         func(r *request, ctx context.Context, body strictjson.Value) (any, error)
}

// operations is every operation that the agent knows, in the order in which HelloRequest lists them.
var operations = [...]operation{
	{mesh.TagOperationAgreement, mesh.TagResultAgreement, "an agreement", (*request).agree},
	{mesh.TagOperationSign, mesh.TagResultSign, "a signature", (*request).sign},
	{mesh.TagOperationGenerate, mesh.TagResultGenerate, makingKey, (*request).generate},
	{mesh.TagOperationShare, mesh.TagResultShare, "shares of it", (*request).share},
	{mesh.TagOperationDecrypt, mesh.TagResultDecrypt, "decryption", (*request).decrypt},
	{mesh.TagOperationSignEnvelope, mesh.TagResultSignEnvelope, "a signed envelope", (*request).signEnvelope},
	{mesh.TagOperationAuthenticate, mesh.TagResultAuthenticate, "authentication", (*request).authenticate},
}

// operateRequest is mesh.OperateRequest with operations undecoded, so that a malformed one
// has its own result.
type operateRequest struct {
	AccountAddress string
	Operations     []strictjson.Value
}

// operate does the operations, several at once if there is a token that can, and answers
// each in its place.
func (r *request) operate(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req operateRequest
	if err := decode(mesh.TagOperateRequest, body, &req); err != nil {
		return nil, err
	}
	if len(req.Operations) == 0 {
		return nil, malformed("Operations", "at least one expected")
	}
	defer func() {
		for _, op := range req.Operations {
			clear(op) // a PIN may be in it
		}
	}()
	out := []byte(`{"Status":201,"StatusDescription":"understood","Results":[`)
	for i, result := range r.operateAll(ctx, req.Operations) {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendTagged(out, result.Tag, result.Body)
		clear(result.Body)
	}
	if len(out) > maxReply {
		clear(out)
		return nil, malformed("Operations", "the reply is larger than a frame, split the batch")
	}
	return append(out, `]}`...), nil
}

// operateAll does the operations with as many workers as the widest token runs at once. The gates bound
// what reaches each token, and let other connections in between.
func (r *request) operateAll(ctx context.Context, operations []strictjson.Value) []strictjson.Tagged {
	results := make([]strictjson.Tagged, len(operations))
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; i < int64(len(operations)); i = next.Add(1) - 1 {
			results[i].Tag, results[i].Body = r.operateOne(ctx, operations[i])
		}
	}
	var workers sync.WaitGroup
	for range min(r.parallel, len(operations)) - 1 {
		workers.Go(work)
	}
	work()
	workers.Wait()
	return results
}

// operateOne does one operation and returns its result and the tag of that.
func (r *request) operateOne(ctx context.Context, raw strictjson.Value) (tag string, result strictjson.Value) {
	tag, value, err := r.dispatch(ctx, raw)
	if err == nil {
		result, err = strictjson.Marshal(value)
		wipe(value)
		if err == nil {
			return tag, result
		}
	}
	f := r.answerTo(err)
	result, err = strictjson.Marshal(mesh.Failure{Status: f.status, Error: f.text})
	if err != nil { // a text that is not UTF-8
		result, _ = strictjson.Marshal(mesh.Failure{Status: f.status, Error: "error"})
	}
	return tag, result
}

// wipe overwrites the secrets of a message that has any.
func wipe(v any) {
	if secret, ok := v.(interface{ Wipe() }); ok {
		secret.Wipe()
	}
}

func (r *request) dispatch(ctx context.Context, raw strictjson.Value) (resultTag string, result any, err error) {
	tag, body, err := strictjson.CutTagged(raw) // raw was decoded, and so is valid
	if err != nil {
		return mesh.TagResult, nil, malformed("Operations", "object with exactly one member expected, which names the operation")
	}
	for _, op := range operations {
		if op.tag != tag {
			continue
		}
		if ctx.Err() != nil {
			return op.result, nil, context.Cause(ctx)
		}
		ctx, done := r.attend(ctx, op.deed)
		defer done()
		result, err := op.run(r, ctx, body)
		return op.result, result, err
	}
	return mesh.TagResult, nil, malformed("Operations", "unknown operation %.100q", tag)
}

// grant is a key that the peer may do an operation with. Its gate is what admits
// the operation to the key's tokens, one after another.
type grant struct {
	*keyring.Entry
	gate keyring.Gate
}

// grant looks the key up and asks the policy.
func (r *request) grant(keyID string, op policy.Operation) (grant, error) {
	if keyID == "" {
		return grant{}, malformed("KeyId", "missing")
	}
	snapshot := r.ring.Snapshot()
	entry, err := snapshot.Find(keyID)
	switch {
	case errors.Is(err, token.ErrBadRequest):
		return grant{}, errKeyID
	case err != nil:
		return grant{}, err
	}
	if err := r.permit(entry, op); err != nil {
		return grant{}, err
	}
	if err := r.asking.admit(entry); err != nil {
		return grant{}, err
	}
	return grant{entry, r.gate(snapshot, entry, op)}, nil
}

// auth offers a PIN to the key's token. It goes to one token only: another might count it as a
// wrong one.
func (g grant) auth(pin []byte) (token.Auth, error) {
	if len(pin) != 0 && len(g.Parts()) > 1 {
		return token.Auth{}, malformed("PIN", "the key is a sum of parts, whose tokens have PINs of their own")
	}
	return token.Auth{PIN: pin}, nil
}

// askingKeys are the keys in a batch that want a PIN or a touch for every operation. The user
// cannot tell what such a key is asked for, so a batch has one operation with each.
type askingKeys struct {
	mu   sync.Mutex
	udfs map[string]bool // guarded by mu
}

func (k *askingKeys) admit(e *keyring.Entry) error {
	if !e.AsksEachTime() {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.udfs[e.Udf] {
		return malformed("KeyId", "a batch has one operation with a key that asks for a PIN or a touch each time")
	}
	if k.udfs == nil {
		k.udfs = make(map[string]bool)
	}
	k.udfs[e.Udf] = true
	return nil
}

// errKeyID refuses a KeyId that is not one, or that is short enough to name two keys.
var errKeyID = malformed("KeyId", keyIDWanted)

const keyIDWanted = "at least 28 characters of the UDF of one key expected"

// permit asks the policy.
func (r *request) permit(entry *keyring.Entry, op policy.Operation) error {
	return r.decide(string(entry.Use), op)
}

func (r *request) decide(use string, op policy.Operation) error {
	switch v := r.policy.Decide(r.peer, use, op); {
	case v.Effect == policy.Allow:
		return nil
	case v.Effect == policy.Confirm:
		return forbidden("policy", "confirmation is asked for, and there is nobody to ask")
	case v.Rule == "use" && op == policy.Share:
		return forbidden("share", "%s", v.Why)
	default:
		return forbidden(v.Rule, "%s", v.Why)
	}
}

// gate admits an operation with entry to a token. When its turn comes the key must still
// be there and the policy must still allow it, because time has passed.
func (r *request) gate(seen *keyring.Snapshot, entry *keyring.Entry, op policy.Operation) keyring.Gate {
	return func(ctx context.Context, name string) (func(), error) {
		leave, err := r.enter(ctx, name)
		if err != nil {
			return nil, err
		}
		if err := r.recheck(seen, entry, op); err != nil {
			leave()
			return nil, err
		}
		return leave, nil
	}
}

func (r *request) recheck(seen *keyring.Snapshot, entry *keyring.Entry, op policy.Operation) error {
	if now := r.ring.Snapshot(); now != seen {
		found, err := now.FindPublic(entry.Public)
		if err != nil {
			return err
		}
		if found.Use != entry.Use || found.Release != entry.Release {
			return token.ErrNotFound
		}
	}
	return r.permit(entry, op)
}

// manageGate admits what makes or deletes keys.
func (r *request) manageGate(ctx context.Context, name string) (func(), error) {
	leave, err := r.enter(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := r.decide("", policy.Manage); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

func (r *request) enter(ctx context.Context, name string) (func(), error) {
	g := r.gates[name]
	if name == keyring.InMemory {
		g = r.memory
	}
	if t, err := r.ring.Token(name); g == nil && err == nil {
		g = r.gates[t.Info().Name] // which goes by other names too
	}
	if g == nil {
		return nil, fmt.Errorf("token %q is not configured: %w", name, token.ErrAbsent)
	}
	return g.enter(ctx, r.owner)
}

func noSuchToken(name string) error {
	return &failure{statusNotFound, "Token: no token is named " + quote(name)}
}

// agree does CryptographicOperationKeyAgreement.
func (r *request) agree(ctx context.Context, body strictjson.Value) (any, error) {
	var op mesh.OperationKeyAgreement
	defer func() { clear(op.PIN) }()
	if err := decode(mesh.TagOperationAgreement, body, &op); err != nil {
		return nil, err
	}
	if err := checkPoints("PublicKey", op.PublicKey); err != nil {
		return nil, err
	}
	key, err := r.grant(op.KeyId, policy.Agree)
	if err != nil {
		return nil, err
	}
	peer, err := point(key.Entry, "PublicKey", op.PublicKey)
	if err != nil {
		return nil, err
	}
	coefficient, err := coefficient(peer.Curve(), op.KeyCoefficient)
	if err != nil {
		return nil, err
	}
	auth, err := key.auth(op.PIN)
	if err != nil {
		return nil, err
	}
	sum, err := key.AgreePoint(ctx, key.gate, peer, coefficient, auth)
	if err != nil {
		return nil, err
	}
	return mesh.ResultKeyAgreement{
		Status: mesh.StatusOK,
		KeyAgreement: mesh.KeyAgreement{
			KeyAgreementECDH: mesh.KeyAgreementECDH{Curve: sum.Curve().String(), Result: sum.Bytes()},
		},
	}, nil
}

// checkPoints looks whether points are there, before anything about the key is said.
func checkPoints(member string, given ...mesh.PublicParameters) error {
	for _, g := range given {
		if g.PublicKeyECDH == nil || g.PublicKeyRSA != nil || g.Other != nil {
			return malformed(member, "PublicKeyECDH expected")
		}
		if g.PublicKeyECDH.Public == nil {
			return malformed(member, "PublicKeyECDH.Public missing")
		}
	}
	return nil
}

// point checks a point from outside, which must be on the key's own curve. checkPoints
// has found it to be there.
func point(key *keyring.Entry, member string, given mesh.PublicParameters) (*keyshare.Point, error) {
	curve, ok := mesh.CurveOf(key.Algorithm)
	if !ok {
		return nil, fmt.Errorf("key agreement with an %s key: %w", key.Algorithm, token.ErrUnsupported)
	}
	if name := given.PublicKeyECDH.Curve; name != curve.String() {
		return nil, malformed(member, "crv is %s, the key's curve is %v", quote(name), curve)
	}
	p, err := keyshare.ParsePoint(curve, given.PublicKeyECDH.Public)
	if err != nil {
		return nil, badPoint(member, err)
	}
	return p, nil
}

func coefficient(curve keyshare.Curve, octets mesh.Binary) (*keyshare.Scalar, error) {
	if octets == nil {
		return nil, nil
	}
	c, err := keyshare.ParseCoefficient(curve, octets)
	if err != nil {
		return nil, malformed("KeyCoefficient", "%d octets, 1 <= c < L expected, in the curve's encoding", curve.ScalarLen())
	}
	return c, nil
}

// sign does CryptographicOperationSign.
func (r *request) sign(ctx context.Context, body strictjson.Value) (any, error) {
	var op mesh.OperationSign
	defer func() { clear(op.PIN) }()
	if err := decode(mesh.TagOperationSign, body, &op); err != nil {
		return nil, err
	}
	if op.Data == nil {
		return nil, malformed("Data", "missing")
	}
	key, err := r.grant(op.KeyId, policy.Sign)
	if err != nil {
		return nil, err
	}
	req, err := signScheme(key.Algorithm, op.Mode)
	if err != nil {
		return nil, err
	}
	req.Message = op.Data
	if req.Auth, err = key.auth(op.PIN); err != nil {
		return nil, err
	}
	signature, err := key.Sign(ctx, key.gate, req)
	if err != nil {
		return nil, err
	}
	return mesh.ResultSign{Status: mesh.StatusOK, Signature: signature}, nil
}

// signScheme chooses how a key signs in a mode of CryptographicOperationSign.
func signScheme(a token.Algorithm, mode string) (token.SignRequest, error) {
	ecdsa := func(h crypto.Hash) (token.SignRequest, error) {
		if mode != "" {
			return token.SignRequest{}, malformed("Mode", "%s keys have none", a)
		}
		return token.SignRequest{Scheme: token.SchemeECDSA, Hash: h}, nil
	}
	switch a {
	case token.Ed25519, token.Ed448:
		switch mode {
		case "", "mesh":
			return token.SignRequest{Scheme: token.SchemeMeshEdDSA}, nil
		case "pure":
			return token.SignRequest{Scheme: token.SchemeEdDSA}, nil
		}
		return token.SignRequest{}, malformed("Mode", `"mesh" or "pure" expected`)
	case token.P256:
		return ecdsa(crypto.SHA256)
	case token.P384:
		return ecdsa(crypto.SHA384)
	case token.P521:
		return ecdsa(crypto.SHA512)
	case token.RSA2048, token.RSA3072, token.RSA4096:
		switch mode {
		case "":
			return token.SignRequest{Scheme: token.SchemePKCS1v15, Hash: crypto.SHA512}, nil
		case "pss":
			return token.SignRequest{Scheme: token.SchemePSS, Hash: crypto.SHA512}, nil
		}
		return token.SignRequest{}, malformed("Mode", `"pss" expected, or none`)
	}
	return token.SignRequest{}, fmt.Errorf("signature with an %s key: %w", a, token.ErrUnsupported)
}

// decrypt does CryptographicOperationDecrypt, in one of its forms.
func (r *request) decrypt(ctx context.Context, body strictjson.Value) (any, error) {
	var op mesh.OperationDecrypt
	defer func() { clear(op.PIN) }()
	if err := decode(mesh.TagOperationDecrypt, body, &op); err != nil {
		return nil, err
	}
	switch {
	case op.RSA != nil:
		return r.decryptRSA(ctx, op)
	case op.Envelope != nil:
		return r.decryptEnvelope(ctx, op)
	}
	return r.decryptRecipient(ctx, op)
}

// decryptRecipient opens a recipient entry of a DARE envelope.
func (r *request) decryptRecipient(ctx context.Context, op mesh.OperationDecrypt) (any, error) {
	release, err := checkRelease(op)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(checkPoints("Recipient", op.Recipient.EphemeralKey), checkPoints("Partials", op.Partials...)); err != nil {
		return nil, err
	}
	key, err := r.grantRelease(op.KeyId, release)
	if err != nil {
		return nil, err
	}
	partials, err := points(key.Entry, op.Partials)
	if err != nil {
		return nil, err
	}
	seed, err := r.unwrap(ctx, key, op, partials)
	if err != nil {
		return nil, err
	}
	if release == token.ReleaseSeed {
		return mesh.ResultDecrypt{Status: mesh.StatusOK, Seed: seed}, nil
	}
	defer clear(seed)
	// AES-256-CBC has the longer IV; that of AES-256-GCM is its beginning.
	contentKey, iv, err := mesh.ContentKeys(seed, op.Salt, "A256CBC")
	if err != nil {
		return nil, err
	}
	return mesh.ResultDecrypt{Status: mesh.StatusOK, Key: contentKey, IV: iv}, nil
}

// checkRelease looks at the members that belong to a recipient entry, and says what is to leave.
func checkRelease(op mesh.OperationDecrypt) (token.Release, error) {
	release, err := token.ParseRelease(op.Release)
	switch {
	case err != nil:
		return "", malformed("Release", `"seed" or "key" expected`)
	case release == token.ReleasePlaintext:
		return "", malformed("Envelope", "missing, Release is plaintext")
	case release == token.ReleaseKey && op.Salt == nil:
		return "", malformed("Salt", "missing, Release is key")
	case release != token.ReleaseKey && op.Salt != nil:
		return "", malformed("Salt", "only with Release key")
	case op.Signers != nil:
		return "", malformed("Signers", "only with Envelope")
	case op.Recipient == nil:
		return "", malformed("Recipient", "missing, and neither Envelope nor RSA in its place")
	case op.Recipient.WrappedKey == nil:
		return "", malformed("Recipient", "wmk missing")
	}
	return release, nil
}

// grantRelease is grant for a key that may give out what was encrypted to it in a form.
func (r *request) grantRelease(keyID string, release token.Release) (grant, error) {
	key, err := r.grant(keyID, policy.Decrypt)
	if err != nil {
		return grant{}, err
	}
	if !key.Release.Grants(release) {
		return grant{}, forbidden("policy", "the key gives out no more than the %v: ask with Envelope and Release plaintext", key.Release)
	}
	return key, nil
}

// points checks the points of the other share holders, which have the signed form: a
// missing sign would be a guess.
func points(key *keyring.Entry, given []mesh.PublicParameters) ([]*keyshare.Point, error) {
	var out []*keyshare.Point
	for _, g := range given {
		p, err := point(key, "Partials", g)
		if err != nil {
			return nil, err
		}
		if len(g.PublicKeyECDH.Public) != p.Curve().PointLen() {
			return nil, badPoint("Partials, where the signed form is needed", keyshare.ErrLength)
		}
		out = append(out, p)
	}
	return out, nil
}

// unwrap opens a recipient entry: agreement, the partial ones added, key wrap undone. The
// caller wipes the seed.
func (r *request) unwrap(ctx context.Context, key grant, op mesh.OperationDecrypt, partials []*keyshare.Point) ([]byte, error) {
	to := op.Recipient
	ephemeral, err := point(key.Entry, "Recipient", to.EphemeralKey)
	if err != nil {
		return nil, err
	}
	if err := r.mayUnwrap(key.Entry, ephemeral, partials); err != nil {
		return nil, err
	}
	auth, err := key.auth(op.PIN)
	if err != nil {
		return nil, err
	}
	own, err := key.AgreePoint(ctx, key.gate, ephemeral, nil, auth)
	if err != nil {
		return nil, err
	}
	agreement, err := keyshare.Combine(append(partials, own)...)
	if err != nil {
		return nil, badPoint("the sum of Partials", err)
	}
	return mesh.UnwrapSeed(agreement, op.Info, to.WrappedKey)
}

// generate does CryptographicOperationGenerate.
func (r *request) generate(ctx context.Context, body strictjson.Value) (any, error) {
	var op mesh.OperationGenerate
	if err := decode(mesh.TagOperationGenerate, body, &op); err != nil {
		return nil, err
	}
	entry, _, err := r.makeKey(ctx, mesh.KeyGenerateRequest{Home: mesh.Home{Token: op.Token}, Algorithm: op.Algorithm, Use: op.Use})
	if err != nil {
		return nil, err
	}
	return mesh.ResultGenerate{Status: mesh.StatusOK, KeyId: entry.Udf, PublicKey: mesh.Parameters(entry.Public)}, nil
}

// share does CryptographicOperationShare.
func (r *request) share(ctx context.Context, body strictjson.Value) (any, error) {
	var op mesh.OperationShare
	if err := decode(mesh.TagOperationShare, body, &op); err != nil {
		return nil, err
	}
	key, err := r.grant(op.KeyId, policy.Share)
	if err != nil {
		return nil, err
	}
	if n := len(key.ShareTo); op.Shares != n {
		return nil, malformed("Shares", "the key has %d recipients", n)
	}
	if op.Threshold < 2 || op.Threshold > op.Shares {
		return nil, malformed("Threshold", "from 2 to %d expected", op.Shares)
	}
	shares, err := key.Split(ctx, key.gate, op.Threshold)
	if err != nil {
		return nil, err
	}
	defer func() {
		for i := range shares {
			shares[i].Wipe()
		}
	}()
	result := mesh.ResultShare{Status: mesh.StatusOK}
	for i, s := range shares {
		item, err := envelopeShare(key.Algorithm, s, key.ShareTo[i])
		if err != nil {
			return nil, err
		}
		result.Shares = append(result.Shares, item)
	}
	return result, nil
}

// envelopeShare encrypts one share, as KeyData with the raw scalar, to its recipient.
func envelopeShare(a token.Algorithm, s token.Share, to token.PublicKey) (mesh.ResultShareItem, error) {
	recipient, err := mesh.Fingerprint(to, mesh.G1)
	if err != nil {
		return mesh.ResultShareItem{}, err
	}
	sealed, err := mesh.EncryptShare(rand.Reader, a, s, to)
	if err != nil {
		return mesh.ResultShareItem{}, err
	}
	envelope, err := sealed.Marshal()
	if err != nil {
		return mesh.ResultShareItem{}, err
	}
	return mesh.ResultShareItem{
		X:         s.X,
		Recipient: recipient,
		PublicKey: mesh.Parameters(token.PublicKey{Algorithm: a, Octets: s.Public}),
		Envelope:  envelope,
	}, nil
}
