package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/strictjson"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/mesh/device"
	"github.com/mesh-agent/mesh-agent/token"
)

// envelopeFlags are those of sign that make a DARE envelope.
type envelopeFlags struct {
	dare        bool
	to          []string
	generation  string
	contentType string
	includeKey  bool
}

func (f *envelopeFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.dare, "dare", false, "print a signed DARE envelope around the message")
	c.Flags().StringArrayVar(&f.to, "to", nil, "with --dare: a recipient to encrypt to, `file` or UDF, as of encrypt; once for each")
	c.Flags().StringVar(&f.generation, "generation", "g1", "with --dare: wire format of the signature, g1 or g2")
	c.Flags().StringVar(&f.contentType, "content-type", "", "with --dare: media `type` to note in the header")
	c.Flags().BoolVar(&f.includeKey, "include-key", false, "with --dare: put the public key beside the signature")
}

// check refuses flags that mean nothing without --dare.
func (f *envelopeFlags) check(c *cobra.Command) error {
	for _, name := range []string{"to", "generation", "content-type", "include-key"} {
		if !f.dare && c.Flags().Changed(name) {
			return usageError{fmt.Errorf("--%s needs --dare", name)}
		}
	}
	if f.dare && (c.Flags().Changed("raw") || c.Flags().Changed("mode")) {
		return usageError{errors.New("--dare excludes --raw and --mode")}
	}
	return nil
}

// agentKey is a key of the agent that signs octets.
type agentKey struct {
	conn   *client.Client
	udf    string
	pin    []byte
	public token.PublicKey
}

var _ mesh.Signer = agentKey{}

// Public returns the public key.
func (k agentKey) Public() token.PublicKey { return k.public }

// Sign implements mesh.Signer.
func (k agentKey) Sign(ctx context.Context, octets []byte) ([]byte, error) {
	return k.conn.SignOperation(ctx, mesh.OperationSign{KeyId: k.udf, Data: octets, PIN: k.pin})
}

// signEnvelope makes a signed envelope. A key of use sign-assertion gets the body, to see what it
// signs; one of use sign the digest.
func (a *app) signEnvelope(ctx context.Context, f envelopeFlags, key string, pin, message []byte) error {
	g, err := parseGeneration(f.generation)
	if err != nil {
		return err
	}
	recipients, err := a.recipients(ctx, f.to)
	if err != nil {
		return err
	}
	return a.with(ctx, func(conn *client.Client) error {
		info, err := conn.KeyShow(ctx, key)
		if err != nil {
			return err
		}
		if slices.Contains(info.Operations, "SignEnvelope") {
			op := mesh.OperationSignEnvelope{KeyId: key, Body: message, Generation: g.String(), IncludeKey: f.includeKey, PIN: pin}
			for _, to := range recipients {
				op.Recipients = append(op.Recipients, mesh.MarshalKeyDataPublic(to, g))
			}
			out, err := conn.SignEnvelope(ctx, op)
			if err != nil {
				return err
			}
			return a.print(append(out, '\n'))
		}
		public, err := info.PublicKey.PublicKey()
		if err != nil {
			return err
		}
		e, err := mesh.NewEnvelope(ctx, message, mesh.EnvelopeOptions{
			Generation: g, Meta: mesh.ContentMeta{ContentType: f.contentType}, Recipients: recipients,
			Signers: []mesh.Signer{agentKey{conn, key, pin, public}}, IncludeKey: f.includeKey,
		})
		if err != nil {
			return err
		}
		out, err := e.Marshal()
		if err != nil {
			return err
		}
		return a.print(append(out, '\n'))
	})
}

func newVerifyCommand(a *app) *cobra.Command {
	var signers []string
	var body bool
	c := &cobra.Command{
		Use:   "verify [--signer FILE]... [FILE]",
		Short: "Verify the signatures of a DARE envelope",
		Long: `Verifies the signatures of the DARE envelope in FILE or standard input, over the exact
octets of its body, and prints who signed (--json: an object {"SignedBy":["..."]}). A signer is a file with a public KeyData, an account's
profile, a device's profile or its connection, or the UDF of a key of the agent. Without
--signer the keys in the envelope itself are taken: then the signature shows only that nothing
was changed since, and who signed is a claim, which is said.

With --body the body is written if the signature is good. An encrypted body is not opened: "decrypt
--signer" does both.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			if body && a.json {
				return usageError{errors.New("--body and --json exclude each other")}
			}
			data, err := a.read(optional(files), maxDocument)
			if err != nil {
				return err
			}
			e, err := mesh.ParseEnvelope(data)
			if err != nil {
				return fmt.Errorf("read envelope: %w", err)
			}
			accepted, err := a.signerKeys(c.Context(), signers)
			if err != nil {
				return err
			}
			if len(signers) == 0 {
				if accepted, err = e.SignerKeys(); err != nil {
					return hint(err, "say whose signature it should be: --signer")
				}
				a.say("the signer's key is the one in the envelope, which anybody can put there")
			}
			by, err := e.Verify(accepted...)
			switch {
			case err != nil:
				return err
			case body:
				return a.print(e.Body)
			}
			return a.printSigners(by)
		},
	}
	c.Flags().StringArrayVar(&signers, "signer", nil, "whose signature is accepted: `file` or UDF; once for each")
	c.Flags().BoolVar(&body, "body", false, "write the body")
	return c
}

// printSigners prints the UDFs of who signed.
func (a *app) printSigners(by []mesh.SignedBy) error {
	var udfs []string
	for _, s := range by {
		udf, err := mesh.Fingerprint(s.Key, s.Generation)
		if err != nil {
			return err
		}
		udfs = append(udfs, udf)
	}
	if a.json {
		return a.printJSON(struct{ SignedBy []string }{udfs})
	}
	return a.print([]byte(strings.Join(udfs, "\n") + "\n"))
}

// signerKeys returns the keys of signers that are named by files or UDFs.
func (a *app) signerKeys(ctx context.Context, names []string) ([]token.PublicKey, error) {
	var keys []token.PublicKey
	for _, name := range names {
		if isKeyName(name) {
			info, err := a.keyInfo(ctx, name)
			if err != nil {
				return nil, err
			}
			key, err := info.PublicKey.PublicKey()
			if err != nil {
				return nil, err
			}
			keys = append(keys, key)
			continue
		}
		data, err := a.readJSON(name)
		if err != nil {
			return nil, err
		}
		found, err := signersIn(data)
		if err != nil {
			return nil, fmt.Errorf("read signer %s: %w", title(name), err)
		}
		keys = append(keys, found...)
	}
	return keys, nil
}

// signersIn are the keys for signatures in a public KeyData, a profile or a connection.
func signersIn(data strictjson.Value) ([]token.PublicKey, error) {
	now := time.Now()
	if data.Kind() != '[' {
		key, err := mesh.ParseKeyDataPublic(data)
		return []token.PublicKey{key}, err
	}
	e, err := mesh.ParseEnvelope(data)
	if err != nil {
		return nil, err
	}
	tagged, err := mesh.DecodeBody(e.Body)
	if err != nil {
		return nil, err
	}
	switch tagged.Tag {
	case device.TagProfileUser, device.TagProfileGroup:
		p, err := device.ParseProfileUser(e, now)
		if err != nil {
			return nil, err
		}
		return p.Signers(), nil
	case device.TagProfileDevice, device.TagProfileHost:
		p, err := device.ParseProfileDevice(e, now)
		if err != nil {
			return nil, err
		}
		return p.Signers(), nil
	}
	c, err := readConnection(e, generationOf(e), now)
	if err != nil {
		return nil, err
	}
	if c.Signature == nil {
		return nil, fmt.Errorf("a %s has no key for signatures", c.Tag)
	}
	return []token.PublicKey{*c.Signature}, nil
}

// readConnection reads a connection by itself. Which administrator should have signed it is not known
// here: it is signed, and its body is the one that its trailer names.
func readConnection(e *mesh.Envelope, g mesh.Generation, now time.Time) (*device.Connection, error) {
	if e.Trailer == nil || len(e.Trailer.Signatures) == 0 {
		return nil, mesh.ErrNotSigned
	}
	if _, err := e.Manifest(g); err != nil {
		return nil, err
	}
	return device.ParseConnection(e, g, now)
}

// verifyFirst verifies the signatures of an envelope before anything is decrypted. It returns the keys of the signers that are
// named, one of which signed. Without any, keys that are known here are tried, and keys in the envelope, which
// show a change at least; who signed is said, or that it is not known.
func (a *app) verifyFirst(ctx context.Context, e *mesh.Envelope, names []string) ([]token.PublicKey, error) {
	accepted, err := a.signerKeys(ctx, names)
	if err != nil {
		return nil, err
	}
	if len(names) > 0 {
		_, err := e.Verify(accepted...)
		return accepted, err
	}
	if e.Trailer == nil || len(e.Trailer.Signatures) == 0 {
		return nil, nil
	}
	by, err := e.VerifyKnown(a.knownSigners(ctx, e)...)
	if err != nil {
		return nil, err
	}
	if len(by) == 0 {
		a.say("it is signed, but whose signature it should be is not said: --signer")
	}
	for _, s := range by {
		udf, err := mesh.Fingerprint(s.Key, s.Generation)
		if err != nil {
			return nil, err
		}
		a.say("signed by %s", udf)
	}
	return nil, nil
}

// maxNamed is how many of the signatures of an envelope are looked up.
const maxNamed = 64

// knownSigners are the keys of those who are known here: the agent's own that the signatures name, the device's, and those
// of the accounts that it is connected to. Where there is no agent nobody is known.
func (a *app) knownSigners(ctx context.Context, e *mesh.Envelope) (keys []token.PublicKey) {
	var known []strictjson.Value
	err := a.with(ctx, func(conn *client.Client) error {
		for _, s := range e.Trailer.Signatures[:min(len(e.Trailer.Signatures), maxNamed)] {
			info, err := conn.KeyShow(ctx, s.KeyID)
			if err != nil || !token.Use(info.Use).Signs() {
				continue
			}
			if key, err := info.PublicKey.PublicKey(); err == nil {
				keys = append(keys, key)
			}
		}
		d, err := conn.DeviceShow(ctx)
		if err != nil {
			return err
		}
		known = append(known, d.Profile)
		for _, account := range d.Accounts {
			known = append(known, account.Profile, account.ConnectionDevice)
		}
		return nil
	})
	if err != nil {
		return keys
	}
	for _, text := range known {
		if found, err := signersIn(text); err == nil {
			keys = append(keys, found...)
		}
	}
	return keys
}
