package agent

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// page runs docs/mesh.md. Its words in capitals stand for values that come up on the way.
type page struct {
	agent  *Agent
	device *mesh.DeviceInfo
	words  []string // old, new, old, new
}

func (p *page) learn(word, value string) { p.words = append(p.words, word, value) }

// run sends a request and returns the answer, which must be good if good is wanted.
func (p *page) run(t *testing.T, e example) (sent, answer string) {
	t.Helper()
	sent = strings.NewReplacer(p.words...).Replace(strings.TrimSpace(e.text))
	return sent, operateJSON(t, p.agent, sent)
}

func TestMeshPage(t *testing.T) {
	t.Parallel()
	p := &page{agent: newDeviceAgent(t)}
	account, foreign := newTestAccount(t, mesh.G1), newTestAccount(t, mesh.G1)
	p.learn("ACCOUNT", account.Account.Name())
	examples := loadExamples(t, "../docs/mesh.md")
	requests := 0
	for i, e := range examples {
		if e.role != "request" {
			continue
		}
		requests++
		_, answer := p.run(t, e)
		if i+1 < len(examples) && examples[i+1].role == "reply" {
			if want := strings.TrimSpace(examples[i+1].text); answer != want {
				t.Errorf("line %d: shown\n\t%s\nbut the agent answers\n\t%s", e.line, want, answer)
			}
			continue
		}
		p.check(t, e, answer, account, foreign)
	}
	if requests < 8 {
		t.Errorf("%d requests", requests)
	}
}

// check looks that a request succeeded, with its operations, and learns from the answer.
func (p *page) check(t *testing.T, e example, answer string, account, foreign *testAccount) {
	t.Helper()
	var outer strictjson.Tagged
	if err := strictjson.Unmarshal([]byte(answer), &outer); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(outer.Body), `{"Status":201`) || strings.Contains(answer, `"Error"`) {
		t.Fatalf("line %d: %s", e.line, answer)
	}
	switch outer.Tag {
	case mesh.TagDeviceInitResponse:
		var r mesh.DeviceResponse
		if err := outer.Decode(&r); err != nil {
			t.Fatal(err)
		}
		p.device = r.Device
		for word, x := range map[string]*testAccount{"CATALOG": account, "FOREIGN": foreign} {
			text, err := x.connect(t, r.Device).Marshal()
			if err != nil {
				t.Fatal(err)
			}
			p.learn(word, string(text))
		}
	case mesh.TagDeviceActivateResponse:
		var r mesh.DeviceActivateResponse
		if err := outer.Decode(&r); err != nil {
			t.Fatal(err)
		}
		p.learnKeys(t, r)
	}
}

// learnKeys learns the names of keys, and a letter to the device.
func (p *page) learnKeys(t *testing.T, r mesh.DeviceActivateResponse) {
	t.Helper()
	e, err := mesh.ParseEnvelope(r.Account.ConnectionDevice)
	if err != nil {
		t.Fatal(err)
	}
	c, err := device.ParseConnection(e, mesh.G1, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	letter, err := mesh.Encrypt(rand.Reader, []byte("letter"), "", *c.Encryption)
	if err != nil {
		t.Fatal(err)
	}
	to := letter.Header.Recipients[0]
	epk, err := strictjson.Marshal(to.EphemeralKey)
	if err != nil {
		t.Fatal(err)
	}
	text, err := letter.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	p.learn("LETTER", string(text))
	p.learn("EPK", string(epk))
	p.learn("WMK", base64.RawURLEncoding.EncodeToString(to.WrappedKey))
	p.learn("ENCRYPTION", keyNamed(t, r.Account.Keys, "DeviceEncryption").Udf)
	p.learn("SIGNATURE", keyNamed(t, r.Account.Keys, "Signature").Udf)
	p.learn("AUTHENTICATION", keyNamed(t, r.Account.Keys, "DeviceAuthentication").Udf)
}
