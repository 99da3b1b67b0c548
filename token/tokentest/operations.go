package tokentest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// Verify checks a signature made for req by the key of this public half. It uses the
// standard library, and keyshare for EdDSA.
func Verify(public token.PublicKey, req token.SignRequest, signature []byte) error {
	ok := false
	switch req.Scheme {
	case token.SchemeEdDSA, token.SchemeMeshEdDSA:
		mode := keyshare.ModePure
		if req.Scheme == token.SchemeMeshEdDSA {
			mode = keyshare.ModeMesh
		}
		p, err := parsePublic(public)
		if err != nil {
			return err
		}
		ok = keyshare.Verify(p, mode, req.Message, signature)
	default:
		digest, err := req.Digest()
		if err != nil {
			return err
		}
		standard, err := public.Standard()
		if err != nil {
			return err
		}
		ok = verifyDigest(standard, req, digest, signature)
	}
	if !ok {
		return errors.New("signature does not verify")
	}
	return nil
}

func verifyDigest(public crypto.PublicKey, req token.SignRequest, digest, signature []byte) bool {
	switch pub := public.(type) {
	case *ecdsa.PublicKey:
		return req.Scheme == token.SchemeECDSA && ecdsa.VerifyASN1(pub, digest, signature)
	case *rsa.PublicKey:
		switch req.Scheme {
		case token.SchemePKCS1v15:
			return rsa.VerifyPKCS1v15(pub, req.Hash, digest, signature) == nil
		case token.SchemePSS:
			salt := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
			return rsa.VerifyPSS(pub, req.Hash, digest, signature, salt) == nil
		}
	}
	return false
}

func parsePublic(public token.PublicKey) (*keyshare.Point, error) {
	c, err := keyshare.ParseCurve(string(public.Algorithm))
	if err != nil {
		return nil, err
	}
	return keyshare.ParsePoint(c, public.Octets)
}

func checkSignature(t *testing.T, public token.PublicKey, req token.SignRequest, signature []byte) {
	t.Helper()
	if err := Verify(public, req, signature); err != nil {
		t.Errorf("%s scheme %d %v over %d octets: %v", public.Algorithm, req.Scheme, req.Hash, len(req.Message), err)
	}
}

// checkSigner signs in every way. The default request must work; any other way may be
// unsupported, but not wrong.
func (s *suite) checkSigner(t *testing.T, k token.Signer) {
	t.Helper()
	algorithm := k.Public().Algorithm
	for _, n := range []int{0, 1, 63, 64, 1000, 1 << 17} {
		req := DefaultSignRequest(algorithm, bytes.Repeat([]byte{0xa5}, n))
		req.Auth = s.h.Auth
		sig, err := k.Sign(t.Context(), req)
		if s.h.MaxMessage != nil && s.h.MaxMessage(algorithm) > 0 && n > s.h.MaxMessage(algorithm) {
			wantError(t, fmt.Sprintf("Sign over %d octets", n), err, token.ErrUnsupported)
			continue
		}
		if err != nil {
			t.Fatalf("Sign over %d octets: %v", n, err)
		}
		checkSignature(t, k.Public(), req, sig)
	}
	hashes := []crypto.Hash{0, crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.BLAKE2b_512}
	for scheme := token.Scheme(0); scheme <= token.SchemePSS+1; scheme++ {
		for _, hash := range hashes {
			req := token.SignRequest{Scheme: scheme, Hash: hash, Message: []byte("message"), Auth: s.h.Auth}
			sig, err := k.Sign(t.Context(), req)
			what := fmt.Sprintf("Sign with %s, scheme %d, hash %v", algorithm, scheme, hash)
			switch {
			case err == nil && !sensible(algorithm, req):
				t.Errorf("%s succeeded, want ErrUnsupported", what)
			case err == nil:
				checkSignature(t, k.Public(), req, sig)
			default:
				wantError(t, what, err, token.ErrUnsupported)
			}
		}
	}
}

// sensible reports whether an algorithm has the scheme and the hash at all.
func sensible(a token.Algorithm, req token.SignRequest) bool {
	if req.Scheme == token.SchemeEdDSA || req.Scheme == token.SchemeMeshEdDSA {
		return (a == token.Ed25519 || a == token.Ed448) && req.Hash == 0
	}
	if _, err := req.Digest(); err != nil {
		return false
	}
	switch req.Scheme {
	case token.SchemeECDSA:
		return a == token.P256 || a == token.P384 || a == token.P521
	case token.SchemePKCS1v15, token.SchemePSS:
		return a.RSABits() != 0
	}
	return false
}

// newPeer draws a peer and computes, from its private scalar, what it and the key of
// this public half agree on.
func newPeer(public token.PublicKey) (peer []byte, want *keyshare.Point, err error) {
	p, err := parsePublic(public)
	if err != nil {
		return nil, nil, err
	}
	s, err := keyshare.RandomScalar(p.Curve(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	want, err = keyshare.Agree(s, p)
	return s.Public().Bytes(), want, err
}

const agreements = 16 // enough to meet a leading zero octet now and then

func (s *suite) checkAgreer(t *testing.T, k token.Agreer) {
	t.Helper()
	for range agreements {
		peer, want, err := newPeer(k.Public())
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Agree(t.Context(), token.AgreeRequest{Peer: peer, Auth: s.h.Auth})
		if err != nil {
			t.Fatalf("Agree: %v", err)
		}
		wantOctets(t, "Agree", got, want.SharedSecret())
	}
	s.checkBadPoints(t, k.Public(), k.Agree)
}

func (s *suite) checkPointAgreer(t *testing.T, k token.PointAgreer) {
	t.Helper()
	for range agreements {
		peer, want, err := newPeer(k.Public())
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.AgreePoint(t.Context(), token.AgreeRequest{Peer: peer, Auth: s.h.Auth})
		if err != nil {
			t.Fatalf("AgreePoint: %v", err)
		}
		wantOctets(t, "AgreePoint", got, want.Bytes())
	}
	s.checkBadPoints(t, k.Public(), k.AgreePoint)
}

func (s *suite) checkScaled(t *testing.T, k token.ScaledPointAgreer) {
	t.Helper()
	p, err := parsePublic(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	coefficient, err := keyshare.RandomScalar(p.Curve(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	peer, plain, err := newPeer(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	want, err := keyshare.Agree(coefficient, plain)
	if err != nil {
		t.Fatal(err)
	}
	req := token.AgreeRequest{Peer: peer, Auth: s.h.Auth}
	got, err := k.AgreeScaled(t.Context(), req, coefficient.Bytes())
	if err != nil {
		t.Fatalf("AgreeScaled: %v", err)
	}
	wantOctets(t, "AgreeScaled", got, want.Bytes())
	n := p.Curve().ScalarLen()
	for _, bad := range [][]byte{{}, make([]byte, n), bytes.Repeat([]byte{0xff}, n), make([]byte, n+1)} {
		_, err := k.AgreeScaled(t.Context(), req, bad)
		wantError(t, fmt.Sprintf("AgreeScaled with coefficient %x", bad), err, token.ErrBadRequest)
	}
}

func (s *suite) checkBadPoints(t *testing.T, public token.PublicKey,
	agree func(context.Context, token.AgreeRequest) ([]byte, error)) {
	t.Helper()
	good, _, err := newPeer(public)
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string][]byte{
		"empty":    {},
		"short":    good[:len(good)-1],
		"long":     append(bytes.Clone(good), 0),
		"all zero": make([]byte, len(good)),
	}
	switch public.Algorithm {
	case token.P256, token.P384, token.P521:
		offCurve := bytes.Clone(good)
		offCurve[len(offCurve)-1] ^= 1
		bad["off the curve"] = offCurve
		size := (len(good) - 1) / 2
		bad["compressed"] = append([]byte{2 + good[len(good)-1]&1}, good[1:1+size]...)
		bad["hybrid"] = append([]byte{6 + good[len(good)-1]&1}, good[1:]...)
		bad["origin"] = append([]byte{4}, make([]byte, 2*size)...)
		bad["identity"] = []byte{0}
		bad["beyond the field"] = append([]byte{4}, bytes.Repeat([]byte{0xff}, 2*size)...)
	}
	for name, peer := range bad {
		_, err := agree(t.Context(), token.AgreeRequest{Peer: peer, Auth: s.h.Auth})
		wantError(t, "agreement with a point that is "+name, err, token.ErrBadPoint)
	}
}

// encrypt makes a request for the decryption of an OAEP ciphertext.
func encrypt(public token.PublicKey, h crypto.Hash, plaintext, label []byte) (token.DecryptRequest, error) {
	pub, err := x509.ParsePKCS1PublicKey(public.Octets)
	if err != nil {
		return token.DecryptRequest{}, err
	}
	newHash := map[crypto.Hash]func() hash.Hash{
		crypto.SHA1: sha1.New, crypto.SHA256: sha256.New, crypto.SHA384: sha512.New384, crypto.SHA512: sha512.New,
	}[h]
	ciphertext, err := rsa.EncryptOAEP(newHash(), rand.Reader, pub, plaintext, label)
	return token.DecryptRequest{Padding: token.PaddingOAEP, Hash: h, Ciphertext: ciphertext, Label: label}, err
}

func (s *suite) checkDecrypter(t *testing.T, k token.Decrypter) {
	t.Helper()
	public, err := x509.ParsePKCS1PublicKey(k.Public().Octets)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		s.checkOAEP(t, k, h, public.Size()-2*h.Size()-2)
	}
	s.checkPKCS1v15(t, k, public)
	s.checkDecryptRequests(t, k, public)
}

// checkOAEP decrypts with one hash. For whatever is wrong with a ciphertext there is one error.
func (s *suite) checkOAEP(t *testing.T, k token.Decrypter, h crypto.Hash, longest int) {
	t.Helper()
	for i, want := range [][]byte{{}, {0}, bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{1}, longest)} {
		label := [][]byte{nil, []byte("label"), []byte("\x00"), bytes.Repeat([]byte("long"), 100)}[i]
		req, err := encrypt(k.Public(), h, want, label)
		if err != nil {
			t.Fatal(err)
		}
		req.Auth = s.h.Auth
		got, err := k.Decrypt(t.Context(), req)
		if err != nil {
			t.Fatalf("Decrypt, OAEP with %v and %d octets of label: %v", h, len(label), err)
		}
		if got == nil {
			t.Error("Decrypt returned nil for an empty plaintext")
		}
		wantOctets(t, "Decrypt", got, want)

		wrong := req
		wrong.Label = append(bytes.Clone(label), 0)
		_, err = k.Decrypt(t.Context(), wrong)
		wantError(t, "Decrypt with another label", err, token.ErrDecrypt)
		wrong = req
		wrong.Ciphertext = bytes.Clone(req.Ciphertext)
		wrong.Ciphertext[len(wrong.Ciphertext)-1] ^= 1
		_, err = k.Decrypt(t.Context(), wrong)
		wantError(t, "Decrypt of a changed ciphertext", err, token.ErrDecrypt)
		wrong = req
		if wrong.Hash = crypto.SHA256; h == crypto.SHA256 {
			wrong.Hash = crypto.SHA512
		}
		_, err = k.Decrypt(t.Context(), wrong)
		wantError(t, "Decrypt with another hash", err, token.ErrDecrypt)
	}
}

// checkPKCS1v15 decrypts blocks of every kind. What is inside never makes an error: a wrong block
// gives octets that are the same each time, and are no part of it.
func (s *suite) checkPKCS1v15(t *testing.T, k token.Decrypter, public *rsa.PublicKey) {
	t.Helper()
	decrypt := func(name string, block []byte, length int) []byte {
		t.Helper()
		c := new(big.Int).Exp(new(big.Int).SetBytes(block), big.NewInt(int64(public.E)), public.N)
		req := token.DecryptRequest{Padding: token.PaddingPKCS1v15, Length: length, Auth: s.h.Auth,
			Ciphertext: c.FillBytes(make([]byte, public.Size()))}
		got, err := k.Decrypt(t.Context(), req)
		if err != nil {
			t.Fatalf("Decrypt, PKCS #1 v1.5, %s: %v", name, err)
		}
		again, err := k.Decrypt(t.Context(), req)
		if err != nil || !bytes.Equal(got, again) || len(got) != length {
			t.Errorf("Decrypt, PKCS #1 v1.5, %s: %x the first time and then %x, %v", name, got, again, err)
		}
		return got
	}
	const length = 24
	want := make([]byte, length)
	rand.Read(want)
	block := append(append([]byte{0, 2}, bytes.Repeat([]byte{0x5a}, public.Size()-3-length)...), 0)
	block = append(block, want...)
	wantOctets(t, "Decrypt, PKCS #1 v1.5", decrypt("right", block, length), want)
	longest := bytes.Clone(block)
	longest[10] = 0
	wantOctets(t, "Decrypt, PKCS #1 v1.5, the longest", decrypt("longest", longest, public.Size()-11), block[11:])

	for name, at := range map[string]int{"first octet": 0, "block type": 1, "the separating zero": len(block) - length - 1} {
		wrong := bytes.Clone(block)
		wrong[at] ^= 1
		isFallback(t, name, decrypt(name, wrong, length), want)
	}
	for name, at := range map[string]int{"a zero among the first eight": 4, "a zero before the plaintext": len(block) - length - 2} {
		wrong := bytes.Clone(block)
		wrong[at] = 0
		isFallback(t, name, decrypt(name, wrong, length), want)
	}
	for _, other := range []int{length - 1, length + 1} {
		name := fmt.Sprintf("%d octets asked for instead of %d", other, length)
		isFallback(t, name, decrypt(name, block, other), block[len(block)-other:])
	}
}

// isFallback holds that a result is not the end of the block.
func isFallback(t *testing.T, name string, got, end []byte) {
	t.Helper()
	if bytes.Equal(got, end) {
		t.Errorf("Decrypt, PKCS #1 v1.5, %s: %x comes out", name, got)
	}
}

// checkDecryptRequests asks for what nobody can.
func (s *suite) checkDecryptRequests(t *testing.T, k token.Decrypter, public *rsa.PublicKey) {
	t.Helper()
	good, err := encrypt(k.Public(), crypto.SHA256, []byte("plaintext"), nil)
	if err != nil {
		t.Fatal(err)
	}
	oaep := good
	pkcs1 := token.DecryptRequest{Padding: token.PaddingPKCS1v15, Ciphertext: good.Ciphertext, Length: 16}
	// Changes to a request of either padding. Members of the other padding are those that are zero.
	for name, c := range map[string]struct {
		change func(*token.DecryptRequest)
		want   error
	}{
		"a short ciphertext":  {func(r *token.DecryptRequest) { r.Ciphertext = r.Ciphertext[1:] }, token.ErrDecrypt},
		"a long ciphertext":   {func(r *token.DecryptRequest) { r.Ciphertext = append([]byte{0}, r.Ciphertext...) }, token.ErrDecrypt},
		"no ciphertext":       {func(r *token.DecryptRequest) { r.Ciphertext = nil }, token.ErrDecrypt},
		"the modulus":         {func(r *token.DecryptRequest) { r.Ciphertext = public.N.Bytes() }, token.ErrDecrypt},
		"more than that":      {func(r *token.DecryptRequest) { r.Ciphertext = bytes.Repeat([]byte{0xff}, public.Size()) }, token.ErrDecrypt},
		"no padding":          {func(r *token.DecryptRequest) { r.Padding = 0 }, token.ErrUnsupported},
		"an unknown padding":  {func(r *token.DecryptRequest) { r.Padding = token.PaddingPKCS1v15 + 1 }, token.ErrUnsupported},
		"hash of the other":   {func(r *token.DecryptRequest) { r.Hash = crypto.SHA256 - r.Hash }, nil},
		"length of the other": {func(r *token.DecryptRequest) { r.Length = 16 - r.Length }, token.ErrBadRequest},
	} {
		for _, req := range []token.DecryptRequest{oaep, pkcs1} {
			req.Auth = s.h.Auth
			c.change(&req)
			want := c.want
			if want == nil { // OAEP without a hash, PKCS #1 v1.5 with one
				want = token.ErrUnsupported
				if req.Padding == token.PaddingPKCS1v15 {
					want = token.ErrBadRequest
				}
			}
			_, err := k.Decrypt(t.Context(), req)
			wantError(t, fmt.Sprintf("Decrypt, padding %d, %s", req.Padding, name), err, want)
		}
	}
	for _, length := range []int{-1, public.Size() - 10, public.Size()} {
		req := pkcs1
		req.Auth, req.Length = s.h.Auth, length
		_, err := k.Decrypt(t.Context(), req)
		wantError(t, fmt.Sprintf("Decrypt to %d octets", length), err, token.ErrBadRequest)
	}
}

func checkSplitter(t *testing.T, k token.Splitter) {
	t.Helper()
	for _, c := range []struct{ threshold, n int }{{2, 2}, {3, 3}, {2, 3}, {3, 5}} {
		shares, err := k.Split(t.Context(), c.threshold, c.n)
		if err != nil {
			t.Fatalf("Split(%d, %d): %v", c.threshold, c.n, err)
		}
		if len(shares) != c.n {
			t.Fatalf("Split(%d, %d) returned %d shares", c.threshold, c.n, len(shares))
		}
		checkShares(t, k.Public(), c.threshold, shares)
	}
	for _, c := range []struct{ threshold, n int }{{0, 0}, {1, 1}, {1, 2}, {3, 2}, {-1, 2}, {2, token.MaxShares + 1}} {
		_, err := k.Split(t.Context(), c.threshold, c.n)
		wantError(t, fmt.Sprintf("Split(%d, %d)", c.threshold, c.n), err, token.ErrBadRequest)
	}
}

// checkShares combines the last threshold shares to the public key, in public.
func checkShares(t *testing.T, public token.PublicKey, threshold int, shares []token.Share) {
	t.Helper()
	p, err := parsePublic(public)
	if err != nil {
		t.Fatal(err)
	}
	var xs []int
	for i, share := range shares {
		want := i + 1
		if threshold == len(shares) {
			want = 0
		}
		if share.X != want {
			t.Fatalf("share %d has X %d, want %d", i, share.X, want)
		}
		s, err := keyshare.ParseScalar(p.Curve(), share.Scalar)
		if err != nil {
			t.Fatal(err)
		}
		wantOctets(t, "Share.Public", share.Public, s.Public().Bytes())
	}
	shares = shares[len(shares)-threshold:]
	for _, share := range shares {
		xs = append(xs, share.X)
	}
	var points []*keyshare.Point
	for i, share := range shares {
		q, err := keyshare.ParsePoint(p.Curve(), share.Public)
		if err != nil {
			t.Fatal(err)
		}
		if share.X != 0 {
			coefficient, err := keyshare.Coefficient(p.Curve(), xs, i)
			if err != nil {
				t.Fatal(err)
			}
			if q, err = keyshare.Agree(coefficient, q); err != nil {
				t.Fatal(err)
			}
		}
		points = append(points, q)
	}
	sum, err := keyshare.Combine(points...)
	if err != nil {
		t.Fatal(err)
	}
	if !sum.Equal(p) {
		t.Errorf("%d shares combine to %x, want %x", threshold, sum.Bytes(), p.Bytes())
	}
}
