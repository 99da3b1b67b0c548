package piv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestFailingCard opens the token a thousand times against a card that fails, while another
// client uses a good one, and another process the failing one: it is never kept out. No
// connection and no card handle is left behind.
func TestFailingCard(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{PIN: token.PINNever})
	bad := pivtest.NewCard(pivtest.Config{Serial: 99})
	bad.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
		switch rand.N(3) {
		case 0:
			return nil // mute
		case 1:
			return []byte{0x6A, 0x82} // no PIV
		}
		return card(apdu)
	})
	reader := b.daemon.AddReader("Failing Yubikey 01 00", bad)
	stop, done := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := sign(t.Context(), k, token.Auth{}); err != nil {
				done <- err
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	tool := func() (string, error) {
		c := exec.Command("yubico-piv-tool", "--verbose=1", "-r", "Failing", "-a", "status")
		c.Env = []string{b.daemon.Env(), "PATH=" + os.Getenv("PATH")}
		out, err := c.CombinedOutput()
		return string(out), err
	}
	ended, process := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(process)
		for {
			select {
			case <-ended:
				return
			default:
			}
			out, err := tool()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) || strings.Contains(out, "8010000b") {
				process <- fmt.Errorf("%w: %s", err, out)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	for range 1000 {
		o := Options{Serial: 77, Socket: b.daemon.Socket}
		x, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if s := x.Info().State; s == token.StateReady || s == token.StateLocked {
			t.Fatalf("state %q of a card that is not there", s)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("the other user: %v", err)
	}
	close(ended)
	if err := <-process; err != nil {
		t.Errorf("the other process: %v", err)
	}
	bad.OnAPDU(nil)
	if out, err := tool(); err != nil {
		t.Errorf("the other process afterwards: %v\n%s", err, out)
	}
	b.idle(t)
	if !reader.AwaitFree(patience) || !b.daemon.AwaitClients(2, patience) {
		t.Errorf("%d handles and %d connections are left", reader.Handles(), b.daemon.Clients())
	}
}

// TestRoundTrips counts what an operation costs while nobody else uses the card: one transaction and
// as many commands as the card must compute; a signature takes one round trip to pcscd.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, kept())
	k, created := b.signer(t, token.Policy{})
	agree := b.made(t, token.P256, token.UseAgree, token.Policy{}).(token.PointAgreer)
	for _, c := range []struct {
		name string
		use  func() error
		want []pivtest.Command
	}{
		{"sign", func() error { return sign(t.Context(), k, token.Auth{}) },
			[]pivtest.Command{pivtest.CommandBegin, pivtest.CommandTransmit, pivtest.CommandEnd}},
		{"agree", func() error {
			_, err := agree.AgreePoint(t.Context(), token.AgreeRequest{Peer: created.Public.Octets})
			return err
		}, []pivtest.Command{pivtest.CommandBegin, pivtest.CommandTransmit, pivtest.CommandTransmit, pivtest.CommandEnd}},
	} {
		if err := c.use(); err != nil { // connects, or ends what went before
			t.Fatal(err)
		}
		b.token.quiet()
		var mu sync.Mutex
		var got []pivtest.Command
		b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, c.Command)
			return pivtest.Success
		})
		if err := c.use(); err != nil {
			t.Fatal(err)
		}
		b.token.quiet()
		b.daemon.Inject(nil)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: requests to pcscd are %02x, want %02x", c.name, got, c.want)
		}
	}
}

// quiet waits until the worker has done what follows a request.
func (t *Token) quiet() {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	r := &request{ctx: over, done: make(chan error, 1)} // whose time is over, so that nothing is done for it
	t.requests <- r
	<-r.done
}

// otherApplet is what a program that uses the card for something else does: it selects another
// application in a transaction.
func otherApplet(ctx context.Context, c *pcsc.Client, reader string) error {
	card, err := c.Connect(ctx, reader)
	if err != nil {
		return err
	}
	if err := card.Begin(ctx); err != nil {
		return err
	}
	selectOTP := append([]byte{0, 0xA4, 4, 0, 8}, 0xA0, 0, 0, 5, 0x27, 0x20, 1, 1)
	if _, err := card.Transmit(ctx, selectOTP); err != nil {
		return err
	}
	if err := card.End(ctx, pcsc.LeaveCard); err != nil {
		return err
	}
	return card.Disconnect(ctx, pcsc.LeaveCard)
}

// TestOtherApplication signs after another program has left its own application selected, which the
// token finds out by a command that fails. The PIN is given to no other application.
func TestOtherApplication(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, kept())
	k, _ := b.signer(t, token.Policy{})
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Fatal(err)
	}
	client, err := pcsc.Dial(t.Context(), b.daemon.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := otherApplet(t.Context(), client, b.reader.Name()); err != nil {
		t.Fatal(err)
	}
	piv := false
	var sent []byte
	b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
		sent = append(sent, apdu[1])
		if apdu[1] == 0xA4 {
			piv = bytes.HasPrefix(apdu[5:], []byte{0xA0, 0, 0, 3, 8})
		}
		if apdu[1] == insVerify && !piv {
			t.Error("PIN given to another application")
		}
		return card(apdu)
	})
	if err := sign(t.Context(), k, token.Auth{}); err != nil {
		t.Error(err)
	}
	b.card.OnAPDU(nil)
	if !bytes.Contains(sent, []byte{0x87, 0xA4}) || !bytes.Contains(sent, []byte{insVerify}) {
		t.Errorf("commands sent: %x", sent)
	}
}

// TestSoak signs while another program selects its own application on the same card,
// which loses the PIN each time.
func TestSoak(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{})
	client, err := pcsc.Dial(t.Context(), b.daemon.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	stop, done := make(chan struct{}), make(chan error, 1)
	var rounds atomic.Int64
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := otherApplet(t.Context(), client, b.reader.Name()); err != nil {
				done <- err
				return
			}
			rounds.Add(1)
		}
	}()
	for n := 0; (n < 300 || rounds.Load() < 30) && len(done) == 0; n++ { // neither keeps the other out
		if err := sign(t.Context(), k, token.Auth{}); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("the other program: %v", err)
	}
	b.idle(t)
}

// TestOtherProcess signs while yubico-piv-tool, another process with the C library, reads the
// card again and again.
func TestOtherProcess(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	k, _ := b.signer(t, token.Policy{})
	stop, done := make(chan struct{}), make(chan error, 1)
	var signatures atomic.Int64
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := sign(t.Context(), k, token.Auth{}); err != nil {
				done <- err
				return
			}
			signatures.Add(1)
		}
	}()
	for n := 0; (n < 10 || signatures.Load() < 10) && len(done) == 0; n++ { // neither keeps the other out
		c := exec.CommandContext(t.Context(), "yubico-piv-tool", "-a", "status")
		c.Env = []string{b.daemon.Env(), "PATH=" + os.Getenv("PATH")}
		if out, err := c.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PIN tries left")) {
			t.Errorf("the other process: %v\n%s", err, out)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.idle(t)
}

// TestMutatedResponses uses the card while a part of its answers is random or changed: ten thousand of
// them end in an error or a right result, never in a crash, and never in silence.
func TestMutatedResponses(t *testing.T) {
	t.Parallel()
	const mutations = 10_000
	b := newBench(t, pivtest.Config{}, Options{Timeout: 5 * time.Second})
	k, created := b.signer(t, token.Policy{})
	agree, err := b.token.Generate(t.Context(), token.GenerateRequest{Algorithm: token.P256, Use: token.UseAgree})
	if err != nil {
		t.Fatal(err)
	}
	agreement := func() ([]byte, error) {
		key, err := b.token.Open(t.Context(), token.OpenRequest{Handle: agree.Handle, Public: agree.Public, Use: token.UseAgree})
		if err != nil {
			return nil, err
		}
		return key.(token.PointAgreer).AgreePoint(t.Context(), token.AgreeRequest{Peer: created.Public.Octets, Auth: token.Auth{PIN: []byte(testPIN)}})
	}
	point, err := agreement()
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("sealed before")
	sealed, err := b.token.Seal(t.Context(), token.SealRequest{Secret: secret, PIN: token.PINOnce})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex // guards rnd: an abandoned command may still run
	var count atomic.Int64
	b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
		if apdu[1] == insVerify && len(apdu) > 5 {
			return card(apdu) // spare the tries
		}
		answer := card(apdu)
		mu.Lock()
		defer mu.Unlock()
		if rnd.IntN(2) > 0 {
			return answer
		}
		count.Add(1)
		return mutate(rnd, answer)
	})
	ctx := t.Context()
	open := token.OpenRequest{Handle: created.Handle, Public: created.Public, Use: token.UseSign}
	for i := 0; count.Load() < mutations; i++ {
		switch i % 8 {
		case 0:
			_ = sign(ctx, k, token.Auth{PIN: []byte(testPIN)})
		case 1:
			if got, err := b.token.Open(ctx, open); err == nil && !got.Public().Equal(created.Public) {
				t.Fatal("another key was opened")
			}
		case 2:
			if got, err := agreement(); err == nil && !bytes.Equal(got, point) {
				t.Fatal("a wrong agreement was released")
			}
		case 3:
			_, _ = b.token.Attest(ctx, token.AttestRequest{Key: open, Qualifying: make([]byte, 32)})
		case 4:
			_ = b.token.Diagnose(ctx)
		case 5:
			got, err := b.token.Unseal(ctx, token.UnsealRequest{Blob: sealed.Blob, Auth: token.Auth{PIN: []byte(testPIN)}})
			if err == nil && !bytes.Equal(got, secret) {
				t.Fatal("a wrong secret was unsealed")
			}
		case 6:
			_ = b.token.Unlock(ctx, []byte(testPIN))
		case 7:
			if c, err := b.token.Adopt(ctx, token.AdoptRequest{Slot: "9c", Use: token.UseSign}); err == nil && !c.Public.Equal(created.Public) {
				_, err := b.token.Open(ctx, token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: token.UseSign})
				if err == nil {
					t.Fatal("a key that is not there was opened")
				}
			}
		}
	}
	b.card.OnAPDU(nil)
	if err := b.token.Unlock(ctx, []byte(testPIN)); err != nil {
		t.Errorf("unlock afterwards: %v", err)
	}
	if err := sign(ctx, k, token.Auth{PIN: []byte(testPIN)}); err != nil {
		t.Errorf("sign afterwards: %v", err)
	}
}

// mutate changes an answer: other bits, shorter, longer, noise, another status.
func mutate(rnd *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	noise := func(n int) []byte {
		out := make([]byte, n)
		for i := range out {
			out[i] = byte(rnd.Uint32())
		}
		return out
	}
	if len(b) == 0 {
		return noise(rnd.IntN(258))
	}
	switch rnd.IntN(6) {
	case 0:
		b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
	case 1:
		b = b[:rnd.IntN(len(b))]
	case 2:
		b = append(b[:len(b)-min(2, len(b))], append(noise(rnd.IntN(20)), 0x90, 0)...)
	case 3:
		b = append(noise(rnd.IntN(256)), 0x90, 0)
	case 4:
		b = append(b[:len(b)-min(2, len(b))], 0x61, byte(rnd.Uint32()))
	case 5:
		b = append(b[:len(b)-min(2, len(b))], noise(2)...)
	}
	return b[:min(len(b), 258)]
}
