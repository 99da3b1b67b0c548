package hsm

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// signKeyFor generates and opens a key that signs.
func signKeyFor(t testing.TB, tok *Token, a token.Algorithm) token.Signer {
	return openFor(t, tok, a, token.UseSign).(token.Signer)
}

func openFor(t testing.TB, tok *Token, a token.Algorithm, u token.Use) token.Key {
	t.Helper()
	c, err := tok.Generate(context.Background(), token.GenerateRequest{Algorithm: a, Use: u})
	if err != nil {
		t.Fatal(err)
	}
	k, err := tok.Open(context.Background(), token.OpenRequest{Handle: c.Handle, Public: c.Public, Use: u})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// cpuTime is what this process and its helpers have used.
func cpuTime() (own, helpers time.Duration) {
	lists, _ := filepath.Glob("/proc/self/task/*/children") // by the thread that started them
	for _, name := range lists {
		list, _ := os.ReadFile(name)
		for _, pid := range strings.Fields(string(list)) {
			helpers += cpuTimeOf(pid)
		}
	}
	return cpuTimeOf("self"), helpers
}

func cpuTimeOf(pid string) time.Duration {
	stat, _ := os.ReadFile("/proc/" + pid + "/stat")
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // Linux counts in hundredths of a second
}

// parallel runs f b.N times on n goroutines.
func parallel(b *testing.B, n int, f func() error) {
	b.Helper()
	var wg sync.WaitGroup
	work := make(chan struct{}, b.N)
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	b.ReportAllocs()
	ownBefore, helpersBefore := cpuTime()
	b.ResetTimer()
	for range n {
		wg.Go(func() {
			for range work {
				if err := f(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	own, helpers := cpuTime()
	b.ReportMetric(float64((own-ownBefore).Microseconds())/float64(b.N), "own-cpu-µs/op")
	b.ReportMetric(float64((helpers-helpersBefore).Microseconds())/float64(b.N), "helper-cpu-µs/op")
}

// BenchmarkSign compares C_Sign on a token object by eight goroutines: Raw, with one session each,
// in this process; Helper, through the helper process, verified.
func BenchmarkSign(b *testing.B) {
	s := hsmtest.SoftHSM(b)
	tok := openUnlocked(b, newTestModule(b, s), s)
	for _, a := range []token.Algorithm{token.P256, token.Ed25519, token.RSA2048} {
		k := signKeyFor(b, tok, a)
		for _, n := range []int{1, 2, 4, 8} {
			b.Run(string(a)+"/Raw-"+string('0'+rune(n)), func(b *testing.B) { rawSign(b, s, k.(*signKey), n) })
		}
		for _, n := range []int{1, 8} {
			b.Run(string(a)+"/Helper-"+string('0'+rune(n)), func(b *testing.B) {
				req := tokentest.DefaultSignRequest(a, []byte("message"))
				parallel(b, n, func() error { _, err := k.Sign(context.Background(), req); return err })
			})
		}
	}
}

// BenchmarkAgree is an agreement with the whole point: two multiplications in the token.
func BenchmarkAgree(b *testing.B) {
	s := hsmtest.SoftHSM(b)
	tok := openUnlocked(b, newTestModule(b, s), s)
	for _, a := range []token.Algorithm{token.P256, token.P384, token.P521, token.X25519, token.X448} {
		k := openFor(b, tok, a, token.UseAgree).(token.PointAgreer)
		req := token.AgreeRequest{Peer: openFor(b, tok, a, token.UseAgree).Public().Octets}
		b.Run(string(a), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := k.AgreePoint(context.Background(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
