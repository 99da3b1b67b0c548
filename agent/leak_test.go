package agent

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

// TestNothingIsLeft has a thousand clients go at every stage of what they ask, and then looks whether a goroutine, a descriptor, a place in a queue
// or a prompt is left. It counts what the process has, and so runs alone.
func TestNothingIsLeft(t *testing.T) {
	slow := newFake("slow")
	b := newPromptBench(t, tokentest.FakeOptions{}, slow)
	b.limits.Frame, b.limits.Write, b.limits.Connections = time.Hour, time.Hour, 2000 // nothing ends by time, or for lack of room
	waits := b.key(t, token.UseSign, token.PINDefault)                                // for a prompt
	held := generate(t, b.Agent, "slow", token.Ed25519, token.UseSign)
	slow.Hold(tokentest.OpSign) // each signature takes until its client goes
	s, listeners := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- b.Serve(ctx, listeners[0], listeners[1]) }()
	for _, path := range []string{s.mesh, s.ssh} { // so that both listen, and all that is made once is there
		c := dial(t, path)
		send(t, c, listMessage)
		receive(t, c)
	}
	goroutines, descriptors := runtime.NumGoroutine(), countDescriptors(t)

	whole := frameOf(signMessage(held.Udf))
	large := frameOf(operateMessage(`{"KeyListRequest":{}}` + strings.Repeat(" ", 200<<10)))
	stages := []struct {
		name string
		do   func(c *net.UnixConn)
	}{
		{"connected", func(*net.UnixConn) {}},
		{"one octet", func(c *net.UnixConn) { put(t, c, whole[:1]) }},
		{"a length", func(c *net.UnixConn) { put(t, c, whole[:4]) }},
		{"half a request", func(c *net.UnixConn) { put(t, c, whole[:len(whole)/2]) }},
		{"half a large request", func(c *net.UnixConn) { put(t, c, large[:100<<10]) }},
		{"a request", func(c *net.UnixConn) { put(t, c, whole) }},
		{"requests ahead", func(c *net.UnixConn) {
			put(t, c, append(append(whole[:len(whole):len(whole)], whole...), whole[:7]...))
		}},
		{"a request and its answer", func(c *net.UnixConn) { send(t, c, listMessage); receive(t, c) }},
		{"half an answer", func(c *net.UnixConn) { send(t, c, listMessage); c.Read(make([]byte, 2)) }},
		{"a prompt", func(c *net.UnixConn) {
			b.waiters(t, 0) // the one before has gone
			send(t, c, signMessage(waits.Udf))
			<-b.questions
		}},
		{"a closed side", func(c *net.UnixConn) {
			put(t, c, whole)
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}},
		{"no answers taken", func(c *net.UnixConn) {
			put(t, c, bytes.Repeat(frameOf(operateMessage(`{"StatusRequest":{}}`)), 2000))
		}},
		{"an impossible length", func(c *net.UnixConn) { put(t, c, []byte{0xff, 0xff, 0xff, 0xff}) }},
		{"a message of another kind", func(c *net.UnixConn) { send(t, c, []byte{200, 1, 2}) }},
	}
	const clients = 1000
	for i := range clients {
		stage := stages[i%len(stages)]
		path := s.mesh
		if i%2 == 1 && stage.name != "a prompt" {
			path = s.ssh
		}
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatalf("%s: %v", stage.name, err)
		}
		stage.do(c.(*net.UnixConn))
		if err := c.Close(); err != nil {
			t.Fatalf("%s: %v", stage.name, err)
		}
	}
	b.waiters(t, 0)
	untilWaiting(b.gates["slow"], 0)
	until(t, func() string {
		if n := runtime.NumGoroutine(); n > goroutines {
			return fmt.Sprintf("%d goroutines, %d before\n%s", n, goroutines, stacks())
		}
		return ""
	})
	if n := countDescriptors(t); n > descriptors {
		t.Errorf("%d descriptors, %d before", n, descriptors)
	}
	stop()
	if err := <-served; err != nil {
		t.Error("Serve:", err)
	}
}

func put(t *testing.T, c net.Conn, octets []byte) {
	t.Helper()
	if _, err := c.Write(octets); err != nil {
		t.Fatal(err)
	}
}

// until waits for a state that describe has no words for. Only a fault takes the time that it has.
func until(t *testing.T, describe func() string) {
	t.Helper()
	rescue := time.Now().Add(time.Minute)
	for {
		text := describe()
		if text == "" {
			return
		}
		if time.Now().After(rescue) {
			t.Fatal(text)
		}
		runtime.Gosched()
	}
}

func stacks() []byte {
	out := make([]byte, 64<<10)
	return out[:runtime.Stack(out, true)]
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
