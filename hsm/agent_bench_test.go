package hsm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"

	"github.com/mesh-agent/mesh-agent/agent/agenttest"
	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

// connections is how many clients sign at once, and how many sessions the raw benchmark has.
const connections = 8

// BenchmarkAgent compares the same signatures, in one run: Raw, C_Sign on a token object in this
// process with eight sessions; Socket, through the socket of an agent in this process with eight connections
// of another process. What each process took of the processors is in the figures own-cpu (Raw:
// the module; Socket: the agent, which verifies), helper-cpu (the module) and client-cpu.
func BenchmarkAgent(b *testing.B) {
	s := hsmtest.SoftHSM(b)
	tok := openUnlocked(b, newTestModule(b, s), s)
	socket := agenttest.Serve(b, tok)
	admin, err := client.Dial(b.Context(), socket)
	if err != nil {
		b.Fatal(err)
	}
	defer admin.Close()
	for _, a := range []token.Algorithm{token.P256, token.Ed25519} {
		made, err := admin.KeyGenerate(b.Context(), mesh.KeyGenerateRequest{Home: mesh.Home{Token: tok.Info().Name}, Algorithm: string(a), Use: "sign"})
		if err != nil {
			b.Fatal(err)
		}
		mode := map[token.Algorithm]string{token.Ed25519: "pure"}[a]
		raw := signKeyFor(b, tok, a).(*signKey)
		b.Run(string(a)+"/Raw", func(b *testing.B) { rawSign(b, s, raw, connections) })
		b.Run(string(a)+"/Socket", func(b *testing.B) { benchClient(b, socket, made.Key.Udf, mode) })
	}
}

// benchClient has another process sign b.N times.
func benchClient(b *testing.B, socket, key, mode string) {
	c := exec.Command(executable(b), clientArgument, socket, key, mode, strconv.Itoa(b.N))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		b.Fatalf("the client says %q, %v", line, err)
	}
	before := cpuTime(c.Process.Pid)
	b.ResetTimer()
	in.Close() // the sign to begin
	line, err := lines.ReadString('\n')
	b.StopTimer()
	before.report(b)
	if err := errors.Join(err, c.Wait()); err != nil {
		b.Fatal(err)
	}
	used, err := strconv.Atoi(line[:len(line)-1])
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(used)/float64(b.N), "client-cpu-µs/op")
}

// signAsClient is that other process. It prints how many microseconds of processor time the signatures took.
func signAsClient(socket, key, mode, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	ctx := context.Background()
	var clients [connections]*client.Client
	for i := range clients {
		if clients[i], err = client.Dial(ctx, socket); err != nil {
			return err
		}
		if _, err := clients[i].Hello(ctx); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	os.Stdin.Read(make([]byte, 1))
	before := processTime()
	var wg sync.WaitGroup
	errs := make([]error, connections)
	for i, c := range clients {
		wg.Go(func() {
			for range (n + i) / connections { // together n
				_, err := c.Sign(ctx, key, []byte("message"), mode)
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	wg.Wait()
	fmt.Println((processTime() - before).Microseconds())
	return errors.Join(errs...)
}
