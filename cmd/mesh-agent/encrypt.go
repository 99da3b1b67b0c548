package main

import (
	"crypto/rand"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/mesh"
)

func newEncryptCommand(a *app) *cobra.Command {
	var to []string
	var options mesh.EncryptOptions
	var generation string
	c := &cobra.Command{
		Use:   "encrypt --to FILE [--to FILE] [FILE]",
		Short: "Encrypt a file to public keys, as a DARE envelope",
		Long: `Encrypts FILE or standard input so that each of the keys alone opens it, and prints a
DARE envelope in JSON. A recipient is a file with a public KeyData, as "key public" prints it,
an account's profile, or a device's connection or entry in the account's catalog; no agent
is needed then. Or it is the UDF of a key, account or device that the agent knows.

A256CBC is what Mesh clients read, and nothing in it shows a change of the ciphertext; A256GCM
refuses a changed one, and is this agent's own. Clients of 2024 and later know their keys
by the UDF of --generation g2.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			var err error
			if options.Generation, err = parseGeneration(generation); err != nil {
				return err
			}
			recipients, err := a.recipients(c.Context(), to)
			if err != nil {
				return err
			}
			plaintext, err := a.read(optional(files), maxDocument)
			if err != nil {
				return err
			}
			envelope, err := options.Encrypt(rand.Reader, plaintext, recipients...)
			if err != nil {
				return err
			}
			out, err := envelope.Marshal()
			if err != nil {
				return err
			}
			return a.print(append(out, '\n'))
		},
	}
	c.Flags().StringArrayVar(&to, "to", nil, "a recipient: `file` with a public key, profile, connection or entry, or UDF; once for each")
	c.Flags().StringVar(&options.ContentType, "content-type", "", "media `type` to note in the header")
	c.Flags().StringVar(&options.Encryption, "enc", mesh.A256CBC, "A256CBC or A256GCM")
	c.Flags().StringVar(&generation, "generation", "g1", "which UDF names the recipients: g1 or g2")
	required(c, "to")
	return c
}
