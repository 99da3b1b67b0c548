package hsm

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// A module that says that its results are shorter, longer or more than they are gets errors for it,
// and none of its results is released; when it stops, all is as before.
func TestLiar(t *testing.T) {
	t.Parallel()
	for function, commands := range map[string][]string{
		"GetSlotList":       {"lie 0", "lie 1"},
		"GetMechanismList":  {"lie 0", "lie 1", "code 0 -1"},
		"GetAttributeValue": {"lie 0", "lie 1", "lie 0x400", "lie 0xffffffffffffffff", "swap", "code 0 -1"},
		"FindObjects":       {"lie 0", "lie 1", "lie 0x10", "code 0 -1"}, // without end
		"Sign":              {"lie 0", "lie 1", "lie 0x400", "code 0 -1"},
		"Decrypt":           {"lie 0", "lie 1", "lie 0x400", "code 0 -1"},
		"DeriveKey":         {"code 0 -1"},
		"GenerateKeyPair":   {"lie 0", "lie 1"},
	} {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			fake := hsmtest.NewFake(t)
			tok := openUnlocked(t, newTestModule(t, fake.Setup, func(o *ModuleOptions) { o.Stderr = nil }), fake.Setup)
			l := newLiar(t, tok)
			for _, command := range commands {
				fake.Do(t, function, command)
				l.tell(t, command)
				fake.Heal(t, function)
				if b := tok.bound.Load(); b != nil {
					tok.lose(b) // what it said of slot and mechanisms
				}
				wantSign(t, "after "+command, l.signer, nil)
			}
		})
	}
}

// liar has keys in a token whose module lies.
type liar struct {
	tok    *Token
	signer token.Signer
	agree  token.OpenRequest
	sealed []byte
}

func newLiar(t *testing.T, tok *Token) *liar {
	t.Helper()
	created, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseAgree})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := tok.Seal(t.Context(), token.SealRequest{Secret: []byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	return &liar{tok, signKeyFor(t, tok, token.P256), token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: token.UseAgree}, sealed.Blob}
}

// tell has the module lie to one operation of each kind.
func (l *liar) tell(t *testing.T, lie string) {
	t.Helper()
	ctx := t.Context()
	l.tok.lose(l.tok.bound.Load())
	if err := signOnce(ctx, l.signer, token.Auth{}); errors.Is(err, errWrongSignature) {
		t.Errorf("%s: %v", lie, err)
	}
	if k, err := l.tok.Open(ctx, l.agree); err == nil {
		p, err := k.(token.PointAgreer).AgreePoint(ctx, token.AgreeRequest{Peer: keyshare.BasePoint(keyshare.P256).Bytes()})
		if err == nil && !bytes.Equal(p, l.agree.Public.Octets) {
			t.Errorf("%s: a wrong point", lie)
		}
	}
	if got, err := l.tok.Unseal(ctx, token.UnsealRequest{Blob: l.sealed}); err == nil && string(got) != "secret" {
		t.Errorf("%s: unsealed %q", lie, got)
	}
	if c, err := l.tok.Generate(ctx, token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign}); err == nil && len(c.Public.Octets) != 65 {
		t.Errorf("%s: made a key of %d octets", lie, len(c.Public.Octets))
	}
	l.tok.Diagnose(ctx)
}

// A token that takes one session only works in the one that holds the login: nobody logs in or out in
// it while an operation is under way.
func TestLoginInOneSession(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	fake.Do(t, "sessions", "1")
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	k := signKeyFor(t, tok, token.P256)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 10 {
				err := signOnce(t.Context(), k, token.Auth{PIN: []byte(hsmtest.PIN)})
				if err != nil && !errors.Is(err, token.ErrAuthNeeded) {
					t.Error(err)
				}
				if err := tok.Lock(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := fake.Shared(t); len(got) != 0 {
		t.Errorf("functions that met in a session: %v", got)
	}
}

// Each wrong PIN costs one try, whichever was offered last.
func TestWrongPINsInTurn(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openLocked(t, newTestModule(t, fake.Setup), fake.Setup)
	for range 3 {
		for i := range 2 {
			err := tok.Unlock(t.Context(), wrongPIN(i))
			if !errors.Is(err, token.ErrAuthWrong) {
				t.Errorf("wrong PIN: %v", err)
			}
			if again := fake.Logins(t) == 2 && i == 0; again && !errors.Is(err, token.ErrRefused) {
				t.Errorf("%v does not say that the PIN was not presented", err)
			}
		}
	}
	if n := fake.Logins(t); n != 2 {
		t.Errorf("two wrong PINs were presented %d times", n)
	}
	if err := tok.Unlock(t.Context(), []byte(hsmtest.PIN)); err != nil {
		t.Error(err)
	}
}

// What a token says of itself is described in UTF-8, whatever that is: else nothing could be listed.
func TestTokenOfOtherScript(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	fake.Do(t, "serial", "M\xfcller\x1b[31m")
	tok := openLocked(t, newTestModule(t, fake.Setup), fake.Setup)
	if d := tok.Info().Description; !utf8.ValidString(d) || !strings.Contains(d, "M\uFFFDller") {
		t.Errorf("the description is %q", d)
	}
}

// A client that goes away while its wrong PIN is in the module has used up a try; nobody uses up another with that PIN.
func TestWrongPINAbandoned(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openLocked(t, newTestModule(t, fake.Setup), fake.Setup)
	wantOneTry(t, fake, "unlock", func(ctx context.Context) error { return tok.Unlock(ctx, wrongPIN(0)) })

	fake = hsmtest.NewFake(t)
	k := alwaysKey(t, openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup))
	wantOneTry(t, fake, "sign", func(ctx context.Context) error { return signOnce(ctx, k, token.Auth{PIN: wrongPIN(0)}) })
}

// wantOneTry has f present a wrong PIN twice, the first time for a caller that goes away while it is in the module.
func wantOneTry(t *testing.T, fake hsmtest.Fake, what string, f func(context.Context) error) {
	t.Helper()
	before := fake.Logins(t)
	await, release := fake.Hold(t, "Login")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f(ctx) }()
	await()
	cancel()
	release()
	if err := <-done; !errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("%s with a wrong PIN: %v, want ErrAuthWrong", what, err)
	}
	fake.Heal(t, "Login")
	if err := f(t.Context()); !errors.Is(err, token.ErrRefused) {
		t.Errorf("%s with the same PIN again: %v, want ErrRefused", what, err)
	}
	if n := fake.Logins(t) - before; n != 1 {
		t.Errorf("%s: the PIN was presented %d times", what, n)
	}
}

// A token that asks for no PIN is tried out as well.
func TestFindingsWithoutPIN(t *testing.T) {
	t.Parallel()
	nss := hsmtest.NSSWithoutPIN(t)
	tok, err := Open(t.Context(), Options{Module: newTestModule(t, nss), URI: URI{Token: nss.Label}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tok.Close() })
	if info := tok.Info(); info.State != token.StateReady || !slices.Contains(info.Algorithms, token.P256) {
		t.Fatalf("%+v", info)
	}
	if found := warnings(tok.Diagnose(t.Context())); !strings.Contains(found, "CKA_EXTRACTABLE") {
		t.Errorf("%q does not say that keys can be taken out", found)
	}
}
