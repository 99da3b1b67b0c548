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
	var d decryption
	c := &cobra.Command{
		Use:   "decrypt [--key UDF] [FILE]",
		Short: "Open a DARE envelope or an RSA ciphertext",
		Long: `Opens the DARE envelope (a JSON array) in FILE or standard input and writes its
plaintext. Without --key it tries the agent's keys, first those that the envelope names.

Signatures are verified before anything is decrypted: with --signer, one of that signer must
be there and good. Without it, those are by the agent's own keys and by the accounts that this device is
connected to; who signed is said. An activation for this device is not written out: "device activate" takes
it into use.

A key that was made with --release plaintext or key does not give the agent's clients what opens a file of any
size: the agent opens the envelope itself, which must fit into one request (256 KiB).

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
			if a.json {
				return usageError{errors.New("--json: what was encrypted is written as it is")}
			}
			if err := d.rsa.check(c, d.key); err != nil {
				return err
			}
			if d.rsa.padding != "" {
				return a.decryptCiphertext(c.Context(), d, files)
			}
			return a.decryptFile(c.Context(), d, files)
		},
	}
	c.Flags().StringVar(&d.key, "key", "", "`UDF` of the key (default: every key that could)")
	addPIN(c, &d.ask)
	d.rsa.add(c)
	c.Flags().StringArrayVar(&d.signers, "signer", nil, "whose signature it must have: `file` or UDF, as of verify; once for each")
	c.Flags().StringArrayVar(&d.partials, "partial", nil, "`file` with the agreement of another share; once for each")
	return c
}

// decryption is what the flags of decrypt say.
type decryption struct {
	key               string
	ask               bool // for the PIN
	partials, signers []string
	rsa               rsaFlags
}

// decryptCiphertext opens an RSA ciphertext.
func (a *app) decryptCiphertext(ctx context.Context, d decryption, files []string) error {
	pin, err := a.pinIf(ctx, d.ask, files)
	if err != nil {
		return err
	}
	defer clear(pin)
	return a.decryptRSA(ctx, d.rsa, d.key, pin, optional(files))
}

// decryptFile opens an envelope. The PIN is asked for last, when nothing else can be wrong with what was given.
func (a *app) decryptFile(ctx context.Context, d decryption, files []string) error {
	data, err := a.read(optional(files), maxDocument)
	if err != nil {
		return err
	}
	envelope, err := mesh.ParseEnvelope(data)
	if err != nil {
		return fmt.Errorf("read envelope: %w", err)
	}
	accepted, err := a.verifyFirst(ctx, envelope, d.signers)
	if err != nil {
		return err
	}
	points, err := a.readPoints(d.partials)
	if err != nil {
		return err
	}
	if d.ask && d.key == "" {
		return usageError{errors.New("--pin needs --key: a PIN is for one token only")}
	}
	pin, err := a.pinIf(ctx, d.ask, files)
	if err != nil {
		return err
	}
	defer clear(pin)
	plaintext, err := a.decryptEnvelope(ctx, opener{envelope, d.key, pin, points, accepted})
	if err != nil {
		return err
	}
	return a.print(plaintext)
}

// opener is an envelope and what opens it beside the agent's keys: the one key and its PIN, and the
// agreements of other shares. Of signers, if there are any, one has signed.
type opener struct {
	envelope *mesh.Envelope
	key      string
	pin      []byte
	partials []point
	signers  []token.PublicKey
}

// opened is the base seed of an envelope or, of a key that does not give that out, the plaintext; and the key that
// opened it, if it was one of the agent's.
type opened struct {
	seed, plaintext []byte
	by              string
}

// decryptEnvelope returns the plaintext of an envelope, whose signatures were verified.
func (a *app) decryptEnvelope(ctx context.Context, o opener) ([]byte, error) {
	got, err := a.open(ctx, o)
	if err != nil || got.plaintext != nil {
		return got.plaintext, err
	}
	defer clear(got.seed)
	if err := o.envelope.CheckWitness(got.seed); err != nil {
		return nil, err
	}
	plaintext, err := o.envelope.Open(got.seed)
	if err != nil {
		return nil, err
	}
	if err := a.checkContents(ctx, plaintext, got.by); err != nil {
		clear(plaintext)
		return nil, err
	}
	return plaintext, nil
}

// checkContents refuses an activation that a device's combined key opened. Those that the agent knows
// it refuses itself.
func (a *app) checkContents(ctx context.Context, plaintext []byte, by string) error {
	tag := device.InsideOnly(plaintext)
	if tag == "" || by == "" {
		return nil
	}
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
				return hint(fmt.Errorf("it is an %.64s, which the agent keeps to itself", tag), "mesh-agent device activate takes the connection that it came with")
			}
		}
		return nil
	})
}

// open opens an envelope by a key of the agent, by partial agreements, or by both.
func (a *app) open(ctx context.Context, o opener) (got opened, err error) {
	recipients := o.envelope.Header.Recipients
	if len(recipients) == 0 {
		return got, errors.New("the envelope is not encrypted to any key")
	}
	if o.key == "" && len(o.partials) != 0 {
		got.seed, err = seedFromPoints(recipients, o.partials)
		return got, err
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
		got, err = firstOpened(ctx, conn, tries, o)
		return err
	})
	return got, err
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
// name the key. Those that name it and are for a key of another kind come last: the agent says what is wrong.
func attempts(recipients []mesh.Recipient, keys []mesh.KeyInfo) []attempt {
	var named, others, hopeless []attempt
	for _, k := range keys {
		for _, r := range recipients {
			point := r.EphemeralKey.PublicKeyECDH
			switch fits := point != nil && point.Curve == k.Algorithm; {
			case fits && names(r, k):
				named = append(named, attempt{k, r})
			case fits:
				others = append(others, attempt{k, r})
			case names(r, k):
				hopeless = append(hopeless, attempt{k, r})
			}
		}
	}
	return slices.Concat(named, others, hopeless)
}

// firstOpened asks the agent until an attempt succeeds. If none does, it returns the
// error of an entry that names the key, rather than that of a guess.
func firstOpened(ctx context.Context, conn *client.Client, tries []attempt, o opener) (opened, error) {
	var refusal error
	whole := map[string]bool{} // keys with which the whole envelope was tried
	for _, try := range tries {
		if whole[try.key.Udf] {
			continue
		}
		whole[try.key.Udf] = try.key.Release != ""
		got, err := try.open(ctx, conn, o)
		if err == nil {
			return got, nil
		}
		if refusal == nil {
			refusal = err
		}
		if ctx.Err() != nil || len(o.pin) != 0 || declined(err) { // a PIN is tried, and asked for, once
			break
		}
	}
	return opened{}, explainOpen(refusal)
}

// explainOpen has one error for what does not open, and says what to do about others.
func explainOpen(err error) error {
	var status *client.StatusError
	switch {
	case errors.Is(err, client.ErrTooLarge):
		return hint(fmt.Errorf("the key gives out contents that the agent has looked at, and no more, and the envelope does not fit into a request: %w", err),
			"have larger files encrypted to a key that was made without --release")
	case !errors.As(err, &status):
		return err
	case strings.HasPrefix(status.Text, "policy: the device's combined key"):
		return hint(err, "have it encrypted by `mesh-agent encrypt --enc A256GCM`, or to the account's key and not the device's")
	case status.Status == 400 && (!strings.HasPrefix(status.Text, "Envelope:") || strings.HasSuffix(status.Text, token.ErrDecrypt.Error())):
		return hint(token.ErrDecrypt, "if the key is a share, add the agreements of the other holders by --partial")
	}
	return err
}

// declined reports whether somebody was asked for a PIN and gave none. The next attempt would ask again.
func declined(err error) bool {
	var status *client.StatusError
	return errors.As(err, &status) && status.Status == 401 &&
		(strings.Contains(status.Text, prompt.ErrRefused.Error()) || strings.Contains(status.Text, prompt.ErrNoAnswer.Error()))
}

// open has the agent open the entry or, if the key does not give out base seeds, all of the envelope.
func (try attempt) open(ctx context.Context, conn *client.Client, o opener) (opened, error) {
	op := mesh.OperationDecrypt{KeyId: try.key.Udf, PIN: o.pin}
	for _, p := range o.partials {
		op.Partials = append(op.Partials, mesh.PublicParameters{PublicKeyECDH: &p})
	}
	if try.key.Release == "" {
		op.Recipient = &mesh.DecryptRecipient{EphemeralKey: try.recipient.EphemeralKey, WrappedKey: try.recipient.WrappedKey}
	} else {
		text, err := o.envelope.Marshal()
		if err != nil {
			return opened{}, err
		}
		op.Envelope, op.Release = text, token.ReleasePlaintext.String()
		for _, s := range o.signers {
			op.Signers = append(op.Signers, mesh.Parameters(s))
		}
	}
	result, err := conn.Decrypt(ctx, op)
	if err != nil {
		return opened{}, err
	}
	if (result.Plaintext == nil) == (op.Envelope != nil) || (result.Seed == nil) == (op.Recipient != nil) {
		return opened{}, fmt.Errorf("read the agent's answer: %w", client.ErrProtocol)
	}
	return opened{result.Seed, result.Plaintext, try.key.Udf}, nil
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
