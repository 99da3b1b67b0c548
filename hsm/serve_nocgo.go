//go:build !cgo

package hsm

// Supported reports whether this binary can load PKCS #11 modules: it was built with cgo.
const Supported = false

func newModule(*call) (backend, error) { return nil, ErrNoSupport }
