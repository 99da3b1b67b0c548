package softkey

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/mesh-agent/mesh-agent/internal/secret"
	"github.com/mesh-agent/mesh-agent/token"
)

// A handle is: the octet handleVersion, a nonce of 24 octets, and the sealed material,
// which is an octet that says its form and the form's octets.
const (
	handleVersion = 1
	handleLabel   = "mesh-agent softkey handle 1"
	maxHandle     = 16 << 10
)

// identity is what a handle is bound to.
type identity struct {
	public     token.PublicKey
	use        token.Use
	associated []byte
}

// octets encodes the identity as associated data: each field after its length in big
// endian 32 bits, so that no two identities have one encoding.
func (id identity) octets() []byte {
	var out []byte
	for _, field := range [][]byte{[]byte(handleLabel), []byte(id.public.Algorithm), id.public.Octets, []byte(id.use), id.associated} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(field)))
		out = append(out, field...)
	}
	return out
}

// sealer seals and opens handles. XChaCha20-Poly1305 because its nonces may be drawn at
// random without counting, and because it is constant time on every processor.
type sealer struct{ aead cipher.AEAD }

func newSealer(master secret.Bytes) (sealer, error) {
	key, err := hkdf.Key(sha256.New, master, nil, handleLabel, chacha20poly1305.KeySize)
	if err != nil {
		return sealer{}, err
	}
	defer clear(key)
	aead, err := chacha20poly1305.NewX(key)
	return sealer{aead}, err
}

func (s sealer) seal(m material, id identity) ([]byte, error) {
	out := make([]byte, 1+s.aead.NonceSize(), 1+s.aead.NonceSize()+1+len(m.octets)+s.aead.Overhead())
	out[0] = handleVersion
	nonce := out[1:]
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	plain := append(make(secret.Bytes, 0, 1+len(m.octets)), byte(m.form))
	plain = append(plain, m.octets...)
	defer plain.Wipe()
	return s.aead.Seal(out, nonce, plain, id.octets()), nil
}

func (s sealer) open(handle []byte, id identity) (material, error) {
	start := 1 + s.aead.NonceSize()
	if len(handle) < start || len(handle) > maxHandle || handle[0] != handleVersion {
		return material{}, fmt.Errorf("%w: not a software key", token.ErrCorrupt)
	}
	plain, err := s.aead.Open(nil, handle[1:start], handle[start:], id.octets())
	if err != nil || len(plain) == 0 {
		return material{}, token.ErrCorrupt
	}
	return material{algorithm: id.public.Algorithm, form: form(plain[0]), octets: plain[1:]}, nil
}
