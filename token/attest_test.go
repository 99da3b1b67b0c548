package token

import (
	"errors"
	"testing"
)

func TestParsePCRs(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, want string }{
		{"sha256:0", "sha256:0"},
		{"sha384:23,0,7", "sha384:0,7,23"},
		{"sha512:1,2", "sha512:1,2"},
	} {
		s, err := ParsePCRs(test.in)
		if err != nil || s.String() != test.want {
			t.Errorf("%s: %q, %v, want %q", test.in, s, err, test.want)
		}
	}
	for _, bad := range []string{"", "0,7", "sha256:", "sha256:24", "sha256:-1", "sha256:07", "sha256:0,0", "md5:0", "sha1:0", "sha256:0,", "sha256: 0", "SHA256:0"} {
		if s, err := ParsePCRs(bad); !errors.Is(err, ErrBadRequest) {
			t.Errorf("%q: %q, %v", bad, s, err)
		}
	}
}
