package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/internal/attest"
)

func newAttestCommand(a *app) *cobra.Command {
	c := group("attest", "Prove to somebody far away that a key is in a device",
		newAttestIdentifyCommand(a), newAttestChallengeCommand(a), newAttestAnswerCommand(a), newAttestVerifyCommand(a))
	c.Long = `Proves to a verifier that a key is in a TPM, in four steps. Files go to and fro; the
verifier needs neither an agent nor a TPM, and keeps CHALLENGE.secret for itself.

    device    attest identify --out ID
    verifier  attest challenge ID --ca DIR --out CHALLENGE
    device    attest answer CHALLENGE --key UDF --out ANSWER
    verifier  attest verify ANSWER --challenge CHALLENGE`
	return c
}

// secretFile is where the verifier keeps what it must know of a challenge.
func secretFile(challenge string) string { return challenge + ".secret" }

func newAttestIdentifyCommand(a *app) *cobra.Command {
	var token, out string
	c := &cobra.Command{
		Use:   "identify [--token T] [--out FILE]",
		Short: "Write what a device is known by",
		Long: `Writes what the device of a token is known by: of a TPM the endorsement key with the
certificates that its maker put into it, and the public key by which it signs what it says.
Nothing in it is secret, but it is the same for ever and so tells one device from all others.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(conn *client.Client) error {
				document, err := conn.AttestIdentify(c.Context(), token)
				if err != nil {
					return err
				}
				return a.writeDocument(out, document)
			})
		},
	}
	c.Flags().StringVar(&token, "token", "tpm", "the `token`")
	c.Flags().StringVar(&out, "out", "", "the `file` to write (default standard output)")
	return c
}

// challengeFlags are the flags of attest challenge.
type challengeFlags struct {
	ca, out    string
	unverified bool
	valid      time.Duration
}

func newAttestChallengeCommand(a *app) *cobra.Command {
	var flags challengeFlags
	c := &cobra.Command{
		Use:   "challenge [ID] --out FILE",
		Short: "Make a challenge for a device (verifier)",
		Long: `Checks the certificate in ID, the file of attest identify, by the CA certificates in the
folder --ca (PEM or DER; every one of them is trusted), and writes two files: FILE for the
device, with a nonce and a secret that only the device of that certificate can open, and
FILE.secret, which stays here, for attest verify. Neither may exist.

Without ID the challenge is for any device: answers are fresh, but nothing shows that they
come from a device at all.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			id, err := a.readIdentity(files, flags)
			if err != nil {
				return err
			}
			return a.challenge(id, flags)
		},
	}
	c.Flags().StringVar(&flags.ca, "ca", "", "the `folder` of the CA certificates of makers that are trusted")
	c.Flags().StringVar(&flags.out, "out", "", "the `file` for the device")
	c.Flags().BoolVar(&flags.unverified, "accept-unverified-ek", false, "take a device without a verified certificate: it may be a simulator")
	c.Flags().DurationVar(&flags.valid, "valid", 24*time.Hour, "how long an answer will be accepted, as a `duration` such as 90m")
	required(c, "out")
	return c
}

// readIdentity reads the file of attest identify; nil if there is none.
func (a *app) readIdentity(files []string, flags challengeFlags) (*attest.Identity, error) {
	switch {
	case flags.valid <= 0:
		return nil, usageError{errors.New("--valid is not positive")}
	case flags.ca != "" && flags.unverified:
		return nil, usageError{errors.New("--ca and --accept-unverified-ek exclude each other")}
	case len(files) == 0 && (flags.ca != "" || flags.unverified):
		return nil, usageError{errors.New("--ca and --accept-unverified-ek are about ID, which is missing")}
	case len(files) == 0:
		a.say("without ID the challenge is for any device; verify will call its answers unbound")
		return nil, nil
	}
	document, err := a.read(files[0], attest.MaxDocument)
	if err != nil {
		return nil, err
	}
	return attest.ParseIdentity(document)
}

func (a *app) challenge(id *attest.Identity, flags challengeFlags) error {
	options := attest.ChallengeOptions{AcceptUnverified: flags.unverified, Validity: flags.valid}
	if flags.ca != "" {
		var err error
		if options.Roots, err = attest.LoadRoots(os.DirFS(flags.ca)); err != nil {
			return fmt.Errorf("--ca %s: %w", flags.ca, err)
		}
	}
	challenge, secret, err := attest.NewChallenge(id, options)
	if errors.Is(err, attest.ErrCertificate) && flags.ca == "" {
		return hint(err, "name the folder of its maker's certificates by --ca, or take any device by --accept-unverified-ek")
	}
	if errors.Is(err, attest.ErrCertificate) {
		return hint(err, "is the maker's certificate, and every one between, in the folder of --ca? A simulator has none")
	}
	if err != nil {
		return err
	}
	defer clear(secret.Credential)
	public, err := challenge.Marshal()
	if err != nil {
		return err
	}
	private, err := secret.Marshal()
	if err != nil {
		return err
	}
	defer clear(private)
	err = writeNew(secretFile(flags.out), private)
	if errors.Is(err, fs.ErrExist) {
		return hint(err, "choose another --out: what is kept of an earlier challenge would be lost")
	}
	if err != nil {
		return err
	}
	if err := writeNew(flags.out, public); err != nil {
		return errors.Join(err, os.Remove(secretFile(flags.out)))
	}
	a.say("send %s to the device; keep %s here", flags.out, secretFile(flags.out))
	return nil
}

func newAttestAnswerCommand(a *app) *cobra.Command {
	var key, pcrs, out string
	c := &cobra.Command{
		Use:   "answer CHALLENGE --key UDF [--out FILE]",
		Short: "Prove that a key is in its device",
		Long: `Has the device of a key certify the key, and with --pcrs the platform's measurements, for the
challenge of a verifier, and writes the answer. The key must be in a device, not sealed by one.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			challenge, err := a.read(files[0], attest.MaxDocument)
			if err != nil {
				return err
			}
			if _, err := attest.ParseChallenge(challenge); err != nil {
				return err
			}
			return a.with(c.Context(), func(conn *client.Client) error {
				document, err := conn.AttestAnswer(c.Context(), key, challenge, pcrs)
				if err != nil {
					return err
				}
				return a.writeDocument(out, document)
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "`UDF` of the key")
	c.Flags().StringVar(&pcrs, "pcrs", "", "measurements to vouch for, as sha256:0,7")
	c.Flags().StringVar(&out, "out", "", "the `file` to write (default standard output)")
	required(c, "key")
	return c
}

func newAttestVerifyCommand(a *app) *cobra.Command {
	var challenge string
	var options attest.VerifyOptions
	c := &cobra.Command{
		Use:   "verify ANSWER --challenge CHALLENGE",
		Short: "Verify an answer and say what it proves (verifier)",
		Long: `Verifies the answer of a device to CHALLENGE, with what CHALLENGE.secret beside it holds, and
prints what it proves and what it does not. It needs neither an agent nor a TPM.

An answer is refused if nothing bound its attestation key to a device (a program can make
such an answer), or if the key was imported (others may have it), unless that is accepted.
--key, --serial and --slot say what the answer must be about. Which PCR values are good, and whose
the UDF is, is for you to know.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, files []string) error {
			report, err := a.verifyAnswer(files[0], challenge, options)
			switch {
			case err != nil:
				return adviseVerify(err)
			case a.json:
				return a.printJSON(report)
			}
			return a.printReport(report)
		},
	}
	c.Flags().StringVar(&challenge, "challenge", "", "the `file` of attest challenge")
	c.Flags().StringVar(&options.Asked.Key, "key", "", "the `UDF` of the key that was asked for; another is refused")
	c.Flags().Uint32Var(&options.Asked.Serial, "serial", 0, "the serial `number` of the PIV card; another is refused")
	c.Flags().StringVar(&options.Asked.Slot, "slot", "", "the `slot` of the PIV card; another is refused")
	c.Flags().BoolVar(&options.AcceptUnbound, "accept-unbound-ak", false, "take an attestation key that nothing binds to a device")
	c.Flags().BoolVar(&options.AcceptImported, "accept-imported-key", false, "take a key that was outside of the device once, or may leave it")
	required(c, "challenge")
	return c
}

func (a *app) verifyAnswer(answerFile, challengeFile string, options attest.VerifyOptions) (*attest.Report, error) {
	document, err := a.read(answerFile, attest.MaxDocument)
	if err != nil {
		return nil, err
	}
	answer, err := attest.ParseAnswer(document)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", answerFile, err)
	}
	if document, err = os.ReadFile(challengeFile); err != nil {
		return nil, err
	}
	challenge, err := attest.ParseChallenge(document)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", challengeFile, err)
	}
	private, err := os.ReadFile(secretFile(challengeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint(err, "verify where the challenge was made: what it takes is kept there")
	}
	if err != nil {
		return nil, err
	}
	defer clear(private)
	secret, err := attest.ParseSecret(private)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", secretFile(challengeFile), err)
	}
	defer clear(secret.Credential)
	return attest.Verify(answer, challenge, secret, options)
}

// adviseVerify says what to do about an answer that is refused.
func adviseVerify(err error) error {
	switch {
	case errors.Is(err, attest.ErrUnbound):
		return hint(err, "make the challenge with the device's ID, or take the answer for what it is by --accept-unbound-ak")
	case errors.Is(err, attest.ErrOther):
		return hint(err, "the answer may be true, and is not about the key that you asked for")
	case errors.Is(err, attest.ErrImported):
		return hint(err, "ask for a key that is generated in the device, or take it by --accept-imported-key")
	case errors.Is(err, attest.ErrChallenge):
		return hint(err, "make a new challenge")
	}
	return err
}

// printReport prints what was proven for people.
func (a *app) printReport(r *attest.Report) error {
	known := func(s string) string { return cmp.Or(s, "unknown") }
	device := known(r.Attester.Device)
	anchor := cmp.Or(r.Attester.Anchor, "nobody: not verified")
	rows := [][]string{
		{"key", r.Udf},
		{"algorithm", string(r.Algorithm)},
		{"origin", r.Key.Origin},
		{"attributes", attributes(r.Key)},
		{"purpose", r.Key.Purpose},
		{"PIN", r.Key.PIN},
		{"device", device},
		{"vouched for by", anchor},
		{"endorsement key", hexOr(r.Attester.Endorsement, "none")},
		{"attestation key", hexOr(r.Attester.Key, "none") + map[bool]string{true: ", bound to the device", false: ", NOT BOUND"}[r.Attester.Bound]},
	}
	for _, p := range r.PCRs {
		rows = append(rows, []string{fmt.Sprintf("PCR %s:%d", p.Bank, p.Index), fmt.Sprintf("%x", []byte(p.Value))})
	}
	if p := r.Platform; p != nil {
		rows = append(rows, []string{"TPM", fmt.Sprintf("firmware %016x, start %d", p.Firmware, p.ResetCount)})
	}
	if c := r.Card; c != nil {
		rows = append(rows, []string{"card", fmt.Sprintf("serial number %d, slot %s, firmware %s, touch %s", c.Serial, known(c.Slot), known(c.Firmware), c.TouchPolicy)})
	}
	for _, s := range r.Proven {
		rows = append(rows, []string{"proven", s})
	}
	for _, s := range r.NotProven {
		rows = append(rows, []string{"not proven", s})
	}
	return a.printTable(rows)
}

func hexOr(b []byte, none string) string {
	if len(b) == 0 {
		return none
	}
	return fmt.Sprintf("%x", b)
}

// attributes names what the device guarantees.
func attributes(k attest.KeyReport) string {
	var out []string
	for _, x := range []struct {
		set  bool
		name string
	}{{k.FixedTPM, "fixedTPM"}, {k.FixedParent, "fixedParent"}, {k.SensitiveDataOrigin, "sensitiveDataOrigin"}} {
		if x.set {
			out = append(out, x.name)
		}
	}
	return cmp.Or(strings.Join(out, "|"), "none")
}

// writeDocument writes a file that is not secret, or to standard output.
func (a *app) writeDocument(name string, document []byte) error {
	if name == "" || name == "-" {
		return a.print(document)
	}
	return os.WriteFile(name, document, 0o644)
}
