package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// openssl runs OpenSSL with its provider for TPMs on a TPM that nobody is connected to.
func openssl(t *testing.T, s *tpmtest.TPM, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("openssl", append(args[:1:1], append([]string{"-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2"}, args[1:]...)...)...)
	cmd.Env = append(os.Environ(), "TPM2OPENSSL_TCTI=swtpm:path="+s.Socket)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %q (needs the provider tpm2; Debian and Ubuntu: apt-get install tpm2-openssl): %v\n%s", args, err, out)
	}
	return out
}

// TestAdoptOpenSSL uses keys that OpenSSL made.
func TestAdoptOpenSSL(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"ec":      {"-algorithm", "EC", "-pkeyopt", "group:P-256"},
		"ec384":   {"-algorithm", "EC", "-pkeyopt", "group:P-384"},
		"rsa":     {"-algorithm", "RSA", "-pkeyopt", "bits:2048"},
		"withpin": {"-algorithm", "EC", "-pkeyopt", "group:P-256", "-pkeyopt", "user-auth:key's own PIN"},
	} {
		openssl(t, s, append([]string{"genpkey", "-out", filepath.Join(dir, name)}, args...)...)
	}
	file := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	tok := open(t, Options{Device: s.Device()})
	for _, c := range []struct {
		name string
		use  token.Use
	}{{"ec", token.UseSSH}, {"ec", token.UseAgree}, {"ec384", token.UseSign}, {"rsa", token.UseSign}, {"rsa", token.UseDecrypt}} {
		k := openKey(t, tok, adopt(t, tok, token.AdoptRequest{File: file(c.name), Use: c.use}))
		switch {
		case c.use.Signs():
			sign(t, k)
		case c.name == "ec":
			agree(t, k)
		default:
			got, err := k.(token.Decrypter).Decrypt(t.Context(), encryptOAEP(t, k, []byte("plaintext"), nil))
			if err != nil || string(got) != "plaintext" {
				t.Errorf("Decrypt: %q, %v", got, err)
			}
		}
	}

	req := token.AdoptRequest{File: file("withpin"), Use: token.UseSign}
	if _, err := tok.Adopt(t.Context(), req); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("Adopt without the key's PIN: %v, want ErrAuthNeeded", err)
	}
	req.Auth.PIN = []byte("key's own PIN")
	if _, err := tok.Adopt(t.Context(), req); !errors.Is(err, ErrNoPIN) {
		t.Errorf("Adopt without the token's PIN: %v, want ErrNoPIN", err)
	}
	setPIN(t, tok, nil, testPIN())
	req.Auth.PIN = []byte("wrong")
	_, err := tok.Adopt(t.Context(), req)
	wantTries(t, "Adopt with a wrong PIN", err, 2)
	req.Auth.PIN = []byte("key's own PIN")
	k := openKey(t, tok, adopt(t, tok, req))
	sign(t, k)
	if _, err := do(t.Context(), tok, "sign", signWithValueOf(tok, k, ownKeys)); !errors.Is(err, tpm2.TPMRCAuthFail) {
		t.Errorf("the adopted key has the value of keys that were made here: %v", err)
	}
	tok.Lock(t.Context())
	if err := trySign(t, k, token.Auth{}); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("Sign with the adopted key, locked: %v, want ErrAuthNeeded", err)
	}
}

// signWithValueOf has a key sign with the authorization value that the secret gives for something.
func signWithValueOf(tok *Token, k token.Key, what string) func(*device) ([]byte, error) {
	return func(d *device) ([]byte, error) {
		o, err := tok.pin.offer(token.Auth{})
		if err != nil {
			return nil, err
		}
		value, err := o.keyValue(d, what)
		if err != nil {
			return nil, err
		}
		h, err := d.use(&k.(*ecdsaSigner).blob.object)
		if err != nil {
			return nil, err
		}
		return d.operate(tpm2.TPMCCSign, h, d.authorize(value, inward), sized(make([]byte, 32)))
	}
}

func adopt(t *testing.T, tok *Token, req token.AdoptRequest) token.OpenRequest {
	t.Helper()
	c, err := tok.Adopt(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	open := openRequest(c, req.Use)
	if _, err := tok.Open(t.Context(), open); !errors.Is(err, token.ErrCorrupt) {
		t.Errorf("Open of an adopted key as one that was generated here: %v, want ErrCorrupt", err)
	}
	open.Imported = true
	return open
}

// TestExportOpenSSL has OpenSSL use keys that were made here, under a derived and under
// a persistent storage root key.
func TestExportOpenSSL(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*tpmtest.TPM){
		"derived":    func(*tpmtest.TPM) {},
		"persistent": func(s *tpmtest.TPM) { persist(t, s, tpm2.ECCSRKTemplate) },
	} {
		s := tpmtest.Start(t)
		prepare(s)
		tok := open(t, Options{Device: s.Device()})
		req := generate(t, tok, token.P256, token.UseSign)
		file, err := tok.Export(req.Handle)
		if err != nil {
			t.Fatal(err)
		}
		public, err := req.Public.Standard()
		if err != nil {
			t.Fatal(err)
		}
		tok.Close()
		dir := t.TempDir()
		path := func(name string) string { return filepath.Join(dir, name) }
		for name, b := range map[string][]byte{"key": file, "message": []byte("message")} {
			if err := os.WriteFile(path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		openssl(t, s, "dgst", "-sha256", "-sign", path("key"), "-out", path("signature"), path("message"))
		signature, err := os.ReadFile(path("signature"))
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256([]byte("message"))
		if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), digest[:], signature) {
			t.Errorf("%s: OpenSSL's signature does not verify", name)
		}
	}
}

func TestExport(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	setPIN(t, tok, nil, testPIN())
	if _, err := tok.Export(generatePIN(t, tok, token.P256, token.UseSign).Handle); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("Export of a key with PIN: %v, want ErrUnsupported", err)
	}
	if _, err := tok.Export([]byte("garbage")); !errors.Is(err, token.ErrCorrupt) {
		t.Errorf("Export of garbage: %v, want ErrCorrupt", err)
	}
	own, err := tok.Export(generate(t, tok, token.P256, token.UseSign).Handle)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.Adopt(t.Context(), token.AdoptRequest{File: own, Use: token.UseSign}); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("Adopt of a key of this program: %v, want ErrUnsupported", err)
	}
}

// foreign makes a key as other programs do, under a parent of theirs, and returns its file.
func foreign(t *testing.T, s *tpmtest.TPM, parent tpm2.TPMTPublic, handle tpm2.TPMHandle, edit func(*tpm2.TPMTPublic, *keyFile)) []byte {
	t.Helper()
	d := raw(t, s)
	defer d.abandon()
	defer d.flushStale()
	p, err := d.createPrimary(tpm2.TPMRHOwner, parent)
	if err != nil {
		t.Fatal(err)
	}
	if handle>>24 == persistentRange {
		evict(t, d, p.NamedHandle, handle)
	}
	public, err := keyTemplate(token.P256, purposeSign, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	public.ObjectAttributes.Decrypt = true
	f := keyFile{Type: oidLoadableKey(), EmptyAuth: true, Parent: int64(handle), RSAParent: parent.Type == tpm2.TPMAlgRSA}
	edit(&public, &f)
	rsp, err := run(d, tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: p.Handle, Name: p.Name, Auth: tpm2.PasswordAuth(nil)},
		InPublic:     tpm2.New2B(public),
	})
	if err != nil {
		t.Fatal(err)
	}
	if f.Public == nil {
		f.Public, f.Private = sized(rsp.OutPublic.Bytes()), sized(rsp.OutPrivate.Buffer)
	}
	der, err := asn1.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
}

// TestAdoptParents adopts keys under every parent that key files can name, and opens them
// when the TPM was reset.
func TestAdoptParents(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		template tpm2.TPMTPublic
		handle   tpm2.TPMHandle
	}{
		"owner":                 {eccTemplateH2(), ownerSRK},
		"owner, SRK":            {tpm2.ECCSRKTemplate, ownerSRK},
		"owner, RSA":            {rsaTemplateH1(), ownerSRK},
		"owner, RSA SRK":        {tpm2.RSASRKTemplate, ownerSRK},
		"persistent":            {tpm2.ECCSRKTemplate, persistentSRK},
		"another persistent":    {eccTemplateH2(), 0x81000abc},
		"persistent, not a SRK": {tpm2.RSASRKTemplate, persistentSRK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := tpmtest.Start(t)
			file := foreign(t, s, c.template, c.handle, func(_ *tpm2.TPMTPublic, f *keyFile) { f.Description = "a comment" })
			tok := open(t, Options{Device: s.Device()})
			req := adopt(t, tok, token.AdoptRequest{File: file, Use: token.UseSign})
			k := openKey(t, tok, req)
			sign(t, k)
			others := []token.Key{
				openKey(t, tok, generate(t, tok, token.P256, token.UseSign)),
				openKey(t, tok, generate(t, tok, token.P256, token.UseSign)),
				openKey(t, tok, generate(t, tok, token.P256, token.UseSign)),
			}
			for _, o := range append(others, k) {
				sign(t, o)
			}
			s.Restart()
			sign(t, k)
			sign(t, openKey(t, tok, req))
		})
	}
}

// TestImported has an imported key called one that was generated here, by its own associated data too: the TPM knows better.
func TestImported(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	scalar := make([]byte, 32)
	scalar[31] = 7
	c, err := tok.Import(t.Context(), token.ImportRequest{Private: &token.PrivateKey{Algorithm: token.P256, Scalar: scalar}, Use: token.UseSign})
	if err != nil {
		t.Fatal(err)
	}
	req := openRequest(c, token.UseSign)
	if _, err := tok.Open(t.Context(), req); !errors.Is(err, token.ErrCorrupt) {
		t.Errorf("Open of an imported key as one that was generated here: %v, want ErrCorrupt", err)
	}
	req.Imported = true
	sign(t, openKey(t, tok, req))
}

// TestAdoptEmptyAuth adopts a key whose file says, as tpm2_encodeobject has it, the contrary of what is.
func TestAdoptEmptyAuth(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	file := foreign(t, s, eccTemplateH2(), ownerSRK, func(_ *tpm2.TPMTPublic, f *keyFile) { f.EmptyAuth = false })
	tok := open(t, Options{Device: s.Device()})
	req := token.AdoptRequest{File: file, Use: token.UseSign}
	if _, err := tok.Adopt(t.Context(), req); !errors.Is(err, token.ErrAuthNeeded) {
		t.Errorf("no PIN: %v, want ErrAuthNeeded", err)
	}
	req.Auth.PIN = []byte{}
	sign(t, openKey(t, tok, adopt(t, tok, req)))
	if err := tok.SetPIN(t.Context(), nil, []byte("1234")); err != nil {
		t.Fatal(err)
	}
	req.Auth.PIN = []byte("wrong")
	if _, err := tok.Adopt(t.Context(), req); !errors.Is(err, token.ErrAuthWrong) {
		t.Errorf("a PIN for a key without one: %v, want ErrAuthWrong", err)
	}
}

func TestAdoptRefuses(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	plain := func(*tpm2.TPMTPublic, *keyFile) {}
	key := func(edit func(*tpm2.TPMTPublic, *keyFile)) []byte {
		return foreign(t, s, eccTemplateH2(), ownerSRK, edit)
	}
	good := key(plain)
	files := map[string]struct {
		file []byte
		want error
	}{
		"nothing":        {nil, token.ErrBadKey},
		"no PEM":         {[]byte("garbage"), token.ErrBadKey},
		"another PEM":    {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{0x30, 0}}), token.ErrBadKey},
		"empty PEM":      {pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: nil}), token.ErrBadKey},
		"two keys":       {append(bytes.Clone(good), good...), token.ErrBadKey},
		"long":           {append(bytes.Clone(good), make([]byte, maxFile)...), token.ErrBadKey},
		"importable key": {key(func(_ *tpm2.TPMTPublic, f *keyFile) { f.Type = oidImportableKey() }), token.ErrBadKey},
		"policy": {key(func(_ *tpm2.TPMTPublic, f *keyFile) {
			f.Policy = asn1.RawValue{FullBytes: []byte{0x30, 2, 0x30, 0}}
		}), token.ErrBadKey},
		"policy only":   {key(func(p *tpm2.TPMTPublic, _ *keyFile) { p.ObjectAttributes.UserWithAuth = false }), token.ErrUnsupported},
		"for agreement": {key(func(p *tpm2.TPMTPublic, _ *keyFile) { p.ObjectAttributes.SignEncrypt = false }), token.ErrUnsupported},
		"restricted":    {key(func(p *tpm2.TPMTPublic, _ *keyFile) { *p = attestationTemplate() }), token.ErrUnsupported},
	}
	s.Restart()
	tok := open(t, Options{Device: s.Device()})
	for name, c := range files {
		if _, err := tok.Adopt(t.Context(), token.AdoptRequest{File: c.file, Use: token.UseSign}); !errors.Is(err, c.want) {
			t.Errorf("Adopt of %s: %v, want %v", name, err, c.want)
		}
	}
	for _, use := range []token.Use{token.UseSplit, "", "no-such-use"} {
		if _, err := tok.Adopt(t.Context(), token.AdoptRequest{File: good, Use: use}); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("Adopt for use %q: %v, want ErrUnsupported", use, err)
		}
	}
	adopt(t, tok, token.AdoptRequest{File: good, Use: token.UseSign})
	tok.Close()
	s.Replace()
	other := open(t, Options{Device: s.Device()})
	if _, err := other.Adopt(t.Context(), token.AdoptRequest{File: good, Use: token.UseSign}); !errors.Is(err, token.ErrCorrupt) {
		t.Errorf("Adopt of a key of another TPM: %v, want ErrCorrupt", err)
	}
}

func FuzzParsePEM(f *testing.F) {
	for _, der := range keyFiles(f) {
		b, err := decodeBlob(der)
		if err != nil {
			f.Fatal(err)
		}
		file, err := b.pem()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		o, err := parsePEM(file)
		if err != nil || o.parseArea() != nil {
			return
		}
		again, err := o.pem()
		if err != nil {
			t.Fatal(err)
		}
		p, err := parsePEM(again)
		if err != nil || p.parent != o.parent || !bytes.Equal(p.area, o.area) || !bytes.Equal(p.private, o.private) {
			t.Errorf("%q comes back as another key: %v", again, err)
		}
	})
}
