package main

import (
	"encoding/base64"
	"errors"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newSignCommand(a *app) *cobra.Command {
	var key, mode string
	var raw, ask bool
	var envelope envelopeFlags
	c := &cobra.Command{
		Use:   "sign --key UDF [FILE]",
		Short: "Sign a message with a key of use sign",
		Long: `Signs the octets of FILE or standard input and prints the signature as a line of
base64url; --raw writes its octets, --json an object {"Signature":"..."}.

Ed25519 signs in the Mesh's form (--mode mesh: dom2 with an empty context) unless --mode
pure is given; RSA in PKCS #1 v1.5 unless --mode pss is given. ECDSA signatures are ASN.1 DER.

With --dare it prints a DARE envelope instead, encrypted if --to is given and then signed. A key of
use sign-assertion makes only these, and only of bodies with the tags that it was made for.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			if raw && a.json {
				return usageError{errors.New("--raw and --json exclude each other")}
			}
			if err := envelope.check(c); err != nil {
				return err
			}
			message, err := a.read(optional(files), maxDocument)
			if err != nil {
				return err
			}
			pin, err := a.pinIf(c.Context(), ask, files)
			if err != nil {
				return err
			}
			defer clear(pin)
			if envelope.dare {
				return a.signEnvelope(c.Context(), envelope, key, pin, message)
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				signature, err := conn.SignOperation(c.Context(), mesh.OperationSign{KeyId: key, Data: message, Mode: mode, PIN: pin})
				switch {
				case err != nil:
					return err
				case a.json:
					return a.printJSON(struct{ Signature mesh.Binary }{signature})
				case raw:
					return a.print(signature)
				}
				return a.print([]byte(base64.RawURLEncoding.EncodeToString(signature) + "\n"))
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "`UDF` of the key")
	c.Flags().StringVar(&mode, "mode", "", "mesh or pure (Ed25519), pss (RSA)")
	c.Flags().BoolVar(&raw, "raw", false, "write the octets of the signature")
	addPIN(c, &ask)
	envelope.add(c)
	required(c, "key")
	return c
}
