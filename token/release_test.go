package token

import "testing"

func TestRelease(t *testing.T) {
	t.Parallel()
	all := []Release{ReleaseSeed, ReleaseKey, ReleasePlaintext}
	for i, limit := range all {
		for j, asked := range all {
			if got := limit.Grants(asked); got != (j >= i) {
				t.Errorf("limit %v, asked for %v: %t", limit, asked, got)
			}
			if got := limit.Narrower(asked); got != all[max(i, j)] {
				t.Errorf("narrower of %v and %v: %v", limit, asked, got)
			}
		}
		for _, bad := range []Release{"seed", "agreement"} {
			if limit.Grants(bad) || bad.Grants(limit) {
				t.Errorf("%q and %v grant each other something", string(bad), limit)
			}
		}
		if got, err := ParseRelease(limit.String()); got != limit || err != nil {
			t.Errorf("parse %v: %v, %v", limit, got, err)
		}
	}
	if got, err := ParseRelease(""); got != ReleaseSeed || err != nil {
		t.Errorf("parse nothing: %v, %v", got, err)
	}
	for _, bad := range []string{"Seed", "point", "plaintext "} {
		if got, err := ParseRelease(bad); err == nil {
			t.Errorf("parse %q: %v", bad, got)
		}
	}
}

func TestReleaseAllows(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		r  Release
		u  Use
		a  Algorithm
		ok bool
	}{
		{ReleaseSeed, UseAgree, X448, true}, {ReleaseSeed, UseDecrypt, RSA2048, true},
		{ReleaseKey, UseDecrypt, X448, true}, {ReleasePlaintext, UseDecrypt, P256, true},
		{ReleasePlaintext, UseAgree, X448, false}, {ReleaseKey, UseSeal, X448, false}, {ReleaseKey, UseSign, Ed448, false},
		{ReleasePlaintext, UseDecrypt, RSA2048, false}, {"agreement", UseDecrypt, X448, false},
	} {
		if err := c.r.Allows(c.u, c.a); (err == nil) != c.ok {
			t.Errorf("%v, %s, %s: %v", c.r, c.u, c.a, err)
		}
	}
}
