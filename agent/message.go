package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// message is one kind of Mesh message. run returns the body of the response, or an
// error that becomes its Status and StatusDescription.
type message struct {
	request, response string
	deed              string // what it does, for people; empty if no token needs a PIN for it
	run               func(r *request, ctx context.Context, body strictjson.Value) ([]byte, error)
}

const makingKey = "making a key"

// messages is every message that the agent understands.
var messages = [...]message{
	{mesh.TagOperateRequest, mesh.TagOperateResponse, "", (*request).operate},
	{mesh.TagHelloRequest, mesh.TagMeshHelloResponse, "", (*request).hello},
	{mesh.TagKeyGenerateRequest, mesh.TagKeyGenerateResponse, makingKey, (*request).keyGenerate},
	{mesh.TagKeyImportRequest, mesh.TagKeyImportResponse, "taking a key in", (*request).keyImport},
	{mesh.TagKeyListRequest, mesh.TagKeyListResponse, "", (*request).keyList},
	{mesh.TagKeyDeleteRequest, mesh.TagKeyDeleteResponse, "deleting it", (*request).keyDelete},
	{mesh.TagTokenListRequest, mesh.TagTokenListResponse, "", (*request).tokenList},
	{mesh.TagTokenUnlockRequest, mesh.TagTokenUnlockResponse, "", (*request).tokenUnlock},
	{mesh.TagStatusRequest, mesh.TagStatusResponse, "", (*request).status},
	{mesh.TagAttestIdentifyRequest, mesh.TagAttestIdentifyResponse, "proof of which device it is", (*request).attestIdentify},
	{mesh.TagAttestAnswerRequest, mesh.TagAttestAnswerResponse, "proof of where it is", (*request).attestAnswer},
	{mesh.TagKeyResealRequest, mesh.TagKeyResealResponse, "sealing it anew", (*request).keyReseal},
	{mesh.TagKeyExportRequest, mesh.TagKeyExportResponse, "", (*request).keyExport},
	{mesh.TagTokenSetPINRequest, mesh.TagTokenSetPINResponse, "", (*request).tokenSetPIN},
	{mesh.TagTokenLockRequest, mesh.TagTokenLockResponse, "", (*request).tokenLock},
	{mesh.TagDoctorRequest, mesh.TagDoctorResponse, "", (*request).doctor},
	{mesh.TagAcceptRollbackRequest, mesh.TagAcceptRollbackResponse, "", (*request).acceptRollback},
}

// meshMessage answers one Mesh message. It reports false for contents that are not
// strict JSON, or not an object with one member that is the tag of a message: then there is no
// response tag under which to say what is wrong.
func (r *request) meshMessage(ctx context.Context, contents []byte) (reply []byte, ok bool) {
	tag, body, err := cutTagged(strictjson.EscapeControls(contents))
	if err != nil {
		return nil, false
	}
	for _, known := range [][]message{messages[:], deviceMessages[:]} {
		for _, m := range known {
			if m.request == tag {
				return r.respond(ctx, m, body), true
			}
		}
	}
	return nil, false
}

func (r *request) respond(ctx context.Context, m message, body strictjson.Value) []byte {
	ctx, done := r.attend(ctx, m.deed)
	defer done()
	response, err := m.run(r, ctx, body)
	defer clear(response)
	if err == nil && len(m.response)+len(response)+len(`{"":}`) > maxReply {
		err = malformed(m.request, "the reply is larger than a frame")
	}
	if err != nil {
		f := r.answerTo(err)
		response, err = strictjson.Marshal(mesh.Reply{Status: f.status, StatusDescription: f.text})
		if err != nil { // a text that is not UTF-8
			response = fmt.Appendf(nil, `{"Status":%d}`, f.status)
		}
	}
	return appendTagged(make([]byte, 0, len(m.response)+len(response)+len(`{"":}`)), m.response, response)
}

// appendTagged appends {"tag":body}. tag is one of the protocol's, which need no quoting.
func appendTagged(dst []byte, tag string, body []byte) []byte {
	dst = append(dst, `{"`...)
	dst = append(dst, tag...)
	dst = append(dst, `":`...)
	dst = append(dst, body...)
	return append(dst, '}')
}

var errNotJSON = errors.New("malformed JSON")

// cutTagged reads an object of exactly one member and checks the grammar of all of data. body
// is a part of data.
func cutTagged(data []byte) (tag string, body strictjson.Value, err error) {
	if !strictjson.Value(data).IsValid() {
		return "", nil, errNotJSON
	}
	return strictjson.CutTagged(data)
}

// decode decodes body into v, a pointer to a struct. An error starts with the member
// that is wrong, or with tag if body as a whole is.
func decode(tag string, body strictjson.Value, v any) error {
	if body.Kind() != '{' {
		return malformed(tag, "object expected")
	}
	if err := strictjson.Unmarshal(body, v); err != nil {
		return memberError(tag, err)
	}
	return nil
}

// memberError puts the member's name first. The name is that of the outermost member,
// with the way to the inner one after it.
func memberError(tag string, err error) error {
	var at *strictjson.Error
	if !errors.As(err, &at) {
		return malformed(tag, "malformed")
	}
	if member := strings.ReplaceAll(strings.TrimPrefix(at.Path, "/"), "/", "."); member != "" {
		tag = member
	}
	return malformed(tag, "%s", at.Reason)
}
