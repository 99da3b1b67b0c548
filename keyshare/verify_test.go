package keyshare

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"math/big"
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
		b.Run(k.Curve.Params().Name+"/new", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				verifierOf(b, c, &k.PublicKey)
			}
		})
	}
}
