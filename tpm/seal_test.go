package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func TestSealContract(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	dir := t.TempDir()
	first := open(t, Options{Device: s.Device(), StateDir: dir})
	setPIN(t, first, nil, testPIN())
	first.Close()
	tokentest.RunSealer(t, tokentest.SealHarness{
		Open: func(t *testing.T) token.Token { return open(t, Options{Device: s.Device(), StateDir: dir}) },
		PINs: []token.PINPolicy{token.PINNever, token.PINOnce},
		PCRs: "sha256:7,14",
		Auth: token.Auth{PIN: testPIN()},
	})
}

func seal(t testing.TB, tok *Token, req token.SealRequest) token.Sealed {
	t.Helper()
	s, err := tok.Seal(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// extend changes a PCR.
func extend(t *testing.T, tok *Token, pcr tpm2.TPMHandle) {
	t.Helper()
	_, err := do(t.Context(), tok, "extend PCR", func(d *device) (struct{}, error) {
		_, err := run(d, tpm2.PCRExtend{
			PCRHandle: tpm2.AuthHandle{Handle: pcr, Auth: tpm2.PasswordAuth(nil)},
			Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
				{HashAlg: tpm2.TPMAlgSHA256, Digest: bytes.Repeat([]byte{1}, 32)},
			}},
		})
		return struct{}{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPCRs seals to PCRs, with and without PIN, and changes them.
func TestPCRs(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	setPIN(t, tok, nil, testPIN())
	secret := []byte("secret")
	request := func(pin token.PINPolicy, s token.Sealed) token.UnsealRequest {
		return token.UnsealRequest{Blob: s.Blob}
	}
	for _, pin := range []token.PINPolicy{token.PINNever, token.PINOnce} {
		s := seal(t, tok, token.SealRequest{Secret: secret, PIN: pin, PCRs: "sha256:14,7,16"})
		if got, err := tok.Unseal(t.Context(), request(pin, s)); err != nil || !bytes.Equal(got, secret) {
			t.Fatalf("Unseal with PCRs unchanged: %v", err)
		}
		extend(t, tok, 16)
		for range 3 { // it is no guess at anything
			_, err := tok.Unseal(t.Context(), request(pin, s))
			var changed *token.PCRError
			if !errors.As(err, &changed) || changed.PCRs != "sha256:7,14,16" {
				t.Errorf("Unseal with changed PCRs: %v, want PCRError", err)
			}
		}
		recover := request(pin, s)
		recover.Recovery = s.Recovery
		tok.Lock(t.Context()) // recovery needs no PIN
		if got, err := tok.Unseal(t.Context(), recover); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("Unseal with the recovery secret: %v", err)
		}
		unlock(t, tok, testPIN())

		renewed, err := tok.Reseal(t.Context(), recover, token.SealRequest{PIN: pin, PCRs: "sha256:16"})
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(renewed.Recovery, s.Recovery) {
			t.Error("Reseal returned the old recovery secret")
		}
		if got, err := tok.Unseal(t.Context(), request(pin, renewed)); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("Unseal of what was sealed anew: %v", err)
		}
		plain, err := tok.Reseal(t.Context(), request(pin, renewed), token.SealRequest{PIN: token.PINNever})
		if err != nil || plain.Guard != token.GuardMachine || plain.Recovery != nil {
			t.Errorf("Reseal without PCRs: guard %q, %v", plain.Guard, err)
		}
	}
}

func TestRecoveryRefused(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	s := seal(t, tok, token.SealRequest{Secret: []byte("secret"), PCRs: "sha256:16"})
	other := seal(t, tok, token.SealRequest{Secret: []byte("secret"), PCRs: "sha256:16"})
	for name, recovery := range map[string][]byte{
		"another's": other.Recovery, "short": s.Recovery[1:], "long": append(bytes.Clone(s.Recovery), 0),
	} {
		_, err := tok.Unseal(t.Context(), token.UnsealRequest{Blob: s.Blob, Recovery: recovery})
		if !errors.Is(err, token.ErrAuthWrong) {
			t.Errorf("Unseal with %s recovery secret: %v, want ErrAuthWrong", name, err)
		}
	}
}

// TestRecoveryForOthers has something between put the nonce of another session, which may be its own, in place of that of the
// agent's: nothing is signed for that.
func TestRecoveryForOthers(t *testing.T) {
	t.Parallel()
	r := newRecorder(t, tpmtest.Start(t).Device())
	armed := false
	r.dial = interpose(r.dial, tpm2.TPMCCStartAuthSession, func(response []byte) {
		if armed {
			response[len(response)-1] ^= 1 // the nonce is at the end
		}
	})
	tok := open(t, Options{dial: r.open})
	s := seal(t, tok, token.SealRequest{Secret: []byte("secret"), PCRs: "sha256:16"})
	r.take()
	armed = true
	if secret, err := tok.Unseal(t.Context(), token.UnsealRequest{Blob: s.Blob, Recovery: s.Recovery}); err == nil {
		t.Errorf("Unseal in a session with another nonce: %q", secret)
	}
	if n := count(r.take(), tpm2.TPMCCPolicySigned); n != 0 {
		t.Errorf("the recovery key has signed %d times", n)
	}
}

// TestPolicySound tries to get at sealed data past its policy, as whoever has the TPM and
// the blob can, with the commands that a TPM offers.
func TestPolicySound(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	setPIN(t, tok, nil, testPIN())
	s := seal(t, tok, token.SealRequest{Secret: []byte("secret"), PIN: token.PINOnce, PCRs: "sha256:16"})
	p, err := parseSealed(s.Blob, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRecoveryKey(bytes.Repeat([]byte{1}, recoveryLen))
	if err != nil {
		t.Fatal(err)
	}
	attempts := map[string]func(d *device) ([]byte, error){
		"empty authorization value": func(d *device) ([]byte, error) { return d.unsealValue(p, nil) },
		"PCRs without PIN":          func(d *device) ([]byte, error) { return d.unsealPCRs(p, nil) },
		"PCRs without PolicyAuthValue": func(d *device) ([]byte, error) {
			list, _ := parseSelection("sha256:16")
			return d.unsealPolicy(p, func(s *session) error {
				_, err := run(d, tpm2.PolicyPCR{PolicySession: s.handle, Pcrs: list})
				return err
			}, nil, true)
		},
		"empty policy": func(d *device) ([]byte, error) {
			return d.unsealPolicy(p, func(*session) error { return nil }, nil, true)
		},
		"another recovery key": func(d *device) ([]byte, error) { return d.unsealRecovery(p, r) },
	}
	for name, attempt := range attempts {
		key, err := do(t.Context(), tok, name, attempt)
		if err == nil || key != nil {
			t.Errorf("%s opens the sealed key", name)
		}
	}
	value, err := do(t.Context(), tok, "value", func(d *device) ([]byte, error) {
		o, err := tok.pin.offer(token.Auth{})
		if err != nil {
			return nil, err
		}
		return o.keyValue(d, "seal")
	})
	if err != nil {
		t.Fatal(err)
	}
	if key, err := do(t.Context(), tok, "value", func(d *device) ([]byte, error) { return d.unsealValue(p, value) }); err == nil || key != nil {
		t.Error("the PIN alone opens the sealed key")
	}
}

func TestSealRefusals(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	for _, pcrs := range []string{"7", "sha256", "sha256:", "sha256:24", "sha256:7,7", "sha256:07", "sha256:-1", "sha1:7", "md5:7", "sha256: 7", "sha256:7,"} {
		if _, err := tok.Seal(t.Context(), token.SealRequest{PCRs: pcrs}); !errors.Is(err, token.ErrBadRequest) {
			t.Errorf("Seal to PCRs %q: %v, want ErrBadRequest", pcrs, err)
		}
	}
	if _, err := tok.Seal(t.Context(), token.SealRequest{Secret: make([]byte, maxSealed+1)}); !errors.Is(err, token.ErrBadRequest) {
		t.Errorf("Seal of too much: %v, want ErrBadRequest", err)
	}
	_, err := tok.Seal(t.Context(), token.SealRequest{PIN: token.PINOnce})
	if !errors.Is(err, token.ErrAuthNeeded) || !errors.Is(err, ErrNoPIN) {
		t.Errorf("Seal to a PIN that was never set: %v, want ErrAuthNeeded and ErrNoPIN", err)
	}
}

// TestUnallocatedBank seals to PCRs of a bank that the TPM does not keep, which a TPM takes for no PCRs.
func TestUnallocatedBank(t *testing.T) {
	t.Parallel()
	tok := open(t, Options{Device: tpmtest.Start(t).Device()})
	banks, err := do(t.Context(), tok, "list banks", func(d *device) (banks []tpm2.TPMAlgID, err error) {
		list, err := capability(d, tpm2.TPMCapPCRs, 0, (*tpm2.TPMUCapabilities).AssignedPCR)
		if err != nil {
			return nil, err
		}
		for _, s := range list.PCRSelections {
			if !allZero(s.PCRSelect) {
				banks = append(banks, s.Hash)
			}
		}
		return banks, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sha256", "sha384", "sha512"} {
		_, err := tok.Seal(t.Context(), token.SealRequest{PCRs: name + ":16"})
		if kept := slices.Contains(banks, bankID(name)); kept != (err == nil) || !kept && !errors.Is(err, token.ErrUnsupported) {
			t.Errorf("Seal to bank %s of banks %#x: %v", name, banks, err)
		}
	}
}

// TestForgedPCRs has something between lie about the PCRs when sealing, and have the TPM agree in a trial session, which
// takes whatever values it is given.
func TestForgedPCRs(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]pcrForger{
		"values alone": {}, "in the session": {extends: true}, "in a trial session": {extends: true, trial: true},
	} {
		dial, err := parseDevice(tpmtest.Start(t).Device())
		if err != nil {
			t.Fatal(err)
		}
		armed := false
		tok := open(t, Options{dial: func(ctx context.Context) (stream, error) {
			s, err := dial(ctx)
			forger := f
			forger.stream, forger.armed = s, &armed
			return &forger, err
		}})
		armed = true
		if _, err := tok.Seal(t.Context(), token.SealRequest{PCRs: "sha256:16"}); err == nil {
			t.Errorf("%s: Seal to forged PCRs succeeded", name)
		}
	}
}

// pcrForger forges the value of a PCR.
type pcrForger struct {
	stream
	armed   *bool
	extends bool // has TPM2_PolicyPCR take the forged value
	trial   bool // makes policy sessions trial sessions
	last    tpm2.TPMCC
	forged  [sha256.Size]byte // digest of the forged value
}

func (f *pcrForger) Write(b []byte) (int, error) {
	f.last = tpm2.TPMCC(binary.BigEndian.Uint32(b[6:]))
	c := bytes.Clone(b)
	switch {
	case !*f.armed:
	case f.last == tpm2.TPMCCPolicyPCR && f.extends: // header and handle, then the digest, which is empty
		c = slices.Concat(b[:headerLen+4], sized(f.forged[:]), b[headerLen+4+2:])
		binary.BigEndian.PutUint32(c[2:], uint32(len(c)))
	case f.last == tpm2.TPMCCStartAuthSession && f.trial: // header and two handles, nonce and salt, then the kind
		nonce, rest, _ := cut(c[headerLen+8:])
		_, rest, _ = cut(rest)
		if len(nonce) != 0 && rest[0] == byte(tpm2.TPMSEPolicy) {
			rest[0] = byte(tpm2.TPMSETrial)
		}
	}
	_, err := f.stream.Write(c)
	return len(b), err
}

func (f *pcrForger) Read(b []byte) (int, error) {
	n, err := f.stream.Read(b)
	if err == nil && *f.armed && f.last == tpm2.TPMCCPCRRead {
		b[n-1] ^= 1 // the value is at the end
		f.forged = sha256.Sum256(b[n-sha256.Size : n])
	}
	return n, err
}

func TestSealedElsewhere(t *testing.T) {
	t.Parallel()
	s := tpmtest.Start(t)
	tok := open(t, Options{Device: s.Device()})
	sealed := seal(t, tok, token.SealRequest{Secret: []byte("secret")})
	tok.Close()
	s.Replace()
	other := open(t, Options{Device: s.Device()})
	if _, err := other.Unseal(t.Context(), token.UnsealRequest{Blob: sealed.Blob}); !errors.Is(err, token.ErrReplaced) {
		t.Errorf("Unseal of what was sealed to another TPM: %v, want ErrReplaced", err)
	}
	if state := other.Info().State; state != token.StateReady {
		t.Errorf("state is %s, want ready", state)
	}
}

func FuzzParseSealed(f *testing.F) {
	tok := open(f, Options{Device: tpmtest.Start(f).Device()})
	for _, pcrs := range []string{"", "sha256:16"} {
		f.Add(seal(f, tok, token.SealRequest{Secret: []byte("secret"), PCRs: pcrs}).Blob)
	}
	tok.Close()
	f.Fuzz(func(t *testing.T, der []byte) {
		p, err := parseSealed(der, nil)
		if err != nil {
			return
		}
		if again, err := asn1.Marshal(*p.file); err != nil || !bytes.Equal(again, der) {
			t.Errorf("encoded %x, %v, want %x", again, err, der)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	tok := open(b, Options{Device: tpmtest.Start(b).Device()})
	for _, pcrs := range []string{"", "sha256:7"} {
		req := token.SealRequest{Secret: make([]byte, 56), PCRs: pcrs}
		s := seal(b, tok, req)
		b.Run("seal"+pcrs, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				seal(b, tok, req)
			}
		})
		b.Run("unseal"+pcrs, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tok.Unseal(b.Context(), token.UnsealRequest{Blob: s.Blob}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
