package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/keyshare"
	"github.com/mesh-agent/mesh-agent/mesh"
)

func newAgreeCommand(a *app) *cobra.Command {
	var key, peer, recipient string
	var among []int
	var x int
	var ask bool
	c := &cobra.Command{
		Use:   "agree --key UDF --peer FILE",
		Short: "Multiply a point by a key of use agree",
		Long: `Prints the agreement of a key with the point in FILE, which is a public key, another
agreement, or a DARE envelope, whose recipient entry then gives the point. The result is
a partial agreement if the key is a share: "share combine" adds several, "decrypt
--partial" takes them.

A share of a Shamir splitting (whose shares have numbers X) is multiplied by its Lagrange
coefficient: --x names its number, --among those of all shares that take part.`,
		Example: `  mesh-agent agree --key MBQC-... --peer letter.dare > partial.json
  mesh-agent agree --key MBQC-... --peer letter.dare --x 1 --among 1,3 > partial.json`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := a.readPeer(peer, recipient)
			if err != nil {
				return err
			}
			var coefficient []byte
			if c.Flags().Changed("x") || c.Flags().Changed("among") {
				if coefficient, err = lagrange(p.Curve, x, among); err != nil {
					return err
				}
			}
			pin, err := a.pinIf(c.Context(), ask, []string{peer})
			if err != nil {
				return err
			}
			defer clear(pin)
			return a.with(c.Context(), func(conn *client.Client) error {
				op := mesh.OperationKeyAgreement{KeyId: key, PublicKey: mesh.PublicParameters{PublicKeyECDH: &p}, KeyCoefficient: coefficient, PIN: pin}
				agreement, err := conn.AgreeOperation(c.Context(), op)
				if err != nil {
					return err
				}
				return a.printPoint(agreement.Curve, agreement.Result)
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "`UDF` of the key")
	c.Flags().StringVar(&peer, "peer", "", "`file` with the point")
	c.Flags().StringVar(&recipient, "recipient", "", "`UDF` in the envelope's recipient entry, if there are several")
	c.Flags().IntVar(&x, "x", 0, "`number` of this share")
	c.Flags().IntSliceVar(&among, "among", nil, "`numbers` of the shares that take part, with commas")
	addPIN(c, &ask)
	required(c, "key", "peer")
	return c
}

// readPeer reads the point of a file; if that is an envelope, of its recipient entry.
func (a *app) readPeer(name, recipient string) (point, error) {
	data, err := a.read(name, maxDocument)
	if err != nil {
		return point{}, err
	}
	if !isEnvelope(data) {
		p, err := parsePoint(data)
		if err != nil {
			return point{}, fmt.Errorf("read point %s: %w", name, err)
		}
		return p, nil
	}
	envelope, err := mesh.ParseEnvelope(data)
	if err != nil {
		return point{}, fmt.Errorf("read envelope %s: %w", name, err)
	}
	r, err := chooseRecipient(envelope.Header.Recipients, recipient)
	if err != nil {
		return point{}, fmt.Errorf("read envelope %s: %w", name, err)
	}
	if r.EphemeralKey.PublicKeyECDH == nil {
		return point{}, fmt.Errorf("read envelope %s: its recipient entry has no point", name)
	}
	return *r.EphemeralKey.PublicKeyECDH, nil
}

// chooseRecipient returns the entry of this UDF, or the only one.
func chooseRecipient(recipients []mesh.Recipient, udf string) (mesh.Recipient, error) {
	var names []string
	for _, r := range recipients {
		if udf != "" && sameKey(r.KeyID, udf) {
			return r, nil
		}
		names = append(names, r.KeyID)
	}
	switch {
	case udf != "":
		return mesh.Recipient{}, fmt.Errorf("no recipient entry %s (it has %s)", udf, strings.Join(names, ", "))
	case len(recipients) != 1:
		return mesh.Recipient{}, hint(fmt.Errorf("it has %d recipient entries", len(recipients)),
			"name one by --recipient: "+strings.Join(names, ", "))
	}
	return recipients[0], nil
}

// lagrange returns the coefficient of share x among those of numbers xs.
func lagrange(curve string, x int, xs []int) ([]byte, error) {
	c, err := keyshare.ParseCurve(curve)
	if err != nil {
		return nil, err
	}
	for i, other := range xs {
		if other == x {
			coefficient, err := keyshare.Coefficient(c, xs, i)
			if err != nil {
				return nil, err
			}
			return coefficient.Bytes(), nil
		}
	}
	return nil, usageError{fmt.Errorf("--x %s is not --among %v", strconv.Itoa(x), xs)}
}
