package hsm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mesh-agent/mesh-agent/hsm/hsmtest"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

func signOnce(ctx context.Context, k token.Signer, auth token.Auth) error {
	req := tokentest.DefaultSignRequest(k.Public().Algorithm, []byte("message"))
	req.Auth = auth
	signature, err := k.Sign(ctx, req)
	if err != nil {
		return err
	}
	if err := tokentest.Verify(k.Public(), req, signature); err != nil {
		return errors.Join(errWrongSignature, err)
	}
	return nil
}

var errWrongSignature = errors.New("wrong signature")

func wantSign(t *testing.T, what string, k token.Signer, want error) {
	t.Helper()
	if err := signOnce(t.Context(), k, token.Auth{}); !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// A module that says once that it lost device, token or session is found again, and
// nobody notices; one that goes on saying so is absent, and is found when it stops.
func TestLostDevice(t *testing.T) {
	t.Parallel()
	for name, code := range map[string]string{
		"DEVICE_REMOVED": "0x32", "TOKEN_NOT_PRESENT": "0xe0", "SESSION_HANDLE_INVALID": "0xb3",
		"SESSION_CLOSED": "0xb0", "GENERAL_ERROR": "0x5", "DEVICE_ERROR": "0x30", "CRYPTOKI_NOT_INITIALIZED": "0x190",
		"USER_NOT_LOGGED_IN": "0x101", "OBJECT_HANDLE_INVALID": "0x82", "KEY_HANDLE_INVALID": "0x60",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := hsmtest.NewFake(t)
			tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
			k := signKeyFor(t, tok, token.P256)
			for _, function := range []string{"SignInit", "Sign"} {
				fake.Do(t, function, "code "+code+" 1")
				wantSign(t, "once in "+function, k, nil)
			}
			fake.Do(t, "SignInit", "code "+code+" -1")
			if err := signOnce(t.Context(), k, token.Auth{}); codeOf(err) == ckrOK {
				t.Errorf("always: %v, want the module's code", err)
			}
			fake.Heal(t, "SignInit")
			wantSign(t, "after it was mended", k, nil)
			if state := tok.Info().State; state != token.StateReady {
				t.Errorf("state is %q, want ready", state)
			}
			if n := fake.Logins(t); n > 10 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

// A signature that does not verify is not released, nor a coordinate that does not fit.
func TestCorrupt(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	for _, a := range []token.Algorithm{token.P256, token.Ed25519, token.Ed448, token.RSA2048} {
		k := signKeyFor(t, tok, a)
		fake.Do(t, "Sign", "corrupt")
		wantSign(t, string(a), k, token.ErrFault)
		fake.Heal(t, "Sign")
	}
	for _, a := range []token.Algorithm{token.P256, token.P384, token.P521, token.X25519, token.X448} {
		k := openFor(t, tok, a, token.UseAgree).(token.PointAgreer)
		peer := openFor(t, tok, a, token.UseAgree).Public().Octets
		fake.Do(t, "GetAttributeValue", "corrupt")
		if p, err := k.AgreePoint(t.Context(), token.AgreeRequest{Peer: peer}); p != nil || !errors.Is(err, token.ErrFault) {
			t.Errorf("%s: %v, want ErrFault", a, err)
		}
		fake.Heal(t, "GetAttributeValue")
	}
}

// A segfault and a hang fail the operations that were in the module, with errors of their
// own, and no other token.
func TestCrashAndHang(t *testing.T) {
	t.Parallel()
	fake, other := hsmtest.NewFake(t), hsmtest.SoftHSM(t)
	m := newTestModule(t, fake.Setup, func(o *ModuleOptions) { o.Stderr = nil })
	k := signKeyFor(t, openUnlocked(t, m, fake.Setup), token.P256)
	untouched := newTestModule(t, other)
	k2 := signKeyFor(t, openUnlocked(t, untouched, other), token.P256)
	before := untouched.running().cmd.Process.Pid
	back := func(what string) {
		t.Helper()
		fake.Heal(t, "SignInit")
		l := hsmtest.StartLoad(t, 1, func(err error) bool { return errors.Is(err, token.ErrAbsent) },
			func(int) error { return signOnce(context.Background(), k, token.Auth{}) })
		l.AwaitRight("after "+what, 1)
		l.Stop()
	}

	fake.Do(t, "SignInit", "segfault")
	wantSign(t, "segfault", k, ErrCrashed)
	wantSign(t, "beside a segfault", k2, nil)
	back("a segfault")

	await, _ := fake.Hold(t, "SignInit")
	hangs := make(chan error)
	go func() { hangs <- signOnce(t.Context(), k, token.Auth{}) }()
	await()
	wantSign(t, "beside a call that hangs", k2, nil)
	m.running().timeOver()
	if err := <-hangs; !errors.Is(err, ErrHangs) {
		t.Errorf("hang: %v, want ErrHangs", err)
	}
	back("a hang")

	if untouched.running().cmd.Process.Pid != before {
		t.Error("the other module's process was replaced")
	}
}

// running returns the process of the module, which is there.
func (m *Module) running() *child {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.child
}

// timeOver has the clock find that the time of every call is over.
func (c *child) timeOver() {
	c.mu.Lock()
	for _, p := range c.pending {
		p.deadline = time.Now()
	}
	c.mu.Unlock()
	c.tick()
}

// babble is a helper that loads its module well and then answers every call with nonsense.
func babble(hex string) error {
	nonsense, err := strconv.Unquote(`"` + hex + `"`)
	if err != nil {
		return err
	}
	s := newServer(&socket{helperFD})
	number, _, err := s.next()
	if err == nil {
		err = s.reply(number, &reply{})
	}
	for err == nil {
		if number, _, err = s.next(); err == nil {
			_, err = s.conn.Write([]byte(strings.ReplaceAll(nonsense, "N", string(rune(number)))))
		}
	}
	return err
}

// A helper whose memory the module has spoilt is ended, whatever it says.
func TestNonsense(t *testing.T) {
	t.Parallel()
	for _, nonsense := range []string{
		`\x7f`, `\xff`, `\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff`, // no number of a call, or no number
		`N`, `N\x00\x00\x00\x00`, `N\x00\x7f`, `N\x00\x00\xff\xff\xff\xff\x0f`, // no reply
		`N\x00\x00\x00\x00\x01\x01\xff\xff\xff\xff\x0f`, // an object with very many attributes
		`N\x00\x00\x00\x00\x00\x00`,                     // more than a reply
	} {
		m := newTestModule(t, hsmtest.Setup{Path: "/nonexistent"}, func(o *ModuleOptions) {
			o.Helper, o.Stderr = []string{executable(t), madArgument, nonsense}, nil
		})
		c, err := m.ensure(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.call(t.Context(), c, &call{op: opSlots}); !errors.Is(err, ErrCrashed) || c.alive() {
			t.Errorf("%s: %v, want ErrCrashed", nonsense, err)
		}
	}
}

// A module that is not there is told of as such, also while the next start is put off.
func TestNoSuchModule(t *testing.T) {
	t.Parallel()
	m := newTestModule(t, hsmtest.NewFake(t).Setup, func(o *ModuleOptions) { o.Path += ".missing" })
	for range 10 { // of which the later ones are too early
		if _, err := m.ensure(t.Context()); !errors.Is(err, ErrNotLoaded) || !strings.Contains(err.Error(), ".missing: no such file") {
			t.Fatalf("load: %v, want ErrNotLoaded and the path", err)
		}
	}
	tok, err := Open(t.Context(), Options{Module: m, URI: URI{Token: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	found := tok.Diagnose(t.Context())
	if len(found) != 1 || !strings.Contains(found[0].Text, "no such file") || !strings.HasPrefix(found[0].Mend, "correct module in the configuration") {
		t.Errorf("found %+v", found)
	}
}

// A module that hangs when it is loaded is ended when its time is over, and does not hold up who opens its
// token, which is found once the module loads.
func TestHangAtStart(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	m := newTestModule(t, fake.Setup, func(o *ModuleOptions) { o.Timeout = 50 * time.Millisecond })
	fake.Do(t, "Initialize", "hang")
	if _, err := m.ensure(t.Context()); !errors.Is(err, ErrNotLoaded) || !errors.Is(err, ErrHangs) {
		t.Errorf("load: %v, want ErrNotLoaded and ErrHangs", err)
	}

	m.options.Timeout = time.Minute // which is enough to load it
	await, release := fake.Hold(t, "Initialize")
	tok, err := Open(t.Context(), Options{Module: m, URI: URI{Token: fake.Label}, Wait: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Close()
	if state := tok.Info().State; state != token.StateAbsent {
		t.Errorf("state is %q, want absent", state)
	}
	await()
	release()
	awaitState(t, tok, token.StateLocked)
	if err := tok.Unlock(t.Context(), []byte(hsmtest.PIN)); err != nil {
		t.Error(err)
	}
}

// The helper has the environment that the configuration gives and no other, and of the agent's files one socket.
func TestHelperHasNothing(t *testing.T) {
	t.Parallel()
	s := hsmtest.SoftHSM(t)
	m := newTestModule(t, s)
	if _, err := m.ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d/", m.running().cmd.Process.Pid)
	environment, err := os.ReadFile(proc + "environ")
	if want := strings.Join(s.Environment, "\x00") + "\x00"; err != nil || string(environment) != want {
		t.Errorf("its environment is %q, %v; want %q", environment, err, want)
	}
	if dir, err := os.Readlink(proc + "cwd"); err != nil || dir != "/" {
		t.Errorf("it runs in %q, %v", dir, err)
	}
	files, err := os.ReadDir(proc + "fd")
	if err != nil || len(files) < 4 {
		t.Fatalf("its files: %v, %v", files, err)
	}
	for _, f := range files {
		target, err := os.Readlink(proc + "fd/" + f.Name())
		number, _ := strconv.Atoi(f.Name())
		own := err != nil || strings.HasPrefix(target, "anon_inode:") || strings.HasPrefix(target, "/sys/") // of its runtime
		switch number {
		case 0, 1:
			own = target == os.DevNull
		case 2: // as ModuleOptions.Stderr says
			own = true
		case helperFD:
			own = strings.HasPrefix(target, "socket:")
		}
		if !own && !givenToTest(number) {
			t.Errorf("file descriptor %d is %s", number, target)
		}
	}
}

// givenToTest reports whether a file is one that this process was started with, and that what it starts gets, too: the
// agent does not have such.
func givenToTest(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

// The helper ends with the agent, also while its module hangs: nobody else would end it.
func TestHelperEndsWithAgent(t *testing.T) {
	t.Parallel()
	for _, function := range []string{"Initialize", "GetSlotList"} {
		fake := hsmtest.NewFake(t)
		await, _ := fake.Hold(t, function)
		c, theirs, err := newChild(ModuleOptions{Sessions: 1})
		if err != nil {
			t.Fatal(err)
		}
		helper := exec.CommandContext(t.Context(), executable(t), helperArgument)
		helper.Env, helper.ExtraFiles = append([]string{}, fake.Environment...), []*os.File{theirs}
		if err := helper.Start(); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		err = errors.Join(
			c.send(1, &call{op: opInit, data: [][]byte{[]byte(fake.Path), nil}, limit: 1, other: 1}),
			c.send(2, &call{op: opSlots}))
		if err != nil {
			t.Fatal(err)
		}
		await()
		c.conn.Close()
		if err := helper.Wait(); err != nil {
			t.Errorf("%s hangs: %v", function, err)
		}
	}
}

// A process that was being started when the last token was closed is ended, and a module can be used again after that.
func TestClosedWhileStarting(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	m := newTestModule(t, fake.Setup)
	await, release := fake.Hold(t, "Initialize")
	tok, err := Open(t.Context(), Options{Module: m, URI: URI{Token: fake.Label}, Wait: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	await()
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	m.mu.Lock()
	starting := m.starting
	m.mu.Unlock()
	release()
	<-starting
	if c := m.running(); c != nil {
		t.Errorf("process %d is left", c.cmd.Process.Pid)
	}
	fake.Heal(t, "Initialize")
	openUnlocked(t, m, fake.Setup)
}

// A module is finalized when its last token is closed, which does not wait for one that hangs.
func TestFinalized(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	m := newTestModule(t, fake.Setup)
	for n := range 2 {
		tok, other := openUnlocked(t, m, fake.Setup), openLocked(t, m, fake.Setup)
		wantSign(t, "before", signKeyFor(t, tok, token.P256), nil)
		for i, tok := range []*Token{tok, other} {
			if err := tok.Close(); err != nil {
				t.Error(err)
			}
			if got := fake.Finalized(t); got != n+i {
				t.Errorf("round %d: the module was finalized %d times, want %d", n, got, n+i)
			}
		}
	}
	tok := openLocked(t, m, fake.Setup)
	fake.Do(t, "Finalize", "hang")
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
}

// Close does not wait for a module that hangs with a PIN.
func TestCloseDuringLogin(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openLocked(t, newTestModule(t, fake.Setup, func(o *ModuleOptions) { o.Timeout = time.Hour }), fake.Setup)
	await, _ := fake.Hold(t, "Login")
	unlocked := make(chan error)
	go func() { unlocked <- tok.Unlock(t.Context(), []byte(hsmtest.PIN)) }()
	await()
	if err := tok.Close(); err != nil {
		t.Error(err)
	}
	if err := <-unlocked; err == nil {
		t.Error("a closed token was unlocked")
	}
}

// A module that has forgotten all its sessions, as one does whose token was taken out and put back, goes on with
// new ones, and nobody notices.
func TestForgottenSessions(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	k := signKeyFor(t, tok, token.P256)
	wantSign(t, "first", k, nil)
	before := fake.Opened(t)
	l := hsmtest.StartLoad(t, 8, func(error) bool { return false }, func(int) error { return signOnce(t.Context(), k, token.Auth{}) })
	for fake.Opened(t) < before+2 { // and there was one: three are idle afterwards
		l.AwaitRight("until there are sessions", 1)
	}
	l.Stop()
	for range 3 {
		fake.Do(t, "SignInit", "forget")
		for range 4 {
			wantSign(t, "after the sessions were forgotten", k, nil)
		}
	}
}

// A helper that ends again and again is put off a little longer each time, and never for long.
func TestBackOff(t *testing.T) {
	t.Parallel()
	var m Module
	ended := time.Now()
	m.backOff(ended)
	if !m.notBefore.IsZero() {
		t.Errorf("the first one waits until %v", m.notBefore)
	}
	for n, want := range []time.Duration{50, 100, 200, 400, 500, 500} {
		m.backOff(ended)
		if got := m.notBefore.Sub(ended); got != want*time.Millisecond {
			t.Errorf("start %d waits %v, want %v", n+2, got, want*time.Millisecond)
		}
	}
	m.failures = 1 << 40
	if m.backOff(ended); m.notBefore.Sub(ended) != longestBackOff {
		t.Errorf("after very many it waits %v", m.notBefore.Sub(ended))
	}
}

// Under a load of eight, the process is killed, and the module crashes: every request is
// answered, no signature is wrong, and the service is back. The same through an agent's
// socket is a test of cmd/mesh-agent.
func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	m := newTestModule(t, fake.Setup, func(o *ModuleOptions) { o.Stderr = nil })
	k := signKeyFor(t, openUnlocked(t, m, fake.Setup), token.P256)
	absent := func(err error) bool { return errors.Is(err, token.ErrAbsent) }
	l := hsmtest.StartLoad(t, 8, absent, func(int) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return signOnce(ctx, k, token.Auth{})
	})
	l.AwaitRight("first", 20)
	for range 5 {
		killed := m.running().cmd.Process.Pid
		syscall.Kill(killed, syscall.SIGKILL)
		l.AwaitRight("after it was killed", 20) // of which eight may have been done before
		if m.running().cmd.Process.Pid == killed {
			t.Error("signatures without a new process")
		}
	}
	for range 2 {
		fake.Do(t, "SignInit", "segfault")
		l.AwaitFailed("segfault")
		fake.Heal(t, "SignInit")
		l.AwaitRight("after a segfault", 20)
	}
	l.Stop()
	t.Logf("%d signatures, %d failed", l.Right, l.Failed)
}

// A token that allows one session, or two, works, and keeps its login.
func TestFewSessions(t *testing.T) {
	t.Parallel()
	for _, n := range []string{"1", "2", "3"} {
		fake := hsmtest.NewFake(t)
		fake.Do(t, "sessions", n)
		tok := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
		k := signKeyFor(t, tok, token.P256)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 5 {
					if err := signOnce(t.Context(), k, token.Auth{}); err != nil {
						t.Errorf("%s sessions: %v", n, err)
						return
					}
				}
			})
		}
		wg.Wait()
		fake.Do(t, "Sign", "code 0x90 1") // a session with an active operation is closed
		if err := signOnce(t.Context(), k, token.Auth{}); codeOf(err) != ckrOperationActive {
			t.Errorf("%s sessions: %v, want the code of the module", n, err)
		}
		wantSign(t, n+" sessions, after one was closed", k, nil)
	}
}

// The serial number binds: another token in the slot is noticed.
func TestReplaced(t *testing.T) {
	t.Parallel()
	fake := hsmtest.NewFake(t)
	m := newTestModule(t, fake.Setup)
	tok := openUnlocked(t, m, fake.Setup)
	k := signKeyFor(t, tok, token.P256)
	fake.Do(t, "serial", "another")
	fake.Do(t, "SignInit", "code 0x32 1")
	wantSign(t, "another serial", k, token.ErrReplaced)
	if state := tok.Info().State; state != token.StateReplaced {
		t.Errorf("state is %q, want replaced", state)
	}
	fake.Heal(t, "serial")
	wantSign(t, "the old one again", k, nil)

	fake.Do(t, "serial", "another")
	fresh := openUnlocked(t, newTestModule(t, fake.Setup), fake.Setup)
	req := token.OpenRequest{Handle: k.(*signKey).handle.encode(), Public: k.Public(), Use: token.UseSign}
	if _, err := fresh.Open(t.Context(), req); !errors.Is(err, token.ErrReplaced) {
		t.Errorf("open a key of another token: %v, want ErrReplaced", err)
	}
	if err := fresh.Delete(t.Context(), req.Handle); !errors.Is(err, token.ErrReplaced) {
		t.Errorf("delete a key of another token: %v, want ErrReplaced", err)
	}
}
