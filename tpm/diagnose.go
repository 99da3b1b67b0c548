package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/mesh-agent/mesh-agent/token"
)

// Report is what there is to say of a TPM, as plain data.
type Report struct {
	Device      string
	Description string // manufacturer, model, firmware
	Revision    string // of the TPM 2.0 specification, as "1.59"
	Algorithms  []token.Algorithm
	SRK         string // "persistent 0x81000001" or "derived"
	SRKName     []byte
	Pinned      bool // the Name is kept in Options.StateDir
	PIN         bool // a PIN was set
	Locked      bool // and not presented since
	// FreeObjects and FreeSessions are slots beside those in use by this connection.
	FreeObjects, FreeSessions int
	// FailedTries of MaxTries wrong PINs are counted; each Interval without one takes one off.
	FailedTries, MaxTries int
	Interval, Recovery    time.Duration
	LockedOut             bool // PINs are refused now
	OwnerPassword         bool // the owner hierarchy has a password
	LockoutPassword       bool // nobody but its holder can end a lockout
}

// Report asks the TPM.
func (t *Token) Report(ctx context.Context) (Report, error) {
	r, err := do(ctx, t, "report", (*device).report)
	if err != nil {
		return Report{}, err
	}
	info := t.Info()
	r.Device, r.Description, r.Algorithms = t.device, info.Description, info.Algorithms
	r.Pinned, r.PIN, r.Locked = t.state != "", t.pin.isSet(), t.pin.locked()
	return r, nil
}

func (d *device) report() (r Report, err error) {
	p, err := d.properties(tpm2.TPMPTFamilyIndicator)
	if err != nil {
		return r, err
	}
	v, err := d.properties(tpm2.TPMPTPermanent)
	if err != nil {
		return r, err
	}
	r.Revision = fmt.Sprintf("%d.%02d", p[tpm2.TPMPTRevision]/100, p[tpm2.TPMPTRevision]%100)
	r.SRK, r.SRKName = "derived", d.srk.Name.Buffer
	if d.srk.Handle == persistentSRK {
		r.SRK = fmt.Sprintf("persistent 0x%x", uint32(persistentSRK))
	}
	r.FreeObjects, r.FreeSessions = int(v[tpm2.TPMPTHRTransientAvail]), int(v[tpm2.TPMPTHRLoadedAvail])
	r.FailedTries, r.MaxTries = int(v[tpm2.TPMPTLockoutCounter]), int(v[tpm2.TPMPTMaxAuthFail])
	r.Interval = time.Duration(v[tpm2.TPMPTLockoutInterval]) * time.Second
	r.Recovery = time.Duration(v[tpm2.TPMPTLockoutRecovery]) * time.Second
	// TPMA_PERMANENT, TPM 2.0 Part 2, 8.6
	permanent := v[tpm2.TPMPTPermanent]
	r.OwnerPassword, r.LockoutPassword, r.LockedOut = permanent&1 != 0, permanent&4 != 0, permanent&(1<<9) != 0
	return r, nil
}

// Diagnose asks the TPM and says what it found, and what to do about what is wrong.
func (t *Token) Diagnose(ctx context.Context) []token.Finding {
	r, err := t.Report(ctx)
	if err != nil {
		return []token.Finding{explainFailure(t.device, err)}
	}
	return r.findings()
}

// Diagnose looks at a TPM that nobody in this process has open. It opens it for as long as that takes.
func Diagnose(ctx context.Context, o Options) []token.Finding {
	if o.Device == "" {
		o.Device = DefaultDevice
	}
	t, err := Open(ctx, o)
	if err != nil {
		return []token.Finding{explainFailure(o.Device, err)}
	}
	findings := t.Diagnose(ctx)
	if err := t.Close(); err != nil {
		findings = append(findings, explainFailure(o.Device, err))
	}
	return findings
}

func (r Report) findings() []token.Finding {
	info := func(format string, args ...any) token.Finding {
		return token.Finding{Severity: token.SeverityInfo, Text: fmt.Sprintf(format, args...)}
	}
	var algorithms []string
	for _, a := range r.Algorithms {
		algorithms = append(algorithms, string(a))
	}
	out := []token.Finding{
		info("%s opens for this user%s", r.Device, accessOf(r.Device)),
		info("%s, specification revision %s", r.Description, r.Revision),
		info("keys: %s", strings.Join(algorithms, " ")),
		info("storage root key: %s, Name %x", r.SRK, r.SRKName),
		info("free: %d objects, %d sessions", r.FreeObjects, r.FreeSessions),
		info("PIN: %s; wrong ones: %d of %d, one forgotten every %v", r.pinState(), r.FailedTries, r.MaxTries, r.Interval),
	}
	warn := func(cond bool, severity token.Severity, text, mend string) {
		if cond {
			out = append(out, token.Finding{Severity: severity, Text: text, Mend: mend})
		}
	}
	warn(!slices.Contains(r.Algorithms, token.P256), token.SeverityError, "the TPM has no P-256 keys", "use another token")
	warn(!r.Pinned, token.SeverityWarning, "the TPM is not pinned: another one in its place would not be noticed", "give the agent a state folder")
	warn(r.LockedOut, token.SeverityError, fmt.Sprintf("locked out: PINs are refused for up to %v", r.Interval),
		"wait, or end it with the lockout authority's password, if it has one: tpm2_dictionarylockout --clear-lockout")
	warn(!r.LockedOut && r.FailedTries > 0, token.SeverityWarning, fmt.Sprintf("wrong PINs left before lockout: %d", max(0, r.MaxTries-r.FailedTries)),
		"do not guess; the counter falls by itself")
	warn(r.PIN && !r.LockoutPassword, token.SeverityWarning, "the lockout authority has no password: whoever reaches the TPM can guess PINs without end, by clearing the count",
		"give it one, and keep that: tpm2_changeauth --object-context=lockout NEW")
	warn(r.MaxTries == 0, token.SeverityWarning, "the TPM does not count wrong PINs", "set its parameters: tpm2_dictionarylockout --setup-parameters")
	warn(r.OwnerPassword, token.SeverityWarning, "the owner hierarchy has a password, so that no storage root key can be derived",
		"make the storage root key persistent at 0x81000001: tpm2_createprimary and tpm2_evictcontrol")
	warn(r.FreeObjects == 0 || r.FreeSessions == 0, token.SeverityWarning, "no free slots for other programs' objects or sessions",
		"use the resource manager, "+DefaultDevice)
	return out
}

func (r Report) pinState() string {
	switch {
	case !r.PIN:
		return "none set"
	case r.Locked:
		return "not presented"
	}
	return "presented"
}

// explainFailure says why a TPM cannot be used and what to do about that.
func explainFailure(device string, err error) token.Finding {
	f := token.Finding{Severity: token.SeverityError, Text: err.Error()}
	var locked *token.LockoutError
	switch {
	case errors.Is(err, token.ErrReplaced):
		f.Text = "the TPM was replaced or cleared, or something is between: " + f.Text
		f.Mend = "bring the right TPM back; or to enrol the one that is there, remove the agent's state folder of the TPM: keys of the earlier one are lost"
	case errors.Is(err, errState):
		f.Mend = "make the agent's state folder of the TPM, and its files, this user's own, which nobody else may write: chown, chmod go-w"
	case errors.Is(err, fs.ErrPermission):
		f.Text = fmt.Sprintf("this user may not open %s%s", device, accessOf(device))
		f.Mend = "become a member of its group, and log in again: sudo usermod -aG tss $USER"
	case errors.Is(err, errDevice):
		f.Mend = "correct --tpm, $MESH_AGENT_TPM or the configuration"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(device, "swtpm:"):
		f.Text = fmt.Sprintf("nothing answers at %s", device)
		f.Mend = "start the software TPM, or name another one: $MESH_AGENT_TPM"
	case errors.Is(err, fs.ErrNotExist):
		f.Text = fmt.Sprintf("there is no %s", device)
		f.Mend = "switch the TPM on in the firmware, or name another one: $MESH_AGENT_TPM"
	case errors.Is(err, syscall.EBUSY):
		f.Text = fmt.Sprintf("another program has %s", device)
		f.Mend = "use the resource manager, " + DefaultDevice
	case errors.Is(err, errNVFull):
		f.Mend = "undefine an index that nobody needs: tpm2_getcap handles-nv-index, tpm2_nvundefine"
	case errors.Is(err, errFull):
		f.Mend = "end the program that holds them, or flush them: tpm2_flushcontext --transient-object --loaded-session"
	case errors.As(err, &locked):
		f.Mend = fmt.Sprintf("wait %v", locked.RetryAfter)
	case errors.Is(err, token.ErrAuthNeeded):
		f.Mend = "make the storage root key persistent at 0x81000001 with the owner's password: tpm2_createprimary and tpm2_evictcontrol"
	case errors.Is(err, token.ErrCorrupt):
		f.Mend = "restore the agent's state folder of the TPM from a copy"
	case errors.Is(err, token.ErrFault):
		f.Mend = "do not use this TPM: something between changes its answers, or it is broken"
	default:
		f.Mend = "see whether another program answers: tpm2_getcap properties-fixed"
	}
	return f
}

// accessOf says whom a device file is open to: " (-rw-rw----, group tss)".
func accessOf(device string) string {
	info, err := os.Stat(strings.TrimPrefix(device, "device:"))
	if err != nil {
		return ""
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	group := strconv.FormatUint(uint64(stat.Gid), 10)
	if g, err := user.LookupGroupId(group); err == nil {
		group = g.Name
	}
	return fmt.Sprintf(" (%v, group %s)", info.Mode().Perm(), group)
}
