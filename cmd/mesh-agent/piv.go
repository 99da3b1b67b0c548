package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/piv"
	"github.com/mesh-agent/mesh-agent/token"
)

// choosePIV takes the serial numbers of the flags, else those of the configuration.
func choosePIV(flags []uint, file []uint32) ([]uint32, error) {
	if len(flags) == 0 {
		return file, nil
	}
	var serials []uint32
	for _, n := range flags {
		if n == 0 || n > math.MaxUint32 {
			return nil, usageError{fmt.Errorf("--piv %d is not a serial number", n)}
		}
		if !slices.Contains(serials, uint32(n)) {
			serials = append(serials, uint32(n))
		}
	}
	return serials, nil
}

// openPIV opens the tokens of PIV cards, which need not be there yet.
func (a *app) openPIV(ctx context.Context, s settings, log *slog.Logger) (tokens []token.Token, err error) {
	defer func() {
		if err != nil {
			for _, t := range tokens {
				err = errors.Join(err, t.Close())
			}
			tokens = nil
		}
	}()
	for _, serial := range s.piv {
		t, err := piv.Open(ctx, piv.Options{
			Serial: serial, Socket: a.getenv("PCSCLITE_CSOCK_NAME"), Touch: touchNotice(s.prompter, log),
			State: func(state token.State) {
				log.Info("state of the PIV card", "token", piv.Name(serial), "state", string(state))
			},
		})
		if err != nil {
			return tokens, err
		}
		tokens = append(tokens, t)
		if state := t.Info().State; state == token.StateAbsent || state == token.StateReplaced {
			log.Warn("the PIV card is not there; it is found when it comes", "token", piv.Name(serial))
		}
	}
	return tokens, nil
}

// examineCards looks at the PIV cards of the settings where no agent does.
func (a *app) examineCards(ctx context.Context, serials []uint32) (out []mesh.Finding) {
	for _, serial := range serials {
		t, err := piv.Open(ctx, piv.Options{Serial: serial, Socket: a.getenv("PCSCLITE_CSOCK_NAME")})
		if err != nil {
			out = append(out, finding(token.SeverityError, "token "+piv.Name(serial), "try again", "%v", err))
			continue
		}
		out = append(out, diagnosed(ctx, t)...)
	}
	return out
}

// examineOtherCards names the PIV cards that are plugged in and are none of these tokens.
func (a *app) examineOtherCards(ctx context.Context, tokens []string) []mesh.Finding {
	found, err := piv.List(ctx, a.getenv("PCSCLITE_CSOCK_NAME"))
	switch {
	case err != nil && slices.ContainsFunc(tokens, func(name string) bool { return strings.HasPrefix(name, "piv:") }):
		return nil // these have said so
	case err != nil: // no pcscd, which is no matter without a card
		return []mesh.Finding{finding(token.SeverityInfo, "card", "to use one, install and start pcscd", "PIV cards are not seen: %v", err)}
	}
	var out []mesh.Finding
	for _, f := range found {
		if !slices.Contains(tokens, piv.Name(f.Serial)) {
			out = append(out, finding(token.SeverityInfo, "card", "", "a PIV card that the agent does not use is plugged in; it would with `serve --piv %d`", f.Serial))
		}
	}
	return out
}

// explainUnlock adds what to do if the last try was spared.
func explainUnlock(err error) error {
	var status *client.StatusError
	if errors.As(err, &status) && status.Status == 401 && strings.HasPrefix(status.Text, "pin needed") && strings.Contains(status.Text, "1 left") {
		return hint(err, "the last try was not used up; --really-last-try does, and then only the PUK helps")
	}
	return err
}

func newKeyAdoptCommand(a *app) *cobra.Command {
	var request mesh.KeyImportRequest
	var generation string
	c := &cobra.Command{
		Use:   "adopt --token NAME --slot SLOT --use USE",
		Short: "Take over a key that another program put on a PIV card or in a PKCS#11 token",
		Long: `Takes over the key in a slot of a PIV card, which yubikey-agent, age-plugin-yubikey,
yubico-piv-tool or another program put there, or a key in a PKCS#11 token, by its label or a
URI with its id, its object (the label) or both. Prints its UDF. Card and token are left as
they are, and the other program can go on using the key.

When the key wants the PIN and a touch is as the other program chose it. A card tells; one with
firmware before 5.3 does not of keys that were imported into it: then --pin and --touch say.`,
		Example: `  mesh-agent key adopt --token piv:5700001 --slot 9a --use ssh
  mesh-agent key adopt --token hsm --slot 'pkcs11:object=mykey;id=%a1%b2' --use sign`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			g, err := parseGeneration(generation)
			if err != nil {
				return err
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				response, err := conn.KeyImport(c.Context(), request)
				if err != nil {
					return explainAdopt(err)
				}
				return a.printMade(response, g)
			})
		},
	}
	c.Flags().StringVar(&request.Token, "token", "", "`name` of the token, see `mesh-agent token list`")
	c.Flags().StringVar(&request.Slot, "slot", "", "the `slot`: 9a, 9c, 9d, 9e or 82 to 95; of a PKCS#11 token: the key's label or URI")
	c.Flags().StringVar(&request.Use, "use", "", useHelp)
	c.Flags().StringVar(&request.Release, "release", "", releaseHelp)
	c.Flags().StringVar(&request.PIN, "pin", "", "when the key wants the PIN, if the card does not tell: none, once or always")
	c.Flags().StringVar(&request.Touch, "touch", "", "when the key wants a touch, if the card does not tell: never, cached or always")
	c.Flags().StringVar(&request.Label, "label", "", "a `text` for people")
	c.Flags().StringVar(&generation, "generation", "g1", "which UDF to print: g1 or g2")
	required(c, "token", "slot", "use")
	return c
}

// explainAdopt adds how to say what the card does not tell.
func explainAdopt(err error) error {
	var status *client.StatusError
	if errors.As(err, &status) && status.Status == 400 && strings.Contains(status.Text, piv.ErrPolicyUnknown.Error()) {
		return hint(err, "say it as the program that imported the key was told: --pin once --touch never, for example")
	}
	return err
}

// card opens a PIV card by the name of its token, or "piv" for the only one that is plugged in.
func (a *app) card(ctx context.Context, name string) (*piv.Token, error) {
	socket := a.getenv("PCSCLITE_CSOCK_NAME")
	number, ok := strings.CutPrefix(name, "piv:")
	serial, err := strconv.ParseUint(number, 10, 32)
	if name == "piv" {
		found, err := piv.Survey(ctx, socket)
		if err != nil {
			return nil, err
		}
		unknown := found
		found = slices.DeleteFunc(slices.Clone(found), func(f piv.Found) bool { return f.Err != nil })
		if len(found) == 0 && len(unknown) != 0 {
			return nil, hint(fmt.Errorf("card in the reader %q: %w", unknown[0].Reader, unknown[0].Err), "end the program that holds it, or plug it in again; `mesh-agent doctor` says more")
		}
		if len(found) != 1 {
			return nil, hint(fmt.Errorf("%d PIV cards are plugged in", len(found)), "plug in one, or name it: piv:SERIAL")
		}
		ok, serial = true, uint64(found[0].Serial)
	} else if err != nil {
		ok = false
	}
	if !ok {
		return nil, usageError{fmt.Errorf("%q is not the name of a PIV card, such as piv:5700001", name)}
	}
	return piv.Open(ctx, piv.Options{Serial: uint32(serial), Socket: socket})
}

// withCard opens a card, asks questions, and hands the answers to f. They are wiped afterwards.
func (a *app) withCard(ctx context.Context, name string, questions []question, f func(t *piv.Token, answers [][]byte) error) (err error) {
	t, err := a.card(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	answers, err := a.answers(ctx, questions)
	if err != nil {
		return err
	}
	defer func() {
		for _, b := range answers {
			clear(b)
		}
	}()
	return f(t, answers)
}

// question asks for a secret; a new one twice. An optional one may be left empty.
type question struct {
	text     string
	repeat   bool
	optional bool
}

// answers asks on the terminal, or reads a line of standard input for each question.
func (a *app) answers(ctx context.Context, questions []question) (out [][]byte, err error) {
	tty, ok := a.terminal()
	if !ok {
		return a.answerLines(questions)
	}
	for _, q := range questions {
		b, err := a.ask(ctx, tty, q.text)
		if err != nil {
			return nil, err
		}
		out = append(out, b)
		if !q.repeat {
			continue
		}
		again, err := a.ask(ctx, tty, "The same again")
		if err != nil {
			return nil, err
		}
		same := bytes.Equal(b, again)
		clear(again)
		if !same {
			return nil, errors.New("the answers differ")
		}
	}
	return out, nil
}

func (a *app) answerLines(questions []question) ([][]byte, error) {
	data, err := a.read("-", maxSmall)
	if err != nil {
		return nil, err
	}
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	for i, q := range questions {
		if i >= len(lines) && !q.optional || i < len(lines) && len(lines[i]) == 0 && !q.optional {
			clear(data)
			return nil, fmt.Errorf("read standard input: line %d, %s, is missing", i+1, q.text)
		}
		if i >= len(lines) {
			lines = append(lines, nil)
		}
	}
	if len(lines) > len(questions) {
		clear(data)
		return nil, fmt.Errorf("read standard input: more than %d lines", len(questions))
	}
	return lines, nil
}

const cardHelp = `The card is reached directly, not through the agent, which finds out by itself.`

func newTokenSetupCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "setup {piv | piv:SERIAL}",
		Short: "Make a new PIV card ready",
		Long: `Gives a PIV card a random management key, stored on the card so that its PIN opens it, and a
new PUK and PIN. Nothing of the factory's is left, and keys that are on the card stay. Asks for
the new PIN, the new PUK, the present PIN and the present PUK; the last two are empty for the
factory's. Standard input has one line for each. If it is interrupted, run it again with the
same answers. ` + cardHelp,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			questions := []question{{text: "New PIN (6 to 8 characters)", repeat: true}, {text: "New PUK (6 to 8 characters; write it down)", repeat: true},
				{text: "Present PIN (empty for the factory's)", optional: true}, {text: "Present PUK (empty for the factory's)", optional: true}}
			return a.withCard(c.Context(), names[0], questions, func(t *piv.Token, s [][]byte) error {
				if err := t.Setup(c.Context(), piv.SetupRequest{PIN: s[0], PUK: s[1], OldPIN: s[2], OldPUK: s[3]}); err != nil {
					return err
				}
				a.say("%s is ready.", t.Info().Name)
				return nil
			})
		},
	}
}

func newTokenUnblockCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "unblock {piv | piv:SERIAL}",
		Short: "Set a new PIN on a PIV card by its PUK",
		Long: `Sets a new PIN on a PIV card whose PIN is blocked or forgotten. Asks for the PUK and the new
PIN; standard input has one line for each. ` + cardHelp,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			questions := []question{{text: "PUK"}, {text: "New PIN (6 to 8 characters)", repeat: true}}
			return a.withCard(c.Context(), names[0], questions, func(t *piv.Token, s [][]byte) error {
				return t.Unblock(c.Context(), s[0], s[1])
			})
		},
	}
}

func newTokenSetPUKCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "set-puk {piv | piv:SERIAL}",
		Short: "Change the PUK of a PIV card",
		Long: `Changes the PUK, by which a PIV card's PIN is unblocked. Asks for the present and the new
one; standard input has one line for each. ` + cardHelp,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			questions := []question{{text: "Present PUK"}, {text: "New PUK (6 to 8 characters)", repeat: true}}
			return a.withCard(c.Context(), names[0], questions, func(t *piv.Token, s [][]byte) error {
				return t.SetPUK(c.Context(), s[0], s[1])
			})
		},
	}
}
