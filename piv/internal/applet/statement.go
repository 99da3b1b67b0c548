package applet

import (
	"crypto/x509"
	"encoding/asn1"
	"fmt"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/token"
)

// Statement is what an attestation certificate says besides the public key
// (Yubico, "PIV attestation", extensions 1.3.6.1.4.1.41482.3.*).
type Statement struct {
	Version Version
	Serial  uint32 // 0 if the statement does not tell: cards before version 5, and those set not to
	Policy  token.Policy
}

// ParseStatement decodes the extensions of an attestation certificate. But for the serial number they must be there.
func ParseStatement(c *x509.Certificate) (Statement, error) {
	const version, serial, policy = 3, 7, 8
	var s Statement
	b, err := extension(c, version)
	if err != nil {
		return s, err
	}
	if len(b) != 3 {
		return s, fmt.Errorf("attestation: %w: version of %d octets", apdu.ErrMalformed, len(b))
	}
	s.Version = Version{b[0], b[1], b[2]}
	if b, err = extension(c, serial); err == nil {
		var n int64
		if rest, err := asn1.Unmarshal(b, &n); err != nil || len(rest) != 0 || n < 0 || n > 1<<32-1 {
			return s, fmt.Errorf("attestation: %w: serial number", apdu.ErrMalformed)
		}
		s.Serial = uint32(n)
	}
	if b, err = extension(c, policy); err != nil {
		return s, err
	}
	s.Policy, err = parsePolicy(b)
	return s, err
}

func extension(c *x509.Certificate, arc int) ([]byte, error) {
	id := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 41482, 3, arc}
	for _, e := range c.Extensions {
		if e.Id.Equal(id) {
			return e.Value, nil
		}
	}
	return nil, fmt.Errorf("attestation: %w: no extension %v", apdu.ErrMalformed, id)
}
