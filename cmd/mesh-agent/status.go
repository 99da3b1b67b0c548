package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show whether an agent runs and what it holds",
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				status, err := conn.Status(c.Context())
				switch {
				case err != nil:
					return err
				case a.json:
					return a.printJSON(status)
				}
				return a.printStatus(*status)
			})
		},
	}
}

func (a *app) printStatus(s mesh.StatusResponse) error {
	rows := [][]string{
		{"agent", fmt.Sprintf("%s, process %d, up %s", s.Build, s.PID, time.Duration(s.Uptime)*time.Second)},
		{"features", cmp.Or(strings.Join(s.Features, ", "), "none: a static binary, without PKCS#11")},
		{"socket", s.Socket},
		{"ssh socket", s.SSH},
		{"state", s.State},
		{"keys", strconv.Itoa(s.Keys)},
	}
	for _, t := range s.Tokens {
		rows = append(rows, []string{"token " + t.Name, t.State + ", " + t.Description})
	}
	rows = append(rows, promptRows(s.Prompt)...)
	for _, problem := range s.Problems {
		rows = append(rows, []string{"problem", problem})
	}
	return a.printTable(rows)
}

// promptRows says what asks for PINs and who waits for that.
func promptRows(p *mesh.PromptInfo) [][]string {
	if p == nil {
		return [][]string{{"prompt", "none: a PIN is presented by `mesh-agent token unlock`"}}
	}
	rows := [][]string{{"prompt", p.Program}}
	for _, w := range p.Waiting {
		what := "of " + w.Token
		if w.KeyId != "" {
			what += ", key " + w.KeyId
		}
		rows = append(rows, []string{"waits for PIN", fmt.Sprintf("%s, for %s: %s", what, w.For, w.Client)})
	}
	return rows
}

func newTokenCommand(a *app) *cobra.Command {
	return group("token", "See, unlock and lock tokens", newTokenListCommand(a), newTokenUnlockCommand(a),
		newTokenSetPINCommand(a), newTokenLockCommand(a), newTokenSetupCommand(a), newTokenUnblockCommand(a), newTokenSetPUKCommand(a))
}

func newTokenListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tokens, their state and what they can do",
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				tokens, err := conn.TokenList(c.Context())
				if err != nil {
					return err
				}
				return a.printTokens(tokens)
			})
		},
	}
}

func (a *app) printTokens(tokens []mesh.TokenInfo) error {
	if a.json {
		return a.printJSON(append([]mesh.TokenInfo{}, tokens...))
	}
	rows := [][]string{{"NAME", "KIND", "STATE", "PROTECTION", "ALGORITHMS", "DESCRIPTION"}}
	for _, t := range tokens {
		rows = append(rows, []string{t.Name, t.Kind, t.State, t.Protection, strings.Join(t.Algorithms, ","), t.Description})
	}
	return a.printTable(rows)
}

func newTokenUnlockCommand(a *app) *cobra.Command {
	var last bool
	c := &cobra.Command{
		Use:   "unlock NAME",
		Short: "Present a token's PIN",
		Long:  `Presents a token's PIN, which is read from the terminal without echo or from standard input.`,
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, names []string) error {
			pin, err := a.secret(c.Context(), "PIN of "+names[0])
			if err != nil {
				return err
			}
			defer clear(pin)
			return a.with(c.Context(), func(conn *client.Client) error {
				if last {
					return conn.TokenUnlockLastTry(c.Context(), names[0], pin)
				}
				return explainUnlock(conn.TokenUnlock(c.Context(), names[0], pin))
			})
		},
	}
	c.Flags().BoolVar(&last, "really-last-try", false, "use up the last try of a PIV card's PIN; if it is wrong, only the PUK helps")
	return c
}
