//go:build cgo

package piv

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"slices"
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

// rounds is how many signatures each way makes in its turn, and a benchmark's iteration of each way.
const rounds = 50

// BenchmarkSideBySide signs by one key on the virtual card in three ways by turns: with piv-go, which holds the
// card all the time; with this package, which shares it and verifies what the card computes; and as a client of an
// agent, through its socket. It reports the median of each way's turns, in microseconds for a
// signature, how the others compare with piv-go, and how many commands the card got for a signature. The
// virtual card answers at once; a real one takes milliseconds for each command and
// tens of them to compute, as it does in the second half.
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
		turn   int
	}{
		{"PINNever", token.PINNever, pivgo.PINPolicyNever, 0, rounds},
		{"PINOnce", token.PINOnce, pivgo.PINPolicyOnce, 0, rounds},
		{"PINNever/slow", token.PINNever, pivgo.PINPolicyNever, 5 * time.Millisecond, 5},
		{"PINOnce/slow", token.PINOnce, pivgo.PINPolicyOnce, 5 * time.Millisecond, 5},
	} {
		bench.card.OnAPDU(nil)
		udf, k := bench.served(b, conn, c.policy)
		bench.card.OnAPDU(slow(c.pause))
		req := tokentest.DefaultSignRequest(token.P256, []byte("message"))
		b.Run(c.name, func(b *testing.B) {
			raw, own, socket := &way{name: "piv-go"}, &way{name: "Token"}, &way{name: "socket"}
			for b.Loop() {
				bench.idle(b)
				sign, closeCard := bench.raw(b, k, c.theirs)
				raw.turn(b, bench.card, c.turn, sign)
				closeCard()
				own.turn(b, bench.card, c.turn, func() error {
					_, err := k.Sign(b.Context(), req)
					return err
				})
				socket.turn(b, bench.card, c.turn, func() error {
					_, err := conn.Sign(b.Context(), udf, []byte("message"), "")
					return err
				})
			}
			b.ReportMetric(0, "ns/op")
			for _, w := range []*way{raw, own, socket} {
				b.ReportMetric(float64(w.median().Nanoseconds())/1000, w.name+"-µs")
				b.ReportMetric(float64(w.commands)/float64(w.signatures), w.name+"-APDUs")
				if w != raw {
					b.ReportMetric(float64(w.median())/float64(raw.median()), w.name+"/piv-go")
				}
			}
		})
	}
}

// way is a way to sign.
type way struct {
	name                 string
	turns                []time.Duration // for a signature
	signatures, commands int
}

// turn signs n times, after once that does not count: it connects.
func (w *way) turn(b *testing.B, card *pivtest.Card, n int, sign func() error) {
	b.Helper()
	if err := sign(); err != nil {
		b.Fatal(err)
	}
	before, start := card.Commands(), time.Now()
	for range n {
		if err := sign(); err != nil {
			b.Fatal(err)
		}
	}
	w.turns = append(w.turns, time.Since(start)/time.Duration(n))
	w.signatures += n
	w.commands += card.Commands() - before
}

func (w *way) median() time.Duration {
	slices.Sort(w.turns)
	return w.turns[len(w.turns)/2]
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

// raw opens the card with piv-go.
func (b *bench) raw(tb testing.TB, k *ecdsaKey, p pivgo.PINPolicy) (sign func() error, closeCard func() error) {
	tb.Helper()
	card, err := pivgo.Open(b.reader.Name())
	if err != nil {
		tb.Fatal(err)
	}
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
	return func() error {
		_, err := private.(crypto.Signer).Sign(rand.Reader, digest[:], crypto.SHA256)
		return err
	}, card.Close
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
