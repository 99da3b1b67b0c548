package tpm

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func encryptOAEP(t testing.TB, k token.Key, plaintext, label []byte) token.DecryptRequest {
	t.Helper()
	public, err := x509.ParsePKCS1PublicKey(k.Public().Octets)
	if err != nil {
		t.Fatal(err)
	}
	c, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, plaintext, label)
	if err != nil {
		t.Fatal(err)
	}
	return token.DecryptRequest{Padding: token.PaddingOAEP, Hash: crypto.SHA256, Ciphertext: c, Label: label}
}

// refuser answers one kind of command itself, with a response code.
type refuser struct {
	stream
	command tpm2.TPMCC
	code    tpm2.TPMRC
	answer  []byte
}

func refusing(t testing.TB, device string, cc tpm2.TPMCC, code tpm2.TPMRC) dialer {
	t.Helper()
	dial, err := parseDevice(device)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context) (stream, error) {
		st, err := dial(ctx)
		return &refuser{stream: st, command: cc, code: code}, err
	}
}

func (r *refuser) Write(b []byte) (int, error) {
	if r.answer = nil; tpm2.TPMCC(binary.BigEndian.Uint32(b[6:])) == r.command {
		r.answer = response(r.code)
		return len(b), nil
	}
	return r.stream.Write(b)
}

func (r *refuser) Read(b []byte) (int, error) {
	if r.answer == nil {
		return r.stream.Read(b)
	}
	return copy(b, r.answer), nil
}

// TestNoBareRSA has a TPM that keeps the bare RSA function to itself, as new profiles of libtpms can.
func TestNoBareRSA(t *testing.T) {
	t.Parallel()
	const parameter2 = 0x2c0
	tok := open(t, Options{dial: refusing(t, tpmtest.Start(t).Device(), tpm2.TPMCCRSADecrypt, tpm2.TPMRCScheme|parameter2)})
	k := openKey(t, tok, generate(t, tok, token.RSA2048, token.UseDecrypt)).(token.Decrypter)
	_, err := k.Decrypt(t.Context(), encryptOAEP(t, k, []byte("plaintext"), nil))
	if !errors.Is(err, token.ErrUnsupported) || !errors.Is(err, tpm2.TPMRCScheme) {
		t.Errorf("Decrypt: %v, want ErrUnsupported and TPM_RC_SCHEME", err)
	}
}

// TestWrongRSAResult has the TPM use another key than the one that the result is checked with.
func TestWrongRSAResult(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	k := openKey(t, tok, generate(t, tok, token.RSA2048, token.UseDecrypt)).(*rsaDecrypter)
	k.public = &rsa.PublicKey{N: new(big.Int).Sub(k.public.N, big.NewInt(2)), E: k.public.E}
	one := make([]byte, k.public.Size())
	one[0] = 1
	for _, req := range []token.DecryptRequest{
		{Padding: token.PaddingOAEP, Hash: crypto.SHA1, Ciphertext: one}, {Padding: token.PaddingPKCS1v15, Length: 16, Ciphertext: one},
	} {
		if got, err := k.Decrypt(t.Context(), req); !errors.Is(err, token.ErrFault) {
			t.Errorf("Decrypt: %x, %v, want ErrFault", got, err)
		}
	}
}

// TestDecryptIsOneCommand counts, for right and wrong ciphertexts.
func TestDecryptIsOneCommand(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, tpmtest.Start(t).Device())
	tok := open(t, Options{dial: r.open})
	k := openKey(t, tok, generate(t, tok, token.RSA2048, token.UseDecrypt)).(token.Decrypter)
	req := encryptOAEP(t, k, []byte("plaintext"), []byte("any label"))
	wrong := req
	wrong.Label = nil
	for range 2 { // the first loads the key
		r.take()
		if got, err := k.Decrypt(t.Context(), req); err != nil || string(got) != "plaintext" {
			t.Fatalf("Decrypt: %q, %v", got, err)
		}
	}
	r.wantCommands(t, "a decryption", tpm2.TPMCCRSADecrypt)
	if _, err := k.Decrypt(t.Context(), wrong); !errors.Is(err, token.ErrDecrypt) {
		t.Errorf("Decrypt with another label: %v", err)
	}
	r.wantCommands(t, "a decryption that fails", tpm2.TPMCCRSADecrypt)
	wrong = token.DecryptRequest{Padding: token.PaddingPKCS1v15, Length: 9, Ciphertext: req.Ciphertext}
	if got, err := k.Decrypt(t.Context(), wrong); err != nil || len(got) != 9 || string(got) == "plaintext" {
		t.Errorf("Decrypt as PKCS #1 v1.5: %q, %v", got, err)
	}
	r.wantCommands(t, "an implicit rejection", tpm2.TPMCCRSADecrypt)
}

func TestImportRSARefuses(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	good, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	exponent, three, wrong := *good, *good, *good
	exponent.E = 3
	three.Primes = append(three.Primes[:2:2], three.Primes[0])
	wrong.N = good.Primes[0]
	for name, k := range map[string]*rsa.PrivateKey{"exponent 3": &exponent, "three primes": &three, "wrong modulus": &wrong} {
		_, err := tok.Import(t.Context(), token.ImportRequest{
			Private: &token.PrivateKey{Algorithm: token.RSA2048, RSA: k}, Use: token.UseSign,
		})
		if !errors.Is(err, token.ErrBadKey) {
			t.Errorf("Import of a key with %s: %v, want ErrBadKey", name, err)
		}
	}
}
