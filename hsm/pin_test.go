package hsm

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/token"
)

func wrongPIN(n int) []byte { return []byte("wrong-" + string('0'+rune(n))) }

// Every state of a PIN that PKCS #11 knows has its own error, and a PIN that was refused is not
// presented again, however many ask for it.
func TestPINStates(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	fake.Do(t, "tries", "4")
	tok := openLocked(t, newTestModule(t, fake.Setup), fake.Setup)
	var auth *token.AuthError
	for i, want := range []struct {
		is    error
		tries int
	}{{nil, token.TriesUnknown}, {ErrPINCountLow, token.TriesUnknown}, {ErrPINFinalTry, 1}} {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() { tok.Unlock(t.Context(), wrongPIN(i)) })
		}
		wg.Wait()
		err := tok.Unlock(t.Context(), wrongPIN(i))
		if !errors.As(err, &auth) || !errors.Is(err, token.ErrAuthWrong) || auth.TriesLeft != want.tries || want.is != nil && !errors.Is(err, want.is) {
			t.Errorf("wrong PIN %d: %v, want ErrAuthWrong, %v and %d tries", i, err, want.is, want.tries)
		}
		if n := fake.Logins(t); n != i+1 {
			t.Fatalf("%d logins for %d wrong PINs", n, i+1)
		}
	}
	if err := tok.Unlock(t.Context(), nil); !errors.Is(err, token.ErrAuthNeeded) || fake.Logins(t) != 3 {
		t.Errorf("no PIN: %v, %d logins", err, fake.Logins(t))
	}
	if err := tok.Unlock(t.Context(), wrongPIN(3)); !errors.Is(err, token.ErrLockedOut) || errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("the last try: %v, want ErrLockedOut alone", err)
	}
	for range 3 {
		if err := tok.Unlock(t.Context(), []byte(hsmtest.PIN)); !errors.Is(err, token.ErrLockedOut) {
			t.Errorf("locked: %v, want ErrLockedOut", err)
		}
	}
	if n := fake.Logins(t); n != 4 {
		t.Errorf("%d logins, want 4", n)
	}
	fake.Do(t, "tries", "3") // the security officer has set the PIN
	if err := tok.Unlock(t.Context(), []byte(hsmtest.PIN)); err != nil {
		t.Errorf("after the PIN was set: %v", err)
	}
	if tok.Info().State != token.StateReady {
		t.Errorf("state is %q", tok.Info().State)
	}
}

// The PIN that unlocked logs in again after a crash, but not with the last try.
func TestLoginAgain(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	m := newTestModule(t, fake.Setup, func(o *ModuleOptions) { o.Stderr = nil })
	tok := openUnlocked(t, m, fake.Setup)
	k := signKeyFor(t, tok, token.P256)
	crash := func() {
		c := tok.bound.Load().child
		c.cmd.Process.Kill()
		<-c.dead
	}
	crash()
	wantSign(t, "after a crash", k, nil)
	if n := fake.Logins(t); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	fake.Do(t, "flags", "0x20000") // CKF_USER_PIN_FINAL_TRY
	crash()
	wantSign(t, "with one try left", k, token.ErrAuthNeeded)
	if n := fake.Logins(t); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	fake.Do(t, "flags", "0")
	if err := signOnce(t.Context(), k, token.Auth{PIN: []byte(hsmtest.PIN)}); err != nil {
		t.Errorf("with the PIN: %v", err)
	}
	wantSign(t, "after that", k, nil)
}

// An unlocked token takes the PIN that unlocked it, and no other, without asking the module.
func TestUnlockTwice(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	pin := []byte(hsmtest.PIN)
	if err := tok.Unlock(t.Context(), pin); err != nil {
		t.Error(err)
	}
	if err := tok.Unlock(t.Context(), wrongPIN(0)); !errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("wrong PIN: %v, want ErrAuthWrong", err)
	}
	if fake.Logins(t) != 1 {
		t.Errorf("%d logins, want 1", fake.Logins(t))
	}
	for i := range 2 {
		if err := tok.Unlock(t.Context(), wrongPIN(i)); errors.Is(err, errMismatches) {
			t.Errorf("wrong PIN: %v", err)
		}
	}
	if err := tok.Unlock(t.Context(), pin); !errors.Is(err, token.ErrAuthWrong) || !errors.Is(err, errMismatches) {
		t.Errorf("the right PIN after three wrong ones: %v, want errMismatches, or a program could try all", err)
	}
	if err := tok.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tok.Unlock(t.Context(), pin); err != nil {
			t.Errorf("after it was locked: %v", err)
		}
	}
	if n := fake.Logins(t); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
	clear(pin) // the caller's
	if !bytes.Equal(tok.pin, []byte(hsmtest.PIN)) {
		t.Error("the token keeps the caller's octets")
	}
	if err := tok.Close(); err != nil || tok.pin != nil {
		t.Errorf("Close leaves the PIN, or fails: %v", err)
	}
}

// A module knows one login for a token, however many names the configuration gives that: a PIN is looked at although somebody
// is logged in (CKR_USER_ALREADY_LOGGED_IN), and who is logged out by that logs in again.
func TestTwoNamesOfOneToken(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	m := newTestModule(t, s)
	one := openUnlocked(t, m, s)
	k := signKeyFor(t, one, token.P256)
	other := openLocked(t, m, s)
	if err := other.Unlock(t.Context(), wrongPIN(0)); !errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("a wrong PIN under the other name: %v, want ErrAuthWrong", err)
	}
	wantSign(t, "after a wrong PIN under the other name", k, nil)
	if err := other.Unlock(t.Context(), []byte(hsmtest.PIN)); err != nil {
		t.Fatal(err)
	}
	k2 := signKeyFor(t, other, token.P256)
	if err := one.Lock(t.Context()); err != nil {
		t.Error(err)
	}
	wantSign(t, "locked", k, token.ErrAuthNeeded)
	wantSign(t, "locked under the other name", k2, nil)
	wantSign(t, "locked, while somebody is logged in", k, token.ErrAuthNeeded)
}

// A key that asks each time gets the PIN of the call and not the one that unlocked the token.
func TestAlwaysAuthenticate(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	k := alwaysKey(t, tok)
	wantSign(t, "no PIN", k, token.ErrAuthNeeded)
	before := fake.Logins(t)
	for range 3 {
		if err := signOnce(t.Context(), k, token.Auth{PIN: wrongPIN(1)}); !errors.Is(err, token.ErrAuthWrong) {
			t.Errorf("wrong PIN: %v, want ErrAuthWrong", err)
		}
	}
	if n := fake.Logins(t) - before; n != 1 {
		t.Errorf("a wrong PIN was presented %d times", n)
	}
	for range 3 {
		if err := signOnce(t.Context(), k, token.Auth{PIN: []byte(hsmtest.PIN)}); err != nil {
			t.Error(err)
		}
	}
	wantSign(t, "no PIN again", k, token.ErrAuthNeeded)
}

// What NSS does not honour is found out, reported and refused; SoftHSM honours it.
func TestFindings(t *testing.T) {
	t.Parallel()
	soft, nss := hsmtest.SoftHSM(t), hsmtest.NSS(t)
	tok := openUnlocked(t, newTestModule(t, soft), soft)
	if found := warnings(tok.Diagnose(t.Context())); found != "" {
		t.Errorf("SoftHSM: %q", found)
	}
	tok = openUnlocked(t, newTestModule(t, nss), nss)
	found := warnings(tok.Diagnose(t.Context()))
	for _, want := range []string{"CKA_ALWAYS_AUTHENTICATE", "CKA_EXTRACTABLE"} {
		if !strings.Contains(found, want) {
			t.Errorf("NSS: %q does not name %s", found, want)
		}
	}
	req := token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Policy: token.Policy{PIN: token.PINAlways}}
	if _, err := tok.Generate(t.Context(), req); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("a key that asks each time, on NSS: %v, want ErrUnsupported", err)
	}
	for _, p := range []token.Policy{{PIN: token.PINNever}, {Touch: token.TouchAlways}, {PIN: "sometimes"}} {
		req.Policy = p
		if _, err := tok.Generate(t.Context(), req); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("policy %v: %v, want ErrUnsupported", p, err)
		}
	}
}

// That the PIN of a token is wanted at a PIN pad is said, because the agent presents it all the same.
func TestPINPad(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	fake.Do(t, "flags", "0x100") // CKF_PROTECTED_AUTHENTICATION_PATH
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	if found := warnings(tok.Diagnose(t.Context())); !strings.Contains(found, "PIN pad") {
		t.Errorf("%q does not name the PIN pad", found)
	}
}

// alwaysKey makes a key that wants the PIN each time.
func alwaysKey(t *testing.T, tok *Token) token.Signer {
	t.Helper()
	req := token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Policy: token.Policy{PIN: token.PINAlways}}
	c, err := tok.Generate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	opened, err := tok.Open(t.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSign})
	if err != nil {
		t.Fatal(err)
	}
	return opened.(token.Signer)
}

// A device that is lost while it has a PIN may have counted it: the PIN is not presented again.
func TestPINOnLostDevice(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	once := signKeyFor(t, tok, token.P256)
	always := alwaysKey(t, tok)
	for _, code := range []string{"0x5", "0x30", "0x32"} { // GENERAL_ERROR, DEVICE_ERROR, DEVICE_REMOVED
		for name, use := range map[string]func() error{
			"unlock":                   func() error { return tok.Unlock(t.Context(), wrongPIN(1)) },
			"sign":                     func() error { return signOnce(t.Context(), once, token.Auth{PIN: wrongPIN(1)}) },
			"sign with the PIN always": func() error { return signOnce(t.Context(), always, token.Auth{PIN: wrongPIN(1)}) },
		} {
			if name == "sign with the PIN always" {
				if err := tok.Unlock(t.Context(), []byte(hsmtest.PIN)); err != nil {
					t.Fatal(err)
				}
			} else if err := tok.Lock(t.Context()); err != nil {
				t.Fatal(err)
			}
			fake.Do(t, "Login", "code "+code+" 1") // the next one would find the PIN wrong
			if err := use(); !errors.Is(err, token.ErrAbsent) || errors.Is(err, token.ErrAuthWrong) {
				t.Errorf("%s, %s: %v, want ErrAbsent", name, code, err)
			}
		}
	}
}

// warnings joins the findings that are not mere facts.
func warnings(list []token.Finding) string {
	var text []string
	for _, f := range list {
		if f.Severity != token.SeverityInfo {
			text = append(text, f.Text)
		}
	}
	return strings.Join(text, "\n")
}
