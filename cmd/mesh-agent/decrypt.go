package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

func newDecryptCommand(a *app) *cobra.Command {
	var key string
	var ask bool
	var partials, signers []string
	var rsa rsaFlags
	c := &cobra.Command{
		Use:   "decrypt [--key UDF] [FILE]",
		Short: "Open a DARE envelope or an RSA ciphertext",
		Long: `Opens the DARE envelope (a JSON array) in FILE or standard input and writes its
plaintext. Without --key it tries the agent's keys, first those that the envelope names.

Signatures are verified before anything is decrypted: with --signer, one of that signer must
be there and good. An activation for this device is not written out: "device activate" takes
it into use.

With --partial, the agent's key is one share and the files hold the agreements of the other
shares, as "agree" prints them. With --partial and no --key they are all shares, and no
agent is needed.

With --rsa-padding, FILE is an RSA ciphertext (the octets alone, as many as the modulus has) for
an RSA key of use decrypt, and its plaintext is written: the content key of a mail, say. With pkcs1
nothing tells whether it is the right one: a ciphertext that does not hold --rsa-length octets gives
as many others.`,
		Example: `  mesh-agent decrypt letter.dare
  mesh-agent decrypt --key MD7Q-... --rsa-padding oaep-sha256 content-key.rsa
  mesh-agent decrypt --key MBQC-... --partial partial.json letter.dare`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			if err := rsa.check(c, key); err != nil {
				return err
			}
			if rsa.padding != "" {
				pin, err := a.pinIf(c.Context(), ask, files)
				if err != nil {
					return err
				}
				defer clear(pin)
				return a.decryptRSA(c.Context(), rsa, key, pin, optional(files))
			}
			data, err := a.read(optional(files), maxDocument)
			if err != nil {
				return err
			}
			envelope, err := mesh.ParseEnvelope(data)
			if err != nil {
				return fmt.Errorf("read envelope: %w", err)
			}
			if err := a.verifyFirst(c.Context(), envelope, signers); err != nil {
				return err
			}
			points, err := a.readPoints(partials)
			if err != nil {
				return err
			}
			if ask && key == "" {
				return usageError{errors.New("--pin needs --key: a PIN is for one token only")}
			}
			pin, err := a.pinIf(c.Context(), ask, files)
			if err != nil {
				return err
			}
			defer clear(pin)
			seed, by, err := a.contentSeed(c.Context(), envelope.Header.Recipients, opener{key, pin, points})
			if err != nil {
				return err
			}
			defer clear(seed)
			if err := envelope.CheckWitness(seed); err != nil {
				return err
			}
			plaintext, err := envelope.Open(seed)
			if err != nil {
				return err
			}
			if err := a.checkContents(c.Context(), plaintext, by); err != nil {
				clear(plaintext)
				return err
			}
			return a.print(plaintext)
		},
	}
	c.Flags().StringVar(&key, "key", "", "`UDF` of the key (default: every key that could)")
	addPIN(c, &ask)
	rsa.add(c)
	c.Flags().StringArrayVar(&signers, "signer", nil, "whose signature it must have: `file` or UDF, as of verify; once for each")
	c.Flags().StringArrayVar(&partials, "partial", nil, "`file` with the agreement of another share; once for each")
	return c
}

// opener is what opens an envelope beside the agent's keys: the one key and its PIN, and the
// agreements of other shares.
type opener struct {
	key      string
	pin      []byte
	partials []point
}

// checkContents refuses an activation that a device's combined key opened. Those that the agent knows
// it refuses itself.
func (a *app) checkContents(ctx context.Context, plaintext []byte, by string) error {
	tagged, err := mesh.DecodeBody(plaintext)
	if err != nil || by == "" || !strings.HasPrefix(tagged.Tag, device.TagActivation) {
		return nil
	}
	defer clear(tagged.Body)
	return a.with(ctx, func(conn *client.Client) error {
		d, err := conn.DeviceShow(ctx)
		var status *client.StatusError
		if errors.As(err, &status) && (status.Status == 404 || status.Status == 501) {
			return nil // no device, hence no combined key
		}
		if err != nil {
			return err
		}
		for _, account := range d.Accounts {
			if slices.ContainsFunc(account.Keys, func(k mesh.NamedKey) bool { return k.Udf == by && strings.HasSuffix(k.Name, "DeviceEncryption") }) {
				return hint(fmt.Errorf("it is an %.64s, which the agent keeps to itself", tagged.Tag), "mesh-agent device activate takes the connection that it came with")
			}
		}
		return nil
	})
}

// contentSeed finds the seed of an envelope's content keys by a key of the agent, whose UDF it returns,
// by partial agreements, or by both.
func (a *app) contentSeed(ctx context.Context, recipients []mesh.Recipient, o opener) (seed []byte, by string, err error) {
	if len(recipients) == 0 {
		return nil, "", errors.New("the envelope is not encrypted to any key")
	}
	if o.key == "" && len(o.partials) != 0 {
		seed, err = seedFromPoints(recipients, o.partials)
		return seed, "", err
	}
	err = a.with(ctx, func(conn *client.Client) error {
		keys, err := decryptionKeys(ctx, conn, o.key, recipients)
		if err != nil {
			return err
		}
		tries := attempts(recipients, keys)
		if len(tries) == 0 {
			return hint(fmt.Errorf("no key here opens it; it is for %s", recipientNames(recipients)),
				"`mesh-agent key list` shows the keys; a key of use decrypt or agree opens envelopes")
		}
		seed, by, err = firstSeed(ctx, conn, tries, o)
		return err
	})
	return seed, by, err
}

// seedFromPoints unwraps the seed by the sum of all shares' agreements.
func seedFromPoints(recipients []mesh.Recipient, partials []point) ([]byte, error) {
	sum, err := combine(partials)
	if err != nil {
		return nil, err
	}
	for _, r := range recipients {
		if seed, err := mesh.UnwrapSeed(sum, "", r.WrappedKey); err == nil {
			return seed, nil
		}
	}
	return nil, errors.New("the shares together do not open it")
}

// decryptionKeys returns the key of this id, or all that decrypt, and those that a recipient entry names:
// if they are not in order, the agent says why.
func decryptionKeys(ctx context.Context, conn *client.Client, id string, recipients []mesh.Recipient) ([]mesh.KeyInfo, error) {
	if id != "" {
		info, err := conn.KeyShow(ctx, id)
		if err != nil {
			return nil, err
		}
		return []mesh.KeyInfo{*info}, nil
	}
	keys, err := conn.KeyList(ctx)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(keys, func(k mesh.KeyInfo) bool {
		named := slices.ContainsFunc(recipients, func(r mesh.Recipient) bool { return names(r, k) })
		return !named && !slices.Contains(k.Operations, "Decrypt")
	}), nil
}

// names reports whether a recipient entry is for a key.
func names(r mesh.Recipient, k mesh.KeyInfo) bool {
	return sameKey(r.KeyID, k.Udf) || sameKey(r.KeyID, k.UdfG2)
}

// attempt is one recipient entry to be opened with one key.
type attempt struct {
	key       mesh.KeyInfo
	recipient mesh.Recipient
}

// attempts pairs keys with the recipient entries they could open, those first that
// name the key.
func attempts(recipients []mesh.Recipient, keys []mesh.KeyInfo) []attempt {
	var named, others []attempt
	for _, k := range keys {
		for _, r := range recipients {
			switch {
			case names(r, k):
				named = append(named, attempt{k, r})
			case r.EphemeralKey.PublicKeyECDH != nil && r.EphemeralKey.PublicKeyECDH.Curve == k.Algorithm:
				others = append(others, attempt{k, r})
			}
		}
	}
	return append(named, others...)
}

// firstSeed asks the agent until an attempt succeeds. If none does, it returns the
// error of an entry that names the key, rather than that of a guess.
func firstSeed(ctx context.Context, conn *client.Client, tries []attempt, o opener) (seed []byte, by string, err error) {
	var refusal error
	for _, try := range tries {
		result, err := conn.Decrypt(ctx, decryptOperation(try, o))
		if err == nil {
			return result.Seed, try.key.Udf, nil
		}
		if refusal == nil {
			refusal = err
		}
		if ctx.Err() != nil || len(o.pin) != 0 || declined(err) { // a PIN is tried, and asked for, once
			break
		}
	}
	var status *client.StatusError
	if errors.As(refusal, &status) && status.Status == 400 {
		return nil, "", hint(token.ErrDecrypt, "if the key is a share, add the agreements of the other holders by --partial")
	}
	return nil, "", refusal
}

// declined reports whether somebody was asked for a PIN and gave none. The next attempt would ask again.
func declined(err error) bool {
	var status *client.StatusError
	return errors.As(err, &status) && status.Status == 401 &&
		(strings.Contains(status.Text, prompt.ErrRefused.Error()) || strings.Contains(status.Text, prompt.ErrNoAnswer.Error()))
}

func decryptOperation(try attempt, o opener) mesh.OperationDecrypt {
	op := mesh.OperationDecrypt{
		KeyId:     try.key.Udf,
		Recipient: &mesh.DecryptRecipient{EphemeralKey: try.recipient.EphemeralKey, WrappedKey: try.recipient.WrappedKey},
		PIN:       o.pin,
	}
	for _, p := range o.partials {
		op.Partials = append(op.Partials, mesh.PublicParameters{PublicKeyECDH: &p})
	}
	return op
}

func recipientNames(recipients []mesh.Recipient) string {
	var names []string
	for _, r := range recipients {
		names = append(names, r.KeyID)
	}
	return strings.Join(names, ", ")
}

// sameKey reports whether two key ids, perhaps of different lengths, name one key. At
// least 28 characters, dashes counted out, must be there.
func sameKey(a, b string) bool {
	x, errX := mesh.NormalizeKeyID(a)
	y, errY := mesh.NormalizeKeyID(b)
	return errX == nil && errY == nil && (strings.HasPrefix(x, y) || strings.HasPrefix(y, x))
}
