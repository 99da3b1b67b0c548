package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyfile"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// maxLabel is the length of a label in octets.
const maxLabel = 256

// maxRecipients is the number of entries of an envelope that are tried with UnwrapWith.
const maxRecipients = 64

var accepted = mesh.Reply{Status: mesh.StatusOK}

// quote shows a name from outside in a message.
func quote(s string) string {
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return strconv.Quote(s)
}

// hello answers HelloRequest.
func (r *request) hello(_ context.Context, body strictjson.Value) ([]byte, error) {
	if err := decode(mesh.TagHelloRequest, body, &mesh.HelloRequest{}); err != nil {
		return nil, err
	}
	known := make([]string, len(operations))
	for i, op := range operations {
		known[i] = op.tag
	}
	return strictjson.Marshal(mesh.MeshHelloResponse{
		Status:     mesh.StatusOK,
		Version:    mesh.Version{Major: 1, Minor: 0, Encodings: []string{"application/json"}},
		Operations: known,
		Build:      r.config.Build,
	})
}

// keyGenerate answers KeyGenerateRequest.
func (r *request) keyGenerate(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.KeyGenerateRequest
	if err := decode(mesh.TagKeyGenerateRequest, body, &req); err != nil {
		return nil, err
	}
	entry, recovery, err := r.makeKey(ctx, req)
	if err != nil {
		return nil, err
	}
	defer clear(recovery)
	return strictjson.Marshal(mesh.KeyResponse{Reply: accepted, Key: keyInfo(entry), Recovery: recovery})
}

// makeKey is what KeyGenerateRequest and CryptographicOperationGenerate have in common. The
// caller wipes the recovery secret.
func (r *request) makeKey(ctx context.Context, req mesh.KeyGenerateRequest) (entry *keyring.Entry, recovery []byte, err error) {
	if err := r.decide("", policy.Manage); err != nil {
		return nil, nil, err
	}
	algorithm, err := token.ParseAlgorithm(req.Algorithm)
	if err != nil {
		return nil, nil, malformed("Algorithm", "%v", err)
	}
	home, err := r.parseHome(req.Home, req.Use, req.Label, req.ShareTo)
	if err == nil {
		home.release, err = parseRelease(req.Release, home.use)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := home.allows(algorithm); err != nil {
		return nil, nil, err
	}
	spec := keyring.GenerateSpec{
		Token: home.token, Algorithm: algorithm, Use: home.use, Label: req.Label, ShareTo: home.shareTo, Tags: req.Tags,
		Release: home.release, Policy: home.policy, PCRs: req.PCRs, Place: home.place,
	}
	if home.seal {
		return r.ring.GenerateSealed(ctx, r.manageGate, spec)
	}
	entry, err = r.ring.Generate(ctx, r.manageGate, spec)
	return entry, nil, err
}

func checkLabel(label string) error {
	if len(label) > maxLabel {
		return malformed("Label", "at most %d octets expected", maxLabel)
	}
	if !utf8.ValidString(label) || slices.ContainsFunc([]rune(label), unicode.IsControl) {
		return malformed("Label", "text without control characters expected")
	}
	return nil
}

// maxShareTo is how many shares one reply holds on every curve.
const maxShareTo = 192

// parseShareTo decodes the recipients of a key of use split. Other uses have none.
func parseShareTo(use token.Use, values []strictjson.Value) ([]token.PublicKey, error) {
	switch n := len(values); {
	case use != token.UseSplit && n != 0:
		return nil, malformed("ShareTo", "only for use split")
	case use == token.UseSplit && (n < 2 || n > maxShareTo):
		return nil, malformed("ShareTo", "use split needs from 2 to %d recipients", maxShareTo)
	}
	var out []token.PublicKey
	for i, v := range values {
		pub, err := mesh.ParseKeyDataPublic(v)
		if err != nil {
			return nil, malformed("ShareTo", "recipient %d: %v", i+1, err)
		}
		if pub.Algorithm != token.X25519 && pub.Algorithm != token.X448 {
			return nil, malformed("ShareTo", "recipient %d: an X25519 or X448 key expected", i+1)
		}
		out = append(out, pub)
	}
	return out, nil
}

// keyImport answers KeyImportRequest.
func (r *request) keyImport(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.KeyImportRequest
	defer func() {
		clear(req.Key)
		clear(req.Passphrase)
	}()
	if err := decode(mesh.TagKeyImportRequest, body, &req); err != nil {
		return nil, err
	}
	if err := r.decide("", policy.Manage); err != nil {
		return nil, err
	}
	home, err := r.parseHome(req.Home, req.Use, req.Label, req.ShareTo)
	if err == nil {
		home.release, err = parseRelease(req.Release, home.use)
	}
	if err != nil {
		return nil, err
	}
	if req.Key == nil && home.place.Slot != "" {
		return r.adoptSlot(ctx, req, home)
	}
	if keyfile.IsTSS2(req.Key) && req.UnwrapWith == "" {
		return r.adopt(ctx, req, home)
	}
	private, warnings, err := r.privateKey(ctx, req)
	if err != nil {
		return nil, err
	}
	defer private.Wipe()
	if err := home.allows(private.Algorithm); err != nil {
		return nil, err
	}
	spec := keyring.ImportSpec{
		Token: home.token, Use: home.use, Label: req.Label, Private: private, ShareTo: home.shareTo, Tags: req.Tags,
		Release: home.release, Policy: home.policy, PCRs: req.PCRs, Place: home.place,
	}
	put := r.importInto
	if home.seal {
		put = r.ring.ImportSealed
	}
	entry, existed, recovery, err := put(ctx, r.manageGate, spec)
	if err != nil {
		return nil, err
	}
	defer clear(recovery)
	return strictjson.Marshal(mesh.KeyResponse{
		Reply: accepted, Key: keyInfo(entry), Warnings: warnings, Existed: existed, Recovery: recovery,
	})
}

// privateKey reads the key of an import, out of its envelope if it has one. The
// caller wipes it.
func (r *request) privateKey(ctx context.Context, req mesh.KeyImportRequest) (*token.PrivateKey, []string, error) {
	opts, err := importOptions(req)
	if err != nil {
		return nil, nil, err
	}
	file := []byte(req.Key)
	if req.UnwrapWith != "" {
		if file, err = r.openEnvelope(ctx, req.UnwrapWith, req.Key); err != nil {
			return nil, nil, err
		}
		defer clear(file)
	}
	private, warnings, err := keyfile.Parse(file, opts)
	switch {
	case err != nil && req.UnwrapWith != "":
		return nil, nil, errEnvelope // what else was in it is not for the client to know
	case errors.Is(err, token.ErrAuthNeeded), errors.Is(err, token.ErrAuthWrong):
		return nil, nil, err
	case err != nil:
		return nil, nil, malformed("Key", "%v", err)
	}
	return private, warnings, nil
}

func importOptions(req mesh.KeyImportRequest) (keyfile.Options, error) {
	opts := keyfile.Options{KeyName: req.KeyName, Generation: mesh.G1, Passphrase: req.Passphrase}
	var err error
	if req.Key == nil {
		return opts, malformed("Key", "missing")
	}
	if req.Algorithm != "" {
		if opts.Algorithm, err = token.ParseAlgorithm(req.Algorithm); err != nil {
			return opts, malformed("Algorithm", "%v", err)
		}
	}
	if req.Generation != "" {
		if opts.Generation, err = mesh.ParseGeneration(req.Generation); err != nil {
			return opts, malformed("Generation", `"g1" or "g2" expected`)
		}
	}
	return opts, nil
}

// openEnvelope decrypts a DARE envelope with one of the agent's keys. Entries that name the
// key are tried first; a kid is a hint that anybody can write. The caller wipes the plaintext.
func (r *request) openEnvelope(ctx context.Context, keyID string, data []byte) ([]byte, error) {
	key, err := r.grant(keyID, policy.Unwrap)
	switch {
	case errors.Is(err, token.ErrNotFound):
		return nil, &failure{statusNotFound, "UnwrapWith: no such key"}
	case err == errKeyID:
		return nil, malformed("UnwrapWith", "%s", keyIDWanted)
	case err != nil:
		return nil, err
	}
	if key.Use == token.UseSeal {
		if err := r.checkEscrow(key.Udf); err != nil {
			return nil, err
		}
	}
	envelope, err := mesh.ParseEnvelope(data)
	if err != nil {
		return nil, malformed("Key", "DARE envelope expected: %v", err)
	}
	if len(envelope.Header.Recipients) > maxRecipients {
		return nil, malformed("Key", "the envelope has more than %d recipients", maxRecipients)
	}
	seed, err := r.baseSeed(ctx, key, envelope.Header.Recipients, mesh.OperationDecrypt{}, nil)
	switch {
	case errors.Is(err, token.ErrDecrypt):
		return nil, errEnvelope
	case err != nil:
		return nil, err
	}
	defer clear(seed)
	plaintext, err := envelope.OpenToParse(seed)
	if err != nil {
		return nil, errEnvelope
	}
	return plaintext, nil
}

// baseSeed opens the first of the recipient entries that opens with the key, as op says: token.ErrDecrypt if there
// is none. The caller wipes the seed.
func (r *request) baseSeed(ctx context.Context, key grant, recipients []mesh.Recipient, op mesh.OperationDecrypt, partials []*keyshare.Point) ([]byte, error) {
	candidates, err := r.candidates(key.Entry, recipients)
	if err != nil {
		return nil, err
	}
	for _, to := range candidates {
		op.Recipient = &mesh.DecryptRecipient{EphemeralKey: to.EphemeralKey, WrappedKey: to.WrappedKey}
		seed, err := r.unwrap(ctx, key, op, partials)
		var refused *failure
		if !errors.Is(err, token.ErrDecrypt) && !(errors.As(err, &refused) && refused.status == statusBadPoint) {
			return seed, err
		}
	}
	return nil, token.ErrDecrypt
}

// errEnvelope is the one error for an envelope that does not open or does not hold a key.
var errEnvelope = malformed("Key", "the envelope does not open with the key of UnwrapWith, or does not hold a key")

// checkEscrow refuses a key that is not the escrow key of an account here.
func (r *request) checkEscrow(udf string) error {
	var accounts []*devicestate.Account
	if r.config.Device != nil {
		var err error
		if accounts, err = r.config.Device.Accounts(); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(accounts, func(a *devicestate.Account) bool {
		return slices.ContainsFunc(a.Keys, func(k devicestate.Key) bool { return k.Name == escrowName && k.Udf == udf })
	}) {
		return forbidden("use", "of keys of use seal only an account's escrow key opens keys")
	}
	return nil
}

// candidates returns the recipient entries on the key's curve, those that name it first. Of a key that wants a
// touch each time it is the first of them only: whoever wrote the envelope would have its owner touch it for each.
func (r *request) candidates(key *keyring.Entry, recipients []mesh.Recipient) ([]mesh.Recipient, error) {
	var named, others []mesh.Recipient
	for _, to := range recipients {
		if checkPoints("epk", to.EphemeralKey) != nil || to.EphemeralKey.PublicKeyECDH.Curve != string(key.Algorithm) {
			continue
		}
		if found, err := r.ring.Snapshot().Find(to.KeyID); err == nil && found.Udf == key.Udf {
			named = append(named, to)
		} else {
			others = append(others, to)
		}
	}
	switch {
	case !key.TouchedEachTime():
		return append(named, others...), nil
	case len(named) > 0:
		return named[:1], nil
	case len(others) > 1:
		return nil, malformed("recipients", "none names the key, which wants a touch each time, and several may be for it")
	}
	return others, nil
}

// keyList answers KeyListRequest with as many keys as fit.
func (r *request) keyList(_ context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.KeyListRequest
	if err := decode(mesh.TagKeyListRequest, body, &req); err != nil {
		return nil, err
	}
	if err := r.decide("", policy.Manage); err != nil {
		return nil, err
	}
	if req.Limit < 0 {
		return nil, malformed("Limit", "not negative expected")
	}
	snapshot := r.ring.Snapshot()
	if req.KeyId != "" {
		entry, err := snapshot.Find(req.KeyId)
		if errors.Is(err, token.ErrBadRequest) {
			return nil, errKeyID
		}
		if err != nil {
			return nil, err
		}
		return strictjson.Marshal(mesh.KeyListResponse{Reply: accepted, Keys: []mesh.KeyInfo{*keyInfo(entry)}})
	}
	return keyPage(snapshot.Entries(), req.After, req.Limit)
}

// keyPage encodes the entries after the one named, which need not exist any more: at
// most limit if that is not zero, and not more than a frame holds.
func keyPage(entries []*keyring.Entry, after string, limit int) ([]byte, error) {
	start, found := slices.BinarySearchFunc(entries, after, func(e *keyring.Entry, udf string) int {
		switch {
		case e.Udf < udf:
			return -1
		case e.Udf > udf:
			return 1
		}
		return 0
	})
	if found {
		start++
	}
	const rest = 200 // tags, status, More
	out := []byte(`{"Status":201,"Keys":[`)
	for i, e := range entries[start:] {
		item, err := strictjson.Marshal(keyInfo(e))
		if err != nil {
			return nil, err
		}
		if limit > 0 && i == limit || len(out)+len(item) > maxReply-rest && i > 0 {
			return append(out, `],"More":true}`...), nil
		}
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, item...)
	}
	return append(out, `]}`...), nil
}

func keyInfo(e *keyring.Entry) *mesh.KeyInfo {
	info := &mesh.KeyInfo{
		Udf:        e.Udf,
		UdfG2:      e.UdfG2,
		Algorithm:  string(e.Algorithm),
		Use:        string(e.Use),
		Token:      e.Token,
		Protection: e.Protected(),
		PIN:        pinWord(e.Policy.PIN),
		Touch:      string(e.Policy.Touch),
		PCRs:       e.PCRs,
		Label:      e.Label,
		PublicKey:  mesh.Parameters(e.Public),
		Operations: e.Operations(),
		Imported:   e.Imported,
		Tags:       e.Tags,
		Release:    string(e.Release),
		State:      e.State,
	}
	for _, to := range e.ShareTo {
		if udf, err := mesh.Fingerprint(to, mesh.G1); err == nil {
			info.ShareTo = append(info.ShareTo, udf)
		}
	}
	return info
}

// keyDelete answers KeyDeleteRequest with what the key was.
func (r *request) keyDelete(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.KeyDeleteRequest
	if err := decode(mesh.TagKeyDeleteRequest, body, &req); err != nil {
		return nil, err
	}
	if err := r.decide("", policy.Manage); err != nil {
		return nil, err
	}
	if req.KeyId == "" {
		return nil, malformed("KeyId", "missing")
	}
	entry, err := r.ring.Delete(ctx, r.manageGate, req.KeyId)
	if errors.Is(err, token.ErrBadRequest) {
		return nil, errKeyID
	}
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(mesh.KeyResponse{Reply: accepted, Key: keyInfo(entry)})
}

// tokenList answers TokenListRequest.
func (r *request) tokenList(_ context.Context, body strictjson.Value) ([]byte, error) {
	if err := decode(mesh.TagTokenListRequest, body, &mesh.TokenListRequest{}); err != nil {
		return nil, err
	}
	if err := r.decide("", policy.Manage); err != nil {
		return nil, err
	}
	return strictjson.Marshal(mesh.TokenListResponse{Reply: accepted, Tokens: tokenInfos(r.ring.Tokens())})
}

func tokenInfos(tokens []token.Token) []mesh.TokenInfo {
	out := make([]mesh.TokenInfo, 0, len(tokens))
	for _, t := range tokens {
		info := t.Info()
		algorithms := make([]string, len(info.Algorithms))
		for i, a := range info.Algorithms {
			algorithms[i] = string(a)
		}
		out = append(out, mesh.TokenInfo{
			Name:        info.Name,
			Kind:        info.Kind,
			Description: info.Description,
			State:       string(info.State),
			Touches:     info.Touches,
			Protection:  string(info.Protection),
			Parallel:    info.Parallel,
			Algorithms:  algorithms,
			Operations:  token.Capabilities(t),
		})
	}
	return out
}

// tokenUnlock answers TokenUnlockRequest.
func (r *request) tokenUnlock(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.TokenUnlockRequest
	defer func() { clear(req.PIN) }()
	if err := decode(mesh.TagTokenUnlockRequest, body, &req); err != nil {
		return nil, err
	}
	if err := r.decide("", policy.Manage); err != nil {
		return nil, err
	}
	switch {
	case req.Token == "":
		return nil, malformed("Token", "missing")
	case len(req.PIN) == 0:
		return nil, malformed("PIN", "missing")
	}
	t, err := r.ring.Token(req.Token)
	if err != nil {
		return nil, noSuchToken(req.Token)
	}
	unlocker, ok := t.(token.Unlocker)
	if !ok {
		return nil, &failure{statusUnsupported, "this token has no PIN"}
	}
	leave, err := r.manageGate(ctx, req.Token)
	if err != nil {
		return nil, err
	}
	defer leave()
	unlock := unlocker.Unlock
	if guarded, ok := t.(token.LastTryUnlocker); ok && req.LastTry {
		unlock = guarded.UnlockLastTry
	}
	if err := unlock(ctx, req.PIN); err != nil {
		return nil, err
	}
	return strictjson.Marshal(accepted)
}

// maxListed is how many problems, findings and prompts a reply lists, so that it fits into a frame.
const maxListed = 200

// status answers StatusRequest.
func (r *request) status(_ context.Context, body strictjson.Value) ([]byte, error) {
	if err := decode(mesh.TagStatusRequest, body, &mesh.StatusRequest{}); err != nil {
		return nil, err
	}
	if err := r.decide("", policy.Manage); err != nil {
		return nil, err
	}
	snapshot := r.ring.Snapshot()
	problems := snapshot.Problems()
	if err := r.ring.RolledBack(); err != nil {
		problems = append(problems, err.Error())
	}
	if more := len(problems) - maxListed; more > 0 {
		problems = append(problems[:maxListed], fmt.Sprintf("and %d more", more))
	}
	return strictjson.Marshal(mesh.StatusResponse{
		Reply:    accepted,
		Build:    r.config.Build,
		Features: r.config.Features,
		PID:      os.Getpid(),
		Uptime:   int(time.Since(r.started).Seconds()),
		Socket:   r.config.Socket,
		SSH:      r.config.SSHSocket,
		State:    r.config.StateDir,
		Keys:     len(snapshot.Entries()),
		Tokens:   tokenInfos(r.ring.Tokens()),
		Problems: problems,
		Prompt:   r.promptInfo(),
	})
}
