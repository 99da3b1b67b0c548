package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
)

func newKeyCommand(a *app) *cobra.Command {
	return group("key", "Make, import, list, show and delete keys",
		newKeyGenerateCommand(a), newKeyImportCommand(a), newKeyListCommand(a),
		newKeyShowCommand(a), newKeyPublicCommand(a), newKeyDeleteCommand(a),
		newKeyResealCommand(a), newKeyExportCommand(a), newKeyAdoptCommand(a))
}

const useHelp = "what the key is for: ssh, sign, sign-assertion, decrypt, agree, authenticate or split"

const tagHelp = "for use sign-assertion: `tag` of the bodies that the key signs, such as ConnectionDevice; once for each"

const releaseHelp = "for use decrypt: the most that the key gives out, the `form` seed (default), key or plaintext"

const shareToHelp = "for use split: `file` with the public key (X25519 or X448) of one who gets a share; once for each"

func newKeyGenerateCommand(a *app) *cobra.Command {
	var request mesh.KeyGenerateRequest
	var shareTo []string
	var generation string
	c := &cobra.Command{
		Use:   "generate {--token NAME | --seal-to NAME} --alg ALGORITHM --use USE",
		Short: "Make a key and print its UDF",
		Long: `Makes a key in a token (--token), or one that a token seals (--seal-to), and prints its UDF.

` + sealHelp,
		Example: `  mesh-agent key generate --token soft --alg Ed25519 --use ssh --label laptop
  mesh-agent key generate --seal-to tpm --alg Ed448 --use sign
  mesh-agent key generate --token soft --alg X448 --use split --share-to a.json --share-to b.json`,
		Args: args(shareFiles(&shareTo, 0)),
		RunE: func(c *cobra.Command, _ []string) error {
			g, err := parseGeneration(generation)
			if err != nil {
				return err
			}
			if err := checkHome(request.Home); err != nil {
				return err
			}
			if request.ShareTo, err = a.readShareTo(shareTo); err != nil {
				return err
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				response, err := conn.KeyGenerate(c.Context(), request)
				if err != nil {
					return explainHome(request.Home, err)
				}
				return a.printMade(response, g)
			})
		},
	}
	addHomeFlags(c, &request.Home)
	c.Flags().StringVar(&request.Algorithm, "alg", "", "X25519, X448, Ed25519, Ed448, P256, P384, P521, RSA2048, RSA3072 or RSA4096")
	c.Flags().StringVar(&request.Use, "use", "", useHelp)
	c.Flags().StringVar(&request.Label, "label", "", "a `text` for people")
	c.Flags().StringArrayVar(&shareTo, "share-to", nil, shareToHelp)
	c.Flags().StringArrayVar(&request.Tags, "tag", nil, tagHelp)
	c.Flags().StringVar(&request.Release, "release", "", releaseHelp)
	c.Flags().StringVar(&generation, "generation", "g1", "which UDF to print: g1 or g2")
	required(c, "alg", "use")
	return c
}

// shareFiles is the rule for positional arguments of commands with --share-to: after
// it further recipients may follow, and then the last keep arguments are not among them.
func shareFiles(shareTo *[]string, keep int) cobra.PositionalArgs {
	return func(c *cobra.Command, given []string) error {
		if len(*shareTo) == 0 || len(given) <= keep {
			return cobra.MaximumNArgs(keep)(c, given)
		}
		*shareTo = append(*shareTo, given[:len(given)-keep]...)
		return nil
	}
}

// readShareTo reads public keys for a request. The agent judges them.
func (a *app) readShareTo(files []string) ([]strictjson.Value, error) {
	var keys []strictjson.Value
	for _, name := range files {
		data, err := a.read(name, maxSmall)
		if err != nil {
			return nil, err
		}
		if err := strictjson.Valid(data); err != nil {
			return nil, fmt.Errorf("read public key %s: %w", name, err)
		}
		keys = append(keys, strictjson.EscapeControls(data))
	}
	return keys, nil
}

func parseGeneration(text string) (mesh.Generation, error) {
	g, err := mesh.ParseGeneration(text)
	if err != nil {
		return 0, usageError{err}
	}
	return g, nil
}

// udf returns the 28 characters that name a key in a generation.
func udf(key mesh.KeyInfo, g mesh.Generation) string {
	if g == mesh.G2 {
		return key.UdfG2
	}
	return key.Udf
}

func (a *app) printUdf(key mesh.KeyInfo, g mesh.Generation) error {
	if a.json {
		return a.print([]byte(`{"Udf":"` + udf(key, g) + "\"}\n"))
	}
	return a.print([]byte(udf(key, g) + "\n"))
}

func newKeyListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the keys",
		Long:  `Lists the keys. "key show --json" has what "key list --json" leaves out: state, policies, PCRs and tags.`,
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				keys, err := conn.KeyList(c.Context())
				switch {
				case err != nil:
					return err
				case a.json:
					return a.printJSON(listed(keys))
				}
				return a.printKeys(keys)
			})
		},
	}
}

// listed returns keys with exactly the members that the list has by contract.
func listed(keys []mesh.KeyInfo) []mesh.KeyInfo {
	list := []mesh.KeyInfo{}
	for _, k := range keys {
		k.State, k.PIN, k.Touch, k.PCRs, k.Release, k.Tags = "", "", "", "", "", nil
		list = append(list, k)
	}
	return list
}

func (a *app) printKeys(keys []mesh.KeyInfo) error {
	rows := [][]string{{"UDF", "ALGORITHM", "USE", "TOKEN", "PROTECTION", "ASKS", "STATE", "LABEL"}}
	for _, k := range keys {
		rows = append(rows, []string{k.Udf, k.Algorithm, useAndRelease(k.Use, k.Release), k.Token, k.Protection, asks(k), cmp.Or(k.State, "ready"), k.Label})
	}
	return a.printTable(rows)
}

// useAndRelease is a key's use, and the limit of one that has any.
func useAndRelease(use, release string) string {
	if release == "" {
		return use
	}
	return use + ", " + release + " only"
}

// givesOut says what a key for decryption gives out; nothing for other keys.
func givesOut(k mesh.KeyInfo) string {
	switch {
	case k.Use != string(token.UseDecrypt) || k.PublicKey.PublicKeyECDH == nil:
		return ""
	case k.Release == "":
		return "base seeds, content keys and plaintexts"
	case k.Release == string(token.ReleaseKey):
		return "content keys and plaintexts"
	}
	return "plaintexts"
}

// asks says what a key in a token asks of its user, as far as that was chosen or the token tells. What a sealed
// key asks is in its protection.
func asks(k mesh.KeyInfo) string {
	var words []string
	if strings.HasPrefix(k.Protection, "sealed") {
		return ""
	}
	if k.PIN != "" && k.PIN != "none" {
		words = append(words, "PIN "+k.PIN)
	}
	if k.Touch != "" && k.Touch != "never" {
		words = append(words, "touch "+k.Touch)
	}
	return strings.Join(words, ", ")
}

func newKeyShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show UDF",
		Short: "Show what is known of a key",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, ids []string) error {
			k, err := a.keyInfo(c.Context(), ids[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(k)
			}
			return a.printKey(*k)
		},
	}
}

func (a *app) printKey(k mesh.KeyInfo) error {
	origin := "made in the token"
	switch {
	case k.Imported:
		origin = "imported"
	case strings.HasPrefix(k.Protection, "sealed"):
		origin = "made by the agent"
	}
	rows := [][]string{
		{"udf", k.Udf}, {"udf (g2)", k.UdfG2}, {"algorithm", k.Algorithm}, {"use", k.Use},
		{"operations", strings.Join(k.Operations, ", ")}, {"token", k.Token},
		{"protection", k.Protection}, {"origin", origin},
	}
	for _, policy := range [][]string{{"gives out", givesOut(k)}, {"pin", k.PIN}, {"touch", k.Touch}, {"pcrs", k.PCRs}} {
		if policy[1] != "" {
			rows = append(rows, policy)
		}
	}
	if k.Label != "" {
		rows = append(rows, []string{"label", k.Label})
	}
	for _, tag := range k.Tags {
		rows = append(rows, []string{"signs", tag})
	}
	for _, to := range k.ShareTo {
		rows = append(rows, []string{"share to", to})
	}
	if k.State != "" {
		rows = append(rows, []string{"state", k.State})
	}
	return a.printTable(rows)
}

func newKeyDeleteCommand(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "delete UDF",
		Short: "Delete a key for good",
		Long:  `Deletes a key for good. On a terminal it asks first, unless --yes is given.`,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, ids []string) error {
			if tty, ok := a.terminal(); ok && !yes {
				if err := a.confirm(tty, "Delete key "+ids[0]+" for good? Type yes: "); err != nil {
					return err
				}
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				_, err := conn.KeyDelete(c.Context(), ids[0])
				return err
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// confirm asks a question and returns an error unless the answer is yes.
func (a *app) confirm(tty *os.File, question string) error {
	fmt.Fprint(a.stderr, question)
	var answer string
	if _, err := fmt.Fscanln(tty, &answer); err != nil || answer != "yes" {
		return errors.New("not confirmed")
	}
	return nil
}
