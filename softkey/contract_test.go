package softkey

import (
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

func TestContract(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	tokentest.Run(t, tokentest.Harness{
		Open: func(t *testing.T) token.Token {
			tok, err := Open(dir, Options{Insecure: true})
			if err != nil {
				t.Fatal(err)
			}
			return tok
		},
	})
}
