package tpm

import (
	"crypto/sha256"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/mesh-agent/mesh-agent/agent/agenttest"
	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

// BenchmarkAgainstRaw compares signatures of a Token, which are verified before they are released, and
// the same through an agent's socket, with bare TPM2_Sign of go-tpm: key loaded, one salted
// session with encryption that is used again. Each has its own TPM, and they take turns, so that
// all see the same machine.
//
// Client, agent and raw run in this process: once on one processor, which shows what the agent does, and
// once on all. Then the way to the agent and back wakes processors that sleep while the TPM computes, as it does
// between processes, too: on a virtual machine, tens of microseconds each time.
func BenchmarkAgainstRaw(b *testing.B) {
	for _, a := range []token.Algorithm{token.P256, token.P384, token.RSA2048} {
		b.Run(string(a)+"/OneProcessor", func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			benchmarkAgainstRaw(b, a)
		})
		b.Run(string(a)+"/AllProcessors", func(b *testing.B) { benchmarkAgainstRaw(b, a) })
	}
}

func benchmarkAgainstRaw(b *testing.B, a token.Algorithm) {
	_, k := benchmarkKey(b, a, token.UseSign)
	req := tokentest.DefaultSignRequest(a, []byte("message"))
	ways := []func() error{
		rawSigner(b, a),
		func() error { _, err := k.(token.Signer).Sign(b.Context(), req); return err },
		socketSigner(b, a),
	}
	times := make([][]time.Duration, len(ways))
	for b.Loop() {
		for i, sign := range ways {
			begin := time.Now()
			if err := sign(); err != nil {
				b.Fatal(err)
			}
			times[i] = append(times[i], time.Since(begin))
		}
	}
	raw := median(times[0])
	for i, name := range []string{"raw", "token", "socket"} {
		b.ReportMetric(float64(median(times[i]).Microseconds()), name+"-us")
		b.ReportMetric(float64(median(times[i]))/float64(raw), name+"/raw")
	}
}

// socketSigner signs through the socket of an agent in this process.
func socketSigner(b *testing.B, a token.Algorithm) func() error {
	b.Helper()
	tok := open(b, Options{Device: tpmtest.Start(b).Device()})
	c, err := client.Dial(b.Context(), agenttest.Serve(b, tok))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	made, err := c.KeyGenerate(b.Context(), mesh.KeyGenerateRequest{
		Home: mesh.Home{Token: "tpm"}, Algorithm: string(a), Use: string(token.UseSign),
	})
	if err != nil {
		b.Fatal(err)
	}
	return func() error {
		_, err := c.Sign(b.Context(), made.Key.Udf, []byte("message"), "")
		return err
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// rawSigner signs with go-tpm and nothing else.
func rawSigner(b *testing.B, a token.Algorithm) func() error {
	b.Helper()
	c, err := net.Dial("unix", tpmtest.Start(b).Socket)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	t := transport.FromReadWriter(c)
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	srk, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(t)
	check(err)
	srkPublic, err := srk.OutPublic.Contents()
	check(err)
	template, err := keyTemplate(a, purposeSign, false, nil)
	check(err)
	parent := tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(nil)}
	made, err := tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(template)}.Execute(t)
	check(err)
	loaded, err := tpm2.Load{ParentHandle: parent, InPrivate: made.OutPrivate, InPublic: made.OutPublic}.Execute(t)
	check(err)
	session, _, err := tpm2.HMACSession(t, tpm2.TPMAlgSHA256, 16,
		tpm2.Salted(srk.ObjectHandle, *srkPublic), tpm2.AESEncryption(128, tpm2.EncryptIn))
	check(err)
	scheme, hash := tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256
	if a.RSABits() != 0 {
		scheme = tpm2.TPMAlgRSASSA
	}
	digest := sha256.Sum256([]byte("message"))
	return func() error {
		_, err := tpm2.Sign{
			KeyHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: session},
			Digest:    tpm2.TPM2BDigest{Buffer: digest[:]},
			InScheme: tpm2.TPMTSigScheme{
				Scheme: scheme, Details: tpm2.NewTPMUSigScheme(scheme, &tpm2.TPMSSchemeHash{HashAlg: hash}),
			},
			Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(t)
		return err
	}
}
