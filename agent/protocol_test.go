package agent

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// example is a fenced block of a page in docs.
type example struct {
	line     int
	language string // "hex" or "json"
	role     string // "request"; "reply", which must come; "example", which need only decode
	text     string
}

func loadExamples(t *testing.T, name string) []example {
	t.Helper()
	page, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []example
	var open *example
	for i, line := range strings.Split(string(page), "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open == nil:
			language, role, _ := strings.Cut(info, " ")
			open = &example{line: i + 1, language: language, role: role}
		case fence:
			out = append(out, *open)
			open = nil
		case open != nil:
			open.text += line + "\n"
		}
	}
	if open != nil {
		t.Fatalf("line %d: the block does not end", open.line)
	}
	return out
}

// message returns the message that the example shows.
func (e example) message(t *testing.T) []byte {
	t.Helper()
	if e.language == "json" {
		compact := strings.TrimSpace(e.text)
		if e.role == "request" {
			return operateMessage(compact)
		}
		return append(appendString([]byte{sshExtensionResponse}, extensionOperate), compact...)
	}
	frame, err := hex.DecodeString(strings.Join(strings.Fields(e.text), ""))
	if err != nil || len(frame) < 5 || int(binary.BigEndian.Uint32(frame)) != len(frame)-4 {
		t.Fatalf("line %d: not a frame (%v)", e.line, err)
	}
	return frame[4:]
}

// replyTypes makes an empty value for each tag of a response and of a result.
var replyTypes = map[string]func() any{
	mesh.TagMeshHelloResponse:      func() any { return new(mesh.MeshHelloResponse) },
	mesh.TagOperateResponse:        func() any { return new(mesh.OperateResponse) },
	mesh.TagKeyGenerateResponse:    func() any { return new(mesh.KeyResponse) },
	mesh.TagKeyImportResponse:      func() any { return new(mesh.KeyResponse) },
	mesh.TagKeyListResponse:        func() any { return new(mesh.KeyListResponse) },
	mesh.TagKeyDeleteResponse:      func() any { return new(mesh.KeyResponse) },
	mesh.TagTokenListResponse:      func() any { return new(mesh.TokenListResponse) },
	mesh.TagTokenUnlockResponse:    func() any { return new(mesh.Reply) },
	mesh.TagTokenSetPINResponse:    func() any { return new(mesh.Reply) },
	mesh.TagTokenLockResponse:      func() any { return new(mesh.Reply) },
	mesh.TagAcceptRollbackResponse: func() any { return new(mesh.Reply) },
	mesh.TagDoctorResponse:         func() any { return new(mesh.DoctorResponse) },
	mesh.TagKeyResealResponse:      func() any { return new(mesh.KeyResponse) },
	mesh.TagKeyExportResponse:      func() any { return new(mesh.KeyExportResponse) },
	mesh.TagStatusResponse:         func() any { return new(mesh.StatusResponse) },
	mesh.TagResultAgreement:        func() any { return new(mesh.ResultKeyAgreement) },
	mesh.TagResultSign:             func() any { return new(mesh.ResultSign) },
	mesh.TagResultDecrypt:          func() any { return new(mesh.ResultDecrypt) },
	mesh.TagResultGenerate:         func() any { return new(mesh.ResultGenerate) },
	mesh.TagResultShare:            func() any { return new(mesh.ResultShare) },
	mesh.TagResult:                 func() any { return new(mesh.Failure) },
	mesh.TagResultSignEnvelope:     func() any { return new(mesh.ResultSignEnvelope) },
	mesh.TagResultAuthenticate:     func() any { return new(mesh.ResultAuthenticate) },

	mesh.TagAttestIdentifyResponse: func() any { return new(mesh.AttestIdentifyResponse) },
	mesh.TagAttestAnswerResponse:   func() any { return new(mesh.AttestAnswerResponse) },
}

// TestProtocolPage runs docs/protocol.md: requests are sent in their order, and what is
// shown as the reply must come back.
func TestProtocolPage(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, tokentest.NewFake(tokentest.FakeOptions{Name: "soft", Protection: token.ProtectionSoftware, Algorithms: token.Algorithms()}),
		tokentest.NewSealingFake(tokentest.FakeOptions{Name: "tpm", Kind: "tpm", Algorithms: []token.Algorithm{token.P256}}))
	a.config.Build = "v0.1.0"
	examples := loadExamples(t, "../docs/protocol.md")
	counts := make(map[string]int)
	var reply []byte
	for _, e := range examples {
		counts[e.language+" "+e.role]++
		shown := e.message(t)
		switch e.role {
		case "request":
			reply = a.exchange(t.Context(), meshAndSSH, shown)
		case "reply":
			if string(reply) != string(shown) {
				t.Errorf("line %d: shown\n%q\nbut the agent answers\n%q", e.line, shown, reply)
			}
		case "example":
		default:
			t.Errorf("line %d: a block of no known role: %q", e.line, e.role)
		}
		if e.language == "json" && e.role != "request" { // the agent decodes requests
			checkDecodes(t, e)
		}
	}
	for _, kind := range []string{"hex request", "hex reply", "json request", "json reply", "json example"} {
		if counts[kind] < 3 {
			t.Errorf("%d blocks of %q found", counts[kind], kind)
		}
	}
}

// TestProtocolPageIsComplete looks for the name of every message and operation.
func TestProtocolPageIsComplete(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range append(messages[:], deviceMessages[:]...) {
		if !strings.Contains(string(page), m.request) {
			t.Errorf("%s is not documented", m.request)
		}
	}
	for _, op := range operations {
		if !strings.Contains(string(page), "\n### 5.") || !strings.Contains(string(page), op.tag) {
			t.Errorf("%s is not documented", op.tag)
		}
	}
}

func checkDecodes(t *testing.T, e example) {
	t.Helper()
	var outer strictjson.Tagged
	if err := strictjson.Unmarshal([]byte(e.text), &outer); err != nil {
		t.Errorf("line %d: %v", e.line, err)
		return
	}
	v := decodeTagged(t, e, outer)
	var inner []strictjson.Tagged
	if r, ok := v.(*mesh.OperateResponse); ok {
		inner = r.Results
	}
	for _, op := range inner {
		decodeTagged(t, e, op)
	}
}

func decodeTagged(t *testing.T, e example, tagged strictjson.Tagged) any {
	t.Helper()
	newValue, ok := replyTypes[tagged.Tag]
	if !ok {
		t.Errorf("line %d: unknown tag %s", e.line, tagged.Tag)
		return nil
	}
	v := newValue()
	var refused result
	if tagged.Decode(&refused) == nil && refused.Error != "" {
		return &refused
	}
	if err := tagged.Decode(v); err != nil {
		t.Errorf("line %d: %s: %v", e.line, tagged.Tag, err)
	}
	return v
}
