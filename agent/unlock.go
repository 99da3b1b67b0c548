package agent

import "context"

// unlocking is a token that a person is asked to unlock, for all who wait for that.
type unlocking struct {
	waiters int // guarded by prompts.mu
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // to be read when done is closed
}

// unlockOnce has unlock done for all who want the same token unlocked meanwhile. It is cancelled
// when the last of them has gone.
func (p *prompts) unlockOnce(ctx context.Context, name string, unlock func(context.Context) error) error {
	u := p.join(ctx, name, unlock)
	select {
	case <-u.done:
		return u.err
	case <-ctx.Done():
	}
	if p.leave(name, u) {
		u.cancel()
		<-u.done
	}
	return context.Cause(ctx)
}

// join begins to unlock a token unless somebody does already.
func (p *prompts) join(ctx context.Context, name string, unlock func(context.Context) error) *unlocking {
	p.mu.Lock()
	defer p.mu.Unlock()
	if u := p.unlocks[name]; u != nil {
		u.waiters++
		return u
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	u := &unlocking{waiters: 1, cancel: cancel, done: make(chan struct{})}
	if p.unlocks == nil {
		p.unlocks = make(map[string]*unlocking)
	}
	p.unlocks[name] = u
	go func() { // ends before the last of those who wait goes on
		defer cancel()
		u.err = unlock(work)
		p.forget(name, u)
		close(u.done)
	}()
	return u
}

// leave reports whether nobody waits for u any more; then nobody joins it either.
func (p *prompts) leave(name string, u *unlocking) (last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u.waiters--
	if u.waiters == 0 && p.unlocks[name] == u {
		delete(p.unlocks, name)
	}
	return u.waiters == 0
}

func (p *prompts) forget(name string, u *unlocking) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unlocks[name] == u {
		delete(p.unlocks, name)
	}
}
