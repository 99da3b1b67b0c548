//go:build cgo

package piv

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"

	pivgo "github.com/go-piv/piv-go/v2/piv"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// BenchmarkSideBySide signs by a key on the virtual card with piv-go, which holds the card all the
// time, and with this package, which shares it and so selects the application each time. The
// virtual card answers at once; a real one takes milliseconds for each command, as it does
// in the second half.
func BenchmarkSideBySide(b *testing.B) {
	bench := sharedBench(b)
	for _, c := range []struct {
		name   string
		policy token.PINPolicy
		theirs pivgo.PINPolicy
		pause  time.Duration
	}{
		{"PINNever", token.PINNever, pivgo.PINPolicyNever, 0},
		{"PINOnce", token.PINOnce, pivgo.PINPolicyOnce, 0},
		{"PINNever/slow", token.PINNever, pivgo.PINPolicyNever, 5 * time.Millisecond},
		{"PINOnce/slow", token.PINOnce, pivgo.PINPolicyOnce, 5 * time.Millisecond},
	} {
		bench.card.OnAPDU(nil)
		k := bench.made(b, token.P256, token.UseSign, token.Policy{PIN: c.policy}).(token.Signer)
		slot := k.(*ecdsaKey).handle.slot
		bench.card.OnAPDU(slow(c.pause))
		b.Run(c.name+"/Token", func(b *testing.B) {
			req := tokentest.DefaultSignRequest(token.P256, []byte("message"))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Sign(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
		bench.idle(b)
		b.Run(c.name+"/piv-go", func(b *testing.B) {
			y, err := pivgo.Open(bench.reader.Name())
			if err != nil {
				b.Fatal(err)
			}
			defer y.Close()
			standard, err := k.Public().Standard()
			if err != nil {
				b.Fatal(err)
			}
			place, ok := pivgo.RetiredKeyManagementSlot(uint32(slot))
			switch byte(slot) {
			case 0x9C:
				place, ok = pivgo.SlotSignature, true
			case 0x9E:
				place, ok = pivgo.SlotCardAuthentication, true
			}
			if !ok {
				b.Fatalf("slot %v", slot)
			}
			private, err := y.PrivateKey(place, standard, pivgo.KeyAuth{PIN: testPIN, PINPolicy: c.theirs})
			if err != nil {
				b.Fatal(err)
			}
			digest := sha256.Sum256([]byte("message"))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := private.(crypto.Signer).Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// slow is a card that takes its time for a command, and ten times that to compute.
func slow(d time.Duration) pivtest.Hook {
	if d == 0 {
		return nil
	}
	return func(apdu []byte, card func([]byte) []byte) []byte {
		time.Sleep(d)
		if apdu[1] == 0x87 {
			time.Sleep(9 * d)
		}
		return card(apdu)
	}
}

// sharedBench sets up a card where libpcsclite finds it. The library reads the variable once,
// so that one process has one such daemon.
func sharedBench(b *testing.B) *bench {
	b.Helper()
	bench := newBench(b, pivtest.Config{}, Options{})
	b.Setenv("PCSCLITE_CSOCK_NAME", bench.daemon.Socket)
	return bench
}
