package hsm

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]URI{
		"pkcs11:": {},
		"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken": {Token: "The Software PKCS#11 Softtoken"},
		"pkcs11:serial=0a1b;model=SoftHSM%20v2":               {Serial: "0a1b", Model: "SoftHSM v2"},
		"pkcs11:object=my-pubkey;type=private;id=%00%ff%7E":   {Object: "my-pubkey", Type: "private", ID: []byte{0, 0xff, 0x7e}},
		"pkcs11:manufacturer=Snake%20Oil,%20Inc.;token=a=b&c": {Manufacturer: "Snake Oil, Inc.", Token: "a=b&c"},
		"pkcs11:token=%C3%A4":                                 {Token: "ä"},
	} {
		got, err := ParseURI(text)
		if err != nil || got.String() != want.String() {
			t.Errorf("ParseURI(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nothing": "", "another scheme": "pkcs12:token=a", "upper case": "PKCS11:token=a", "a space": "pkcs11:token=a b",
		"no value": "pkcs11:token", "empty value": "pkcs11:token=", "no name": "pkcs11:=a", "twice": "pkcs11:token=a;token=a",
		"trailing semicolon": "pkcs11:token=a;", "unknown attribute": "pkcs11:colour=red", "slot": "pkcs11:slot-id=1",
		"vendor attribute": "pkcs11:x-foo=1", "bad percent": "pkcs11:token=%2", "bad percent digits": "pkcs11:token=%zz",
		"control character as digit": "pkcs11:token=%\x10\x11", "slash": "pkcs11:token=a/b", "umlaut": "pkcs11:token=ä",
		"module path": "pkcs11:token=a?module-path=/tmp/evil.so", "empty query": "pkcs11:token=a?", "bad type": "pkcs11:type=key",
		"long token": "pkcs11:token=" + strings.Repeat("a", 33), "long serial": "pkcs11:serial=" + strings.Repeat("a", 17),
	} {
		if got, err := ParseURI(text); err == nil {
			t.Errorf("%s: %q is taken: %v", name, text, got)
		}
	}
	for _, text := range []string{
		"pkcs11:token=a?pin-value=4321", "pkcs11:token=a?pin-source=file:/etc/4321", "pkcs11:pin-value=4321",
		"pkcs11:token=a?x=y&pin-value=4321", "pkcs11:token=a;pin-source=4321",
	} {
		if _, err := ParseURI(text); !errors.Is(err, ErrPINInURI) || strings.Contains(err.Error(), "4321") || !strings.Contains(err.Error(), "unlock") {
			t.Errorf("%q: %v, want ErrPINInURI with a hint and without the PIN", text, err)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	for _, s := range []string{"pkcs11:", "pkcs11:token=a;id=%00%01", "pkcs11:object=x&y;type=cert", "pkcs11:token=a?pin-value=1", "pkcs11:serial=%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseURI(text)
		if err != nil {
			return
		}
		again, err := ParseURI(u.String())
		if err != nil || again.String() != u.String() || !bytes.Equal(again.ID, u.ID) || again.Token != u.Token || again.Object != u.Object {
			t.Errorf("%q becomes %q: %v", text, u, err)
		}
	})
}
