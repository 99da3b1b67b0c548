package agent

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"fmt"
	"hash"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// rsaOperation is CryptographicOperationDecrypt with an RSA ciphertext.
func rsaOperation(keyID, members string) string {
	return `{"CryptographicOperationDecrypt":{"KeyId":"` + keyID + `","RSA":{` + members + `}}}`
}

// decryptRSA decrypts, which must succeed.
func decryptRSA(t *testing.T, a *Agent, keyID, members string) []byte {
	t.Helper()
	r := operateResult(t, a, rsaOperation(keyID, members))
	var out mesh.ResultDecrypt
	if err := r.Decode(&out); err != nil || out.Status != 201 || out.Key == nil || out.Seed != nil || out.IV != nil {
		t.Fatalf("%.300s: %s, %v", members, r.Body, err)
	}
	return out.Key
}

func TestDecryptRSA(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	public, err := x509.ParsePKCS1PublicKey(k.rsaDecrypt.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	for padding, newHash := range map[string]func() hash.Hash{
		"oaep-sha1": sha1.New, "oaep-sha256": sha256.New, "oaep-sha384": sha512.New384, "oaep-sha512": sha512.New,
	} {
		for _, want := range []string{"", "a content encryption key"} {
			for label, member := range map[string]string{"": "", "label": `,"Label":"bGFiZWw"`} {
				c, err := rsa.EncryptOAEP(newHash(), rand.Reader, public, []byte(want), []byte(label))
				if err != nil {
					t.Fatal(err)
				}
				got := decryptRSA(t, k.Agent, k.rsaDecrypt.Udf, fmt.Sprintf(`"Padding":%q,"Ciphertext":%q`, padding, b64(c))+member)
				if string(got) != want {
					t.Errorf("%s: %q, want %q", padding, got, want)
				}
			}
		}
	}
	//lint:ignore SA1019 it is what is tested
	c, err := rsa.EncryptPKCS1v15(rand.Reader, public, []byte("sixteen octets.."))
	if err != nil {
		t.Fatal(err)
	}
	pkcs1 := func(length int) []byte {
		return decryptRSA(t, k.Agent, k.rsaDecrypt.Udf, fmt.Sprintf(`"Padding":"pkcs1","Length":%d,"Ciphertext":%q`, length, b64(c)))
	}
	if got := pkcs1(16); string(got) != "sixteen octets.." {
		t.Errorf("pkcs1: %q", got)
	}
	// Of another length, of another key, or changed: octets of that length, no error, and again the same.
	if got := pkcs1(17); len(got) != 17 || bytes.HasSuffix(got, []byte("octets..")) || !bytes.Equal(got, pkcs1(17)) {
		t.Errorf("pkcs1, of another length: %q", got)
	}
	c[255] ^= 1
	if got := pkcs1(16); len(got) != 16 || !bytes.Equal(got, pkcs1(16)) {
		t.Errorf("pkcs1, changed: %q", got)
	}
}

// TestRefusedRSA holds each refusal to its status. For what is inside a ciphertext there is one.
func TestRefusedRSA(t *testing.T) {
	t.Parallel()
	k := newOperateKeys(t)
	public, err := x509.ParsePKCS1PublicKey(k.rsaDecrypt.Public.Octets)
	if err != nil {
		t.Fatal(err)
	}
	encrypted, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, public, []byte("plaintext"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c := `"Ciphertext":"` + b64(encrypted) + `"`
	changed := bytes.Clone(encrypted)
	changed[255] ^= 1
	id := k.rsaDecrypt.Udf
	oaep := `"Padding":"oaep-sha256",`
	recipient := `"Recipient":{"epk":` + ecdh("X448", k.peer.Bytes()) + `,"wmk":"AA"}`
	both := func(member string) string {
		return `{"CryptographicOperationDecrypt":{"KeyId":"` + id + `","RSA":{` + oaep + c + `},` + member + `}}`
	}
	const failed = "RSA: decryption failed"
	for _, x := range []struct {
		operation string
		status    int
		error     string // that it starts with
	}{
		{rsaOperation(id, oaep+`"Ciphertext":"`+b64(changed)+`"`), 400, failed},
		{rsaOperation(id, `"Padding":"oaep-sha1",`+c), 400, failed},
		{rsaOperation(id, oaep+`"Label":"AA",`+c), 400, failed},
		{rsaOperation(id, oaep+`"Ciphertext":"`+b64(bytes.Repeat([]byte{0xff}, 256))+`"`), 400, failed},
		{rsaOperation(id, oaep+`"Ciphertext":"`+b64(public.N.Bytes())+`"`), 400, failed},
		{rsaOperation(id, `"Padding":"pkcs1","Length":16,"Ciphertext":"`+b64(public.N.Bytes())+`"`), 400, failed},

		{rsaOperation(id, c), 400, "RSA: Padding"},
		{rsaOperation(id, `"Padding":"oaep",`+c), 400, "RSA: Padding"},
		{rsaOperation(id, `"Padding":"OAEP-SHA256",`+c), 400, "RSA: Padding"},
		{rsaOperation(id, `"Padding":"raw",`+c), 400, "RSA: Padding"},
		{rsaOperation(id, `"Padding":"oaep-sha256"`), 400, "RSA: Ciphertext missing"},
		{rsaOperation(id, oaep+`"Ciphertext":""`), 400, "RSA: Ciphertext: 0 octets"},
		{rsaOperation(id, oaep+`"Ciphertext":"`+b64(encrypted[1:])+`"`), 400, "RSA: Ciphertext: 255 octets"},
		{rsaOperation(id, oaep+`"Ciphertext":"`+b64(append([]byte{0}, encrypted...))+`"`), 400, "RSA: Ciphertext: 257 octets"},
		{rsaOperation(id, oaep+`"Length":9,`+c), 400, "RSA: Length"},
		{rsaOperation(id, `"Padding":"pkcs1",`+c), 400, "RSA: Length"},
		{rsaOperation(id, `"Padding":"pkcs1","Length":0,`+c), 400, "RSA: Length"},
		{rsaOperation(id, `"Padding":"pkcs1","Length":-1,`+c), 400, "RSA: Length"},
		{rsaOperation(id, `"Padding":"pkcs1","Length":246,`+c), 400, "RSA: Length"},
		{rsaOperation(id, `"Padding":"pkcs1","Length":9,"Label":"AA",`+c), 400, "RSA: Label"},
		{rsaOperation(id, `"Padding":"pkcs1","Length":1.5,`+c), 400, ""},
		{rsaOperation(id, oaep+c+`,"Hash":"x"`), 400, ""},

		{both(recipient), 400, "Recipient: not together"},
		{both(`"Recipient":{}`), 400, "Recipient: not together"},
		{both(`"Partials":[]`), 400, "Partials: not together"},
		{both(`"Info":"x"`), 400, "Info: not together"},
		{both(`"Release":"seed"`), 400, "Release: not together"},
		{both(`"Salt":""`), 400, "Salt: not together"},

		{rsaOperation("", oaep+c), 400, "KeyId"},
		{rsaOperation(strings.Repeat("A", 28), oaep+c), 404, ""},
		{rsaOperation(k.rsa.Udf, oaep+c), 403, "use"},
		{rsaOperation(k.sign.Udf, oaep+c), 403, "use"},
		{rsaOperation(k.split.Udf, oaep+c), 403, "use"},
		{rsaOperation(k.decrypt.Udf, oaep+c), 501, "RSA decryption with an X448 key"},
		{rsaOperation(k.x448.Udf, oaep+c), 501, "RSA decryption with an X448 key"},
		{`{"CryptographicOperationDecrypt":{"KeyId":"` + id + `",` + recipient + `}}`, 501, ""},
		{`{"CryptographicOperationSign":{"KeyId":"` + id + `","Data":"AA"}}`, 403, "use"},
		{`{"CryptographicOperationKeyAgreement":{"KeyId":"` + id + `","PublicKey":` + ecdh("X448", k.peer.Bytes()) + `}}`, 403, "use"},
	} {
		r := operateResult(t, k.Agent, x.operation)
		var got result
		if err := r.Decode(&got); err != nil {
			t.Errorf("%.200s: %s has other members than Status and Error", x.operation, r.Body)
		}
		if got.Status != x.status || got.Error == "" || !strings.HasPrefix(got.Error, x.error) || x.error == failed && got.Error != failed {
			t.Errorf("%.200s: %s; want %d %q", x.operation, r.Body, x.status, x.error)
		}
	}
	if got := k.rsaDecrypt.Operations(); len(got) != 1 || got[0] != "Decrypt" || k.rsaDecrypt.Use != token.UseDecrypt {
		t.Errorf("operations of an RSA key of use decrypt: %q", got)
	}
}

// TestResultIsWiped holds that a secret is overwritten once it is encoded.
func TestResultIsWiped(t *testing.T) {
	t.Parallel()
	r := mesh.ResultDecrypt{Seed: []byte{1}, Key: []byte{2}, IV: []byte{3}}
	r.Wipe()
	if r.Seed[0]|r.Key[0]|r.IV[0] != 0 {
		t.Errorf("%+v", r)
	}
}
