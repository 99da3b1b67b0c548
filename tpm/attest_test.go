package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func attestRequest(key token.OpenRequest) token.AttestRequest {
	return token.AttestRequest{Key: key, Qualifying: make([]byte, 32)}
}

// onDevice runs f where the TPM's owner does.
func onDevice(t testing.TB, tok *Token, f func(*device) error) {
	t.Helper()
	if _, err := do(t.Context(), tok, "test", func(d *device) (struct{}, error) { return struct{}{}, f(d) }); err != nil {
		t.Fatal(err)
	}
}

// transient returns the number of loaded objects.
func transient(t testing.TB, tok *Token) (n int) {
	t.Helper()
	onDevice(t, tok, func(d *device) error {
		handles, err := d.handles(0x80000000)
		n = len(handles)
		return err
	})
	return n
}

// credentialFor makes a credential as a verifier does.
func credentialFor(t testing.TB, id token.AttestIdentity, secret []byte) (blob, seed []byte) {
	t.Helper()
	ek, err := tpm2.Unmarshal[tpm2.TPMTPublic](id.Endorsement)
	if err != nil {
		t.Fatal(err)
	}
	to, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](id.AttestationKey)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil {
		t.Fatal(err)
	}
	if blob, seed, err = tpm2.CreateCredential(rand.Reader, to, name.Buffer, secret); err != nil {
		t.Fatal(err)
	}
	return blob, seed
}

// TestEndorsements holds that every kind of endorsement key can be made and opens
// credentials, and that the templates are those by which swtpm_setup made its keys.
func TestEndorsements(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.NewCA(t).Start(t).Device()})
	persistent := map[tpm2.TPMHandle]bool{}
	for _, kind := range endorsements() {
		onDevice(t, tok, func(d *device) error {
			if err := d.evict(0); err != nil {
				return err
			}
			return d.withAttestationKey(func(ak primary) error {
				ek, flush, err := d.openEndorsement(kind)
				if err != nil {
					return err
				}
				persistent[ek.Handle] = true
				if !sameTemplate(ek.area, kind.template) {
					t.Errorf("0x%x: not the template's key", kind.certificate)
				}
				secret := []byte("a secret of thirty-two octets...")
				blob, seed := credentialFor(t, token.AttestIdentity{Endorsement: ek.area, AttestationKey: ak.area}, secret)
				got, err := d.activate(ak, kind.authorized(ek), blob, seed)
				if err == nil && !bytes.Equal(got, secret) {
					err = errors.New("another secret")
				}
				return flush(err)
			})
		})
	}
	for _, h := range []tpm2.TPMHandle{0x81010001, 0x81010016} { // facts of swtpm_setup
		if !persistent[h] {
			t.Errorf("persistent key 0x%x is not used", h)
		}
	}
}

func TestAttestIdentity(t *testing.T) {
	t.Parallel()
	s := tpmtest.NewCA(t).Start(t)
	tok := open(t, Options{Device: s.Device()})
	first, err := tok.AttestIdentity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(first.Certificates) != 1 || first.Format != tok.AttestFormat() {
		t.Errorf("%d certificates, format %s", len(first.Certificates), first.Format)
	}
	s.Restart()
	second, err := tok.AttestIdentity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.AttestationKey, second.AttestationKey) || !bytes.Equal(first.Endorsement, second.Endorsement) {
		t.Error("a restart has changed the identity")
	}
	if n := transient(t, tok); n != 1 {
		t.Errorf("%d objects are loaded, want the storage root key only", n)
	}
}

// TestAttestCost holds how many commands evidence takes, and that nothing stays behind.
func TestAttestCost(t *testing.T) {
	t.Parallel()
	s := tpmtest.NewCA(t).Start(t)
	r := newRecorder(t, s.Device())
	tok := open(t, Options{dial: r.open})
	key := generate(t, tok, token.P256, token.UseSign)
	id, err := tok.AttestIdentity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("a secret of thirty-two octets...")
	blob, seed := credentialFor(t, id, secret)
	req := attestRequest(key)
	r.take()
	if _, err := tok.Attest(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	r.wantCommands(t, "certify", tpm2.TPMCCLoad, tpm2.TPMCCFlushContext, tpm2.TPMCCLoad, tpm2.TPMCCCreatePrimary, tpm2.TPMCCCertify, tpm2.TPMCCFlushContext)

	req.PCRs = "sha256:0,1,2,3,4,5,6,7,8"
	req.Credential = append(tpm2.Marshal(tpm2.TPM2BData{Buffer: blob}), tpm2.Marshal(tpm2.TPM2BData{Buffer: seed})...)
	r.take()
	e, err := tok.Attest(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	commands := r.take()
	if n := count(commands, tpm2.TPMCCPCRRead); n != 2 { // eight registers at once
		t.Errorf("%d PCRRead", n)
	}
	if len(e.PCRs) != 9 || !bytes.Equal(e.Secret, secret) {
		t.Errorf("%d PCRs, secret %q", len(e.PCRs), e.Secret)
	}
	if n := len(commands); n > 40 {
		t.Errorf("%d commands: %v", n, commands)
	}
	if n := transient(t, tok); n != 1 {
		t.Errorf("%d objects are loaded, want the storage root key only", n)
	}
	sign(t, openKey(t, tok, key))
}

// TestAttestSecrecy holds that the secret of a credential is not seen on its way from the TPM.
func TestAttestSecrecy(t *testing.T) {
	t.Parallel()
	dial, err := parseDevice(tpmtest.Start(t).Device())
	if err != nil {
		t.Fatal(err)
	}
	tap := &wiretap{dial: dial}
	tok := open(t, Options{dial: tap.open})
	id, err := tok.AttestIdentity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("a secret of thirty-two octets...")
	blob, seed := credentialFor(t, id, secret)
	req := attestRequest(generate(t, tok, token.P256, token.UseSign))
	req.Credential = append(tpm2.Marshal(tpm2.TPM2BData{Buffer: blob}), tpm2.Marshal(tpm2.TPM2BData{Buffer: seed})...)
	e, err := tok.Attest(t.Context(), req)
	if err != nil || !bytes.Equal(e.Secret, secret) {
		t.Fatalf("%q, %v", e.Secret, err)
	}
	if tap.contains(secret) {
		t.Error("the secret crosses in the clear")
	}
	if !tap.contains(e.Certify) {
		t.Error("the wiretap has not seen the statement")
	}
}

func TestAttestPIN(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	r := newRecorder(t, s.Device())
	tok := open(t, Options{dial: r.open, StateDir: t.TempDir()})
	pin := []byte("attest-1234")
	if err := tok.SetPIN(t.Context(), nil, pin); err != nil {
		t.Fatal(err)
	}
	c, err := tok.Generate(t.Context(), token.GenerateRequest{
		Algorithm: token.P256, Use: token.UseSign, Policy: token.Policy{PIN: token.PINOnce},
	})
	if err != nil {
		t.Fatal(err)
	}
	req := attestRequest(openRequest(c, token.UseSign))
	if _, err := tok.Attest(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if err := tok.Lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := tok.Attest(t.Context(), req); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("locked: %v", err)
	}
	req.Auth.PIN = pin
	if _, err := tok.Attest(t.Context(), req); err != nil {
		t.Errorf("PIN in the request: %v", err)
	}
}

func TestAttestRefusals(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	key := generate(t, tok, token.P256, token.UseAgree)
	for name, test := range map[string]struct {
		change func(*token.AttestRequest)
		want   error
	}{
		"short qualifying data": {func(r *token.AttestRequest) { r.Qualifying = r.Qualifying[1:] }, token.ErrBadRequest},
		"PCRs":                  {func(r *token.AttestRequest) { r.PCRs = "sha256:24" }, token.ErrBadRequest},
		"credential cut off":    {func(r *token.AttestRequest) { r.Credential = []byte{0, 2, 1} }, token.ErrBadRequest},
		"credential and more":   {func(r *token.AttestRequest) { r.Credential = []byte{0, 0, 0, 0, 0} }, token.ErrBadRequest},
		"credential of nobody":  {func(r *token.AttestRequest) { r.Credential = make([]byte, 4) }, token.ErrDecrypt},
		"damaged key":           {func(r *token.AttestRequest) { r.Key.Handle = r.Key.Handle[1:] }, token.ErrCorrupt},
	} {
		req := attestRequest(key)
		test.change(&req)
		if e, err := tok.Attest(t.Context(), req); !errors.Is(err, test.want) || e.Certify != nil {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if n := transient(t, tok); n > 2 { // the storage root key and one that is kept
			t.Errorf("%s: %d objects are loaded", name, n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tok.Attest(ctx, attestRequest(key)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestAttestRestart resets the TPM between one piece of evidence and the next.
func TestAttestRestart(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tok := open(t, Options{Device: s.Device()})
	key := generate(t, tok, token.P384, token.UseSign)
	for range 3 {
		if _, err := tok.Attest(t.Context(), attestRequest(key)); err != nil {
			t.Fatal(err)
		}
		s.Restart()
	}
}

func TestSplitDER(t *testing.T) {
	t.Parallel()
	one, two := []byte{0x30, 1, 5}, []byte{0x30, 2, 7, 8}
	got := splitDER(slices.Concat(one, two, []byte{0xff, 0xff}))
	if len(got) != 2 || !bytes.Equal(got[0], one) || !bytes.Equal(got[1], two) {
		t.Errorf("%x", got)
	}
	for _, none := range [][]byte{nil, {0}, {0x30, 9, 1}, {0x04, 1, 1}, bytes.Repeat([]byte{0}, 100)} {
		if got := splitDER(none); got != nil {
			t.Errorf("%x: %x", none, got)
		}
	}
}

func BenchmarkAttest(b *testing.B) {
	tok := open(b, Options{Device: tpmtest.Start(b).Device()})
	req := attestRequest(generate(b, tok, token.P256, token.UseSign))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tok.Attest(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}
