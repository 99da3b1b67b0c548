package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/mesh-agent/mesh-agent/token"
)

// The reasons for which a module does not answer. All are token.ErrAbsent too.
var (
	// ErrCrashed says that the helper process ended while it had the operation: the
	// module crashed, or somebody killed it. Whether the operation took effect is not known.
	ErrCrashed = fmt.Errorf("the module's process ended: %w", token.ErrAbsent)
	// ErrHangs says that the module did not answer in time, so that its process was ended.
	ErrHangs = fmt.Errorf("the module does not answer: %w", token.ErrAbsent)
	// ErrNotLoaded says that the module could not be loaded and initialized.
	ErrNotLoaded = fmt.Errorf("the module does not load: %w", token.ErrAbsent)
)

// ErrNoSupport says that this binary is a static one, which no module can be loaded into: it was
// built without cgo. NewModule returns it.
var ErrNoSupport = errors.New("this binary was built without cgo and cannot load PKCS #11 modules")

// ModuleOptions says which module to load and how.
type ModuleOptions struct {
	// Path is the absolute path of the shared library. Only the configuration may name it.
	Path string
	// Arguments is what C_Initialize gets as pReserved; only a few modules want it (NSS).
	Arguments string
	// Environment is the whole environment of the helper, NAME=VALUE each.
	Environment []string
	// Helper is the command that calls ServeModule, with an absolute path:
	// this binary and its hidden subcommand.
	Helper []string
	// Sessions is how many operations run at once on one token; 0 is DefaultSessions. A
	// token that allows fewer gets fewer.
	Sessions int
	// Timeout is how long an operation may take until the helper is ended; 0 is 30
	// seconds. Generating a key may take ten times as long.
	Timeout time.Duration
	// Stderr receives what the module and the helper print; nil discards it.
	Stderr *os.File
}

// DefaultSessions is the number of sessions per token. More gain nothing: measured with
// SoftHSM and NSS, two to four sessions reach the throughput of eight.
const DefaultSessions = 4

const (
	defaultTimeout  = 30 * time.Second
	generateFactor  = 10
	retireGrace     = 2 * time.Second
	shortLife       = time.Second // a helper that ends sooner makes the next one wait
	firstBackOff    = 50 * time.Millisecond
	longestBackOff  = 500 * time.Millisecond
	bearableWait    = 250 * time.Millisecond
	maxSessionLimit = 64
)

// Module is a PKCS #11 module in its own process, which is started when it is needed, and
// again, with growing delays, when it ended. Its methods may be called from several
// goroutines at once.
type Module struct {
	options ModuleOptions

	mu        sync.Mutex
	child     *child // guarded by mu, as all below; nil if there is none
	starting  chan struct{}
	startErr  error
	failures  int
	notBefore time.Time
	closed    bool
	tokens    int  // open
	unused    bool // the last of them was closed
	retired   sync.WaitGroup
}

// NewModule checks the options. It starts nothing. Errors: ErrNoSupport, and what is wrong with the options.
func NewModule(o ModuleOptions) (*Module, error) {
	fail := func(format string, args ...any) (*Module, error) {
		return nil, fmt.Errorf("pkcs11 module: "+format, args...)
	}
	if !Supported {
		return fail("%w", ErrNoSupport)
	}
	if !filepath.IsAbs(o.Path) || filepath.Clean(o.Path) != o.Path {
		return fail("%q is not an absolute path", o.Path)
	}
	if len(o.Helper) == 0 || !filepath.IsAbs(o.Helper[0]) {
		return fail("no helper command")
	}
	for _, v := range o.Environment {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.ContainsRune(v, 0) {
			return fail("an environment entry is not NAME=VALUE")
		}
	}
	if strings.ContainsRune(o.Arguments, 0) {
		return fail("arguments contain a zero octet")
	}
	if o.Sessions == 0 {
		o.Sessions = DefaultSessions
	}
	if o.Sessions < 0 || o.Sessions > maxSessionLimit {
		return fail("%d sessions, want 1 to %d", o.Sessions, maxSessionLimit)
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	return &Module{options: o}, nil
}

// Path returns the path of the shared library.
func (m *Module) Path() string { return m.options.Path }

// Close ends the helper process. Tokens of the module are absent afterwards.
func (m *Module) Close() error {
	m.mu.Lock()
	m.closed = true
	c, starting := m.child, m.starting
	m.child = nil
	m.mu.Unlock()
	if c != nil {
		c.stop()
	}
	if starting != nil {
		<-starting
	}
	m.retired.Wait()
	return nil
}

// hold counts an open token.
func (m *Module) hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens++
	m.unused = false
}

// release ends the helper with the last token.
func (m *Module) release() {
	m.mu.Lock()
	m.tokens--
	var c *child
	if m.tokens == 0 {
		c, m.child, m.unused = m.child, nil, true
	}
	m.mu.Unlock()
	if c != nil {
		c.retire(retireGrace)
	}
}

// ensure returns the running helper and starts one if there is none.
func (m *Module) ensure(ctx context.Context) (*child, error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return nil, token.ErrClosed
		}
		if c := m.child; c != nil && c.alive() {
			m.mu.Unlock()
			return c, nil
		}
		if m.starting == nil {
			wait := m.untilStart()
			if wait > bearableWait {
				err := m.startErr
				if err == nil {
					err = ErrCrashed
				}
				m.mu.Unlock()
				return nil, fmt.Errorf("%w: next start in %v", err, wait.Round(time.Millisecond))
			}
			m.beginStart(wait)
		}
		starting := m.starting
		m.mu.Unlock()
		select {
		case <-starting:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		m.mu.Lock()
		err := m.startErr
		m.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// untilStart returns how long the next start is put off, because the last helpers ended too soon.
// The caller holds mu.
func (m *Module) untilStart() time.Duration {
	if old := m.child; old != nil {
		m.child = nil
		if ended := old.endOr(time.Now()); ended.Sub(old.started) < shortLife {
			m.backOff(ended)
		} else {
			m.failures = 0
		}
	}
	return time.Until(m.notBefore)
}

// beginStart starts a helper in the background, after a delay. The caller holds mu.
func (m *Module) beginStart(wait time.Duration) {
	done := make(chan struct{})
	m.starting = done
	go func() {
		time.Sleep(wait)
		c, err := startChild(m.options)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.starting, m.startErr = nil, err
		switch {
		case err != nil:
			m.backOff(time.Now())
		case m.closed || m.unused:
			m.startErr = token.ErrClosed
			c.stop()
		default:
			m.child = c
		}
		close(done)
	}()
}

// backOff puts off the next start. The caller holds mu.
func (m *Module) backOff(since time.Time) {
	if m.failures > 0 {
		m.notBefore = since.Add(min(firstBackOff<<min(m.failures-1, 10), longestBackOff))
	}
	m.failures++
}

// reload replaces a helper whose module has lost its device: most modules find it again
// only after C_Finalize and C_Initialize, and a new process is the thorough form of that. The
// old one finishes what it has. A helper younger than a second is left, so that a device that
// stays away does not keep the module loading.
func (m *Module) reload(c *child) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.child != c || m.closed || time.Since(c.started) < shortLife {
		return
	}
	m.child = nil
	m.retired.Go(func() { c.retire(retireGrace) })
}

// call asks the running helper. The caller may be answered by ctx before the module is.
func (m *Module) call(ctx context.Context, c *child, request *call) (*reply, error) {
	timeout := m.options.Timeout
	if request.op == opGenerate {
		timeout *= generateFactor
	}
	r, err := c.call(ctx, request, timeout)
	switch {
	case err != nil:
		return nil, err
	case r.text != "":
		return nil, fmt.Errorf("%w: %s", token.ErrFault, r.text)
	case r.code != ckrOK:
		return nil, r.code
	}
	return r, nil
}
