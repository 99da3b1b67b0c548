package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// addGrantFlags adds the flags that say which keys of applications a device gets.
func addGrantFlags(c *cobra.Command, grants *mesh.ApplicationGrants) {
	c.Flags().BoolVar(&grants.GrantSsh, "grant-ssh", false, "grant the account's key for SSH, which is made if there is none")
	c.Flags().StringArrayVar(&grants.GrantMail, "grant-mail", nil, "grant the S/MIME and OpenPGP keys of this mail `address`; once for each")
}

func newAccountGrantCommand(a *app) *cobra.Command {
	var req mesh.AccountGrantRequest
	var catalog bool
	c := &cobra.Command{
		Use:   "grant DEVICE (--grant-ssh | --grant-mail ADDRESS)",
		Short: "Give a connected device keys of applications",
		Long: `Prints what the device takes by "device update", with the keys of applications that it had and
the new ones: an enveloped RespondConnection, which only that device opens; with --catalog its
CatalogedDevice. The keys are RSA keys, the same on all devices that get them.

The device takes a key only with the entry of "account applications", since nobody signs activations
of applications. A key for SSH that is made on the device ("key generate --use ssh") is
better: it was never anywhere else.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			if !req.GrantSsh && len(req.GrantMail) == 0 {
				return usageError{errors.New("--grant-ssh or --grant-mail is required")}
			}
			req.Device = names[0]
			made, err := asked(c.Context(), a, (*client.Client).AccountGrant, req)
			if err != nil {
				return explainConnect(err)
			}
			return a.printConnection(c.Context(), made, catalog)
		},
	}
	addGrantFlags(c, &req.ApplicationGrants)
	c.Flags().StringVar(&req.Account, "account", "", "UDF or address of the `account`")
	c.Flags().BoolVar(&catalog, "catalog", false, "print the CatalogedDevice")
	return c
}

// printConnection prints what the administrator gives a device, and says whose keys are in it. An entry for which the answer had
// no room is fetched.
func (a *app) printConnection(ctx context.Context, made *mesh.AccountConnectResponse, catalog bool) error {
	if len(made.Applications) > 0 {
		a.say("with keys of %s", strings.Join(made.Applications, ", "))
	}
	switch {
	case a.json:
		return a.printJSON(made)
	case !catalog:
		return a.print(append(made.Response, '\n'))
	case made.CatalogedDevice == nil:
		accounts, err := asked(ctx, a, (*client.Client).AccountList, mesh.AccountListRequest{Account: made.Account, Device: made.Device})
		if err != nil {
			return err
		}
		made.CatalogedDevice = accounts[0].Devices[0].Entry
	}
	return a.print(append(made.CatalogedDevice, '\n'))
}

func newAccountApplicationsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "applications [ACCOUNT]",
		Short: "Print the entries of the account's applications",
		Long: `Prints, as one JSON array, the entries for the account's catalog of applications
(CatalogedApplicationSsh, CatalogedApplicationMail): by them devices confirm the keys that they are
given ("device activate --applications"). Bring them to a device by a way on which nobody can
change them. They hold public keys, and the mail keys for decryption encrypted to the account's escrow
key: "key import --unwrap-with" brings these back.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			account, err := a.oneAccount(c.Context(), optional(names))
			if err != nil {
				return err
			}
			return a.printJSON(append([]strictjson.Value{}, account.Applications...))
		},
	}
}

// applicationTitle is an application's kind and key, for people.
func applicationTitle(entry strictjson.Value) string {
	var tagged strictjson.Tagged
	var body struct {
		Key   string
		Other strictjson.Value `json:",embed"`
	}
	if strictjson.Unmarshal(entry, &tagged) != nil || tagged.Decode(&body) != nil {
		return "unreadable"
	}
	return strings.TrimPrefix(tagged.Tag, "CatalogedApplication") + " " + body.Key
}

// readApplications reads a file with one entry of a catalog of applications, or with an array of them. Escrowed
// keys, which say nothing to a device, are left out, so that more entries fit into a request.
func (a *app) readApplications(name string) ([]strictjson.Value, error) {
	data, err := a.readJSON(name)
	if err != nil {
		return nil, err
	}
	entries := []strictjson.Value{data}
	if data.Kind() == '[' {
		if err := strictjson.Unmarshal(data, &entries); err != nil {
			return nil, err
		}
	}
	for i, text := range entries {
		var tagged map[string]map[string]strictjson.Value
		if strictjson.Unmarshal(text, &tagged) != nil {
			continue // the agent says what is wrong
		}
		for _, members := range tagged {
			delete(members, "EnvelopedEscrow")
		}
		if entries[i], err = strictjson.Marshal(tagged); err != nil {
			return nil, err
		}
	}
	return entries, nil
}
