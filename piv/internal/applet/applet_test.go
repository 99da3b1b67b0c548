package applet

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// card is a virtual card without a reader.
type card struct{ *pivtest.Card }

func (c card) Transmit(_ context.Context, command []byte) ([]byte, error) {
	return c.Card.Transmit(command), nil
}

func newApplet(t testing.TB) Applet {
	t.Helper()
	a := New(card{pivtest.NewCard(pivtest.Config{})})
	if err := a.Select(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

var firmware = Version{5, 7, 1}

func TestSlots(t *testing.T) {
	t.Parallel()
	seen := map[apdu.Tag]Slot{}
	for i := range 256 {
		s := Slot(i)
		parsed, err := ParseSlot(s.String())
		if (err == nil) != s.Valid() || s.Valid() && parsed != s {
			t.Errorf("slot %v: parsed %v, %v", s, parsed, err)
		}
		if s.Valid() || s == SlotAttestation {
			if other, twice := seen[s.certificate()]; twice {
				t.Errorf("slots %v and %v have one certificate", s, other)
			}
			seen[s.certificate()] = s
		}
	}
	if len(seen) != 25 {
		t.Errorf("%d slots", len(seen))
	}
	for _, name := range []string{"", "9", "9A0", "0x9a", "+9a", "f9", "80"} {
		if s, err := ParseSlot(name); err == nil {
			t.Errorf("%q is slot %v", name, s)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	a := newApplet(t)
	v, err := a.Version(t.Context())
	if err != nil || v != firmware || v.String() != "5.7.1" {
		t.Errorf("version %v, %v", v, err)
	}
	for _, c := range []struct {
		major, minor byte
		want         bool
	}{{5, 7, true}, {5, 8, false}, {4, 9, true}, {6, 0, false}, {5, 0, true}} {
		if v.AtLeast(c.major, c.minor) != c.want {
			t.Errorf("5.7 at least %d.%d: %t", c.major, c.minor, !c.want)
		}
	}
}

// TestManagementKeys presents and changes the management key of each kind of card.
func TestManagementKeys(t *testing.T) {
	t.Parallel()
	for _, v := range []Version{{4, 3, 5}, {5, 3, 0}, {5, 4, 3}, {5, 7, 1}} {
		a := New(card{pivtest.NewCard(pivtest.Config{Version: [3]byte{v.Major, v.Minor, v.Patch}})})
		ctx := t.Context()
		if err := a.Select(ctx); err != nil {
			t.Fatal(err)
		}
		if err := a.AuthenticateManagement(ctx, v, make([]byte, 24)); !errors.Is(err, token.ErrAuthWrong) {
			t.Errorf("%v: wrong key: %v", v, err)
		}
		if err := a.AuthenticateManagement(ctx, v, make([]byte, 16)); !errors.Is(err, token.ErrBadRequest) {
			t.Errorf("%v: short key: %v", v, err)
		}
		if err := a.AuthenticateManagement(ctx, v, []byte(pivtest.DefaultManagementKey)); err != nil {
			t.Fatalf("%v: %v", v, err)
		}
		key := bytes.Repeat([]byte{0x5A, 0x13}, ManagementKeyLen(v)/2)
		if err := a.SetManagementKey(ctx, v, key); err != nil {
			t.Fatalf("%v: set: %v", v, err)
		}
		if err := a.AuthenticateManagement(ctx, v, key); err != nil {
			t.Errorf("%v: new key: %v", v, err)
		}
	}
}

func TestPINStatus(t *testing.T) {
	t.Parallel()
	c := pivtest.NewCard(pivtest.Config{})
	a := New(card{c})
	ctx := t.Context()
	if err := a.Select(ctx); err != nil {
		t.Fatal(err)
	}
	want := func(verified bool, tries int) {
		t.Helper()
		if v, n, err := a.PINStatus(ctx); v != verified || n != tries || err != nil {
			t.Errorf("status %t, %d, %v, want %t, %d", v, n, err, verified, tries)
		}
	}
	want(false, 3)
	if err := a.Verify(ctx, []byte(pivtest.DefaultPIN)); err != nil {
		t.Fatal(err)
	}
	want(true, token.TriesUnknown)
	if err := a.Logout(ctx); err != nil {
		t.Fatal(err)
	}
	want(false, 3)
	c.BlockPIN()
	want(false, 0)
}

// FuzzParsers gives anything to what decodes the card's answers: an error or a valid value.
func FuzzParsers(f *testing.F) {
	a := newApplet(f)
	ctx := f.Context()
	if err := a.AuthenticateManagement(ctx, firmware, []byte(pivtest.DefaultManagementKey)); err != nil {
		f.Fatal(err)
	}
	for _, alg := range []token.Algorithm{token.P256, token.X25519, token.RSA2048} {
		if _, err := a.Generate(ctx, SlotAuthentication, alg, token.Policy{}); err != nil {
			f.Fatal(err)
		}
		b, err := a.send(ctx, insMetadata, 0, byte(SlotAuthentication), nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	b, err := a.Data(ctx, SlotAttestation.certificate())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		if objects, err := apdu.ParseAll(b); err == nil {
			m, err := parseMetadata(objects)
			if err == nil {
				if _, err := m.Public.Standard(); err != nil {
					t.Errorf("bad public key: %v", err)
				}
			} else if !errors.Is(err, apdu.ErrMalformed) && !errors.Is(err, token.ErrUnsupported) {
				t.Error(err)
			}
		}
		for _, alg := range algorithms() {
			if p, err := parsePublic(alg, b); err == nil {
				if _, err := p.Standard(); err != nil {
					t.Errorf("bad public key: %v", err)
				}
			}
		}
		if c, err := parseCertificate(b); err == nil {
			_, _ = PublicOf(c.PublicKey)
			_, _ = ParseStatement(c)
		}
		_, _ = parsePolicy(b)
		_, _ = inflate(b)
	})
}
