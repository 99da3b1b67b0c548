package prompt

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// joined is a question that a test has put to a desk.
type joined struct {
	*place
	clients []int32
}

func joins(d *desk, clients ...int32) joined {
	p := joined{&place{clients: func() []int32 { return clients }, ready: make(chan struct{})}, clients}
	d.join(p.place)
	return p
}

func (p joined) isReady() bool {
	select {
	case <-p.ready:
		return true
	default:
		return false
	}
}

// TestDeskTurns has clients with many questions and with few.
func TestDeskTurns(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		join  [][]int32 // the first one has the place at once
		order []int     // of the others
	}{
		{"one client", [][]int32{{1}, {1}, {1}}, []int{1, 2}},
		{"a flood before another", [][]int32{{1}, {1}, {1}, {1}, {1}, {2}}, []int{5, 1, 2, 3, 4}},
		{"three clients", [][]int32{{1}, {1}, {1}, {2}, {1}, {3}, {2}}, []int{3, 5, 1, 6, 2, 4}},
		{"a question of two is of the one that waits for less", [][]int32{{1}, {1}, {1}, {1, 2}}, []int{3, 1, 2}},
		{"whose turn has come then", [][]int32{{1}, {1}, {1, 2}, {2}, {3}}, []int{2, 4, 1, 3}},
	} {
		d := newDesk()
		var all []joined
		for _, clients := range test.join {
			all = append(all, joins(d, clients...))
		}
		if !all[0].isReady() {
			t.Errorf("%s: the first one waits", test.name)
		}
		for n, want := range test.order {
			d.leave()
			var ready []int
			for i, p := range all {
				if p.isReady() && i != 0 && !slices.Contains(test.order[:n], i) {
					ready = append(ready, i)
				}
			}
			if !slices.Equal(ready, []int{want}) {
				t.Errorf("%s: turn %d is that of %v, want %d", test.name, n+1, ready, want)
			}
		}
		d.leave()
		if d.taken || len(d.waiting) != 0 {
			t.Errorf("%s: something is left: %+v", test.name, d)
		}
	}
}

// TestDeskIsBounded fills the queue: the client that has the most loses its last question, which may be the new one.
func TestDeskIsBounded(t *testing.T) {
	t.Parallel()
	d := newDesk()
	joins(d, 9)
	var flood []joined
	for range maxWaiting {
		flood = append(flood, joins(d, 1))
	}
	other := joins(d, 2)
	if last := flood[maxWaiting-1]; !last.isReady() || !last.refused {
		t.Error("another client found no place")
	}
	if more := joins(d, 1); !more.isReady() || !more.refused {
		t.Error("a client that has the most got one more")
	}
	shared := joins(d, 1, 3)
	if last := flood[maxWaiting-2]; !last.isReady() || !last.refused || shared.isReady() {
		t.Error("a question that another client waits for, too, found no place")
	}
	if len(d.waiting) != maxWaiting {
		t.Errorf("%d wait", len(d.waiting))
	}
	d.leave() // the flood was first
	d.leave()
	if !flood[0].isReady() || !other.isReady() || other.refused {
		t.Error("the other client's turn did not come")
	}
}

// TestDeskForgets has questions go before their turn and just when it comes.
func TestDeskForgets(t *testing.T) {
	t.Parallel()
	d := newDesk()
	joins(d, 1)
	waits, next, last := joins(d, 2), joins(d, 3), joins(d, 4)
	d.abandon(waits.place)
	d.leave()
	if waits.isReady() || !next.isReady() || last.isReady() {
		t.Error("a question that went had its turn")
	}
	d.abandon(next.place) // it has the place, and its client is gone
	if !last.isReady() {
		t.Error("the place was lost")
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := d.enter(ctx, nil); err != gone || len(d.waiting) != 0 {
		t.Errorf("%v, %d wait", err, len(d.waiting))
	}
	d.leave()
	if d.taken || len(d.served) > 1 {
		t.Errorf("something is left: %+v", d)
	}
}
