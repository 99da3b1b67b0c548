package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
)

// app is what the commands share: the world and the flags that every command takes.
type app struct {
	world
	socket string
	state  string
	config string
	json   bool
}

func newRootCommand(a *app) *cobra.Command {
	root := group("mesh-agent", "Guard private keys for the Mathematical Mesh and for SSH",
		newServeCommand(a),
		newStatusCommand(a),
		newDoctorCommand(a),
		newStoreCommand(a),
		newTokenCommand(a),
		newKeyCommand(a),
		newOperateCommand(a),
		newSignCommand(a),
		newVerifyCommand(a),
		newAgreeCommand(a),
		newAuthenticateCommand(a),
		newDecryptCommand(a),
		newEncryptCommand(a),
		newShareCommand(a),
		newAttestCommand(a),
		newDeviceCommand(a),
		newAccountCommand(a),
		newHelperCommand(),
	)
	root.Long = `mesh-agent guards the private keys of one device. Keys live in tokens: a TPM 2.0, a
PIV card, an HSM behind a PKCS #11 module, or software where there is no hardware.
"mesh-agent serve" is the daemon; SSH and Mesh clients talk to it over Unix sockets, and so
do the other commands.`
	root.Version = version()
	root.SilenceErrors, root.SilenceUsage = true, true
	root.PersistentPreRunE = refuseEmpty
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.socket, "socket", "", "the agent's `socket` (default $MESH_AGENT_SOCK, else $XDG_RUNTIME_DIR/mesh-agent/agent.sock)")
	flags.StringVar(&a.state, "state", "", "the `folder` of the key records, for serve (default $XDG_STATE_HOME/mesh-agent)")
	flags.StringVar(&a.config, "config", "", "the configuration `file`, for serve (default $XDG_CONFIG_HOME/mesh-agent/config.toml)")
	flags.BoolVar(&a.json, "json", false, "print JSON")
	return root
}

// group returns a command that only holds others: alone, or with a word that is none
// of them, it is a usage error.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("subcommand needed")}
			}
			return usageError{fmt.Errorf("unknown command %q", args[0])}
		},
	}
	c.AddCommand(commands...)
	return c
}

// args makes a rule for positional arguments a usage error.
func args(rule cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		if err := rule(c, given); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// refuseEmpty refuses a flag that names what is wanted and is empty: a variable of a script that is not
// set must not pass for a check that nobody asked for.
func refuseEmpty(c *cobra.Command, _ []string) error {
	for _, name := range []string{"account", "device", "pin", "witness", "signer", "seed", "profile", "passphrase-file", "unwrap-with", "frame-tree"} {
		if f := c.Flags().Lookup(name); f != nil && f.Changed && slices.Contains([]string{"", "[]"}, f.Value.String()) {
			return usageError{fmt.Errorf("--%s is empty", name)}
		}
	}
	return nil
}

// required marks flags that must be given.
func required(c *cobra.Command, names ...string) {
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		for _, name := range names {
			if !c.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is required", name)}
			}
		}
		return nil
	}
}
