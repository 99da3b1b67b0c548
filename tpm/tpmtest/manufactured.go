package tpmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// CA is a maker of software TPMs: a root and an issuer of endorsement key certificates.
type CA struct {
	// Certificates is a folder with the two, in PEM, and nothing else.
	Certificates string

	dir string
}

// NewCA makes a maker that lives until the test ends. Its keys come to be with its first TPM.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	dir, err := os.MkdirTemp("", "tpmca")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return &CA{Certificates: filepath.Join(dir, "certificates"), dir: dir}
}

// Start starts a fresh TPM as Start does, but with endorsement keys, certificates for them from
// ca and a platform certificate, as a TPM has when it is bought. One TPM is made at a time.
func (ca *CA) Start(tb testing.TB) *TPM {
	tb.Helper()
	t := newTPM(tb)
	ca.manufacture(tb, t.state())
	t.start()
	return t
}

// manufacture has swtpm_setup make the state of a TPM.
func (ca *CA) manufacture(tb testing.TB, state string) {
	tb.Helper()
	program, err := exec.LookPath("swtpm_setup")
	if err != nil {
		tb.Fatalf("swtpm_setup is needed (Debian and Ubuntu: apt-get install swtpm-tools): %v", err)
	}
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		tb.Fatalf("swtpm_localca is needed (Debian and Ubuntu: apt-get install swtpm-tools): %v", err)
	}
	keys := filepath.Join(ca.dir, "keys")
	in := func(name string) string { return filepath.Join(ca.dir, name) }
	for _, dir := range []string{state, keys, ca.Certificates} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			tb.Fatal(err)
		}
	}
	write(tb, in("localca.conf"), "statedir = "+keys+"\nsigningkey = "+keys+"/key.pem\nissuercert = "+keys+"/issuer.pem\ncertserial = "+keys+"/serial\n")
	write(tb, in("localca.options"), "--platform-manufacturer tpmtest\n--platform-version 1\n--platform-model tpmtest\n")
	write(tb, in("setup.conf"), "create_certs_tool = "+localca+"\ncreate_certs_tool_config = "+in("localca.conf")+
		"\ncreate_certs_tool_options = "+in("localca.options")+"\nactive_pcr_banks = sha256\n")
	out, err := exec.CommandContext(tb.Context(), program, "--tpm2", "--tpmstate", state, "--config", in("setup.conf"),
		"--create-ek-cert", "--create-platform-cert").CombinedOutput()
	if err != nil {
		tb.Fatalf("make TPM: %v\n%s", err, out)
	}
	for from, to := range map[string]string{"issuer.pem": "issuer.pem", "swtpm-localca-rootca-cert.pem": "root.pem"} {
		text, err := os.ReadFile(filepath.Join(keys, from))
		if err != nil {
			tb.Fatal(err)
		}
		write(tb, filepath.Join(ca.Certificates, to), string(text))
	}
}

func write(tb testing.TB, name, text string) {
	tb.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}
