package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// TestGateRoundRobin fills slot and queue with a bulk connection's operations and then lets
// two others come: they need not wait for more than the operation that runs.
func TestGateRoundRobin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 100)
		leave, err := g.enter(t.Context(), "bulk")
		if err != nil {
			t.Fatal(err)
		}
		var order []string
		arrive := func(owner string, n int) {
			for i := range n {
				go func() {
					leave, err := g.enter(t.Context(), owner)
					if err != nil {
						t.Error(err)
						return
					}
					order = append(order, fmt.Sprint(owner, i)) // the gate admits one at a time
					leave()
				}()
				synctest.Wait()
			}
		}
		arrive("bulk", 5)
		arrive("human", 1)
		arrive("other", 2)
		leave()
		synctest.Wait()
		want := []string{"human0", "other0", "bulk0", "other1", "bulk1", "bulk2", "bulk3", "bulk4"}
		if !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

func TestGateQueueFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 2)
		leave, err := g.enter(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		var waiting sync.WaitGroup
		for i := range 2 {
			waiting.Go(func() {
				leave, err := g.enter(t.Context(), i)
				if err != nil {
					t.Error(err)
					return
				}
				leave()
			})
		}
		synctest.Wait()
		if _, err := g.enter(t.Context(), 3); !errors.Is(err, errQueueFull) {
			t.Errorf("a full queue: %v", err)
		}
		leave()
		waiting.Wait()
		if leave, err = g.enter(t.Context(), 3); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		leave()
	})
}

func TestGateCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGate(1, 2)
		leave, err := g.enter(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := g.enter(ctx, "gone")
				errs <- err
			}()
		}
		synctest.Wait()
		cancel()
		for range 2 {
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled: %v", err)
			}
		}
		if g.room != 2 || len(g.waiting) != 0 {
			t.Errorf("room %d, %d waiting after all have gone", g.room, len(g.waiting))
		}
		leave()
		if g.free != 1 {
			t.Errorf("%d free slots, want 1", g.free)
		}
		if _, err := g.enter(ctx, "gone"); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled before: %v", err)
		}
	})
}

// TestGateCancelAtItsTurn gives up a place whose turn came in the same moment: the slot
// must not be lost.
func TestGateCancelAtItsTurn(t *testing.T) {
	t.Parallel()
	g := newGate(1, 2)
	if _, err := g.join(0); err != nil {
		t.Fatal(err)
	}
	w, err := g.join(1)
	if err != nil {
		t.Fatal(err)
	}
	g.release(0)
	<-w.ready
	g.abandon(1, w)
	if g.free != 1 || g.room != 2 {
		t.Errorf("free %d, room %d", g.free, g.room)
	}
}

// TestGateParallel has many operations come and go, some of them cancelled, and counts.
func TestGateParallel(t *testing.T) {
	t.Parallel()
	const parallel = 3
	g := newGate(parallel, 1000)
	var mu sync.Mutex
	inside, most := 0, 0
	count := func(d int) {
		mu.Lock()
		defer mu.Unlock()
		inside += d
		most = max(most, inside)
	}
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%5 == 0 {
				go cancel()
			}
			leave, err := g.enter(ctx, i%7)
			if err != nil {
				return
			}
			count(1)
			count(-1)
			leave()
		})
	}
	all.Wait()
	if most > parallel {
		t.Errorf("%d inside at once", most)
	}
	if g.free != parallel || g.room != 1000 || len(g.waiting) != 0 {
		t.Errorf("free %d, room %d, %d waiting in the end", g.free, g.room, len(g.waiting))
	}
}
