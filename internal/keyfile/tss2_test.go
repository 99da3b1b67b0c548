package keyfile

import (
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

func TestIsTSS2(t *testing.T) {
	t.Parallel()
	const file = "\n-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"
	for data, want := range map[string]bool{file: true, "": false, "-----BEGIN PRIVATE KEY-----\n": false, "{}": false} {
		if got := IsTSS2([]byte(data)); got != want {
			t.Errorf("IsTSS2(%q) = %v", data, got)
		}
	}
	if _, _, err := Parse([]byte(file), Options{}); !errors.Is(err, token.ErrBadKey) {
		t.Errorf("Parse of a TSS2 key: %v", err)
	}
}
