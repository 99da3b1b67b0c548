package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/mesh-agent/mesh-agent/client"
	"github.com/mesh-agent/mesh-agent/mesh"
	"github.com/mesh-agent/mesh-agent/piv"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/tpm"
)

func newDoctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong and how to mend it",
		Long: `Looks at the agent, its tokens and keys, its sockets and folders, and says what is wrong and
how to mend it. Where no agent runs it looks at the TPM, the PIV cards, the PKCS#11 modules and
the prompt program itself, as the configuration names them.
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
	s, err := a.settings(serveFlags{})
	var out []mesh.Finding
	if err != nil {
		out = append(out, finding(token.SeverityError, "configuration", "correct it, or name another by --config", "%v", err))
	}
	out = append(out, a.examineConfig()...)
	configured := err == nil
	var status *mesh.StatusResponse
	var of []mesh.Finding
	err = a.with(ctx, func(conn *client.Client) (err error) {
		if status, err = conn.Status(ctx); err != nil {
			return err
		}
		of, err = conn.Doctor(ctx)
		return err
	})
	var tokens []string
	switch {
	case err == nil:
		s.state = status.State
		for _, t := range status.Tokens {
			tokens = append(tokens, t.Name)
		}
		out = append(append(out, a.examineAgent(*status)...), of...)
	case configured:
		for _, serial := range s.piv {
			tokens = append(tokens, piv.Name(serial))
		}
		out = append(append(out, noAgent(err)), a.examineSettings(ctx, s)...)
	default:
		out = append(out, noAgent(err))
	}
	out = append(out, a.examineOtherCards(ctx, tokens)...)
	out = append(out, a.examineSockets()...)
	if s.state != "" {
		out = append(out, examineState(s.state)...)
	}
	return append(out, examineSwap("/proc/swaps")...)
}

func noAgent(err error) mesh.Finding {
	return finding(token.SeverityError, "agent", adviceOf(err), "%v", err)
}

// adviceOf returns what to do about an error, or a general advice.
func adviceOf(err error) string {
	return cmp.Or(adviceFor(&cobra.Command{Use: "mesh-agent"}, err), "see the agent's log")
}

// examineAgent looks at what a running agent says of itself, and at who asks it.
func (a *app) examineAgent(s mesh.StatusResponse) []mesh.Finding {
	out := []mesh.Finding{finding(token.SeverityInfo, "agent", "", "%s, process %d, serves %d keys at %s", s.Build, s.PID, s.Keys, s.Socket)}
	if s.Build != build() {
		out = append(out, finding(token.SeverityWarning, "agent", "restart it: systemctl --user restart mesh-agent, or stop it and `mesh-agent serve`",
			"it is another version than this program, %s", build()))
	}
	if !slices.ContainsFunc(s.Tokens, func(t mesh.TokenInfo) bool { return t.Name == tpmName }) {
		out = append(out, missingTPM(tpm.DefaultDevice))
	}
	if ssh := a.getenv("SSH_AUTH_SOCK"); s.SSH != "" && !sameFile(ssh, s.SSH) && !sameFile(ssh, s.Socket) {
		text := "it is not set: ssh does not ask this agent"
		if ssh != "" {
			text = "ssh does not ask this agent, but what is at " + ssh
		}
		out = append(out, finding(token.SeverityInfo, "SSH_AUTH_SOCK", "export SSH_AUTH_SOCK="+s.SSH, "%s", text))
	}
	return out
}

// examineSettings looks at what an agent would use, where none does.
func (a *app) examineSettings(ctx context.Context, s settings) []mesh.Finding {
	out := examineTPM(ctx, s)
	out = append(out, a.examineCards(ctx, s.piv)...)
	out = append(out, examineModules(ctx, s.pkcs11)...)
	return append(out, a.examinePrompt(ctx, s.prompt)...)
}

// diagnosed is what a token finds to be wrong with itself. It is closed then.
func diagnosed(ctx context.Context, t token.Token) []mesh.Finding {
	defer t.Close() // nothing was changed
	var out []mesh.Finding
	if d, ok := t.(token.Doctor); ok {
		out = findings("token "+t.Info().Name, d.Diagnose(ctx))
	}
	return out
}

// findings are those of a token.
func findings(about string, of []token.Finding) []mesh.Finding {
	var out []mesh.Finding
	for _, f := range of {
		out = append(out, mesh.Finding{Severity: string(f.Severity), About: about, Text: f.Text, Mend: f.Mend})
	}
	return out
}

// examineTPM looks at the TPM where no agent does.
func examineTPM(ctx context.Context, s settings) []mesh.Finding {
	if s.tpm.device == "" {
		return []mesh.Finding{missingTPM(tpm.DefaultDevice)}
	}
	options := tpm.Options{Device: s.tpm.device}
	if dir := filepath.Join(s.state, tpmFolder); isFolder(dir) { // which would be made otherwise
		options.StateDir = dir
	}
	return findings("token "+tpmName, tpm.Diagnose(ctx, options))
}

// missingTPM says why there is no token tpm.
func missingTPM(device string) mesh.Finding {
	if _, err := os.Stat(device); err == nil {
		return finding(token.SeverityInfo, "token "+tpmName, "", "%s is there and not used: --tpm, $MESH_AGENT_TPM or the configuration turns it off, or it came after the agent", device)
	}
	return finding(token.SeverityInfo, "token "+tpmName, "if it has one, turn it on in the firmware's settings (fTPM, PTT)", "this machine shows no TPM 2.0: there is no %s", device)
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// examineConfig looks whether others may write to the configuration, which names programs and libraries.
func (a *app) examineConfig() []mesh.Finding {
	path := a.config
	if path == "" {
		var err error
		if path, err = a.defaultConfig(); err != nil {
			return nil // then there is none
		}
	}
	if f, ok := examineMode("configuration", path, 0o022, "chmod go-w "+path); ok {
		return []mesh.Finding{f}
	}
	return nil
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
		may := "use it"
		if mode&mask&0o022 != 0 {
			may = "write to it"
		}
		return finding(token.SeverityError, about, mend, "%s has mode %04o: others may %s", path, mode, may), true
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return finding(token.SeverityError, about, "choose a place of your own", "%s belongs to user %d", path, owner), true
	}
	return mesh.Finding{}, false
}

// How little room there may be on the disk of the key records, in octets: what is low, and what is too little for some records.
const lowSpace, noSpace = 16 << 20, 64 << 10

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
	out = append(out, examineSpace(dir, disk.Bavail*uint64(disk.Bsize))...)
	if disk.Flags&unix.ST_RDONLY != 0 {
		out = append(out, finding(token.SeverityError, "disk", "mount it for writing", "%s is on a disk that cannot be written", dir))
	}
	return out
}

// examineSpace looks at how many octets are free at a folder.
func examineSpace(dir string, free uint64) []mesh.Finding {
	severity := token.SeverityWarning
	switch {
	case free >= lowSpace:
		return nil
	case free < noSpace:
		severity = token.SeverityError
	}
	return []mesh.Finding{finding(severity, "disk", "make room: key records are written whole or not at all", "%d octets are free at %s", free, dir)}
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
