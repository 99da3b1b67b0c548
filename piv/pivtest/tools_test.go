package pivtest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"

	"github.com/mesh-agent/mesh-agent/piv/pivtest"
)

const (
	reader        = "Yubico YubiKey OTP+FIDO+CCID 00 00"
	openscModule  = "opensc-pkcs11.so"
	managementKey = "010203040506070801020304050607080102030405060708"
)

// firmware54 is the last firmware whose management key yubico-piv-tool 2.2 (Debian 12) knows.
var firmware54 = [3]byte{5, 4, 3}

// daemons names the two ways to a card.
var daemons = map[string]func(testing.TB, *pivtest.Card) (env string){
	"real pcscd": func(t testing.TB, card *pivtest.Card) string {
		p := pivtest.StartPcscd(t)
		p.Insert(0, card)
		return p.Env()
	},
	"own pcscd": func(t testing.TB, card *pivtest.Card) string {
		d := pivtest.StartDaemon(t)
		d.AddReader(reader, card)
		return d.Env()
	},
}

// overBoth runs a test with a new card of a firmware over both daemons.
func overBoth(t *testing.T, version [3]byte, test func(*testing.T, *bench)) {
	for name, start := range daemons {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			card := pivtest.NewCard(pivtest.Config{Version: version})
			test(t, &bench{t: t, card: card, env: start(t, card), dir: t.TempDir()})
		})
	}
}

// bench is a card, and a directory in which programs use it.
type bench struct {
	t    *testing.T
	card *pivtest.Card
	env  string
	dir  string
}

// command prepares a program of a Debian package.
func (b *bench) command(pkg, program string, args ...string) *exec.Cmd {
	b.t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		b.t.Fatalf("%s is needed (Debian and Ubuntu: apt-get install %s): %v", program, pkg, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	b.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = b.dir, append(os.Environ(), b.env)
	return cmd
}

// run returns what a program writes, and fails if the program does.
func (b *bench) run(pkg, program string, args ...string) string {
	b.t.Helper()
	out, err := b.command(pkg, program, args...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// fails wants the program to fail with a message.
func (b *bench) fails(want, pkg, program string, args ...string) {
	b.t.Helper()
	out, err := b.command(pkg, program, args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), want) {
		b.t.Errorf("%s %q: %v, not %q\n%s", program, args, err, want, out)
	}
}

func (b *bench) piv(args ...string) string {
	b.t.Helper()
	return b.run("yubico-piv-tool", "yubico-piv-tool", args...)
}

func (b *bench) pivFails(want string, args ...string) {
	b.t.Helper()
	b.fails(want, "yubico-piv-tool", "yubico-piv-tool", args...)
}

// says fails unless the text holds all of the words.
func (b *bench) says(text string, words ...string) {
	b.t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			b.t.Errorf("no %q in:\n%s", w, text)
		}
	}
}

func (b *bench) read(name string) []byte {
	b.t.Helper()
	data, err := os.ReadFile(filepath.Join(b.dir, name))
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

func (b *bench) write(name string, data []byte) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// certificate returns a certificate of a public key, DER.
func certificate(t *testing.T, public crypto.PublicKey) []byte {
	t.Helper()
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, ca)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func TestPIVToolKeys(t *testing.T) {
	t.Parallel()
	overBoth(t, firmware54, func(t *testing.T, b *bench) {
		b.says(b.piv("-a", "status"), "5.4.3", fmt.Sprint(b.card.Serial()), "PIN tries left:\t3")
		b.piv("-k"+managementKey, "-a", "set-chuid", "-a", "set-ccc")
		for _, c := range []struct{ slot, algorithm, signs, deciphers string }{
			{"9a", "ECCP256", "Successful ECDSA verification", "Successfully performed ECDH exchange"},
			{"9c", "RSA2048", "Successful RSA verification", "Successfully performed RSA decryption"},
			{"9d", "ECCP384", "Successful ECDSA verification", "Successfully performed ECDH exchange"},
			{"95", "RSA2048", "Successful RSA verification", "Successfully performed RSA decryption"},
		} {
			b.piv("-k"+managementKey, "-a", "generate", "-s", c.slot, "-A", c.algorithm, "-o", "public")
			b.checkStatement(c.slot)
			b.importCertificate(c.slot)
			b.says(b.piv("-a", "verify-pin", "-P123456", "-a", "test-signature", "-s", c.slot, "-i", "certificate"), c.signs)
			b.says(b.piv("-a", "verify-pin", "-P123456", "-a", "test-decipher", "-s", c.slot, "-i", "certificate"), c.deciphers)
		}
		b.says(b.piv("-a", "status"), "Slot 9a:", "Slot 9c:", "Slot 9d:", "Slot 95:", "CN=test")
	})
}

// public reads the public key that the tool wrote.
func (b *bench) public() crypto.PublicKey {
	b.t.Helper()
	block, _ := pem.Decode(b.read("public"))
	if block == nil {
		b.t.Fatal("no PEM block")
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		b.t.Fatal(err)
	}
	return public
}

func (b *bench) importCertificate(slot string) {
	b.t.Helper()
	b.write("certificate", encodePEM("CERTIFICATE", certificate(b.t, b.public())))
	b.piv("-k"+managementKey, "-a", "import-certificate", "-s", slot, "-i", "certificate")
}

// checkStatement verifies the attestation of a slot against the card's root.
func (b *bench) checkStatement(slot string) {
	b.t.Helper()
	parse := func(args ...string) *x509.Certificate {
		b.t.Helper()
		block, _ := pem.Decode([]byte(b.piv(args...)))
		if block == nil {
			b.t.Fatal("no PEM block")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			b.t.Fatal(err)
		}
		return cert
	}
	statement, device := parse("-a", "attest", "-s", slot), parse("-a", "read-certificate", "-s", "f9")
	roots, middle := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(b.card.AttestationRoot())
	middle.AddCert(device)
	if _, err := statement.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle}); err != nil {
		b.t.Error(err)
	}
	if !b.public().(interface{ Equal(crypto.PublicKey) bool }).Equal(statement.PublicKey) {
		b.t.Error("the statement is about another key")
	}
}

func TestPIVToolImport(t *testing.T) {
	t.Parallel()
	overBoth(t, firmware54, func(t *testing.T, b *bench) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		b.importKey(key, "Successful ECDSA verification")
		rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		b.importKey(rsaKey, "Successful RSA verification")
	})
}

func (b *bench) importKey(key crypto.Signer, verified string) {
	b.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("private", encodePEM("PRIVATE KEY", der))
	b.write("public", encodePEM("PUBLIC KEY", public))
	b.piv("-k"+managementKey, "-a", "import-key", "-s", "83", "-i", "private", "--pin-policy=once", "--touch-policy=never")
	b.importCertificate("83")
	b.says(b.piv("-a", "verify-pin", "-P123456", "-a", "test-signature", "-s", "83", "-i", "certificate"), verified)
	b.pivFails("Failed to attest", "-a", "attest", "-s", "83")
}

func TestPIVToolSecrets(t *testing.T) {
	t.Parallel()
	overBoth(t, firmware54, func(t *testing.T, b *bench) {
		b.pivFails("2 tries left", "-a", "verify-pin", "-P", "111111")
		b.piv("-a", "verify-pin", "-P", "123456")
		b.piv("-a", "change-pin", "-P", "123456", "-N", "654321")
		b.piv("-a", "change-puk", "-P", "12345678", "-N", "87654321")
		b.piv("-a", "unblock-pin", "-P", "87654321", "-N", "111111")
		b.piv("-k"+managementKey, "-a", "verify-pin", "-P", "111111", "-a", "pin-retries", "--pin-retries=2", "--puk-retries=1")
		other := strings.Repeat("0f1e2d3c4b5a6978", 3)
		b.piv("-k"+managementKey, "-a", "set-mgm-key", "-n", other)
		b.pivFails("Failed authentication", "-k"+managementKey, "-a", "set-chuid")
		b.piv("-k"+other, "-a", "set-chuid")
		b.pivFails("blocked", "-a", "reset")
		b.pivFails("1 tries left", "-a", "verify-pin", "-P", "000000")
		b.pivFails("", "-a", "verify-pin", "-P", "000000")
		b.pivFails("0 tries left", "-a", "unblock-pin", "-P", "00000000", "-N", "123456")
		b.says(b.piv("-a", "reset"), "Successfully reset")
		b.piv("-a", "verify-pin", "-P", "123456")
	})
}

// The tool asks older cards in other ways.
func TestPIVToolFirmware(t *testing.T) {
	t.Parallel()
	for _, version := range [][3]byte{{4, 3, 5}, {5, 2, 7}, {5, 7, 1}} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			overBoth(t, version, func(t *testing.T, b *bench) {
				b.says(b.piv("-a", "status"), fmt.Sprintf("%d.%d.%d", version[0], version[1], version[2]), fmt.Sprint(b.card.Serial()))
			})
		})
	}
}

// stock puts keys with certificates into the slots that OpenSC looks at.
func (b *bench) stock(slot, algorithm byte, object uint32) crypto.PublicKey {
	b.t.Helper()
	public, err := b.card.Generate(slot, algorithm, pivtest.PINPolicyDefault, pivtest.TouchPolicyDefault)
	if err != nil {
		b.t.Fatal(err)
	}
	cert := certificate(b.t, public)
	value := append([]byte{0x70, 0x82, byte(len(cert) >> 8), byte(len(cert))}, cert...)
	b.card.SetObject(object, append(value, 0x71, 1, 0, 0xFE, 0))
	return public
}

func TestOpenSC(t *testing.T) {
	t.Parallel()
	overBoth(t, [3]byte{}, func(t *testing.T, b *bench) {
		ec := b.stock(pivtest.SlotAuthentication, pivtest.AlgP256, 0x5FC105).(*ecdsa.PublicKey)
		key := b.stock(pivtest.SlotSignature, pivtest.AlgRSA2048, 0x5FC10A).(*rsa.PublicKey)
		b.stock(pivtest.SlotKeyManagement, pivtest.AlgP384, 0x5FC10B)
		b.says(b.run("opensc", "opensc-tool", "--name"), "Personal Identity Verification Card")
		b.says(b.pkcs11("--list-objects"), "PIV AUTH key", "EC_POINT 256 bits", "SIGN key", "RSA 2048 bits", "KEY MAN key")
		message := []byte("message")
		digest := sha256.Sum256(message)
		b.write("digest", digest[:])
		b.write("message", message)
		b.pkcs11("--sign", "--id", "01", "--mechanism", "ECDSA", "--signature-format", "openssl", "--input-file", "digest", "--output-file", "signature")
		if !ecdsa.VerifyASN1(ec, digest[:], b.read("signature")) {
			t.Error("the ECDSA signature is wrong")
		}
		b.pkcs11("--sign", "--id", "02", "--mechanism", "SHA256-RSA-PKCS", "--input-file", "message", "--output-file", "signature")
		if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], b.read("signature")); err != nil {
			t.Error(err)
		}
		b.checkDerivation()
	})
}

func (b *bench) pkcs11(args ...string) string {
	b.t.Helper()
	return b.run("opensc", "pkcs11-tool", append([]string{"--module", openscModule, "--login", "--pin", "123456"}, args...)...)
}

// checkDerivation lets the P-384 key agree with one of ours.
func (b *bench) checkDerivation() {
	b.t.Helper()
	ours, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&ours.PublicKey)
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("peer", der)
	b.pkcs11("--derive", "--id", "03", "--mechanism", "ECDH1-DERIVE", "--input-file", "peer", "--output-file", "secret")
	private, err := ours.ECDH()
	if err != nil {
		b.t.Fatal(err)
	}
	card, err := b.card.PublicKey(pivtest.SlotKeyManagement)
	if err != nil {
		b.t.Fatal(err)
	}
	peer, err := card.(*ecdsa.PublicKey).ECDH()
	if err != nil {
		b.t.Fatal(err)
	}
	want, err := private.ECDH(peer)
	if err != nil {
		b.t.Fatal(err)
	}
	if got := b.read("secret"); !bytes.Equal(got, want) {
		b.t.Errorf("the agreement is %s, want %s", hex.EncodeToString(got), hex.EncodeToString(want))
	}
}

func TestPCSCScan(t *testing.T) {
	t.Parallel()
	overBoth(t, [3]byte{}, func(t *testing.T, b *bench) {
		out := strings.ReplaceAll(b.run("pcsc-tools", "pcsc_scan", "-c", "-n"), "\x1b", "")
		b.says(out, "YubiKey", "Card inserted", strings.ToUpper(fmt.Sprintf("% x", b.card.ATR())))
	})
}

// yubikey-agent signs with a key that was put on the card before, asking its pinentry for the PIN.
func TestYubikeyAgent(t *testing.T) {
	t.Parallel()
	overBoth(t, [3]byte{}, func(t *testing.T, b *bench) {
		b.stock(pivtest.SlotAuthentication, pivtest.AlgP256, 0x5FC105)
		bin, err := filepath.Abs("testdata/bin")
		if err != nil {
			t.Fatal(err)
		}
		socket := b.shortPath("agent.sock")
		cmd := b.command("yubikey-agent", "yubikey-agent", "-l", socket)
		cmd.Env = append(cmd.Env, "PATH="+bin+":"+os.Getenv("PATH"))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait() // killed: the error says nothing
		})
		conn := awaitSocket(t, socket)
		keys := agent.NewClient(conn)
		list, err := keys.List()
		if err != nil || len(list) != 1 {
			t.Fatalf("list: %d keys, %v", len(list), err)
		}
		for range 3 {
			message := []byte("message")
			signature, err := keys.Sign(list[0], message)
			if err != nil {
				t.Fatal(err)
			}
			if err := list[0].Verify(message, signature); err != nil {
				t.Error(err)
			}
		}
		if n := b.card.Count(0x20); n == 0 {
			t.Error("the PIN was never asked for")
		}
	})
}

// shortPath returns a path that fits a socket address.
func (b *bench) shortPath(name string) string {
	b.t.Helper()
	dir, err := os.MkdirTemp("", "piv")
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, name)
}

// awaitSocket connects to a program that is starting.
func awaitSocket(t *testing.T, path string) net.Conn {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		select {
		case <-deadline.C:
			t.Fatal(err)
		case <-poll.C:
		}
	}
}
