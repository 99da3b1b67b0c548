package hsmtest

import (
	"sync"
	"testing"
	"time"
)

// Load is operations that several workers do one after another while something happens to
// them.
type Load struct {
	tb       testing.TB
	outcomes chan error
	stopping chan struct{}
	stop     sync.Once
	workers  sync.WaitGroup
	// Right and Failed count the operations that Stop and the methods that wait have seen.
	Right, Failed int
}

// StartLoad starts n workers, each of which calls f with its number until Stop. An error that
// f returns fails the test unless permitted says that it may happen.
func StartLoad(tb testing.TB, n int, permitted func(error) bool, f func(worker int) error) *Load {
	l := &Load{tb: tb, outcomes: make(chan error), stopping: make(chan struct{})}
	for worker := range n {
		l.workers.Go(func() {
			for {
				err := f(worker)
				if err != nil && !permitted(err) {
					tb.Errorf("worker %d: %v", worker, err)
				}
				select {
				case l.outcomes <- err:
				case <-l.stopping:
					return
				}
			}
		})
	}
	tb.Cleanup(l.Stop)
	return l
}

// patience is how long a test waits for what must come, so that it does not hang if that never does.
const patience = time.Minute

// AwaitRight waits for n more operations that succeed.
func (l *Load) AwaitRight(what string, n int) {
	l.tb.Helper()
	want := l.Right + n
	l.await(what, func() bool { return l.Right >= want })
}

// AwaitFailed waits for an operation that fails.
func (l *Load) AwaitFailed(what string) {
	l.tb.Helper()
	before := l.Failed
	l.await(what, func() bool { return l.Failed > before })
}

func (l *Load) await(what string, done func() bool) {
	l.tb.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for !done() {
		select {
		case err := <-l.outcomes:
			if err == nil {
				l.Right++
			} else {
				l.Failed++
			}
		case <-timer.C:
			l.tb.Fatalf("%s: not within %v; %d operations succeeded, %d failed", what, patience, l.Right, l.Failed)
		}
	}
}

// Stop ends the load and waits for the operations under way. The end of the test does so too.
func (l *Load) Stop() {
	l.stop.Do(func() { close(l.stopping) })
	l.workers.Wait()
}
