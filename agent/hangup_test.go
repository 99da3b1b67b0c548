package agent

import (
	"net"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"
)

// TestHangupsTimer has the timer run while there are young requests and no longer: an idle agent wakes for nothing.
func TestHangupsTimer(t *testing.T) {
	t.Parallel()
	conn := acceptedConn(t)
	synctest.Test(t, func(t *testing.T) {
		h := newHangups()
		defer h.timer.Stop()
		state := func(when string, young int, running bool) {
			t.Helper()
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(h.young) != young || h.running != running {
				t.Errorf("%s: %d requests are young, timer runs %v", when, len(h.young), h.running)
			}
		}
		state("at first", 0, false)
		end := h.watch(conn, func() { t.Error("cancelled") })
		state("with a request", 1, true)
		end()
		state("after it", 0, true)
		time.Sleep(2 * hangupAfter)
		synctest.Wait()
		state("later", 0, false)

		end = h.watch(conn, func() { t.Error("cancelled") })
		time.Sleep(hangupAfter + hangupAfter/2)
		state("with one that is seen once", 1, true)
		other := h.watch(conn, func() { t.Error("cancelled") })
		end()
		state("with another", 1, true)
		other()
		time.Sleep(2 * hangupAfter)
		synctest.Wait()
		state("at the end", 0, false)
	})
}

// acceptedConn returns one end of a connection whose other end stays open.
func acceptedConn(t *testing.T) net.Conn {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	there, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { there.Close() })
	here, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close() })
	return here
}

// TestHangupsLook has a client go during a long request, and one that stays.
func TestHangupsLook(t *testing.T) {
	t.Parallel()
	h := newHangups()
	defer h.timer.Stop()
	gone := make(chan struct{})
	conn := acceptedConn(t)
	staying := h.watch(acceptedConn(t), func() { t.Error("the client that stays is cancelled") })
	end := h.watch(conn, func() { close(gone) })
	conn.(*net.UnixConn).CloseWrite()
	conn.(*net.UnixConn).CloseRead() // as if the peer had closed both
	<-gone
	end()
	staying()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.young) != 0 {
		t.Error("a request is left")
	}
}
