package prompt

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// maxWaiting is how many questions wait.
const maxWaiting = 16

// desk has one place at which something is shown. Questions get it before notices. Of the questions that wait, the one
// goes first whose client was served least lately, so that one with many does not keep the others waiting.
type desk struct {
	mu      sync.Mutex
	taken   bool           // guarded by mu, as all below: something is shown
	yield   func()         // takes that down if it is a notice; else nil
	waiting []*place       // questions, in the order in which they came
	notices []*place       // in the order in which they came
	served  map[int32]uint // when each of the clients that wait had the place last, by the count of turns
	turns   uint
}

// place is what a question or a notice waits for.
type place struct {
	clients func() []int32
	yield   func()        // of a notice
	ready   chan struct{} // closed when it has the place, or refused is set
	refused bool          // to be read when ready is closed
}

func newDesk() *desk { return &desk{served: make(map[int32]uint)} }

// enter waits for the place with a question of some clients. leave gives it back, once. Errors: ErrBusy, ctx's cause.
func (d *desk) enter(ctx context.Context, clients func() []int32) (leave func(), err error) {
	if clients == nil {
		clients = func() []int32 { return []int32{0} }
	}
	p := &place{clients: clients, ready: make(chan struct{})}
	d.join(p)
	select {
	case <-p.ready:
	case <-ctx.Done():
		d.abandon(p)
		return nil, context.Cause(ctx)
	}
	if p.refused {
		return nil, ErrBusy
	}
	return d.leave, nil
}

// join adds a question, and takes down the notice that is shown. If that is one too many, the last one of those clients goes that
// have the most.
func (d *desk) join(p *place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = append(d.waiting, p)
	if d.taken && len(d.waiting) > maxWaiting {
		i := d.surplusLocked()
		d.waiting[i].refused = true
		close(d.waiting[i].ready)
		d.waiting = slices.Delete(d.waiting, i, i+1)
	}
	if d.yield != nil {
		d.yield()
	}
	d.nextLocked()
}

// surplusLocked returns which question is one too many: the last one for clients that have as many as any. One for several
// clients counts as that of the one which has the fewest.
func (d *desk) surplusLocked() int {
	count := make(map[int32]int)
	for _, p := range d.waiting {
		for _, c := range p.clients() {
			count[c]++
		}
	}
	last, most := 0, 0
	for i, p := range d.waiting {
		fewest := maxWaiting + 1
		for _, c := range p.clients() {
			fewest = min(fewest, count[c])
		}
		if fewest >= most {
			last, most = i, fewest
		}
	}
	return last
}

// nextLocked gives the place away, if nobody has it.
func (d *desk) nextLocked() {
	var p *place
	switch {
	case d.taken:
		return
	case len(d.waiting) > 0:
		p = d.chooseLocked()
	case len(d.notices) > 0:
		p = d.notices[0]
		d.notices = slices.Delete(d.notices, 0, 1)
	default:
		return
	}
	d.taken, d.yield = true, p.yield
	close(p.ready)
}

// chooseLocked takes the next question out of those that wait.
func (d *desk) chooseLocked() *place {
	var present []int32
	next, least := 0, ^uint(0)
	for i, p := range d.waiting {
		clients := p.clients()
		present = append(present, clients...)
		for _, c := range clients {
			if d.served[c] < least {
				next, least = i, d.served[c]
			}
		}
	}
	p := d.waiting[next]
	d.waiting = slices.Delete(d.waiting, next, next+1)
	d.turns++
	for _, c := range p.clients() {
		d.served[c] = d.turns
	}
	maps.DeleteFunc(d.served, func(c int32, _ uint) bool { return !slices.Contains(present, c) })
	return p
}

func (d *desk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.taken, d.yield = false, nil
	d.nextLocked()
}

// abandon takes a question or a notice away that has not been shown. If it has the place meanwhile, that goes on.
func (d *desk) abandon(p *place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	mine := func(q *place) bool { return p == q }
	waited := len(d.waiting) + len(d.notices)
	d.waiting, d.notices = slices.DeleteFunc(d.waiting, mine), slices.DeleteFunc(d.notices, mine)
	if waited == len(d.waiting)+len(d.notices) && !p.refused {
		d.taken, d.yield = false, nil
		d.nextLocked()
	}
}

// show calls f with the place, again if it had to give that to a question, until ctx ends or f
// returns by itself.
func (d *desk) show(ctx context.Context, f func(context.Context)) {
	for yielded := true; yielded && ctx.Err() == nil; {
		mine, yield := context.WithCancel(ctx)
		p := &place{yield: yield, ready: make(chan struct{})}
		d.mu.Lock()
		d.notices = append(d.notices, p)
		d.nextLocked()
		d.mu.Unlock()
		select {
		case <-p.ready:
			f(mine)
			yielded = mine.Err() != nil
			d.leave()
		case <-ctx.Done():
			d.abandon(p)
		}
		yield()
	}
}
