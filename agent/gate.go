package agent

import (
	"context"
	"slices"
	"sync"
)

// errQueueFull is the answer to an operation that finds the token's queue full.
var errQueueFull = &failure{statusTooMany, "too many operations are waiting for this token"}

// gate admits operations to one token: as many at once as the token runs in parallel.
// The others wait in a bounded queue, served round robin by connection, so that a
// connection with a thousand operations delays another one's by those that run already.
type gate struct {
	mu      sync.Mutex
	free    int      // guarded by mu: slots nobody has
	room    int      // guarded by mu: places left in the queue
	waiting []*queue // guarded by mu: connections that wait, the next to be served first; no queue is empty
}

// queue is what one connection has waiting.
type queue struct {
	owner   any
	waiters []*waiter
}

// waiter is one operation that waits. ready is closed when it has its slot.
type waiter struct{ ready chan struct{} }

func newGate(parallel, room int) *gate {
	return &gate{free: max(parallel, 1), room: room}
}

// enter waits for a slot and returns the function that gives it back, to be called
// once. owner tells connections apart. Errors: errQueueFull at once, or ctx's cause.
func (g *gate) enter(ctx context.Context, owner any) (leave func(), err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	w, err := g.join(owner)
	if err != nil {
		return nil, err
	}
	leave = func() { g.release(owner) }
	if w == nil {
		return leave, nil
	}
	select {
	case <-w.ready:
		return leave, nil
	case <-ctx.Done():
		g.abandon(owner, w)
		return nil, context.Cause(ctx)
	}
}

// join takes a free slot (nil waiter) or a place in the queue.
func (g *gate) join(owner any) (*waiter, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.free > 0 { // so nobody waits
		g.free--
		return nil, nil
	}
	if g.room == 0 {
		return nil, errQueueFull
	}
	g.room--
	w := &waiter{ready: make(chan struct{})}
	if i := g.indexLocked(owner); i >= 0 {
		g.waiting[i].waiters = append(g.waiting[i].waiters, w)
	} else {
		g.waiting = append(g.waiting, &queue{owner: owner, waiters: []*waiter{w}})
	}
	return w, nil
}

// release gives the slot that owner had to the next waiter: the first of the connection whose
// turn it is. The connection that had the slot goes to the back before, the one that gets
// it after.
func (g *gate) release(owner any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) == 0 {
		g.free++
		return
	}
	if i := g.indexLocked(owner); i >= 0 {
		q := g.waiting[i]
		g.waiting = append(slices.Delete(g.waiting, i, i+1), q)
	}
	q := g.waiting[0]
	g.waiting = slices.Delete(g.waiting, 0, 1)
	w := q.waiters[0]
	q.waiters = q.waiters[1:]
	if len(q.waiters) > 0 {
		g.waiting = append(g.waiting, q)
	}
	g.room++
	close(w.ready)
}

// abandon takes w out of the queue. If its turn came meanwhile, the slot goes on.
func (g *gate) abandon(owner any, w *waiter) {
	g.mu.Lock()
	i := g.indexLocked(owner)
	j := -1
	if i >= 0 {
		j = slices.Index(g.waiting[i].waiters, w)
	}
	if j < 0 {
		g.mu.Unlock()
		g.release(owner)
		return
	}
	defer g.mu.Unlock()
	q := g.waiting[i]
	q.waiters = slices.Delete(q.waiters, j, j+1)
	if len(q.waiters) == 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	g.room++
}

func (g *gate) indexLocked(owner any) int {
	return slices.IndexFunc(g.waiting, func(q *queue) bool { return q.owner == owner })
}
