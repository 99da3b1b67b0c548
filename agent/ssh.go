package agent

import (
	"context"
	"crypto"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/big"

	"golang.org/x/crypto/ssh"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/token"
)

// Message numbers of RFC 9987, Section 6.1. The requests that are not here are refused as unknown.
const (
	sshFailure           = 5
	sshRequestIdentities = 11
	sshIdentitiesAnswer  = 12
	sshSignRequest       = 13
	sshSignResponse      = 14
	sshExtension         = 27
	sshExtensionFailure  = 28
	sshExtensionResponse = 29
)

// Signature flags of RFC 9987, Section 5.6.1.
const (
	flagRSASHA256 = 2
	flagRSASHA512 = 4
)

// The extensions.
const (
	extensionQuery   = "query"
	extensionOperate = "operate@mathmesh.com"
)

// request is one message being worked on.
type request struct {
	*Agent
	kind   socketKind
	peer   policy.Peer
	pid    int32 // of the process that connected, for people
	owner  any   // tells connections apart in the queues
	asking askingKeys
	talk   talk
}

// answer appends the reply to one message, which has at least one octet, to dst.
func (r *request) answer(ctx context.Context, dst, message []byte) []byte {
	contents := message[1:]
	switch message[0] {
	case sshRequestIdentities:
		if len(contents) == 0 {
			return r.sshList(dst)
		}
	case sshSignRequest:
		return r.sshSign(ctx, dst, contents)
	case sshExtension:
		return r.sshExtension(ctx, dst, contents)
	}
	// Adding, removing, locking and unlocking among them: nothing is acknowledged that is not done.
	return append(dst, sshFailure)
}

// sshExtension dispatches an extension message (RFC 9987, Section 5.8). session-bind@openssh.com
// is unknown, as are all that are not enforced.
func (r *request) sshExtension(ctx context.Context, dst, contents []byte) []byte {
	name, rest, ok := cutString(contents)
	switch {
	case !ok:
	case string(name) == extensionQuery && len(rest) == 0:
		return r.sshQuery(dst)
	case string(name) == extensionQuery:
		return append(dst, sshExtensionFailure)
	case string(name) == extensionOperate && r.kind == meshAndSSH:
		return r.operateExtension(ctx, dst, rest)
	}
	return append(dst, sshFailure)
}

// sshQuery lists the extensions, as OpenSSH's agent does: without query itself.
func (r *request) sshQuery(dst []byte) []byte {
	dst = appendString(append(dst, sshExtensionResponse), extensionQuery)
	if r.kind == meshAndSSH {
		dst = appendString(dst, extensionOperate)
	}
	return dst
}

// operateExtension answers one Mesh message, or 28 if it is none.
func (r *request) operateExtension(ctx context.Context, dst, contents []byte) []byte {
	reply, ok := r.meshMessage(ctx, contents)
	if !ok {
		return append(dst, sshExtensionFailure)
	}
	defer clear(reply)
	dst = appendString(append(dst, sshExtensionResponse), extensionOperate)
	return append(dst, reply...)
}

// maxReply is the room for a Mesh message in a frame.
const maxReply = maxFrame - 1 - 4 - len(extensionOperate)

// identities are the keys of use ssh in one snapshot, encoded once.
type identities struct {
	snapshot *keyring.Snapshot
	list     []byte // the whole IDENTITIES_ANSWER
	byBlob   map[string]*keyring.Entry
}

// identities returns those of the present snapshot.
func (a *Agent) identities() *identities {
	now := a.ring.Snapshot()
	if ids := a.sshKeys.Load(); ids != nil && ids.snapshot == now {
		return ids
	}
	ids := newIdentities(now)
	a.sshKeys.Store(ids)
	return ids
}

func newIdentities(s *keyring.Snapshot) *identities {
	ids := &identities{snapshot: s, byBlob: make(map[string]*keyring.Entry)}
	var keys []byte
	for _, e := range s.Entries() {
		if e.Use != token.UseSSH {
			continue
		}
		blob, err := sshBlob(e.Public)
		if err != nil {
			continue // a use and an algorithm that exclude each other are refused when keys are made
		}
		ids.byBlob[string(blob)] = e
		keys = appendString(appendString(keys, blob), comment(e))
	}
	ids.list = binary.BigEndian.AppendUint32([]byte{sshIdentitiesAnswer}, uint32(len(ids.byBlob)))
	ids.list = append(ids.list, keys...)
	return ids
}

func comment(e *keyring.Entry) string {
	if e.Label != "" {
		return e.Label
	}
	return e.Udf
}

// sshList answers REQUEST_IDENTITIES.
func (r *request) sshList(dst []byte) []byte {
	list := r.identities().list
	if r.policy.Decide(r.peer, string(token.UseSSH), policy.SSH).Effect != policy.Allow || len(list) > maxFrame {
		return append(dst, sshFailure)
	}
	return append(dst, list...)
}

// sshSign answers SIGN_REQUEST. The protocol has one answer for whatever went wrong.
func (r *request) sshSign(ctx context.Context, dst, contents []byte) []byte {
	ask, ok := parseSignRequest(contents)
	if !ok {
		return append(dst, sshFailure)
	}
	ctx, done := r.attend(ctx, "a signature for SSH")
	defer done()
	signature, err := r.sshSignature(ctx, ask)
	if err != nil {
		f := r.answerTo(err)
		r.log.Info("ssh signature refused", "status", f.status, "reason", f.text)
		return append(dst, sshFailure)
	}
	return appendString(append(dst, sshSignResponse), signature)
}

// signRequest is the contents of SIGN_REQUEST (RFC 9987, Section 5.6).
type signRequest struct {
	key, data []byte
	flags     uint32
}

func parseSignRequest(contents []byte) (ask signRequest, ok bool) {
	if ask.key, contents, ok = cutString(contents); !ok {
		return signRequest{}, false
	}
	if ask.data, contents, ok = cutString(contents); !ok || len(contents) != 4 {
		return signRequest{}, false
	}
	ask.flags = binary.BigEndian.Uint32(contents)
	return ask, true
}

func (r *request) sshSignature(ctx context.Context, ask signRequest) ([]byte, error) {
	ids := r.identities()
	entry := ids.byBlob[string(ask.key)]
	if entry == nil {
		return nil, token.ErrNotFound
	}
	if err := r.permit(entry, policy.SSH); err != nil {
		return nil, err
	}
	how, err := sshScheme(entry.Algorithm, ask.flags)
	if err != nil {
		return nil, err
	}
	signature, err := entry.Sign(ctx, r.gate(ids.snapshot, entry, policy.SSH), token.SignRequest{
		Scheme: how.scheme, Hash: how.hash, Message: ask.data,
	})
	if err != nil {
		return nil, err
	}
	if how.scheme == token.SchemeECDSA {
		if signature, err = sshECDSA(signature); err != nil {
			return nil, err
		}
	}
	return appendString(appendString(nil, how.name), signature), nil
}

// sshSigning is how a signature is made and what SSH calls it.
type sshSigning struct {
	name   string
	scheme token.Scheme
	hash   crypto.Hash
}

// sshScheme chooses the signature by the key and, for RSA, by the flags. RSA without a
// flag means SHA-1 and is refused. Flags that RFC 9987 does not define are refused;
// those for RSA mean nothing to other keys.
func sshScheme(a token.Algorithm, flags uint32) (sshSigning, error) {
	if flags&^(flagRSASHA256|flagRSASHA512) != 0 {
		return sshSigning{}, malformed("flags", "%#x is not defined", flags)
	}
	switch a {
	case token.Ed25519:
		return sshSigning{name: ssh.KeyAlgoED25519, scheme: token.SchemeEdDSA}, nil
	case token.P256:
		return sshSigning{ssh.KeyAlgoECDSA256, token.SchemeECDSA, crypto.SHA256}, nil
	case token.P384:
		return sshSigning{ssh.KeyAlgoECDSA384, token.SchemeECDSA, crypto.SHA384}, nil
	case token.P521:
		return sshSigning{ssh.KeyAlgoECDSA521, token.SchemeECDSA, crypto.SHA512}, nil
	case token.RSA2048, token.RSA3072, token.RSA4096:
		switch {
		case flags&flagRSASHA512 != 0:
			return sshSigning{ssh.KeyAlgoRSASHA512, token.SchemePKCS1v15, crypto.SHA512}, nil
		case flags&flagRSASHA256 != 0:
			return sshSigning{ssh.KeyAlgoRSASHA256, token.SchemePKCS1v15, crypto.SHA256}, nil
		}
		return sshSigning{}, malformed("flags", "ssh-rsa signatures use SHA-1")
	}
	return sshSigning{}, fmt.Errorf("SSH signature with %s: %w", a, token.ErrUnsupported)
}

// sshECDSA turns ASN.1 DER into the two mpints of RFC 5656, Section 3.1.2.
func sshECDSA(der []byte) ([]byte, error) {
	var sig struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(der, &sig)
	if err != nil || len(rest) != 0 {
		return nil, fmt.Errorf("decode ECDSA signature: %w", token.ErrFault)
	}
	return ssh.Marshal(sig), nil
}

// sshBlob encodes a public key (RFC 4253, 6.6; RFC 5656, 3.1; RFC 8709, 4).
func sshBlob(pub token.PublicKey) ([]byte, error) {
	std, err := pub.Standard()
	if err != nil {
		return nil, err
	}
	key, err := ssh.NewPublicKey(std)
	if err != nil {
		return nil, fmt.Errorf("encode SSH public key: %w", err)
	}
	return key.Marshal(), nil
}

// cutString cuts a string of RFC 4251, Section 5 off the front of b.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

func appendString[T string | []byte](dst []byte, s T) []byte {
	return append(binary.BigEndian.AppendUint32(dst, uint32(len(s))), s...)
}
