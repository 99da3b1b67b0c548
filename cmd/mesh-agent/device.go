package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newDeviceCommand(a *app) *cobra.Command {
	c := group("device", "The Mesh identity of this device",
		newDeviceInitCommand(a),
		newDeviceShowCommand(a),
		newDeviceProfileCommand(a),
		newDeviceRequestCommand(a),
		newDeviceWitnessCommand(a),
		newDeviceApproveCommand(a),
		newDeviceActivateCommand(a, "activate"),
		newDeviceActivateCommand(a, "update"),
		newDeviceVerifyCommand(a),
		newDeviceDisconnectCommand(a),
	)
	c.Long = `A device belongs to a Mesh account by keys that are its own: it has a profile with base
keys, asks an administrator for a connection, and adds what the administrator contributes
to each of its keys. What was verified is used; the keys stay in the agent and its tokens.

  mesh-agent device init --token soft >profile.json
  mesh-agent device request alice@example.com --pin - >request.json
  mesh-agent device approve MARP-...            what the administrator told you
  mesh-agent device activate response.json`
	return c
}

// addIdentityHomeFlags adds the flags that say where the keys of a device or account go.
func addIdentityHomeFlags(c *cobra.Command, home *mesh.Home) {
	c.Flags().StringVar(&home.Token, "token", "", "`name` of the token that holds the keys")
	c.Flags().StringVar(&home.SealTo, "seal-to", "", "`name` of the token that seals the keys it cannot hold (default: --token)")
	c.Flags().StringVar(&home.PIN, "pin", "", "when the keys need the token's PIN: none, once or always (default: as the token does; sealed, once)")
}

func newDeviceInitCommand(a *app) *cobra.Command {
	var req mesh.DeviceInitRequest
	var seed, profile string
	c := &cobra.Command{
		Use:   "init (--token TOKEN | --seal-to TOKEN)",
		Short: "Make this device's keys and profile",
		Long: `Makes the keys of the device, Encryption, Signature and Authentication, has the root
key sign a profile with them, and prints it: the enveloped ProfileDevice. The root key exists
only meanwhile, so that nobody can ever sign another profile by it.

With --token soft all keys are software. With --seal-to alone they are sealed by that token
and used in the agent's memory. With another --token the two keys for agreement are made
inside it, on a curve that it has, and the signature key is sealed by --seal-to, or by the
same token.

--seed takes the seed of a device that exists (a file or - for standard input: Z..., or the PrivateKeyUDF in
which the reference code keeps it, with the algorithms that it names), with
--profile its profile instead of a new one.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if req.Token == "" && req.SealTo == "" {
				return usageError{errors.New("--token or --seal-to is required")}
			}
			if seed != "" {
				if req.Seed, err = a.read(seed, maxSmall); err != nil {
					return err
				}
				defer clear(req.Seed)
			}
			if profile != "" {
				if req.Profile, err = a.readJSON(profile); err != nil {
					return err
				}
			}
			d, err := asked(c.Context(), a, (*client.Client).DeviceInit, req)
			if err != nil {
				return explainHome(req.Home, err)
			}
			a.say("device %s, keys: %s", d.Udf, d.Tier)
			for _, note := range d.Notes {
				a.say("%s", note)
			}
			if a.json {
				return a.printJSON(d)
			}
			return a.print(append(d.Profile, '\n'))
		},
	}
	addIdentityHomeFlags(c, &req.Home)
	c.Flags().StringVar(&req.Generation, "generation", "", "wire format: g1 (default) or g2")
	c.Flags().StringVar(&req.Algorithm, "alg", "", "`algorithm` of agreement keys that the token makes: X448, X25519, P256, P384 or P521")
	c.Flags().StringVar(&req.Description, "description", "", "`text` in the profile, for everybody to read")
	c.Flags().StringVar(&seed, "seed", "", "`file` with the seed of a device that exists")
	c.Flags().StringVar(&profile, "profile", "", "with --seed: `file` with its enveloped ProfileDevice")
	return c
}

// readJSON reads a file with one JSON value.
func (a *app) readJSON(name string) (strictjson.Value, error) {
	data, err := a.read(name, maxDocument)
	if err != nil {
		return nil, err
	}
	data = strictjson.EscapeControls(data)
	if err := strictjson.Valid(data); err != nil {
		return nil, fmt.Errorf("read %s: %w", title(name), err)
	}
	return data, nil
}

func title(name string) string {
	if name == "" || name == "-" {
		return "standard input"
	}
	return name
}

func newDeviceShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show",
		Short: "Show this device, its keys and its accounts",
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				d, err := conn.DeviceShow(c.Context())
				switch {
				case err != nil:
					return explainDevice(err)
				case a.json:
					return a.printJSON(d)
				}
				return a.printDevice(d)
			})
		},
	}
}

// explainDevice adds what to do where there is no device.
func explainDevice(err error) error {
	var status *client.StatusError
	if errors.As(err, &status) && strings.HasPrefix(status.Text, "device: there is none") {
		return hint(errors.New("this device has no Mesh identity yet"), "make one: mesh-agent device init")
	}
	return err
}

func (a *app) printDevice(d *mesh.DeviceInfo) error {
	rows := [][]string{{"udf", d.Udf}, {"generation", d.Generation}, {"keys", d.Tier}}
	for _, n := range d.Notes {
		rows = append(rows, []string{"", n})
	}
	rows = append(rows, keyRows(d.Generation, "base ", d.Keys)...)
	for _, p := range d.Approved {
		rows = append(rows, []string{"approved", p.Udf + " " + p.Address})
	}
	for _, q := range d.Requests {
		rows = append(rows, []string{"waits for", q.Account + " since " + q.Created.Format("2006-01-02 15:04 MST")})
	}
	for _, m := range d.Accounts {
		rows = append(rows, []string{"account", m.Udf + " " + m.Address})
		if len(m.Roles) > 0 {
			rows = append(rows, []string{"roles", strings.Join(m.Roles, ", ")})
		}
		rows = append(rows, keyRows(m.Generation, "", m.Keys)...)
	}
	return a.printTable(rows)
}

// keyRows describes keys, by their names in a generation.
func keyRows(generation, prefix string, keys []mesh.NamedKey) (rows [][]string) {
	for _, k := range keys {
		text := k.Udf + "  gone"
		if k.Algorithm != "" {
			udf := k.Udf
			if generation == mesh.G2.String() {
				udf = k.UdfG2
			}
			text = fmt.Sprintf("%s  %s, use %s, %s (%s)", udf, k.Algorithm, useAndRelease(k.Use, k.Release), k.Protection, k.Token)
		}
		rows = append(rows, []string{prefix + k.Name, text})
	}
	return rows
}

func newDeviceProfileCommand(a *app) *cobra.Command {
	var udf, connection bool
	c := &cobra.Command{
		Use:   "profile",
		Short: "Print this device's profile, or its name",
		Long: `Prints the enveloped ProfileDevice; with --udf the device's name, which its administrator
compares; with --connection the enveloped ConnectionDevice that the account's other devices take.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				d, err := conn.DeviceShow(c.Context())
				switch {
				case err != nil:
					return explainDevice(err)
				case udf:
					return a.print([]byte(d.Udf + "\n"))
				case connection && len(d.Accounts) != 1:
					return fmt.Errorf("the device is connected to %d accounts, want one", len(d.Accounts))
				case connection:
					return a.print(append(d.Accounts[0].ConnectionDevice, '\n'))
				}
				return a.print(append(d.Profile, '\n'))
			})
		},
	}
	c.Flags().BoolVar(&udf, "udf", false, "print the name only")
	c.Flags().BoolVar(&connection, "connection", false, "print the connection to the account")
	return c
}

func newDeviceRequestCommand(a *app) *cobra.Command {
	var pin string
	c := &cobra.Command{
		Use:   "request ADDRESS",
		Short: "Ask an account's administrator for a connection",
		Long: `Prints an enveloped RequestConnection for the account of an address, such as
alice@example.com, to be given to its administrator. With a PIN, which the administrator made
for this device (mesh-agent account pin), the request proves whose it is; without, compare
the witness (mesh-agent device witness).`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, addresses []string) error {
			req := mesh.DeviceConnectRequest{Account: addresses[0]}
			if pin != "" {
				data, err := a.readLine(c.Context(), pin, "PIN")
				if err != nil {
					return err
				}
				defer clear(data)
				req.PIN = data
			}
			made, err := asked(c.Context(), a, (*client.Client).DeviceConnect, req)
			switch {
			case err != nil:
				return explainDevice(err)
			case a.json:
				return a.printJSON(made)
			}
			a.say("request %s", made.MessageId)
			return a.print(append(made.Request, '\n'))
		},
	}
	c.Flags().StringVar(&pin, "pin", "", "`file` with the PIN, or - for standard input")
	return c
}

// readLine reads a secret of one line from a file, or asks for it.
func (a *app) readLine(ctx context.Context, name, what string) ([]byte, error) {
	if name == "-" {
		return a.secret(ctx, what)
	}
	data, err := a.read(name, maxSmall)
	if err != nil {
		return nil, err
	}
	for len(data) > 0 && (data[len(data)-1] == '\n' || data[len(data)-1] == '\r') {
		data = data[:len(data)-1]
	}
	return data, nil
}

func newDeviceWitnessCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "witness [FILE]",
		Short: "Print the witness of a request, to be compared with the administrator's",
		Long: `Reads the answer to a request (ConnectResponse: the acknowledgement and the account's
profile, see "mesh-agent account acknowledge") and prints the witness, as this device
computes it. If the administrator sees the same, approve the account that it names.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			data, err := a.readJSON(optional(files))
			if err != nil {
				return err
			}
			w, err := asked(c.Context(), a, (*client.Client).DeviceWitness, mesh.DeviceWitnessRequest{ConnectResponse: data})
			switch {
			case err != nil:
				return explainDevice(err)
			case a.json:
				return a.printJSON(w)
			}
			a.say("if the administrator of %s sees the same: mesh-agent device approve %s", w.Account.Address, w.Account.Udf)
			return a.print([]byte(w.Witness + "\n"))
		},
	}
}

func newDeviceApproveCommand(a *app) *cobra.Command {
	var req mesh.DeviceApproveRequest
	c := &cobra.Command{
		Use:   "approve ACCOUNT",
		Short: "Approve the account that may activate this device",
		Long: `Approves an account by the UDF of its profile, which you have from its administrator or
from a witness that you compared. No other account can activate the device. Its name never
changes; that of its address is a label.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			req.Account = names[0]
			return a.with(c.Context(), func(conn *client.Client) error {
				return explainDevice(conn.DeviceApprove(c.Context(), req))
			})
		},
	}
	c.Flags().StringVar(&req.Address, "address", "", "the account's `address`, a label")
	c.Flags().BoolVar(&req.Revoke, "withdraw", false, "the account may activate the device no more")
	return c
}

const activateHelp = `
A failed verification names its step. An application's key is not signed: it is taken only if --applications has the
entry of the account's catalog with its public key, or --accept-key its UDF. Where nothing
shows that a connection is newer than the one in use, --confirm says that it is.

With --release plaintext nothing leaves the agent of what is encrypted to this device but contents that it has looked at,
which are no activation and which nobody can have altered: those of envelopes of A256GCM, or signed by the account with a key
that is not in this agent. What is encrypted to the account is as before. Updates keep to it, and to --inside-only.`

func newDeviceActivateCommand(a *app, name string) *cobra.Command {
	var req mesh.DeviceActivateRequest
	var applications []string
	var index int64
	var tree string
	c := &cobra.Command{
		Use:   name + " [FILE]",
		Short: "Verify a connection to an approved account and take it into use",
		Long: `Reads an enveloped RespondConnection or a CatalogedDevice, alone or as a frame of the account's catalog,
verifies all of it, and makes
the keys of the connection: this device's base keys, wherever they are, with the account's
contributions, and the account's own keys that were granted. What was decrypted for that is wiped.
` + activateHelp,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) (err error) {
			if req.Catalog, err = a.readJSON(optional(files)); err != nil {
				return err
			}
			for _, file := range applications {
				entries, err := a.readApplications(file)
				if err != nil {
					return err
				}
				req.Applications = append(req.Applications, entries...)
			}
			if c.Flags().Changed("frame") {
				req.Frame = &mesh.CatalogFrame{Index: index}
			}
			if c.Flags().Changed("frame-tree") {
				digest, err := base64.RawURLEncoding.DecodeString(tree)
				if req.Frame == nil || err != nil {
					return usageError{errors.New("--frame-tree: base64url expected, with the index in --frame")}
				}
				req.Frame.Tree = digest
			}
			return a.activate(c.Context(), req)
		},
	}
	if name == "update" {
		req.Update = true
		c.Short = "Take a newer connection, or the end of it, into use"
		c.Long = `Reads a newer CatalogedDevice of an account to which the device is connected, alone, in an enveloped
RespondConnection or as a frame of the account's catalog, verifies all of it and takes it into use in place of the one before, or an enveloped
DeviceRevocation, which ends it. What was replaced once is never taken again. Keys of applications that the device has
need no second confirmation; those that are no more in the entry are deleted.
` + activateHelp
	}
	c.Flags().StringArrayVar(&applications, "applications", nil, "`file` with one or an array of entries of the account's catalog of applications; once for each")
	c.Flags().StringArrayVar(&req.Accept, "accept-key", nil, "`UDF` of an application's key that you know to be right; once for each")
	c.Flags().BoolVar(&req.Confirm, "confirm", false, "it is newer than the one in use")
	c.Flags().BoolVar(&req.Unsolicited, "unsolicited", false, "accept an answer although this device asked for none, as one that was preconfigured")
	c.Flags().BoolVar(&req.AllowUnnamed, "allow-unnamed-account", false, "accept connections that name no account, as those before May 2022")
	c.Flags().BoolVar(&req.InsideOnly, "inside-only", false, "nothing that is encrypted to the device opens for clients, only activations inside the agent")
	c.Flags().StringVar(&req.Release, "release", "", "the most that the device's combined key gives out, the `form` seed (default), key or plaintext")
	c.Flags().Int64Var(&index, "frame", 0, "`index` of the entry's frame in the account's catalog, where FILE is not the frame itself")
	c.Flags().StringVar(&tree, "frame-tree", "", "apex `digest` of the catalog's Merkle tree with that frame, base64url")
	return c
}

func (a *app) activate(ctx context.Context, req mesh.DeviceActivateRequest) error {
	done, err := asked(ctx, a, (*client.Client).DeviceActivate, req)
	if err != nil {
		return explainActivation(err)
	}
	for _, refused := range done.Refused {
		a.say("not taken: %s", refused)
	}
	switch {
	case a.json:
		return a.printJSON(done)
	case done.Revoked:
		a.say("the device is no more connected to %s %s", done.Account.Udf, done.Account.Address)
		return nil
	}
	a.say("connected to %s %s", done.Account.Udf, done.Account.Address)
	return a.printTable(keyRows(done.Account.Generation, "", done.Account.Keys))
}

// explainActivation adds what to do about a connection that is not taken.
func explainActivation(err error) error {
	var status *client.StatusError
	if !errors.As(err, &status) {
		return err
	}
	switch {
	case strings.HasPrefix(status.Text, "policy: no account is approved"), strings.Contains(status.Text, "step 1 account profile"):
		return hint(err, "approve the account by the UDF that its administrator tells you: mesh-agent device approve UDF")
	case strings.Contains(status.Text, "answers no request"):
		return hint(err, "answers are taken once; for a device that was preconfigured and asked for nothing, add --unsolicited")
	case strings.HasPrefix(status.Text, "Confirm:"):
		return hint(err, "if you know that it is newer, add --confirm")
	}
	return explainDevice(err)
}

func newDeviceDisconnectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "disconnect ACCOUNT",
		Short: "Delete what this device has of an account",
		Long: `Deletes the keys that the device has of an account, and remembers what connected it, so
that it is not taken again. The base keys stay.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				return explainDevice(conn.DeviceDisconnect(c.Context(), names[0]))
			})
		},
	}
}
