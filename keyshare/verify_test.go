package keyshare

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
)

func verifierOf(t testing.TB, c Curve, public *ecdsa.PublicKey) *ECDSAVerifier {
	t.Helper()
	octets, err := public.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParsePoint(c, octets)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewECDSAVerifier(p)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var ecdsaCurves = map[Curve]elliptic.Curve{P256: elliptic.P256(), P384: elliptic.P384(), P521: elliptic.P521()}

// TestECDSAVerifier compares with crypto/ecdsa: good signatures and bad ones, digests that are
// shorter and longer than the order, the keys 1, 2 and n-1, where tables of key and generator meet.
func TestECDSAVerifier(t *testing.T) {
	t.Parallel()
	for c, curve := range ecdsaCurves {
		n := curve.Params().N
		scalars := []*big.Int{big.NewInt(1), big.NewInt(2), new(big.Int).Sub(n, big.NewInt(1))}
		for range 3 {
			k, err := ecdsa.GenerateKey(curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			d, err := k.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			scalars = append(scalars, new(big.Int).SetBytes(d))
		}
		for _, d := range scalars {
			k, err := ecdsa.ParseRawPrivateKey(curve, d.FillBytes(make([]byte, (n.BitLen()+7)/8)))
			if err != nil {
				t.Fatal(err)
			}
			v := verifierOf(t, c, &k.PublicKey)
			long := sha512.Sum512(d.Bytes())
			short := sha256.Sum256(d.Bytes())
			for _, digest := range [][]byte{long[:], long[:48], short[:], make([]byte, 32), {}} {
				compareVerify(t, v, k, digest)
			}
		}
	}
}

func compareVerify(t *testing.T, v *ECDSAVerifier, k *ecdsa.PrivateKey, digest []byte) {
	t.Helper()
	r, s, err := ecdsa.Sign(rand.Reader, k, digest)
	if err != nil {
		t.Fatal(err)
	}
	n := k.Curve.Params().N
	one := big.NewInt(1)
	add := func(a, b *big.Int) *big.Int { return new(big.Int).Add(a, b) }
	for _, c := range [][2]*big.Int{
		{r, s}, {r, new(big.Int).Sub(n, s)}, {add(r, one), s}, {r, add(s, one)}, {s, r}, {one, one},
		{big.NewInt(0), s}, {r, big.NewInt(0)}, {n, s}, {r, n}, {add(r, n), s}, {r, add(s, n)},
	} {
		want := ecdsa.Verify(&k.PublicKey, digest, c[0], c[1])
		if got := v.Verify(digest, c[0].Bytes(), c[1].Bytes()); got != want {
			t.Errorf("%s, digest %x, signature (%x, %x): %v, want %v", k.Curve.Params().Name, digest, c[0], c[1], got, want)
		}
	}
	if !v.Verify(digest, r.Bytes(), s.Bytes()) {
		t.Error("a good signature does not verify")
	}
	if len(digest) > 0 {
		other := append([]byte{digest[0] ^ 0x80}, digest[1:]...)
		if v.Verify(other, r.Bytes(), s.Bytes()) {
			t.Error("a signature over another digest verifies")
		}
	}
}

// TestECDSAVerifierInfinity has a sum that is infinity: u1*G = -u2*Q.
func TestECDSAVerifierInfinity(t *testing.T) {
	t.Parallel()
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), big.NewInt(1).FillBytes(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	v := verifierOf(t, P256, &k.PublicKey)
	r := big.NewInt(5)
	digest := new(big.Int).Sub(elliptic.P256().Params().N, r).FillBytes(make([]byte, 32))
	if v.Verify(digest, r.Bytes(), []byte{7}) {
		t.Error("infinity verifies")
	}
}

func TestECDSAVerifierCurves(t *testing.T) {
	t.Parallel()
	for _, c := range []Curve{X25519, X448, Ed25519, Ed448} {
		if _, err := NewECDSAVerifier(BasePoint(c)); err == nil {
			t.Errorf("there is an ECDSA verifier on %v", c)
		}
	}
}

// TestMarshalECDSA compares with encoding/asn1.
func TestMarshalECDSA(t *testing.T) {
	t.Parallel()
	for _, size := range []int{32, 48, 66} {
		for _, fill := range []byte{0x01, 0x7f, 0x80, 0xff} {
			for _, zeros := range []int{0, 1, 5, size - 1} {
				raw := bytes.Repeat([]byte{fill}, 2*size)
				clear(raw[:zeros])
				clear(raw[size : size+zeros/2])
				want, err := asn1.Marshal(struct{ R, S *big.Int }{
					new(big.Int).SetBytes(raw[:size]), new(big.Int).SetBytes(raw[size:]),
				})
				if err != nil {
					t.Fatal(err)
				}
				if got := MarshalECDSA(raw[:size], raw[size:]); !bytes.Equal(got, want) {
					t.Errorf("%x becomes %x, want %x", raw, got, want)
				}
			}
		}
	}
}

func BenchmarkECDSAVerifier(b *testing.B) {
	for _, c := range []Curve{P256, P384, P521} {
		k, err := ecdsa.GenerateKey(ecdsaCurves[c], rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		digest := sha256.Sum256([]byte("message"))
		r, s, err := ecdsa.Sign(rand.Reader, k, digest[:])
		if err != nil {
			b.Fatal(err)
		}
		v := verifierOf(b, c, &k.PublicKey)
		rb, sb := r.Bytes(), s.Bytes()
		b.Run(k.Curve.Params().Name+"/tables", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				v.Verify(digest[:], rb, sb)
			}
		})
		b.Run(k.Curve.Params().Name+"/crypto-ecdsa", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ecdsa.Verify(&k.PublicKey, digest[:], r, s)
			}
		})
		b.Run(k.Curve.Params().Name+"/making tables", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				verifierOf(b, c, &k.PublicKey).Verify(digest[:], rb, sb)
			}
		})
	}
}

// TestEd25519Verifier compares with Verify and crypto/ed25519: good signatures and bad ones, both modes, keys 1, 2
// and L-1, where tables of key and generator meet.
func TestEd25519Verifier(t *testing.T) {
	t.Parallel()
	last, _ := new(big.Int).SetString("1000000000000000000000000000000014def9dea2f79cd65812631a5cf5d3ec", 16) // L-1
	scalars := []*Scalar{mustRandom(t, Ed25519), mustRandom(t, Ed25519), mustRandom(t, Ed25519)}
	for _, n := range []*big.Int{big.NewInt(1), big.NewInt(2), last} {
		octets := n.FillBytes(make([]byte, 32))
		slices.Reverse(octets)
		scalars = append(scalars, mustScalar(t, Ed25519, octets))
	}
	for _, s := range scalars {
		public := s.Public()
		key, err := NewCompositeSigningKey(s)
		if err != nil {
			t.Fatal(err)
		}
		v, err := NewEd25519Verifier(public)
		if err != nil {
			t.Fatal(err)
		}
		for _, mode := range []Mode{ModePure, ModeMesh} {
			for _, message := range [][]byte{nil, []byte("message"), make([]byte, 200)} {
				compareEd25519(t, v, public, mode, message, mustSign(t, key, mode, message))
			}
		}
	}
	if _, err := NewEd25519Verifier(BasePoint(Ed448)); err == nil {
		t.Error("tables for a key on another curve")
	}
	if _, err := NewEd25519Verifier(BasePoint(X25519)); err == nil {
		t.Error("tables for a key on another curve")
	}
}

func compareEd25519(t *testing.T, v *Ed25519Verifier, public *Point, mode Mode, message, signature []byte) {
	t.Helper()
	if !v.Verify(mode, message, signature) {
		t.Errorf("a good signature by %x is refused", public.Bytes())
	}
	bad := [][]byte{nil, signature[:63], append(bytes.Clone(signature), 0), make([]byte, 64)}
	for i := range signature {
		changed := bytes.Clone(signature)
		changed[i] ^= 0x10
		bad = append(bad, changed)
	}
	for _, signature := range bad {
		want := Verify(public, mode, message, signature)
		if mode == ModePure && ed25519.Verify(public.Bytes(), message, signature) != want {
			t.Errorf("%x: Verify and crypto/ed25519 differ", signature)
		}
		if got := v.Verify(mode, message, signature); got != want {
			t.Errorf("%x: %v, want %v", signature, got, want)
		}
	}
	if v.Verify(mode, append(bytes.Clone(message), 1), signature) {
		t.Error("a signature of another message is taken")
	}
}

func BenchmarkEd25519Verifier(b *testing.B) {
	key, err := NewCompositeSigningKey(mustRandom(b, Ed25519))
	if err != nil {
		b.Fatal(err)
	}
	message := []byte("message")
	signature := mustSign(b, key, ModePure, message)
	v, err := NewEd25519Verifier(key.Public())
	if err != nil {
		b.Fatal(err)
	}
	b.Run("tables", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v.Verify(ModePure, message, signature)
		}
	})
	b.Run("crypto-ed25519", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ed25519.Verify(key.Public().Bytes(), message, signature)
		}
	})
	b.Run("making tables", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v, err := NewEd25519Verifier(key.Public())
			if err != nil {
				b.Fatal(err)
			}
			v.Verify(ModePure, message, signature)
		}
	})
}
