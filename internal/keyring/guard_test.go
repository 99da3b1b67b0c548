package keyring

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mesh-agent/mesh-agent/internal/store"
	"github.com/mesh-agent/mesh-agent/token"
	"github.com/mesh-agent/mesh-agent/token/tokentest"
)

func newGuardedRing(t *testing.T, tpm *tokentest.SealingFake) *fixture {
	t.Helper()
	f := &fixture{dir: t.TempDir(), software: software, rollbackGuard: "tpm"}
	f.start(t, tpm)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// copyOf copies the folder of the ring; putBack replaces it by such a copy.
func (f *fixture) copyOf(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func (f *fixture) putBack(t *testing.T, from string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(f.dir, name)); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(from, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && info.IsDir() {
			err = os.CopyFS(filepath.Join(f.dir, name), os.DirFS(filepath.Join(from, name)))
			err = errors.Join(err, os.Chmod(filepath.Join(f.dir, name), 0o700))
		} else if err == nil {
			var data []byte
			if data, err = os.ReadFile(filepath.Join(from, name)); err == nil {
				err = os.WriteFile(filepath.Join(f.dir, name), data, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

const generationFile = "generation.json"

// TestRollback puts back what was before, in whole and in parts.
func TestRollback(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		change func(t *testing.T, f *fixture, tpm *tokentest.SealingFake, before string)
		found  string
	}{
		"whole folder": {func(t *testing.T, f *fixture, _ *tokentest.SealingFake, before string) {
			f.putBack(t, before, "keys", generationFile)
		}, "they are of generation 42, the last one is 44"},
		"records alone": {func(t *testing.T, f *fixture, _ *tokentest.SealingFake, before string) {
			f.putBack(t, before, "keys")
		}, "they are not those of generation 44"},
		"records, and no generation": {func(t *testing.T, f *fixture, _ *tokentest.SealingFake, before string) {
			f.putBack(t, before, "keys")
			os.Remove(filepath.Join(f.dir, generationFile))
		}, "the generation file is missing"},
		"records, and the number edited": {func(t *testing.T, f *fixture, _ *tokentest.SealingFake, before string) {
			f.putBack(t, before, "keys", generationFile)
			name := filepath.Join(f.dir, generationFile)
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(strings.Replace(string(data), "42", "44", 1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "somebody else wrote the generation file"},
		"damaged file": {func(t *testing.T, f *fixture, _ *tokentest.SealingFake, _ string) {
			os.WriteFile(filepath.Join(f.dir, generationFile), []byte("{}"), 0o600)
		}, "read generation"},
		"counter gone": {func(t *testing.T, _ *fixture, tpm *tokentest.SealingFake, _ string) { tpm.TurnBack(0) }, "lost its counter"},
		"counter low":  {func(t *testing.T, _ *fixture, tpm *tokentest.SealingFake, _ string) { tpm.TurnBack(7) }, "counted to 7 only"},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			tpm := sealingTPM()
			f := newGuardedRing(t, tpm)
			e := f.generate(t, "tpm", token.P256, token.UseSign)
			before := f.copyOf(t)
			f.generate(t, "tpm", token.P256, token.UseSign)
			f.generate(t, "tpm", token.P256, token.UseSign)
			tpm = tpm.Reopen()
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			c.change(t, f, tpm, before)
			f.start(t, tpm)
			e = f.find(t, e.Udf)
			err := f.CheckRollback(ctx, nil)
			if !errors.Is(err, ErrRollback) || !strings.Contains(err.Error(), c.found) {
				t.Errorf("CheckRollback: %v, want %q", err, c.found)
			}
			wantErr(t, "RolledBack", f.RolledBack(), ErrRollback)
			wantErr(t, "use", use(t, e, nil), ErrRollback)
			_, err = f.Delete(ctx, nil, e.Udf)
			wantErr(t, "Delete", err, ErrRollback)
			_, err = f.Generate(ctx, nil, GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign})
			wantErr(t, "Generate", err, ErrRollback)

			if err := f.AcceptRollback(ctx, nil); err != nil {
				t.Fatal(err)
			}
			if err := use(t, e, nil); err != nil {
				t.Errorf("use after accepting: %v", err)
			}
			f.generate(t, "tpm", token.P256, token.UseSign)
			f.restart(t, tpm.Reopen())
			if err := f.CheckRollback(ctx, nil); err != nil {
				t.Errorf("after accepting and a restart: %v", err)
			}
		})
	}
}

// TestNoFalseAlarm interrupts changes everywhere and starts again.
func TestNoFalseAlarm(t *testing.T) {
	t.Parallel()
	lost := errors.New("lost")
	for what, script := range map[string]func(tpm *tokentest.SealingFake){
		"nothing":            func(*tokentest.SealingFake) {},
		"before the counter": func(tpm *tokentest.SealingFake) { tpm.FailBefore(tokentest.OpIncrement, lost) },
		"after the counter":  func(tpm *tokentest.SealingFake) { tpm.FailAfter(tokentest.OpIncrement, lost) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			tpm := sealingTPM()
			f := newGuardedRing(t, tpm)
			e := f.generate(t, "tpm", token.P256, token.UseSign)
			spec := GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign}
			script(tpm)
			if _, err := f.Generate(ctx, nil, spec); err != nil && !errors.Is(err, lost) {
				t.Fatal(err)
			}
			keys := len(f.Snapshot().Entries())
			if what != "nothing" && keys != 1 {
				t.Errorf("%d keys", keys)
			}
			if err := use(t, e, nil); err != nil { // without a restart
				t.Error(err)
			}
			script(tpm)
			f.Delete(ctx, nil, e.Udf)
			tpm = tpm.Reopen()
			f.restart(t, tpm)
			if err := f.CheckRollback(ctx, nil); err != nil {
				t.Error(err)
			}
			if _, err := f.Generate(ctx, nil, spec); err != nil {
				t.Error(err)
			}
			f.restart(t, tpm.Reopen())
			if err := f.CheckRollback(ctx, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCrash has the agent die after the records were written and before the generation file
// says that they are the only ones, or before the records were written.
func TestCrash(t *testing.T) {
	t.Parallel()
	for what, written := range map[string]bool{"before the records": false, "after the records": true} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			tpm := sealingTPM()
			f := newGuardedRing(t, tpm)
			e := f.generate(t, "tpm", token.P256, token.UseSign)
			var between string // when it counts, which is the last that it does with the token
			gate := func(context.Context, string) (func(), error) {
				between = f.copyOf(t)
				return func() {}, nil
			}
			if _, err := f.Generate(ctx, gate, GenerateSpec{Token: "tpm", Algorithm: token.P256, Use: token.UseSign}); err != nil {
				t.Fatal(err)
			}
			tpm = tpm.Reopen()
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			want := 2
			f.putBack(t, between, generationFile)
			if !written {
				want = 1
				f.putBack(t, between, "keys")
			}
			f.start(t, tpm)
			if err := f.CheckRollback(ctx, nil); err != nil {
				t.Error(err)
			}
			if keys := len(f.Snapshot().Entries()); keys != want {
				t.Errorf("%d keys, want %d", keys, want)
			}
			if err := use(t, f.find(t, e.Udf), nil); err != nil {
				t.Error(err)
			}
			f.restart(t, tpm.Reopen())
			if err := f.CheckRollback(ctx, nil); err != nil {
				t.Errorf("after another start: %v", err)
			}
		})
	}
}

// TestCounterAbsent leaves the question open while the token is away.
func TestCounterAbsent(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tpm := sealingTPM()
	f := newGuardedRing(t, tpm)
	soft := openSoft(t, t.TempDir())
	f.restart(t, tpm.Reopen(), soft)
	e := f.generate(t, "soft", token.Ed25519, token.UseSign)
	tpm = tpm.Reopen()
	tpm.SetState(token.StateAbsent)
	soft = openSoft(t, t.TempDir())
	f.restart(t, tpm, soft)
	wantErr(t, "CheckRollback", f.CheckRollback(ctx, nil), token.ErrAbsent)
	wantErr(t, "use", use(t, f.find(t, e.Udf), nil), token.ErrAbsent)
	tpm.SetState(token.StateReady)
	if err := f.CheckRollback(ctx, nil); err != nil {
		t.Errorf("CheckRollback when the token is back: %v", err)
	}
	calls := tpm.Calls(tokentest.OpCounter)
	use(t, f.find(t, e.Udf), nil)
	if tpm.Calls(tokentest.OpCounter) != calls {
		t.Error("a use reads the counter again")
	}
}

func TestGuardConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func(guard string, tokens ...token.Token) error {
		st, err := store.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		k, err := OpenConfig(Config{Store: st, Tokens: tokens, RollbackGuard: guard})
		if err != nil {
			if err := st.Close(); err != nil {
				t.Error(err)
			}
			return err
		}
		if guard != "" {
			if err := k.CheckRollback(t.Context(), nil); err != nil {
				t.Error(err)
			}
		} else {
			wantErr(t, "AcceptRollback without guard", k.AcceptRollback(t.Context(), nil), token.ErrUnsupported)
		}
		return k.Close()
	}
	tpm := sealingTPM()
	if err := open("", tpm); err != nil {
		t.Error(err)
	}
	wantErr(t, "no such token", open("none", tpm.Reopen()), token.ErrNotFound)
	wantErr(t, "token that does not count", open("plain", tokentest.NewFake(tokentest.FakeOptions{Name: "plain"})), token.ErrUnsupported)
	if err := open("tpm", tpm.Reopen()); err != nil {
		t.Error(err)
	}
	if err := open("", tpm.Reopen()); err == nil || !strings.Contains(err.Error(), "guarded") {
		t.Errorf("a guarded store without guard: %v", err)
	}
}

// files is a companion of one file that is not there at first.
type files struct{ data []byte }

func (c *files) Digest() ([]byte, error) { return digestOf(c.data), nil }

func digestOf(data []byte) []byte {
	if data == nil {
		return nil
	}
	d := sha256.Sum256(data)
	return d[:]
}

// TestCompanion puts back an older companion, with and without changes of keys between, and has
// changes of it fail.
func TestCompanion(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	tpm, companion := sealingTPM(), &files{}
	f := &fixture{dir: t.TempDir(), software: software, rollbackGuard: "tpm", companion: companion}
	start := func() {
		t.Helper()
		tpm = tpm.Reopen()
		f.start(t, tpm)
	}
	stop := func() {
		t.Helper()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write := func(text string, do func() error) error {
		return f.ChangeCompanion(ctx, nil, func() ([]byte, error) { return digestOf([]byte(text)), nil }, do)
	}
	put := func(text string) {
		t.Helper()
		if err := write(text, func() error { companion.data = []byte(text); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	start()
	f.generate(t, "tpm", token.P256, token.UseSign)
	put("one")
	put("two")
	f.generate(t, "tpm", token.P256, token.UseSign)
	broken := errors.New("disk full")
	if err := write("three", func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("failed change: %v", err)
	}
	stop()
	start()
	if err := f.CheckRollback(ctx, nil); err != nil {
		t.Errorf("after a failed change: %v", err)
	}
	for _, old := range []string{"one", "three", ""} {
		stop()
		if companion.data = nil; old != "" {
			companion.data = []byte(old)
		}
		start()
		wantErr(t, "companion "+old, f.CheckRollback(ctx, nil), ErrRollback)
		wantErr(t, "change", write("four", func() error { t.Error("changed"); return nil }), ErrRollback)
	}
	stop()
	companion.data = []byte("two")
	start()
	if err := f.CheckRollback(ctx, nil); err != nil {
		t.Errorf("the last companion: %v", err)
	}
	stop()
}
