package piv

import (
	"testing"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// made returns a key of the card.
func (b *bench) made(tb testing.TB, a token.Algorithm, u token.Use, p token.Policy) token.Key {
	tb.Helper()
	c, err := b.token.Generate(tb.Context(), token.GenerateRequest{Algorithm: a, Use: u, Policy: p})
	if err != nil {
		tb.Fatal(err)
	}
	k, err := b.token.Open(tb.Context(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: u})
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func BenchmarkSign(b *testing.B) {
	bench := newBench(b, pivtest.Config{}, Options{})
	for _, c := range []struct {
		name      string
		algorithm token.Algorithm
		policy    token.PINPolicy
	}{
		{"P256", token.P256, token.PINOnce},
		{"P256/PINAlways", token.P256, token.PINAlways},
		{"P384", token.P384, token.PINOnce},
		{"Ed25519", token.Ed25519, token.PINOnce},
		{"RSA2048", token.RSA2048, token.PINOnce},
	} {
		b.Run(c.name, func(b *testing.B) {
			k := bench.made(b, c.algorithm, token.UseSign, token.Policy{PIN: c.policy}).(token.Signer)
			req := tokentest.DefaultSignRequest(c.algorithm, []byte("message"))
			req.Auth.PIN = []byte(testPIN)
			b.ReportAllocs()
			before, n := bench.card.Commands(), 0
			for b.Loop() {
				n++
				if _, err := k.Sign(b.Context(), req); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(bench.card.Commands()-before)/float64(n), "APDUs/op")
		})
	}
}

func BenchmarkAgreePoint(b *testing.B) {
	bench := newBench(b, pivtest.Config{}, Options{})
	for _, a := range []token.Algorithm{token.P256, token.P384, token.X25519} {
		b.Run(string(a), func(b *testing.B) {
			k := bench.made(b, a, token.UseAgree, token.Policy{}).(token.PointAgreer)
			peer := bench.made(b, a, token.UseAgree, token.Policy{}).Public().Octets
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.AgreePoint(b.Context(), token.AgreeRequest{Peer: peer}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	bench := newBench(b, pivtest.Config{}, Options{})
	b.ReportAllocs()
	for b.Loop() {
		t, err := Open(b.Context(), Options{Serial: bench.card.Serial(), Socket: bench.daemon.Socket})
		if err != nil {
			b.Fatal(err)
		}
		if err := t.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
