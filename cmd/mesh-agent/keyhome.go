package main

import (
	"bytes"
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

const sealHelp = `With --seal-to the key is made of software and used in the agent's memory, but stored so that
only that token opens it: for algorithms that the token does not have. The token's PIN
(mesh-agent token set-pin) is needed once after each start of the agent, unless
--pin none says that whoever reaches this machine and its files may have the key.
--pcrs sha256:7,14 seals the key to the platform's measured state too; then a recovery secret
is printed, this once, which opens the key after an update has changed that state
(mesh-agent key reseal).`

// addHomeFlags adds the flags that say where a key goes.
func addHomeFlags(c *cobra.Command, home *mesh.Home) {
	c.Flags().StringVar(&home.Token, "token", "", "`name` of the token that holds the key, see `mesh-agent token list`")
	c.Flags().StringVar(&home.SealTo, "seal-to", "", "`name` of the token that seals the key, instead of --token")
	c.Flags().StringVar(&home.PIN, "pin", "", "when the key needs the token's PIN: none, once or always (default: as the token does; with --seal-to, once)")
	c.Flags().StringVar(&home.Touch, "touch", "", "when the key needs a touch: never, cached or always (default: as the token does)")
	c.Flags().StringVar(&home.PCRs, "pcrs", "", "with --seal-to: seal to these PCRs of a TPM too, for example sha256:7,14")
	c.Flags().StringVar(&home.Slot, "slot", "", "the `slot` of a PIV card: 9a, 9c, 9d, 9e or 82 to 95 (default: a free one for the use)")
	c.Flags().BoolVar(&home.OverwriteSlot, "really-overwrite-slot", false, "put the key into --slot even if the key there is lost by that")
}

// checkHome wants one place for the key.
func checkHome(home mesh.Home) error {
	switch {
	case home.Token == "" && home.SealTo == "":
		return usageError{errors.New("--token or --seal-to is required")}
	case home.Token != "" && home.SealTo != "":
		return usageError{errors.New("--token and --seal-to exclude each other")}
	}
	return nil
}

// explainHome adds what to do if a new key's token needs its PIN, or cannot hold it.
func explainHome(home mesh.Home, err error) error {
	var status *client.StatusError
	switch {
	case !errors.As(err, &status):
		return err
	case status.Status == 501 && home.Token != "":
		return hint(err, "see what the token can do: mesh-agent token list; a token that seals guards other keys too: --seal-to")
	case status.Status != 401 || !strings.HasPrefix(status.Text, "pin needed"):
		return err
	case strings.Contains(status.Text, "key's own PIN"):
		return hint(err, "give the key's authorization value, this once, in a file, which is empty if it has none: --passphrase-file")
	case strings.Contains(status.Text, "management key"):
		return hint(err, "make the card ready once: mesh-agent token setup "+home.Token+home.SealTo)
	}
	name := home.Token + home.SealTo
	advice := fmt.Sprintf("mesh-agent token unlock %s, or if it has no PIN yet: mesh-agent token set-pin %s", name, name)
	if home.SealTo != "" {
		advice += "; --pin none seals without a PIN"
	}
	return hint(err, advice)
}

// printMade prints the UDF of a new key and, on a line of its own, the recovery secret if
// there is one.
func (a *app) printMade(response *mesh.KeyResponse, g mesh.Generation) error {
	if len(response.Recovery) == 0 {
		return a.printUdf(*response.Key, g)
	}
	defer clear(response.Recovery)
	recovery := formatRecovery(response.Recovery)
	defer clear(recovery)
	if a.json {
		return a.print(fmt.Appendf(nil, `{"Udf":"%s","Recovery":"%s"}`+"\n", udf(*response.Key, g), recovery))
	}
	a.say("The second line is the recovery secret. It opens the key after an update and is shown this once: write it down.")
	return a.print(fmt.Appendf(nil, "%s\n%s\n", udf(*response.Key, g), recovery))
}

// recoveryEncoding is that of RFC 4648, Section 6, which the Mesh uses for UDFs.
func recoveryEncoding() *base32.Encoding { return base32.StdEncoding.WithPadding(base32.NoPadding) }

// formatRecovery writes a recovery secret in groups of four characters.
func formatRecovery(recovery []byte) []byte {
	text := recoveryEncoding().AppendEncode(nil, recovery)
	defer clear(text)
	var out []byte
	for i, c := range text {
		if i > 0 && i%4 == 0 {
			out = append(out, '-')
		}
		out = append(out, c)
	}
	return out
}

// parseRecovery reads what formatRecovery writes, in any case, with dashes and blanks
// anywhere.
func parseRecovery(text []byte) ([]byte, error) {
	clean := make([]byte, 0, len(text))
	for _, c := range bytes.ToUpper(text) {
		if c != '-' && c != ' ' && c != '\t' {
			clean = append(clean, c)
		}
	}
	defer clear(clean)
	out := make([]byte, recoveryEncoding().DecodedLen(len(clean)))
	n, err := recoveryEncoding().Decode(out, clean)
	if err != nil || n == 0 || bytes.ContainsAny(clean, "\r\n") {
		clear(out)
		return nil, errors.New("read recovery secret: not one; it has letters and the digits 2 to 7 in groups of four")
	}
	return out[:n], nil
}

func newKeyResealCommand(a *app) *cobra.Command {
	var request mesh.KeyResealRequest
	var recovery string
	c := &cobra.Command{
		Use:   "reseal UDF",
		Short: "Seal a key to the platform's state as it is now",
		Long: `Seals a key that was sealed to PCRs to their present values, or with --pcrs to others. After
an update has changed them, the key's recovery secret is needed: --recovery - asks for it
on the terminal or reads it from standard input, --recovery FILE from a file.
The new recovery secret that is printed takes the place of the old one.`,
		Example: `  mesh-agent key reseal --recovery - MBQC-...`,
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, ids []string) (err error) {
			request.KeyId = ids[0]
			if recovery != "" {
				if request.Recovery, err = a.readRecovery(c.Context(), recovery); err != nil {
					return err
				}
				defer clear(request.Recovery)
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				response, err := conn.KeyReseal(c.Context(), request)
				if err != nil {
					return explainReseal(recovery, err)
				}
				return a.printMade(response, mesh.G1)
			})
		},
	}
	c.Flags().StringVar(&request.PCRs, "pcrs", "", "seal to these PCRs instead, for example sha256:7,14")
	c.Flags().StringVar(&recovery, "recovery", "", "`file` with the recovery secret, or - to ask for it")
	return c
}

func explainReseal(recovery string, err error) error {
	var status *client.StatusError
	switch {
	case !errors.As(err, &status):
	case status.Status == 409 && recovery == "":
		return hint(err, "the platform has changed; give the recovery secret: --recovery -")
	case status.Status == 401 && strings.Contains(status.Text, "recovery"):
		return hint(err, "the recovery secret was printed when the key was made or last resealed")
	}
	return err
}

func (a *app) readRecovery(ctx context.Context, name string) ([]byte, error) {
	if name == "-" {
		text, err := a.secret(ctx, "Recovery secret")
		if err != nil {
			return nil, err
		}
		defer clear(text)
		return parseRecovery(text)
	}
	text, err := a.read(name, maxSmall)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	return parseRecovery(bytes.TrimSpace(text))
}

func newKeyExportCommand(a *app) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "export UDF --format tss2",
		Short: "Write the file of a TPM key for other programs",
		Long: `Writes a key that lives in the TPM as a TSS2 key file, which ssh-tpm-agent and the TPM
providers of OpenSSL take. Nothing secret is in the file: it is of use only with this TPM.
Keys in software, sealed keys and keys with a PIN have none. The file is no backup: this program
does not take it back, because the key's use is bound to its record. Copy the state folder for that.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, ids []string) error {
			if format != "tss2" {
				return usageError{fmt.Errorf("--format %q is not tss2", format)}
			}
			if a.json {
				return usageError{errors.New("--json and --format tss2 exclude each other")}
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				file, err := conn.KeyExport(c.Context(), mesh.KeyExportRequest{KeyId: ids[0], Format: format})
				if err != nil {
					return err
				}
				return a.print(file)
			})
		},
	}
	c.Flags().StringVar(&format, "format", "tss2", "tss2, the format of TPM keys")
	return c
}

func newTokenSetPINCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "set-pin NAME",
		Short: "Set or change a token's PIN",
		Long: `Sets a token's PIN, or changes it. On the terminal it asks for the present PIN, if there is
one, and twice for the new one. From standard input it takes the new PIN as the first
line, and the present one, if there is one, as the second.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				return a.setPIN(c.Context(), conn, names[0])
			})
		},
	}
}

// setPIN asks for the present PIN only if the agent says that there is one.
func (a *app) setPIN(ctx context.Context, conn *client.Client, name string) error {
	tty, ok := a.terminal()
	if !ok {
		pin, old, err := a.twoLines()
		if err != nil {
			return err
		}
		defer clear(pin)
		defer clear(old)
		return conn.TokenSetPIN(ctx, mesh.TokenSetPINRequest{Token: name, PIN: pin, Old: old})
	}
	pin, err := a.ask(ctx, tty, "New PIN of "+name)
	if err != nil {
		return err
	}
	defer clear(pin)
	again, err := a.ask(ctx, tty, "The same again")
	if err != nil {
		return err
	}
	defer clear(again)
	if !bytes.Equal(pin, again) {
		return errors.New("the PINs differ")
	}
	request := mesh.TokenSetPINRequest{Token: name, PIN: pin}
	err = conn.TokenSetPIN(ctx, request)
	var status *client.StatusError
	if !errors.As(err, &status) || status.Status != 401 {
		return err
	}
	if request.Old, err = a.ask(ctx, tty, "Present PIN of "+name); err != nil {
		return err
	}
	defer clear(request.Old)
	return conn.TokenSetPIN(ctx, request)
}

// twoLines reads one or two lines from standard input.
func (a *app) twoLines() (first, second []byte, err error) {
	data, err := a.read("-", maxSmall)
	if err != nil {
		return nil, nil, err
	}
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	for i := range lines {
		lines[i] = bytes.TrimSuffix(lines[i], []byte("\r"))
	}
	switch len(lines) {
	case 1:
		return lines[0], nil, nil
	case 2:
		return lines[0], lines[1], nil
	}
	clear(data)
	return nil, nil, errors.New("read standard input: more than two lines")
}

func newTokenLockCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "lock NAME",
		Short: "Make a token need its PIN again",
		Long:  `Makes a token need its PIN again, and wipes the sealed keys that it had opened.`,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				return conn.TokenLock(c.Context(), names[0])
			})
		},
	}
}
