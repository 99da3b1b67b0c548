package tpm

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// TestPinnedSRK keeps the storage root key's Name, and meets another TPM, then the right one
// again, then is told to take the other.
func TestPinnedSRK(t *testing.T) {
	t.Parallel()
	s, other := tpmtest.Start(t), tpmtest.Start(t)
	dir := filepath.Join(t.TempDir(), "made", "as needed")
	tok := open(t, Options{Device: s.Device(), StateDir: dir})
	req := generate(t, tok, token.P256, token.UseSign)
	name, err := do(t.Context(), tok, "Name", func(d *device) ([]byte, error) { return d.srk.Name.Buffer, nil })
	if err != nil {
		t.Fatal(err)
	}
	tok.Close()
	text, err := os.ReadFile(filepath.Join(dir, "srk"))
	if err != nil || string(text) != hex.EncodeToString(name)+"\n" {
		t.Errorf("pinned %q, %v, want %x", text, err, name)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state folder has mode %v, %v", info.Mode(), err)
	}

	where := s.Device()
	r := &recorder{dial: func(ctx context.Context) (stream, error) {
		dial, err := parseDevice(where)
		if err != nil {
			return nil, err
		}
		return dial(ctx)
	}}
	where = other.Device()
	tok = open(t, Options{dial: r.open, StateDir: dir})
	if info := tok.Info(); info.State != token.StateReplaced || !strings.HasPrefix(info.Description, "TPM replaced, cleared or interposed") {
		t.Errorf("state of another TPM is %s, %q", info.State, info.Description)
	}
	if _, err := tok.Open(t.Context(), req); !errors.Is(err, token.ErrReplaced) {
		t.Errorf("Open with another TPM: %v, want ErrReplaced", err)
	}
	_, err = tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign})
	if !errors.Is(err, token.ErrReplaced) {
		t.Errorf("Generate with another TPM: %v, want ErrReplaced", err)
	}
	if n := count(r.take(), tpm2.TPMCCCreate); n != 0 {
		t.Error("a key was made in another TPM")
	}
	where = s.Device()
	sign(t, openKey(t, tok, req))
	if info := tok.Info(); info.State != token.StateReady || strings.Contains(info.Description, "replaced") {
		t.Errorf("state of the right TPM is %s, %q", info.State, info.Description)
	}
	tok.Close()

	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	tok = open(t, Options{Device: other.Device(), StateDir: dir})
	sign(t, openKey(t, tok, generate(t, tok, token.P256, token.UseSign)))
}

// TestPinnedPersistent makes another storage root key persistent after the first was pinned, and
// removes a persistent one that was.
func TestPinnedPersistent(t *testing.T) {
	t.Parallel()
	for _, template := range []tpm2.TPMTPublic{tpm2.ECCSRKTemplate, eccTemplateH2()} {
		s := tpmtest.Start(t)
		dir := t.TempDir()
		tok := open(t, Options{Device: s.Device(), StateDir: dir})
		req := generate(t, tok, token.P256, token.UseSign)
		tok.Close()
		persist(t, s, template)
		tok = open(t, Options{Device: s.Device(), StateDir: dir})
		sign(t, openKey(t, tok, req))
		tok.Close()

		dir = t.TempDir()
		tok = open(t, Options{Device: s.Device(), StateDir: dir})
		req = generate(t, tok, token.P256, token.UseSign)
		tok.Close()
		d := raw(t, s)
		p, err := d.persistent(persistentSRK)
		if err != nil {
			t.Fatal(err)
		}
		evict(t, d, p.NamedHandle, persistentSRK) // a persistent object is removed
		d.abandon()
		tok = open(t, Options{Device: s.Device(), StateDir: dir})
		sign(t, openKey(t, tok, req))
	}
}

// TestInterposed has something between that puts a storage root key of its own in the TPM's place:
// it can read the first session's salt, and so must be found out before there is one.
func TestInterposed(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	open(t, Options{Device: s.Device(), StateDir: dir}).Close()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := own.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{dial: tampered(t, s.Device(), tpm2.TPMCCCreatePrimary, func(b []byte) {
		// Template H-2 with the point of 32 octets each: the Name of the response is left as it is.
		at := bytes.Index(b, []byte{0, 32})
		copy(b[at+2:], point[1:33])
		copy(b[at+2+32+2:], point[33:])
	})}
	tok := open(t, Options{dial: r.open, StateDir: dir})
	if state := tok.Info().State; state != token.StateReplaced {
		t.Errorf("state is %s, want replaced", state)
	}
	if n := count(r.take(), tpm2.TPMCCStartAuthSession); n != 0 {
		t.Error("a session was started with a forged storage root key")
	}
}

// TestCleared clears the TPM, with the lockout authority, under an open token.
func TestCleared(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tok := open(t, Options{Device: s.Device(), StateDir: t.TempDir()})
	setPIN(t, tok, nil, testPIN())
	k := openKey(t, tok, generate(t, tok, token.P256, token.UseSign))
	_, err := do(t.Context(), tok, "clear", func(d *device) (struct{}, error) {
		_, err := run(d, tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}})
		return struct{}{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Sign":   trySign(t, k, token.Auth{}),
		"SetPIN": tok.SetPIN(t.Context(), testPIN(), []byte("another")),
	} {
		if !errors.Is(err, token.ErrReplaced) {
			t.Errorf("%s with a cleared TPM: %v, want ErrReplaced", what, err)
		}
	}
	if state := tok.Info().State; state != token.StateReplaced {
		t.Errorf("state is %s, want replaced", state)
	}
}

// TestOwnerPassword has an owner hierarchy with a password, which allows no derived storage root
// key, and then a persistent one.
func TestOwnerPassword(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	d := raw(t, s)
	_, err := run(d, tpm2.HierarchyChangeAuth{AuthHandle: tpm2.TPMRHOwner, NewAuth: tpm2.TPM2BAuth{Buffer: []byte("owner")}})
	if err != nil {
		t.Fatal(err)
	}
	d.abandon()
	o := Options{Device: s.Device()}
	_, err = Open(t.Context(), o)
	var needed *token.AuthError
	if !errors.As(err, &needed) || needed.Kind != "owner password" || !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("Open with an owner password: %v, want ErrAuthNeeded", err)
	}
	if f := Diagnose(t.Context(), o); len(f) != 1 || !strings.Contains(f[0].Mend, "0x81000001") {
		t.Errorf("found %+v", f)
	}
	d = raw(t, s)
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte("owner"))}
	p, err := run(d, tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = run(d, tpm2.EvictControl{
		Auth: owner, ObjectHandle: &tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, PersistentHandle: persistentSRK,
	})
	if err != nil {
		t.Fatal(err)
	}
	d.abandon()
	tok := open(t, o)
	sign(t, openKey(t, tok, generate(t, tok, token.P256, token.UseSign)))
}

// TestStaleSession makes the session stale behind the back of the connection.
func TestStaleSession(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	k := openKey(t, tok, generate(t, tok, token.P256, token.UseSign))
	_, err := do(t.Context(), tok, "flush behind the back", func(d *device) (struct{}, error) {
		return struct{}{}, d.flush(d.session.handle)
	})
	if err != nil {
		t.Fatal(err)
	}
	sign(t, k)
}

// TestResetInPlace resets the TPM without breaking the connection, as suspend to RAM may.
func TestResetInPlace(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tok := open(t, Options{Device: s.Device()})
	dictionaryAttack(t, tok, 100, 1000, 1) // a TPM counts a reset without TPM2_Shutdown
	setPIN(t, tok, nil, testPIN())
	k := openKey(t, tok, generatePIN(t, tok, token.P256, token.UseSign))
	sign(t, k)
	s.Reset()
	sign(t, k)
	s.Reset()
	tok.Lock(t.Context())
	unlock(t, tok, testPIN())
	s.Reset()
	if got, err := tok.Unseal(t.Context(), token.UnsealRequest{Blob: sealAcrossReset(t, tok, s)}); err != nil || string(got) != "secret" {
		t.Errorf("Unseal after resets: %q, %v", got, err)
	}
}

func sealAcrossReset(t *testing.T, tok *Token, s *tpmtest.TPM) []byte {
	t.Helper()
	sealed := seal(t, tok, token.SealRequest{Secret: []byte("secret"), PIN: token.PINOnce, PCRs: "sha256:7"})
	s.Reset()
	return sealed.Blob
}

// hog takes slots of the TPM through the token's own connection, as another user of it would.
func hog(t *testing.T, tok *Token, objects, sessions int) {
	t.Helper()
	_, err := do(t.Context(), tok, "take slots", func(d *device) (struct{}, error) {
		if err := d.evict(0); err != nil {
			return struct{}{}, err
		}
		for range objects {
			_, err := run(d, tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)})
			if err != nil {
				return struct{}{}, err
			}
		}
		for range sessions {
			if _, _, err := tpm2.HMACSession(d.link, tpm2.TPMAlgSHA256, 16); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// shared says whether others use the TPM, too.
func shared(t *testing.T, tok *Token, others bool) {
	t.Helper()
	_, err := do(t.Context(), tok, "share", func(d *device) (struct{}, error) {
		d.exclusive = !others
		return struct{}{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestExhausted has others take all slots of the TPM. If nobody else can be connected,
// what they left is flushed; else it is an error of its own, until they are gone.
func TestExhausted(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	req := generate(t, tok, token.P256, token.UseSign)
	k := openKey(t, tok, req)
	sealed := seal(t, tok, token.SealRequest{Secret: []byte("secret"), PCRs: "sha256:7"})
	unseal := func() error {
		_, err := tok.Unseal(t.Context(), token.UnsealRequest{Blob: sealed.Blob})
		return err
	}
	hog(t, tok, 2, 2)
	sign(t, k)
	if err := unseal(); err != nil {
		t.Errorf("Unseal without others: %v", err)
	}

	shared(t, tok, true)
	hog(t, tok, 2, 0)
	err := trySign(t, k, token.Auth{})
	if !errors.Is(err, errFull) || !errors.Is(err, token.ErrAbsent) || !errors.Is(err, tpm2.TPMRCObjectMemory) {
		t.Errorf("Sign without a free slot: %v, want errFull and TPM_RC_OBJECT_MEMORY", err)
	}
	shared(t, tok, false)
	sign(t, k)

	shared(t, tok, true)
	hog(t, tok, 0, 2)
	if err := unseal(); !errors.Is(err, errFull) || !errors.Is(err, tpm2.TPMRCSessionMemory) {
		t.Errorf("Unseal without a free session: %v, want errFull and TPM_RC_SESSION_MEMORY", err)
	}
	sign(t, k)
	shared(t, tok, false)
	if err := unseal(); err != nil {
		t.Errorf("Unseal after others left: %v", err)
	}
}

// TestEdited edits a record's blob, and everything around it.
func TestEdited(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	c, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Associated: []byte("associated")})
	if err != nil {
		t.Fatal(err)
	}
	req := openRequest(c, token.UseSign)
	req.Associated = []byte("associated")
	openKey(t, tok, req)
	f, err := parseFile[objectFile](c.Handle, maxFile)
	if err != nil {
		t.Fatal(err)
	}
	f.Key.Private[len(f.Key.Private)-1] ^= 1
	o, err := f.object()
	if err != nil {
		t.Fatal(err)
	}
	if err := o.parseArea(); err != nil {
		t.Fatal(err)
	}
	edited := req
	if edited.Handle, err = o.encode(); err != nil {
		t.Fatal(err)
	}
	_, err = tok.Open(t.Context(), edited)
	if !errors.Is(err, token.ErrCorrupt) || errors.Is(err, token.ErrReplaced) || !errors.Is(err, tpm2.TPMRCIntegrity) {
		t.Errorf("Open of an edited blob: %v, want ErrCorrupt and TPM_RC_INTEGRITY", err)
	}
	if state := tok.Info().State; state != token.StateReady {
		t.Errorf("state is %s, want ready", state)
	}
}

// TestPolicies asks for keys that a TPM cannot hold.
func TestPolicies(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	for _, p := range []token.Policy{
		{PIN: token.PINAlways}, {PIN: "no-such-policy"}, {Touch: token.TouchAlways}, {Touch: token.TouchCached},
	} {
		_, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Policy: p})
		if !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("Generate with %+v: %v, want ErrUnsupported", p, err)
		}
	}
	for _, p := range []token.Policy{{PIN: token.PINNever, Touch: token.TouchNever}, {}} {
		_, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign, Policy: p})
		if err != nil {
			t.Errorf("Generate with %+v: %v", p, err)
		}
	}
}

// TestZerosInValues uses authorization values with zeros inside and at the end, which a TPM drops.
func TestZerosInValues(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	for _, value := range [][]byte{{1, 0, 2}, {1, 2, 0}, {0, 1}, {1, 0, 0, 2, 0, 0}, bytes.Repeat([]byte{0, 1}, 16)} {
		got, err := do(t.Context(), tok, "seal and unseal", func(d *device) ([]byte, error) {
			o, err := d.create(sealTemplate(true, true, nil), value, []byte("contents"))
			if err != nil {
				return nil, err
			}
			if err := o.parseArea(); err != nil {
				return nil, err
			}
			return d.unsealValue(&parsedSeal{object: o}, value)
		})
		if err != nil || string(got) != "contents" {
			t.Errorf("value %x: %q, %v", value, got, err)
		}
	}
}

func TestTCP(t *testing.T) {
	t.Parallel()
	s := tpmtest.StartTCP(t)
	tok := open(t, Options{Device: s.Device()})
	k, a := openKey(t, tok, generate(t, tok, token.P256, token.UseSign)), openKey(t, tok, generate(t, tok, token.RSA2048, token.UseSign))
	sign(t, k)
	sign(t, a)
	s.Restart()
	sign(t, k)
	s.Kill()
	if err := trySign(t, k, token.Auth{}); !errors.Is(err, token.ErrAbsent) {
		t.Errorf("Sign without TPM: %v, want ErrAbsent", err)
	}
}

func TestDiagnose(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	o := Options{Device: s.Device(), StateDir: t.TempDir()}
	want := func(what string, severity token.Severity, text string) {
		t.Helper()
		findings := Diagnose(t.Context(), o)
		worst := token.SeverityInfo
		found := false
		for _, f := range findings {
			found = found || strings.Contains(f.Text, text)
			if f.Severity != token.SeverityInfo {
				if worst != token.SeverityError {
					worst = f.Severity
				}
				if f.Mend == "" {
					t.Errorf("%s: nothing to mend %q", what, f.Text)
				}
			}
		}
		if !found || worst != severity {
			t.Errorf("%s: %+v, want severity %s and %q", what, findings, severity, text)
		}
	}
	for _, text := range []string{
		s.Device() + " opens", "TPM 2.0 IBM SW TPM, ", "revision 1.", "P256", "derived", "objects", "none set; wrong ones: 0 of 3",
	} {
		want("a good TPM", token.SeverityInfo, text)
	}
	tok := open(t, o)
	setPIN(t, tok, nil, testPIN())
	tok.Lock(t.Context())
	tok.Unlock(t.Context(), []byte("wrong"))
	r, err := tok.Report(t.Context())
	if err != nil || r.FailedTries != 1 || r.MaxTries != 3 || !r.PIN || !r.Locked || r.LockedOut || r.Interval != 1000*time.Second {
		t.Errorf("report %+v, %v", r, err)
	}
	tok.Close()
	want("a wrong PIN", token.SeverityWarning, "before lockout: 2")
	want("a PIN that can be guessed", token.SeverityWarning, "the lockout authority has no password")
	persist(t, s, eccTemplateH2())
	want("a persistent key", token.SeverityWarning, "persistent 0x81000001")
	tok = open(t, o)
	for _, pin := range []string{"wrong 2", "wrong 3"} {
		tok.Unlock(t.Context(), []byte(pin))
	}
	tok.Close()
	want("lockout", token.SeverityError, "locked out")
	s.Replace()
	want("another TPM", token.SeverityError, "replaced")
	s.Kill()
	want("no TPM", token.SeverityError, "nothing answers at "+s.Device())
	o.Device = "/no/such/device"
	want("no device", token.SeverityError, "there is no /no/such/device")
}

func TestExplainFailure(t *testing.T) {
	t.Parallel()
	for text, err := range map[string]error{
		"this user may not open /dev/null (-rw-rw-rw-, group root)": &os.PathError{Op: "open", Path: "/dev/null", Err: os.ErrPermission},
		"mode 0777": fmt.Errorf("%w: mode 0777: %w", errState, os.ErrPermission),
		"no room":   errFull,
		"NV memory": errNVFull,
		"locked":    &token.LockoutError{RetryAfter: time.Second},
		"none of":   errDevice,
	} {
		f := explainFailure("/dev/null", err)
		if !strings.Contains(f.Text, text) || f.Mend == "" || f.Severity != token.SeverityError {
			t.Errorf("%v is explained as %+v", err, f)
		}
		if state := errors.Is(err, errState); state != strings.Contains(f.Mend, "state folder") {
			t.Errorf("%v is to be mended by %q", err, f.Mend)
		}
	}
	for device, mend := range map[string]string{"/dev/tpmrm9": "firmware", "swtpm:/run/tpm": "start the software TPM"} {
		if f := explainFailure(device, os.ErrNotExist); !strings.Contains(f.Mend, mend) {
			t.Errorf("%s is to be mended by %q", device, f.Mend)
		}
	}
}

// TestReplay has something between answer with the TPM's own answers to earlier commands.
func TestReplay(t *testing.T) {
	t.Parallel()
	var first []byte
	tok := open(t, Options{dial: tampered(t, tpmtest.Start(t).Device(), tpm2.TPMCCECDHZGen, func(b []byte) {
		if first == nil {
			first = bytes.Clone(b)
		}
		copy(b, first)
	})})
	k := openKey(t, tok, generate(t, tok, token.P256, token.UseAgree))
	agree(t, k)
	_, err := k.(token.PointAgreer).AgreePoint(t.Context(), token.AgreeRequest{Peer: k.Public().Octets})
	if !errors.Is(err, token.ErrFault) || !errors.Is(err, errForged) {
		t.Errorf("AgreePoint answered with an earlier answer: %v, want ErrFault and errForged", err)
	}
}

// TestMalformedResponses has authorization areas that are not as they should be.
func TestMalformedResponses(t *testing.T) {
	t.Parallel()
	a := &authorization{session: &session{key: make([]byte, 32)}}
	for name, b := range map[string][]byte{
		"nothing":              {},
		"no parameters":        {0, 0, 0, 1},
		"huge parameters":      {0xff, 0xff, 0xff, 0xff, 0},
		"no nonce":             {0, 0, 0, 0, 0},
		"nonce cut off":        {0, 0, 0, 0, 0, 2, 1},
		"no attributes":        {0, 0, 0, 0, 0, 0},
		"no HMAC":              {0, 0, 0, 0, 0, 0, 1},
		"HMAC cut off":         {0, 0, 0, 0, 0, 0, 1, 0, 2, 1},
		"octets after the end": {0, 0, 0, 0, 0, 0, 1, 0, 0, 9},
	} {
		if _, err := a.response(tpm2.TPMCCSign, b); !lost(err) || errors.Is(err, errForged) {
			t.Errorf("%s: %v, want a broken link", name, err)
		}
	}
	if _, err := a.response(tpm2.TPMCCSign, []byte{0, 0, 0, 0, 0, 0, 1, 0, 0}); !errors.Is(err, errForged) {
		t.Errorf("empty HMAC: %v, want errForged", err)
	}
}
