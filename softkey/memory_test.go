package softkey

import (
	"io"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

// TestMemoryKeys makes a key of every algorithm and use and compares it with one that went
// through a token.
func TestMemoryKeys(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	for _, a := range token.Algorithms() {
		if a.RSABits() > 2048 {
			continue // the same code
		}
		for _, u := range []token.Use{token.UseSSH, token.UseSign, token.UseDecrypt, token.UseAgree, token.UseSplit} {
			private, err := NewPrivate(a, u)
			if u.Allows(a) != nil {
				wantErr(t, "NewPrivate "+string(a)+" "+string(u), err, token.ErrUnsupported)
				_, err = NewKey(&token.PrivateKey{Algorithm: a}, u)
				wantErr(t, "NewKey "+string(a)+" "+string(u), err, token.ErrUnsupported)
				continue
			}
			if err != nil {
				t.Errorf("NewPrivate(%s, %s): %v", a, u, err)
				continue
			}
			key, err := NewKey(private, u)
			if err != nil {
				t.Errorf("NewKey(%s, %s): %v", a, u, err)
				continue
			}
			created, err := tok.Import(t.Context(), token.ImportRequest{Private: private, Use: u})
			if err != nil || !created.Public.Equal(key.Public()) {
				t.Errorf("%s, %s: public key differs from the token's, %v", a, u, err)
			}
			private.Wipe()
			checkUsable(t, key, u)
		}
	}
}

// checkUsable wants a key that works after its private key was wiped, until it is closed.
func checkUsable(t *testing.T, key token.Key, u token.Use) {
	t.Helper()
	if len(token.Capabilities(key)) == 0 {
		t.Errorf("%s key for %s can do %q", key.Public().Algorithm, u, token.Capabilities(key))
	}
	splitter, ok := key.(token.Splitter)
	if ok {
		if _, err := splitter.Split(t.Context(), 2, 3); err != nil {
			t.Error(err)
		}
	}
	if err := key.(io.Closer).Close(); err != nil {
		t.Error(err)
	}
	if ok {
		_, err := splitter.Split(t.Context(), 2, 3)
		wantErr(t, "Split after Close", err, token.ErrClosed)
	}
}

func TestMemoryKeyRefused(t *testing.T) {
	t.Parallel()
	_, err := NewKey(nil, token.UseSign)
	wantErr(t, "no key", err, token.ErrBadKey)
	_, err = NewKey(&token.PrivateKey{Algorithm: token.P256}, token.UseSign)
	wantErr(t, "empty key", err, token.ErrBadKey)
	_, err = NewPrivate("P1", token.UseSign)
	wantErr(t, "unknown algorithm", err, token.ErrUnsupported)
}

// TestPolicyRefused wants no key that asks for less than its policy does.
func TestPolicyRefused(t *testing.T) {
	t.Parallel()
	tok := openToken(t, t.TempDir(), Options{Insecure: true})
	for _, p := range []token.Policy{{PIN: token.PINOnce}, {PIN: token.PINAlways}, {Touch: token.TouchCached}, {Touch: token.TouchAlways}} {
		_, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.Ed25519, Use: token.UseSign, Policy: p})
		wantErr(t, "Generate", err, token.ErrUnsupported)
		private := &token.PrivateKey{Algorithm: token.Ed25519, Seed: make([]byte, 32)}
		_, err = tok.Import(t.Context(), token.ImportRequest{Private: private, Use: token.UseSign, Policy: p})
		wantErr(t, "Import", err, token.ErrUnsupported)
	}
	none := token.Policy{PIN: token.PINNever, Touch: token.TouchNever}
	if _, err := tok.Generate(t.Context(), token.GenerateRequest{Algorithm: token.Ed25519, Use: token.UseSign, Policy: none}); err != nil {
		t.Error(err)
	}
}
