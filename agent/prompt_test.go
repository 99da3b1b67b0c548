package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// person is a Prompter whose questions a test answers.
type person struct{ questions chan *asked }

// asked is a question that waits.
type asked struct {
	prompt.Question
	confirm bool
	ctx     context.Context
	reply   chan reaction
}

type reaction struct {
	pin string
	err error
}

func newPerson() *person { return &person{make(chan *asked)} }

func (p *person) ask(ctx context.Context, a *asked) ([]byte, error) {
	a.ctx, a.reply = ctx, make(chan reaction, 1)
	select {
	case p.questions <- a:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case r := <-a.reply:
		return []byte(r.pin), r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *person) PIN(ctx context.Context, q prompt.Question) ([]byte, error) {
	return p.ask(ctx, &asked{Question: q})
}

func (p *person) Confirm(ctx context.Context, q prompt.Question) error {
	_, err := p.ask(ctx, &asked{Question: q, confirm: true})
	return err
}

func (p *person) Program() string { return "/test/person" }

func (p *person) Test(ctx context.Context) (string, error) {
	_, err := p.ask(ctx, &asked{})
	return "a person", err
}

// next returns the next question. It must be of this kind and its text have these parts.
func (p *person) next(t *testing.T, confirm bool, parts ...string) *asked {
	t.Helper()
	q := <-p.questions
	if q.confirm != confirm {
		t.Errorf("%q: a question for yes or no: %t", q.Text, q.confirm)
	}
	for _, part := range parts {
		if !strings.Contains(q.Error+"\n"+q.Text, part) {
			t.Errorf("%q, %q lacks %q", q.Error, q.Text, part)
		}
	}
	return q
}

func (q *asked) answer(pin string) { q.reply <- reaction{pin: pin} }

func (q *asked) refuse(err error) { q.reply <- reaction{err: err} }

// none fails the test if somebody is asked.
func (p *person) none(t *testing.T) {
	t.Helper()
	select {
	case q := <-p.questions:
		t.Errorf("asked: %q", q.Text)
		q.refuse(prompt.ErrRefused)
	default:
	}
}

// promptBench is an agent that asks a person, with keys in a token that has a PIN.
type promptBench struct {
	*Agent
	*person
	fake *tokentest.Fake
	log  *bytes.Buffer
}

const rightPIN = "123456"

func newPromptBench(t *testing.T, o tokentest.FakeOptions, more ...token.Token) *promptBench {
	t.Helper()
	o.Name, o.PIN, o.Algorithms = "card", []byte(rightPIN), token.Algorithms()
	f := tokentest.NewFake(o)
	b := &promptBench{Agent: newAgent(t, Limits{}, append([]token.Token{presented{f}}, more...)...), person: newPerson(), fake: f, log: &bytes.Buffer{}}
	b.config.Prompter = b.person
	b.Agent.log = slog.New(slog.NewTextHandler(b.log, nil))
	return b
}

// presented is a fake that has the PIN for making keys.
type presented struct{ *tokentest.Fake }

func (p presented) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	req.Auth.PIN = []byte(rightPIN)
	return p.Fake.Generate(ctx, req)
}

// key makes a key, for which the PIN has not been presented.
func (b *promptBench) key(t *testing.T, use token.Use, policy token.PINPolicy) *keyring.Entry {
	t.Helper()
	e, err := b.ring.Generate(t.Context(), nil, keyring.GenerateSpec{
		Token: "card", Algorithm: token.P256, Use: use, Label: "my <key>", Policy: token.Policy{PIN: policy},
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (b *promptBench) operates(ctx context.Context, operation string) <-chan result {
	return b.operatesAs(ctx, int32(os.Getpid()), operation)
}

func (b *promptBench) operatesAs(ctx context.Context, pid int32, operation string) <-chan result {
	done := make(chan result, 1)
	go func() {
		r := &request{Agent: b.Agent, kind: meshAndSSH, pid: pid, owner: new(int)}
		r.peer.UID = b.uid
		_, body := r.operateOne(ctx, strictjson.Value(operation))
		var got result
		if err := strictjson.Unmarshal(body, &struct {
			*result
			Signature mesh.Binary
		}{result: &got}); err != nil {
			got.Error = err.Error()
		}
		done <- got
	}()
	return done
}

func signs(e *keyring.Entry) string {
	return fmt.Sprintf(`{"CryptographicOperationSign":{"KeyId":%q,"Data":"AA"}}`, e.Udf)
}

func want(t *testing.T, got result, status int, text string) {
	t.Helper()
	if got.Status != status || !strings.Contains(got.Error, text) || text == "" && got.Error != "" {
		t.Errorf("%+v, want %d %q", got, status, text)
	}
}

// TestPromptUnlocks asks until the PIN is right, and then no more.
func TestPromptUnlocks(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{Tries: 5})
	key := b.key(t, token.UseSign, token.PINDefault)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	done := b.operates(t.Context(), signs(key))
	about := []string{"PIN of the token card\n", "Key: my ?key?, " + key.Udf + ", for a signature\n", "Asked for by: " + prompt.Line(self) + ", process "}
	q := b.next(t, false, append(about, "5 tries are left.")...)
	if q.Error != "" || strings.Contains(q.Text, "each time") || strings.Contains(q.Text, "touch") {
		t.Errorf("%q, %q", q.Error, q.Text)
	}
	q.answer("000000")
	b.next(t, false, append(about, "That PIN was wrong.", "4 tries are left.")...).answer(rightPIN)
	want(t, <-done, 201, "")
	want(t, <-b.operates(t.Context(), signs(key)), 201, "")
	b.none(t)
	if strings.Contains(b.log.String(), rightPIN) || strings.Contains(b.log.String(), "000000") {
		t.Errorf("a PIN is in the log: %s", b.log)
	}

	b.fake.SetState(token.StateLocked)
	done = b.operates(t.Context(), signs(key))
	for range 3 {
		b.next(t, false).answer("999999")
	}
	want(t, <-done, 401, "pin wrong, 2 left")
	b.none(t)
}

// TestPromptEachTime asks for each operation of a key that wants it, and shares nothing.
func TestPromptEachTime(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{PINAlways: true, Tries: 5})
	signing := b.key(t, token.UseSign, token.PINAlways)
	agreeing := b.key(t, token.UseAgree, token.PINAlways)
	first, second := b.operates(t.Context(), signs(signing)), b.operates(t.Context(), signs(signing))
	for range 2 {
		b.next(t, false, "each time").answer(rightPIN)
	}
	want(t, <-first, 201, "")
	want(t, <-second, 201, "")
	done := b.operates(t.Context(), fmt.Sprintf(`{"CryptographicOperationKeyAgreement":{"KeyId":%q,"PublicKey":{"PublicKeyECDH":{"crv":"P256","Public":%q}}}}`,
		agreeing.Udf, b64(agreeing.Public.Octets)))
	b.next(t, false, "for an agreement").answer("000000")
	b.next(t, false, "That PIN was wrong.", "4 tries").refuse(prompt.ErrRefused)
	want(t, <-done, 401, "pin wrong, 4 left: the user refused")
	want(t, <-b.operates(t.Context(), fmt.Sprintf(`{"CryptographicOperationSign":{"KeyId":%q,"Data":"AA","PIN":%q}}`, signing.Udf, b64([]byte("000000")))), 401, "pin wrong")
	b.none(t)
}

// TestPromptSSH has OpenSSH's own protocol sign with a key that wants its PIN each time.
func TestPromptSSH(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	key := b.key(t, token.UseSSH, token.PINDefault)
	c := sshagent.NewClient(dial(t, serve(t, b.Agent).ssh))
	keys, err := c.List()
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	sign := func() <-chan error {
		done := make(chan error, 1)
		go func() {
			signature, err := c.Sign(keys[0], []byte("data"))
			if err == nil {
				var public ssh.PublicKey
				if public, err = ssh.ParsePublicKey(keys[0].Blob); err == nil {
					err = public.Verify([]byte("data"), signature)
				}
			}
			done <- err
		}()
		return done
	}
	done := sign()
	b.next(t, false, key.Udf, "a signature for SSH", fmt.Sprintf("process %d", os.Getpid())).refuse(prompt.ErrRefused)
	if err := <-done; err == nil {
		t.Error("signed although the user refused")
	}
	done = sign()
	b.next(t, false).answer(rightPIN)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestPromptShared has many wait for one PIN, while everything else goes on.
func TestPromptShared(t *testing.T) {
	t.Parallel()
	other := newFake("other")
	b := newPromptBench(t, tokentest.FakeOptions{}, other)
	key := b.key(t, token.UseSign, token.PINDefault)
	free := generate(t, b.Agent, "other", token.P256, token.UseSign)
	listed := b.key(t, token.UseSSH, token.PINDefault)
	ctx, hangUp := context.WithCancel(t.Context())
	first := b.operates(ctx, signs(key))
	q := b.next(t, false)
	var others []<-chan result
	for range 5 {
		others = append(others, b.operates(t.Context(), signs(key)))
	}
	b.waiters(t, 6)

	want(t, <-b.operates(t.Context(), signs(free)), 201, "")
	status := operateJSON(t, b.Agent, `{"StatusRequest":{}}`)
	for _, part := range []string{`"Prompt":{"Program":"/test/person","Waiting":[{"Token":"card","KeyId":"` + key.Udf + `","For":"a signature","Client":"`} {
		if !strings.Contains(status, part) {
			t.Errorf("%s lacks %s", status, part)
		}
	}
	if list := operateJSON(t, b.Agent, `{"KeyListRequest":{}}`); !strings.Contains(list, listed.Udf) {
		t.Errorf("list %s", list)
	}
	hangUp()
	want(t, <-first, 499, "cancelled")
	if err := q.ctx.Err(); err != nil {
		t.Errorf("the prompt went with one of six: %v", err)
	}
	q.answer(rightPIN)
	for _, done := range others {
		want(t, <-done, 201, "")
	}
	b.none(t)
	b.waiters(t, 0)

	// The last who goes takes the prompt along.
	b.fake.SetState(token.StateLocked)
	ctx, hangUp = context.WithCancel(t.Context())
	first, second := b.operates(ctx, signs(key)), b.operates(ctx, signs(key))
	q = b.next(t, false)
	b.waiters(t, 2)
	hangUp()
	want(t, <-first, 499, "cancelled")
	want(t, <-second, 499, "cancelled")
	<-q.ctx.Done()
	if b.fake.Info().State != token.StateLocked {
		t.Error("unlocked by nobody")
	}
}

// waiters waits until so many wait for a prompt.
func (b *promptBench) waiters(t *testing.T, n int) {
	t.Helper()
	for ; ; runtime.Gosched() {
		b.prompts.mu.Lock()
		waiting, joined := len(b.prompts.waiting), 0
		for _, u := range b.prompts.unlocks {
			joined += u.waiters
		}
		b.prompts.mu.Unlock()
		if waiting == n && joined == n {
			return
		}
		if t.Context().Err() != nil {
			t.Fatalf("%d wait, want %d", waiting, n)
		}
	}
}

// TestPromptNamesAll has several programs wait for one token: a question names those that wait when it is asked.
func TestPromptNamesAll(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{Tries: 9})
	key := b.key(t, token.UseSign, token.PINDefault)
	const nobody = 1 << 30 // no process has such a number
	as := func(pid int32) <-chan result { return b.operatesAs(t.Context(), pid, signs(key)) }
	done := []<-chan result{as(nobody)}
	q := b.next(t, false, fmt.Sprintf("Asked for by: process %d\n", nobody))
	for i := range int32(4) {
		done = append(done, as(nobody+1+i/2)) // two of each
	}
	b.waiters(t, 5)
	clients := slices.Sorted(slices.Values(q.Clients()))
	if !slices.Equal(clients, []int32{nobody, nobody + 1, nobody + 2}) {
		t.Errorf("it is the turn of %v", clients)
	}
	q.answer("000000")
	q = b.next(t, false, fmt.Sprintf("Asked for by: process %d; process ", nobody), fmt.Sprintf("process %d", nobody+1), fmt.Sprintf("process %d", nobody+2))
	done = append(done, as(nobody+3))
	b.waiters(t, 6)
	q.answer("000000")
	b.next(t, false, "; 1 more\n").answer(rightPIN)
	for _, d := range done {
		want(t, <-d, 201, "")
	}
	b.none(t)
}

// TestPromptUnanswered has each reason for which a question has no answer.
func TestPromptUnanswered(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	key := b.key(t, token.UseSign, token.PINDefault)
	broken := &prompt.ProgramError{Program: "/test/person", Err: errors.New("it does not exist"), Mend: "install it"}
	for _, test := range []struct {
		err    error
		status int
		text   string
	}{
		{prompt.ErrRefused, 401, "pin needed, 3 left: the user refused"},
		{prompt.ErrNoAnswer, 401, "pin needed, 3 left: nobody answered the prompt"},
		{prompt.ErrBusy, 429, "too many prompts are waiting"},
		{broken, 401, "pin needed, 3 left: prompt program /test/person: it does not exist"},
		{errors.New("something else"), 500, "incident"},
	} {
		done := b.operates(t.Context(), signs(key))
		b.next(t, false).refuse(test.err)
		want(t, <-done, test.status, test.text)
	}
	if calls := b.fake.Calls(tokentest.OpUnlock); calls != 0 {
		t.Errorf("the token was given %d PINs", calls)
	}
	if !strings.Contains(b.log.String(), "install it") {
		t.Errorf("log %s", b.log)
	}
	b.fake.FailBefore(tokentest.OpSign, &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "owner password", TriesLeft: token.TriesUnknown})
	want(t, <-b.operates(t.Context(), signs(key)), 401, "pin needed (owner password)")
	b.none(t)

	b.fake.FailBefore(tokentest.OpUnlock, &token.AuthError{Reason: token.ErrAuthWrong, Kind: "PIN", TriesLeft: 2, Detail: token.ErrRefused})
	done := b.operates(t.Context(), signs(key))
	b.next(t, false).answer("000000")
	b.next(t, false, "The token has refused that PIN before. It was not presented again.", "2 tries are left.").answer(rightPIN)
	want(t, <-done, 201, "")
}

// TestPromptLastTry spares the last try unless the person says yes.
func TestPromptLastTry(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{Tries: 2})
	key := b.key(t, token.UseSign, token.PINDefault)
	done := b.operates(t.Context(), signs(key))
	b.next(t, false, "2 tries are left.").answer("000000")
	q := b.next(t, true, "One try is left for the PIN of the token card.", "Use up the last try?", key.Udf)
	before := b.fake.Calls(tokentest.OpUnlock)
	q.refuse(prompt.ErrRefused)
	want(t, <-done, 401, "pin wrong, 1 left: the user refused")
	if b.fake.Calls(tokentest.OpUnlock) != before {
		t.Error("the last try was used up")
	}

	done = b.operates(t.Context(), signs(key))
	b.next(t, true).answer("")
	b.next(t, false, "THIS IS THE LAST TRY.").answer(rightPIN)
	want(t, <-done, 201, "")
}

// counting is a token that tells how many tries are left, and not with its errors.
type counting struct {
	*tokentest.Fake
	left chan int
}

func (c *counting) TriesLeft(context.Context) (int, error) {
	n := <-c.left
	if n == 0 {
		return 0, token.ErrLockedOut
	}
	return n, nil
}

// TestPromptLosesTries has somebody else use up tries while the person thinks.
func TestPromptLosesTries(t *testing.T) {
	t.Parallel()
	f := tokentest.NewFake(tokentest.FakeOptions{Name: "counts", PIN: []byte(rightPIN)})
	c := &counting{f, make(chan int, 10)}
	b := newPromptBench(t, tokentest.FakeOptions{}, c)
	if err := f.Unlock(t.Context(), []byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	key := generate(t, b.Agent, "counts", token.P256, token.UseSign)
	f.SetState(token.StateLocked)

	done := b.operates(t.Context(), signs(key))
	c.left <- 3
	q := b.next(t, false, "3 tries are left.")
	c.left <- 1
	c.left <- 1
	q.answer("000000")
	b.next(t, true, "One try is left").refuse(prompt.ErrRefused)
	want(t, <-done, 401, "pin needed, 1 left: the user refused")

	c.left <- 0
	want(t, <-b.operates(t.Context(), signs(key)), 423, "locked out")
	b.none(t)
	if calls := f.Calls(tokentest.OpUnlock); calls != 1 {
		t.Errorf("the token was given %d PINs", calls-1)
	}
}

// TestPromptRechecks deletes the key while the person thinks.
func TestPromptRechecks(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	key := b.key(t, token.UseSign, token.PINDefault)
	kept := b.key(t, token.UseSign, token.PINDefault)
	done := b.operates(t.Context(), signs(key))
	q := b.next(t, false)
	before := b.fake.Calls(tokentest.OpSign)
	if err := b.fake.Unlock(t.Context(), []byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ring.Delete(t.Context(), nil, key.Udf); err != nil {
		t.Fatal(err)
	}
	b.fake.SetState(token.StateLocked)
	q.answer(rightPIN)
	want(t, <-done, 404, "no such key")
	if b.fake.Calls(tokentest.OpSign) != before {
		t.Error("signed with a deleted key")
	}
	want(t, <-b.operates(t.Context(), signs(kept)), 201, "")
	b.none(t)
}

// TestPromptUnlockedMeanwhile asks nobody for a token that somebody else has unlocked already, unless that is
// not enough.
func TestPromptUnlockedMeanwhile(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	key := b.key(t, token.UseSign, token.PINDefault)
	if err := b.fake.Unlock(t.Context(), []byte(rightPIN)); err != nil {
		t.Fatal(err)
	}
	needed := &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: 3}
	b.fake.FailBefore(tokentest.OpSign, needed)
	want(t, <-b.operates(t.Context(), signs(key)), 201, "")
	b.none(t)
	b.fake.FailBefore(tokentest.OpSign, needed, needed)
	done := b.operates(t.Context(), signs(key))
	b.next(t, false).answer(rightPIN)
	want(t, <-done, 201, "")
	b.fake.FailBefore(tokentest.OpSign, &token.AuthError{Reason: token.ErrAuthNeeded, Kind: "PIN", TriesLeft: 3, Detail: token.ErrEachTime})
	done = b.operates(t.Context(), signs(key))
	b.next(t, false, "This key asks for it each time.").answer(rightPIN)
	want(t, <-done, 201, "")
	w := &wait{&plea{request: &request{Agent: b.Agent}}, keyring.Need{Token: "card", Err: needed}}
	if err := w.unlock(t.Context(), b.fake, b.fake); err != nil {
		t.Errorf("unlocked already: %v", err)
	}
	b.none(t)
}

// TestPromptHangup closes the socket of a client that waits.
func TestPromptHangup(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	key := b.key(t, token.UseSign, token.PINDefault)
	c := dial(t, serve(t, b.Agent).mesh)
	send(t, c, operateMessage(`{"OperateRequest":{"Operations":[`+signs(key)+`]}}`))
	q := b.next(t, false)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	<-q.ctx.Done()
	b.waiters(t, 0)
}

// TestPromptOfNobody answers as ever if no program is there.
func TestPromptOfNobody(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	key := b.key(t, token.UseSign, token.PINDefault)
	b.config.Prompter = nil
	want(t, <-b.operates(t.Context(), signs(key)), 401, "pin needed, 3 left")
	if status := operateJSON(t, b.Agent, `{"StatusRequest":{}}`); strings.Contains(status, "Prompt") {
		t.Errorf("status %s", status)
	}
	if found := (&request{Agent: b.Agent}).promptFindings(t.Context()); found != nil {
		t.Errorf("doctor: %+v", found)
	}
}

func TestPromptDoctor(t *testing.T) {
	t.Parallel()
	b := newPromptBench(t, tokentest.FakeOptions{})
	r := &request{Agent: b.Agent}
	for _, test := range []struct {
		err      error
		severity token.Severity
		mend     string
	}{
		{nil, token.SeverityInfo, ""},
		{&prompt.ProgramError{Program: "/p", Err: os.ErrNotExist, Mend: "install it"}, token.SeverityError, "install it"},
		{context.Canceled, token.SeverityError, "try again"},
	} {
		go func() { (<-b.questions).refuse(test.err) }()
		found := r.promptFindings(t.Context())
		if len(found) != 1 || found[0].Severity != string(test.severity) || found[0].Mend != test.mend || found[0].About != "prompt" {
			t.Errorf("%v: %+v", test.err, found)
		}
	}
}

// TestClientName says what is known of a process.
func TestClientName(t *testing.T) {
	t.Parallel()
	self, err := filepath.EvalSymlinks("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if got := (&request{pid: int32(os.Getpid())}).client(); got != prompt.Line(self)+", process "+fmt.Sprint(os.Getpid()) {
		t.Errorf("own process: %q", got)
	}
	if got := (&request{pid: 1 << 30}).client(); got != fmt.Sprintf("process %d", 1<<30) {
		t.Errorf("no process: %q", got)
	}
}
