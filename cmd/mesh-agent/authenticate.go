package main

import (
	"encoding/base64"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newAuthenticateCommand(a *app) *cobra.Command {
	var key, peer, first string
	c := &cobra.Command{
		Use:   "authenticate --key UDF --peer FILE --agreement FILE",
		Short: "Derive the keys of a session with a service",
		Long: `Prints the two AES-256 keys of a mutually authenticated session, base64url: that of the
initiator, which is the client, and that of the responder. --peer is a file with the
service's ephemeral public key, --agreement one with the first agreement, of the client's
ephemeral key and the service's key, in base64url. The key has use authenticate; its
agreement stays in the agent.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			op := mesh.OperationAuthenticate{KeyId: key}
			public, err := a.readPoint(peer)
			if err != nil {
				return err
			}
			op.PublicKey = mesh.PublicParameters{PublicKeyECDH: &public}
			text, err := a.readLine(c.Context(), first, "agreement")
			if err != nil {
				return err
			}
			defer clear(text)
			agreement, err := strictjson.DecodeBase64(text)
			if err != nil {
				return fmt.Errorf("read %s: base64url expected", title(first))
			}
			defer clear(agreement)
			op.Agreement = agreement
			return a.with(c.Context(), func(conn *client.Client) error {
				keys, err := conn.Authenticate(c.Context(), op)
				if err != nil {
					return err
				}
				defer keys.Wipe()
				if a.json {
					return a.printJSON(struct{ Initiator, Responder mesh.Binary }{keys.Initiator, keys.Responder})
				}
				encode := base64.RawURLEncoding.EncodeToString
				return a.printTable([][]string{{"initiator", encode(keys.Initiator)}, {"responder", encode(keys.Responder)}})
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "`UDF` of the key")
	c.Flags().StringVar(&peer, "peer", "", "`file` with the service's ephemeral public key")
	c.Flags().StringVar(&first, "agreement", "", "`file` with the first agreement, - for standard input")
	required(c, "key", "peer", "agreement")
	return c
}
