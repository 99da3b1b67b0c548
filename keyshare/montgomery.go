package keyshare

import "errors"

// Placeholder until the Montgomery arithmetic is in place.
func parseX25519([]byte) (element, error) { return nil, errors.ErrUnsupported }
func parseX448([]byte) (element, error)   { return nil, errors.ErrUnsupported }
func baseX25519() element                 { panic("keyshare: X25519 is not there yet") }
func baseX448() element                   { panic("keyshare: X448 is not there yet") }
