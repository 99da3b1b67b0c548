package rsapad

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/big"
	"testing"

	"github.com/mesh-agent/mesh-agent/token"
)

var hashes = []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512}

func newKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// raw is what a device does.
func raw(k *rsa.PrivateKey, b []byte) []byte {
	return new(big.Int).Exp(new(big.Int).SetBytes(b), k.D, k.N).FillBytes(make([]byte, k.Size()))
}

// encrypted is the inverse of raw, for a block below the modulus.
func encrypted(k *rsa.PublicKey, block []byte) []byte {
	return new(big.Int).Exp(new(big.Int).SetBytes(block), big.NewInt(int64(k.E)), k.N).FillBytes(make([]byte, k.Size()))
}

// TestOAEP opens what the standard library encrypts, and nothing that was changed.
func TestOAEP(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	for _, h := range hashes {
		for _, n := range []int{0, 1, 32, k.Size() - 2*h.Size() - 2} {
			for _, label := range [][]byte{nil, []byte("label")} {
				plain := bytes.Repeat([]byte{1}, n)
				c, err := rsa.EncryptOAEP(NewHash(h)(), rand.Reader, &k.PublicKey, plain, label)
				if err != nil {
					t.Fatal(err)
				}
				req := token.DecryptRequest{Padding: token.PaddingOAEP, Hash: h, Label: label, Ciphertext: c}
				if err := Check(&k.PublicKey, req); err != nil {
					t.Errorf("%v: %v", h, err)
				}
				block := raw(k, c)
				if !Encrypts(&k.PublicKey, block, c) {
					t.Errorf("%v: a right result is found wrong", h)
				}
				if got, err := Unpad(req, bytes.Clone(block)); err != nil || got == nil || !bytes.Equal(got, plain) {
					t.Errorf("%v, %d octets: %x, %v", h, n, got, err)
				}
				req.Label = []byte("other")
				if _, err := Unpad(req, bytes.Clone(block)); err != token.ErrDecrypt {
					t.Errorf("%v, other label: %v", h, err)
				}
				req.Label, req.Hash = label, hashes[(int(h)+1)%len(hashes)]
				if _, err := Unpad(req, block); req.Hash != h && err != token.ErrDecrypt {
					t.Errorf("%v as %v: %v", h, req.Hash, err)
				}
			}
		}
	}
}

// TestOAEPRefuses makes blocks with one thing wrong and compares with the standard library.
func TestOAEPRefuses(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	labelHash := sha256.Sum256(nil)
	// encode is EME-OAEP encoding of a data block that the caller makes.
	encode := func(first byte, db []byte) []byte {
		b := make([]byte, k.Size())
		b[0] = first
		seed := b[1 : 1+sha256.Size]
		rand.Read(seed)
		copy(b[1+sha256.Size:], db)
		MGF1XOR(sha256.New, b[1+sha256.Size:], seed)
		MGF1XOR(sha256.New, seed, b[1+sha256.Size:])
		return b
	}
	n := k.Size() - 1 - sha256.Size
	block := func(change func([]byte)) []byte {
		db := make([]byte, n)
		copy(db, labelHash[:])
		db[n-6] = 1
		copy(db[n-5:], "plain")
		change(db)
		return db
	}
	for name, c := range map[string]struct {
		block []byte
		want  bool
	}{
		"right":           {encode(0, block(func([]byte) {})), true},
		"first octet":     {encode(1, block(func([]byte) {})), false},
		"hash":            {encode(0, block(func(b []byte) { b[3] ^= 1 })), false},
		"no one":          {encode(0, block(func(b []byte) { clear(b[n-6:]) })), false},
		"two before one":  {encode(0, block(func(b []byte) { b[n-9] = 2 })), false},
		"an earlier one":  {encode(0, block(func(b []byte) { b[n-9] = 1 })), true},
		"two after a one": {encode(0, block(func(b []byte) { b[n-2] = 2 })), true},
	} {
		var want []byte
		std := errors.New("not below the modulus")
		if new(big.Int).SetBytes(c.block).Cmp(k.N) < 0 {
			want, std = rsa.DecryptOAEP(sha256.New(), nil, k, encrypted(&k.PublicKey, c.block), nil)
		}
		if (std == nil) != c.want {
			t.Fatalf("%s: the standard library says %v", name, std)
		}
		got, err := Unpad(token.DecryptRequest{Padding: token.PaddingOAEP, Hash: crypto.SHA256}, c.block)
		if (err == nil) != c.want || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, %v, want %x, %t", name, got, err, want, c.want)
		}
		if !bytes.Equal(c.block, make([]byte, k.Size())) {
			t.Errorf("%s: the block is not wiped", name)
		}
	}
}

// TestPKCS1v15 makes blocks with one thing wrong. None is an error; what comes is the plaintext, or
// always the same for block and ciphertext. The standard library agrees on which.
func TestPKCS1v15(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	size := k.Size()
	block := func(n int, change func([]byte)) []byte {
		b := bytes.Repeat([]byte{0x5a}, size)
		b[0], b[1], b[size-n-1] = 0, 2, 0
		change(b)
		return b
	}
	for name, c := range map[string]struct {
		length int
		block  []byte
		want   bool
	}{
		"right":                   {16, block(16, func([]byte) {}), true},
		"shortest":                {1, block(1, func([]byte) {}), true},
		"longest":                 {size - 11, block(size-11, func([]byte) {}), true},
		"zeros in the plaintext":  {16, block(16, func(b []byte) { b[size-16], b[size-3] = 0, 0 }), true},
		"first octet":             {16, block(16, func(b []byte) { b[0] = 1 }), false},
		"block type 1":            {16, block(16, func(b []byte) { b[1] = 1 }), false},
		"no zero":                 {16, block(16, func(b []byte) { b[size-17] = 1 }), false},
		"zero in the first eight": {16, block(16, func(b []byte) { b[5] = 0 }), false},
		"an earlier zero":         {16, block(16, func(b []byte) { b[size-18] = 0 }), false},
		"longer":                  {16, block(17, func([]byte) {}), false},
		"shorter":                 {16, block(15, func([]byte) {}), false},
		"all zero":                {16, make([]byte, size), false},
	} {
		req := token.DecryptRequest{Padding: token.PaddingPKCS1v15, Length: c.length, Ciphertext: encrypted(&k.PublicKey, c.block)}
		if err := Check(&k.PublicKey, req); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		plain := bytes.Clone(c.block[size-c.length:])
		fallback := Fallback(sha256.Sum256(c.block), req.Ciphertext, c.length)
		want := fallback
		if c.want {
			want = plain
		}
		std := bytes.Clone(fallback)
		//lint:ignore SA1019 to compare with
		if err := rsa.DecryptPKCS1v15SessionKey(nil, k, req.Ciphertext, std); err != nil || !bytes.Equal(std, want) {
			t.Fatalf("%s: the standard library says %x, %v, want %x", name, std, err, want)
		}
		got, err := Unpad(req, c.block)
		if err != nil || !bytes.Equal(got, want) || cap(got) != c.length {
			t.Errorf("%s: %x, %v, want %x", name, got, err, want)
		}
		if !bytes.Equal(c.block, make([]byte, size)) {
			t.Errorf("%s: the block is not wiped", name)
		}
	}
}

// TestFallback holds the octets to what an independent program computes: others after an update would tell which ciphertexts
// are padded wrong. No answer is part of one for another length: of a ciphertext that is padded right, the answer for the
// right length would be the only one that is not.
func TestFallback(t *testing.T) {
	t.Parallel()
	ciphertext := bytes.Repeat([]byte{7}, 256)
	for n, want := range map[int]string{
		1:  "ab",
		16: "93fd8262c3f5832c26515d7c4708644c",
		33: "035e3f6ce093fbd243636e22fe601fab82795ad502f1439df03400669757dd864e",
	} {
		if got := Fallback([32]byte{1}, ciphertext, n); hex.EncodeToString(got) != want {
			t.Errorf("%d octets: %x, want %s", n, got, want)
		}
	}
	all := Fallback([32]byte{1}, ciphertext, 245)
	for n := 16; n < len(all); n++ {
		if bytes.Contains(all, Fallback([32]byte{1}, ciphertext, n)) {
			t.Errorf("%d octets are part of %d", n, len(all))
		}
	}
	other := bytes.Clone(ciphertext)
	other[255]++
	if bytes.Equal(all, Fallback([32]byte{2}, ciphertext, 245)) || bytes.Equal(all, Fallback([32]byte{1}, other, 245)) {
		t.Error("another key or ciphertext gives the same")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	k := &newKey(t).PublicKey
	size := k.Size()
	one := make([]byte, size)
	one[size-1] = 1
	const oaep, pkcs1 = token.PaddingOAEP, token.PaddingPKCS1v15
	for name, c := range map[string]struct {
		req  token.DecryptRequest
		want error
	}{
		"OAEP":                {token.DecryptRequest{Padding: oaep, Hash: crypto.SHA1, Label: []byte("l"), Ciphertext: one}, nil},
		"PKCS #1 v1.5":        {token.DecryptRequest{Padding: pkcs1, Length: size - 11, Ciphertext: one}, nil},
		"no padding":          {token.DecryptRequest{Hash: crypto.SHA256, Ciphertext: one}, token.ErrUnsupported},
		"unknown padding":     {token.DecryptRequest{Padding: 3, Ciphertext: one}, token.ErrUnsupported},
		"no hash":             {token.DecryptRequest{Padding: oaep, Ciphertext: one}, token.ErrUnsupported},
		"MD5":                 {token.DecryptRequest{Padding: oaep, Hash: crypto.MD5, Ciphertext: one}, token.ErrUnsupported},
		"OAEP with a length":  {token.DecryptRequest{Padding: oaep, Hash: crypto.SHA256, Length: 1, Ciphertext: one}, token.ErrBadRequest},
		"no length":           {token.DecryptRequest{Padding: pkcs1, Ciphertext: one}, token.ErrBadRequest},
		"negative length":     {token.DecryptRequest{Padding: pkcs1, Length: -1, Ciphertext: one}, token.ErrBadRequest},
		"too long":            {token.DecryptRequest{Padding: pkcs1, Length: size - 10, Ciphertext: one}, token.ErrBadRequest},
		"hash":                {token.DecryptRequest{Padding: pkcs1, Length: 1, Hash: crypto.SHA256, Ciphertext: one}, token.ErrBadRequest},
		"label":               {token.DecryptRequest{Padding: pkcs1, Length: 1, Label: []byte("l"), Ciphertext: one}, token.ErrBadRequest},
		"short ciphertext":    {token.DecryptRequest{Padding: pkcs1, Length: 1, Ciphertext: one[1:]}, token.ErrDecrypt},
		"long ciphertext":     {token.DecryptRequest{Padding: pkcs1, Length: 1, Ciphertext: append([]byte{0}, one...)}, token.ErrDecrypt},
		"no ciphertext":       {token.DecryptRequest{Padding: oaep, Hash: crypto.SHA256}, token.ErrDecrypt},
		"the modulus":         {token.DecryptRequest{Padding: oaep, Hash: crypto.SHA256, Ciphertext: k.N.Bytes()}, token.ErrDecrypt},
		"beyond the modulus":  {token.DecryptRequest{Padding: pkcs1, Length: 1, Ciphertext: bytes.Repeat([]byte{0xff}, size)}, token.ErrDecrypt},
		"no padding, nothing": {token.DecryptRequest{}, token.ErrUnsupported},
	} {
		if err := Check(k, c.req); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	short := &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}
	req := token.DecryptRequest{Padding: oaep, Hash: crypto.SHA512, Ciphertext: one[:128]}
	if err := Check(short, req); !errors.Is(err, token.ErrUnsupported) {
		t.Errorf("OAEP that does not fit the modulus: %v", err)
	}
}

func TestEncryptsRefuses(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	block := bytes.Repeat([]byte{0x12}, k.Size())
	c := encrypted(&k.PublicKey, block)
	if !Encrypts(&k.PublicKey, block, c) {
		t.Fatal("a right result is found wrong")
	}
	for name, b := range map[string][]byte{
		"another": append(bytes.Clone(block[:k.Size()-1]), 0), "the modulus": k.N.Bytes(), "nothing": nil,
	} {
		if Encrypts(&k.PublicKey, b, c) {
			t.Errorf("%s is found right", name)
		}
	}
	even := &rsa.PublicKey{N: new(big.Int).Sub(k.N, big.NewInt(1)), E: k.E}
	if Encrypts(even, block, c) {
		t.Error("there is a right result modulo an even number")
	}
}

// FuzzUnpad takes any block: no panic, the length that was asked for, and one error.
func FuzzUnpad(f *testing.F) {
	f.Add([]byte("\x00\x02"), []byte(nil), 16)
	f.Add([]byte("\x00"), []byte("label"), 0)
	f.Fuzz(func(t *testing.T, start, label []byte, length int) {
		block := make([]byte, 256)
		copy(block, start)
		for i, h := range hashes {
			req := token.DecryptRequest{Padding: token.PaddingOAEP, Hash: h, Label: label, Ciphertext: block}
			if got, err := Unpad(req, bytes.Clone(block)); err != nil && (err != token.ErrDecrypt || got != nil) {
				t.Errorf("hash %d: %x, %v", i, got, err)
			}
		}
		length = 1 + int(uint(length)%uint(MaxLength(len(block))))
		req := token.DecryptRequest{Padding: token.PaddingPKCS1v15, Length: length, Ciphertext: block}
		if got, err := Unpad(req, bytes.Clone(block)); err != nil || len(got) != length {
			t.Errorf("%x, %v", got, err)
		}
	})
}
