package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/agent"
	"github.com/mesh-agent/mesh-agent/internal/config"
	"github.com/mesh-agent/mesh-agent/internal/devicestate"
	"github.com/mesh-agent/mesh-agent/internal/keyring"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/softkey"
	"github.com/mesh-agent/mesh-agent/token"
)

// serveFlags are the flags of serve alone.
type serveFlags struct {
	sshSocket    string
	tpm          string
	piv          []uint
	guard        string
	softwareKeys bool
	insecure     bool
}

func newServeCommand(a *app) *cobra.Command {
	var flags serveFlags
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the agent",
		Long: `Runs the agent until it is interrupted. It serves everything at --socket, and the SSH agent
protocol alone at ssh.sock beside it, which is what SSH_AUTH_SOCK should name. Sockets
that the service manager passes (LISTEN_FDS) are used instead.

The token "tpm" is there if the machine has a TPM 2.0 (/dev/tpmrm0), or $MESH_AGENT_TPM or
--tpm names one: a device, swtpm: and the path of a simulator's unix socket, or tcp:HOST:PORT.
A TPM that is not there yet is looked for whenever it is used. Its PIN may come as the
systemd credential tpm-pin.

A PIV card such as a YubiKey is the token "piv:" and its serial number if --piv or the
configuration names that. The card need not be plugged in yet, and is shared with other
programs. Its PIN may come as the systemd credential piv-SERIAL-pin.

Tokens of PKCS#11 modules, HSMs and others, have the names that the configuration gives them:

    [[pkcs11]]
    module = "/usr/lib/softhsm/libsofthsm2.so"
    tokens = { hsm = "pkcs11:token=mine;serial=0123456789abcdef" }

The PIN of this one may come as the systemd credential hsm-pin. Each module runs in a process
of its own. A static binary has none ("mesh-agent --version" tells).

Where an operation needs a PIN, a program of yours asks for it if the configuration names one:

    [prompt]
    program = "/usr/bin/pinentry-gnome3"

kind = "askpass" is for a program as SSH_ASKPASS. It finds your screen or terminal by the
variables DISPLAY, WAYLAND_DISPLAY and GPG_TTY that the agent is started with.

The token "soft" is there only if asked for. With --software-keys a passphrase protects its
keys: the systemd credential softkey-passphrase, else the terminal asks. With
--insecure-software-keys a random key in a file beside them does, which protects them from
nobody who can read your files. The first start decides which of the two it is.

With --rollback-guard tpm the TPM counts changes of the key records. If an old copy of the
state folder is put back, keys are not used until "mesh-agent store accept-rollback".
The TPM's memory wears with each change, not with each use.

Flags go before the environment, and that before the configuration file, TOML with these keys:

    state = "/home/me/.local/state/mesh-agent"
    software-keys = "passphrase"    # or "insecure"
    tpm = "/dev/tpmrm0"             # or "off", or as --tpm
    rollback-guard = "tpm"
    piv = [5700001]

and [[pkcs11]] and [prompt] as above. A key that is none of these is an error.`,
		Example: `  mesh-agent serve --software-keys
  export SSH_AUTH_SOCK=$XDG_RUNTIME_DIR/mesh-agent/ssh.sock`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.settings(flags)
			if err != nil {
				return err
			}
			return a.serve(c.Context(), s)
		},
	}
	c.Flags().StringVar(&flags.sshSocket, "ssh-socket", "", "the `socket` for SSH alone (default ssh.sock beside the other)")
	c.Flags().StringVar(&flags.tpm, "tpm", "", "the TPM `device`, swtpm:PATH, tcp:HOST:PORT, or off")
	c.Flags().UintSliceVar(&flags.piv, "piv", nil, "the `serial` number of a PIV card that may be used; once for each")
	c.Flags().StringVar(&flags.guard, "rollback-guard", "", "the `token` that counts changes of the key records: tpm")
	c.Flags().BoolVar(&flags.softwareKeys, "software-keys", false, "enable the token soft, protected by a passphrase")
	c.Flags().BoolVar(&flags.insecure, "insecure-software-keys", false, "enable the token soft, protected by nothing but file permissions")
	return c
}

// settings are what serve does, from flags, environment and configuration.
type settings struct {
	sshSocket string // empty for the usual place
	state     string
	guard     string // the token that guards against rollback; empty for none
	software  config.SoftwareKeys
	tpm       tpmChoice
	pkcs11    []config.PKCS11
	piv       []uint32
	prompt    config.Prompt
	prompter  *prompt.Prompter // of that, while it serves; nil for none
}

func (a *app) settings(flags serveFlags) (s settings, err error) {
	if flags.softwareKeys && flags.insecure {
		return s, usageError{errors.New("--software-keys and --insecure-software-keys exclude each other")}
	}
	file, err := a.loadConfig()
	if err != nil {
		return s, err
	}
	s.state, s.software = file.State, file.SoftwareKeys
	if a.state != "" {
		s.state = a.state
	}
	if s.state == "" {
		if s.state, err = a.defaultState(); err != nil {
			return s, err
		}
	}
	if s.state, err = filepath.Abs(s.state); err != nil { // it is named to people who are elsewhere
		return s, err
	}
	switch {
	case flags.softwareKeys:
		s.software = config.SoftwareKeysPassphrase
	case flags.insecure:
		s.software = config.SoftwareKeysInsecure
	}
	s.tpm = a.chooseTPM(flags.tpm, file.TPM)
	s.guard = cmp.Or(flags.guard, file.RollbackGuard)
	s.pkcs11, s.prompt = file.PKCS11, file.Prompt
	if s.piv, err = choosePIV(flags.piv, file.PIV); err != nil {
		return s, err
	}
	s.sshSocket = flags.sshSocket
	return s, nil
}

func (a *app) loadConfig() (config.Config, error) {
	if a.config != "" {
		return config.Load(a.config)
	}
	path, err := a.defaultConfig()
	if err != nil {
		return config.Config{}, nil // no home folder, no default file in it
	}
	return config.LoadDefault(path)
}

// serve runs the daemon until ctx ends.
func (a *app) serve(ctx context.Context, s settings) (err error) {
	if err := harden(); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(a.stderr, nil))
	if s.prompter = a.prompter(s.prompt); s.prompter != nil {
		var looking sync.WaitGroup
		looking.Go(func() { warnOfPrompter(ctx, s.prompter, log) }) // the start does not wait for it
		defer looking.Wait()
		defer s.prompter.Close()                         // after the tokens
		defer context.AfterFunc(ctx, s.prompter.Close)() // nobody is asked by an agent that ends
	}
	ring, identity, err := a.openState(ctx, s, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ring.Close(), identity.Close()) }()
	listeners, err := a.sockets(s.sshSocket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, listeners.Close()) }()

	server := agent.New(agent.Config{
		Keyring:   ring,
		Device:    identity,
		Logger:    log,
		Build:     build(),
		Features:  features(),
		Socket:    address(listeners.mesh),
		SSHSocket: address(listeners.ssh),
		StateDir:  s.state,
		Prompter:  asker(s.prompter),
	})
	logStart(log, ring, listeners)
	if err := notify(daemon.SdNotifyReady); err != nil {
		return err
	}
	defer func() {
		if err := notify(daemon.SdNotifyStopping); err != nil {
			log.Warn("service manager not told of the end", "err", err)
		}
	}()
	return server.Serve(ctx, listeners.mesh, listeners.ssh)
}

// notify tells the service manager, if there is one.
func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify service manager: %w", err)
	}
	return nil
}

// openState opens the key records, which locks the folder, then what is remembered of device and
// accounts, then the tokens.
func (a *app) openState(ctx context.Context, s settings, log *slog.Logger) (*keyring.Keyring, *devicestate.Folder, error) {
	records, err := store.Open(s.state)
	var locked *store.LockedError
	switch {
	case errors.As(err, &locked):
		return nil, nil, hint(err, "stop the other agent, or choose another folder by --state")
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, hint(err, "it must belong to this user and be writable by nobody else: chmod go-w; or choose another folder by --state")
	case err != nil:
		return nil, nil, err
	}
	identity, err := devicestate.Open(filepath.Join(s.state, "device"))
	if err != nil {
		return nil, nil, errors.Join(err, records.Close())
	}
	ring, err := a.openKeyring(ctx, s, log, records, identity)
	if err != nil {
		return nil, nil, errors.Join(err, identity.Close())
	}
	return ring, identity, nil
}

// openKeyring opens the tokens and takes over the records.
func (a *app) openKeyring(ctx context.Context, s settings, log *slog.Logger, records *store.Store, identity *devicestate.Folder) (*keyring.Keyring, error) {
	tokens, err := a.openTokens(ctx, s, log)
	if err != nil {
		return nil, errors.Join(err, records.Close())
	}
	ring, err := keyring.OpenConfig(keyring.Config{
		Store: records, Tokens: tokens,
		Software:      keyring.Software{NewPrivate: softkey.NewPrivate, NewKey: softkey.NewKey},
		RollbackGuard: s.guard, Companion: identity,
	})
	if err != nil {
		errs := []error{err, records.Close()}
		for _, t := range tokens {
			errs = append(errs, t.Close())
		}
		return nil, explainRing(errors.Join(errs...))
	}
	if err := ring.CheckRollback(ctx, nil); err != nil { // asked again when keys are used
		log.Warn("no key is used until this is mended", "err", err)
	}
	return ring, nil
}

// explainRing adds what to do if the guard against rollback is not the one that was, or not there.
func explainRing(err error) error {
	switch {
	case errors.Is(err, keyring.ErrNoGuard):
		return hint(err, "start with --rollback-guard, or give the guard up: remove generation.json from the state folder")
	case errors.Is(err, token.ErrNotFound):
		return hint(err, "--rollback-guard names a token that this agent has; mesh-agent doctor says why there is no TPM")
	}
	return err
}

// sockets takes the service manager's sockets or makes its own.
func (a *app) sockets(sshPath string) (sockets, error) {
	passed, ok, err := activatedSockets()
	if err != nil {
		return sockets{}, err
	}
	if ok {
		if passed.ssh == nil && sshPath != "" {
			passed.ssh, err = listen(sshPath)
		}
		return passed, err
	}
	path, err := a.socketPath()
	if err != nil {
		return sockets{}, err
	}
	return openSockets(path, cmp.Or(sshPath, filepath.Join(filepath.Dir(path), "ssh.sock")))
}

// logStart says what is there.
func logStart(log *slog.Logger, ring *keyring.Keyring, s sockets) {
	for _, t := range ring.Tokens() {
		info := t.Info()
		log.Info("token", "name", info.Name, "state", info.State, "protection", info.Protection, "description", info.Description)
	}
	if len(ring.Tokens()) == 0 {
		log.Warn("there is no token: no TPM found, and neither --software-keys nor --insecure-software-keys given")
	}
	for _, problem := range ring.Snapshot().Problems() {
		log.Warn("key record not loaded", "problem", problem)
	}
	log.Info("serving", "keys", len(ring.Snapshot().Entries()), "socket", address(s.mesh), "ssh", address(s.ssh))
}
