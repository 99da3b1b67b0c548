package main

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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
	root.PersistentPreRunE = checkWords
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	flags := root.PersistentFlags()
	flags.StringVar(&a.socket, "socket", "", "the agent's `socket` (default $MESH_AGENT_SOCK, else $XDG_RUNTIME_DIR/mesh-agent/agent.sock)")
	flags.StringVar(&a.state, "state", "", "the `folder` of the key records, for serve (default $XDG_STATE_HOME/mesh-agent)")
	flags.StringVar(&a.config, "config", "", "the configuration `file`, for serve (default $XDG_CONFIG_HOME/mesh-agent/config.toml)")
	flags.BoolVar(&a.json, "json", false, "print JSON")
	makeStrict(root)
	addCompletions(a, root)
	return root
}

// makeStrict has cobra's own commands, help and completion, refuse what they do not understand as the others do.
func makeStrict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			c.Run, c.RunE = nil, func(c *cobra.Command, words []string) error {
				about, rest, err := c.Root().Find(words)
				switch {
				case err != nil:
					return usageError{err}
				case len(rest) != 0:
					return unknownCommand(about, rest[0])
				}
				return about.Help()
			}
		case "completion":
			c.Args, c.RunE = cobra.ArbitraryArgs, runGroup
			for _, shell := range c.Commands() {
				shell.Args = args(cobra.NoArgs)
			}
		}
	}
}

// group returns a command that only holds others: alone, or with a word that is none
// of them, it is a usage error.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: runGroup}
	c.AddCommand(commands...)
	return c
}

func runGroup(c *cobra.Command, words []string) error {
	if len(words) == 0 {
		return usageError{errors.New("subcommand needed")}
	}
	return unknownCommand(c, words[0])
}

// unknownCommand is the error of a word that names no command of a group.
func unknownCommand(c *cobra.Command, word string) error {
	err := usageError{fmt.Errorf("unknown command %q", word)}
	c.SuggestionsMinimumDistance = 2 // letters that may be wrong
	if near := c.SuggestionsFor(word); len(near) != 0 {
		return hint(err, fmt.Sprintf("perhaps `%s %s`; `%[1]s --help` lists all", c.CommandPath(), near[0]))
	}
	return err
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

// checkWords refuses a flag or an argument that is there and empty: a variable of a script that is not
// set must not pass for a check that nobody asked for, for standard input, or for the usual place. What is
// no path must be UTF-8, as all that goes into messages.
func checkWords(c *cobra.Command, words []string) (err error) {
	if c.Name() == cobra.ShellCompRequestCmd || c.Name() == cobra.ShellCompNoDescRequestCmd {
		return nil // the word that is to be completed
	}
	mayBeEmpty := []string{"label", "key-name", "rsa-label", "content-type", "description", "tpm"}
	invalid := func(word string) bool { return !utf8.ValidString(word) }
	c.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		switch {
		case slices.Contains(values, "") && !slices.Contains(mayBeEmpty, f.Name):
			err = usageError{fmt.Errorf("--%s is empty", f.Name)}
		case !takesPath(f) && slices.ContainsFunc(values, invalid):
			err = usageError{fmt.Errorf("--%s is not UTF-8", f.Name)}
		}
	})
	takesFiles := c.ValidArgsFunction == nil
	switch {
	case err != nil:
	case slices.Contains(words, ""):
		err = usageError{errors.New("an argument is empty")}
	case !takesFiles && slices.ContainsFunc(words, invalid):
		err = usageError{errors.New("an argument is not UTF-8")}
	}
	return err
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
