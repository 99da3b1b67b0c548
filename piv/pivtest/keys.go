package pivtest

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"math/big"
)

// privateKey is a key of one algorithm. None of its methods changes it.
type privateKey interface {
	public() crypto.PublicKey
	// encodePublic returns the inner data objects of a 7F49 template (SP 800-73-4 Part 2, Table 11).
	encodePublic() []byte
}

// signer is a privateKey that answers a challenge (tag 81). False means data it does not take.
type signer interface {
	sign(data []byte) ([]byte, bool)
}

// agreer is a privateKey that answers a point (tag 85) with the x- or u-coordinate.
type agreer interface {
	agree(point []byte) ([]byte, bool)
}

func generateKey(alg byte) (privateKey, error) {
	switch alg {
	case AlgRSA1024, AlgRSA2048, AlgRSA3072, AlgRSA4096:
		return generateRSA(rsaBits(alg))
	case AlgP256, AlgP384:
		key, err := ecdsa.GenerateKey(curveOf(alg), rand.Reader)
		return (*ecKey)(key), err
	case AlgEd25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return edKey(key), err
	case AlgX25519:
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		return (*montgomeryKey)(key), err
	}
	return nil, errors.ErrUnsupported
}

// importKey makes a key of the data objects of an import command.
func importKey(alg byte, parts map[uint32][]byte) (privateKey, bool) {
	switch alg {
	case AlgRSA1024, AlgRSA2048, AlgRSA3072, AlgRSA4096:
		return importRSA(rsaBits(alg), parts)
	case AlgP256, AlgP384:
		key, err := ecdsa.ParseRawPrivateKey(curveOf(alg), parts[0x06])
		return (*ecKey)(key), err == nil
	case AlgEd25519:
		if len(parts[0x07]) != ed25519.SeedSize {
			return nil, false
		}
		return edKey(ed25519.NewKeyFromSeed(parts[0x07])), true
	case AlgX25519:
		key, err := ecdh.X25519().NewPrivateKey(parts[0x08])
		return (*montgomeryKey)(key), err == nil
	}
	return nil, false
}

// adopt makes a key of one of the standard library.
func adopt(key crypto.PrivateKey) (alg byte, private privateKey, ok bool) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		bits := key.N.BitLen()
		alg, ok := map[int]byte{1024: AlgRSA1024, 2048: AlgRSA2048, 3072: AlgRSA3072, 4096: AlgRSA4096}[bits]
		if !ok || len(key.Primes) != 2 || key.E != 65537 {
			return 0, nil, false
		}
		k, ok := newRSA(bits, key.Primes[0], key.Primes[1], key.E)
		return alg, k, ok
	case *ecdsa.PrivateKey:
		alg, ok := map[elliptic.Curve]byte{elliptic.P256(): AlgP256, elliptic.P384(): AlgP384}[key.Curve]
		return alg, (*ecKey)(key), ok
	case ed25519.PrivateKey:
		return AlgEd25519, edKey(key), len(key) == ed25519.PrivateKeySize
	case *ecdh.PrivateKey:
		return AlgX25519, (*montgomeryKey)(key), key.Curve() == ecdh.X25519()
	}
	return 0, nil, false
}

func rsaBits(alg byte) int {
	return map[byte]int{AlgRSA1024: 1024, AlgRSA2048: 2048, AlgRSA3072: 3072, AlgRSA4096: 4096}[alg]
}

func curveOf(alg byte) elliptic.Curve {
	if alg == AlgP384 {
		return elliptic.P384()
	}
	return elliptic.P256()
}

// rsaKey computes with integers because crypto/rsa offers no raw operation.
type rsaKey struct {
	n, p, q, dp, dq, qInv *big.Int
	e                     int
}

func generateRSA(bits int) (*rsaKey, error) {
	if bits >= 2048 {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			return nil, err
		}
		k, ok := newRSA(bits, key.Primes[0], key.Primes[1], key.E)
		if !ok {
			return nil, errors.New("generate key: wrong primes")
		}
		return k, nil
	}
	for { // crypto/rsa refuses to generate short keys
		p, err := rand.Prime(rand.Reader, bits/2)
		if err != nil {
			return nil, err
		}
		q, err := rand.Prime(rand.Reader, bits/2)
		if err != nil {
			return nil, err
		}
		if k, ok := newRSA(bits, p, q, 65537); ok {
			return k, nil
		}
	}
}

// newRSA derives a key of two primes. False means primes that do not fit the size or exponent.
func newRSA(bits int, p, q *big.Int, e int) (*rsaKey, bool) {
	one, exponent := big.NewInt(1), big.NewInt(int64(e))
	pMinus, qMinus := new(big.Int).Sub(p, one), new(big.Int).Sub(q, one)
	if pMinus.Sign() <= 0 || qMinus.Sign() <= 0 {
		return nil, false
	}
	k := &rsaKey{
		n: new(big.Int).Mul(p, q), p: p, q: q, e: e,
		dp:   new(big.Int).ModInverse(exponent, pMinus),
		dq:   new(big.Int).ModInverse(exponent, qMinus),
		qInv: new(big.Int).ModInverse(q, p),
	}
	return k, k.n.BitLen() == bits && k.dp != nil && k.dq != nil && k.qInv != nil
}

// importRSA takes p, q, dp, dq, qInv in the tags 01 to 05. The exponent is 65537.
func importRSA(bits int, parts map[uint32][]byte) (*rsaKey, bool) {
	var v [5]*big.Int
	for i := range v {
		part := parts[uint32(i+1)]
		if len(part) == 0 || len(part) > bits/16 {
			return nil, false
		}
		v[i] = new(big.Int).SetBytes(part)
	}
	k, ok := newRSA(bits, v[0], v[1], 65537)
	if !ok || k.dp.Cmp(v[2]) != 0 || k.dq.Cmp(v[3]) != 0 || k.qInv.Cmp(v[4]) != 0 {
		return nil, false
	}
	return k, true
}

func (k *rsaKey) public() crypto.PublicKey { return &rsa.PublicKey{N: k.n, E: k.e} }

func (k *rsaKey) encodePublic() []byte {
	return append(encode(0x81, k.n.Bytes()), encode(0x82, big.NewInt(int64(k.e)).Bytes())...)
}

// sign does the raw private operation on a block as long as the modulus (SP 800-73-4 Part 2, A.3).
func (k *rsaKey) sign(block []byte) ([]byte, bool) {
	size := (k.n.BitLen() + 7) / 8
	c := new(big.Int).SetBytes(block)
	if len(block) != size || c.Cmp(k.n) >= 0 {
		return nil, false
	}
	m1 := new(big.Int).Exp(c, k.dp, k.p)
	m2 := new(big.Int).Exp(c, k.dq, k.q)
	h := new(big.Int).Sub(m1, m2)
	h.Mul(h, k.qInv).Mod(h, k.p)
	m := h.Mul(h, k.q).Add(h, m2)
	return m.FillBytes(make([]byte, size)), true
}

type ecKey ecdsa.PrivateKey

func (k *ecKey) key() *ecdsa.PrivateKey { return (*ecdsa.PrivateKey)(k) }

func (k *ecKey) public() crypto.PublicKey { return &k.PublicKey }

func (k *ecKey) encodePublic() []byte {
	point, err := k.key().PublicKey.Bytes()
	if err != nil {
		panic(err) // the key was made by crypto/ecdsa
	}
	return encode(0x86, point)
}

func (k *ecKey) sign(digest []byte) ([]byte, bool) {
	if len(digest) == 0 || len(digest) > (k.Curve.Params().BitSize+7)/8 {
		return nil, false
	}
	signature, err := ecdsa.SignASN1(rand.Reader, k.key(), digest)
	return signature, err == nil
}

func (k *ecKey) agree(point []byte) ([]byte, bool) {
	private, err := k.key().ECDH()
	if err != nil {
		return nil, false
	}
	return agree(private, point)
}

func agree(private *ecdh.PrivateKey, point []byte) ([]byte, bool) {
	peer, err := private.Curve().NewPublicKey(point)
	if err != nil {
		return nil, false
	}
	x, err := private.ECDH(peer)
	return x, err == nil
}

type edKey ed25519.PrivateKey

func (k edKey) public() crypto.PublicKey { return ed25519.PrivateKey(k).Public() }

func (k edKey) encodePublic() []byte { return encode(0x86, k.public().(ed25519.PublicKey)) }

// sign signs the whole message, which may be empty.
func (k edKey) sign(message []byte) ([]byte, bool) {
	return ed25519.Sign(ed25519.PrivateKey(k), message), true
}

type montgomeryKey ecdh.PrivateKey

func (k *montgomeryKey) key() *ecdh.PrivateKey { return (*ecdh.PrivateKey)(k) }

func (k *montgomeryKey) public() crypto.PublicKey { return k.key().PublicKey() }

func (k *montgomeryKey) encodePublic() []byte { return encode(0x86, k.key().PublicKey().Bytes()) }

func (k *montgomeryKey) agree(u []byte) ([]byte, bool) { return agree(k.key(), u) }

var (
	_ signer = (*rsaKey)(nil)
	_ signer = (*ecKey)(nil)
	_ signer = edKey(nil)
	_ agreer = (*ecKey)(nil)
	_ agreer = (*montgomeryKey)(nil)
)
