package agent

import (
	"context"
	"errors"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// home is what is checked alike for keys that are made and keys that are imported.
type home struct {
	token   string
	seal    bool // the token only seals the key
	policy  token.Policy
	place   token.Place
	use     token.Use
	shareTo []token.PublicKey
	release token.Release
}

// parseRelease reads the limit of a key of a use.
func parseRelease(name string, use token.Use) (token.Release, error) {
	release, err := token.ParseRelease(name)
	if err != nil {
		return "", malformed("Release", `"seed", "key" or "plaintext" expected`)
	}
	if release != token.ReleaseSeed && use != token.UseDecrypt {
		return "", malformed("Release", "only for use decrypt")
	}
	return release, nil
}

// allows refuses an algorithm that use or release cannot have.
func (h home) allows(a token.Algorithm) error {
	if err := h.use.Allows(a); err != nil {
		return malformed("Use", "%v", err)
	}
	if err := h.release.Allows(h.use, a); err != nil {
		return malformed("Release", "%v", err)
	}
	return nil
}

func (r *request) parseHome(in mesh.Home, use, label string, shareTo []strictjson.Value) (h home, err error) {
	if h.token, h.seal, err = r.parsePlace(in); err != nil {
		return home{}, err
	}
	if h.policy, err = parsePolicy(in); err != nil {
		return home{}, err
	}
	h.place = token.Place{Slot: in.Slot, Overwrite: in.OverwriteSlot}
	switch {
	case h.place == token.Place{}:
	case h.seal:
		return home{}, malformed("Slot", "only with Token")
	case in.Slot == "":
		return home{}, malformed("OverwriteSlot", "only with Slot")
	case !r.hasSlots(h.token):
		return home{}, malformed("Slot", "this token has no named slots")
	}
	if err := checkLabel(label); err != nil {
		return home{}, err
	}
	if h.use, err = token.ParseUse(use); err != nil {
		return home{}, malformed("Use", "%v", err)
	}
	h.shareTo, err = parseShareTo(h.use, shareTo)
	return h, err
}

// hasSlots reports whether the places for keys in a token have names: those of a PIV card, and the keys
// in a PKCS #11 token, which may be taken over by their names. A new key does not get such a name, as the token says
// itself.
func (r *request) hasSlots(name string) bool {
	t, err := r.ring.Token(name)
	if err != nil {
		return false
	}
	kind := t.Info().Kind
	return kind == "piv" || kind == "pkcs11"
}

// parsePlace wants exactly one of Token and SealTo, of which only the second has PCRs.
func (r *request) parsePlace(in mesh.Home) (name string, seal bool, err error) {
	member := "Token"
	name = in.Token
	switch {
	case in.Token != "" && in.SealTo != "":
		return "", false, malformed("SealTo", "either Token or SealTo expected")
	case in.SealTo != "":
		member, name, seal = "SealTo", in.SealTo, true
	case in.Token == "":
		return "", false, malformed("Token", "missing")
	case in.PCRs != "":
		return "", false, malformed("PCRs", "only with SealTo")
	}
	t, err := r.ring.Token(name)
	if err != nil {
		return "", false, &failure{statusNotFound, member + ": no token is named " + quote(name)}
	}
	return t.Info().Name, seal, nil
}

// pinNone is what the protocol calls token.PINNever.
const pinNone = "none"

func pinWord(p token.PINPolicy) string {
	if p == token.PINNever {
		return pinNone
	}
	return string(p)
}

func parsePolicy(in mesh.Home) (p token.Policy, err error) {
	switch in.PIN {
	case "", string(token.PINOnce), string(token.PINAlways):
		p.PIN = token.PINPolicy(in.PIN)
	case pinNone:
		p.PIN = token.PINNever
	default:
		return p, malformed("PIN", `"none", "once" or "always" expected`)
	}
	switch t := token.TouchPolicy(in.Touch); t {
	case token.TouchDefault, token.TouchNever, token.TouchCached, token.TouchAlways:
		p.Touch = t
	default:
		return p, malformed("Touch", `"never", "cached" or "always" expected`)
	}
	return p, nil
}

// importInto is Keyring.Import in the form of Keyring.ImportSealed.
func (r *request) importInto(ctx context.Context, gate keyring.Gate, spec keyring.ImportSpec) (e *keyring.Entry, existed bool, recovery []byte, err error) {
	e, existed, err = r.ring.Import(ctx, gate, spec)
	return e, existed, nil, err
}

// adopt takes over a key that is in the token already.
func (r *request) adopt(ctx context.Context, req mesh.KeyImportRequest, h home) ([]byte, error) {
	switch {
	case h.seal:
		return nil, malformed("SealTo", "a TSS2 key is in its TPM already; name that as Token")
	case h.policy != token.Policy{}:
		return nil, malformed("PIN", "the policy of a TSS2 key was set when it was made")
	case h.use == token.UseSplit:
		return nil, malformed("Use", "a key in a TPM cannot be split")
	}
	entry, existed, err := r.ring.Adopt(ctx, r.manageGate, keyring.AdoptSpec{
		Token: h.token, Use: h.use, Label: req.Label, Release: h.release, File: req.Key, Auth: token.Auth{PIN: req.Passphrase},
	})
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(mesh.KeyResponse{Reply: accepted, Key: keyInfo(entry), Existed: existed})
}

// adoptSlot takes over the key in a slot of a token.
func (r *request) adoptSlot(ctx context.Context, req mesh.KeyImportRequest, h home) ([]byte, error) {
	switch {
	case h.place.Overwrite:
		return nil, malformed("OverwriteSlot", "taking over a key leaves its slot as it is")
	case h.use == token.UseSplit:
		return nil, malformed("Use", "a key in a token cannot be split")
	}
	entry, existed, err := r.ring.Adopt(ctx, r.manageGate, keyring.AdoptSpec{Token: h.token, Use: h.use, Label: req.Label, Release: h.release, Slot: h.place.Slot, Policy: h.policy})
	if err != nil {
		return nil, err
	}
	return strictjson.Marshal(mesh.KeyResponse{Reply: accepted, Key: keyInfo(entry), Existed: existed})
}

// keyReseal answers KeyResealRequest.
func (r *request) keyReseal(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.KeyResealRequest
	defer func() { clear(req.Recovery) }()
	if err := r.decodeManage(mesh.TagKeyResealRequest, body, &req); err != nil {
		return nil, err
	}
	if req.KeyId == "" {
		return nil, malformed("KeyId", "missing")
	}
	entry, recovery, err := r.ring.Reseal(ctx, r.manageGate, req.KeyId, keyring.ResealSpec{PCRs: req.PCRs, Recovery: req.Recovery})
	switch {
	case errors.Is(err, keyring.ErrUse):
		return nil, forbidden("use", "the key is not sealed to PCRs")
	case err != nil:
		return nil, keyError(err)
	}
	defer clear(recovery)
	return strictjson.Marshal(mesh.KeyResponse{Reply: accepted, Key: keyInfo(entry), Recovery: recovery})
}

// keyError names the member for a KeyId that is not one.
func keyError(err error) error {
	if errors.Is(err, token.ErrBadRequest) {
		return errKeyID
	}
	return err
}

// keyExport answers KeyExportRequest.
func (r *request) keyExport(_ context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.KeyExportRequest
	if err := r.decodeManage(mesh.TagKeyExportRequest, body, &req); err != nil {
		return nil, err
	}
	switch {
	case req.KeyId == "":
		return nil, malformed("KeyId", "missing")
	case req.Format != "tss2":
		return nil, malformed("Format", `"tss2" expected`)
	}
	file, err := r.ring.Export(req.KeyId)
	if err != nil {
		return nil, keyError(err)
	}
	return strictjson.Marshal(mesh.KeyExportResponse{Reply: accepted, Key: file})
}

// tokenSetPIN answers TokenSetPINRequest.
func (r *request) tokenSetPIN(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.TokenSetPINRequest
	defer func() {
		clear(req.PIN)
		clear(req.Old)
	}()
	if err := r.decodeManage(mesh.TagTokenSetPINRequest, body, &req); err != nil {
		return nil, err
	}
	if len(req.PIN) == 0 {
		return nil, malformed("PIN", "missing")
	}
	t, err := r.namedToken(req.Token)
	if err != nil {
		return nil, err
	}
	setter, ok := t.(token.PINSetter)
	if !ok {
		return nil, &failure{statusUnsupported, "this token's PIN is not set here"}
	}
	leave, err := r.manageGate(ctx, req.Token)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := setter.SetPIN(ctx, req.Old, req.PIN); err != nil {
		return nil, err
	}
	return strictjson.Marshal(accepted)
}

// tokenLock answers TokenLockRequest.
func (r *request) tokenLock(ctx context.Context, body strictjson.Value) ([]byte, error) {
	var req mesh.TokenLockRequest
	if err := r.decodeManage(mesh.TagTokenLockRequest, body, &req); err != nil {
		return nil, err
	}
	if _, err := r.namedToken(req.Token); err != nil {
		return nil, err
	}
	if err := r.ring.Lock(ctx, r.manageGate, req.Token); err != nil {
		return nil, err
	}
	return strictjson.Marshal(accepted)
}

// decodeManage decodes a request that only who may manage keys may make.
func (r *request) decodeManage(tag string, body strictjson.Value, v any) error {
	if err := decode(tag, body, v); err != nil {
		return err
	}
	return r.decide("", policy.Manage)
}

// namedToken finds the token of a member Token.
func (r *request) namedToken(name string) (token.Token, error) {
	if name == "" {
		return nil, malformed("Token", "missing")
	}
	t, err := r.ring.Token(name)
	if err != nil {
		return nil, noSuchToken(name)
	}
	return t, nil
}
