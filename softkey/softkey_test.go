package softkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/mesh-agent/mesh-agent/internal/rsapad"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// TestMain has the tests' folders be this user's alone, as a state folder must be, whatever the umask is.
func TestMain(m *testing.M) {
	syscall.Umask(0o077)
	os.Exit(m.Run())
}

// protected are options with a cost of scrypt that suits a test.
func protected(passphrase string) Options {
	return Options{Passphrase: []byte(passphrase), WorkFactor: 4}
}

func openToken(t testing.TB, dir string, opts Options) *Token {
	t.Helper()
	tok, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tok.Close(); err != nil {
			t.Error(err)
		}
	})
	return tok
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string]Options{"passphrase": protected("pass phrase"), "insecure": {Insecure: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			tokentest.Run(t, tokentest.Harness{Open: func(t *testing.T) token.Token {
				tok, err := Open(dir, opts)
				if err != nil {
					t.Fatal(err)
				}
				return tok
			}})
		})
	}
}

// TestKinds holds that the way the master key is kept is fixed when it is made.
func TestKinds(t *testing.T) {
	t.Parallel()
	insecure := Options{Insecure: true}
	cases := map[string]struct {
		first, second Options
		want          error
	}{
		"passphrase then insecure":           {protected("a"), insecure, ErrProtected},
		"insecure then passphrase":           {insecure, protected("a"), ErrInsecure},
		"wrong passphrase":                   {protected("a"), protected("b"), ErrPassphrase},
		"passphrase with a blank at the end": {protected("a"), protected("a "), ErrPassphrase},
		"right passphrase":                   {protected("a"), protected("a"), nil},
		"insecure again":                     {insecure, insecure, nil},
	}
	for what, c := range cases {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "soft")
			if there, err := Exists(dir); there || err != nil {
				t.Errorf("Exists: %v, %v", there, err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Error("Exists made the folder")
			}
			openToken(t, dir, c.first)
			before := readFolder(t, dir)
			if there, err := Exists(dir); !there || err != nil {
				t.Errorf("Exists: %v, %v", there, err)
			}
			tok, err := Open(dir, c.second)
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err == nil {
				tok.Close()
			}
			if after := readFolder(t, dir); !mapsEqual(before, after) {
				t.Errorf("the folder changed from %q to %q", before, after)
			}
		})
	}
}

func readFolder(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(data)
	}
	return out
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for what, opts := range map[string]Options{
		"nothing":                 {},
		"both":                    {Insecure: true, Passphrase: []byte("a")},
		"negative work factor":    {Passphrase: []byte("a"), WorkFactor: -1},
		"work factor beyond ages": {Passphrase: []byte("a"), WorkFactor: maxWorkFactor + 1},
	} {
		dir := filepath.Join(t.TempDir(), "soft")
		if _, err := Open(dir, opts); err == nil {
			t.Errorf("Open with %s succeeded", what)
		}
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Open with %s made the folder", what)
		}
	}
}

// TestMasterIsAge opens the master key with the age library alone, as a person with the
// age command could, and wants nothing of it outside.
func TestMasterIsAge(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	openToken(t, dir, protected("correct horse"))
	files := readFolder(t, dir)
	sealed, ok := files[protectedFile]
	if !ok || len(files) != 1 {
		t.Fatalf("files are %q", files)
	}
	identity, err := age.NewScryptIdentity("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(armor.NewReader(strings.NewReader(sealed)), identity)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseMaster(text); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, protectedFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, %v", info.Mode(), err)
	}
}

func TestDefaultWorkFactor(t *testing.T) {
	t.Parallel()
	sealed, err := protect([]byte("text"), Options{Passphrase: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	header, err := age.ExtractHeader(armor.NewReader(bytes.NewReader(sealed)))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(header), " 18\n") {
		t.Errorf("header is %q, want the work factor 18", header)
	}
}

func TestDamagedMaster(t *testing.T) {
	t.Parallel()
	good := string(formatMaster(bytes.Repeat([]byte{7}, masterLen)))
	cases := map[string]struct {
		file string
		data string
		opts Options
		want error
	}{
		"insecure empty":      {insecureFile, "", Options{Insecure: true}, token.ErrCorrupt},
		"insecure version":    {insecureFile, strings.Replace(good, "keys 1", "keys 2", 1), Options{Insecure: true}, token.ErrCorrupt},
		"insecure cut":        {insecureFile, good[:len(good)-1], Options{Insecure: true}, token.ErrCorrupt},
		"insecure long":       {insecureFile, good + "\n", Options{Insecure: true}, token.ErrCorrupt},
		"insecure characters": {insecureFile, good[:len(good)-3] + "*" + good[len(good)-2:], Options{Insecure: true}, token.ErrCorrupt},
		"protected empty":     {protectedFile, "", protected("a"), token.ErrCorrupt},
		"protected plain":     {protectedFile, good, protected("a"), token.ErrCorrupt},
	}
	for what, c := range cases {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.data), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, c.opts)
		wantErr(t, what, err, c.want)
	}
	if _, err := parseMaster([]byte(good)); err != nil {
		t.Errorf("the undamaged text: %v", err)
	}

	dir := t.TempDir()
	openToken(t, dir, protected("a"))
	sealed := readFolder(t, dir)[protectedFile]
	for i := 0; i < len(sealed); i += 7 {
		damaged := []byte(sealed)
		damaged[i] ^= 4
		if err := os.WriteFile(filepath.Join(dir, protectedFile), damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		// A changed salt cannot be told from a wrong passphrase.
		_, err := Open(dir, protected("a"))
		if !errors.Is(err, token.ErrCorrupt) && !errors.Is(err, ErrPassphrase) {
			t.Errorf("octet %d changed: %v", i, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	shared := t.TempDir()
	if err := os.Chmod(shared, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := Open(shared, Options{Insecure: true})
	wantErr(t, "folder that others may write", err, fs.ErrPermission)

	readable := t.TempDir()
	openToken(t, readable, Options{Insecure: true})
	if err := os.Chmod(filepath.Join(readable, insecureFile), 0o640); err != nil {
		t.Fatal(err)
	}
	_, err = Open(readable, Options{Insecure: true})
	wantErr(t, "key file that others may read", err, fs.ErrPermission)

	both := t.TempDir()
	openToken(t, both, Options{Insecure: true})
	if err := os.WriteFile(filepath.Join(both, protectedFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(both, Options{Insecure: true})
	wantErr(t, "both kinds", err, token.ErrCorrupt)
}

// TestHandleOfAnotherToken holds that handles open under their own master key only, and
// that they do not show the key.
func TestHandleOfAnotherToken(t *testing.T) {
	t.Parallel()
	a := openToken(t, t.TempDir(), Options{Insecure: true})
	b := openToken(t, t.TempDir(), Options{Insecure: true})
	seed := bytes.Repeat([]byte{0xA5}, 32)
	c, err := a.Import(t.Context(), token.ImportRequest{Private: &token.PrivateKey{Algorithm: token.Ed25519, Seed: seed}, Use: token.UseSign})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(c.Handle, seed[:4]) {
		t.Error("the handle shows the seed")
	}
	if !bytes.Equal(seed, bytes.Repeat([]byte{0xA5}, 32)) {
		t.Error("Import changed the caller's seed")
	}
	req := token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSign}
	if _, err := a.Open(t.Context(), req); err != nil {
		t.Errorf("Open: %v", err)
	}
	_, err = b.Open(t.Context(), req)
	wantErr(t, "Open in another token", err, token.ErrCorrupt)
}

// importKey imports a key and opens it.
func importKey(t testing.TB, tok *Token, private *token.PrivateKey, use token.Use) token.Key {
	t.Helper()
	c, err := tok.Import(t.Context(), token.ImportRequest{Private: private, Use: use})
	if err != nil {
		t.Fatalf("Import(%s, %s): %v", private.Algorithm, use, err)
	}
	key, err := tok.Open(t.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: use})
	if err != nil {
		t.Fatalf("Open(%s, %s): %v", private.Algorithm, use, err)
	}
	return key
}

// TestPublicKeys compares public keys of imported ones with the standard library's.
func TestPublicKeys(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	random := func(n int) []byte { b := make([]byte, n); rand.Read(b); b[0] &= 0x7f; return b }

	seed := random(32)
	got := importKey(t, tok, &token.PrivateKey{Algorithm: token.Ed25519, Seed: seed}, token.UseSign).Public()
	if want := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey); !bytes.Equal(got.Octets, want) {
		t.Errorf("Ed25519: %x, want %x", got.Octets, want)
	}
	curves := map[token.Algorithm]ecdh.Curve{token.P256: ecdh.P256(), token.P384: ecdh.P384(), token.P521: ecdh.P521(), token.X25519: ecdh.X25519()}
	for a, curve := range curves {
		private := &token.PrivateKey{Algorithm: a}
		octets := random(map[token.Algorithm]int{token.P256: 32, token.P384: 48, token.P521: 66, token.X25519: 32}[a])
		if a == token.P521 {
			octets[0] = 0
		}
		if a == token.X25519 {
			private.Seed = octets
		} else {
			private.Scalar = octets
		}
		standard, err := curve.NewPrivateKey(octets)
		if err != nil {
			t.Fatal(err)
		}
		for _, use := range []token.Use{token.UseAgree, token.UseDecrypt, token.UseSplit, token.UseSign} {
			if use.Allows(a) != nil {
				continue
			}
			got := importKey(t, tok, private, use).Public()
			if !bytes.Equal(got.Ordinary(), standard.PublicKey().Bytes()) {
				t.Errorf("%s for %s: %x, want %x", a, use, got.Octets, standard.PublicKey().Bytes())
			}
		}
	}
}

// TestScalars holds that scalars are reduced and never clamped, seeds of every length
// taken, and all else refused.
func TestScalars(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	for _, curve := range keyshare.Curves() {
		a := token.Algorithm(curve.String())
		high := bytes.Repeat([]byte{0xff}, curve.ScalarLen())
		want, err := keyshare.ParseScalar(curve, high)
		if err != nil {
			t.Fatal(err)
		}
		for _, use := range []token.Use{token.UseSign, token.UseAgree, token.UseSplit} {
			if use.Allows(a) != nil {
				continue
			}
			key := importKey(t, tok, &token.PrivateKey{Algorithm: a, Scalar: high}, use)
			if !bytes.Equal(key.Public().Octets, want.Public().Bytes()) {
				t.Errorf("%s for %s: public key of 2^n-1 is %x", a, use, key.Public().Octets)
			}
			one := make([]byte, curve.ScalarLen())
			if one[0] = 1; curve.IsNIST() {
				one[0], one[len(one)-1] = 0, 1
			}
			key = importKey(t, tok, &token.PrivateKey{Algorithm: a, Scalar: one}, use)
			if !bytes.Equal(key.Public().Octets, keyshare.BasePoint(curve).Bytes()) {
				t.Errorf("%s for %s: public key of 1 is %x", a, use, key.Public().Octets)
			}
		}
	}
	for _, n := range []int{56, 57} {
		importKey(t, tok, &token.PrivateKey{Algorithm: token.Ed448, Seed: make([]byte, n)}, token.UseSign)
	}
}

func TestBadKeys(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	rsa2048 := mustRSA(t, 2048)
	broken := *rsa2048
	broken.D = new(big.Int).Add(rsa2048.D, big.NewInt(2))
	long := *rsa2048 // right, and in more octets than the modulus
	long.D = new(big.Int).Sub(long.N, new(big.Int).Add(long.Primes[0], long.Primes[1]))
	long.D.Add(rsa2048.D, long.D.Add(long.D, big.NewInt(1)).Lsh(long.D, 16))
	b := func(n int) []byte { return bytes.Repeat([]byte{1}, n) }
	cases := map[string]struct {
		private *token.PrivateKey
		use     token.Use
		want    error
	}{
		"none":                 {nil, token.UseSign, token.ErrBadKey},
		"nothing in it":        {&token.PrivateKey{Algorithm: token.X448}, token.UseAgree, token.ErrBadKey},
		"seed and scalar":      {&token.PrivateKey{Algorithm: token.X25519, Seed: b(32), Scalar: b(32)}, token.UseAgree, token.ErrBadKey},
		"unknown algorithm":    {&token.PrivateKey{Algorithm: "P1", Scalar: b(32)}, token.UseDecrypt, token.ErrUnsupported},
		"X448 to sign":         {&token.PrivateKey{Algorithm: token.X448, Seed: b(56)}, token.UseSign, token.ErrUnsupported},
		"short seed":           {&token.PrivateKey{Algorithm: token.X25519, Seed: b(31)}, token.UseAgree, token.ErrBadKey},
		"long seed":            {&token.PrivateKey{Algorithm: token.Ed25519, Seed: b(64)}, token.UseSign, token.ErrBadKey},
		"seed of a NIST curve": {&token.PrivateKey{Algorithm: token.P256, Seed: b(32)}, token.UseSign, token.ErrBadKey},
		"zero scalar":          {&token.PrivateKey{Algorithm: token.P256, Scalar: make([]byte, 32)}, token.UseSign, token.ErrBadKey},
		"zero scalar of X448":  {&token.PrivateKey{Algorithm: token.X448, Scalar: make([]byte, 56)}, token.UseSplit, token.ErrBadKey},
		"short scalar":         {&token.PrivateKey{Algorithm: token.P521, Scalar: b(65)}, token.UseAgree, token.ErrBadKey},
		"RSA as X25519":        {&token.PrivateKey{Algorithm: token.X25519, RSA: rsa2048}, token.UseAgree, token.ErrBadKey},
		"seed as RSA":          {&token.PrivateKey{Algorithm: token.RSA2048, Seed: b(32)}, token.UseSign, token.ErrBadKey},
		"RSA too short":        {&token.PrivateKey{Algorithm: token.RSA3072, RSA: rsa2048}, token.UseSign, token.ErrBadKey},
		"RSA too long":         {&token.PrivateKey{Algorithm: token.RSA2048, RSA: mustRSA(t, 2049)}, token.UseSign, token.ErrBadKey},
		"RSA of long exponent": {&token.PrivateKey{Algorithm: token.RSA2048, RSA: &long}, token.UseDecrypt, token.ErrBadKey},
		"RSA that is broken":   {&token.PrivateKey{Algorithm: token.RSA2048, RSA: &broken}, token.UseSign, token.ErrBadKey},
	}
	for what, c := range cases {
		created, err := tok.Import(t.Context(), token.ImportRequest{Private: c.private, Use: c.use})
		wantErr(t, what, err, c.want)
		if created.Handle != nil {
			t.Errorf("%s: a handle came with the error", what)
		}
	}
}

func mustRSA(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestShortRSA takes keys whose modulus is a few bits short, as derived ones may be.
func TestShortRSA(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	for _, bits := range []int{2046, 2048 - shortRSA + 1} {
		private := &token.PrivateKey{Algorithm: token.RSA2048, RSA: mustRSA(t, bits)}
		key := importKey(t, tok, private, token.UseSign).(token.Signer)
		req := tokentest.DefaultSignRequest(token.RSA2048, []byte("message"))
		signature, err := key.Sign(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if err := tokentest.Verify(key.Public(), req, signature); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(key.Public().Octets, x509.MarshalPKCS1PublicKey(&private.RSA.PublicKey)) {
			t.Error("public key differs")
		}
		decryptShort(t, importKey(t, tok, private, token.UseDecrypt).(token.Decrypter), private.RSA)
	}
	private := &token.PrivateKey{Algorithm: token.RSA2048, RSA: mustRSA(t, 2048-shortRSA)}
	_, err := tok.Import(t.Context(), token.ImportRequest{Private: private, Use: token.UseSign})
	wantErr(t, "a modulus that is shorter still", err, token.ErrBadKey)
}

// decryptShort opens ciphertexts that have fewer octets than the algorithm says. What stands in for a
// plaintext is keyed by the private exponent.
func decryptShort(t *testing.T, key token.Decrypter, private *rsa.PrivateKey) {
	t.Helper()
	//lint:ignore SA1019 it is what is tested
	c, err := rsa.EncryptPKCS1v15(rand.Reader, &private.PublicKey, []byte("plaintext"))
	if err != nil {
		t.Fatal(err)
	}
	secret := sha256.Sum256(private.D.FillBytes(make([]byte, private.Size())))
	for length, want := range map[int][]byte{9: []byte("plaintext"), 10: rsapad.Fallback(secret, c, 10)} {
		req := token.DecryptRequest{Padding: token.PaddingPKCS1v15, Length: length, Ciphertext: c}
		if got, err := key.Decrypt(t.Context(), req); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d octets: %q, %v, want %q", length, got, err, want)
		}
	}
	if c, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &private.PublicKey, []byte("plaintext"), nil); err != nil {
		t.Fatal(err)
	}
	req := token.DecryptRequest{Padding: token.PaddingOAEP, Hash: crypto.SHA256, Ciphertext: c}
	if got, err := key.Decrypt(t.Context(), req); err != nil || string(got) != "plaintext" {
		t.Errorf("OAEP: %q, %v", got, err)
	}
}

// TestCompositeSigning adds two scalars, imports the sum and signs with it twice: the
// signatures verify and, being hedged, differ.
func TestCompositeSigning(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	for _, curve := range []keyshare.Curve{keyshare.Ed25519, keyshare.Ed448} {
		a := token.Algorithm(curve.String())
		x, y := randomScalar(t, curve), randomScalar(t, curve)
		sum, err := x.Add(y)
		if err != nil {
			t.Fatal(err)
		}
		public, err := keyshare.Combine(x.Public(), y.Public())
		if err != nil {
			t.Fatal(err)
		}
		key := importKey(t, tok, &token.PrivateKey{Algorithm: a, Scalar: sum.Bytes()}, token.UseSign).(token.Signer)
		if !bytes.Equal(key.Public().Octets, public.Bytes()) {
			t.Errorf("%s: public key is not the sum", a)
		}
		var signatures [2][]byte
		for i, scheme := range []token.Scheme{token.SchemeEdDSA, token.SchemeEdDSA} {
			req := token.SignRequest{Scheme: scheme, Message: []byte("message")}
			if signatures[i], err = key.Sign(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			if !keyshare.Verify(public, keyshare.ModePure, req.Message, signatures[i]) {
				t.Errorf("%s: the signature does not verify", a)
			}
		}
		if half := len(signatures[0]) / 2; bytes.Equal(signatures[0][:half], signatures[1][:half]) {
			t.Errorf("%s: two signatures by a composite key have one nonce", a)
		}
	}
}

func randomScalar(t testing.TB, c keyshare.Curve) *keyshare.Scalar {
	t.Helper()
	s, err := keyshare.RandomScalar(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestMeshMode compares both modes of Ed25519: each verifies as itself only.
func TestMeshMode(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	key := importKey(t, tok, &token.PrivateKey{Algorithm: token.Ed25519, Seed: bytes.Repeat([]byte{9}, 32)}, token.UseSign).(token.Signer)
	public := ed25519.PublicKey(key.Public().Octets)
	point, err := keyshare.ParsePoint(keyshare.Ed25519, public)
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("message")
	pure, err := key.Sign(t.Context(), token.SignRequest{Scheme: token.SchemeEdDSA, Message: message})
	if err != nil || !ed25519.Verify(public, message, pure) {
		t.Errorf("pure signature does not verify (%v)", err)
	}
	mesh, err := key.Sign(t.Context(), token.SignRequest{Scheme: token.SchemeMeshEdDSA, Message: message})
	if err != nil || !keyshare.Verify(point, keyshare.ModeMesh, message, mesh) || ed25519.Verify(public, message, mesh) {
		t.Errorf("mesh signature is wrong (%v)", err)
	}
}

// TestPointMultiplier holds that the shortcut for checked points, which the keyring looks
// for by its shape, agrees with the interface of package token.
func TestPointMultiplier(t *testing.T) {
	t.Parallel()
	type pointMultiplier interface {
		MultiplyPoint(ctx context.Context, peer *keyshare.Point, coefficient *keyshare.Scalar) (*keyshare.Point, error)
	}
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	for _, curve := range keyshare.Curves() {
		scalar, peer, coefficient := randomScalar(t, curve), randomScalar(t, curve).Public(), randomScalar(t, curve)
		key := importKey(t, tok, &token.PrivateKey{Algorithm: token.Algorithm(curve.String()), Scalar: scalar.Bytes()}, token.UseAgree)
		req := token.AgreeRequest{Peer: peer.Bytes()}
		for _, c := range []*keyshare.Scalar{nil, coefficient} {
			want, err := key.(token.ScaledPointAgreer).AgreePoint(t.Context(), req)
			if c != nil {
				want, err = key.(token.ScaledPointAgreer).AgreeScaled(t.Context(), req, c.Bytes())
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := key.(pointMultiplier).MultiplyPoint(t.Context(), peer, c)
			if err != nil || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s: MultiplyPoint is wrong (%v)", curve, err)
			}
		}
	}
}

// TestBadSigning asks signing keys for what they cannot do.
func TestBadSigning(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	for _, a := range []token.Algorithm{token.Ed25519, token.Ed448, token.P256, token.RSA2048} {
		private := &token.PrivateKey{Algorithm: a}
		switch curve, err := keyshare.ParseCurve(string(a)); {
		case err == nil:
			private.Scalar = randomScalar(t, curve).Bytes()
		default:
			private.RSA = mustRSA(t, 2048)
		}
		key := importKey(t, tok, private, token.UseSign).(token.Signer)
		good := tokentest.DefaultSignRequest(a, []byte("message"))
		own := []token.Scheme{good.Scheme}
		switch {
		case a.RSABits() != 0:
			own = append(own, token.SchemePSS)
		case good.Scheme == token.SchemeEdDSA:
			own = append(own, token.SchemeMeshEdDSA)
		}
		for scheme := token.Scheme(0); scheme < 8; scheme++ {
			req := good
			req.Scheme = scheme
			if _, err := key.Sign(t.Context(), req); (err == nil) != slices.Contains(own, scheme) {
				t.Errorf("%s with scheme %d: %v", a, scheme, err)
			}
		}
		req := good
		req.Hash = 3 // SHA-1; for EdDSA any hash is wrong
		_, err := key.Sign(t.Context(), req)
		wantErr(t, string(a)+" over SHA-1", err, token.ErrUnsupported)
	}
}

// TestClose closes keys and the token while they are in use.
func TestClose(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	peer := token.AgreeRequest{Peer: keyshare.BasePoint(keyshare.X25519).Bytes()}
	private := &token.PrivateKey{Algorithm: token.X25519, Scalar: randomScalar(t, keyshare.X25519).Bytes()}
	one := importKey(t, tok, private, token.UseAgree).(*agreeKey)
	two := importKey(t, tok, private, token.UseAgree).(*agreeKey)
	want, err := two.AgreePoint(t.Context(), peer)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(one.Close(), one.Close()); err != nil {
		t.Error(err)
	}
	_, err = one.AgreePoint(t.Context(), peer)
	wantErr(t, "use of a closed key", err, token.ErrClosed)
	if len(tok.open) != 1 {
		t.Errorf("the token remembers %d open keys, want 1", len(tok.open))
	}

	started := make(chan struct{}, 4)
	var group sync.WaitGroup
	for range cap(started) {
		group.Go(func() {
			started <- struct{}{}
			for {
				got, err := two.AgreePoint(t.Context(), peer)
				if errors.Is(err, token.ErrClosed) {
					return
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("use while the token is being closed: %x, %v", got, err)
					return
				}
			}
		})
	}
	<-started
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	group.Wait()
	if scalar := two.scalar.Bytes(); !bytes.Equal(scalar, make([]byte, 32)) {
		t.Error("the scalar was not wiped")
	}
	_, err = tok.Import(t.Context(), token.ImportRequest{Private: private, Use: token.UseAgree})
	wantErr(t, "Import into a closed token", err, token.ErrClosed)
}

func FuzzOpen(f *testing.F) {
	tok := openToken(f, f.TempDir(), Options{Insecure: true})
	c, err := tok.Generate(f.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Handle, []byte(nil))
	f.Add([]byte{handleVersion}, []byte("x"))
	f.Fuzz(func(t *testing.T, handle, associated []byte) {
		key, err := tok.Open(t.Context(), token.OpenRequest{Handle: handle, Public: c.Public, Use: token.UseSign, Associated: associated})
		if err == nil && (!bytes.Equal(handle, c.Handle) || len(associated) != 0) {
			t.Errorf("handle %x with %x opens %v", handle, associated, key.Public())
		}
		if err != nil && !errors.Is(err, token.ErrCorrupt) {
			t.Errorf("%v, want ErrCorrupt", err)
		}
	})
}

func FuzzParseMaster(f *testing.F) {
	f.Add(formatMaster(make([]byte, masterLen)))
	f.Add([]byte(masterTitle))
	f.Fuzz(func(t *testing.T, text []byte) {
		if master, err := parseMaster(text); err == nil && !bytes.Equal(formatMaster(master), text) {
			t.Errorf("%q is not what is written for its key", text)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	for _, a := range []token.Algorithm{token.Ed25519, token.Ed448, token.P256, token.P384, token.P521, token.RSA2048, token.RSA4096} {
		b.Run(string(a), func(b *testing.B) {
			key := generateKey(b, a, token.UseSign).(token.Signer)
			req := tokentest.DefaultSignRequest(a, make([]byte, 256))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := key.Sign(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAgreePoint(b *testing.B) {
	for _, curve := range keyshare.Curves() {
		b.Run(curve.String(), func(b *testing.B) {
			key := generateKey(b, token.Algorithm(curve.String()), token.UseAgree).(token.PointAgreer)
			req := token.AgreeRequest{Peer: randomScalar(b, curve).Public().Bytes()}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := key.AgreePoint(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSplit(b *testing.B) {
	key := generateKey(b, token.X448, token.UseSplit).(token.Splitter)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := key.Split(b.Context(), 2, 3); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecryptRSA2048(b *testing.B) {
	key := generateKey(b, token.RSA2048, token.UseDecrypt).(token.Decrypter)
	c := bytes.Repeat([]byte{1}, 256)
	for name, req := range map[string]token.DecryptRequest{
		"OAEP":        {Padding: token.PaddingOAEP, Hash: crypto.SHA256, Ciphertext: c},
		"PKCS #1 1.5": {Padding: token.PaddingPKCS1v15, Length: 32, Ciphertext: c},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := key.Decrypt(b.Context(), req); err != nil && !errors.Is(err, token.ErrDecrypt) {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, a := range []token.Algorithm{token.Ed25519, token.X448, token.RSA2048} {
		b.Run(string(a), func(b *testing.B) {
			tok := openToken(b, b.TempDir(), Options{Insecure: true})
			c, err := tok.Generate(b.Context(), token.GenerateRequest{Algorithm: a, Use: token.UseDecrypt})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				key, err := tok.Open(b.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseDecrypt})
				if err != nil {
					b.Fatal(err)
				}
				key.(io.Closer).Close()
			}
		})
	}
}

// BenchmarkUnlock is what a start with a passphrase costs.
func BenchmarkUnlock(b *testing.B) {
	dir := b.TempDir()
	opts := Options{Passphrase: []byte("pass phrase")}
	openToken(b, dir, opts)
	b.ReportAllocs()
	for b.Loop() {
		openToken(b, dir, opts)
	}
}

func generateKey(b *testing.B, a token.Algorithm, use token.Use) token.Key {
	b.Helper()
	tok := openToken(b, b.TempDir(), Options{Insecure: true})
	c, err := tok.Generate(b.Context(), token.GenerateRequest{Algorithm: a, Use: use})
	if err != nil {
		b.Fatal(err)
	}
	key, err := tok.Open(b.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: use})
	if err != nil {
		b.Fatal(err)
	}
	return key
}
