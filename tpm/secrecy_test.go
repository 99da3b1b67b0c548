package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// wiretap records every octet between this process and the TPM, in both directions.
type wiretap struct {
	dial dialer
	mu   sync.Mutex
	seen []byte // guarded by mu
}

type tappedStream struct {
	stream
	tap *wiretap
}

func (w *wiretap) open(ctx context.Context) (stream, error) {
	s, err := w.dial(ctx)
	return &tappedStream{s, w}, err
}

func (w *wiretap) record(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, b...)
}

func (s *tappedStream) Write(b []byte) (int, error) {
	s.tap.record(b)
	return s.stream.Write(b)
}

func (s *tappedStream) Read(b []byte) (int, error) {
	n, err := s.stream.Read(b)
	s.tap.record(b[:n])
	return n, err
}

// contains looks for a value, and for each half of it.
func (w *wiretap) contains(value []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	half := len(value) / 2
	return bytes.Contains(w.seen, value[:half]) || bytes.Contains(w.seen, value[half:])
}

// TestSecrecy does everything that has a secret in it and looks for the secrets in every octet
// between this process and the TPM.
func TestSecrecy(t *testing.T) {
	t.Parallel()
	dial, err := parseDevice(tpmtest.Start(t).Device())
	if err != nil {
		t.Fatal(err)
	}
	tap := &wiretap{dial: dial}
	tok := open(t, Options{dial: tap.open})
	secrets := map[string][]byte{}

	secrets["first PIN"], secrets["PIN"] = []byte("the first PIN of all"), []byte("the PIN that came after it")
	setPIN(t, tok, nil, secrets["first PIN"])
	setPIN(t, tok, secrets["first PIN"], secrets["PIN"])
	tok.Lock(t.Context())
	if err := tok.Unlock(t.Context(), []byte("a wrong PIN, or is it")); err == nil {
		t.Fatal("Unlock with a wrong PIN succeeded")
	}
	secrets["wrong PIN"] = []byte("a wrong PIN, or is it")
	unlock(t, tok, secrets["PIN"])
	for name := range secrets {
		secrets["authorization value of "+name] = pinValue(secrets[name])
	}
	secrets["secret behind the PIN"] = bytes.Clone(tok.pin.secret)
	for _, what := range []string{"key", "seal"} {
		value, err := (&offer{secret: tok.pin.secret}).keyValue(nil, what)
		if err != nil {
			t.Fatal(err)
		}
		secrets["authorization value of "+what] = value
	}

	sign(t, openKey(t, tok, generatePIN(t, tok, token.P256, token.UseSign)))
	k := openKey(t, tok, generatePIN(t, tok, token.P256, token.UseAgree)).(token.PointAgreer)
	peer, err := keyshare.RandomScalar(keyshare.P256, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.AgreePoint(t.Context(), token.AgreeRequest{Peer: peer.Public().Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	secrets["agreement"] = point[1:]
	secrets["imported scalar"] = importScalar(t, tok)
	secrets["plaintext"] = decryptRSA(t, tok)
	secrets["adopted key's own PIN"] = adoptSecret(t, tok)
	sealEverything(t, tok, tap, secrets)

	if !bytes.Contains(tap.seen, tpm2.Marshal(tpm2.TPM2BDigest{Buffer: tok.pin.object.area})) {
		t.Error("the wiretap has not seen the public area of the PIN object")
	}
	for name, value := range secrets {
		if len(value) < 16 {
			t.Errorf("%s has %d octets only", name, len(value))
		}
		if tap.contains(value) {
			t.Errorf("%s %s is seen between this process and the TPM", name, hex.EncodeToString(value))
		}
	}
}

func importScalar(t *testing.T, tok *Token) []byte {
	t.Helper()
	scalar, err := keyshare.RandomScalar(keyshare.P256, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tok.Import(t.Context(), token.ImportRequest{
		Private: &token.PrivateKey{Algorithm: token.P256, Scalar: scalar.Bytes()},
		Use:     token.UseSign, Policy: token.Policy{PIN: token.PINOnce},
	})
	if err != nil {
		t.Fatal(err)
	}
	open := openRequest(c, token.UseSign)
	open.Imported = true
	sign(t, openKey(t, tok, open))
	return scalar.Bytes()
}

// adoptSecret adopts a key that has a PIN of its own.
func adoptSecret(t *testing.T, tok *Token) []byte {
	t.Helper()
	value := []byte("the PIN of this key alone")
	file, err := do(t.Context(), tok, "create", func(d *device) ([]byte, error) {
		template, err := keyTemplate(token.P256, purposeSign, true, nil)
		if err != nil {
			return nil, err
		}
		o, err := d.create(template, value, nil)
		if err != nil {
			return nil, err
		}
		if err := o.parseArea(); err != nil {
			return nil, err
		}
		return o.pem()
	})
	if err != nil {
		t.Fatal(err)
	}
	sign(t, openKey(t, tok, adopt(t, tok, token.AdoptRequest{File: file, Use: token.UseSign, Auth: token.Auth{PIN: value}})))
	return value
}

func decryptRSA(t *testing.T, tok *Token) []byte {
	t.Helper()
	k := openKey(t, tok, generatePIN(t, tok, token.RSA2048, token.UseDecrypt)).(token.Decrypter)
	plaintext := make([]byte, 32)
	rand.Read(plaintext)
	req := encryptOAEP(t, k, plaintext, nil)
	got, err := k.Decrypt(t.Context(), req)
	if err != nil || !bytes.Equal(got, plaintext) {
		t.Fatalf("Decrypt: %v", err)
	}
	return plaintext
}

// sealEverything seals and unseals in each way. The TPM sees the key of the secret, too, in a
// session without encryption at the end: that the test would have found it.
func sealEverything(t *testing.T, tok *Token, tap *wiretap, secrets map[string][]byte) {
	t.Helper()
	for name, req := range map[string]token.SealRequest{
		"machine": {PIN: token.PINNever}, "PIN": {PIN: token.PINOnce}, "PCR": {PIN: token.PINOnce, PCRs: "sha256:16"},
	} {
		req.Secret = []byte("the secret sealed to " + name + rand.Text())
		s := seal(t, tok, req)
		requests := []token.UnsealRequest{{Blob: s.Blob}}
		if s.Recovery != nil {
			requests = append(requests, token.UnsealRequest{Blob: s.Blob, Recovery: s.Recovery})
			secrets["recovery secret"] = s.Recovery
		}
		p, err := parseSealed(s.Blob, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, u := range requests {
			_, open, err := tok.opener(p, u)
			if err != nil {
				t.Fatal(err)
			}
			key, err := do(t.Context(), tok, "unseal", open)
			if err != nil {
				t.Fatal(err)
			}
			secrets["key sealed to "+name+string(rune('0'+i))] = key
		}
		secrets["secret sealed to "+name] = req.Secret
	}
	control := seal(t, tok, token.SealRequest{Secret: []byte("control")})
	p, err := parseSealed(control.Blob, nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := do(t.Context(), tok, "unseal in the clear", func(d *device) ([]byte, error) {
		h, err := d.use(&p.object)
		if err != nil {
			return nil, err
		}
		rsp, err := run(d, tpm2.Unseal{ItemHandle: d.auth(h, nil, clearly)})
		if err != nil {
			return nil, err
		}
		return rsp.OutData.Buffer, nil
	})
	if err != nil || !tap.contains(key) {
		t.Errorf("the wiretap does not see what is in the clear: %v", err)
	}
}
