package piv

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/piv/internal/pcsc"
	"github.com/mesh-agent/mesh-agent/piv/pivtest"
	"github.com/mesh-agent/mesh-agent/token"
)

// newCard is a bench whose card is as the factory left it.
func newCard(tb testing.TB, config pivtest.Config) *bench {
	tb.Helper()
	b := &bench{card: pivtest.NewCard(config), daemon: pivtest.StartDaemon(tb)}
	b.reader = b.daemon.AddReader("Yubico YubiKey OTP+FIDO+CCID 00 00", b.card)
	b.token = b.open(tb, Options{Patience: 10 * time.Millisecond, Timeout: 5 * time.Second})
	return b
}

func TestSetup(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{})
	ctx := t.Context()
	good := SetupRequest{PIN: []byte(testPIN), PUK: []byte(testPUK)}
	for name, req := range map[string]SetupRequest{
		"factory PIN": {PIN: []byte(pivtest.DefaultPIN), PUK: good.PUK},
		"factory PUK": {PIN: good.PIN, PUK: []byte(pivtest.DefaultPUK)},
		"short PIN":   {PIN: []byte("12345"), PUK: good.PUK},
		"long PUK":    {PIN: good.PIN, PUK: []byte("123456789")},
		"no PUK":      {PIN: good.PIN},
	} {
		wantAll(t, name, b.token.Setup(ctx, req), token.ErrBadRequest)
	}
	wantTries(t, "wrong old PIN", b.token.Setup(ctx, SetupRequest{OldPIN: []byte("000000"), PIN: good.PIN, PUK: good.PUK}), token.ErrAuthWrong, 2)
	wantTries(t, "wrong old PUK", b.token.Setup(ctx, SetupRequest{OldPUK: []byte("00000000"), PIN: good.PIN, PUK: good.PUK}), token.ErrAuthWrong, 2)
	if err := b.token.Setup(ctx, good); err != nil { // goes on where the last one stopped
		t.Fatal(err)
	}
	again := SetupRequest{OldPIN: good.PIN, OldPUK: good.PUK, PIN: []byte("918273"), PUK: good.PUK}
	if err := b.token.Setup(ctx, again); err != nil {
		t.Errorf("set up again: %v", err)
	}
	for _, f := range b.token.Diagnose(ctx) {
		if f.Severity != token.SeverityInfo {
			t.Errorf("after setup: %v", f)
		}
	}
}

// TestSetupInterrupted loses the card after each command in turn, or before the card's answer arrives: the same
// request again ends well, and whatever it was interrupted by, the management key is not lost. It is so for a
// factory-new card and for one that was set up before, whose key is nowhere but on the card.
func TestSetupInterrupted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		used  bool // set up before
		mute  bool // the command that fails is done, and its answer lost
		again SetupRequest
	}{
		{"new card", false, false, SetupRequest{}},
		{"new card, answer lost", false, true, SetupRequest{}},
		{"used card", true, false, SetupRequest{OldPIN: []byte("918273"), OldPUK: []byte("91827364")}},
		{"used card, answer lost", true, true, SetupRequest{OldPIN: []byte("918273"), OldPUK: []byte("91827364")}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			steps := 0
			for stop := 1; ; stop++ {
				b := newCard(t, pivtest.Config{})
				if c.used {
					if err := b.token.Setup(t.Context(), SetupRequest{PIN: c.again.OldPIN, PUK: c.again.OldPUK}); err != nil {
						t.Fatal(err)
					}
				}
				var given atomic.Int64
				b.card.OnAPDU(func(apdu []byte, card func([]byte) []byte) []byte {
					n := given.Add(1)
					if n > int64(stop) {
						return nil
					}
					answer := card(apdu)
					if n == int64(stop) && c.mute {
						return nil
					}
					return answer
				})
				req := c.again
				req.PIN, req.PUK = []byte(testPIN), []byte(testPUK)
				first := b.token.Setup(t.Context(), req)
				b.card.OnAPDU(nil)
				if first == nil {
					if steps < 10 {
						t.Errorf("setup took %d commands", steps)
					}
					return
				}
				steps++
				b.reader.ResetByOther()
				b.recovers(t, stop, req)
			}
		})
	}
}

// recovers wants a card whose setup was interrupted to be set up by the same request, or by one that gives the new
// secrets as the old ones where the card had them already. Before that its management key is there for
// whoever has the PIN.
func (b *bench) recovers(t *testing.T, stop int, req SetupRequest) {
	t.Helper()
	generate := token.GenerateRequest{Algorithm: token.P256, Use: token.UseSign}
	if len(req.OldPIN) != 0 {
		made := false
		for _, pin := range [][]byte{req.PIN, req.OldPIN} {
			generate.Auth.PIN = pin
			_, err := b.token.Generate(t.Context(), generate)
			made = made || err == nil
		}
		if !made {
			t.Errorf("interrupted after %d commands: the management key is lost", stop)
		}
	}
	err := b.token.Setup(t.Context(), req)
	for _, old := range []SetupRequest{{OldPIN: req.OldPIN, OldPUK: req.PUK}, {OldPIN: req.PIN, OldPUK: req.PUK}} {
		if err != nil && len(req.OldPIN) != 0 { // who says what the old secrets are has to say it again
			req.OldPIN, req.OldPUK = old.OldPIN, old.OldPUK
			err = b.token.Setup(t.Context(), req)
		}
	}
	if err != nil {
		t.Errorf("interrupted after %d commands: set up again: %v", stop, err)
	}
	for _, f := range b.token.Diagnose(t.Context()) {
		if f.Severity != token.SeverityInfo {
			t.Errorf("interrupted after %d commands and set up again: %v", stop, f)
		}
	}
}

// TestSetupRefused has the card take no PUK with characters beyond ASCII, as firmware 5.7 does; the
// request can be changed, and goes on.
func TestSetupRefused(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{})
	wantAll(t, "PUK", b.token.Setup(t.Context(), SetupRequest{PIN: []byte(testPIN), PUK: []byte("p\xfcpp\xfc12")}), token.ErrBadRequest)
	wantAll(t, "PIN", b.token.Setup(t.Context(), SetupRequest{PIN: []byte("p\xfcpp\xfc12"), PUK: []byte(testPUK)}), token.ErrBadRequest)
	if err := b.token.Setup(t.Context(), SetupRequest{PIN: []byte(testPIN), PUK: []byte(testPUK)}); err != nil {
		t.Fatal(err)
	}
	wantAll(t, "set PUK", b.token.SetPUK(t.Context(), []byte(testPUK), []byte("p\xfcpp\xfc12")), token.ErrBadRequest)
	wantAll(t, "set PIN", b.token.SetPIN(t.Context(), []byte(testPIN), []byte("p\xfcpp\xfc12")), token.ErrBadRequest)
	wantAll(t, "unblock", b.token.Unblock(t.Context(), []byte(testPUK), []byte("p\xfcpp\xfc12")), token.ErrBadRequest)
}

func TestGenerateWithoutManagementKey(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{})
	if err := b.token.Unlock(t.Context(), []byte(pivtest.DefaultPIN)); err != nil {
		t.Fatal(err)
	}
	req := token.GenerateRequest{Algorithm: token.P256, Use: token.UseSSH}
	_, err := b.token.Generate(t.Context(), req)
	wantTries(t, "management key not stored", err, token.ErrAuthNeeded, token.TriesUnknown)
	given := b.open(t, Options{ManagementKey: []byte(pivtest.DefaultManagementKey)})
	if _, err := given.Generate(t.Context(), req); err != nil {
		t.Errorf("with the management key: %v", err)
	}
	wrong := b.open(t, Options{ManagementKey: make([]byte, 24)})
	_, err = wrong.Generate(t.Context(), req)
	wantAll(t, "wrong management key", err, token.ErrAuthWrong)
}

// finds wants a finding of the token.
func (b *bench) finds(t *testing.T, s token.Severity, text string) {
	t.Helper()
	findings := b.token.Diagnose(t.Context())
	for _, f := range findings {
		if f.Severity == s && strings.Contains(f.Text, text) && (f.Mend != "") == (s != token.SeverityInfo) {
			return
		}
	}
	t.Errorf("no finding %q among %v", text, findings)
}

// TestDiagnoseTries finds secrets that are nearly blocked. Looking at them uses up no try.
func TestDiagnoseTries(t *testing.T) {
	t.Parallel()
	for _, version := range [][3]byte{{5, 7, 1}, {4, 3, 5}} {
		b := newBench(t, pivtest.Config{Version: version}, Options{})
		for _, wrong := range []string{"000000", "000001"} {
			wantAll(t, "unlock", b.token.Unlock(t.Context(), []byte(wrong)), token.ErrAuthWrong)
		}
		for range 3 {
			b.finds(t, token.SeverityWarning, "the PIN has one try left")
		}
		if err := b.token.UnlockLastTry(t.Context(), []byte(testPIN)); err != nil {
			t.Errorf("firmware %v: %v", version, err)
		}
		for range 2 {
			wantAll(t, "set PUK", b.token.SetPUK(t.Context(), []byte("00000000"), []byte(testPUK)), token.ErrAuthWrong)
		}
		if version[0] == 5 { // others do not tell
			b.finds(t, token.SeverityWarning, "the PUK has one try left")
			wantAll(t, "last try of the PUK", b.token.SetPUK(t.Context(), []byte(testPUK), []byte("55554444")), ErrLastTry)
		}
	}
}

// TestDiagnoseHolder names a program that has the card library, where one keeps the card for itself.
func TestDiagnoseHolder(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{})
	scan := exec.CommandContext(t.Context(), "pcsc_scan")
	scan.Env = []string{b.daemon.Env(), "PATH=" + os.Getenv("PATH")}
	out, err := scan.StdoutPipe()
	if err == nil {
		err = scan.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = scan.Process.Kill()
		_ = scan.Wait() // killed: the error says nothing
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // it runs
		t.Fatal(err)
	}
	b.idle(t)
	b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandConnect {
			return pivtest.SharingViolation
		}
		return pivtest.Success
	})
	b.finds(t, token.SeverityError, fmt.Sprintf("pcsc_scan (process %d)", scan.Process.Pid))
}

// TestDiagnoseSCDaemon names GnuPG's daemon where pcscd has no reader.
func TestDiagnoseSCDaemon(t *testing.T) {
	t.Parallel()
	b := newCard(t, pivtest.Config{})
	b.reader.Unplug()
	program := filepath.Join(t.TempDir(), "scdaemon")
	if err := os.Symlink("/bin/sleep", program); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, "600")
	if err := c.Start(); err != nil { // returns when the program runs
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait() // killed: the error says nothing
	}()
	b.finds(t, token.SeverityError, fmt.Sprintf("scdaemon (process %d)", c.Process.Pid))
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	if got := printable([]byte("a b\x1b[2J\xff\u202e\n")); got != "a b?[2J??" {
		t.Errorf("%q", got)
	}
}

func TestDiagnose(t *testing.T) {
	t.Parallel()
	find := func(b *bench, s token.Severity, text string) {
		t.Helper()
		b.finds(t, s, text)
	}
	b := newCard(t, pivtest.Config{})
	find(b, token.SeverityInfo, "firmware 5.7.1")
	find(b, token.SeverityError, "the PIN is the factory's")
	find(b, token.SeverityError, "the PUK is the factory's")
	find(b, token.SeverityError, "the management key is the factory's")
	find(b, token.SeverityWarning, "not stored")
	b.card.BlockPIN()
	find(b, token.SeverityError, "the PIN is blocked")
	b.card.BlockPUK()
	find(b, token.SeverityError, "the PUK is blocked")
	b.reader.Unplug()
	find(b, token.SeverityError, ErrNoReader.Error())
	b.daemon.Stop()
	find(b, token.SeverityError, ErrNoService.Error())
	b.daemon.Refuse(true)
	b.daemon.Start()
	find(b, token.SeverityError, ErrForbidden.Error())
	b.daemon.Refuse(false)
	b.reader.Plug()
	b.daemon.Inject(func(c pivtest.Call) pivtest.Code {
		if c.Command == pivtest.CommandConnect {
			return pivtest.SharingViolation
		}
		return pivtest.Success
	})
	find(b, token.SeverityError, ErrBusy.Error())
	b.daemon.Inject(nil)

	patient := b.open(t, Options{Timeout: 3 * time.Second})
	client, err := pcsc.Dial(t.Context(), b.daemon.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	card, err := client.Connect(t.Context(), b.reader.Name())
	if err == nil {
		err = card.Begin(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	b.token = patient
	find(b, token.SeverityError, ErrBusy.Error()) // a transaction that does not end
	old := newCard(t, pivtest.Config{Version: [3]byte{4, 3, 5}})
	find(old, token.SeverityWarning, "firmware does not tell")
}
