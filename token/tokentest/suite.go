// Package tokentest tests tokens and stands in for them.
//
// Run is the contract suite that every backend passes; Fake is a scriptable token in
// memory for the tests of packages that use tokens. The package tests what package token
// promises and nothing of what a device adds: PIN handling, faults and device commands
// are each backend's own tests, but for signatures that a device makes wrong.
package tokentest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
)

// Binding says how much of a key's use its handle carries.
type Binding int

// The bindings. The zero value is the strictest.
const (
	// BindsUse tells every use from every other.
	BindsUse Binding = iota
	// BindsPurpose tells only signing from agreement and decryption.
	BindsPurpose
	// BindsNoUse leaves the use to the record.
	BindsNoUse
)

// Harness tells the suite about the token under test. The zero value of every field
// but Open demands the most.
type Harness struct {
	// Open returns the token under test, ready for use. The suite closes it. It is called
	// twice, the second time after the first token was closed, and must return the
	// same device again: handles made before must open.
	Open func(t *testing.T) token.Token
	// Supports says which uses an algorithm of Info.Algorithms has here.
	// Nil means all that token.Use.Allows.
	Supports func(token.Algorithm, token.Use) bool
	// Imports says which algorithms an Importer takes. Nil means all of Info.Algorithms.
	Imports func(token.Algorithm) bool
	// OnlySeeds says which of these it takes by their seed only, not by a scalar. Nil means none.
	OnlySeeds func(token.Algorithm) bool
	// NoMeshSeeds is set where Ed448 seeds of 56 octets, which the Mesh has, are unsupported.
	NoMeshSeeds bool
	// SealsByPIN is set for a token.Sealer that seals with token.GuardPIN only, as a token that
	// is opened by a PIN does.
	SealsByPIN bool
	// MaxMessage says how long a message keys of an algorithm sign, 0 for any length; a longer
	// one is unsupported. Nil means any length.
	MaxMessage func(token.Algorithm) int
	// Binding says how much of the use a handle carries.
	Binding Binding
	// AssociatedUnbound is set where the token cannot bind associated data.
	AssociatedUnbound bool
	// Auth goes with every request.
	Auth token.Auth
	// Corrupt makes the device return wrong signatures, of the right form, until heal is called. Nil
	// where no device signs, and where the device cannot be made to: then that wrong signatures are
	// not released is the backend's own test.
	Corrupt func(t *testing.T) (heal func())
}

var allUses = []token.Use{
	token.UseSSH, token.UseSign, token.UseDecrypt, token.UseAgree, token.UseSplit,
	token.UseSignAssertion, token.UseSignShare, token.UseAuthenticate, token.UseSeal, "", "no-such-use",
}

var associated = []byte("associated data of the contract suite")

// Run tests the token of h against the contract of package token. Its subtests run
// one after another on one device.
func Run(t *testing.T, h Harness) {
	s := &suite{h: h, tok: h.Open(t), made: map[pair]token.Created{}}
	t.Cleanup(func() { s.tok.Close() })
	t.Run("Info", s.info)
	t.Run("Unsupported", s.unsupported)
	for _, p := range s.pairs() {
		t.Run("Key/"+string(p.algorithm)+"/"+string(p.use), func(t *testing.T) { s.key(t, p) })
	}
	t.Run("Binding", s.binding)
	t.Run("BrokenHandles", s.brokenHandles)
	t.Run("Concurrent", s.concurrent)
	t.Run("Cancelled", s.cancelled)
	if h.Corrupt != nil {
		t.Run("Corrupt", s.corrupt)
	}
	t.Run("Import", s.imports)
	t.Run("Delete", s.deletes)
	for _, p := range s.pairs() {
		s.created(t, p)
	}
	if err := s.tok.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	s.tok = h.Open(t) // with the t that lives until the end, for what Open may clean up
	t.Run("Reopen", s.reopen)
	t.Run("Closed", s.closed)
}

type pair struct {
	algorithm token.Algorithm
	use       token.Use
}

type suite struct {
	h    Harness
	tok  token.Token
	made map[pair]token.Created
}

func (s *suite) supports(a token.Algorithm, u token.Use) bool {
	if u.Allows(a) != nil || !slices.Contains(s.tok.Info().Algorithms, a) {
		return false
	}
	return s.h.Supports == nil || s.h.Supports(a, u)
}

// pairs lists what the token generates. Of the long RSA keys, which are slow to make,
// only the first use is listed.
func (s *suite) pairs() []pair {
	var out []pair
	for _, a := range token.Algorithms() {
		for _, u := range allUses {
			if !s.supports(a, u) {
				continue
			}
			out = append(out, pair{a, u})
			if a.RSABits() > 2048 {
				break
			}
		}
	}
	return out
}

// created generates the key of p once.
func (s *suite) created(t *testing.T, p pair) token.Created {
	t.Helper()
	if c, ok := s.made[p]; ok {
		return c
	}
	g, ok := s.tok.(token.Generator)
	if !ok {
		t.Fatal("the token lists algorithms and is no token.Generator")
	}
	c, err := g.Generate(t.Context(), token.GenerateRequest{
		Algorithm: p.algorithm, Use: p.use, Associated: associated, Auth: s.h.Auth,
	})
	if err != nil {
		t.Fatalf("Generate(%s, %s): %v", p.algorithm, p.use, err)
	}
	s.made[p] = c
	return c
}

func openRequest(c token.Created, u token.Use) token.OpenRequest {
	return token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: u, Associated: associated}
}

func (s *suite) open(t *testing.T, p pair) token.Key {
	t.Helper()
	k, err := s.tok.Open(t.Context(), openRequest(s.created(t, p), p.use))
	if err != nil {
		t.Fatalf("Open(%s, %s): %v", p.algorithm, p.use, err)
	}
	return k
}

func (s *suite) info(t *testing.T) {
	info := s.tok.Info()
	if info.Name == "" {
		t.Error("Info.Name is empty")
	}
	if !slices.Contains([]string{"software", "tpm", "piv", "pkcs11"}, info.Kind) {
		t.Errorf("Info.Kind is %q", info.Kind)
	}
	if info.Parallel < 1 {
		t.Errorf("Info.Parallel is %d", info.Parallel)
	}
	if info.State != token.StateReady {
		t.Errorf("Info.State is %q after Open, want %q", info.State, token.StateReady)
	}
	checkProtection(t, info.Protection)
	if len(info.Algorithms) == 0 {
		t.Error("Info.Algorithms is empty")
	}
	for i, a := range info.Algorithms {
		if _, err := token.ParseAlgorithm(string(a)); err != nil {
			t.Errorf("Info.Algorithms: %v", err)
		}
		if slices.Contains(info.Algorithms[:i], a) {
			t.Errorf("Info.Algorithms lists %s twice", a)
		}
	}
	clear(info.Algorithms)
	if slices.Contains(s.tok.Info().Algorithms, "") {
		t.Error("Info.Algorithms is the token's own slice")
	}
}

func checkProtection(t *testing.T, p token.Protection) {
	t.Helper()
	switch p {
	case token.ProtectionToken, token.ProtectionSealed, token.ProtectionSoftware:
	default:
		t.Errorf("protection is %q", p)
	}
}

// unsupported asks for every key that the token does not list.
func (s *suite) unsupported(t *testing.T) {
	g, ok := s.tok.(token.Generator)
	if !ok {
		t.Fatal("the token is no token.Generator")
	}
	for _, a := range append(token.Algorithms(), "", "P999") {
		for _, u := range allUses {
			if s.supports(a, u) {
				continue
			}
			_, err := g.Generate(t.Context(), token.GenerateRequest{Algorithm: a, Use: u, Auth: s.h.Auth})
			wantError(t, "Generate("+string(a)+", "+string(u)+")", err, token.ErrUnsupported)
		}
	}
}

// key tests one kind of key: what Generate returned, what the key can do and that it does it right.
func (s *suite) key(t *testing.T, p pair) {
	c := s.created(t, p)
	if len(c.Handle) == 0 {
		t.Error("Created.Handle is empty")
	}
	checkProtection(t, c.Protection)
	checkPublic(t, p.algorithm, c.Public)
	k := s.open(t, p)
	if !k.Public().Equal(c.Public) {
		t.Errorf("Key.Public is %x, Created.Public %x", k.Public().Octets, c.Public.Octets)
	}
	checkCapabilities(t, p, k)
	s.checkOperations(t, k)
}

func checkPublic(t *testing.T, a token.Algorithm, p token.PublicKey) {
	t.Helper()
	if p.Algorithm != a {
		t.Errorf("Public.Algorithm is %q, want %q", p.Algorithm, a)
	}
	if bits := a.RSABits(); bits != 0 {
		pub, err := x509.ParsePKCS1PublicKey(p.Octets)
		if err != nil {
			t.Fatalf("parse public key: %v", err)
		}
		if pub.N.BitLen() != bits || pub.E != 65537 {
			t.Errorf("public key has %d bits and exponent %d, want %d and 65537", pub.N.BitLen(), pub.E, bits)
		}
		return
	}
	c := curveOf(t, a)
	if len(p.Octets) != c.PointLen() {
		t.Fatalf("public key has %d octets, want %d", len(p.Octets), c.PointLen())
	}
	if _, err := keyshare.ParsePoint(c, p.Octets); err != nil {
		t.Errorf("public key: %v", err)
	}
}

// checkCapabilities holds a key to its one use.
func checkCapabilities(t *testing.T, p pair, k token.Key) {
	t.Helper()
	got := token.Capabilities(k)
	var want [][]string
	switch {
	case p.use.Signs():
		want = [][]string{{"sign"}}
	case p.use == token.UseSplit:
		want = [][]string{{"split"}}
	case p.algorithm.RSABits() != 0:
		want = [][]string{{"decrypt"}}
	default:
		want = [][]string{{"agree"}, {"agree-point"}, {"agree", "agree-point"}}
	}
	if !slices.ContainsFunc(want, func(w []string) bool { return slices.Equal(w, got) }) {
		t.Errorf("capabilities are %q, want one of %q", got, want)
	}
}

func (s *suite) checkOperations(t *testing.T, k token.Key) {
	t.Helper()
	if k, ok := k.(token.Signer); ok {
		s.checkSigner(t, k)
	}
	if k, ok := k.(token.Agreer); ok {
		s.checkAgreer(t, k)
	}
	if k, ok := k.(token.PointAgreer); ok {
		s.checkPointAgreer(t, k)
	}
	if k, ok := k.(token.ScaledPointAgreer); ok {
		s.checkScaled(t, k)
	}
	if k, ok := k.(token.Decrypter); ok {
		s.checkDecrypter(t, k)
	}
	if k, ok := k.(token.Splitter); ok {
		checkSplitter(t, k)
	}
}

// binding opens keys with an identity that is not theirs.
func (s *suite) binding(t *testing.T) {
	for _, p := range s.pairs() {
		req := openRequest(s.created(t, p), p.use)

		wrong := req
		wrong.Public = s.otherPublic(t, p)
		s.wantCorrupt(t, p, "public key of another key", wrong)

		wrong = req
		wrong.Public.Octets = bytes.Clone(req.Public.Octets)
		wrong.Public.Octets[len(wrong.Public.Octets)/2] ^= 1
		s.wantCorrupt(t, p, "public key with a bit flipped", wrong)

		wrong = req
		wrong.Public.Algorithm = token.X448
		if p.algorithm == token.X448 {
			wrong.Public.Algorithm = token.Ed448
		}
		s.wantCorrupt(t, p, "another algorithm", wrong)

		if !s.h.AssociatedUnbound {
			for _, a := range [][]byte{nil, []byte("other"), associated[:len(associated)-1]} {
				wrong = req
				wrong.Associated = a
				s.wantCorrupt(t, p, "other associated data", wrong)
			}
		}
		for _, u := range allUses {
			if u.Allows(p.algorithm) == nil && s.tells(p.use, u) {
				wrong = req
				wrong.Use = u
				s.wantCorrupt(t, p, "use "+string(u), wrong)
			}
		}
	}
}

// tells reports whether a handle of use u must not open under use v.
func (s *suite) tells(u, v token.Use) bool {
	switch s.h.Binding {
	case BindsUse:
		return u != v
	case BindsPurpose:
		return u.Signs() != v.Signs()
	}
	return false
}

func (s *suite) wantCorrupt(t *testing.T, p pair, what string, req token.OpenRequest) {
	t.Helper()
	k, err := s.tok.Open(t.Context(), req)
	wantError(t, "Open("+string(p.algorithm)+", "+string(p.use)+") with "+what, err, token.ErrCorrupt)
	if k != nil {
		t.Errorf("Open with %s returned a key", what)
	}
}

// otherPublic returns the public key of another key of the same algorithm.
func (s *suite) otherPublic(t *testing.T, p pair) token.PublicKey {
	t.Helper()
	for _, q := range s.pairs() {
		if q.algorithm == p.algorithm && q.use != p.use {
			return s.created(t, q).Public
		}
	}
	for _, q := range s.pairs() {
		if q.algorithm != p.algorithm {
			return s.created(t, q).Public
		}
	}
	t.Fatal("the token makes one kind of key only")
	return token.PublicKey{}
}

// brokenHandles opens handles that no token made.
func (s *suite) brokenHandles(t *testing.T) {
	noise := make([]byte, 300)
	rand.Read(noise)
	for _, p := range s.pairs() {
		req := openRequest(s.created(t, p), p.use)
		good := req.Handle
		handles := [][]byte{nil, {}, {0}, {0x30, 0x80}, noise[:16], noise, append(bytes.Clone(good), 0)}
		for i := 0; i < len(good); i += 1 + len(good)/48 {
			handles = append(handles, good[:i])
			flipped := bytes.Clone(good)
			flipped[i] ^= 1 << (i % 8)
			handles = append(handles, flipped)
		}
		for _, h := range handles {
			req.Handle = h
			k, err := s.tok.Open(t.Context(), req)
			if !errors.Is(err, token.ErrCorrupt) && !errors.Is(err, token.ErrNotFound) {
				t.Errorf("Open(%s, %s) of broken handle %x: %v, want ErrCorrupt or ErrNotFound",
					p.algorithm, p.use, h, err)
			}
			if k != nil {
				t.Errorf("Open of broken handle %x returned a key", h)
			}
		}
	}
}

// concurrent uses every key from several goroutines.
func (s *suite) concurrent(t *testing.T) {
	done := make(chan func(*testing.T), 64)
	n := 0
	for _, p := range s.pairs() {
		k := s.open(t, p)
		for range 4 {
			n++
			go func() { done <- s.operate(t.Context(), k) }()
		}
	}
	for range n {
		(<-done)(t)
	}
}

// operate runs one operation of a key and returns the check of its result.
func (s *suite) operate(ctx context.Context, k token.Key) func(*testing.T) {
	check, err := s.tryOperate(ctx, k)
	return func(t *testing.T) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", k.Public().Algorithm, err)
			return
		}
		check(t)
	}
}

func (s *suite) tryOperate(ctx context.Context, k token.Key) (func(*testing.T), error) {
	switch k := k.(type) {
	case token.Signer:
		req := DefaultSignRequest(k.Public().Algorithm, []byte("message of "+rand.Text()))
		req.Auth = s.h.Auth
		sig, err := k.Sign(ctx, req)
		return func(t *testing.T) { t.Helper(); checkSignature(t, k.Public(), req, sig) }, err
	case token.PointAgreer:
		peer, want, err := newPeer(k.Public())
		if err != nil {
			return nil, err
		}
		got, err := k.AgreePoint(ctx, token.AgreeRequest{Peer: peer, Auth: s.h.Auth})
		return func(t *testing.T) { t.Helper(); wantOctets(t, "AgreePoint", got, want.Bytes()) }, err
	case token.Agreer:
		peer, want, err := newPeer(k.Public())
		if err != nil {
			return nil, err
		}
		got, err := k.Agree(ctx, token.AgreeRequest{Peer: peer, Auth: s.h.Auth})
		return func(t *testing.T) { t.Helper(); wantOctets(t, "Agree", got, want.SharedSecret()) }, err
	case token.Decrypter:
		want := []byte("plaintext " + rand.Text())
		req, err := encrypt(k.Public(), crypto.SHA256, want, nil)
		if err != nil {
			return nil, err
		}
		req.Auth = s.h.Auth
		got, err := k.Decrypt(ctx, req)
		return func(t *testing.T) { t.Helper(); wantOctets(t, "Decrypt", got, want) }, err
	case token.Splitter:
		_, err := k.Split(ctx, 2, 3)
		return func(*testing.T) {}, err
	}
	return nil, errors.New("the key can do nothing")
}

// cancelled calls with a context that has ended or ends in mid-call.
func (s *suite) cancelled(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if g, ok := s.tok.(token.Generator); ok {
		p := s.pairs()[0]
		_, err := g.Generate(ended, token.GenerateRequest{Algorithm: p.algorithm, Use: p.use, Auth: s.h.Auth})
		wantError(t, "Generate with an ended context", err, context.Canceled)
	}
	for _, p := range s.pairs() {
		_, err := s.tok.Open(ended, openRequest(s.created(t, p), p.use))
		wantError(t, "Open with an ended context", err, context.Canceled)
		k := s.open(t, p)
		_, err = s.tryOperate(ended, k)
		wantError(t, "operation with an ended context on "+string(p.algorithm), err, context.Canceled)
		s.cancelInFlight(t, k)
		s.operate(t.Context(), k)(t)
	}
}

// cancelInFlight ends the context of several operations when the first is done: each ends
// in a right result or in the context's error.
func (s *suite) cancelInFlight(t *testing.T, k token.Key) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	type outcome struct {
		check func(*testing.T)
		err   error
	}
	done := make(chan outcome, 8)
	for range cap(done) {
		go func() {
			check, err := s.tryOperate(ctx, k)
			done <- outcome{check, err}
		}()
	}
	for range cap(done) {
		o := <-done
		cancel()
		switch {
		case o.err == nil:
			o.check(t)
		case !errors.Is(o.err, context.Canceled):
			t.Errorf("cancelled operation on %s: %v", k.Public().Algorithm, o.err)
		}
	}
}

// corrupt has the device sign wrong with one key of each algorithm.
func (s *suite) corrupt(t *testing.T) {
	for _, p := range s.pairs() {
		if p.use != token.UseSign && !(p.use.Signs() && p.algorithm.RSABits() > 2048) {
			continue
		}
		k := s.open(t, p).(token.Signer)
		req := DefaultSignRequest(p.algorithm, []byte("message"))
		req.Auth = s.h.Auth
		heal := s.h.Corrupt(t)
		signature, err := k.Sign(t.Context(), req)
		heal()
		wantError(t, "Sign with "+string(p.algorithm)+" where the device is wrong", err, token.ErrFault)
		if signature != nil {
			t.Errorf("a wrong %s signature was released", p.algorithm)
		}
		s.operate(t.Context(), k)(t)
	}
}

func (s *suite) deletes(t *testing.T) {
	d, ok := s.tok.(token.Deleter)
	if !ok {
		return
	}
	p := s.pairs()[0]
	c := s.created(t, p)
	delete(s.made, p)
	if err := d.Delete(t.Context(), c.Handle); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	_, err := s.tok.Open(t.Context(), openRequest(c, p.use))
	wantError(t, "Open of a deleted key", err, token.ErrNotFound)
	wantError(t, "second Delete", d.Delete(t.Context(), c.Handle), token.ErrNotFound)
	wantError(t, "Delete of an unknown handle", d.Delete(t.Context(), []byte("unknown")), token.ErrNotFound)
}

// reopen opens, on a new instance of the token, what the last one made.
func (s *suite) reopen(t *testing.T) {
	for _, p := range s.pairs() {
		k := s.open(t, p)
		if !k.Public().Equal(s.made[p].Public) {
			t.Errorf("%s: public key changed", p.algorithm)
		}
		s.operate(t.Context(), k)(t)
	}
}

func (s *suite) closed(t *testing.T) {
	keys := map[pair]token.Key{}
	for _, p := range s.pairs() {
		keys[p] = s.open(t, p)
	}
	if err := s.tok.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	for p, k := range keys {
		_, err := s.tryOperate(t.Context(), k)
		wantError(t, "operation after Close on "+string(p.algorithm), err, token.ErrClosed)
		_, err = s.tok.Open(t.Context(), openRequest(s.made[p], p.use))
		wantError(t, "Open after Close", err, token.ErrClosed)
	}
	p := s.pairs()[0]
	_, err := s.tok.(token.Generator).Generate(t.Context(),
		token.GenerateRequest{Algorithm: p.algorithm, Use: p.use, Auth: s.h.Auth})
	wantError(t, "Generate after Close", err, token.ErrClosed)
	if err := s.tok.Close(); err != nil && !errors.Is(err, token.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	s.tok.Info()
}

// imports brings keys made in software into the token.
func (s *suite) imports(t *testing.T) {
	im, ok := s.tok.(token.Importer)
	if !ok {
		return
	}
	for _, p := range s.pairs() {
		takes := s.h.Imports == nil || s.h.Imports(p.algorithm)
		for _, private := range privateKeys(t, p.algorithm) {
			c, err := im.Import(t.Context(), token.ImportRequest{
				Private: private.key, Use: p.use, Associated: associated, Auth: s.h.Auth,
			})
			if !takes || private.key.Scalar != nil && s.h.OnlySeeds != nil && s.h.OnlySeeds(p.algorithm) ||
				s.h.NoMeshSeeds && p.algorithm == token.Ed448 && len(private.key.Seed) == 56 {
				wantError(t, "Import("+string(p.algorithm)+")", err, token.ErrUnsupported)
				continue
			}
			if err != nil {
				t.Errorf("Import(%s, %s): %v", p.algorithm, p.use, err)
				continue
			}
			checkProtection(t, c.Protection)
			if !c.Public.Equal(token.PublicKey{Algorithm: p.algorithm, Octets: private.public}) {
				t.Errorf("Import(%s): public key %x, want %x", p.algorithm, c.Public.Octets, private.public)
			}
			req := openRequest(c, p.use)
			req.Imported = true
			k, err := s.tok.Open(t.Context(), req)
			if err != nil {
				t.Errorf("Open(%s, %s) of an imported key: %v", p.algorithm, p.use, err)
				continue
			}
			checkCapabilities(t, p, k)
			s.operate(t.Context(), k)(t)
		}
		if takes {
			s.badImports(t, im, p)
		}
	}
}

func (s *suite) badImports(t *testing.T, im token.Importer, p pair) {
	t.Helper()
	bad := map[string]*token.PrivateKey{"nothing": {Algorithm: p.algorithm}}
	if p.algorithm.RSABits() == 0 {
		n := curveOf(t, p.algorithm).ScalarLen()
		bad["zero scalar"] = &token.PrivateKey{Algorithm: p.algorithm, Scalar: make([]byte, n)}
		bad["short scalar"] = &token.PrivateKey{Algorithm: p.algorithm, Scalar: bytes.Repeat([]byte{1}, n-1)}
		bad["long scalar"] = &token.PrivateKey{Algorithm: p.algorithm, Scalar: bytes.Repeat([]byte{1}, n+1)}
		bad["two keys"] = &token.PrivateKey{
			Algorithm: p.algorithm, Scalar: bytes.Repeat([]byte{1}, n), Seed: bytes.Repeat([]byte{1}, n),
		}
	} else {
		bad["a scalar"] = &token.PrivateKey{Algorithm: p.algorithm, Scalar: []byte{1}}
	}
	for name, private := range bad {
		_, err := im.Import(t.Context(), token.ImportRequest{Private: private, Use: p.use, Auth: s.h.Auth})
		wantError(t, "Import("+string(p.algorithm)+") of "+name, err, token.ErrBadKey)
	}
	_, err := im.Import(t.Context(), token.ImportRequest{Private: nil, Use: p.use, Auth: s.h.Auth})
	wantError(t, "Import of nil", err, token.ErrBadKey)
}

type privateKey struct {
	key    *token.PrivateKey
	public []byte
}

// privateKeys makes one key of each form that the algorithm has; of long RSA keys none.
func privateKeys(t *testing.T, a token.Algorithm) []privateKey {
	t.Helper()
	if bits := a.RSABits(); bits != 0 {
		if bits > 2048 {
			return nil
		}
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return []privateKey{{&token.PrivateKey{Algorithm: a, RSA: k}, x509.MarshalPKCS1PublicKey(&k.PublicKey)}}
	}
	c := curveOf(t, a)
	scalar, err := keyshare.RandomScalar(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out := []privateKey{{&token.PrivateKey{Algorithm: a, Scalar: scalar.Bytes()}, scalar.Public().Bytes()}}
	for _, n := range seedLengths(c) {
		seed := make([]byte, n)
		rand.Read(seed)
		s, _, err := keyshare.ExpandSeed(c, seed)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, privateKey{&token.PrivateKey{Algorithm: a, Seed: seed}, s.Public().Bytes()})
	}
	return out
}

func seedLengths(c keyshare.Curve) []int {
	switch c {
	case keyshare.X25519, keyshare.Ed25519:
		return []int{32}
	case keyshare.X448:
		return []int{56}
	case keyshare.Ed448:
		return []int{56, 57}
	}
	return nil
}

func curveOf(t *testing.T, a token.Algorithm) keyshare.Curve {
	t.Helper()
	c, err := keyshare.ParseCurve(string(a))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func wantOctets(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s returned %x, want %x", what, got, want)
	}
}

// DefaultSignRequest is the request that every signing key of the algorithm fulfils: EdDSA as
// RFC 8032 has it; ECDSA on P256, P384, P521 over SHA-256, SHA-384, SHA-512; RSA PKCS #1 v1.5 over SHA-512.
func DefaultSignRequest(a token.Algorithm, message []byte) token.SignRequest {
	req := token.SignRequest{Scheme: token.SchemeECDSA, Message: message}
	switch a {
	case token.Ed25519, token.Ed448:
		req.Scheme = token.SchemeEdDSA
	case token.P256:
		req.Hash = crypto.SHA256
	case token.P384:
		req.Hash = crypto.SHA384
	case token.P521:
		req.Hash = crypto.SHA512
	default:
		req.Scheme, req.Hash = token.SchemePKCS1v15, crypto.SHA512
	}
	return req
}
