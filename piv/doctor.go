package piv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mesh-agent/mesh-agent/piv/internal/apdu"
	"github.com/mesh-agent/mesh-agent/piv/internal/applet"
	"github.com/mesh-agent/mesh-agent/token"
)

// diagnoseTimeout is how long Diagnose waits for a card that another program holds.
const diagnoseTimeout = 10 * time.Second

// Diagnose looks at the card: whether it is there and free, default secrets, PIN and PUK that are
// blocked or nearly, a management key that nobody has. It presents no secret.
func (t *Token) Diagnose(ctx context.Context) []token.Finding {
	r := &request{ctx: ctx, timeout: orDefault(t.options.Timeout, diagnoseTimeout)}
	findings, err := perform(t, "diagnose", r, diagnose)
	if err != nil {
		findings = append(findings, t.diagnoseAbsence(err))
	}
	return findings
}

func (t *Token) diagnoseAbsence(err error) token.Finding {
	f := token.Finding{Severity: token.SeverityError, Text: err.Error()}
	switch {
	case errors.Is(err, ErrNoService):
		f.Mend = "install pcscd and start it: systemctl enable --now pcscd.socket"
	case errors.Is(err, ErrServiceSilent):
		f.Mend = "restart pcscd: systemctl restart pcscd"
	case errors.Is(err, ErrForbidden):
		f.Mend = "allow this user org.debian.pcsc-lite.access_pcsc and access_card by a polkit rule, as docs/piv.md has it"
	case errors.Is(err, ErrNoReader), errors.Is(err, ErrNoCard):
		f.Mend = fmt.Sprintf("plug in the card with the serial number %d", t.options.Serial)
		if names := processes(isSCDaemon); len(names) != 0 {
			f.Text += "; a program that may keep the reader from pcscd: " + strings.Join(names, ", ")
			f.Mend += "; if it is, put \"disable-ccid\" and \"pcsc-shared\" into scdaemon.conf and run: gpgconf --kill scdaemon"
		}
	case errors.Is(err, token.ErrReplaced):
		f.Mend = fmt.Sprintf("put the card with the serial number %d in place of the other one", t.options.Serial)
	case errors.Is(err, ErrBusy):
		f.Text += suspects()
		f.Mend = "end that program, or make it share the card (gpg: put \"pcsc-shared\" and \"disable-ccid\" into scdaemon.conf)"
	default:
		f.Mend = "unplug the card and plug it in again"
	}
	return f
}

func diagnose(ctx context.Context, s *session) ([]token.Finding, error) {
	v := s.worker.version
	findings := []token.Finding{{Severity: token.SeverityInfo, Text: fmt.Sprintf("PIV card %d, firmware %v", s.worker.token.options.Serial, v)}}
	if !applet.HasMetadata(v) {
		findings = append(findings, token.Finding{
			Severity: token.SeverityWarning,
			Text:     "the firmware does not tell what is in a slot, nor whether PIN, PUK and management key are the factory's",
			Mend:     "name the slot when making a key, and look after the secrets yourself; a card with firmware 5.3 or later tells",
		})
		_, tries, err := s.PINStatus(ctx)
		return append(findings, diagnoseTries(applet.PIN, tries)...), err
	}
	for _, r := range []applet.Reference{applet.PIN, applet.PUK, applet.ManagementKey} {
		c, err := s.Credential(ctx, r)
		if err != nil {
			return findings, err
		}
		if c.Default {
			findings = append(findings, token.Finding{
				Severity: token.SeverityError,
				Text:     fmt.Sprintf("the %v is the factory's, which everybody knows", r),
				Mend:     "run: mesh-agent token setup " + Name(s.worker.token.options.Serial),
			})
		}
		findings = append(findings, diagnoseTries(r, c.Tries)...)
	}
	return append(findings, s.diagnoseStoredKey(ctx)...), nil
}

func diagnoseTries(r applet.Reference, tries int) []token.Finding {
	mend := "unblock it with the PUK: mesh-agent token unblock"
	if r == applet.PUK {
		mend = "nothing can: keep the PIN, or reset the card and lose its keys"
	}
	switch tries {
	case 0:
		return []token.Finding{{Severity: token.SeverityError, Text: fmt.Sprintf("the %v is blocked", r), Mend: mend}}
	case 1:
		return []token.Finding{{Severity: token.SeverityWarning, Text: fmt.Sprintf("the %v has one try left", r), Mend: "give the right one before it is blocked"}}
	}
	return nil
}

// diagnoseStoredKey looks at the note that says whether the management key is on the card; the
// key itself cannot be seen without the PIN.
func (s *session) diagnoseStoredKey(ctx context.Context) []token.Finding {
	if len(s.worker.token.options.ManagementKey) > 0 {
		return nil
	}
	b, err := s.Data(ctx, applet.ObjectAdmin)
	if err == nil && stored(b) {
		return nil
	}
	if err != nil && !errors.Is(err, apdu.NotFound) {
		return nil
	}
	return []token.Finding{{
		Severity: token.SeverityWarning,
		Text:     "the management key is not stored on the card: keys can be used, and none made or deleted",
		Mend:     "run: mesh-agent token setup " + Name(s.worker.token.options.Serial),
	}}
}

// suspects names programs of this machine that have the PC/SC library loaded, as far as this user
// may see them.
func suspects() string {
	names := processes(func(dir, _ string) bool {
		maps, err := os.ReadFile(filepath.Join(dir, "maps"))
		return err == nil && bytes.Contains(maps, []byte("libpcsclite"))
	})
	if len(names) == 0 {
		return ""
	}
	return "; programs that have loaded the card library: " + strings.Join(names, ", ")
}

// isSCDaemon reports whether a process is GnuPG's, which by default takes readers for itself by a driver of its own: then pcscd
// has none.
func isSCDaemon(_, name string) bool { return name == "scdaemon" }

// processes names those that match by their folder in /proc and name.
func processes(match func(dir, name string) bool) []string {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	var names []string
	for _, dir := range dirs {
		b, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue // it has ended
		}
		if name := printable(b); match(dir, name) {
			names = append(names, fmt.Sprintf("%s (process %s)", name, filepath.Base(dir)))
		}
	}
	slices.Sort(names)
	return names
}

// printable makes the name that a process gave itself harmless on a terminal.
func printable(name []byte) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != utf8.RuneError {
			return r
		}
		return '?'
	}, strings.TrimSpace(string(name)))
}
