package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mesh-agent/mesh-agent/tpm/tpmtest"
)

func TestMain(m *testing.M) {
	syscall.Umask(0o022) // whatever it was: nobody else may write to the folders of scripts
	testscript.Main(m, map[string]func(){"mesh-agent": main, "harden": showHardened})
}

// TestScript runs the stories in testdata/script, which talk to the real program, real
// OpenSSH and a real TPM simulator. They have these commands beside the usual:
//
//	agent NAME [FLAG...]   run "mesh-agent serve" in folder NAME until the script ends or "end NAME";
//	                       $NAME is then its socket
//	end NAME               interrupt it and wait; it must end well
//	[!] swtpm VAR          run a TPM simulator until the script ends; $VAR is what --tpm takes. Or kill
//	                       it; run again, it is the same TPM
//	sshtpmkey VAR FILE     make a key in a simulator that nobody uses, as ssh-tpm-agent does
//	softhsm                make a PKCS#11 token and a config.toml here that names it hsm
//	hsmkey LABEL           put a P-256 key into that token, as another program may
//	pivcard [FIRMWARE]     put a new PIV card, number 5700001, into a virtual reader; maker/ has its root
//	pivkey SLOT            generate a P-256 key in a slot of the card, as another program may
//	pivkey imported        import one into slot 9a, with a certificate
//	[!] pivplug            plug the card in, or out
//	pivtouch wait          wait until the card waits for a touch
//	pivtouch give          touch it
//	pivtouch late          have the card give up waiting
//	gone PID               wait until a process that the agent started has ended
//	buytpm VAR MAKER       the same with certificates; $MAKER is the folder of its maker's certificates
//	extend DEVICE PCR      change a PCR of a simulator to which nobody is connected
//	capture VAR            put what the last command printed in an environment variable
//	sshd                   write sshd_config and ssh_config here, for a login by "ssh -F ssh_config here"
//	gnupg                  give GnuPG a home until the script ends
//	takecms FILE           write FILE.key, FILE.iv and FILE.body of a CMS message
//	takepgp FILE           write FILE.key of an OpenPGP message
//	takepgpsecret FILE OUT write the subkey of an exported OpenPGP key in PKCS #8
//	activate SOCKET...     run "mesh-agent serve" by systemd-socket-activate; further words after -- are its flags
func TestScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setupScript,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"agent":     startAgent,
			"end":       endAgent,
			"swtpm":     startTPM,
			"sshtpmkey": makeSSHTPMKey,
			"softhsm":   makeSoftHSM,
			"hsmkey":    makeHSMKey,
			"pivcard":   makeCard,
			"pivkey":    cardSlot,
			"pivplug":   plugCard,
			"pivmute":   muteCard,
			"pivtouch":  touchCard,
			"gone":      awaitEnd,
			"extend":    extendPCR,
			"buytpm":    buyTPM,
			"capture":   capture,
			"sshd":      writeSSHD,
			"activate":  activate,

			"gnupg":         startGnuPG,
			"takecms":       takeCMS,
			"takepgp":       takePGP,
			"takepgpsecret": takePGPSecret,
		},
	})
}

// background is a process that runs beside a script. done is closed when it has ended; then err says how.
type background struct {
	process *os.Process
	log     string
	done    chan struct{}
	err     error
}

// start runs c until the script ends, or end.
func start(ts *testscript.TestScript, name string, c *exec.Cmd) *background {
	d, err := launch(c)
	ts.Check(err)
	d.log = ts.MkAbs(name + ".log")
	ts.Value(daemonsKey{}).(map[string]*background)[name] = d
	ts.Defer(func() { d.stop() })
	return d
}

// launch runs c until stop, or until this process ends, even if it crashes.
func launch(c *exec.Cmd) (*background, error) {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	d := &background{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig acts when the thread that started the process ends
		defer runtime.UnlockOSThread()
		defer close(d.done)
		err := c.Start()
		started <- err
		if err == nil {
			d.err = c.Wait()
		}
	}()
	err := <-started
	d.process = c.Process
	return d, err
}

// stop interrupts the process and waits for its end.
func (d *background) stop() error {
	if err := d.process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.done
	return d.err
}

// Keys of the values that a script carries.
type (
	daemonsKey    struct{}
	simulatorsKey struct{}
	testingKey    struct{}
)

// setupScript gives the script its own home and the published test data as $DATA.
func setupScript(env *testscript.Env) error {
	data, err := filepath.Abs("../../testdata")
	if err != nil {
		return err
	}
	env.Values[daemonsKey{}] = map[string]*background{}
	env.Values[manufacturerKey{}] = map[string]*tpmtest.CA{}
	env.Values[cardKey{}] = &virtualCard{}
	env.Values[simulatorsKey{}] = map[string]*tpmtest.TPM{}
	env.Values[testingKey{}] = env.T().(testing.TB)
	env.Setenv("DATA", data)
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("GORACE", "atexit_sleep_ms=0") // with -race every process would take a second to end
	env.Setenv("PATH", env.Getenv("PATH")+":/usr/sbin:/sbin")
	return nil
}

// command prepares a program of the script's environment.
func command(ts *testscript.TestScript, name string, args ...string) *exec.Cmd {
	path := name
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if found := filepath.Join(dir, name); !strings.Contains(path, "/") && isExecutable(found) {
			path = found
		}
	}
	c := exec.Command(path, args...)
	c.Args[0] = name
	c.Dir = ts.MkAbs(".")
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "GORACE", "MESH_AGENT_TPM", "PCSCLITE_CSOCK_NAME", "CREDENTIALS_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"} {
		if value := ts.Getenv(name); value != "" {
			c.Env = append(c.Env, name+"="+value)
		}
	}
	return c
}

func isExecutable(name string) bool {
	info, err := os.Stat(name)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}

// startAgent runs a daemon and returns when it has told its service manager, played
// here, that it is ready.
func startAgent(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 || neg {
		ts.Fatalf("usage: agent NAME [FLAG...]")
	}
	name, flags := args[0], args[1:]
	dir := ts.MkAbs(name)
	ts.Check(os.MkdirAll(dir, 0o700))
	m, err := newManager(dir)
	ts.Check(err)
	defer m.close()

	socket := filepath.Join(dir, "agent.sock")
	all := []string{"serve", "--socket", socket, "--state", filepath.Join(dir, "state")}
	if !strings.Contains(strings.Join(flags, " "), "--tpm") {
		all = append(all, "--tpm", "off")
	}
	c := command(ts, "mesh-agent", append(all, flags...)...)
	c.Env = append(c.Env, m.env())
	log, err := os.OpenFile(ts.MkAbs(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	d := start(ts, name, c)
	ts.Setenv(name, socket)

	if err := m.ready(d.done); err != nil {
		ts.Fatalf("agent %s is not ready: %v\n%s", name, err, readLog(d.log))
	}
}

func readLog(name string) string {
	text, _ := os.ReadFile(name)
	return string(text)
}

func endAgent(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: end NAME")
	}
	d := ts.Value(daemonsKey{}).(map[string]*background)[args[0]]
	if d == nil {
		ts.Fatalf("there is no daemon %s", args[0])
	}
	if err := d.stop(); err != nil {
		ts.Fatalf("%s ended badly: %v\n%s", args[0], err, readLog(d.log))
	}
}

// startTPM runs a TPM simulator, or kills it.
func startTPM(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] swtpm VAR")
	}
	simulators := ts.Value(simulatorsKey{}).(map[string]*tpmtest.TPM)
	s := simulators[args[0]]
	switch {
	case neg && s == nil:
		ts.Fatalf("there is no TPM %s", args[0])
	case neg:
		s.Kill()
	case s != nil:
		s.Restart()
	default:
		s = tpmtest.Start(ts.Value(testingKey{}).(testing.TB))
		simulators[args[0]] = s
		ts.Setenv(args[0], s.Device())
	}
}

// extendPCR gives TPM2_PCR_Extend (TPM 2.0 Part 3, 22.2) with a SHA-256 digest.
func extendPCR(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || neg {
		ts.Fatalf("usage: extend DEVICE PCR")
	}
	pcr, err := strconv.ParseUint(args[1], 10, 8)
	ts.Check(err)
	const (
		empty  = "40000009" + "0000" + "01" + "0000" // TPM_RS_PW, no authorization value
		digest = "00000001" + "000b"                 // one, of SHA-256
	)
	body, err := hex.DecodeString(fmt.Sprintf("00000182%08x%08x%s%s%064x", pcr, len(empty)/2, empty, digest, 1))
	ts.Check(err)
	command := append([]byte{0x80, 0x02, 0, 0, 0, byte(6 + len(body))}, body...)
	c, err := net.Dial("unix", strings.TrimPrefix(args[0], "swtpm:"))
	ts.Check(err)
	defer c.Close()
	_, err = c.Write(command)
	ts.Check(err)
	response := make([]byte, 10)
	_, err = io.ReadFull(c, response)
	ts.Check(err)
	if code := response[6:]; string(code) != "\x00\x00\x00\x00" {
		ts.Fatalf("TPM2_PCR_Extend: response code %x", code)
	}
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: capture VAR")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// writeSSHD configures a server that ssh starts for itself on a pipe, so that no port
// has to be found, and that accepts the keys in authorized_keys.
func writeSSHD(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 || neg {
		ts.Fatalf("usage: sshd")
	}
	me, err := user.Current()
	ts.Check(err)
	if os.Geteuid() == 0 {
		ts.Check(os.MkdirAll("/run/sshd", 0o755)) // sshd of root demands it
	}
	dir := ts.MkAbs(".")
	out, err := command(ts, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "host_key")).CombinedOutput()
	if err != nil {
		ts.Fatalf("make host key: %v\n%s", err, out)
	}
	ts.Check(os.WriteFile(filepath.Join(dir, "sshd_config"), []byte(strings.ReplaceAll(`HostKey DIR/host_key
AuthorizedKeysFile DIR/authorized_keys
AuthenticationMethods publickey
PermitRootLogin yes
StrictModes no
UsePAM no
`, "DIR", dir)), 0o600))
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "ssh_config"), fmt.Appendf(nil, `Host here
User %s
ProxyCommand %s -i -e -f %s/sshd_config 2>>%s/sshd.log
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
IdentitiesOnly yes
PreferredAuthentications publickey
BatchMode yes
LogLevel ERROR
`, me.Username, sshd, dir, dir), 0o600))
}

// activate has the daemon started by the first connection to one of its sockets.
func activate(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 || neg {
		ts.Fatalf("usage: activate SOCKET... -- FLAG...")
	}
	var flags, names []string
	rest := args
	for len(rest) > 0 && rest[0] != "--" {
		flags = append(flags, "--listen", ts.MkAbs(rest[0]))
		names = append(names, strings.TrimSuffix(filepath.Base(rest[0]), ".sock"))
		rest = rest[1:]
	}
	flags = append(flags, "--fdname", strings.Join(names, ":"), "-E", "PATH", "-E", "HOME", "-E", "GORACE")
	program := command(ts, "mesh-agent").Path
	flags = append(flags, program, "serve")
	if len(rest) > 0 {
		flags = append(flags, rest[1:]...)
	}
	c := command(ts, "systemd-socket-activate", flags...)
	stderr, w := io.Pipe()
	c.Stderr = w
	d := start(ts, "activated", c)
	go func() {
		<-d.done
		w.Close()
	}()
	lines := bufio.NewScanner(stderr)
	for range names { // "Listening on ... as 3."
		if !lines.Scan() || !strings.Contains(lines.Text(), "Listening on") {
			ts.Fatalf("systemd-socket-activate says %q", lines.Text())
		}
	}
	go io.Copy(io.Discard, stderr) // until d is done
}

// TestUnits has systemd check the units as they are.
func TestUnits(t *testing.T) {
	t.Parallel()
	units, err := filepath.Glob("../../systemd/*")
	if err != nil || len(units) == 0 {
		t.Fatalf("units: %v, %v", units, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, manager := range []string{"--system", "--user"} {
		c := exec.CommandContext(ctx, "systemd-analyze", append([]string{manager, "verify", "--man=no"}, units...)...)
		c.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
		out, err := c.CombinedOutput()
		if err != nil || len(out) != 0 {
			t.Errorf("systemd-analyze %s verify: %v\n%s", manager, err, out)
		}
	}
}
