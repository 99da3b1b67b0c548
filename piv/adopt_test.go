package piv

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestAdopt takes over what another program made.
func TestAdopt(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	ctx := t.Context()
	if _, err := b.card.Generate(0x9A, 0x11, 2, 1); err != nil {
		t.Fatal(err)
	}
	c, err := b.token.Adopt(ctx, token.AdoptRequest{Slot: "9a", Use: token.UseSSH})
	if err != nil {
		t.Fatal(err)
	}
	if want := (token.Policy{PIN: token.PINOnce, Touch: token.TouchNever}); c.Policy != want {
		t.Errorf("policy is %v, want %v", c.Policy, want)
	}
	k, err := b.token.Open(ctx, token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSSH})
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(ctx, k.(token.Signer), token.Auth{}); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		req  token.AdoptRequest
		want error
	}{
		{token.AdoptRequest{Slot: "9c", Use: token.UseSSH}, token.ErrNotFound},
		{token.AdoptRequest{Slot: "f9", Use: token.UseSSH}, token.ErrBadRequest},
		{token.AdoptRequest{Use: token.UseSSH}, token.ErrBadRequest},
		{token.AdoptRequest{Slot: "9a", File: []byte("x"), Use: token.UseSSH}, token.ErrBadRequest},
		{token.AdoptRequest{Slot: "9a", Use: token.UseSplit}, token.ErrUnsupported},
		{token.AdoptRequest{Slot: "9a", Use: token.UseSSH, Policy: token.Policy{PIN: token.PINNever}}, token.ErrBadRequest},
		{token.AdoptRequest{Slot: "9a", Use: token.UseSSH, Policy: token.Policy{Touch: token.TouchAlways}}, token.ErrBadRequest},
	} {
		_, err := b.token.Adopt(ctx, c.req)
		wantAll(t, "adopt "+c.req.Slot, err, c.want)
	}
	for _, overwritten := range []string{"while connected", "while idle"} {
		if _, err := b.card.Generate(0x9A, 0x11, 2, 1); err != nil {
			t.Fatal(err)
		}
		wantAll(t, "key of a slot overwritten "+overwritten, sign(ctx, k.(token.Signer), token.Auth{}), token.ErrNotFound)
		b.idle(t)
	}
	_, err = b.token.Open(ctx, token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSSH})
	wantAll(t, "open of an overwritten slot", err, token.ErrNotFound)
	again, err := b.token.Adopt(ctx, token.AdoptRequest{Slot: "9a", Use: token.UseSSH})
	if err == nil {
		err = b.token.Delete(ctx, again.Handle)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.card.PublicKey(0x9A); err != nil {
		t.Errorf("an adopted key was deleted: %v", err)
	}
}

// run runs a program that uses the card, which it may want for itself.
func (b *bench) run(tb testing.TB, input, program string, args ...string) string {
	tb.Helper()
	b.idle(tb)
	c := exec.CommandContext(tb.Context(), program, args...)
	c.Env = []string{b.daemon.Env(), "PATH=" + os.Getenv("PATH")}
	c.Stdin = strings.NewReader(input)
	out, err := c.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// adopts takes over the key in a slot, wants its policies, and uses it as a card asks: with the PIN that the
// token was unlocked with, or that goes with the operation, and with touches.
func (b *bench) adopts(tb testing.TB, slot string, use token.Use, want token.Policy) {
	tb.Helper()
	c, err := b.token.Adopt(tb.Context(), token.AdoptRequest{Slot: slot, Use: use})
	if err != nil {
		tb.Fatal(err)
	}
	if c.Policy != want {
		tb.Errorf("slot %s: policy is %v, want %v", slot, c.Policy, want)
	}
	k, err := b.token.Open(tb.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: use})
	if err != nil {
		tb.Fatal(err)
	}
	if got := k.(interface{ Policy() token.Policy }).Policy(); got != want {
		tb.Errorf("slot %s: the key's policy is %v, want %v", slot, got, want)
	}
	var auth token.Auth
	if want.PIN == token.PINAlways {
		auth.PIN = []byte(testPIN)
	}
	switch k := k.(type) {
	case token.Signer:
		err = sign(tb.Context(), k, auth)
	case token.PointAgreer:
		_, err = k.AgreePoint(tb.Context(), token.AgreeRequest{Peer: k.Public().Octets, Auth: auth})
	}
	if err != nil {
		tb.Errorf("slot %s: %v", slot, err)
	}
}

// TestAdoptFromYubikeyAgent sets a factory-new card up by the program itself, and goes on with it.
func TestAdoptFromYubikeyAgent(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{Version: [3]byte{5, 4, 3}})
	// It asks on a terminal, which script makes.
	b.run(t, testPIN+"\n"+testPIN+"\n", "script", "-qec", "yubikey-agent -setup", "/dev/null")
	b.unlock(t)
	b.adopts(t, "9a", token.UseSSH, token.Policy{PIN: token.PINOnce, Touch: token.TouchAlways})
	// The management key that it stored on the card makes other keys.
	if _, err := b.token.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign}); err != nil {
		t.Errorf("generate on a card of yubikey-agent: %v", err)
	}
}

// TestAdoptFromPIVTool takes over what yubico-piv-tool generates and imports, with each policy.
func TestAdoptFromPIVTool(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{Version: [3]byte{5, 4, 3}})
	b.run(t, "", "yubico-piv-tool", "-a", "change-pin", "-P"+pivtest.DefaultPIN, "-N"+testPIN)
	b.unlock(t)
	dir := t.TempDir()
	for _, c := range []struct {
		slot, pin, touch string
		want             token.Policy
	}{
		{"9a", "never", "never", token.Policy{PIN: token.PINNever, Touch: token.TouchNever}},
		{"9c", "always", "cached", token.Policy{PIN: token.PINAlways, Touch: token.TouchCached}},
		{"82", "once", "always", token.Policy{PIN: token.PINOnce, Touch: token.TouchAlways}},
	} {
		b.run(t, "", "yubico-piv-tool", "-a", "generate", "-s", c.slot, "-A", "ECCP256",
			"--pin-policy="+c.pin, "--touch-policy="+c.touch, "-o", filepath.Join(dir, "public"))
		b.adopts(t, c.slot, token.UseSign, c.want)
		b.adopts(t, c.slot, token.UseAgree, c.want)
	}
	// What it does if nothing is said is up to the card.
	b.run(t, "", "yubico-piv-tool", "-a", "generate", "-s", "9d", "-A", "RSA2048", "-o", filepath.Join(dir, "public"))
	c, err := b.token.Adopt(t.Context(), token.AdoptRequest{Slot: "9d", Use: token.UseDecrypt})
	if want := (token.Policy{PIN: token.PINOnce, Touch: token.TouchNever}); err != nil || c.Policy != want {
		t.Errorf("policy is %v, %v, want %v", c.Policy, err, want)
	}
	private := filepath.Join(dir, "private")
	_, der := importable(t)
	writeFile(t, private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	b.run(t, "", "yubico-piv-tool", "-a", "import-key", "-s", "83", "-i", private, "--pin-policy=once", "--touch-policy=never")
	b.adopts(t, "83", token.UseSign, token.Policy{PIN: token.PINOnce, Touch: token.TouchNever})
}

// importable makes a key, in PKCS #8 too.
func importable(tb testing.TB) (*ecdsa.PrivateKey, []byte) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return key, der
}

func writeFile(tb testing.TB, name string, b []byte) {
	tb.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// ageCertificate is the certificate that age-plugin-yubikey puts beside an identity: names of its own, and the
// policies in the extension that attestations have (its src/builder.rs).
func ageCertificate(tb testing.TB, key *ecdsa.PrivateKey, public any) []byte {
	tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{Organization: []string{"age-plugin-yubikey"}, OrganizationalUnit: []string{"0.4.0"}, CommonName: "age identity 9b52fb33"},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, 8}, Value: []byte{2, 2}},
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		tb.Fatal(err)
	}
	length := func(n int) []byte { return []byte{0x82, byte(n >> 8), byte(n)} }
	return bytes.Join([][]byte{{0x70}, length(len(der)), der, {0x71, 1, 0, 0xFE, 0}}, nil)
}

// TestAdoptFromAge takes over an identity of age-plugin-yubikey: a P-256 key in a retired slot that the card
// generated, which wants the PIN once and each time a touch. It is so on cards that have metadata and on those
// where the policies come from the attestation. The two queries of an agreement are two touches.
func TestAdoptFromAge(t *testing.T) {
	t.Parallel()
	for _, version := range [][3]byte{{5, 7, 1}, {5, 2, 4}, {4, 3, 5}} {
		b := newBench(t, pivtest.Config{Version: version}, Options{})
		public, err := b.card.Generate(0x82, pivtest.AlgP256, pivtest.PINPolicyOnce, pivtest.TouchPolicyAlways)
		if err != nil {
			t.Fatal(err)
		}
		signer, _ := importable(t)
		b.card.SetObject(0x5FC10D, ageCertificate(t, signer, public))
		before := b.card.Touches()
		b.adopts(t, "82", token.UseDecrypt, token.Policy{PIN: token.PINOnce, Touch: token.TouchAlways})
		if n := b.card.Touches() - before; n != 2 {
			t.Errorf("firmware %v: %d touches, want 2", version, n)
		}
	}
}

// TestAdoptUntold takes over a key that was imported into a card which tells nothing of it but its certificate:
// whoever adopts it must say what it asks for, and that is kept with the handle.
func TestAdoptUntold(t *testing.T) {
	t.Parallel()
	// The card is held: one of this firmware forgets the PIN when its serial number is read.
	b := newBench(t, pivtest.Config{Version: [3]byte{4, 3, 5}}, kept())
	key, _ := importable(t)
	if err := b.card.Put(0x83, key, pivtest.PINPolicyAlways, pivtest.TouchPolicyNever); err != nil {
		t.Fatal(err)
	}
	b.card.SetObject(0x5FC10E, ageCertificate(t, key, key.Public()))
	req := token.AdoptRequest{Slot: "83", Use: token.UseSign}
	for _, p := range []token.Policy{{}, {PIN: token.PINAlways}, {Touch: token.TouchNever}} {
		req.Policy = p
		_, err := b.token.Adopt(t.Context(), req)
		wantAll(t, "adopt without the policies", err, token.ErrBadRequest, ErrPolicyUnknown)
	}
	req.Policy = token.Policy{PIN: token.PINAlways, Touch: token.TouchNever}
	c, err := b.token.Adopt(t.Context(), req)
	if err != nil || c.Policy != req.Policy {
		t.Fatalf("adopt: policy %v, %v", c.Policy, err)
	}
	open := token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSign}
	k, err := b.token.Open(t.Context(), open)
	if err != nil {
		t.Fatal(err)
	}
	wantTries(t, "sign without the PIN", sign(t.Context(), k.(token.Signer), token.Auth{}), token.ErrAuthNeeded, token.TriesUnknown)
	if err := sign(t.Context(), k.(token.Signer), token.Auth{PIN: []byte(testPIN)}); err != nil {
		t.Error(err)
	}
	// What is said wrong is found out by the card. It gives nobody more than the key's own policies do.
	for _, c := range []struct {
		asks  byte
		said  token.PINPolicy
		wants error
	}{
		{pivtest.PINPolicyOnce, token.PINNever, nil},
		{pivtest.PINPolicyNever, token.PINOnce, nil},
		{pivtest.PINPolicyAlways, token.PINOnce, token.ErrUnsupported},
	} {
		if err := b.card.Put(0x83, key, c.asks, pivtest.TouchPolicyNever); err != nil {
			t.Fatal(err)
		}
		req.Policy.PIN = c.said
		other, err := b.token.Adopt(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		k, err := b.token.Open(t.Context(), token.OpenRequest{Handle: other.Handle, Public: other.Public, Use: token.UseSign})
		if err != nil {
			t.Fatal(err)
		}
		b.unlock(t)
		if _, err := b.token.TriesLeft(t.Context()); err != nil { // a command between the PIN and the key
			t.Fatal(err)
		}
		if err := sign(t.Context(), k.(token.Signer), token.Auth{}); !errors.Is(err, c.wants) {
			t.Errorf("a key that asks by policy %d, adopted as %q: %v, want %v", c.asks, c.said, err, c.wants)
		}
	}
	for _, flags := range []byte{0, 1, 0x20, 0xFF} { // the handle holds the policies
		open.Handle = bytes.Clone(c.Handle)
		open.Handle[9] = flags
		_, err := b.token.Open(t.Context(), open)
		wantAll(t, "open with changed flags", err, token.ErrCorrupt)
	}
}

// TestAdoptDefault takes over keys of which the card says that their policies are those of the slot.
func TestAdoptDefault(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	for slot, pin := range map[byte]token.PINPolicy{0x9A: token.PINOnce, 0x9C: token.PINAlways, 0x9E: token.PINNever, 0x82: token.PINOnce} {
		if _, err := b.card.Generate(slot, pivtest.AlgP256, pivtest.PINPolicyDefault, pivtest.TouchPolicyDefault); err != nil {
			t.Fatal(err)
		}
		b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
			answer := card(apdu)
			if i := bytes.Index(answer, []byte{0x02, 0x02}); apdu[1] == 0xF7 && apdu[3] == slot && i == 3 {
				answer[i+2], answer[i+3] = 0, 0
			}
			return answer
		})
		b.adopts(t, applet.Slot(slot).String(), token.UseSign, token.Policy{PIN: pin, Touch: token.TouchNever})
		b.card.OnAPDU(nil)
	}
}
