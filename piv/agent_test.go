package piv

import (
	"context"
	"errors"
	"testing"

	"github.com/mesh-agent/mesh-agent/agent/agenttest"
	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// dial connects to an agent until the test ends.
func dial(t *testing.T, socket string) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// state wants the agent to say this of its only token.
func state(t *testing.T, c *client.Client, s token.State, touches int) {
	t.Helper()
	status, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info := status.Tokens[0]; info.State != string(s) || info.Touches != touches {
		t.Errorf("state is %q with %d touches, want %q with %d", info.State, info.Touches, s, touches)
	}
}

// TestTouchThroughSocket has a client wait for a touch. Another one sees that; when the first hangs
// up, the wait ends, and the card is free.
func TestTouchThroughSocket(t *testing.T) {
	t.Parallel()
	ended := make(chan struct{}, 8) // a wait
	b := newBench(t, pivtest.Config{}, Options{Touch: func(_ context.Context, e TouchEvent) {
		if !e.Waiting {
			ended <- struct{}{}
		}
	}})
	socket := agenttest.Serve(t, b.token)
	asking, watching := dial(t, socket), dial(t, socket)
	made, err := asking.KeyGenerate(t.Context(), mesh.KeyGenerateRequest{
		Home:      mesh.Home{Token: b.token.Info().Name, PIN: "none", Touch: "always"},
		Algorithm: "P256", Use: "agree",
	})
	if err != nil {
		t.Fatal(err)
	}
	state(t, watching, token.StateReady, 0)
	b.card.SetTouch(pivtest.TouchAwaited)
	peer := mesh.PublicParameters{PublicKeyECDH: made.Key.PublicKey.PublicKeyECDH}

	agree := func(c *client.Client) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := c.Agree(context.Background(), made.Key.Udf, peer, nil)
			done <- err
		}()
		return done
	}
	done := agree(asking)
	for touches := 2; touches > 0; touches-- {
		<-b.card.TouchWaits()
		state(t, watching, token.StateTouch, touches)
		b.card.Answer(true)
		<-ended
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	state(t, watching, token.StateReady, 0)

	done = agree(asking)
	<-b.card.TouchWaits()
	state(t, watching, token.StateTouch, 2)
	if err := asking.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Error("agreed without a touch")
	}
	// The card's own wait was abandoned with the connection: the PIN may be lost, the wait is over.
	<-ended
	if s := b.token.Info().State; s == token.StateTouch {
		t.Error("still waiting for touch")
	}
	b.card.SetTouch(pivtest.TouchGiven)
	b.card.Answer(false) // the card's own time limit
	if err := <-agree(watching); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestPINThroughSocket uses keys that want the PIN for each operation.
func TestPINThroughSocket(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	c := dial(t, agenttest.Serve(t, b.token))
	make := func(use string) *mesh.KeyResponse {
		t.Helper()
		made, err := c.KeyGenerate(t.Context(), mesh.KeyGenerateRequest{
			Home: mesh.Home{Token: b.token.Info().Name, PIN: "always"}, Algorithm: "P256", Use: use,
		})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	signs, agrees := make("sign").Key, make("agree").Key
	for _, test := range []struct {
		pin  string
		want int
	}{{"", 401}, {testPIN, mesh.StatusOK}, {"", 401}, {"000000", 401}, {testPIN, mesh.StatusOK}} {
		_, err := c.SignOperation(t.Context(), mesh.OperationSign{KeyId: signs.Udf, PIN: []byte(test.pin)})
		wantStatus(t, "sign with "+test.pin, err, test.want)
		if test.pin == "000000" {
			continue // a try is enough
		}
		peer := mesh.PublicParameters{PublicKeyECDH: agrees.PublicKey.PublicKeyECDH}
		_, err = c.AgreeOperation(t.Context(), mesh.OperationKeyAgreement{KeyId: agrees.Udf, PublicKey: peer, PIN: []byte(test.pin)})
		wantStatus(t, "agree with "+test.pin, err, test.want)
	}
}

func wantStatus(t *testing.T, what string, err error, want int) {
	t.Helper()
	got := mesh.StatusOK
	var status *client.StatusError
	if errors.As(err, &status) {
		got = status.Status
	}
	if got != want || err != nil && status == nil {
		t.Errorf("%s: %v, want status %d", what, err, want)
	}
}
