package prompt_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mesh-agent/mesh-agent/internal/prompt"
	"github.com/mesh-agent/mesh-agent/internal/prompt/prompttest"
)

func TestMain(m *testing.M) {
	prompttest.Main()
	syscall.Umask(0o022) // whatever it was: nobody else may write to a program's folder
	os.Exit(m.Run())
}

// environment has what a program gets and what it must not get.
func environment(name string) string {
	return map[string]string{"DISPLAY": ":7", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "CREDENTIALS_DIRECTORY": "/secret", "LD_PRELOAD": "/evil.so"}[name]
}

func fake(t *testing.T, k prompt.Kind, limit time.Duration) (*prompt.Prompter, *prompttest.Programs) {
	t.Helper()
	programs := prompttest.New(t)
	p := prompt.New(prompt.Options{Kind: k, Program: programs.Path, Getenv: environment, Limit: limit})
	t.Cleanup(p.Close)
	return p, programs
}

// answer is what PIN returned.
type answer struct {
	pin string
	err error
}

// asks asks for a PIN meanwhile.
func asks(ctx context.Context, p *prompt.Prompter, q prompt.Question) <-chan answer {
	done := make(chan answer, 1)
	go func() {
		pin, err := p.PIN(ctx, q)
		done <- answer{string(pin), err}
	}()
	return done
}

func confirms(ctx context.Context, p *prompt.Prompter, q prompt.Question) <-chan error {
	done := make(chan error, 1)
	go func() { done <- p.Confirm(ctx, q) }()
	return done
}

var question = prompt.Question{Title: "mesh-agent", Text: "first line\n100% of it", Prompt: "PIN", Error: "wrong"}

func TestPinentryPIN(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Pinentry, time.Minute)
	for _, test := range []struct{ reply, want string }{
		{"D 123456\nOK\n", "123456"},
		{"S PASSWORD_FROM_CACHE\n# a comment\n\nD 12\r\nD %33%34\r\nOK done\r\n", "1234"},
		{"D a%25b%0Ac\nOK\n", "a%b\nc"},
		{"D " + strings.Repeat("9", 256) + "\nOK\n", strings.Repeat("9", 256)},
	} {
		done := asks(t.Context(), p, question)
		g := programs.Next().Until("GETPIN")
		g.Write(test.reply)
		if got := <-done; got.err != nil || got.pin != test.want {
			t.Errorf("%q: %q, %v", test.reply, got.pin, got.err)
		}
		want := []string{"SETTITLE mesh-agent", "SETDESC first line%0A100%25 of it", "SETPROMPT PIN", "SETERROR wrong", "SETTIMEOUT 60"}
		if !slices.Equal(g.Told, want) {
			t.Errorf("told %q", g.Told)
		}
		if len(g.Args) != 1 || !slices.Equal(g.Env, []string{"DISPLAY=:7", "LANG=C.UTF-8", "PATH=/usr/bin:/bin"}) {
			t.Errorf("arguments %q, environment %q", g.Args, g.Env)
		}
		g.Gone()
	}
}

// TestPinentryRefusals says no in every way, and does wrong in every way.
func TestPinentryRefusals(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Pinentry, time.Minute)
	giant := strings.Repeat("x", 100_000)
	for _, test := range []struct {
		name, reply string
		want        error
		text        string
	}{
		{"cancelled", "ERR 83886179 Operation cancelled <Pinentry>\n", prompt.ErrRefused, ""},
		{"closed", "ERR 83886278 Operation fully cancelled\n", prompt.ErrRefused, ""},
		{"not confirmed", "ERR 83886194 Not confirmed\n", prompt.ErrRefused, ""},
		{"empty", "OK\n", prompt.ErrRefused, "empty"},
		{"its own time limit", "ERR 83886142 Timeout <Pinentry>\n", prompt.ErrNoAnswer, ""},
		{"no terminal", "ERR 83918950 Inappropriate ioctl\x1b[2J for device <Pinentry>\n", nil, "Inappropriate ioctl?[2J for device"},
		{"no number", "ERR cancelled\n", nil, "breaks the pinentry protocol: ERR without a number"},
		{"garbage", "\x00\xff\x01garbage\n", nil, "neither OK nor ERR"},
		{"an inquiry", "INQUIRE QUALITY x\n", nil, "neither OK nor ERR"},
		{"giant line", giant + "\n", nil, "a line of more than 1000 octets"},
		{"giant line without end", giant, nil, "a line of more than 1000 octets"},
		{"giant answer", strings.Repeat("D "+strings.Repeat("y", 200)+"\n", 2) + "OK\n", nil, "an answer of more than 256 octets"},
		{"many lines", strings.Repeat("S still here\n", 300), nil, "more than 200 lines"},
		{"bad escape", "D 12%4\nOK\n", nil, "% without two digits"},
		{"bad digits", "D 12%zz\nOK\n", nil, "% without two digits"},
	} {
		done := asks(t.Context(), p, question)
		g := programs.Next().Until("GETPIN")
		g.Write(test.reply)
		got := <-done
		var broken *prompt.ProgramError
		switch {
		case got.err == nil || got.pin != "":
			t.Errorf("%s: %q, %v", test.name, got.pin, got.err)
		case test.want != nil && !errors.Is(got.err, test.want), test.want == nil && !errors.As(got.err, &broken):
			t.Errorf("%s: %v", test.name, got.err)
		case !strings.Contains(got.err.Error(), test.text) || strings.Contains(got.err.Error(), "yyy") || strings.Contains(got.err.Error(), "12%"):
			t.Errorf("%s: %v", test.name, got.err)
		case broken != nil && broken.Mend == "":
			t.Errorf("%s: no advice", test.name)
		}
		g.Gone()
	}
}

// TestPinentryEnds has the program end, or never end.
func TestPinentryEnds(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Pinentry, time.Minute)
	done := asks(t.Context(), p, question)
	g := programs.Next().Until("GETPIN")
	g.Complain("first\nGtk: cannot open \x1bdisplay\n")
	g.Exit(3)
	if got := <-done; got.err == nil || !strings.Contains(got.err.Error(), "exit status 3") || !strings.Contains(got.err.Error(), "it says: Gtk: cannot open ?display") {
		t.Errorf("ended: %v", got.err)
	}

	done = asks(t.Context(), p, question)
	g = programs.Next()
	g.Exit(0)
	if got := <-done; got.err == nil || !strings.Contains(got.err.Error(), programs.Path) {
		t.Errorf("ended before it greeted: %v", got.err)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	done = asks(ctx, p, question)
	g = programs.Next().Until("GETPIN")
	g.Hang()
	hungUp := errors.New("hung up")
	cancel(hungUp)
	if got := <-done; got.err != hungUp {
		t.Errorf("cancelled: %v", got.err)
	}
	g.Gone()
	if got := <-asks(ctx, p, question); got.err != hungUp {
		t.Errorf("cancelled before: %v", got.err)
	}
	programs.None()
}

func TestNoAnswer(t *testing.T) {
	t.Parallel()
	for _, k := range []prompt.Kind{prompt.Pinentry, prompt.Askpass} {
		p, _ := fake(t, k, 50*time.Millisecond)
		if got := <-asks(t.Context(), p, question); got.err != prompt.ErrNoAnswer {
			t.Errorf("%s: %v", k, got.err)
		}
	}
}

func TestPinentryConfirm(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Pinentry, time.Minute)
	for reply, want := range map[string]error{"OK\n": nil, "ERR 83886194 no\n": prompt.ErrRefused} {
		done := confirms(t.Context(), p, question)
		programs.Next().Until("CONFIRM").Write(reply)
		if err := <-done; !errors.Is(err, want) {
			t.Errorf("%q: %v", reply, err)
		}
	}
}

// TestQueue has one question at a time, and not too many.
func TestQueue(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Pinentry, time.Minute)
	first := asks(t.Context(), p, question)
	g := programs.Next().Until("GETPIN")
	ctx, cancel := context.WithCancel(t.Context())
	var waiting []<-chan answer
	refused := 0
	for range 40 {
		waiting = append(waiting, asks(ctx, p, question))
	}
	results := make(chan answer)
	for _, w := range waiting {
		go func() { results <- <-w }()
	}
	for range 24 {
		if got := <-results; got.err == prompt.ErrBusy {
			refused++
		}
	}
	if refused != 24 {
		t.Errorf("%d refused, want 24", refused)
	}
	programs.None()
	cancel()
	for range 16 {
		if got := <-results; !errors.Is(got.err, context.Canceled) {
			t.Errorf("a question that waited: %v", got.err)
		}
	}
	second := asks(t.Context(), p, question)
	g.Write("D 1\nOK\n")
	if got := <-first; got.err != nil || got.pin != "1" {
		t.Errorf("first: %q, %v", got.pin, got.err)
	}
	programs.Next().Until("GETPIN").Write("D 2\nOK\n")
	if got := <-second; got.err != nil || got.pin != "2" {
		t.Errorf("second: %q, %v", got.pin, got.err)
	}
}

// TestClose ends what is asked, what waits, and what comes later.
func TestClose(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Pinentry, time.Minute)
	first := asks(t.Context(), p, question)
	g := programs.Next().Until("GETPIN")
	second := confirms(t.Context(), p, question)
	p.Close()
	if got := <-first; !errors.Is(got.err, context.Canceled) {
		t.Errorf("asked: %v", got.err)
	}
	g.Gone()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("waited: %v", err)
	}
	if got := <-asks(t.Context(), p, question); !errors.Is(got.err, context.Canceled) {
		t.Errorf("asked later: %v", got.err)
	}
	programs.None()
}

// TestCloseAmongNotices ends a Prompter while tokens begin to wait for touches: a notice that began while
// Close waits would panic in sync.WaitGroup.
func TestCloseAmongNotices(t *testing.T) {
	t.Parallel()
	for range 100 {
		p := prompt.New(prompt.Options{Program: filepath.Join(t.TempDir(), "none"), Getenv: environment})
		var telling sync.WaitGroup
		begun := make(chan bool, 4)
		for range 4 {
			telling.Go(func() {
				p.Notice(t.Context(), question)
				begun <- true
				for range 50 {
					p.Notice(t.Context(), question)
				}
			})
		}
		<-begun
		p.Close()
		telling.Wait()
	}
}

// TestNotice shows a text, takes it down, and lets questions go first.
func TestNotice(t *testing.T) {
	t.Parallel()
	for _, k := range []prompt.Kind{prompt.Pinentry, prompt.Askpass} {
		p, programs := fake(t, k, time.Minute)
		next := func(command string) *prompttest.Program {
			g := programs.Next()
			if k == prompt.Pinentry {
				g.Until(command)
			} else if env := "SSH_ASKPASS_PROMPT=none"; slices.Contains(g.Env, env) != (command == "MESSAGE") {
				t.Errorf("environment %q", g.Env)
			}
			return g
		}
		down := p.Notice(t.Context(), question)
		shown := next("MESSAGE")
		done := asks(t.Context(), p, question)
		shown.Gone()
		g := next("GETPIN")
		if k == prompt.Pinentry {
			g.Write("D 5\nOK\n")
		} else {
			g.Write("5\n")
			g.Exit(0)
		}
		if got := <-done; got.err != nil || got.pin != "5" {
			t.Errorf("%s: %q, %v", k, got.pin, got.err)
		}
		shown = next("MESSAGE")
		down()
		shown.Gone()

		ctx, hangUp := context.WithCancel(t.Context())
		p.Notice(ctx, question)
		shown = next("MESSAGE")
		hangUp()
		shown.Gone()

		down = p.Notice(t.Context(), question) // put away by its reader
		shown = next("MESSAGE")
		shown.Write("OK\n")
		shown.Exit(0)
		shown.Gone()
		again := asks(t.Context(), p, question)
		next("GETPIN").Exit(1)
		if got := <-again; got.err == nil {
			t.Errorf("%s: answered", k)
		}
		down()
		p.Close()
		programs.None()
		p.Notice(t.Context(), question)
		p.Close()
		programs.None()
	}
}

func TestAskpass(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Askpass, time.Minute)
	for _, test := range []struct {
		name, out string
		exit      int
		want      string
		wantErr   error
	}{
		{"PIN", "123456\n", 0, "123456", nil},
		{"Windows line", "123456\r\nmore\n", 0, "123456", nil},
		{"without end", "abc", 0, "abc", nil},
		{"empty", "\n", 0, "", prompt.ErrRefused},
		{"cancelled", "", 1, "", prompt.ErrRefused},
		{"cancelled with words", "123456\n", 255, "", prompt.ErrRefused},
		{"long", strings.Repeat("y", 257) + "\n", 0, "", nil},
		{"giant", strings.Repeat("y", 1000), 0, "", nil},
	} {
		done := asks(t.Context(), p, question)
		g := programs.Next()
		g.Write(test.out)
		g.Exit(test.exit)
		got := <-done
		bad := test.want == "" && (got.err == nil || test.wantErr != nil && !errors.Is(got.err, test.wantErr) || strings.Contains(got.err.Error(), "yyy"))
		if bad || test.want != "" && got.err != nil || got.pin != test.want {
			t.Errorf("%s: %q, %v", test.name, got.pin, got.err)
		}
		if want := "wrong\nfirst line\n100% of it\nPIN:"; len(g.Args) != 2 || g.Args[1] != want {
			t.Errorf("arguments %q", g.Args)
		}
	}
	done := asks(t.Context(), p, question)
	g := programs.Next()
	g.Complain("cannot open display\n")
	g.Exit(1)
	if got := <-done; !errors.Is(got.err, prompt.ErrRefused) || !strings.Contains(got.err.Error(), "cannot open display") {
		t.Errorf("failed: %v", got.err)
	}
}

func TestAskpassConfirm(t *testing.T) {
	t.Parallel()
	p, programs := fake(t, prompt.Askpass, time.Minute)
	for _, test := range []struct {
		out  string
		exit int
		want error
	}{{"", 0, nil}, {"yes\n", 0, nil}, {"YES", 0, nil}, {"no\n", 0, prompt.ErrRefused}, {"yes\n", 1, prompt.ErrRefused}, {"y\n", 0, prompt.ErrRefused}} {
		done := confirms(t.Context(), p, question)
		g := programs.Next()
		if !slices.Contains(g.Env, "SSH_ASKPASS_PROMPT=confirm") {
			t.Errorf("environment %q", g.Env)
		}
		g.Write(test.out)
		g.Exit(test.exit)
		if err := <-done; !errors.Is(err, test.want) {
			t.Errorf("%q, %d: %v", test.out, test.exit, err)
		}
	}
}

// TestProgram refuses programs that somebody else may have made.
func TestProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, []byte("#!/bin/sh\necho OK\nwhile read -r line; do [ \"$line\" != 'GETINFO flavor' ] || echo D curses; echo OK; done\n"), 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	open := filepath.Join(dir, "open")
	link, through, hop := filepath.Join(dir, "link"), filepath.Join(dir, "through"), filepath.Join(open, "hop")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Symlink(file("open/linked", 0o755), link),
		os.Symlink(hop, through), os.Symlink("../curses", hop)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, path, text string }{
		{"missing", filepath.Join(dir, "none"), "it does not exist"},
		{"folder", dir, "it is not a file"},
		{"writable by others", file("world", 0o757), "others may write to it (mode 0757)"},
		{"writable by the group", file("group", 0o775), "others may write to it (mode 0775)"},
		{"in a folder of everybody", file("open/in", 0o755), "others may put another in its place"},
		{"a link into one", link, "others may put another in its place"},
		{"a link by way of one", through, "others may put another in its place"},
		{"not executable", file("plain", 0o644), "may not run it"},
		{"asks on no terminal", file("curses", 0o755), "the agent knows of none"},
		{"no program at all", "/dev/null", "it is not a file"},
	} {
		p := prompt.New(prompt.Options{Kind: prompt.Pinentry, Program: test.path, Getenv: environment})
		about, err := p.Test(t.Context())
		var broken *prompt.ProgramError
		if !errors.As(err, &broken) || !strings.Contains(err.Error(), test.path) || !strings.Contains(err.Error(), test.text) || broken.Mend == "" {
			t.Errorf("%s: %q, %v", test.name, about, err)
		}
		if test.name == "asks on no terminal" {
			continue
		}
		if _, err := p.PIN(t.Context(), question); !errors.As(err, &broken) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: asked: %v", test.name, err)
		}
	}
	p := prompt.New(prompt.Options{Kind: prompt.Askpass, Program: file("askpass", 0o755), Getenv: environment})
	if about, err := p.Test(t.Context()); err != nil || !strings.Contains(about, "askpass") {
		t.Errorf("askpass: %q, %v", about, err)
	}
}

func TestTestAsksFlavor(t *testing.T) {
	t.Parallel()
	programs := prompttest.New(t)
	terminal := ""
	p := prompt.New(prompt.Options{Program: programs.Path, Getenv: func(name string) string { return map[string]string{"GPG_TTY": terminal}[name] }})
	for reply, want := range map[string]string{"D gnome3\nOK\n": "gnome3", "ERR 280 unknown\n": "a pinentry", "D gtk2:curses\nOK\n": "", "D tty\nOK\n": ""} {
		done := make(chan answer, 1)
		go func() {
			about, err := p.Test(t.Context())
			done <- answer{about, err}
		}()
		programs.Next().Until("GETINFO flavor").Write(reply)
		got := <-done
		if (got.err == nil) != (want != "") || !strings.Contains(got.pin, want) {
			t.Errorf("%q: %q, %v", reply, got.pin, got.err)
		}
	}
	for name, there := range map[string]bool{prompttest.NewTerminal(t).Name: true, "/dev/null": false, "/dev/pts/none": false} {
		terminal = name
		done := make(chan answer, 1)
		go func() {
			about, err := p.Test(t.Context())
			done <- answer{about, err}
		}()
		programs.Next().Until("GETINFO flavor").Write("D curses\nOK\n")
		if got := <-done; (got.err == nil) != there {
			t.Errorf("%s: %q, %v", name, got.pin, got.err)
		}
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain name ü 字":         "plain name ü 字",
		"a\nb\r\x1b[1m\x00":      "a?b??[1m?",
		"<b>&amp;":               "?b??amp;",
		"a\u202eb\u2028c":        "a?b?c",
		"\xff\ufffd":             "?\ufffd",
		strings.Repeat("x", 100): strings.Repeat("x", 80) + "...",
	} {
		if got := prompt.Line(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestReason(t *testing.T) {
	t.Parallel()
	if got := prompt.ReasonOf(t.Context()); got != "" {
		t.Errorf("reason %q of nobody", got)
	}
	ctx := prompt.WithReason(t.Context(), func() string { return "because" })
	if got := prompt.ReasonOf(ctx); got != "because" {
		t.Errorf("reason %q", got)
	}
}
