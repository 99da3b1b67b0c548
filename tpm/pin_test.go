package tpm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func testPIN() []byte { return []byte("correct horse") }

func setPIN(t testing.TB, tok *Token, old, pin []byte) {
	t.Helper()
	if err := tok.SetPIN(t.Context(), old, pin); err != nil {
		t.Fatal(err)
	}
}

func unlock(t testing.TB, tok *Token, pin []byte) {
	t.Helper()
	if err := tok.Unlock(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
}

func generatePIN(t testing.TB, tok *Token, a token.Algorithm, u token.Use) token.OpenRequest {
	t.Helper()
	c, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: a, Use: u, Policy: token.Policy{PIN: token.PINOnce}})
	if err != nil {
		t.Fatal(err)
	}
	return openRequest(c, u)
}

func trySign(t testing.TB, k token.Key, auth token.Auth) error {
	t.Helper()
	req := tokentest.DefaultSignRequest(k.Public().Algorithm, []byte("message"))
	req.Auth = auth
	_, err := k.(token.Signer).Sign(t.Context(), req)
	return err
}

// wantTries checks for a wrong PIN with so many tries left.
func wantTries(t *testing.T, what string, err error, tries int) {
	t.Helper()
	var auth *token.AuthError
	if !errors.As(err, &auth) || !errors.Is(err, token.ErrAuthWrong) || auth.TriesLeft != tries {
		t.Errorf("%s: %v, want a wrong PIN with %d tries left", what, err, tries)
	}
}

func TestContractPIN(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	first := open(t, Options{Device: s.Device(), StateDir: dir})
	setPIN(t, first, nil, testPIN())
	first.Close()
	tokentest.Run(t, tokentest.Harness{
		Open: func(t *testing.T) token.Token {
			tok := open(t, Options{Device: s.Device(), StateDir: dir})
			unlock(t, tok, testPIN())
			return pinned{tok}
		},
		Supports: func(_ token.Algorithm, u token.Use) bool { return u != token.UseSplit },
	})
}

// pinned makes all keys with a PIN, on P-256 and P-384: the PIN is the same for the others, which take long.
type pinned struct{ *Token }

func (p pinned) Info() token.Info {
	info := p.Token.Info()
	info.Algorithms = info.Algorithms[:2]
	return info
}

func (p pinned) takes(a token.Algorithm) error {
	if a != token.P256 && a != token.P384 {
		return token.ErrUnsupported
	}
	return nil
}

func (p pinned) Generate(ctx context.Context, req token.GenerateRequest) (token.Created, error) {
	req.Policy.PIN = token.PINOnce
	if err := p.takes(req.Algorithm); err != nil {
		return token.Created{}, err
	}
	return p.Token.Generate(ctx, req)
}

func (p pinned) Import(ctx context.Context, req token.ImportRequest) (token.Created, error) {
	req.Policy.PIN = token.PINOnce
	return p.Token.Import(ctx, req)
}

// TestPIN goes through the life of a PIN, and counts commands.
func TestPIN(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	r := newRecorder(t, s.Device())
	tok := open(t, Options{dial: r.open, StateDir: dir})
	policy := token.Policy{PIN: token.PINOnce}

	// No PIN yet.
	r.take()
	_, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Policy: policy})
	if !errors.Is(err, ErrNoPIN) || !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("Generate without PIN: %v, want ErrNoPIN", err)
	}
	if err := tok.Unlock(t.Context(), testPIN()); !errors.Is(err, ErrNoPIN) {
		t.Errorf("Unlock without PIN: %v, want ErrNoPIN", err)
	}
	if err := tok.SetPIN(t.Context(), testPIN(), []byte("other")); !errors.Is(err, ErrNoPIN) {
		t.Errorf("SetPIN from one that is not: %v, want ErrNoPIN", err)
	}
	for _, bad := range [][]byte{nil, []byte("123"), make([]byte, maxPIN+1)} {
		if err := tok.SetPIN(t.Context(), nil, bad); !errors.Is(err, token.ErrBadRequest) {
			t.Errorf("SetPIN of %d octets: %v, want ErrBadRequest", len(bad), err)
		}
	}
	r.wantCommands(t, "what could not be done")

	setPIN(t, tok, nil, testPIN())
	r.wantCommands(t, "SetPIN", tpm2.TPMCCCreate)
	req := generatePIN(t, tok, token.P256, token.UseSign)
	k := openKey(t, tok, req)
	sign(t, k)
	r.take()
	sign(t, k)
	r.wantCommands(t, "warm Sign with PIN", tpm2.TPMCCSign)

	// Locked.
	tok.Lock(t.Context())
	if state := tok.Info().State; state != token.StateLocked {
		t.Errorf("state is %s, want locked", state)
	}
	if err := trySign(t, k, token.Auth{}); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("Sign while locked: %v, want ErrAuthNeeded", err)
	}
	r.wantCommands(t, "Sign while locked")
	if err := trySign(t, k, token.Auth{PIN: testPIN()}); err != nil {
		t.Errorf("Sign with the PIN: %v", err)
	}
	if err := trySign(t, k, token.Auth{}); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("Sign after one with the PIN: %v, want ErrAuthNeeded", err)
	}
	r.take()
	unlock(t, tok, testPIN())
	r.wantCommands(t, "Unlock", tpm2.TPMCCLoad, tpm2.TPMCCUnseal, tpm2.TPMCCFlushContext)
	sign(t, k)

	// Changed.
	if err := tok.SetPIN(t.Context(), nil, []byte("another")); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("SetPIN without the old one: %v, want ErrAuthNeeded", err)
	}
	setPIN(t, tok, testPIN(), []byte("another"))
	sign(t, k)
	tok.Close()

	again := open(t, Options{Device: s.Device(), StateDir: dir})
	if state := again.Info().State; state != token.StateLocked {
		t.Errorf("state is %s, want locked", state)
	}
	k = openKey(t, again, req) // needs no PIN
	wantTries(t, "Unlock with the old PIN", again.Unlock(t.Context(), testPIN()), 2)
	unlock(t, again, []byte("another"))
	sign(t, k)
}

// TestRefusedPIN offers wrong PINs in every way: each goes to the TPM once.
func TestRefusedPIN(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, tpmtest.Start(t).Device())
	tok := open(t, Options{dial: r.open})
	setPIN(t, tok, nil, testPIN())
	k := openKey(t, tok, generatePIN(t, tok, token.P256, token.UseSign))
	tok.Lock(t.Context())
	wantTries(t, "Unlock", tok.Unlock(t.Context(), []byte("wrong 1")), 2)
	wantTries(t, "Sign", trySign(t, k, token.Auth{PIN: []byte("wrong 2")}), 1)
	r.take()
	for _, pin := range []string{"wrong 1", "wrong 2"} {
		wantTries(t, "Unlock again", tok.Unlock(t.Context(), []byte(pin)), token.TriesUnknown)
		wantTries(t, "Sign again", trySign(t, k, token.Auth{PIN: []byte(pin)}), token.TriesUnknown)
		wantTries(t, "SetPIN", tok.SetPIN(t.Context(), []byte(pin), []byte("another")), token.TriesUnknown)
		_, err := tok.Seal(t.Context(), token.SealRequest{PIN: token.PINOnce, Auth: token.Auth{PIN: []byte(pin)}})
		wantTries(t, "Seal", err, token.TriesUnknown)
	}
	r.wantCommands(t, "PINs that were refused before")
	unlock(t, tok, testPIN())
	sign(t, k)
}

// dictionaryAttack sets the TPM's parameters with TPM2_DictionaryAttackParameters, which go-tpm
// does not have.
func dictionaryAttack(t *testing.T, tok *Token, tries, interval, recovery uint32) {
	t.Helper()
	const command tpm2.TPMCC = 0x13a
	lockoutAuth(t, tok, command, tries, interval, recovery)
}

// resetLockout gives TPM2_DictionaryAttackLockReset.
func resetLockout(t *testing.T, tok *Token) {
	t.Helper()
	lockoutAuth(t, tok, 0x139)
}

func lockoutAuth(t *testing.T, tok *Token, cc tpm2.TPMCC, parameters ...uint32) {
	t.Helper()
	_, err := do(t.Context(), tok, "lockout authority", func(d *device) ([]byte, error) {
		h := tpm2.NamedHandle{Handle: tpm2.TPMRHLockout, Name: tpm2.HandleName(tpm2.TPMRHLockout)}
		var b []byte
		for _, p := range parameters {
			b = append(b, byte(p>>24), byte(p>>16), byte(p>>8), byte(p))
		}
		return d.operate(cc, h, d.authorize(nil, clearly), b)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestLockout guesses until the TPM locks, and waits until it takes PINs again: that is long at first, so that the
// TPM forgets no guess before its time has come.
func TestLockout(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	setPIN(t, tok, nil, testPIN())
	dictionaryAttack(t, tok, 2, 1000, 1)
	k := openKey(t, tok, generatePIN(t, tok, token.P256, token.UseSign))
	free := openKey(t, tok, generate(t, tok, token.P256, token.UseSign))
	tok.Lock(t.Context())
	wantTries(t, "first guess", tok.Unlock(t.Context(), []byte("wrong 1")), 1)
	wantTries(t, "second guess", tok.Unlock(t.Context(), []byte("wrong 2")), 0)
	err := tok.Unlock(t.Context(), testPIN())
	var locked *token.LockoutError
	if !errors.As(err, &locked) || locked.RetryAfter != 1000*time.Second {
		t.Errorf("Unlock in lockout: %v, want LockoutError for 1000 s", err)
	}
	if err := trySign(t, k, token.Auth{PIN: testPIN()}); !errors.Is(err, token.ErrLockedOut) {
		t.Errorf("Sign in lockout: %v, want ErrLockedOut", err)
	}
	sign(t, free) // no PIN, no dictionary attack
	dictionaryAttack(t, tok, 2, 1, 1)
	for deadline := time.Now().Add(time.Minute); errors.Is(err, token.ErrLockedOut) && time.Now().Before(deadline); {
		err = tok.Unlock(t.Context(), testPIN())
	}
	if err != nil {
		t.Fatalf("Unlock after lockout: %v", err)
	}
	sign(t, k)
}

// TestLockoutReset lets the owner of the TPM end a lockout.
func TestLockoutReset(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	setPIN(t, tok, nil, testPIN())
	dictionaryAttack(t, tok, 1, 1000, 1)
	tok.Lock(t.Context())
	wantTries(t, "guess", tok.Unlock(t.Context(), []byte("wrong")), 0)
	var locked *token.LockoutError
	if err := tok.Unlock(t.Context(), testPIN()); !errors.As(err, &locked) || locked.RetryAfter != 1000*time.Second {
		t.Errorf("Unlock in lockout: %v, want LockoutError for 1000 s", err)
	}
	resetLockout(t, tok)
	unlock(t, tok, testPIN())
}

// TestOtherPINFile uses keys with a PIN file that is not theirs, and without one.
func TestOtherPINFile(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	tok := open(t, Options{Device: s.Device(), StateDir: dir})
	setPIN(t, tok, nil, testPIN())
	req := generatePIN(t, tok, token.P256, token.UseSign)
	secrets := []token.Sealed{
		seal(t, tok, token.SealRequest{Secret: []byte("secret"), PIN: token.PINOnce}),
		seal(t, tok, token.SealRequest{Secret: []byte("secret"), PIN: token.PINOnce, PCRs: "sha256:7"}),
	}
	tok.Close()
	if err := os.Remove(filepath.Join(dir, pinFile)); err != nil {
		t.Fatal(err)
	}
	r := newRecorder(t, s.Device())
	tok = open(t, Options{dial: r.open, StateDir: dir})
	k := openKey(t, tok, req)
	if err := trySign(t, k, token.Auth{PIN: testPIN()}); !errors.Is(err, ErrNoPIN) {
		t.Errorf("Sign without PIN file: %v, want ErrNoPIN", err)
	}
	setPIN(t, tok, nil, testPIN())
	dictionaryAttack(t, tok, 10, 1000, 1000)
	uses := map[string]func() error{
		"Sign": func() error { return trySign(t, openKey(t, tok, req), token.Auth{}) },
		"Attest": func() error {
			_, err := tok.Attest(t.Context(), attestRequest(req))
			return err
		},
	}
	for _, s := range secrets {
		uses["Unseal, "+string(s.Guard)] = func() error {
			_, err := tok.Unseal(t.Context(), token.UnsealRequest{Blob: s.Blob})
			return err
		}
	}
	for range 2 {
		for name, use := range uses {
			if err := use(); !errors.Is(err, token.ErrCorrupt) {
				t.Errorf("%s with another PIN file: %v, want ErrCorrupt", name, err)
			}
		}
	}
	if left, err := tok.TriesLeft(t.Context()); err != nil || left != 10-3 {
		t.Errorf("%d tries left, %v; want 7, as each of three objects was tried once", left, err)
	}
}

func TestStateDirDamaged(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	tok := open(t, Options{Device: s.Device(), StateDir: dir})
	setPIN(t, tok, nil, testPIN())
	handle := generate(t, tok, token.P256, token.UseSign).Handle
	undefended, err := do(t.Context(), tok, "create", func(d *device) ([]byte, error) {
		template := pinTemplate(d.srk.Name.Buffer)
		template.ObjectAttributes.NoDA = true
		o, err := d.create(template, []byte("value"), make([]byte, secretLen))
		if err != nil {
			return nil, err
		}
		if err := o.parseArea(); err != nil {
			return nil, err
		}
		return o.encode()
	})
	if err != nil {
		t.Fatal(err)
	}
	tok.Close()
	for name, contents := range map[string][]byte{
		pinFile: []byte("garbage"), pinnedFile: []byte("not hexadecimal"), pinFile + " of a key": handle, pinFile + " without defence": undefended,
	} {
		file := filepath.Join(dir, name[:3])
		good, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, contents, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Options{Device: s.Device(), StateDir: dir}); !errors.Is(err, token.ErrCorrupt) {
			t.Errorf("Open with damaged %s: %v, want ErrCorrupt", name, err)
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), Options{Device: s.Device(), StateDir: "/dev/null/no"}); err == nil {
		t.Error("Open with a folder that cannot be succeeded")
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), Options{Device: s.Device(), StateDir: dir})
	if !errors.Is(err, os.ErrPermission) || errors.Is(err, token.ErrCorrupt) || errors.Is(err, token.ErrAbsent) {
		t.Errorf("Open with a folder that everybody may write: %v, want ErrPermission", err)
	}
}

// TestPINOnBrokenLink loses the connection when the PIN is under way: it is not offered again.
func TestPINOnBrokenLink(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	cut := &cutter{}
	r := newRecorder(t, s.Device())
	r.dial = cut.wrap(r.dial)
	tok := open(t, Options{dial: r.open})
	setPIN(t, tok, nil, testPIN())
	tok.Lock(t.Context())
	r.take()
	cut.after(tpm2.TPMCCUnseal)
	if err := tok.Unlock(t.Context(), testPIN()); !errors.Is(err, token.ErrAbsent) {
		t.Errorf("Unlock over a link that breaks: %v, want ErrAbsent", err)
	}
	if n := count(r.take(), tpm2.TPMCCUnseal); n != 1 {
		t.Errorf("the PIN was offered %d times, want once", n)
	}
	unlock(t, tok, testPIN())
	tok.Lock(t.Context())
	r.take()
	cut.after(tpm2.TPMCCFlushContext)
	if err := tok.Unlock(t.Context(), []byte("wrong PIN")); !errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("Unlock with a wrong PIN over a link that breaks: %v, want ErrAuthWrong", err)
	}
	if n := count(r.take(), tpm2.TPMCCUnseal); n != 1 {
		t.Errorf("the wrong PIN was offered %d times, want once", n)
	}
	unlock(t, tok, testPIN())
}

// TestPINChangedMeanwhile has the PIN changed while an earlier one is being looked at: the new one is what counts from then on.
func TestPINChangedMeanwhile(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	setPIN(t, tok, nil, testPIN())
	o, err := tok.pin.present(testPIN())
	if err != nil {
		t.Fatal(err)
	}
	setPIN(t, tok, testPIN(), []byte("the new one"))
	s, err := do(t.Context(), tok, "unlock", func(d *device) ([]byte, error) { return d.openPIN(o.object, o.value) })
	if err != nil {
		t.Fatal(err)
	}
	tok.pin.unlock(s)
	tok.Lock(t.Context())
	unlock(t, tok, []byte("the new one"))
	tok.Close()
	tok.pin.unlock(bytes.Clone(s))
	if tok.pin.secret != nil {
		t.Error("a closed token keeps the secret")
	}
}

// TestPINAbandoned has a caller that goes away before it hears that its PIN was wrong: it is not offered again.
func TestPINAbandoned(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	tok := open(t, Options{dial: tampered(t, tpmtest.Start(t).Device(), tpm2.TPMCCUnseal, func([]byte) { cancel() })})
	setPIN(t, tok, nil, testPIN())
	tok.Lock(t.Context())
	wantTries(t, "Unlock by a caller that goes away", tok.Unlock(ctx, []byte("wrong PIN")), 2)
	if err := tok.Unlock(t.Context(), []byte("wrong PIN")); !errors.Is(err, token.ErrRefused) {
		t.Errorf("the same PIN again: %v, want ErrRefused", err)
	}
	unlock(t, tok, testPIN())
}

// TestPINAbandonedSilent is the same with a TPM that answers nothing after that, so that the connection is given up.
func TestPINAbandonedSilent(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var tok *Token
	tok = open(t, Options{dial: tampered(t, tpmtest.Start(t).Device(), tpm2.TPMCCUnseal, func(response []byte) {
		if !busy(response) { // as it is when it must first write down that it is in use
			cancel()
			tok.interrupt()
		}
	})})
	setPIN(t, tok, nil, testPIN())
	tok.Lock(t.Context())
	wantTries(t, "Unlock by a caller that goes away", tok.Unlock(ctx, []byte("wrong PIN")), token.TriesUnknown)
	if err := tok.Unlock(t.Context(), []byte("wrong PIN")); !errors.Is(err, token.ErrRefused) {
		t.Errorf("the same PIN again: %v, want ErrRefused", err)
	}
}
