package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newAccountCommand(a *app) *cobra.Command {
	c := group("account", "Accounts of which this agent is the administrator",
		newAccountInitCommand(a),
		newAccountRecoverCommand(a),
		newAccountEscrowCommand(a),
		newAccountForgetSeedCommand(a),
		newAccountListCommand(a),
		newAccountShowCommand(a),
		newAccountProfileCommand(a),
		newAccountPINCommand(a),
		newAccountAcknowledgeCommand(a),
		newAccountConnectCommand(a),
		newAccountGrantCommand(a),
		newAccountApplicationsCommand(a),
		newAccountRevokeCommand(a),
	)
	c.Long = `An administrator connects devices to an account. The account's seed stays in the agent;
its escrow shares are shown once. Where the agent administers one account only, its name
need not be given; otherwise it is the UDF of its profile, or its address.`
	return c
}

func newAccountInitCommand(a *app) *cobra.Command {
	var req mesh.AccountInitRequest
	c := &cobra.Command{
		Use:   "init ADDRESS (--token TOKEN | --seal-to TOKEN)",
		Short: "Make an account and print its escrow shares, once",
		Long: `Makes an account with its keys, signs its profile, and prints escrow shares, one in a line:
--threshold of them recover the account (mesh-agent account recover). They were tried
before they are printed, and are printed this once. Give them to people and places
that do not meet by chance.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, addresses []string) error {
			req.Address = addresses[0]
			return a.makeAccount(c.Context(), req)
		},
	}
	addIdentityHomeFlags(c, &req.Home)
	c.Flags().StringVar(&req.Generation, "generation", "", "wire format: g1 (default) or g2")
	c.Flags().IntVar(&req.Shares, "shares", 3, "`number` of escrow shares")
	c.Flags().IntVar(&req.Threshold, "threshold", 2, "`number` of them that recover the account")
	return c
}

// makeAccount makes or recovers an account and prints what there is to print.
func (a *app) makeAccount(ctx context.Context, req mesh.AccountInitRequest) error {
	if (req.Token == "") == (req.SealTo == "") {
		return usageError{errors.New("one of --token and --seal-to is required")}
	}
	made, err := asked(ctx, a, (*client.Client).AccountInit, req)
	if err != nil {
		return explainHome(req.Home, err)
	}
	return a.printShares(made)
}

// printShares prints escrow shares, one in a line, and wipes them.
func (a *app) printShares(made *mesh.AccountInitResponse) error {
	defer made.Wipe()
	a.say("account %s %s", made.Account.Udf, made.Account.Address)
	if len(made.Shares) > 0 {
		a.say("escrow shares follow, for the only time:")
	}
	if a.json {
		var shares []string
		for _, s := range made.Shares {
			shares = append(shares, string(s))
		}
		return a.printJSON(struct {
			Udf    string
			Shares []string `json:",omitzero"`
		}{made.Account.Udf, shares})
	}
	var out []byte
	defer func() { clear(out) }()
	for _, s := range made.Shares {
		out = append(append(out, s...), '\n')
	}
	return a.print(out)
}

func newAccountRecoverCommand(a *app) *cobra.Command {
	var req mesh.AccountInitRequest
	var profile string
	c := &cobra.Command{
		Use:   "recover [FILE] (--profile FILE | --address ADDRESS)",
		Short: "Take over an account again, from its escrow shares",
		Long: `Reads escrow shares, one in a line, from FILE or standard input, as many as are needed, and makes
this agent an administrator of their account. With its profile, the shares are checked
against it; without, a profile is made anew, which has the same name.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			if profile == "" && req.Address == "" {
				return usageError{errors.New("--profile or --address is required")}
			}
			var err error
			if req.Recover, err = a.readShares(optional(files)); err != nil {
				return err
			}
			defer req.Wipe()
			if profile != "" {
				if req.Profile, err = a.readJSON(profile); err != nil {
					return err
				}
			}
			return a.makeAccount(c.Context(), req)
		},
	}
	addIdentityHomeFlags(c, &req.Home)
	c.Flags().StringVar(&profile, "profile", "", "`file` with the account's enveloped ProfileUser")
	c.Flags().StringVar(&req.Address, "address", "", "the account's `address`, without --profile")
	c.Flags().StringVar(&req.Generation, "generation", "", "without --profile: g1 (default) or g2")
	return c
}

func newAccountEscrowCommand(a *app) *cobra.Command {
	var req mesh.AccountEscrowRequest
	c := &cobra.Command{
		Use:   "escrow [ACCOUNT]",
		Short: "Split an account's seed into new escrow shares",
		Long: `Prints new escrow shares of an account, one in a line. Shares of different splittings do not
go together; the old ones still recover the account.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			req.Account = optional(names)
			made, err := asked(c.Context(), a, (*client.Client).AccountEscrow, req)
			if err != nil {
				return err
			}
			return a.printShares(made)
		},
	}
	c.Flags().IntVar(&req.Shares, "shares", 3, "`number` of escrow shares")
	c.Flags().IntVar(&req.Threshold, "threshold", 2, "`number` of them that recover the account")
	return c
}

// readShares reads escrow shares, one in a line. The caller wipes them.
func (a *app) readShares(name string) ([]mesh.Binary, error) {
	data, err := a.read(name, maxSmall)
	if err != nil {
		return nil, err
	}
	var shares []mesh.Binary
	for _, line := range bytes.Fields(data) {
		shares = append(shares, line)
	}
	if len(shares) == 0 {
		return nil, errors.New("there is no share")
	}
	return shares, nil
}

func newAccountForgetSeedCommand(a *app) *cobra.Command {
	var req mesh.AccountForgetRequest
	c := &cobra.Command{
		Use:   "forget-seed [FILE]",
		Short: "Delete an account's seed here, once its escrow shares are safe",
		Long: `Reads escrow shares, one in a line, from FILE or standard input, as many as recover the
account. If they give its seed back, the agent deletes the seed. The account's keys stay: with them
devices are revoked, and connected with --no-common. To grant keys or make new shares,
recover the account first (mesh-agent account recover).`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) (err error) {
			if req.Recover, err = a.readShares(optional(files)); err != nil {
				return err
			}
			defer req.Wipe()
			return a.with(c.Context(), func(conn *client.Client) error {
				return conn.AccountForget(c.Context(), req)
			})
		},
	}
	c.Flags().StringVar(&req.Account, "account", "", "UDF or address of the `account`")
	return c
}

func newAccountListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the accounts and their devices",
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			accounts, err := asked(c.Context(), a, (*client.Client).AccountList, mesh.AccountListRequest{})
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(append([]mesh.AccountInfo{}, accounts...))
			}
			rows := [][]string{{"UDF", "ADDRESS", "DEVICE", "STATE"}}
			for _, account := range accounts {
				rows = append(rows, []string{account.Udf, account.Address, "", "administrator"})
				rows = append(rows, deviceRows(account)...)
			}
			return a.printTable(rows)
		},
	}
}

func deviceRows(account mesh.AccountInfo) (rows [][]string) {
	for _, d := range account.Devices {
		state := "connected"
		if d.Revoked {
			state = "revoked"
		}
		rows = append(rows, []string{account.Udf, account.Address, d.Udf, state})
	}
	return rows
}

// oneAccount returns an account with its applications; without a name the only one.
func (a *app) oneAccount(ctx context.Context, name string) (found *mesh.AccountInfo, err error) {
	err = a.with(ctx, func(conn *client.Client) error {
		accounts, err := conn.AccountList(ctx, mesh.AccountListRequest{Account: name})
		if err == nil && name == "" && len(accounts) == 1 { // a list of all has no applications
			accounts, err = conn.AccountList(ctx, mesh.AccountListRequest{Account: accounts[0].Udf})
		}
		switch {
		case err != nil:
			return err
		case len(accounts) == 0:
			return hint(errors.New("this agent administers no account"), "make one: mesh-agent account init")
		case len(accounts) > 1:
			return errors.New("there are several accounts, name one")
		}
		found = &accounts[0]
		return nil
	})
	return found, err
}

func newAccountShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show [ACCOUNT]",
		Short: "Show an account and its keys",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			account, err := a.oneAccount(c.Context(), optional(names))
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(account)
			}
			rows := [][]string{{"udf", account.Udf}, {"address", account.Address}, {"generation", account.Generation}}
			rows = append(rows, keyRows(account.Generation, "", account.Keys)...)
			for _, d := range deviceRows(*account) {
				rows = append(rows, []string{"device", d[2] + " " + d[3]})
			}
			for _, entry := range account.Applications {
				rows = append(rows, []string{"application", applicationTitle(entry)})
			}
			return a.printTable(rows)
		},
	}
}

func newAccountProfileCommand(a *app) *cobra.Command {
	var udf bool
	c := &cobra.Command{
		Use:   "profile [ACCOUNT]",
		Short: "Print an account's profile, or its name",
		Long:  `Prints the enveloped ProfileUser; with --udf the account's name, which devices approve.`,
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			account, err := a.oneAccount(c.Context(), optional(names))
			switch {
			case err != nil:
				return err
			case udf:
				return a.print([]byte(account.Udf + "\n"))
			}
			return a.print(append(account.Profile, '\n'))
		},
	}
	c.Flags().BoolVar(&udf, "udf", false, "print the name only")
	return c
}

func newAccountPINCommand(a *app) *cobra.Command {
	var req mesh.AccountPINRequest
	c := &cobra.Command{
		Use:   "pin [ACCOUNT]",
		Short: "Make a PIN for connecting one device",
		Long: `Prints a PIN with which one device may prove, once, that its request is the one that you
expect (--json: an object {"PIN":"..."}). Carry it to the device by a way that others cannot read.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			req.Account = optional(names)
			made, err := asked(c.Context(), a, (*client.Client).AccountPIN, req)
			if err != nil {
				return err
			}
			defer made.Wipe()
			a.say("for account %s %s, which the device approves by this name", made.Account.Udf, made.Account.Address)
			out := append(made.PIN, '\n')
			if a.json {
				out = fmt.Appendf(nil, `{"PIN":"%s"}`+"\n", made.PIN)
			}
			defer clear(out)
			return a.print(out)
		},
	}
	c.Flags().IntVar(&req.Hours, "hours", 24, "how many `hours` it is good")
	return c
}

func newAccountAcknowledgeCommand(a *app) *cobra.Command {
	var req mesh.AccountAcknowledgeRequest
	c := &cobra.Command{
		Use:   "acknowledge [FILE]",
		Short: "Answer a request so that both sides can compare a witness",
		Long: `Reads an enveloped RequestConnection and prints a ConnectResponse for the device ("device
witness"). The witness goes to standard error: with the same words read from the
device, "account connect --witness" connects it.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) (err error) {
			if req.Request, err = a.readJSON(optional(files)); err != nil {
				return err
			}
			made, err := asked(c.Context(), a, (*client.Client).AccountAcknowledge, req)
			switch {
			case err != nil:
				return err
			case a.json:
				return a.printJSON(made)
			}
			a.say("device %s", made.Device)
			a.say("witness %s", made.Witness)
			return a.print(append(made.ConnectResponse, '\n'))
		},
	}
	c.Flags().StringVar(&req.Account, "account", "", "UDF or address of the `account`")
	return c
}

func newAccountConnectCommand(a *app) *cobra.Command {
	var req mesh.AccountConnectRequest
	var catalog bool
	c := &cobra.Command{
		Use:   "connect [FILE]",
		Short: "Connect the device of a request",
		Long: `Reads an enveloped RequestConnection and prints the answer for the device: an enveloped
RespondConnection, which only that device opens; with --catalog the CatalogedDevice that it
holds. The request must prove a PIN of "account pin", or you give the witness that the
device shows, or the UDF that it shows ("device profile --udf").

The device gets the account's keys for encryption, signature and authentication and those
of its stores, unless --no-common is given; keys of applications if they are granted, here or
later by "account grant". A device that is connected already gets other keys of its own; it keeps those of
applications, unless --no-applications is given.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) (err error) {
			if req.Request, err = a.readJSON(optional(files)); err != nil {
				return err
			}
			made, err := asked(c.Context(), a, (*client.Client).AccountConnect, req)
			if err != nil {
				return explainConnect(err)
			}
			return a.printConnection(c.Context(), made, catalog)
		},
	}
	c.Flags().StringVar(&req.Account, "account", "", "UDF or address of the `account` (default: that of the request)")
	c.Flags().StringVar(&req.Witness, "witness", "", "the `words` that the device shows as its witness")
	c.Flags().StringVar(&req.Device, "device", "", "the `UDF` that the device shows as its own")
	c.Flags().StringArrayVar(&req.Roles, "role", nil, "a `role` of the device; once for each")
	c.Flags().BoolVar(&req.Administer, "administrator", false, "grant the administrator's key")
	c.Flags().BoolVar(&req.Super, "super", false, "hand over the account's seed, from which all its keys follow")
	c.Flags().BoolVar(&req.NoCommon, "no-common", false, "do not grant the account's own keys")
	c.Flags().StringArrayVar(&req.Stores, "store", nil, "grant the key of this `store`; once for each")
	addGrantFlags(c, &req.ApplicationGrants)
	c.Flags().BoolVar(&req.NoApplications, "no-applications", false, "do not keep the keys of applications that the device had")
	c.Flags().BoolVar(&catalog, "catalog", false, "print the CatalogedDevice")
	return c
}

// explainConnect adds what to do about a request that is not approved, or asks for too much.
func explainConnect(err error) error {
	var status *client.StatusError
	switch {
	case !errors.As(err, &status):
		return err
	case strings.HasPrefix(status.Text, "policy: the request proves no PIN"):
		return hint(err, "compare what the device shows: --device UDF, or --witness after mesh-agent account acknowledge")
	case strings.HasPrefix(status.Text, "Device: its entry would not fit"):
		return hint(err, "grant fewer addresses; account connect --no-applications drops those that the device had")
	}
	return err
}

func newAccountRevokeCommand(a *app) *cobra.Command {
	var req mesh.AccountRevokeRequest
	c := &cobra.Command{
		Use:   "revoke DEVICE",
		Short: "End the connection of a device",
		Long: `Marks a device as revoked and prints a signed statement of it, an enveloped DeviceRevocation,
by which the device forgets its keys ("device update") if it is still in good hands. What
the device has is not taken from it by force: services and other devices must drop its entry.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			req.Device = names[0]
			statement, err := asked(c.Context(), a, (*client.Client).AccountRevoke, req)
			if err != nil {
				return err
			}
			return a.print(fmt.Appendf(nil, "%s\n", statement))
		},
	}
	c.Flags().StringVar(&req.Account, "account", "", "UDF or address of the `account`")
	return c
}
