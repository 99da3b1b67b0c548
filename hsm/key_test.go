package hsm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// setups are the real modules.
func setups(t *testing.T) map[string]hsmtest.Setup {
	t.Helper()
	return map[string]hsmtest.Setup{"SoftHSM": hsmtest.SoftHSM(t), "NSS": hsmtest.NSS(t)}
}

// A token that returns one coordinate holds an additive share: its part and a part in
// software are what the whole key gives, octet by octet.
func TestShares(t *testing.T) {
	t.Parallel()
	for name, s := range setups(t) {
		tok := openUnlocked(t, newTestModule(t, s), s)
		for _, a := range tok.Info().Algorithms {
			c, err := keyshare.ParseCurve(string(a))
			if err != nil || c == keyshare.Ed25519 || c == keyshare.Ed448 {
				continue
			}
			t.Run(name+"/"+string(a), func(t *testing.T) { testShare(t, tok, a, c) })
		}
	}
}

// testShare computes with e, the peer's private scalar, so that the token's key stays unknown.
func testShare(t *testing.T, tok *Token, a token.Algorithm, c keyshare.Curve) {
	k := openFor(t, tok, a, token.UseAgree).(token.PointAgreer)
	public, err := keyshare.ParsePoint(c, k.Public().Octets)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		share, _ := keyshare.RandomScalar(c, nil)
		e, _ := keyshare.RandomScalar(c, nil)
		peer := e.Public()
		octets, err := k.AgreePoint(t.Context(), token.AgreeRequest{Peer: peer.Bytes()})
		if err != nil {
			t.Fatal(err)
		}
		part, err := keyshare.ParsePoint(c, octets)
		if err != nil {
			t.Fatal(err)
		}
		other, _ := keyshare.Agree(share, peer)
		got, err := keyshare.Combine(part, other)
		if err != nil {
			t.Fatal(err)
		}
		whole, _ := keyshare.Combine(public, share.Public())
		want, _ := keyshare.Agree(e, whole)
		if !got.Equal(want) {
			t.Errorf("parts give %x, want %x", got.Bytes(), want.Bytes())
		}
	}
	for _, peer := range []*keyshare.Point{keyshare.BasePoint(c), keyshare.BasePoint(c).Negate(), public, public.Negate()} {
		if _, err := k.AgreePoint(t.Context(), token.AgreeRequest{Peer: peer.Bytes()}); err != nil {
			t.Errorf("edge point %x: %v", peer.Bytes(), err)
		}
	}
	badPoints(t, k, c)
}

// badPoints offers points of small order and on the twist, which tokens partly answer.
func badPoints(t *testing.T, k token.PointAgreer, c keyshare.Curve) {
	t.Helper()
	if c.IsNIST() {
		return // the contract suite does
	}
	for _, u := range []byte{0, 1, 2, 6} { // order 2, order 4, and twists of the one or the other curve
		peer := make([]byte, c.PointLen())
		peer[0] = u
		if _, err := keyshare.ParsePoint(c, peer); err == nil {
			continue
		}
		if _, err := k.AgreePoint(t.Context(), token.AgreeRequest{Peer: peer}); !errors.Is(err, token.ErrBadPoint) {
			t.Errorf("u = %d: %v, want ErrBadPoint", u, err)
		}
	}
}

// A key that is made or imported may do one thing, whatever the module allows where nothing is said.
func TestOnePurpose(t *testing.T) {
	t.Parallel()
	for name, s := range setups(t) {
		tok := openUnlocked(t, newTestModule(t, s), s)
		b := tok.bound.Load()
		for _, a := range tok.Info().Algorithms {
			for _, u := range []token.Use{token.UseSign, token.UseDecrypt} {
				if k, _ := b.kind(a); u.Allows(a) != nil || !k.supports(u, b.mechanisms) || a.RSABits() > 2048 {
					continue
				}
				created, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: a, Use: u})
				if err != nil {
					t.Fatal(err)
				}
				checkPurpose(t, name+" "+string(a)+" generated", tok, created, u)
			}
		}
		scalar, _ := keyshare.RandomScalar(keyshare.P256, nil)
		created, err := tok.Import(t.Context(), token.ImportRequest{Private: &token.PrivateKey{Algorithm: token.P256, Scalar: scalar.Bytes()}, Use: token.UseSign})
		if err != nil {
			t.Fatal(err)
		}
		checkPurpose(t, name+" P256 imported", tok, created, token.UseSign)
	}
}

func checkPurpose(t *testing.T, what string, tok *Token, c token.Created, u token.Use) {
	t.Helper()
	b := tok.bound.Load()
	h, err := decodeHandle(c.Handle)
	if err != nil {
		t.Fatal(err)
	}
	k, _ := b.kind(c.Public.Algorithm)
	for class, purposes := range map[uint64][]uint64{
		ckoPrivateKey: {ckaSign, ckaSignRecover, ckaDecrypt, ckaUnwrap, ckaDerive},
		ckoPublicKey:  {ckaVerify, ckaVerifyRecover, ckaEncrypt, ckaWrap, ckaDerive},
	} {
		found, err := tok.find(t.Context(), b, class, h.id, purposes...)
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %d objects, %v", what, len(found), err)
		}
		wanted := map[bool]uint64{true: purposes[0]}[u.Signs()]
		switch {
		case wanted != 0:
		case k.curve == 0:
			wanted = purposes[2]
		default:
			wanted = ckaDerive
		}
		for _, p := range purposes {
			if allowed, known := found[0].is(p); known && allowed != (p == wanted) {
				t.Errorf("%s: class %d, purpose 0x%x is %t", what, class, p, allowed)
			}
		}
	}
}

// A module that does not know all purposes makes keys nevertheless.
func TestFewPurposes(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	for _, code := range []string{"0x10", "0x12", "0x13", "0xd1"} {
		fake.Do(t, "GenerateKeyPair", "code "+code+" 1")
		wantSign(t, code, signKeyFor(t, tok, token.P256), nil)
	}
}

// Keys of other programs are found by their names and used.
func TestAdopt(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/key.pem"
	if err := os.WriteFile(file, pkcs8(t, key), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("softhsm2-util", "--import", file, "--token", s.Label, "--label", "theirs", "--id", "a1b2", "--pin", hsmtest.PIN)
	c.Env = append(os.Environ(), s.Environment...)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	tok := openUnlocked(t, newTestModule(t, s), s)
	for _, slot := range []string{"theirs", "pkcs11:object=theirs", "pkcs11:id=%a1%b2", "pkcs11:token=test;object=theirs;id=%a1%b2;type=private"} {
		created, err := tok.Adopt(t.Context(), token.AdoptRequest{Slot: slot, Use: token.UseSign})
		if err != nil {
			t.Fatalf("%s: %v", slot, err)
		}
		open := token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: token.UseSign}
		if _, err := tok.Open(t.Context(), open); !errors.Is(err, token.ErrCorrupt) {
			t.Errorf("%s: Open as a key of the agent's own: %v, want ErrCorrupt", slot, err)
		}
		open.Imported = true
		k, err := tok.Open(t.Context(), open)
		if err != nil {
			t.Fatal(err)
		}
		standard, _ := created.Public.Standard()
		if !key.PublicKey.Equal(standard) {
			t.Errorf("%s: another public key", slot)
		}
		wantSign(t, slot, k.(token.Signer), nil)
		if err := tok.Delete(t.Context(), created.Handle); err != nil {
			t.Errorf("forget: %v", err)
		}
		wantSign(t, slot+", after it was forgotten", k.(token.Signer), nil)
	}
	for slot, want := range map[string]error{
		"": token.ErrBadRequest, "pkcs11:": token.ErrBadRequest, "pkcs11:token=test": token.ErrBadRequest, "nobody's": token.ErrNotFound,
		"pkcs11:object=theirs;type=cert": token.ErrBadRequest, "pkcs11:object=theirs;token=other": token.ErrBadRequest,
		"pkcs11:id=%00": token.ErrNotFound, "pkcs11:object=a?pin-value=1": ErrPINInURI,
	} {
		if _, err := tok.Adopt(t.Context(), token.AdoptRequest{Slot: slot, Use: token.UseSign}); !errors.Is(err, want) {
			t.Errorf("adopt %q: %v, want %v", slot, err, want)
		}
	}
	if _, err := tok.Adopt(t.Context(), token.AdoptRequest{Slot: "theirs", Use: token.UseAgree}); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("adopt RSA to agree: %v", err)
	}
}

// A secret is sealed to a key that the token has; a public key that somebody put beside it is
// not used.
func TestSealKeyIsProved(t *testing.T) {
	t.Parallel()
	for name, s := range setups(t) {
		tok := openUnlocked(t, newTestModule(t, s), s)
		stranger, _ := keyshare.RandomScalar(keyshare.P256, nil)
		b := tok.bound.Load()
		k, _ := b.kind(token.P256)
		public := token.PublicKey{Algorithm: token.P256, Octets: stranger.Public().Bytes()}
		planted := append(publicTemplate(k, token.UseAgree, []byte("planted"), sealLabel),
			number(ckaClass, ckoPublicKey), number(ckaKeyType, k.keyType), octets(ckaECParams, k.params), octets(ckaECPoint, k.point(public)))
		if _, err := tok.module.call(t.Context(), b.child, &call{op: opCreate, slot: b.info.slot, template: planted}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		secret := []byte("an Ed448 key")
		sealed, err := tok.Seal(t.Context(), token.SealRequest{Secret: secret, PIN: token.PINOnce})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if bytes.Contains(sealed.Blob, public.Octets) {
			t.Errorf("%s: sealed to a planted key", name)
		}
		// Another process of the same user opens it, with the same key for the next secret.
		again := openUnlocked(t, newTestModule(t, s), s)
		got, err := again.Unseal(t.Context(), token.UnsealRequest{Blob: sealed.Blob})
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		next, err := again.Seal(t.Context(), token.SealRequest{Secret: secret})
		if err != nil || !bytes.Equal(next.Blob[:60], sealed.Blob[:60]) || bytes.Equal(next.Blob, sealed.Blob) {
			t.Errorf("%s: sealed to another key, or the same twice: %v", name, err)
		}
		if err := again.Lock(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := again.Unseal(t.Context(), token.UnsealRequest{Blob: sealed.Blob}); !errors.Is(err, token.ErrAuthNeeded) {
			t.Errorf("%s: unseal when locked: %v, want ErrAuthNeeded", name, err)
		}
		for _, req := range []token.SealRequest{{PCRs: "sha256:7"}, {PIN: token.PINNever}, {PIN: token.PINAlways}} {
			req.Auth.PIN = []byte(hsmtest.PIN)
			if _, err := again.Seal(t.Context(), req); !errors.Is(err, token.ErrUnsupported) {
				t.Errorf("%s: seal with %v: %v, want ErrUnsupported", name, req, err)
			}
		}
	}
}

// A key pair that somebody else put into the token, and may have kept, is not sealed to.
func TestSealKeyIsTheTokens(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	tok := openUnlocked(t, newTestModule(t, s), s)
	stranger, _ := keyshare.RandomScalar(keyshare.P256, nil)
	b := tok.bound.Load()
	k, _ := b.kind(token.P256)
	m, err := k.material(&token.PrivateKey{Algorithm: token.P256, Scalar: stranger.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	id := []byte("planted")
	private := append(privateTemplate(k, token.UseAgree, token.Policy{}, id, sealLabel),
		number(ckaClass, ckoPrivateKey), number(ckaKeyType, k.keyType), octets(ckaECParams, k.params))
	public := append(publicTemplate(k, token.UseAgree, id, sealLabel),
		number(ckaClass, ckoPublicKey), number(ckaKeyType, k.keyType), octets(ckaECParams, k.params), octets(ckaECPoint, k.point(m.public)))
	for _, template := range [][]attribute{append(private, m.private...), public} {
		if _, err := tok.module.call(t.Context(), b.child, &call{op: opCreate, slot: b.info.slot, template: template}); err != nil {
			t.Fatal(err)
		}
	}
	sealed, err := tok.Seal(t.Context(), token.SealRequest{Secret: []byte("secret"), PIN: token.PINOnce})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed.Blob, m.public.Octets) {
		t.Error("sealed to a key that was put in")
	}
}

// Tokens without ECDH seal by RSA.
func TestSealRSA(t *testing.T) {
	t.Parallel()
	for name, s := range setups(t) {
		tok := openUnlocked(t, newTestModule(t, s), s)
		b := *tok.bound.Load()
		b.kinds = nil
		for _, k := range tok.bound.Load().kinds {
			if k.curve == 0 {
				b.kinds = append(b.kinds, k)
			}
		}
		tok.bound.Store(&b)
		secret := bytes.Repeat([]byte{9}, 57)
		sealed, err := tok.Seal(t.Context(), token.SealRequest{Secret: secret, Associated: []byte("a")})
		if err != nil || sealed.Blob[1] != formRSA {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := tok.Unseal(t.Context(), token.UnsealRequest{Blob: sealed.Blob, Associated: []byte("a")})
		if err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		for _, i := range []int{0, 1, 40, len(sealed.Blob) / 2, len(sealed.Blob) - 1} {
			changed := bytes.Clone(sealed.Blob)
			changed[i] ^= 1
			if _, err := tok.Unseal(t.Context(), token.UnsealRequest{Blob: changed, Associated: []byte("a")}); !errors.Is(err, token.ErrCorrupt) {
				t.Errorf("%s: changed at %d: %v, want ErrCorrupt", name, i, err)
			}
		}
	}
}

// TestRSAPublic has numbers that are no RSA key.
func TestRSAPublic(t *testing.T) {
	t.Parallel()
	odd := append([]byte{0x80}, make([]byte, 255)...)
	odd[255] = 1
	even, exponent := append([]byte{0x80}, make([]byte, 255)...), []byte{1, 0, 1}
	for _, c := range []struct {
		name              string
		modulus, exponent []byte
		right             bool
	}{
		{"odd modulus", odd, exponent, true}, {"leading zero", append([]byte{0}, odd...), exponent, true},
		{"even modulus", even, exponent, false}, {"short modulus", odd[1:], exponent, false}, {"no modulus", nil, exponent, false},
		{"even exponent", odd, []byte{4}, false}, {"exponent 1", odd, []byte{1}, false}, {"no exponent", odd, nil, false},
		{"exponent of 32 bits", odd, []byte{0x80, 0, 0, 1}, false}, {"exponent of 72 bits", odd, append([]byte{1}, odd[248:]...), false},
	} {
		_, err := rsaPublic(token.RSA2048, object{1, []attribute{octets(ckaModulus, c.modulus), octets(ckaPublicExponent, c.exponent)}})
		if (err == nil) != c.right || err != nil && !errors.Is(err, token.ErrBadKey) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	s.AddToken(t, "test two")
	m := newTestModule(t, s)
	if _, err := Open(t.Context(), Options{Module: m}); !errors.Is(err, token.ErrBadRequest) {
		t.Errorf("a URI that names two tokens: %v, want ErrBadRequest", err)
	}
	tok, err := Open(t.Context(), Options{Module: m, URI: URI{Token: "nobody's"}})
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if info := tok.Info(); info.State != token.StateAbsent || info.Name != "pkcs11:token=nobody's" {
		t.Errorf("a token that is not there: %+v", info)
	}
	if err := tok.Unlock(t.Context(), []byte("1234")); !errors.Is(err, token.ErrAbsent) {
		t.Errorf("unlock: %v, want ErrAbsent", err)
	}
	for name, path := range map[string]string{"no file": "/nonexistent/module.so", "no library": "/etc/passwd"} {
		broken := newTestModule(t, hsmtest.Setup{Path: path})
		tok, err := Open(t.Context(), Options{Module: broken, URI: URI{Token: "a"}})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		defer tok.Close()
		found := tok.Diagnose(t.Context())
		if len(found) != 1 || found[0].Severity != token.SeverityError || !strings.Contains(found[0].Mend, path) {
			t.Errorf("%s: %v", name, found)
		}
	}
}

// A token that comes later is found without anybody asking.
func TestTokenComesLater(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	tok, err := Open(t.Context(), Options{Module: newTestModule(t, s), URI: URI{Token: "late"}})
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	s.AddToken(t, "late")
	awaitState(t, tok, token.StateLocked)
	if err := tok.Unlock(context.Background(), []byte(hsmtest.PIN)); err != nil {
		t.Error(err)
	}
}

// A token that is taken away, and another one that is put in its place, are noticed though the module says only
// that it finds no keys; and the token is found when it comes back, without anybody asking, logged in as before.
func TestTokenGoesAndComesBack(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	m := newTestModule(t, s)
	tok := openUnlocked(t, m, s)
	k := signKeyFor(t, tok, token.P256)
	wantSign(t, "before", k, nil)
	tokens := filepath.Join(s.Dir, "tokens")
	move := func(from, to string) {
		t.Helper()
		if err := errors.Join(os.Rename(from, to), os.MkdirAll(tokens, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	kill := func() { // the module would go on with what it has read
		m.mu.Lock()
		c := m.child
		m.mu.Unlock()
		c.end(ErrCrashed)
		<-c.dead
	}
	move(tokens, tokens+".away")
	kill()
	wantSign(t, "away", k, token.ErrAbsent)
	s.AddToken(t, s.Label)
	awaitState(t, tok, token.StateReplaced)
	wantSign(t, "another in its place", k, token.ErrReplaced)
	if found := tok.Diagnose(t.Context()); len(found) != 1 || !strings.Contains(found[0].Text, "serial") {
		t.Errorf("another in its place: %v", found)
	}
	if err := os.RemoveAll(tokens); err != nil {
		t.Fatal(err)
	}
	move(tokens+".away", tokens)
	awaitState(t, tok, token.StateReady)
	wantSign(t, "back", k, nil)
}

// awaitState waits until a token, which nobody uses, has a state. There is nothing to be told by.
func awaitState(t *testing.T, tok *Token, want token.State) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(time.Minute); tok.Info().State != want; <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatalf("state is %q, want %q", tok.Info().State, want)
		}
	}
}

func pkcs8(t *testing.T, key *rsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
