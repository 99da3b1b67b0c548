package agent

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// BenchmarkSign compares a signature alone with the same through the request path and
// through the socket.
func BenchmarkSign(b *testing.B) {
	a := newAgent(b, Limits{}, newFake("t"))
	key := generate(b, a, "t", token.Ed25519, token.UseSign)
	message := signMessage(key.Udf)
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		req := token.SignRequest{Scheme: token.SchemeMeshEdDSA, Message: []byte{0, 0, 0}}
		for b.Loop() {
			if _, err := key.Sign(b.Context(), nil, req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("request", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if reply := a.exchange(b.Context(), meshAndSSH, message); len(reply) < 100 {
				b.Fatalf("%q", reply)
			}
		}
	})
	b.Run("socket", func(b *testing.B) {
		c := dial(b, serve(b, a).mesh)
		b.ReportAllocs()
		for b.Loop() {
			roundTrip(b, c, message)
		}
	})
	for _, parallel := range []int{1, runtime.GOMAXPROCS(0)} {
		b.Run(fmt.Sprintf("batch of 64, %d at once", parallel), func(b *testing.B) { benchmarkBatch(b, parallel) })
	}
}

func benchmarkBatch(b *testing.B, parallel int) {
	a := newAgent(b, Limits{}, tokentest.NewFake(tokentest.FakeOptions{Name: "t", Parallel: parallel}))
	key := generate(b, a, "t", token.Ed25519, token.UseSign)
	one := `{"CryptographicOperationSign":{"KeyId":"` + key.Udf + `","Data":"AAAA"}}`
	batch := operateMessage(`{"OperateRequest":{"Operations":[` + one + strings.Repeat(","+one, 63) + `]}}`)
	c := dial(b, serve(b, a).mesh)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip(b, c, batch)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(64*b.N), "ns/signature")
}

// BenchmarkAgree compares an X448 agreement alone with the same through the socket.
func BenchmarkAgree(b *testing.B) {
	a := newAgent(b, Limits{}, newFake("t"))
	key := generate(b, a, "t", token.X448, token.UseAgree)
	peer := keyshare.BasePoint(keyshare.X448)
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := key.AgreePoint(b.Context(), nil, peer, nil, token.Auth{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("socket", func(b *testing.B) {
		c := dial(b, serve(b, a).mesh)
		message := operateMessage(`{"OperateRequest":{"Operations":[{"CryptographicOperationKeyAgreement":{"KeyId":"` +
			key.Udf + `","PublicKey":` + ecdh("X448", peer.Bytes()) + `}}]}}`)
		b.ReportAllocs()
		for b.Loop() {
			roundTrip(b, c, message)
		}
	})
}

// BenchmarkList is the cheapest request: what frames and the socket cost.
func BenchmarkList(b *testing.B) {
	a := newAgent(b, Limits{}, newFake("t"))
	c := dial(b, serve(b, a).ssh)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip(b, c, listMessage)
	}
}

// BenchmarkSSHSign signs as ssh does at login.
func BenchmarkSSHSign(b *testing.B) {
	a := newAgent(b, Limits{}, newFake("t"))
	key := generate(b, a, "t", token.Ed25519, token.UseSSH)
	blob, err := sshBlob(key.Public)
	if err != nil {
		b.Fatal(err)
	}
	c := dial(b, serve(b, a).ssh)
	message := signRequestMessage(blob, make([]byte, 300), 0)
	b.ReportAllocs()
	for b.Loop() {
		roundTrip(b, c, message)
	}
}

func roundTrip(b *testing.B, c net.Conn, message []byte) {
	if _, err := c.Write(frameOf(message)); err != nil {
		b.Fatal(err)
	}
	if _, err := readMessage(c); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkGate is the cost of a token's gate when nobody waits.
func BenchmarkGate(b *testing.B) {
	g := newGate(1, 1)
	b.ReportAllocs()
	for b.Loop() {
		leave, err := g.enter(b.Context(), b)
		if err != nil {
			b.Fatal(err)
		}
		leave()
	}
}
