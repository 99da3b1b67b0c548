package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// keyImport are the flags of key import.
type keyImport struct {
	request        mesh.KeyImportRequest
	shareTo        []string
	passphraseFile string
}

func newKeyImportCommand(a *app) *cobra.Command {
	var in keyImport
	c := &cobra.Command{
		Use:   "import {--token NAME | --seal-to NAME} --use USE [FILE]",
		Short: "Import a private key and print its UDF",
		Long: `Imports a private key from FILE, or from standard input if FILE is "-" or absent:

  a UDF seed         Z... (ids 0 and from 256 on need --alg; --key-name defaults to empty)
  Mesh JSON          {"KeyData":...}, its contents alone, {"PrivateKeyECDH":...},
                     {"PrivateKeyRSA":...}, {"PrivateKeyUDF":...}
  PKCS #8            PEM, not encrypted
  OpenSSH            PEM, its passphrase is asked for or read from --passphrase-file
  TSS2               PEM: a key that another program made in the TPM that --token names
  a share            with --unwrap-with: the envelope that "share split" made for that key

Importing a key that is here already, with the same use and token, succeeds.

` + sealHelp,
		Example: `  mesh-agent key import --token soft --use ssh ~/.ssh/id_ed25519
  mesh-agent key import --seal-to tpm --use ssh ~/.ssh/id_ed25519
  mesh-agent key import --token soft --use agree --unwrap-with MBQC-... share-1.json`,
		Args: args(shareFiles(&in.shareTo, 1)),
		RunE: func(c *cobra.Command, files []string) error {
			g, err := parseGeneration(in.request.Generation)
			if err != nil {
				return err
			}
			if err := checkHome(in.request.Home); err != nil {
				return err
			}
			name := ""
			if len(files) != 0 {
				name = files[len(files)-1]
			}
			response, err := a.importKey(c.Context(), in, name)
			if err != nil {
				return explainHome(in.request.Home, err)
			}
			for _, warning := range response.Warnings {
				a.say("warning: %s", warning)
			}
			return a.printMade(response, g)
		},
	}
	in.addFlags(c)
	required(c, "use")
	return c
}

func (in *keyImport) addFlags(c *cobra.Command) {
	addHomeFlags(c, &in.request.Home)
	c.Flags().StringVar(&in.request.Use, "use", "", useHelp)
	c.Flags().StringVar(&in.request.Algorithm, "alg", "", "the `algorithm`, where the file does not say it")
	c.Flags().StringVar(&in.request.KeyName, "key-name", "", "key `name` that goes into the derivation from a seed")
	c.Flags().StringVar(&in.request.Generation, "generation", "g1", "Mesh generation for derivation and UDF: g1 or g2")
	c.Flags().StringVar(&in.request.Label, "label", "", "a `text` for people")
	c.Flags().StringArrayVar(&in.shareTo, "share-to", nil, shareToHelp)
	c.Flags().StringArrayVar(&in.request.Tags, "tag", nil, tagHelp)
	c.Flags().StringVar(&in.request.Release, "release", "", releaseHelp)
	c.Flags().StringVar(&in.request.UnwrapWith, "unwrap-with", "", "`UDF` of the key that opens the envelope in FILE")
	c.Flags().StringVar(&in.passphraseFile, "passphrase-file", "", "`file` with the passphrase of an OpenSSH key, or the authorization value of a TSS2 key")
}

// importKey reads the key of a file and has it imported.
func (a *app) importKey(ctx context.Context, in keyImport, name string) (response *mesh.KeyResponse, err error) {
	request := in.request
	if request.ShareTo, err = a.readShareTo(in.shareTo); err != nil {
		return nil, err
	}
	if request.Key, err = a.read(name, maxSmall); err != nil {
		return nil, err
	}
	defer clear(request.Key)
	if request.UnwrapWith != "" {
		request.Key = shareEnvelope(request.Key)
	}
	if request.Passphrase, err = a.keyPassphrase(ctx, request.Key, in.passphraseFile); err != nil {
		return nil, err
	}
	defer clear(request.Passphrase)
	err = a.with(ctx, func(conn *client.Client) error {
		response, err = conn.KeyImport(ctx, request)
		return err
	})
	return response, err
}

// shareEnvelope returns the envelope in an item of what "share split" prints; what is
// not such an item is returned as it is.
func shareEnvelope(data []byte) []byte {
	var item mesh.ResultShareItem
	if strictjson.Unmarshal(data, &item) == nil && len(item.Envelope) != 0 {
		return item.Envelope
	}
	return data
}

// keyPassphrase returns the passphrase of an encrypted OpenSSH key, nil for others.
func (a *app) keyPassphrase(ctx context.Context, key []byte, file string) ([]byte, error) {
	if file != "" {
		text, err := a.read(file, maxSmall)
		return text[:len(bytes.TrimRight(text, "\r\n"))], err // empty is not nil: it was given
	}
	var missing *ssh.PassphraseMissingError
	if _, err := ssh.ParseRawPrivateKey(bytes.TrimSpace(key)); !errors.As(err, &missing) {
		return nil, nil
	}
	tty, ok := a.terminal()
	if !ok {
		return nil, hint(errors.New("the key is protected by a passphrase"), "give it by --passphrase-file")
	}
	passphrase, err := a.ask(ctx, tty, "Passphrase of the key")
	if err != nil {
		return nil, fmt.Errorf("read passphrase: %w", err)
	}
	return passphrase, nil
}
