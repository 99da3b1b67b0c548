package pivtest

import (
	"sync"
	"time"
)

// touchCache is how long a touch lasts under the policy "cached".
const touchCache = 15 * time.Second

// Touch says what the finger at the card does.
type Touch int

const (
	TouchGiven   Touch = iota // touches as soon as the card asks
	TouchRefused              // the card gives up at once, as after its time limit
	TouchAwaited              // the card waits until Answer, Reset or its time limit
)

// touchSensor is the button of a card.
type touchSensor struct {
	now     func() time.Time
	timeout time.Duration
	waits   chan struct{} // one value for each wait begun, as far as it has room
	answers chan bool     // handed to the command that waits

	mu    sync.Mutex
	mode  Touch         // guarded by mu
	last  time.Time     // of the last touch; guarded by mu
	count int           // touches asked for and given; guarded by mu
	cut   chan struct{} // closed while the card is without power; guarded by mu
	cuts  int           // resets under way; guarded by mu
}

func (t *touchSensor) init(now func() time.Time, timeout time.Duration) {
	t.now, t.timeout = now, timeout
	t.waits, t.answers = make(chan struct{}, 64), make(chan bool)
	t.cut = make(chan struct{})
}

func (t *touchSensor) cutPower() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cuts++; t.cuts == 1 {
		close(t.cut)
	}
	t.last = time.Time{}
}

func (t *touchSensor) restorePower() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cuts--; t.cuts == 0 {
		t.cut = make(chan struct{})
	}
}

// ask returns swOK if the policy asks for no touch or the touch comes, swSecurity if it does
// not come, swMute if the power goes meanwhile.
func (t *touchSensor) ask(policy byte) sw {
	t.mu.Lock()
	mode, cut := t.mode, t.cut
	cached := policy == TouchPolicyCached && !t.last.IsZero() && t.now().Sub(t.last) < touchCache
	t.mu.Unlock()
	if policy == TouchPolicyNever || cached {
		return swOK
	}
	status := swSecurity
	switch mode {
	case TouchGiven:
		status = swOK
	case TouchAwaited:
		status = t.wait(cut)
	}
	if status == swOK {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.last = t.now()
		t.count++
	}
	return status
}

func (t *touchSensor) wait(cut <-chan struct{}) sw {
	select {
	case t.waits <- struct{}{}:
	default:
	}
	var late <-chan time.Time
	if t.timeout > 0 {
		late = time.After(t.timeout)
	}
	select {
	case touched := <-t.answers:
		if touched {
			return swOK
		}
		return swSecurity
	case <-late:
		return swSecurity
	case <-cut:
		return swMute
	}
}

// SetTouch says what happens from now on when the card asks for a touch.
func (c *Card) SetTouch(mode Touch) {
	c.touch.mu.Lock()
	defer c.touch.mu.Unlock()
	c.touch.mode = mode
}

// TouchWaits returns a channel that gets one value each time the card begins to wait for a touch.
func (c *Card) TouchWaits() <-chan struct{} { return c.touch.waits }

// Answer touches the card that waits, or lets it give up. It blocks until the card waits.
func (c *Card) Answer(touched bool) { c.touch.answers <- touched }

// Touches returns how often the card asked for a touch and got it.
func (c *Card) Touches() int {
	c.touch.mu.Lock()
	defer c.touch.mu.Unlock()
	return c.touch.count
}
