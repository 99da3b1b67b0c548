package hsm

import (
	"context"
	"testing"

	"github.com/mesh-agent/mesh-agent/agent/agenttest"
	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// BenchmarkAgent compares the same signatures, in one run: Raw, C_Sign on a token object in this
// process with eight sessions; Socket, through the agent's socket with eight connections, of
// clients in this process, whose share of the processors is in the figure own-cpu-µs/op; Client is what
// such a client takes up alone, with an agent that refuses at once.
func BenchmarkAgent(b *testing.B) {
	s := hsmtest.SoftHSM(b)
	tok := openUnlocked(b, newTestModule(b, s), s)
	socket := agenttest.Serve(b, tok)
	clients := make([]*client.Client, 8)
	for i := range clients {
		c, err := client.Dial(context.Background(), socket)
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		clients[i] = c
	}
	for _, a := range []token.Algorithm{token.P256, token.Ed25519} {
		generated, err := clients[0].KeyGenerate(context.Background(), mesh.KeyGenerateRequest{Home: mesh.Home{Token: tok.Info().Name}, Algorithm: string(a), Use: "sign"})
		if err != nil {
			b.Fatal(err)
		}
		mode := map[token.Algorithm]string{token.Ed25519: "pure"}[a]
		raw := signKeyFor(b, tok, a).(*signKey)
		b.Run(string(a)+"/Raw", func(b *testing.B) { rawSign(b, s, raw, 8) })
		b.Run(string(a)+"/Socket", func(b *testing.B) {
			benchClients(b, clients, func(c *client.Client) error {
				_, err := c.Sign(context.Background(), generated.Key.Udf, []byte("message"), mode)
				return err
			})
		})
		b.Run(string(a)+"/Client", func(b *testing.B) {
			benchClients(b, clients, func(c *client.Client) error {
				c.Sign(context.Background(), "MAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA", []byte("message"), mode)
				return nil
			})
		})
	}
}

func benchClients(b *testing.B, clients []*client.Client, f func(*client.Client) error) {
	b.Helper()
	pool := make(chan *client.Client, len(clients))
	for _, c := range clients {
		pool <- c
	}
	parallel(b, len(clients), func() error {
		c := <-pool
		defer func() { pool <- c }()
		return f(c)
	})
}
