package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
)

func newStoreCommand(a *app) *cobra.Command {
	return group("store", "Mend the key records", newAcceptRollbackCommand(a))
}

func newAcceptRollbackCommand(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "accept-rollback",
		Short: "Take restored key records for the last ones",
		Long: `Takes the key records as they are for the last ones, where the agent runs with
--rollback-guard and found that they are not. Keys that were deleted or made since the copy are
back or gone. Do it only if you restored the state folder yourself.
On a terminal it asks first, unless --yes is given.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if tty, ok := a.terminal(); ok && !yes {
				if err := a.confirm(tty, "Use key records that are not the last ones? Type yes: "); err != nil {
					return err
				}
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				err := conn.AcceptRollback(c.Context())
				var status *client.StatusError
				if errors.As(err, &status) && status.Status == 501 {
					return hint(err, "there is nothing to accept: the agent guards them with serve --rollback-guard tpm only")
				}
				return err
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}
