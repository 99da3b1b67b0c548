package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/mesh"
)

// makeSoftHSM makes a SoftHSM token and a config.toml here that names it hsm.
func makeSoftHSM(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 0 || neg {
		ts.Fatalf("usage: softhsm")
	}
	s := hsmtest.SoftHSM(ts.Value(testingKey{}).(testing.TB))
	ts.Check(os.WriteFile(ts.MkAbs("config.toml"), []byte(moduleConfig(s)), 0o600))
	ts.Setenv("SOFTHSM2_CONF", filepath.Join(s.Dir, "softhsm2.conf")) // for makeHSMKey; the agent does not pass it on
}

// makeHSMKey imports a key by SoftHSM's own program.
func makeHSMKey(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 || neg {
		ts.Fatalf("usage: hsmkey LABEL")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	file := ts.MkAbs(args[0] + ".pem")
	ts.Check(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	ts.Check(ts.Exec("softhsm2-util", "--import", file, "--token", "test", "--label", args[0], "--id", "a1b2", "--pin", hsmtest.PIN))
}

// moduleConfig is a configuration that names the token of a module hsm.
func moduleConfig(s hsmtest.Setup) string {
	var quoted []string
	for _, v := range s.Environment {
		quoted = append(quoted, strconv.Quote(v))
	}
	return fmt.Sprintf("[[pkcs11]]\nmodule = %q\narguments = %q\nenvironment = [%s]\ntokens = { hsm = %q }\n",
		s.Path, s.Arguments, strings.Join(quoted, ", "), "pkcs11:token="+url.PathEscape(s.Label))
}

// serveModule runs an agent with the token of a module, unlocked, until the test ends. It
// returns a client of it and the agent's process.
func serveModule(t *testing.T, s hsmtest.Setup) (*client.Client, string, *os.Process) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config, socket := filepath.Join(dir, "config.toml"), filepath.Join(dir, "run", "agent.sock")
	if err := os.WriteFile(config, []byte(moduleConfig(s)), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := newManager(dir)
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.Command("mesh-agent", "serve", "--config", config, "--socket", socket, "--state", filepath.Join(dir, "state"), "--tpm", "off")
	agent.Env = append(os.Environ(), m.env())
	var log bytes.Buffer
	agent.Stderr = &log
	d, err := launch(agent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Errorf("the agent: %v\n%s", err, log.Bytes())
		}
	})
	if err := errors.Join(m.ready(d.done), m.close()); err != nil {
		t.Fatal(err)
	}
	c := dialAgent(t, socket)
	if err := c.TokenUnlock(t.Context(), "hsm", []byte(hsmtest.PIN)); err != nil {
		t.Fatal(err)
	}
	return c, socket, agent.Process
}

func dialAgent(t *testing.T, socket string) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Eight connections sign while the module's process is killed, and while the module crashes:
// every request gets an answer, a right signature or that the token is absent; service is back, and
// the agent goes on as the process that it was.
func TestModuleDiesUnderLoad(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	admin, socket, agent := serveModule(t, fake.Setup)
	made, err := admin.KeyGenerate(t.Context(), mesh.KeyGenerateRequest{Home: mesh.Home{Token: "hsm"}, Algorithm: "P256", Use: "sign"})
	if err != nil {
		t.Fatal(err)
	}
	public, err := made.Key.PublicKey.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	standard, err := public.Standard()
	if err != nil {
		t.Fatal(err)
	}
	var clients [8]*client.Client
	for i := range clients {
		clients[i] = dialAgent(t, socket)
	}
	load := hsmtest.StartLoad(t, len(clients), isAbsent, func(i int) error {
		message := rand.Text()
		signature, err := clients[i].Sign(context.Background(), made.Key.Udf, []byte(message), "")
		if err != nil {
			return err
		}
		if digest := sha256.Sum256([]byte(message)); !ecdsa.VerifyASN1(standard.(*ecdsa.PublicKey), digest[:], signature) {
			return errors.New("wrong signature")
		}
		return nil
	})
	load.AwaitRight("first", 20)
	for range 5 {
		killed := childrenOf(t, agent.Pid)
		for _, helper := range killed {
			syscall.Kill(helper, syscall.SIGKILL)
		}
		load.AwaitRight("after it was killed", 20) // of which eight may have been done before
		if slices.Equal(childrenOf(t, agent.Pid), killed) {
			t.Error("signatures without a new process")
		}
	}
	for range 2 {
		fake.Do(t, "SignInit", "segfault")
		load.AwaitFailed("segfault")
		fake.Heal(t, "SignInit")
		load.AwaitRight("after a segfault", 20)
	}
	load.Stop()
	status, err := admin.Status(t.Context())
	if err != nil || status.PID != agent.Pid {
		t.Errorf("the agent is process %d now, was %d: %v", status.PID, agent.Pid, err)
	}
	t.Logf("%d signatures, %d failed", load.Right, load.Failed)
}

// isAbsent reports whether an operation was answered by status 503.
func isAbsent(err error) bool {
	var answered *client.StatusError
	return errors.As(err, &answered) && answered.Status == 503
}

// childrenOf returns the child processes of a process.
func childrenOf(t *testing.T, pid int) (children []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // by the thread that started them
	if err != nil || len(lists) == 0 {
		t.Fatalf("no process %d: %v", pid, err)
	}
	for _, name := range lists {
		list, _ := os.ReadFile(name) // a thread may have ended
		for _, child := range strings.Fields(string(list)) {
			n, err := strconv.Atoi(child)
			if err != nil {
				t.Fatal(err)
			}
			children = append(children, n)
		}
	}
	return children
}
