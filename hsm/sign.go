package hsm

import (
	"crypto"
	"fmt"

	"github.com/mesh-agent/mesh-agent/token"
)

// request writes a signature as a call, and returns the digest of the message.
func (k *signKey) request(req token.SignRequest) (c call, digest []byte, err error) {
	c = call{op: opSign, mech: mechanism{kind: k.kind.sign}}
	unsupported := func() (call, []byte, error) {
		return call{}, nil, fmt.Errorf("%s with scheme %d, hash %v: %w", k.public.Algorithm, req.Scheme, req.Hash, token.ErrUnsupported)
	}
	ed := k.public.Algorithm == token.Ed25519 || k.public.Algorithm == token.Ed448
	if ed {
		mesh := req.Scheme == token.SchemeMeshEdDSA && k.public.Algorithm == token.Ed448
		if req.Hash != 0 || req.Scheme != token.SchemeEdDSA && !mesh {
			return unsupported()
		}
		c.data = [][]byte{req.Message}
		return c, nil, nil
	}
	if digest, err = req.Digest(); err != nil {
		return call{}, nil, err
	}
	switch {
	case k.kind.curve != 0 && req.Scheme == token.SchemeECDSA:
		c.data = [][]byte{truncate(digest, len(k.public.Octets)/2)}
	case k.kind.curve == 0 && req.Scheme == token.SchemePKCS1v15:
		c.data = [][]byte{append(digestInfo(req.Hash), digest...)}
	case k.kind.curve == 0 && req.Scheme == token.SchemePSS:
		c.mech = pss(req.Hash)
		c.data = [][]byte{digest}
	default:
		return unsupported()
	}
	return c, digest, nil
}

// truncate shortens a digest to the length of the group order, as ECDSA does (FIPS 186-5, Section
// 6.4.1): on P-256 and P-384 orders have whole octets, and no hash is longer than that of P-521.
func truncate(digest []byte, size int) []byte { return digest[:min(len(digest), size)] }

// digestInfo returns the DigestInfo of RFC 8017, Section 9.2, note 1, without the digest.
func digestInfo(h crypto.Hash) []byte {
	last := map[crypto.Hash]byte{crypto.SHA256: 1, crypto.SHA384: 2, crypto.SHA512: 3}[h]
	n := byte(h.Size())
	return []byte{
		0x30, 0x11 + n, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, last,
		0x05, 0x00, 0x04, n,
	}
}

// pss has a salt as long as the hash.
func pss(h crypto.Hash) mechanism {
	m := mechanism{kind: ckmRSAPSS, param: paramPSS}
	switch h {
	case crypto.SHA256:
		m.numbers = [3]uint64{ckmSHA256, ckgMGF1SHA256, 32}
	case crypto.SHA384:
		m.numbers = [3]uint64{ckmSHA384, ckgMGF1SHA384, 48}
	case crypto.SHA512:
		m.numbers = [3]uint64{ckmSHA512, ckgMGF1SHA512, 64}
	}
	return m
}
