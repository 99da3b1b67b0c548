package applet

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/token"
)

func pinPolicies() map[token.PINPolicy]byte {
	return map[token.PINPolicy]byte{token.PINNever: 1, token.PINOnce: 2, token.PINAlways: 3}
}

func touchPolicies() map[token.TouchPolicy]byte {
	return map[token.TouchPolicy]byte{token.TouchNever: 1, token.TouchAlways: 2, token.TouchCached: 3}
}

// PolicyNumbers returns the numbers that the policies have on the card, 0 for a default.
func PolicyNumbers(p token.Policy) (pin, touch byte) {
	return pinPolicies()[p.PIN], touchPolicies()[p.Touch]
}

// NumberedPolicy returns the policies that have these numbers on the card, a default for others.
func NumberedPolicy(pin, touch byte) (p token.Policy) {
	for name, id := range pinPolicies() {
		if id == pin {
			p.PIN = name
		}
	}
	for name, id := range touchPolicies() {
		if id == touch {
			p.Touch = name
		}
	}
	return p
}

// encodePolicy encodes what a key shall ask for; a default is left to the card.
func encodePolicy(p token.Policy) ([]byte, error) {
	var b []byte
	if p.PIN != token.PINDefault {
		id, ok := pinPolicies()[p.PIN]
		if !ok {
			return nil, fmt.Errorf("PIN policy %q: %w", string(p.PIN), token.ErrUnsupported)
		}
		b = apdu.Append(b, tagPolicyPIN, []byte{id})
	}
	if p.Touch != token.TouchDefault {
		id, ok := touchPolicies()[p.Touch]
		if !ok {
			return nil, fmt.Errorf("touch policy %q: %w", string(p.Touch), token.ErrUnsupported)
		}
		b = apdu.Append(b, tagPolicyTouch, []byte{id})
	}
	return b, nil
}

// parsePolicy decodes the two octets in which the card tells a key's policies. Zero is what the slot
// has by itself.
func parsePolicy(b []byte) (token.Policy, error) {
	if len(b) != 2 {
		return token.Policy{}, fmt.Errorf("%w: policy of %d octets", apdu.ErrMalformed, len(b))
	}
	p := NumberedPolicy(b[0], b[1])
	if p.PIN == token.PINDefault && b[0] != 0 || p.Touch == token.TouchDefault && b[1] != 0 {
		return token.Policy{}, fmt.Errorf("policies %02x %02x of the key: %w", b[0], b[1], token.ErrUnsupported)
	}
	return p, nil
}

// PublicOf returns a public key of the standard library in the project's encoding.
// token.ErrUnsupported says that PIV has no such keys.
func PublicOf(public any) (token.PublicKey, error) {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		octets, err := k.Bytes()
		if err != nil {
			return token.PublicKey{}, fmt.Errorf("public key: %w: %w", token.ErrBadKey, err)
		}
		if a := curveOf(k.Curve); a != "" {
			return token.PublicKey{Algorithm: a, Octets: octets}, nil
		}
	case *rsa.PublicKey:
		for _, a := range []token.Algorithm{token.RSA2048, token.RSA3072, token.RSA4096} {
			if a.RSABits() == k.N.BitLen() {
				return token.PublicKey{Algorithm: a, Octets: x509.MarshalPKCS1PublicKey(k)}, nil
			}
		}
	case ed25519.PublicKey:
		return token.PublicKey{Algorithm: token.Ed25519, Octets: k}, nil
	case *ecdh.PublicKey:
		if k.Curve() == ecdh.X25519() {
			return token.PublicKey{Algorithm: token.X25519, Octets: append(k.Bytes(), 0)}, nil
		}
	}
	return token.PublicKey{}, fmt.Errorf("public key of type %T: %w", public, token.ErrUnsupported)
}
