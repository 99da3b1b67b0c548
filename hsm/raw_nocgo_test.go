//go:build !cgo

package hsm

import (
	"testing"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
)

// rawSign has nothing to compare with: modules are loaded with cgo only.
func rawSign(b *testing.B, _ hsmtest.Setup, _ *signKey, _ int) {
	b.Helper()
	b.Fatal("a build without cgo loads no module")
}
