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

	"golang.org/x/sys/unix"

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

// cpu is processor time that was used.
type cpu struct {
	own, helpers time.Duration
	except       int // process that is no helper
}

// cpuTime is what this process and its helpers have used.
func cpuTime(except int) cpu {
	c := cpu{own: processTime(), except: except}
	lists, _ := filepath.Glob("/proc/self/task/*/children") // by the thread that started them
	for _, name := range lists {
		list, _ := os.ReadFile(name)
		for _, pid := range strings.Fields(string(list)) {
			if pid != strconv.Itoa(except) {
				c.helpers += cpuTimeOf(pid)
			}
		}
	}
	return c
}

// report reports what was used since c.
func (c cpu) report(b *testing.B) {
	now := cpuTime(c.except)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64((now.own-c.own).Microseconds())/float64(b.N), "own-cpu-µs/op")
	b.ReportMetric(float64((now.helpers-c.helpers).Microseconds())/float64(b.N), "helper-cpu-µs/op")
}

// processTime is what this process has used.
func processTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
	before := cpuTime(0)
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
	before.report(b)
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
