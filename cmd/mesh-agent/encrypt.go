package main

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

func newEncryptCommand(a *app) *cobra.Command {
	var to []string
	var options mesh.EncryptOptions
	var generation string
	c := &cobra.Command{
		Use:   "encrypt --to FILE [--to FILE] [FILE]",
		Short: "Encrypt a file to public keys, as a DARE envelope",
		Long: `Encrypts FILE or standard input so that each of the keys alone opens it, and prints a
DARE envelope in JSON. A recipient's file is a public KeyData, as "key public" prints it.
It needs no agent.

A256CBC is what Mesh clients read, and nothing in it shows a change of the ciphertext; A256GCM
refuses a changed one, and is this agent's own. Clients of 2024 and later know their keys
by the UDF of --generation g2.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, files []string) error {
			var err error
			if options.Generation, err = parseGeneration(generation); err != nil {
				return err
			}
			recipients, err := a.readPublicKeys(to)
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
	c.Flags().StringArrayVar(&to, "to", nil, "`file` with a recipient's public key; once for each")
	c.Flags().StringVar(&options.ContentType, "content-type", "", "media `type` to note in the header")
	c.Flags().StringVar(&options.Encryption, "enc", mesh.A256CBC, "A256CBC or A256GCM")
	c.Flags().StringVar(&generation, "generation", "g1", "which UDF names the recipients: g1 or g2")
	required(c, "to")
	return c
}

func (a *app) readPublicKeys(files []string) ([]token.PublicKey, error) {
	var keys []token.PublicKey
	for _, name := range files {
		data, err := a.read(name, maxSmall)
		if err != nil {
			return nil, err
		}
		key, err := mesh.ParseKeyDataPublic(data)
		if err != nil {
			err = fmt.Errorf("read public key %s: %w", name, err)
			if errors.Is(err, token.ErrBadPoint) {
				return nil, err
			}
			return nil, hint(err, "give what `mesh-agent key public UDF` prints")
		}
		keys = append(keys, key)
	}
	return keys, nil
}
