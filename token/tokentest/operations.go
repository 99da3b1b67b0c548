package tokentest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
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

func encrypt(public token.PublicKey, plaintext, label []byte) (token.DecryptRequest, error) {
	pub, err := x509.ParsePKCS1PublicKey(public.Octets)
	if err != nil {
		return token.DecryptRequest{}, err
	}
	ciphertext, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, pub, plaintext, label)
	return token.DecryptRequest{Ciphertext: ciphertext, Label: label}, err
}

func (s *suite) checkDecrypter(t *testing.T, k token.Decrypter) {
	t.Helper()
	for _, want := range [][]byte{{}, {0}, bytes.Repeat([]byte{7}, 32)} {
		req, err := encrypt(k.Public(), want, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Auth = s.h.Auth
		got, err := k.Decrypt(t.Context(), req)
		if err != nil {
			t.Fatalf("Decrypt: %v", err)
		}
		wantOctets(t, "Decrypt", got, want)

		flipped := req
		flipped.Ciphertext = bytes.Clone(req.Ciphertext)
		flipped.Ciphertext[len(flipped.Ciphertext)-1] ^= 1
		_, err = k.Decrypt(t.Context(), flipped)
		wantError(t, "Decrypt of a changed ciphertext", err, token.ErrDecrypt)
		flipped.Ciphertext = req.Ciphertext[:len(req.Ciphertext)-1]
		_, err = k.Decrypt(t.Context(), flipped)
		wantError(t, "Decrypt of a short ciphertext", err, token.ErrDecrypt)
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
