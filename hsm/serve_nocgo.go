//go:build !cgo

package hsm

import (
	"errors"
)

// newModule says that this binary cannot load modules: that takes cgo.
func newModule(*call) (backend, error) {
	return nil, errors.New("this binary was built without cgo and cannot load PKCS#11 modules")
}
