package token

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseAlgorithm(t *testing.T) {
	t.Parallel()
	want := "X25519 X448 Ed25519 Ed448 P256 P384 P521 RSA2048 RSA3072 RSA4096"
	var names []string
	for _, a := range Algorithms() {
		names = append(names, string(a))
		if got, err := ParseAlgorithm(string(a)); got != a || err != nil {
			t.Errorf("ParseAlgorithm(%q) = %q, %v", a, got, err)
		}
	}
	if got := strings.Join(names, " "); got != want {
		t.Errorf("algorithms are %s, want %s", got, want)
	}
	for _, name := range []string{"", "p256", "P-256", "X25519 ", "RSA1024"} {
		if got, err := ParseAlgorithm(name); err == nil {
			t.Errorf("ParseAlgorithm(%q) = %q", name, got)
		}
	}
	clear(Algorithms())
	if _, err := ParseAlgorithm("X25519"); err != nil {
		t.Error("Algorithms returns the package's own list")
	}
}

func TestRSABits(t *testing.T) {
	t.Parallel()
	want := map[Algorithm]int{RSA2048: 2048, RSA3072: 3072, RSA4096: 4096}
	for _, a := range append(Algorithms(), "") {
		if got := a.RSABits(); got != want[a] {
			t.Errorf("%q.RSABits() = %d, want %d", a, got, want[a])
		}
	}
}

func TestParseUse(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"ssh", "sign", "decrypt", "agree", "split"} {
		if u, err := ParseUse(name); string(u) != name || err != nil {
			t.Errorf("ParseUse(%q) = %q, %v", name, u, err)
		}
	}
	for _, name := range []string{"sign-share", "seal"} {
		if u, err := ParseUse(name); u != "" || !errors.Is(err, ErrUnsupported) {
			t.Errorf("ParseUse(%q) = %q, %v, want ErrUnsupported", name, u, err)
		}
	}
	for _, name := range []string{"", "SSH", "sign ", "encrypt"} {
		if u, err := ParseUse(name); u != "" || err == nil || errors.Is(err, ErrUnsupported) {
			t.Errorf("ParseUse(%q) = %q, %v, want an unknown use", name, u, err)
		}
	}
}

func TestUseAllows(t *testing.T) {
	t.Parallel()
	all := "X25519 X448 Ed25519 Ed448 P256 P384 P521 RSA2048 RSA3072 RSA4096"
	for use, want := range map[Use]string{
		UseSSH:           "Ed25519 P256 P384 P521 RSA2048 RSA3072 RSA4096",
		UseSign:          "Ed25519 Ed448 P256 P384 P521 RSA2048 RSA3072 RSA4096",
		UseDecrypt:       all,
		UseAgree:         "X25519 X448 Ed25519 Ed448 P256 P384 P521",
		UseSplit:         "X25519 X448 Ed25519 Ed448 P256 P384 P521",
		UseSignAssertion: "Ed25519 Ed448 P256 P384 P521 RSA2048 RSA3072 RSA4096",
		UseAuthenticate:  "X25519 X448 Ed25519 Ed448 P256 P384 P521",
		UseSeal:          "X25519 X448 Ed25519 Ed448 P256 P384 P521",
		UseSignShare:     "", "": "", "other": "",
	} {
		var allowed []string
		for _, a := range Algorithms() {
			err := use.Allows(a)
			if err == nil {
				allowed = append(allowed, string(a))
			} else if !errors.Is(err, ErrUnsupported) {
				t.Errorf("%q.Allows(%s) = %v, want ErrUnsupported", use, a, err)
			}
		}
		if got := strings.Join(allowed, " "); got != want {
			t.Errorf("use %q allows %s, want %s", use, got, want)
		}
	}
}

// TestUsePurpose holds the uses apart: none signs and agrees.
func TestUsePurpose(t *testing.T) {
	t.Parallel()
	signs, agrees := []Use{UseSSH, UseSign, UseSignAssertion}, []Use{UseDecrypt, UseAgree, UseAuthenticate, UseSeal}
	for _, u := range append(slices.Concat(usesNow, usesReserved), "", "other") {
		if u.Signs() != slices.Contains(signs, u) {
			t.Errorf("%q.Signs() = %t", u, u.Signs())
		}
		if u.Agrees() != slices.Contains(agrees, u) {
			t.Errorf("%q.Agrees() = %t", u, u.Agrees())
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	all := Errors()
	for i, a := range all {
		for j, b := range all {
			if errors.Is(a, b) != (i == j) {
				t.Errorf("errors.Is(%v, %v) = %t", a, b, i != j)
			}
		}
	}
	for _, c := range []struct {
		err  error
		is   error
		text string
	}{
		{&AuthError{Reason: ErrAuthNeeded, Kind: "PIN", TriesLeft: TriesUnknown}, ErrAuthNeeded, "pin needed (PIN)"},
		{&AuthError{Reason: ErrAuthWrong, Kind: "PIN", TriesLeft: 2}, ErrAuthWrong, "pin wrong, 2 left"},
		{&AuthError{Reason: ErrAuthWrong, Kind: "passphrase", TriesLeft: 0}, ErrAuthWrong, "pin wrong, 0 left"},
		{
			&AuthError{Reason: ErrAuthWrong, Kind: "PIN", TriesLeft: TriesUnknown, Detail: ErrRefused}, ErrAuthWrong,
			"pin wrong (PIN): refused before, and not presented again",
		},
		{&LockoutError{90*time.Second + 400*time.Millisecond}, ErrLockedOut, "token locked out for 90 s"},
	} {
		wrapped := fmt.Errorf("tpm: sign: %w", c.err)
		for _, e := range all {
			if errors.Is(wrapped, e) != (e == c.is) {
				t.Errorf("errors.Is(%v, %v) = %t", wrapped, e, e != c.is)
			}
		}
		if got := c.err.Error(); got != c.text {
			t.Errorf("error text is %q, want %q", got, c.text)
		}
	}
}

// publics are valid public keys made with the standard library.
func publics(t *testing.T) map[Algorithm]struct {
	octets   []byte
	standard crypto.PublicKey
} {
	t.Helper()
	out := map[Algorithm]struct {
		octets   []byte
		standard crypto.PublicKey
	}{}
	for a, c := range map[Algorithm]elliptic.Curve{P256: elliptic.P256(), P384: elliptic.P384(), P521: elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		octets, err := k.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		out[a] = struct {
			octets   []byte
			standard crypto.PublicKey
		}{octets, &k.PublicKey}
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out[Ed25519] = struct {
		octets   []byte
		standard crypto.PublicKey
	}{ed, ed}
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out[X25519] = struct {
		octets   []byte
		standard crypto.PublicKey
	}{append(x.PublicKey().Bytes(), 0x80), x.PublicKey()}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	out[RSA2048] = struct {
		octets   []byte
		standard crypto.PublicKey
	}{x509.MarshalPKCS1PublicKey(&r.PublicKey), &r.PublicKey}
	return out
}

func TestStandard(t *testing.T) {
	t.Parallel()
	type equaler interface{ Equal(crypto.PublicKey) bool }
	for a, c := range publics(t) {
		got, err := PublicKey{a, c.octets}.Standard()
		if err != nil {
			t.Errorf("%s: %v", a, err)
			continue
		}
		if reflect.TypeOf(got) != reflect.TypeOf(c.standard) || !got.(equaler).Equal(c.standard) {
			t.Errorf("%s is %v, want %v", a, got, c.standard)
		}
		for _, bad := range [][]byte{nil, c.octets[:len(c.octets)-2], append(slices.Clone(c.octets), 0)} {
			if _, err := (PublicKey{a, bad}).Standard(); err == nil {
				t.Errorf("%s of %d octets is taken", a, len(bad))
			}
		}
	}
	for _, a := range []Algorithm{X448, Ed448, ""} {
		if _, err := (PublicKey{a, make([]byte, 57)}).Standard(); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v, want ErrUnsupported", a, err)
		}
	}
}

// TestStandardOffCurve flips a bit of the y-coordinate.
func TestStandardOffCurve(t *testing.T) {
	t.Parallel()
	for a, c := range publics(t) {
		if a != P256 && a != P384 && a != P521 {
			continue
		}
		c.octets[len(c.octets)-1] ^= 1
		if _, err := (PublicKey{a, c.octets}).Standard(); err == nil {
			t.Errorf("a point off %s is taken", a)
		}
	}
}

func TestIndex(t *testing.T) {
	t.Parallel()
	u := []byte(strings.Repeat("u", 32))
	even, odd := PublicKey{X25519, append(u, 0)}, PublicKey{X25519, append(slices.Clone(u), 0x80)}
	if even.Equal(odd) {
		t.Error("keys of other sign are equal")
	}
	if even.Index() != odd.Index() || even.Index() != (PublicKey{X25519, u}).Index() {
		t.Error("X25519 keys that differ in sign have different indexes")
	}
	if want := sha256.Sum256([]byte("X25519\x00" + string(u))); even.Index() != want {
		t.Errorf("index is %x, want %x", even.Index(), want)
	}
	if (PublicKey{Ed25519, u}).Index() == even.Index() {
		t.Error("the index does not tell algorithms apart")
	}
	long := PublicKey{X448, make([]byte, 57)}
	if len(long.Ordinary()) != 57 || len((PublicKey{P256, make([]byte, 33)}).Ordinary()) != 33 {
		t.Error("Ordinary shortens a key other than X25519")
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	for _, h := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		d, err := SignRequest{Hash: h, Message: []byte("abc")}.Digest()
		if err != nil || len(d) != h.Size() {
			t.Errorf("%v: digest of %d octets, %v", h, len(d), err)
		}
	}
	if d, _ := (SignRequest{Hash: crypto.SHA256, Message: []byte("abc")}).Digest(); [32]byte(d) != sha256.Sum256([]byte("abc")) {
		t.Errorf("SHA-256 of abc is %x", d)
	}
	for _, h := range []crypto.Hash{0, crypto.MD5, crypto.SHA1, crypto.SHA224, crypto.SHA3_256, 99} {
		if d, err := (SignRequest{Hash: h}).Digest(); d != nil || !errors.Is(err, ErrUnsupported) {
			t.Errorf("hash %d: %x, %v, want ErrUnsupported", h, d, err)
		}
	}
}

func TestWipe(t *testing.T) {
	t.Parallel()
	seed, scalar := []byte{1, 2, 3}, []byte{4, 5}
	k := PrivateKey{Seed: seed, Scalar: scalar, RSA: &rsa.PrivateKey{}}
	k.Wipe()
	s := Share{Scalar: []byte{6}}
	s.Wipe()
	for _, b := range [][]byte{seed, scalar, s.Scalar} {
		for _, c := range b {
			if c != 0 {
				t.Errorf("%x is left", b)
			}
		}
	}
	if k.RSA != nil {
		t.Error("the RSA key is left")
	}
}

// The types of TestCapabilities each implement one interface.
type (
	generates struct{}
	imports   struct{}
	deletes   struct{}
	unlocks   struct{}
	hasPublic struct{}
	signs     struct{ hasPublic }
	agrees    struct{ hasPublic }
	points    struct{ hasPublic }
	scales    struct{ points }
	decrypts  struct{ hasPublic }
	splits    struct{ hasPublic }
)

func (generates) Generate(context.Context, GenerateRequest) (Created, error)         { panic("unused") }
func (imports) Import(context.Context, ImportRequest) (Created, error)               { panic("unused") }
func (deletes) Delete(context.Context, []byte) error                                 { panic("unused") }
func (unlocks) Unlock(context.Context, []byte) error                                 { panic("unused") }
func (hasPublic) Public() PublicKey                                                  { panic("unused") }
func (signs) Sign(context.Context, SignRequest) ([]byte, error)                      { panic("unused") }
func (agrees) Agree(context.Context, AgreeRequest) ([]byte, error)                   { panic("unused") }
func (points) AgreePoint(context.Context, AgreeRequest) ([]byte, error)              { panic("unused") }
func (scales) AgreeScaled(context.Context, AgreeRequest, []byte) ([]byte, error)     { panic("unused") }
func (decrypts) Decrypt(context.Context, DecryptRequest) ([]byte, error)             { panic("unused") }
func (splits) Split(ctx context.Context, threshold, n int) (shares []Share, e error) { panic("unused") }

func TestCapabilities(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value any
		want  []string
	}{
		{nil, nil},
		{hasPublic{}, nil},
		{generates{}, []string{"generate"}},
		{imports{}, []string{"import"}},
		{deletes{}, []string{"delete"}},
		{unlocks{}, []string{"unlock"}},
		{signs{}, []string{"sign"}},
		{agrees{}, []string{"agree"}},
		{points{}, []string{"agree-point"}},
		{scales{}, []string{"agree-point"}},
		{decrypts{}, []string{"decrypt"}},
		{splits{}, []string{"split"}},
		{struct {
			imports
			generates
			unlocks
			deletes
		}{}, []string{"generate", "import", "delete", "unlock"}},
	} {
		if got := Capabilities(c.value); !slices.Equal(got, c.want) {
			t.Errorf("%T can %q, want %q", c.value, got, c.want)
		}
	}
}
