// Package agent is the daemon: it accepts connections on the two sockets, speaks the SSH agent
// protocol (RFC 9987) on both and the Mesh extension operate@mathmesh.com on one, and
// turns what keys and tokens answer into replies. docs/protocol.md is its specification.
//
// It knows no backend and no disk: a keyring is passed in. It creates no socket and takes no
// signal; its caller does. It does not encrypt the socket and does not defend against
// other programs of the same user, who may do what that user may.
package agent

import (
	"log/slog"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/peercred"
	"github.com/mesh-agent/mesh-agent/internal/policy"
	"github.com/mesh-agent/mesh-agent/mesh/device"
)

// Config is what an Agent needs.
type Config struct {
	// Keyring holds the keys. Its owner closes it, after Serve has returned.
	Keyring *keyring.Keyring
	// Device keeps the device's Mesh identity and the accounts that this agent administers;
	// nil keeps none. Its owner closes it as Keyring.
	Device *devicestate.Folder
	// Logger takes messages for the administrator; nil discards them. No secret is ever
	// given to it.
	Logger *slog.Logger
	// Build is the version that HelloRequest and StatusRequest report.
	Build string
	// Features is what StatusRequest reports beside it: what not every build of the program has.
	Features []string
	// Socket, SSHSocket and StateDir are paths for StatusRequest to report.
	Socket, SSHSocket, StateDir string
	// Prompter asks for PINs where an operation needs one; nil asks nobody: the answer is 401 then.
	Prompter Prompter
	// Limits bound what clients take up. Zero members mean the defaults.
	Limits Limits
}

// Limits bound what clients take up.
type Limits struct {
	// Connections at once, over both sockets. A further one takes the place of one on which nothing is under
	// way, and is closed if there is none. Default 256.
	Connections int
	// Queue is the number of operations that wait for one token; further ones are
	// answered with status 429. Default 128.
	Queue int
	// Frame is the time in which a frame must be complete once its first octet has arrived.
	// Between frames a client may be silent for ever. Default 10 s.
	Frame time.Duration
	// Write is the time in which a client must take a reply. Default 10 s.
	Write time.Duration
	// Shutdown is the time that requests have to finish once Serve's context has
	// ended; then they are cancelled. Default 5 s.
	Shutdown time.Duration
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.Connections, 256)
	orDefault(&l.Queue, 128)
	orDefault(&l.Frame, 10*time.Second)
	orDefault(&l.Write, 10*time.Second)
	orDefault(&l.Shutdown, 5*time.Second)
	return l
}

func orDefault[T int | time.Duration](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
}

// Agent answers requests. Make it with New and run it with Serve.
type Agent struct {
	ring    *keyring.Keyring
	log     *slog.Logger
	config  Config
	limits  Limits
	started time.Time
	uid     uint32
	policy  policy.Policy
	creds   credentialFunc
	sshKeys atomic.Pointer[identities]
	prompts prompts

	deviceTurn chan struct{}                    // holds one value while a message about the device is answered
	inside     atomic.Pointer[device.DigestSet] // see mayUnwrap; nil until the record could be read

	gates    map[string]*gate // by token name; the set is fixed
	memory   *gate            // of keys that a token sealed, which are used in memory
	parallel int              // operations that the widest token runs at once
}

// New returns an agent for the user that runs this process: nobody else may connect.
func New(config Config) *Agent {
	a := &Agent{
		ring:    config.Keyring,
		log:     config.Logger,
		config:  config,
		limits:  config.Limits.withDefaults(),
		started: time.Now(),
		uid:     uint32(os.Geteuid()),
		creds:   peercred.Of,
		gates:   make(map[string]*gate),

		deviceTurn: make(chan struct{}, 1),
	}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if err := a.loadInside(); err != nil {
		a.log.Error("the device's Mesh identity is not loaded", "err", err)
	}
	a.policy = policy.Owner(a.uid)
	a.memory = newGate(runtime.GOMAXPROCS(0), a.limits.Queue)
	for _, t := range a.ring.Tokens() {
		info := t.Info()
		a.gates[info.Name] = newGate(info.Parallel, a.limits.Queue)
		a.parallel = max(a.parallel, info.Parallel)
	}
	return a
}
