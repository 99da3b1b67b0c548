package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// hostile puts an envelope's one good recipient entry after many that do not open, which name the key by both its UDFs in turns,
// or not at all.
func hostile(t *testing.T, e *mesh.Envelope, key token.PublicKey, names ...string) *mesh.Envelope {
	t.Helper()
	good := e.Header.Recipients[0]
	var all []mesh.Recipient
	for i := range maxRecipients - 1 {
		bad := good
		bad.KeyID, bad.WrappedKey = names[i%len(names)], slices.Clone(good.WrappedKey)
		bad.WrappedKey[0] ^= byte(i + 1)
		all = append(all, bad)
	}
	out := *e
	out.Header.Recipients = append(all, good)
	return &out
}

// openOperation decrypts a whole envelope.
func openOperation(t *testing.T, keyID string, e *mesh.Envelope) string {
	t.Helper()
	text, err := e.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"CryptographicOperationDecrypt":{"KeyId":%q,"Envelope":%s,"Release":"plaintext"}}`, keyID, text)
}

// asksEachTime makes a key that asks for its PIN, and perhaps for a touch, each time.
func (b *promptBench) asksEachTime(t *testing.T, alg token.Algorithm, p token.Policy) *keyring.Entry {
	t.Helper()
	e, err := b.ring.Generate(t.Context(), nil, keyring.GenerateSpec{Token: "card", Algorithm: alg, Use: token.UseDecrypt, Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// decrypts is operates for an operation whose result is a plaintext.
func (b *promptBench) decrypts(ctx context.Context, operation string) <-chan decryption {
	done := make(chan decryption, 1)
	go func() {
		r := &request{Agent: b.Agent, kind: meshAndSSH, pid: int32(os.Getpid()), owner: new(int)}
		r.peer.UID = b.uid
		_, body := r.operateOne(ctx, strictjson.Value(operation))
		var got decryption
		if err := strictjson.Unmarshal(body, &got); err != nil {
			got.Error = err.Error()
		}
		done <- got
	}()
	return done
}

// TestHostileEnvelope opens an envelope that names the key in many entries, of which only the last one opens: its
// user is asked once, and may say no once. A wrong PIN is asked for again.
func TestHostileEnvelope(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{PINAlways: true, Tries: 5})
	key := b.asksEachTime(t, token.X448, token.Policy{PIN: token.PINAlways})
	e := hostile(t, letter(t, mesh.G1, "hello", key.Public), key.Public, key.Udf, key.UdfG2, "")
	operation := openOperation(t, key.Udf, e)
	for _, test := range []struct {
		answers []reaction
		want    int
		text    string
	}{
		{[]reaction{{pin: rightPIN}}, 201, ""},
		{[]reaction{{pin: "000000"}, {pin: rightPIN}}, 201, ""},
		{[]reaction{{err: prompt.ErrRefused}}, 401, "the user refused"},
		{[]reaction{{err: prompt.ErrNoAnswer}}, 401, "nobody answered"},
		{[]reaction{{pin: "000000"}, {pin: "000001"}, {pin: "000002"}}, 401, "pin wrong, 2 left"},
	} {
		b.fake.ResetPIN()
		before := b.fake.Calls(tokentest.OpAgree)
		done := b.decrypts(t.Context(), operation)
		for _, a := range test.answers {
			b.next(t, false, "for decryption").reply <- a
		}
		got := <-done
		if got.Status != test.want || !strings.Contains(got.Error, test.text) || test.want == 201 && string(got.Plaintext) != "hello" {
			t.Errorf("%v: %+v", test.answers, got)
		}
		if calls := b.fake.Calls(tokentest.OpAgree) - before; calls > 1+len(test.answers) && test.want != 201 {
			t.Errorf("%v: the card was asked %d times", test.answers, calls)
		}
		b.none(t)
	}
}

// TestHostileEnvelopeChangesPIN has the PIN changed while an envelope is tried: nobody is asked again.
func TestHostileEnvelopeChangesPIN(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{PINAlways: true})
	key := b.asksEachTime(t, token.X448, token.Policy{PIN: token.PINAlways})
	wrong := &token.AuthError{Reason: token.ErrAuthWrong, Kind: "PIN", TriesLeft: 2}
	done := b.decrypts(t.Context(), openOperation(t, key.Udf, hostile(t, letter(t, mesh.G1, "hello", key.Public), key.Public, key.Udf)))
	q := b.next(t, false)
	needed := &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: 3}
	b.fake.FailBefore(tokentest.OpAgree, token.ErrDecrypt, needed, wrong)
	q.answer(rightPIN)
	if got := <-done; got.Status != 401 || got.Error != "pin wrong, 2 left" {
		t.Errorf("%+v", got)
	}
	b.none(t)
}

// TestHostileEnvelopeTouches has a key touched once for an envelope, or not at all.
func TestHostileEnvelopeTouches(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	if err := b.fake.Unlock(t.Context(), []byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	key := b.asksEachTime(t, token.X448, token.Policy{Touch: token.TouchAlways})
	plain := letter(t, mesh.G2, "hello", key.Public)
	for _, test := range []struct {
		name    string
		e       *mesh.Envelope
		touches int
		want    int
		text    string
	}{
		{"an honest one", plain, 1, 201, ""},
		{"many names", hostile(t, plain, key.Public, key.Udf, key.UdfG2), 1, 400, "decryption failed"},
		{"many without a name", hostile(t, plain, key.Public, ""), 1, 201, ""},
	} {
		before := b.fake.Calls(tokentest.OpAgree)
		got := <-b.decrypts(t.Context(), openOperation(t, key.Udf, test.e))
		if got.Status != test.want || !strings.Contains(got.Error, test.text) {
			t.Errorf("%s: %+v", test.name, got)
		}
		if touches := b.fake.Calls(tokentest.OpAgree) - before; touches != test.touches {
			t.Errorf("%s: %d touches", test.name, touches)
		}
	}
	before := b.fake.Calls(tokentest.OpAgree)
	nameless := hostile(t, plain, key.Public, "")
	nameless.Header.Recipients[maxRecipients-1].KeyID = ""
	if got := <-b.decrypts(t.Context(), openOperation(t, key.Udf, nameless)); got.Status != 400 || !strings.HasPrefix(got.Error, "recipients:") {
		t.Errorf("without any name: %+v", got)
	}
	if b.fake.Calls(tokentest.OpAgree) != before {
		t.Error("touched for a guess")
	}
}

// knowing is a keyring.Asker that knows the PIN.
type knowing struct{}

func (knowing) Context(ctx context.Context, _ keyring.Subject) context.Context { return ctx }

func (knowing) PIN(context.Context, keyring.Need) (token.Auth, error) {
	return token.Auth{PIN: []byte(rightPIN)}, nil
}

// TestHostileEnvelopeOfParts has a key of three parts, two in one card and one in another, all of which ask each time:
// each card's PIN is asked for once.
func TestHostileEnvelopeOfParts(t *testing.T) {
	t.Parallel()
	second := presented{tokentest.NewFake(tokentest.FakeOptions{Name: "second", Algorithms: token.Algorithms(), PIN: []byte(rightPIN), PINAlways: true})}
	b := newPromptBench(t, tokentest.FakeOptions{PINAlways: true}, second)
	e := b.asksEachTime(t, token.X448, token.Policy{PIN: token.PINAlways})
	for _, name := range []string{"card", "second"} {
		scalar, err := keyshare.RandomScalar(keyshare.X448, nil)
		if err != nil {
			t.Fatal(err)
		}
		if e, err = b.ring.AddComposite(keyring.WithAsker(t.Context(), knowing{}), nil, keyring.CompositeSpec{
			Base: e.Udf, Token: name, Use: token.UseDecrypt, Policy: token.Policy{PIN: token.PINAlways},
			Contribution: &token.PrivateKey{Algorithm: token.X448, Scalar: scalar.Bytes()},
		}); err != nil {
			t.Fatal(err)
		}
	}
	operation := openOperation(t, e.Udf, hostile(t, letter(t, mesh.G1, "hello", e.Public), e.Public, e.Udf, e.UdfG2))
	done := b.decrypts(t.Context(), operation)
	b.next(t, false, "PIN of the token card\n", e.Udf).answer(rightPIN)
	b.next(t, false, "PIN of the token second\n", e.Udf).answer(rightPIN)
	if got := <-done; got.Status != 201 || string(got.Plaintext) != "hello" {
		t.Errorf("%+v", got)
	}
	b.none(t)
	done = b.decrypts(t.Context(), operation)
	b.next(t, false, "PIN of the token card\n").answer(rightPIN)
	b.next(t, false, "PIN of the token second\n").refuse(prompt.ErrRefused)
	if got := <-done; got.Status != 401 {
		t.Errorf("%+v", got)
	}
	b.none(t)
}

// TestAskingOfLaterParts has only the second part of a key ask each time: a batch has one operation with it.
func TestAskingOfLaterParts(t *testing.T) {
	t.Parallel()
	a := newAgent(t, Limits{}, newFake("t"))
	base := generate(t, a, "t", token.X448, token.UseAgree)
	scalar, err := keyshare.RandomScalar(keyshare.X448, nil)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := a.ring.AddComposite(t.Context(), nil, keyring.CompositeSpec{
		Base: base.Udf, Token: "t", Use: token.UseAgree, Policy: token.Policy{Touch: token.TouchAlways},
		Contribution: &token.PrivateKey{Algorithm: token.X448, Scalar: scalar.Bytes()},
	})
	if err != nil {
		t.Fatal(err)
	}
	one := fmt.Sprintf(`{"CryptographicOperationKeyAgreement":{"KeyId":%q,"PublicKey":{"PublicKeyECDH":{"crv":"X448","Public":%q}}}}`, sum.Udf, b64(base.Public.Octets))
	reply := operateJSON(t, a, `{"OperateRequest":{"Operations":[`+one+`,`+one+`]}}`)
	if !strings.Contains(reply, `{"Status":400,"Error":"KeyId: a batch has one operation`) {
		t.Errorf("%s", reply)
	}
}

// TestRefusalEndsTheBatch says no once to a batch of many operations with keys of many tokens.
func TestRefusalEndsTheBatch(t *testing.T) {
	t.Parallel()
	second := presented{tokentest.NewFake(tokentest.FakeOptions{Name: "second", PIN: []byte(rightPIN)})}
	free := tokentest.NewFake(tokentest.FakeOptions{Name: "free", Parallel: 4})
	b := newPromptBench(t, tokentest.FakeOptions{}, second, free)
	var operations []string
	for range 5 {
		operations = append(operations, signs(b.key(t, token.UseSign, token.PINDefault)),
			signs(generate(t, b.Agent, "second", token.P256, token.UseSign)), signs(generate(t, b.Agent, "free", token.P256, token.UseSign)))
	}
	for _, refusal := range []error{prompt.ErrRefused, prompt.ErrNoAnswer, prompt.ErrBusy, &prompt.ProgramError{Program: "/p", Err: os.ErrNotExist}} {
		reply := make(chan string, 1)
		go func() {
			reply <- replyJSON(t, b.exchange(t.Context(), meshAndSSH, operateMessage(`{"OperateRequest":{"Operations":[`+strings.Join(operations, ",")+`]}}`)))
		}()
		b.next(t, false, "for a signature").refuse(refusal)
		status := `{"Status":401,`
		if refusal == prompt.ErrBusy {
			status = `{"Status":429,`
		}
		got := <-reply
		if strings.Count(got, status) != 10 || strings.Count(got, `{"Status":201,"Signature"`) != 5 || strings.Count(got, refusal.Error()) != 10 {
			t.Errorf("%v: %s", refusal, got)
		}
		b.none(t)
	}
}

// newDeviceBench is a promptBench that keeps a device, whose card takes keys in, with the PIN each time or after it was unlocked.
func newDeviceBench(t *testing.T, o tokentest.FakeOptions) *promptBench {
	t.Helper()
	o.Protection = token.ProtectionSoftware
	b := newPromptBench(t, o)
	keepDevice(t, b.Agent)
	return b
}

// says sends a message as a client of its own.
func (b *promptBench) says(t *testing.T, ctx context.Context, tag string, body any) <-chan string {
	t.Helper()
	tagged, err := strictjson.NewTagged(tag, body)
	if err != nil {
		t.Fatal(err)
	}
	text, err := strictjson.Marshal(tagged)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	go func() {
		r := &request{Agent: b.Agent, kind: meshAndSSH, peer: policy.Peer{UID: b.uid}, pid: int32(os.Getpid()), owner: new(int)}
		reply := r.answer(ctx, nil, operateMessage(string(text)))
		_, json, _ := bytes.Cut(reply, []byte(extensionOperate))
		done <- string(json)
	}()
	return done
}

// TestPromptDeviceEachTime makes and connects a device whose keys ask each time. What the administrator sends names the base key in
// sixteen entries. Each message asks once for making keys and once for each key that it uses.
func TestPromptDeviceEachTime(t *testing.T) {
	t.Parallel()
	b := newDeviceBench(t, tokentest.FakeOptions{PINAlways: true})
	home := mesh.Home{Token: "card", PIN: "always"}
	done := b.says(t, t.Context(), mesh.TagDeviceInitRequest, mesh.DeviceInitRequest{Home: home})
	b.next(t, false, "PIN of the token card\n", "Key: device base ", ", for making this device's Mesh identity\n").refuse(prompt.ErrRefused)
	if got := <-done; !strings.Contains(got, `"Status":401`) || len(b.ring.Snapshot().Entries()) != 0 {
		t.Errorf("refused: %s, %d keys", got, len(b.ring.Snapshot().Entries()))
	}
	done = b.says(t, t.Context(), mesh.TagDeviceInitRequest, mesh.DeviceInitRequest{Home: home})
	b.next(t, false, "PIN of the token card\n").answer(rightPIN)
	var made mesh.DeviceResponse
	if err := strictjson.Unmarshal(body(t, <-done, mesh.TagDeviceInitResponse), &made); err != nil || made.Status != 201 {
		t.Fatalf("%+v, %v", made, err)
	}
	account := newTestAccount(t, mesh.G1)
	approve(t, b.Agent, account.Account.Name())
	entry := account.connect(t, made.Device)
	for _, e := range entry.Activations[:1] {
		good := e.Header.Recipients[0]
		for i := range 15 {
			bad := good
			bad.WrappedKey = slices.Clone(good.WrappedKey)
			bad.WrappedKey[0] ^= byte(i + 1)
			e.Header.Recipients = append([]mesh.Recipient{bad}, e.Header.Recipients...)
		}
	}
	text, err := entry.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	base := keyNamed(t, made.Device.Keys, "Encryption")
	done = b.says(t, t.Context(), mesh.TagDeviceActivateRequest, mesh.DeviceActivateRequest{Catalog: text})
	b.next(t, false, base.Udf+", for a connection to an account").answer(rightPIN)
	b.next(t, false, "Key: alice@example.com Device", ", for a connection to an account").answer(rightPIN) // for making keys
	if got := <-done; !strings.Contains(got, `{"Status":201,`) {
		t.Errorf("activate: %s", got)
	}
	b.none(t)
}

// TestPromptDeviceLocked has a message about the device wait for a PIN: listings go on, other messages wait for it, and what was asked
// goes with its client, after which nothing is left.
func TestPromptDeviceLocked(t *testing.T) {
	t.Parallel()
	b := newDeviceBench(t, tokentest.FakeOptions{})
	ctx, hangUp := context.WithCancel(t.Context())
	first := b.says(t, ctx, mesh.TagDeviceInitRequest, mesh.DeviceInitRequest{Home: mesh.Home{Token: "card"}})
	q := b.next(t, false, "PIN of the token card\n", "for making this device's Mesh identity")
	for tag, want := range map[string]string{
		mesh.TagDeviceShowRequest: "there is none yet", mesh.TagAccountListRequest: `{"Status":201`, mesh.TagStatusRequest: `"Waiting":[{"Token":"card","For":"making this device's Mesh identity","Client":`,
	} {
		if got := <-b.says(t, t.Context(), tag, struct{}{}); !strings.Contains(got, want) {
			t.Errorf("%s meanwhile: %s", tag, got)
		}
	}
	second := b.says(t, t.Context(), mesh.TagDeviceApproveRequest, mesh.DeviceApproveRequest{Account: strings.Repeat("MAAA-", 7)[:34]})
	hangUp()
	if got := <-first; !strings.Contains(got, `"Status":499`) {
		t.Errorf("the client that went: %s", got)
	}
	<-q.ctx.Done()
	if got := <-second; !strings.Contains(got, "there is none yet") {
		t.Errorf("the one after it: %s", got)
	}
	if n := len(b.ring.Snapshot().Entries()); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	b.none(t)

	done := b.says(t, t.Context(), mesh.TagDeviceInitRequest, mesh.DeviceInitRequest{Home: mesh.Home{Token: "card"}})
	b.next(t, false).answer(rightPIN)
	if got := <-done; !strings.Contains(got, `"Status":201`) {
		t.Errorf("init: %s", got)
	}
	b.none(t)
}

// TestPromptToManage makes, takes in, proves and deletes keys of a token that is locked. Nobody is asked about one that is locked
// out, and the last try is not used up unnoticed.
func TestPromptToManage(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{Tries: 3})
	b.fake.SetState(token.StateLocked)
	scalar, err := keyshare.RandomScalar(keyshare.P256, nil)
	if err != nil {
		t.Fatal(err)
	}
	imported := fmt.Sprintf(`{"PrivateKeyECDH":{"crv":"P256z","Private":%q}}`, b64(scalar.Bytes()))
	request := mesh.KeyImportRequest{Home: mesh.Home{Token: "card"}, Use: "sign", Label: "old <b>key", Key: []byte(imported)}
	done := b.says(t, t.Context(), mesh.TagKeyImportRequest, request)
	b.next(t, false, "PIN of the token card\nKey: old ?b?key, for taking a key in\nAsked for by: ", "3 tries").answer("000000")
	b.next(t, false, "That PIN was wrong.", "2 tries").answer("000001")
	b.next(t, true, "One try is left", "for taking a key in").refuse(prompt.ErrRefused)
	if got := <-done; !strings.Contains(got, `"Status":401,"StatusDescription":"pin wrong, 1 left: the user refused"`) || b.fake.Keys() != 0 {
		t.Errorf("refused: %s", got)
	}
	done = b.says(t, t.Context(), mesh.TagKeyImportRequest, request)
	b.next(t, true, "One try is left").answer("")
	b.next(t, false, "THIS IS THE LAST TRY.").answer(rightPIN)
	if got := <-done; !strings.Contains(got, `{"Status":201,"Key":{`) {
		t.Errorf("imported: %s", got)
	}
	b.none(t)

	b.fake.SetState(token.StateLocked)
	b.fake.FailBefore(tokentest.OpImport, &token.LockoutError{RetryAfter: 60_000_000_000})
	scalar, err = keyshare.RandomScalar(keyshare.P256, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Key = fmt.Appendf(nil, `{"PrivateKeyECDH":{"crv":"P256z","Private":%q}}`, b64(scalar.Bytes()))
	if got := <-b.says(t, t.Context(), mesh.TagKeyImportRequest, request); !strings.Contains(got, `"Status":423`) {
		t.Errorf("locked out: %s", got)
	}
	b.none(t)
	b.config.Prompter = nil
	if got := <-b.says(t, t.Context(), mesh.TagKeyImportRequest, request); !strings.Contains(got, `"Status":401,"StatusDescription":"pin needed, 3 left"`) {
		t.Errorf("with no program: %s", got)
	}
}

// stubborn is a token that says that it is locked, whatever it is given.
type stubborn struct{ *tokentest.Fake }

func (s stubborn) Info() token.Info {
	info := s.Fake.Info()
	info.State = token.StateLocked
	return info
}

// TestStubbornToken asks for the PIN of a token that is not content with it a few times only.
func TestStubbornToken(t *testing.T) {
	t.Parallel()
	f := tokentest.NewFake(tokentest.FakeOptions{Name: "stubborn", PIN: []byte(rightPIN)})
	b := newPromptBench(t, tokentest.FakeOptions{}, stubborn{f})
	if err := f.Unlock(t.Context(), []byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	key := generate(t, b.Agent, "stubborn", token.P256, token.UseSign)
	needed := &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: 3}
	for _, c := range []struct {
		op        tokentest.Op
		questions int
		do        func() <-chan string
	}{
		{tokentest.OpSign, 1 + maxAsked, func() <-chan string {
			done := make(chan string, 1)
			go func() { done <- (<-b.operates(t.Context(), signs(key))).Error }()
			return done
		}},
		{tokentest.OpGenerate, 1 + maxAsked, func() <-chan string {
			return b.says(t, t.Context(), mesh.TagKeyGenerateRequest, mesh.KeyGenerateRequest{Home: mesh.Home{Token: "stubborn"}, Algorithm: "P256", Use: "sign"})
		}},
	} {
		for range 10 {
			f.FailBefore(c.op, needed)
		}
		done := c.do()
		for range c.questions {
			b.next(t, false, "PIN of the token stubborn").answer(rightPIN)
		}
		if got := <-done; !strings.Contains(got, "pin needed, 3 left: asked often enough") {
			t.Errorf("%s: %s", c.op, got)
		}
		b.none(t)
	}
}

// TestDeeds wants words for whatever may ask.
func TestDeeds(t *testing.T) {
	t.Parallel()
	for _, op := range operations {
		if op.deed == "" {
			t.Errorf("nobody says what %s does", op.tag)
		}
	}
	silent := []string{
		mesh.TagOperateRequest, mesh.TagHelloRequest, mesh.TagKeyListRequest, mesh.TagTokenListRequest, mesh.TagTokenUnlockRequest, mesh.TagStatusRequest,
		mesh.TagKeyExportRequest, mesh.TagTokenSetPINRequest, mesh.TagTokenLockRequest, mesh.TagDoctorRequest, mesh.TagAcceptRollbackRequest,
		mesh.TagDeviceShowRequest, mesh.TagAccountListRequest,
	}
	for _, m := range append(messages[:], deviceMessages[:]...) {
		if (m.deed == "") != slices.Contains(silent, m.request) {
			t.Errorf("%s: %q", m.request, m.deed)
		}
	}
}
