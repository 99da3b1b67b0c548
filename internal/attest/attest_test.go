package attest_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/attest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// device is a TPM with a key.
type device struct {
	token *tpm.Token
	key   token.Created
	use   token.Use
}

func openTPM(t testing.TB, simulator *tpmtest.TPM) *tpm.Token {
	t.Helper()
	d, err := tpm.Open(t.Context(), tpm.Options{Device: simulator.Device()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func newDevice(t testing.TB, simulator *tpmtest.TPM, a token.Algorithm, use token.Use) *device {
	t.Helper()
	d := openTPM(t, simulator)
	key, err := d.Generate(t.Context(), token.GenerateRequest{Algorithm: a, Use: use})
	if err != nil {
		t.Fatal(err)
	}
	return &device{d, key, use}
}

func (d *device) identity(t testing.TB) *attest.Identity {
	t.Helper()
	id, err := d.token.AttestIdentity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return reread(t, attest.NewIdentity(id), attest.ParseIdentity)
}

// answer does what the agent does.
func (d *device) answer(t testing.TB, c *attest.Challenge, pcrs string) (*attest.Answer, error) {
	t.Helper()
	statement, err := attest.NewStatement(token.AttestTPM2, d.key.Public, pcrs)
	if err != nil {
		return nil, err
	}
	return d.answerWith(t, statement, c, c)
}

// answerWith makes evidence for a statement bound to one challenge, and opens the credential of another.
func (d *device) answerWith(t testing.TB, s *attest.Statement, bind, open *attest.Challenge) (*attest.Answer, error) {
	t.Helper()
	qualifying, err := s.Qualifying(bind)
	if err != nil {
		t.Fatal(err)
	}
	e, err := d.token.Attest(t.Context(), token.AttestRequest{
		Key:        token.OpenRequest{Handle: d.key.Handle, Public: d.key.Public, Use: d.use, Imported: true},
		Qualifying: qualifying, PCRs: s.PCRs, Credential: open.Credential,
	})
	if err != nil {
		return nil, err
	}
	return attest.NewAnswer(s, e)
}

func mustAnswer(t testing.TB, d *device, c *attest.Challenge, pcrs string) *attest.Answer {
	t.Helper()
	a, err := d.answer(t, c, pcrs)
	if err != nil {
		t.Fatal(err)
	}
	return reread(t, a, attest.ParseAnswer)
}

// reread sends a document through its encoding.
func reread[D interface{ Marshal() ([]byte, error) }](t testing.TB, d D, parse func([]byte) (D, error)) D {
	t.Helper()
	document, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out, err := parse(document)
	if err != nil {
		t.Fatalf("%v\n%s", err, document)
	}
	return out
}

func roots(t testing.TB, ca *tpmtest.CA) []*x509.Certificate {
	t.Helper()
	out, err := attest.LoadRoots(os.DirFS(ca.Certificates))
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 2 {
		t.Fatalf("%d CA certificates", len(out))
	}
	return out
}

func challenge(t testing.TB, id *attest.Identity, o attest.ChallengeOptions) (*attest.Challenge, *attest.Secret) {
	t.Helper()
	o.Validity = time.Hour
	c, s, err := attest.NewChallenge(id, o)
	if err != nil {
		t.Fatal(err)
	}
	return reread(t, c, attest.ParseChallenge), reread(t, s, attest.ParseSecret)
}

func TestTPM(t *testing.T) {
	t.Parallel()
	ca := tpmtest.NewCA(t)
	d := newDevice(t, ca.Start(t), token.P256, token.UseSign)
	other := newDevice(t, ca.Start(t), token.P256, token.UseSign)
	bare := newDevice(t, tpmtest.Start(t), token.P256, token.UseAgree)
	trusted := attest.ChallengeOptions{Roots: roots(t, ca)}

	id := d.identity(t)
	if len(id.Certificates) == 0 {
		t.Fatal("no certificate")
	}
	c, s := challenge(t, id, trusted)

	t.Run("whole", func(t *testing.T) {
		r, err := attest.Verify(mustAnswer(t, d, c, "sha256:7,0"), c, s, attest.VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		k := r.Key
		if !r.Attester.Bound || !strings.Contains(r.Attester.Anchor, "swtpm-localca") || k.Origin != "generated" || k.Purpose != "sign" ||
			!k.FixedTPM || !k.FixedParent || !k.SensitiveDataOrigin || r.Algorithm != token.P256 {
			t.Errorf("%+v", r)
		}
		if len(r.PCRs) != 2 || r.PCRs[0].Index != 0 || r.PCRs[1].Index != 7 || len(r.PCRs[1].Value) != 32 {
			t.Errorf("PCRs %v", r.PCRs)
		}
	})
	t.Run("the key is the same after a restart", func(t *testing.T) {
		again := d.identity(t)
		if !bytes.Equal(again.AttestationKey, id.AttestationKey) || !bytes.Equal(again.Endorsement, id.Endorsement) {
			t.Error("another identity")
		}
		if bytes.Equal(other.identity(t).AttestationKey, id.AttestationKey) {
			t.Error("two TPMs have one attestation key")
		}
	})
	t.Run("another TPM cannot open the credential", func(t *testing.T) {
		if a, err := other.answer(t, c, ""); !errors.Is(err, token.ErrDecrypt) {
			t.Errorf("%v, %v", a, err)
		}
	})
	t.Run("another TPM's attestation key", func(t *testing.T) {
		open := *c
		open.Credential = nil
		a, err := other.answer(t, &open, "")
		if err != nil {
			t.Fatal(err)
		}
		refused(t, a, c, s, attest.ErrChallenge)
		// With the challenge bound, but only the credential left out, it is still another's.
		statement, err := attest.NewStatement(token.AttestTPM2, other.key.Public, "")
		if err != nil {
			t.Fatal(err)
		}
		if a, err = other.answerWith(t, statement, c, &open); err != nil {
			t.Fatal(err)
		}
		refused(t, a, c, s, attest.ErrChallenge)
		// And in the guise of the challenged key.
		a.Evidence.AttestationKey = []byte(id.AttestationKey)
		refused(t, a, c, s, attest.ErrEvidence)
	})
	t.Run("credential not opened", func(t *testing.T) {
		statement, err := attest.NewStatement(token.AttestTPM2, d.key.Public, "")
		if err != nil {
			t.Fatal(err)
		}
		a, err := d.answerWith(t, statement, c, &attest.Challenge{})
		if err != nil {
			t.Fatal(err)
		}
		refused(t, a, c, s, attest.ErrUnbound)
		r, err := attest.Verify(a, c, s, attest.VerifyOptions{AcceptUnbound: true})
		if err != nil || r.Attester.Bound {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("other nonce", func(t *testing.T) {
		c2, s2 := challenge(t, id, trusted)
		a := mustAnswer(t, d, c, "")
		refused(t, a, c2, s2, attest.ErrEvidence)
		refused(t, a, c2, s, attest.ErrChallenge)
		refused(t, a, c, s2, attest.ErrChallenge)
		// The right credential with evidence for the wrong nonce.
		statement, err := attest.NewStatement(token.AttestTPM2, d.key.Public, "")
		if err != nil {
			t.Fatal(err)
		}
		if a, err = d.answerWith(t, statement, c, c2); err != nil {
			t.Fatal(err)
		}
		refused(t, a, c2, s2, attest.ErrChallenge)
	})
	t.Run("stale", func(t *testing.T) {
		a := mustAnswer(t, d, c, "")
		for hours, want := range map[time.Duration]error{0: nil, 2: attest.ErrChallenge} {
			if _, err := attest.Verify(a, c, s, attest.VerifyOptions{Now: time.Now().Add(hours * time.Hour)}); !errors.Is(err, want) {
				t.Errorf("after %d h: %v", hours, err)
			}
		}
	})
	t.Run("edited statement", func(t *testing.T) {
		a := mustAnswer(t, d, c, "sha256:0")
		b := mustAnswer(t, other, &attest.Challenge{Version: 1, Nonce: c.Nonce}, "sha256:0")
		mixed := *a
		mixed.Statement = b.Statement
		refused(t, &mixed, c, s, attest.ErrEvidence)
		mixed = *a
		mixed.Statement.Udf = b.Statement.Udf
		refused(t, &mixed, c, s, attest.ErrForm)
		mixed = *a
		mixed.Statement.PCRs = ""
		refused(t, &mixed, c, s, attest.ErrEvidence)
		mixed = *a
		mixed.Evidence.PCRs = slices.Clone(a.Evidence.PCRs)
		mixed.Evidence.PCRs[0].Index = 1
		refused(t, &mixed, c, s, attest.ErrEvidence)
		mixed = *a
		mixed.Evidence.Certify, mixed.Evidence.Signature = a.Evidence.Quote, a.Evidence.QuoteSignature
		refused(t, &mixed, c, s, attest.ErrEvidence)
	})
	t.Run("every bit", func(t *testing.T) {
		everyBit(t, mustAnswer(t, d, c, "sha256:7"), "", func(document []byte) error {
			a, err := attest.ParseAnswer(document)
			if err != nil {
				return err
			}
			_, err = attest.Verify(a, c, s, attest.VerifyOptions{})
			return err
		})
		a := mustAnswer(t, d, c, "")
		everyBit(t, c, "", func(document []byte) error {
			flipped, err := attest.ParseChallenge(document)
			if err != nil {
				return err
			}
			_, err = attest.Verify(a, flipped, s, attest.VerifyOptions{})
			return err
		})
	})
	t.Run("no certificate", func(t *testing.T) {
		id := bare.identity(t)
		if len(id.Certificates) != 0 {
			t.Fatal("a certificate from nowhere")
		}
		for _, o := range []attest.ChallengeOptions{{Validity: time.Hour}, {Validity: time.Hour, Roots: trusted.Roots},
			{Validity: time.Hour, Roots: trusted.Roots, AcceptUnverified: true}} {
			if _, _, err := attest.NewChallenge(id, o); !errors.Is(err, attest.ErrCertificate) {
				t.Errorf("%v", err)
			}
		}
		c, s := challenge(t, id, attest.ChallengeOptions{AcceptUnverified: true})
		r, err := attest.Verify(mustAnswer(t, bare, c, ""), c, s, attest.VerifyOptions{})
		if err != nil || r.Attester.Anchor != "" || !r.Attester.Bound || r.Key.Purpose != "agree" {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("another CA", func(t *testing.T) {
		stranger := tpmtest.NewCA(t)
		stranger.Start(t)
		o := attest.ChallengeOptions{Validity: time.Hour, Roots: roots(t, stranger)}
		if _, _, err := attest.NewChallenge(id, o); !errors.Is(err, attest.ErrCertificate) {
			t.Errorf("%v", err)
		}
		// A certificate of the right CA, but of another TPM.
		borrowed := *id
		borrowed.Certificates = other.identity(t).Certificates
		o.Roots = trusted.Roots
		if _, _, err := attest.NewChallenge(&borrowed, o); !errors.Is(err, attest.ErrCertificate) {
			t.Errorf("%v", err)
		}
	})
	t.Run("certificate of the future", func(t *testing.T) {
		o := attest.ChallengeOptions{Validity: time.Hour, Roots: trusted.Roots, Now: time.Now().AddDate(-1, 0, 0)}
		if _, _, err := attest.NewChallenge(id, o); !errors.Is(err, attest.ErrCertificate) {
			t.Errorf("%v", err)
		}
	})
	t.Run("challenge for any device", func(t *testing.T) {
		c, s := challenge(t, nil, attest.ChallengeOptions{})
		a := mustAnswer(t, d, c, "")
		refused(t, a, c, s, attest.ErrUnbound)
		if r, err := attest.Verify(a, c, s, attest.VerifyOptions{AcceptUnbound: true}); err != nil || r.Attester.Bound {
			t.Errorf("%+v, %v", r, err)
		}
		a.Activation = make([]byte, 32)
		refused(t, a, c, s, attest.ErrChallenge)
	})
	t.Run("bad requests", func(t *testing.T) {
		for _, pcrs := range []string{"sha256", "sha256:99", "sha1:0"} {
			if _, err := d.answer(t, c, pcrs); !errors.Is(err, token.ErrBadRequest) {
				t.Errorf("%s: %v", pcrs, err)
			}
		}
		if _, err := d.answer(t, c, "sha384:0"); !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("bank that the TPM does not keep: %v", err)
		}
		for _, credential := range [][]byte{{0}, {0, 9, 1}, make([]byte, 5), bytes.Repeat([]byte{0, 1, 0}, 2)} {
			broken := *c
			broken.Credential = credential
			if _, err := d.answer(t, &broken, ""); !errors.Is(err, token.ErrBadRequest) && !errors.Is(err, token.ErrDecrypt) {
				t.Errorf("credential %x: %v", credential, err)
			}
		}
	})
}

// refused holds that an answer is refused for a reason.
func refused(t *testing.T, a *attest.Answer, c *attest.Challenge, s *attest.Secret, want error) {
	t.Helper()
	if _, err := attest.Verify(a, c, s, attest.VerifyOptions{}); !errors.Is(err, want) {
		t.Errorf("%v, want %v", err, want)
	}
}

// everyBit flips each bit of a document in turn, as far as until if that is not empty.
func everyBit(t *testing.T, d interface{ Marshal() ([]byte, error) }, until string, accept func([]byte) error) {
	t.Helper()
	document, err := d.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := accept(document); err != nil {
		t.Fatalf("refused as it is: %v", err)
	}
	end := len(document)
	if until != "" {
		if end = bytes.Index(document, []byte(until)); end <= 0 {
			t.Fatalf("no %s in %s", until, document)
		}
	}
	var workers sync.WaitGroup
	for w := range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := w; i < 8*end; i += runtime.GOMAXPROCS(0) {
				flipped := bytes.Clone(document)
				flipped[i/8] ^= 1 << (i % 8)
				if accept(flipped) == nil {
					t.Errorf("bit %d of octet %d in %q does not matter", i%8, i/8, document[max(0, i/8-20):min(len(document), i/8+20)])
				}
			}
		})
	}
	workers.Wait()
}

// TestForm holds that documents have one encoding.
func TestForm(t *testing.T) {
	t.Parallel()
	c, _, err := attest.NewChallenge(nil, attest.ChallengeOptions{Validity: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	document, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	text := string(document)
	for name, bad := range map[string]string{
		"no line feed":     strings.TrimSuffix(text, "\n"),
		"two line feeds":   text + "\n",
		"blank":            strings.Replace(text, ":", ": ", 1),
		"blank in base64":  strings.Replace(text, `"Nonce":"`, `"Nonce":" `, 1),
		"escape":           strings.Replace(text, `"Nonce"`, `"\u004eonce"`, 1),
		"number":           strings.Replace(text, `:1,`, `:1.0,`, 1),
		"other version":    strings.Replace(text, `:1,`, `:2,`, 1),
		"unknown member":   strings.Replace(text, `"Version"`, `"Extra":1,"Version"`, 1),
		"duplicate member": strings.Replace(text, `"Version":1`, `"Version":1,"Version":1`, 1),
		"empty member":     strings.Replace(text, `"}}`, `","Credential":""}}`, 1),
		"order":            strings.Replace(strings.Replace(text, `"Version":1,`, "", 1), `"}}`, `","Version":1}}`, 1),
		"case":             strings.Replace(text, "Nonce", "nonce", 1),
		"tag":              strings.Replace(text, "AttestChallenge", "AttestAnswer", 1),
		"nothing":          "",
		"large":            strings.Repeat(" ", attest.MaxDocument) + text,
	} {
		if bad == text {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := attest.ParseChallenge([]byte(bad)); !errors.Is(err, attest.ErrForm) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecret(t *testing.T) {
	t.Parallel()
	for _, o := range []attest.ChallengeOptions{{}, {Validity: -1}} {
		if _, _, err := attest.NewChallenge(nil, o); err == nil {
			t.Error("a challenge that expires at once")
		}
	}
	c, s := challenge(t, nil, attest.ChallengeOptions{})
	document, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(document); !bytes.Equal(sum[:], s.Challenge) {
		t.Error("the secret is of another challenge")
	}
	s.Credential = make([]byte, 32)
	rand.Read(s.Credential)
	document, err = s.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := attest.ParseSecret(document); !errors.Is(err, attest.ErrForm) {
		t.Errorf("credential without identity: %v", err)
	}
}

func TestImported(t *testing.T) {
	t.Parallel()
	d := openTPM(t, tpmtest.Start(t))
	scalar := make([]byte, 32)
	scalar[31] = 7
	key, err := d.Import(t.Context(), token.ImportRequest{Private: &token.PrivateKey{Algorithm: token.P256, Scalar: scalar}, Use: token.UseAgree})
	if err != nil {
		t.Fatal(err)
	}
	dev := &device{d, key, token.UseAgree}
	c, s := challenge(t, dev.identity(t), attest.ChallengeOptions{AcceptUnverified: true})
	a := mustAnswer(t, dev, c, "")
	refused(t, a, c, s, attest.ErrImported)
	r, err := attest.Verify(a, c, s, attest.VerifyOptions{AcceptImported: true})
	if err != nil || r.Key.Origin != "imported" || r.Key.SensitiveDataOrigin || r.Key.FixedTPM {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestRSA has an RSA key attested.
func TestRSA(t *testing.T) {
	t.Parallel()
	ca := tpmtest.NewCA(t)
	d := newDevice(t, ca.Start(t), token.RSA2048, token.UseDecrypt)
	c, s := challenge(t, d.identity(t), attest.ChallengeOptions{Roots: roots(t, ca)})
	r, err := attest.Verify(mustAnswer(t, d, c, ""), c, s, attest.VerifyOptions{})
	if err != nil || r.Algorithm != token.RSA2048 || r.Key.Purpose != "decrypt" {
		t.Errorf("%+v, %v", r, err)
	}
}

// seeds returns documents of a TPM for the fuzz targets.
func seeds(t testing.TB) (c *attest.Challenge, s *attest.Secret, a *attest.Answer) {
	t.Helper()
	d := newDevice(t, tpmtest.Start(t), token.P256, token.UseSign)
	c, s = challenge(t, d.identity(t), attest.ChallengeOptions{AcceptUnverified: true})
	return c, s, mustAnswer(t, d, c, "sha256:0")
}

// FuzzVerify changes the pieces of an answer, which must never verify, nor crash.
func FuzzVerify(f *testing.F) {
	c, s, a := seeds(f)
	e := a.Evidence
	f.Add([]byte(e.Key), []byte(e.AttestationKey), []byte(e.Certify), []byte(e.Quote))
	f.Add([]byte{}, []byte(e.Key), []byte(e.Quote), []byte(e.Certify))
	f.Fuzz(func(t *testing.T, key, ak, certify, quote []byte) {
		changed := *a
		changed.Evidence.Key, changed.Evidence.AttestationKey = key, ak
		changed.Evidence.Certify, changed.Evidence.Quote = certify, quote
		same := bytes.Equal(key, e.Key) && bytes.Equal(ak, e.AttestationKey) && bytes.Equal(certify, e.Certify) && bytes.Equal(quote, e.Quote)
		if _, err := attest.Verify(&changed, c, s, attest.VerifyOptions{}); (err == nil) != same {
			t.Errorf("%v", err)
		}
		// Identities are read before anything vouches for them.
		id := &attest.Identity{Version: 1, Format: token.AttestTPM2, Endorsement: key, AttestationKey: ak}
		attest.NewChallenge(id, attest.ChallengeOptions{AcceptUnverified: true, Validity: time.Hour})
		// So is a challenge for any device answered by any key.
		anyChallenge, anySecret := *c, *s
		anySecret.Identity, anySecret.Credential = nil, nil
		changed.Activation = nil
		if r, err := attest.Verify(&changed, &anyChallenge, &anySecret, attest.VerifyOptions{}); !errors.Is(err, attest.ErrUnbound) && (err == nil || r != nil) {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// FuzzParse reads documents of all kinds; what is read is written the same.
func FuzzParse(f *testing.F) {
	c, s, a := seeds(f)
	for _, d := range []interface{ Marshal() ([]byte, error) }{c, s, s.Identity, a} {
		document, err := d.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(document)
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		for _, parse := range []func([]byte) (interface{ Marshal() ([]byte, error) }, error){
			func(b []byte) (interface{ Marshal() ([]byte, error) }, error) { return attest.ParseChallenge(b) },
			func(b []byte) (interface{ Marshal() ([]byte, error) }, error) { return attest.ParseSecret(b) },
			func(b []byte) (interface{ Marshal() ([]byte, error) }, error) { return attest.ParseIdentity(b) },
			func(b []byte) (interface{ Marshal() ([]byte, error) }, error) { return attest.ParseAnswer(b) },
		} {
			d, err := parse(document)
			if err != nil {
				if !errors.Is(err, attest.ErrForm) {
					t.Errorf("%v", err)
				}
				continue
			}
			if again, err := d.Marshal(); err != nil || !bytes.Equal(again, document) {
				t.Errorf("%q is written as %q, %v", document, again, err)
			}
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	c, s, a := seeds(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := attest.Verify(a, c, s, attest.VerifyOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewChallenge(b *testing.B) {
	_, s, _ := seeds(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := attest.NewChallenge(s.Identity, attest.ChallengeOptions{AcceptUnverified: true, Validity: time.Hour}); err != nil {
			b.Fatal(err)
		}
	}
}
