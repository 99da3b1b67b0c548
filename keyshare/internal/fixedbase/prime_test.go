package fixedbase

import (
	"bytes"
	"encoding/binary"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestGenerated holds mul.go to what generate.go writes.
func TestGenerated(t *testing.T) {
	t.Parallel()
	program, err := filepath.Abs("generate.go")
	if err != nil {
		t.Fatal(err)
	}
	run := exec.CommandContext(t.Context(), "go", "run", program)
	run.Dir = t.TempDir()
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("go run generate.go: %v\n%s", err, out)
	}
	want, err := os.ReadFile(filepath.Join(run.Dir, "mul.go"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile("mul.go"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("mul.go is not what generate.go writes (%v): run go generate", err)
	}
}

// FuzzPrime compares the arithmetic modulo the three primes with math/big, on numbers whose words are chosen by
// the octets of the input: carries show with words of all zeros and all ones.
func FuzzPrime(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 0, 1, 2, 3, 0}, []byte{3, 2, 1, 0, 3, 2, 1, 0, 3}, uint64(0x123456789abcdef0))
	f.Add([]byte{1, 1, 1, 1, 1, 1, 1, 1, 1}, []byte{1, 1, 1, 1, 1, 1, 1, 1, 1}, uint64(1))
	f.Add([]byte{}, []byte{1}, uint64(1<<63))
	f.Fuzz(func(t *testing.T, x, y []byte, word uint64) {
		comparePrime(t, p256().prime, x, y, word)
		comparePrime(t, p384().prime, x, y, word)
		comparePrime(t, p521().prime, x, y, word)
	})
}

func comparePrime[E element](t *testing.T, f *prime[E], x, y []byte, word uint64) {
	a, b := number(x, word, f.p), number(y, ^word*5, f.p)
	ae, be := f.from(a), f.from(b)
	want := new(big.Int)
	for _, op := range []struct {
		name string
		do   func(z, x, y *E)
		want *big.Int
	}{
		{"mul", f.mul, new(big.Int).Mul(a, b)},
		{"add", f.add, new(big.Int).Add(a, b)},
		{"sub", f.sub, new(big.Int).Sub(a, b)},
	} {
		var z E
		op.do(&z, &ae, &be)
		expected := f.from(want.Mod(op.want, f.p))
		if z != expected {
			t.Errorf("%d bits: %s(%x, %x) = %x, want %x", f.p.BitLen(), op.name, a, b, z, expected)
		}
		// The result may take the place of an operand.
		first, second := ae, be
		op.do(&first, &first, &be)
		op.do(&second, &ae, &second)
		if first != expected || second != expected {
			t.Errorf("%d bits: %s in place differs", f.p.BitLen(), op.name)
		}
	}
	var inverse E
	f.invert(&inverse, &ae)
	f.mul(&inverse, &inverse, &ae)
	if a.Sign() != 0 && inverse != f.one || a.Sign() == 0 && inverse != f.zero {
		t.Errorf("%d bits: 1/%x is wrong", f.p.BitLen(), a)
	}
}

// number makes a number below p of words that choice names.
func number(choice []byte, word uint64, p *big.Int) *big.Int {
	octets := make([]byte, 72)
	for i := range min(len(choice), 9) {
		w := [4]uint64{0, ^uint64(0), 1, word*uint64(2*i+1) + uint64(choice[i])<<32}[choice[i]%4]
		binary.BigEndian.PutUint64(octets[8*i:], w)
	}
	n := new(big.Int).SetBytes(octets)
	return n.Mod(n, p)
}

// TestForms has the numbers that Montgomery's form of 1 and of p-1 are.
func TestForms(t *testing.T) {
	t.Parallel()
	compareForms(t, p256().prime)
	compareForms(t, p384().prime)
	compareForms(t, p521().prime)
}

func compareForms[E element](t *testing.T, f *prime[E]) {
	if one := f.from(big.NewInt(1)); one != f.one {
		t.Errorf("%d bits: 1 is %x", f.p.BitLen(), one)
	}
	minus := f.from(new(big.Int).Sub(f.p, big.NewInt(1)))
	f.add(&minus, &minus, &f.one)
	if minus != f.zero {
		t.Errorf("%d bits: p is %x", f.p.BitLen(), minus)
	}
}
