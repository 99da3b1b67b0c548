package piv

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/mesh-agent/mesh-agent/agent"
	"github.com/mesh-agent/mesh-agent/agent/agenttest"
	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/prompt/prompttest"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// TestPromptByPinentry has OpenSSH sign with a key that wants the card's PIN each time, which a real
// pinentry asks for on a terminal.
func TestPromptByPinentry(t *testing.T) {
	t.Parallel()
	b := newBench(t, pivtest.Config{}, Options{})
	terminal := prompttest.NewTerminal(t)
	asking := prompt.New(prompt.Options{Kind: prompt.Pinentry, Program: "/usr/bin/pinentry-tty", Limit: time.Minute, Getenv: func(name string) string {
		return map[string]string{"GPG_TTY": terminal.Name, "TERM": "xterm", "PATH": "/usr/bin:/bin"}[name]
	}})
	t.Cleanup(asking.Close)
	socket := agenttest.ServeWith(t, agent.Config{Prompter: asking}, b.token)
	public, udf := b.sshKey(t, socket)

	done := signBySSH(t, socket, public)
	terminal.Until("PIN of the token "+b.token.Info().Name, udf+", for a signature for SSH", "ssh-keygen, process ", "This key asks for it each time", "3 tries are left", "PIN")
	terminal.Type("000000\n")
	terminal.Until("That PIN was wrong", "2 tries are left", "PIN")
	terminal.Type(testPIN + "\n")
	if err := <-done; err != nil {
		t.Error(err)
	}

	done = signBySSH(t, socket, public)
	terminal.Until("3 tries are left", "PIN")
	terminal.Type("\x04")
	if err := <-done; err == nil {
		t.Error("signed although nobody gave the PIN")
	}
	if left, err := b.token.TriesLeft(t.Context()); err != nil || left != 3 {
		t.Errorf("%d tries left, %v", left, err)
	}
}

// sshKey makes a key that wants the PIN each time and returns the file of its public key.
func (b *bench) sshKey(t *testing.T, socket string) (file, udf string) {
	t.Helper()
	c := dial(t, socket)
	if err := c.TokenUnlock(t.Context(), b.token.Info().Name, []byte(testPIN)); err != nil {
		t.Fatal(err)
	}
	made, err := c.KeyGenerate(t.Context(), mesh.KeyGenerateRequest{
		Home: mesh.Home{Token: b.token.Info().Name, PIN: string(token.PINAlways)}, Algorithm: "P256", Use: "ssh",
	})
	if err != nil {
		t.Fatal(err)
	}
	standard, err := token.PublicKey{Algorithm: token.P256, Octets: made.Key.PublicKey.PublicKeyECDH.Public}.Standard()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(standard)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "id.pub")
	if err := os.WriteFile(file, ssh.MarshalAuthorizedKey(key), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, made.Key.Udf
}

// signBySSH has ssh-keygen sign meanwhile.
func signBySSH(t *testing.T, socket, public string) <-chan error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c := exec.CommandContext(ctx, "ssh-keygen", "-Y", "sign", "-n", "file", "-f", public)
	c.Env = []string{"SSH_AUTH_SOCK=" + socket, "PATH=" + os.Getenv("PATH")}
	c.Stdin = strings.NewReader("letter")
	done := make(chan error, 1)
	go func() {
		defer cancel()
		out, err := c.CombinedOutput()
		if err == nil && !strings.Contains(string(out), "BEGIN SSH SIGNATURE") {
			err = errors.New(string(out))
		}
		done <- err
	}()
	return done
}
