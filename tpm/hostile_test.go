package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// mangler stands between and spoils one whole response.
type mangler struct {
	dial dialer

	mu    sync.Mutex
	left  int                 // guarded by mu, as all below: responses until the one that is spoilt
	spoil func([]byte) []byte // nil for none
	done  bool
}

func (m *mangler) arm(after int, spoil func([]byte) []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left, m.spoil, m.done = after, spoil, false
}

// disarm reports whether a response was spoilt.
func (m *mangler) disarm() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.spoil = nil
	return m.done
}

func (m *mangler) pass(response []byte) (passed []byte, spoilt bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.spoil == nil || m.done {
		return response, false
	}
	if m.left--; m.left >= 0 {
		return response, false
	}
	m.done = true
	return m.spoil(response), true
}

func (m *mangler) open(ctx context.Context) (stream, error) {
	st, err := m.dial(ctx)
	return &mangled{stream: st, mangler: m}, err
}

type mangled struct {
	stream
	mangler *mangler
	rest    []byte
	spoilt  bool // the response to the last command
}

func (s *mangled) Write(b []byte) (int, error) {
	s.rest, s.spoilt = nil, false
	return s.stream.Write(b)
}

// Read gives the response. Who waits for more than that, because a spoilt one says that it is longer, is told that the
// time is over.
func (s *mangled) Read(b []byte) (int, error) {
	if len(s.rest) == 0 && s.spoilt {
		return 0, os.ErrDeadlineExceeded
	}
	if len(s.rest) == 0 {
		buf := make([]byte, 2*maxResponse)
		n, err := s.stream.Read(buf)
		if err != nil {
			return 0, err
		}
		s.rest, s.spoilt = s.mangler.pass(buf[:n])
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// spoils are what is done to a response.
func spoils(random *rand.Rand) []func([]byte) []byte {
	somewhere := func(b []byte) int { return min(headerLen+random.IntN(max(1, len(b)-headerLen)), len(b)-1) }
	resize := func(b []byte) []byte {
		binary.BigEndian.PutUint32(b[2:], uint32(len(b)))
		return b
	}
	fill := func(from, to int, v byte, b []byte) []byte {
		for i := from; i < min(to, len(b)); i++ {
			b[i] = v
		}
		return b
	}
	return []func([]byte) []byte{
		func(b []byte) []byte { b[random.IntN(len(b))] ^= 1 << random.IntN(8); return b },
		func(b []byte) []byte { b[somewhere(b)] ^= 1 << random.IntN(8); return b },
		func(b []byte) []byte { return resize(b[:somewhere(b)+1]) },
		func(b []byte) []byte { return resize(append(b, make([]byte, 1+random.IntN(40))...)) },
		func(b []byte) []byte { return fill(somewhere(b), len(b), 0xff, b) },
		func(b []byte) []byte { return fill(headerLen, headerLen+8, 0xff, b) }, // handles, lengths and counts
		func(b []byte) []byte { return fill(headerLen, len(b), 0, b) },
	}
}

// hostileOperations are one of each kind, on a TPM that mangler stands before. None returns a wrong result.
func hostileOperations(t *testing.T, tok *Token) map[string]func() error {
	t.Helper()
	ctx := t.Context()
	signer, agreer := generate(t, tok, token.P256, token.UseSign), generate(t, tok, token.P256, token.UseAgree)
	sealed, err := tok.Seal(ctx, token.SealRequest{Secret: []byte("secret"), PCRs: "sha256:7,23"})
	if err != nil {
		t.Fatal(err)
	}
	unseal := func(recovery []byte) error {
		got, err := tok.Unseal(ctx, token.UnsealRequest{Blob: sealed.Blob, Recovery: recovery})
		if err == nil && string(got) != "secret" {
			t.Errorf("unsealed %q", got)
		}
		return err
	}
	return map[string]func() error{
		"sign": func() error {
			k, err := tok.Open(ctx, signer)
			if err != nil {
				return err
			}
			req := tokentest.DefaultSignRequest(token.P256, []byte("message"))
			sig, err := k.(token.Signer).Sign(ctx, req)
			if err == nil && tokentest.Verify(k.Public(), req, sig) != nil {
				t.Error("a wrong signature")
			}
			return err
		},
		"agree": func() error {
			k, err := tok.Open(ctx, agreer)
			if err != nil {
				return err
			}
			p, err := k.(token.PointAgreer).AgreePoint(ctx, token.AgreeRequest{Peer: keyshare.BasePoint(keyshare.P256).Bytes()})
			if err == nil && !bytes.Equal(p, k.Public().Octets) {
				t.Error("a wrong point")
			}
			return err
		},
		"generate": func() error {
			_, err := tok.Generate(ctx, token.GenerateRequest{Algorithm: token.P384, Use: token.UseAgree})
			return err
		},
		"unseal":  func() error { return unseal(nil) },
		"recover": func() error { return unseal(sealed.Recovery) },
		"seal": func() error {
			_, err := tok.Seal(ctx, token.SealRequest{Secret: []byte("other"), PCRs: "sha256:0,1,2,3,4,5,6,7,8,9,10"})
			return err
		},
		"attest": func() error {
			_, err := tok.Attest(ctx, token.AttestRequest{Key: signer, Qualifying: make([]byte, 32), PCRs: "sha256:7"})
			return err
		},
		"identify": func() error { _, err := tok.AttestIdentity(ctx); return err },
		"count":    func() error { _, err := tok.IncrementCounter(ctx); return err },
		"diagnose": func() error { tok.Diagnose(ctx); return nil },
		"connect": func() error {
			lose := true
			_, err := do(ctx, tok, "connect", func(*device) (struct{}, error) {
				if lose {
					lose = false
					return struct{}{}, errStale
				}
				return struct{}{}, nil
			})
			return err
		},
	}
}

// TestHostileLink has each response in every kind of operation spoilt on its way. What comes of that is
// an error or a right result, soon, and nothing has to be restarted: signing works again after at most one failure.
func TestHostileLink(t *testing.T) {
	t.Parallel()
	dial, err := parseDevice(tpmtest.NewCA(t).Start(t).Device())
	if err != nil {
		t.Fatal(err)
	}
	m := &mangler{dial: dial}
	tok := open(t, Options{dial: m.open, StateDir: t.TempDir()})
	operations := hostileOperations(t, tok)
	kinds := spoils(rand.New(rand.NewPCG(1, 2)))
	for _, name := range slices.Sorted(maps.Keys(operations)) {
		for round := range 2 {
			for after := 0; ; after++ {
				kind := (after + 3*round) % len(kinds)
				m.arm(after, kinds[kind])
				err := operations[name]()
				if hit := m.disarm(); !hit {
					if err != nil || after == 0 {
						t.Errorf("%s, after %d responses: %v", name, after, err)
					}
					break
				}
				if operations["sign"]() == nil {
					continue
				}
				if err := operations["sign"](); err != nil {
					t.Fatalf("%s, kind %d in response %d: no signature any more: %v", name, kind, after, err)
				}
			}
		}
	}
}
