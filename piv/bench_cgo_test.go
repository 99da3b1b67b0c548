//go:build cgo

package piv

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"

	pivgo "github.com/go-piv/piv-go/v2/piv"
	"github.com/mesh-agent/mesh-agent/agent/agenttest"
	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// BenchmarkSideBySide signs by one key on the virtual card: with piv-go, which holds the card all the
// time; with this package, which shares it; and as a client of an agent, through its socket. The
// virtual card answers at once; a real one takes milliseconds for each command, as it does in
// the second half.
func BenchmarkSideBySide(b *testing.B) {
	bench := sharedBench(b)
	conn, err := client.Dial(b.Context(), agenttest.Serve(b, bench.token))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
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
		udf, k := bench.served(b, conn, c.policy)
		bench.card.OnAPDU(slow(c.pause))
		b.Run(c.name+"/piv-go", func(b *testing.B) {
			bench.idle(b)
			bench.signRaw(b, k, c.theirs)
		})
		b.Run(c.name+"/Token", func(b *testing.B) {
			req := tokentest.DefaultSignRequest(token.P256, []byte("message"))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.Sign(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/Socket", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Sign(b.Context(), udf, []byte("message"), ""); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// served makes a key by way of the agent, and returns its UDF and what this package has of it.
func (b *bench) served(tb testing.TB, conn *client.Client, p token.PINPolicy) (string, *ecdsaKey) {
	tb.Helper()
	pin := map[token.PINPolicy]string{token.PINNever: "none", token.PINOnce: "once"}[p]
	slot := map[token.PINPolicy]string{token.PINNever: "9e", token.PINOnce: "9c"}[p]
	made, err := conn.KeyGenerate(tb.Context(), mesh.KeyGenerateRequest{
		Home:      mesh.Home{Token: b.token.Info().Name, PIN: pin, Slot: slot, OverwriteSlot: true},
		Algorithm: string(token.P256), Use: string(token.UseSign),
	})
	if err != nil {
		tb.Fatal(err)
	}
	adopted, err := b.token.Adopt(tb.Context(), token.AdoptRequest{Slot: slot, Use: token.UseSign})
	if err != nil {
		tb.Fatal(err)
	}
	k, err := b.token.Open(tb.Context(), token.OpenRequest{Handle: adopted.Handle, Public: adopted.Public, Use: token.UseSign})
	if err != nil {
		tb.Fatal(err)
	}
	return made.Key.Udf, k.(*ecdsaKey)
}

// signRaw signs with piv-go.
func (b *bench) signRaw(tb *testing.B, k *ecdsaKey, p pivgo.PINPolicy) {
	tb.Helper()
	card, err := pivgo.Open(b.reader.Name())
	if err != nil {
		tb.Fatal(err)
	}
	defer card.Close()
	standard, err := k.Public().Standard()
	if err != nil {
		tb.Fatal(err)
	}
	slot := map[applet.Slot]pivgo.Slot{
		applet.SlotSignature: pivgo.SlotSignature, applet.SlotCard: pivgo.SlotCardAuthentication,
	}[k.handle.slot]
	private, err := card.PrivateKey(slot, standard, pivgo.KeyAuth{PIN: testPIN, PINPolicy: p})
	if err != nil {
		tb.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	tb.ReportAllocs()
	for tb.Loop() {
		if _, err := private.(crypto.Signer).Sign(rand.Reader, digest[:], crypto.SHA256); err != nil {
			tb.Fatal(err)
		}
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
