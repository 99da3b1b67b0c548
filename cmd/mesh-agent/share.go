package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newShareCommand(a *app) *cobra.Command {
	return group("share", "Split keys and combine what their shares computed",
		newShareSplitCommand(a), newShareCombineCommand(a),
		newAccountEscrowCommand(a), newAccountRecoverCommand(a))
}

func newShareSplitCommand(a *app) *cobra.Command {
	var key, dir string
	var threshold int
	c := &cobra.Command{
		Use:   "split --key UDF --threshold T",
		Short: "Split a key of use split among its recipients",
		Long: `Draws a fresh splitting of the key into one share for each of the recipients that were
fixed when it was made, T of which are needed, and prints an array of
{"X", "Recipient", "PublicKey", "Envelope"}. Each Envelope is encrypted to its recipient,
who takes it with "key import --use agree --unwrap-with UDF". With as many shares as are
needed the shares simply add up and have no X.

With --out-dir each envelope is written to share-1.json, share-2.json, ... there, and
their names are printed.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				info, err := conn.KeyShow(c.Context(), key)
				if err != nil {
					return err
				}
				shares, err := conn.Share(c.Context(), key, threshold, len(info.ShareTo))
				if err != nil {
					return err
				}
				if dir == "" {
					return a.printJSON(shares)
				}
				return a.writeShares(dir, shares)
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "`UDF` of the key")
	c.Flags().IntVar(&threshold, "threshold", 0, "`number` of shares that are needed")
	c.Flags().StringVar(&dir, "out-dir", "", "write the envelopes to files in this `folder`")
	required(c, "key", "threshold")
	return c
}

// writeShares writes one envelope per file, and never over a file that exists.
func (a *app) writeShares(dir string, shares []mesh.ResultShareItem) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write shares: %w", err)
	}
	var names []string
	for i, s := range shares {
		name := filepath.Join(dir, fmt.Sprintf("share-%d.json", i+1))
		if err := writeNew(name, append(s.Envelope, '\n')); err != nil {
			return fmt.Errorf("write shares: %w", err)
		}
		names = append(names, name)
		a.say("%s: for %s", name, s.Recipient)
	}
	if a.json {
		return a.printJSON(names)
	}
	for _, name := range names {
		if err := a.print([]byte(name + "\n")); err != nil {
			return err
		}
	}
	return nil
}

func writeNew(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func newShareCombineCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "combine FILE...",
		Short: "Add the points of several partial agreements",
		Long: `Adds the points in the files, as "agree" prints them, and prints the sum in the same
form. It needs no agent. Shares of a Shamir splitting must have been multiplied by their
coefficients (agree --x --among).`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, files []string) error {
			points, err := a.readPoints(files)
			if err != nil {
				return err
			}
			sum, err := combine(points)
			if err != nil {
				return err
			}
			return a.printPoint(sum.Curve().String(), sum.Bytes())
		},
	}
}

func (a *app) readPoints(files []string) ([]point, error) {
	var points []point
	for _, name := range files {
		p, err := a.readPoint(name)
		if err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}
