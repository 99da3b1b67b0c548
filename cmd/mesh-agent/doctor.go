package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm"
)

func newDoctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong and how to mend it",
		Long: `Looks at the agent, its tokens and keys, its sockets and folders, and says what is wrong and
how to mend it. Where no agent runs it looks at the TPM and the PIV cards itself.
It changes nothing. It succeeds if nothing is found that does not work; warnings are of
what works and should be mended.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			findings := a.examine(c.Context())
			if err := a.printFindings(findings); err != nil {
				return err
			}
			return verdict(findings)
		},
	}
}

func verdict(findings []mesh.Finding) error {
	n := 0
	for _, f := range findings {
		if f.Severity == string(token.SeverityError) {
			n++
		}
	}
	switch n {
	case 0:
		return nil
	case 1:
		return errors.New("one thing is wrong")
	}
	return fmt.Errorf("%d things are wrong", n)
}

func (a *app) printFindings(findings []mesh.Finding) error {
	if a.json {
		return a.printJSON(append([]mesh.Finding{}, findings...))
	}
	for _, f := range findings {
		text := fmt.Sprintf("%-8s %s: %s\n", f.Severity, f.About, oneLine(f.Text)) // with what a token says of itself
		if f.Mend != "" {
			text += fmt.Sprintf("%-8s %s\n", "", f.Mend)
		}
		if err := a.print([]byte(text)); err != nil {
			return err
		}
	}
	return nil
}

func finding(s token.Severity, about, mend, format string, args ...any) mesh.Finding {
	return mesh.Finding{Severity: string(s), About: about, Text: fmt.Sprintf(format, args...), Mend: mend}
}

// examine looks at everything there is. What cannot be looked at is a finding.
func (a *app) examine(ctx context.Context) []mesh.Finding {
	state, err := a.stateFolder()
	var out []mesh.Finding
	if err != nil {
		out = append(out, finding(token.SeverityError, "configuration", "correct it, or name another by --config", "%v", err))
	}
	var of []mesh.Finding
	var tokens []string
	err = a.with(ctx, func(conn *client.Client) (err error) {
		status, err := conn.Status(ctx)
		if err != nil {
			return err
		}
		state = status.State
		for _, t := range status.Tokens {
			tokens = append(tokens, t.Name)
		}
		out = append(out, finding(token.SeverityInfo, "agent", "", "%s, process %d, serves %d keys at %s", status.Build, status.PID, status.Keys, status.Socket))
		of, err = conn.Doctor(ctx)
		return err
	})
	if err != nil {
		out = append(out, finding(token.SeverityError, "agent", adviceOf(err), "%v", err))
		cards, names := a.examineCards(ctx)
		of, tokens = append(a.examineTPM(ctx), cards...), names
		of = append(of, a.examinePrompt(ctx)...)
	}
	out = append(out, of...)
	out = append(out, a.examineOtherCards(ctx, tokens)...)
	out = append(out, a.examineSockets()...)
	if state != "" {
		out = append(out, examineState(state)...)
	}
	return append(out, examineSwap("/proc/swaps")...)
}

// adviceOf returns the hint in an error, or a general one.
func adviceOf(err error) string {
	var hinted hintError
	if errors.As(err, &hinted) {
		return hinted.hint
	}
	return "see the agent's log"
}

// stateFolder is where an agent that is started here keeps its keys.
func (a *app) stateFolder() (string, error) {
	s, err := a.settings(serveFlags{})
	return s.state, err
}

// examineTPM looks at the TPM where no agent does.
func (a *app) examineTPM(ctx context.Context) []mesh.Finding {
	s, err := a.settings(serveFlags{})
	if err != nil {
		return nil // found already
	}
	if s.tpm.device == "" {
		return []mesh.Finding{finding(token.SeverityInfo, "token tpm", "", "this machine has no TPM at %s, or it is turned off", tpm.DefaultDevice)}
	}
	options := tpm.Options{Device: s.tpm.device}
	if dir := filepath.Join(s.state, tpmFolder); isFolder(dir) { // which would be made otherwise
		options.StateDir = dir
	}
	var out []mesh.Finding
	for _, f := range tpm.Diagnose(ctx, options) {
		out = append(out, mesh.Finding{Severity: string(f.Severity), About: "token tpm", Text: f.Text, Mend: f.Mend})
	}
	return out
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// examineSockets looks at the socket of the agent, its folder, and what SSH uses.
func (a *app) examineSockets() []mesh.Finding {
	path, err := a.socketPath()
	if err != nil {
		return nil // found already, without an agent
	}
	var out []mesh.Finding
	if f, ok := examineMode("socket folder", filepath.Dir(path), 0o022, "chmod go-w "+filepath.Dir(path)); ok {
		out = append(out, f)
	}
	if f, ok := examineMode("socket", path, 0o077, "chmod 600 "+path); ok {
		out = append(out, f)
	}
	ssh := a.getenv("SSH_AUTH_SOCK")
	if ssh != "" && sameFile(ssh, path) {
		out = append(out, finding(token.SeverityWarning, "SSH_AUTH_SOCK", "set it to ssh.sock beside that",
			"it names the socket for Mesh messages, which `ssh -A` would forward"))
	}
	return out
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// examineMode looks whether a file has permissions that it should not have.
func examineMode(about, path string, mask fs.FileMode, mend string) (mesh.Finding, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return mesh.Finding{}, false // what is not there is found elsewhere
	}
	if mode := info.Mode().Perm(); mode&mask != 0 {
		return finding(token.SeverityError, about, mend, "%s has mode %04o: others may use it", path, mode), true
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return finding(token.SeverityError, about, "choose a place of your own", "%s belongs to user %d", path, owner), true
	}
	return mesh.Finding{}, false
}

// lowSpace is how little room there may be on the disk of the key records, in octets.
const lowSpace = 16 << 20

// examineState looks at the folder of the key records and its disk.
func examineState(dir string) []mesh.Finding {
	var out []mesh.Finding
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if f, ok := examineMode("state", path, 0o077, "chmod go-rwx "+path); ok {
			out = append(out, f)
		}
		return nil
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []mesh.Finding{finding(token.SeverityInfo, "state", "", "there are no keys yet: %s does not exist", dir)}
	case err != nil:
		out = append(out, finding(token.SeverityError, "state", "let this user read it", "%v", err))
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		return append(out, finding(token.SeverityError, "state", "see what is wrong with the disk", "%s: %v", dir, err))
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < lowSpace {
		out = append(out, finding(token.SeverityWarning, "disk", "make room: key records are written whole or not at all", "%d octets are free at %s", free, dir))
	}
	if disk.Flags&unix.ST_RDONLY != 0 {
		out = append(out, finding(token.SeverityError, "disk", "mount it for writing", "%s is on a disk that cannot be written", dir))
	}
	return out
}

// examineSwap looks for swap space on a disk, to which open keys may be written.
func examineSwap(table string) []mesh.Finding {
	f, err := os.Open(table)
	if err != nil {
		return nil // a system without it
	}
	defer f.Close()
	var out []mesh.Finding
	lines := bufio.NewScanner(f)
	for first := true; lines.Scan(); first = false {
		name, _, _ := strings.Cut(lines.Text(), " ")
		if first || name == "" || strings.HasPrefix(name, "/dev/zram") || strings.HasPrefix(name, "/dev/dm-") || strings.HasPrefix(name, "/dev/mapper/") {
			continue // the title, memory, and what is usually encrypted
		}
		out = append(out, finding(token.SeverityWarning, "swap", "encrypt the swap space, or turn it off: swapoff "+name,
			"software and sealed keys in use may be written to %s, which seems not to be encrypted", name))
	}
	return out
}
