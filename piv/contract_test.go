package piv

import (
	"sync"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

const (
	testPIN = "846213"
	testPUK = "19283746"
)

// kept has a token keep the card, as if no time passed between its operations.
func kept() Options { return Options{Linger: time.Hour, hold: time.Hour} }

// bench is a card in a reader of a daemon of its own, and the token of the card.
type bench struct {
	card   *pivtest.Card
	daemon *pivtest.Daemon
	reader *pivtest.Reader
	token  *Token
	states states

	restarted chan struct{} // closed when pcscd has restarted; nil if it does not
}

// states tells who waits that a token has another state.
type states struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change; nil if nobody waits
}

func (s *states) note(token.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

func (s *states) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// patience is how long a test waits for what must come, so that it does not hang if that never does.
const patience = time.Minute

// await waits until the token is in a state, which its watcher finds out.
func (b *bench) await(tb testing.TB, want token.State) {
	tb.Helper()
	late := time.After(patience)
	for {
		changed := b.states.next()
		if b.token.Info().State == want {
			return
		}
		select {
		case <-changed:
		case <-late:
			tb.Fatalf("state is %q, want %q", b.token.Info().State, want)
		}
	}
}

// newBench sets up a new card; its token is unlocked.
func newBench(tb testing.TB, config pivtest.Config, o Options) *bench {
	tb.Helper()
	b := &bench{card: pivtest.NewCard(config), daemon: pivtest.StartDaemon(tb)}
	b.reader = b.daemon.AddReader("Yubico YubiKey OTP+FIDO+CCID 00 00", b.card)
	b.token = b.open(tb, o)
	if err := b.token.Setup(tb.Context(), SetupRequest{PIN: []byte(testPIN), PUK: []byte(testPUK)}); err != nil {
		tb.Fatal(err)
	}
	return b
}

// open opens another token of the card.
func (b *bench) open(tb testing.TB, o Options) *Token {
	tb.Helper()
	o.Serial, o.Socket, o.State = b.card.Serial(), b.daemon.Socket, b.states.note
	t, err := Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	return t
}

func (b *bench) unlock(tb testing.TB) {
	tb.Helper()
	if err := b.token.Unlock(tb.Context(), []byte(testPIN)); err != nil {
		tb.Fatal(err)
	}
}

// TestContract runs the contract suite for each algorithm. A card has not slots enough for all
// at once.
func TestContract(t *testing.T) {
	t.Parallel()
	for name, algorithms := range map[string][]token.Algorithm{
		"P256":    {token.P256},
		"P384":    {token.P384},
		"25519":   {token.X25519, token.Ed25519},
		"RSA":     {token.RSA2048},
		"longRSA": {token.RSA3072, token.RSA4096},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, pivtest.Config{}, Options{only: algorithms})
			if err := b.token.Close(); err != nil {
				t.Fatal(err)
			}
			tokentest.Run(t, tokentest.Harness{
				Open: func(t *testing.T) token.Token {
					b.token = b.open(t, Options{only: algorithms})
					b.unlock(t)
					return b.token
				},
				Supports: func(a token.Algorithm, u token.Use) bool {
					return u.Signs() || u.Agrees() && a != token.Ed25519
				},
				Corrupt: func(*testing.T) func() {
					b.card.OnAPDU(changeResults)
					return func() { b.card.OnAPDU(nil) }
				},
				OnlySeeds:  func(a token.Algorithm) bool { return a == token.Ed25519 },
				MaxMessage: func(a token.Algorithm) int { return map[token.Algorithm]int{token.Ed25519: maxMessage}[a] },
			})
		})
	}
}

// changeResults has the card return wrong results.
func changeResults(apdu []byte, card func([]byte) []byte) []byte {
	answer := card(apdu)
	if apdu[1] == 0x87 && len(answer) > 10 {
		answer[len(answer)-3] ^= 1
	}
	return answer
}
