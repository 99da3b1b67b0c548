package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func openFolder(t *testing.T) *Folder {
	t.Helper()
	f, err := OpenFolder(filepath.Join(t.TempDir(), "state", "deep"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		names, err := f.list()
		if err != nil || slices.ContainsFunc(names, isTemp) {
			t.Errorf("folder holds %q, %v; no temporary file may be left", names, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestFolder(t *testing.T) {
	t.Parallel()
	f := openFolder(t)
	if _, err := f.Read("a", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of a missing file: %v", err)
	}
	if err := f.Remove("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Remove of a missing file: %v", err)
	}
	for _, data := range []string{"one", "", "another one"} {
		if err := f.Write("a", []byte(data)); err != nil {
			t.Fatal(err)
		}
		wantFile(t, f, "a", data)
	}
	if err := f.Create("a", []byte("no")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Create over a file: %v", err)
	}
	wantFile(t, f, "a", "another one")
	if err := f.Create("b", []byte("new")); err != nil {
		t.Fatal(err)
	}
	wantFile(t, f, "b", "new")
	info, err := f.Stat("b")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of a file: %v, %v; want 0600", info.Mode(), err)
	}
	if names, err := f.Names(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("Names: %q, %v", names, err)
	}
	if err := f.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if names, err := f.Names(); err != nil || !slices.Equal(names, []string{"b"}) {
		t.Errorf("Names: %q, %v", names, err)
	}
}

func wantFile(t *testing.T, f *Folder, name, want string) {
	t.Helper()
	got, err := f.Read(name, len(want))
	if err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", name, got, err, want)
	}
}

func TestReadLimit(t *testing.T) {
	t.Parallel()
	f := openFolder(t)
	if err := f.Write("a", bytes.Repeat([]byte{1}, 11)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read("a", 10); err == nil {
		t.Error("a file beyond the limit was read")
	}
}

func TestBadNames(t *testing.T) {
	t.Parallel()
	f := openFolder(t)
	for _, name := range []string{"", ".", "..", "../a", "a/b", "/etc/passwd", ".tmp-a", ".hidden", "a\x00", "a b", "ä", "a\n", strings.Repeat("a", maxName+1)} {
		_, readErr := f.Read(name, 10)
		_, statErr := f.Stat(name)
		for what, err := range map[string]error{
			"Read": readErr, "Stat": statErr, "Write": f.Write(name, nil), "Create": f.Create(name, nil), "Remove": f.Remove(name),
		} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s(%q): %v, want fs.ErrInvalid", what, name, err)
			}
		}
	}
}

func TestNotRegular(t *testing.T) {
	t.Parallel()
	f := openFolder(t)
	if err := os.Symlink("/etc/passwd", filepath.Join(f.Path(), "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(f.Path(), "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(f.Path(), "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"link", "folder", "fifo"} {
		if data, err := f.Read(name, 1<<20); err == nil {
			t.Errorf("Read of a %s: %d octets and no error", name, len(data))
		}
	}
	if err := f.Write("link", []byte("new")); err != nil {
		t.Fatal(err)
	}
	wantFile(t, f, "link", "new") // replaced, not followed
}

func TestSharedFolder(t *testing.T) {
	t.Parallel()
	for _, mode := range []fs.FileMode{0o777, 0o770, 0o720, 0o702} {
		dir := filepath.Join(t.TempDir(), "d")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if f, err := OpenFolder(dir); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("OpenFolder of mode %04o: %v, %v; want fs.ErrPermission", mode, f, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, path := range []string{dir, filepath.Dir(dir)} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want mode 0700", path, info.Mode(), err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFolder(file); err == nil {
		t.Error("OpenFolder of a file succeeded")
	}
}

func TestRemoveLeftovers(t *testing.T) {
	t.Parallel()
	f := openFolder(t)
	for _, name := range []string{".tmp-AAAA", ".tmp-", "kept"} {
		if err := os.WriteFile(filepath.Join(f.Path(), name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := f.Names(); err != nil || !slices.Equal(names, []string{"kept"}) {
		t.Errorf("Names: %q, %v", names, err)
	}
	if err := f.RemoveLeftovers(); err != nil {
		t.Fatal(err)
	}
	wantFile(t, f, "kept", "x")
}

var errFault = errors.New("injected fault")

// simDisk is a folder whose power can be cut. Contents become durable by Sync and
// names by syncFolder, and by nothing else.
type simDisk struct {
	names   map[string]*simFile // as programs see them
	durable map[string]*simFile // as they are after a power cut
	failAt  int                 // the step that fails, from 1; 0 for none
	step    int
	dead    bool // all that follows a failed step fails too, when the power is cut
	cut     bool
	trace   []string
}

type simFile struct {
	disk    *simDisk
	data    []byte
	durable []byte
}

func newSimDisk(name, data string) *simDisk {
	d := &simDisk{names: map[string]*simFile{}, durable: map[string]*simFile{}}
	if name != "" {
		f := &simFile{disk: d, data: []byte(data), durable: []byte(data)}
		d.names[name], d.durable[name] = f, f
	}
	return d
}

// do counts a step. The step at which the power is cut takes no effect.
func (d *simDisk) do(what string, effect func() error) error {
	d.step++
	d.trace = append(d.trace, what)
	if d.dead || d.step == d.failAt {
		d.dead = d.cut
		return errFault
	}
	return effect()
}

func (d *simDisk) create(name string) (file, error) {
	f := &simFile{disk: d}
	return f, d.do("create", func() error { d.names[name] = f; return nil })
}

func (d *simDisk) rename(old, name string) error {
	return d.do("rename", func() error {
		f, ok := d.names[old]
		if !ok {
			return fs.ErrNotExist
		}
		delete(d.names, old)
		d.names[name] = f
		return nil
	})
}

func (d *simDisk) link(old, name string) error {
	return d.do("link", func() error {
		if _, ok := d.names[name]; ok {
			return fs.ErrExist
		}
		d.names[name] = d.names[old]
		return nil
	})
}

func (d *simDisk) remove(name string) error {
	return d.do("remove", func() error {
		if _, ok := d.names[name]; !ok {
			return fs.ErrNotExist
		}
		delete(d.names, name)
		return nil
	})
}

func (d *simDisk) syncFolder() error {
	return d.do("sync folder", func() error {
		d.durable = map[string]*simFile{}
		for name, f := range d.names {
			d.durable[name] = f
		}
		return nil
	})
}

func (f *simFile) Write(p []byte) (int, error) {
	if err := f.disk.do("write", func() error { f.data = append(f.data, p...); return nil }); err != nil {
		f.data = append(f.data, p[:len(p)/2]...) // a short write
		return len(p) / 2, err
	}
	return len(p), nil
}

func (f *simFile) Sync() error {
	return f.disk.do("sync", func() error { f.durable = bytes.Clone(f.data); return nil })
}

func (f *simFile) Close() error { return f.disk.do("close", func() error { return nil }) }

// outcomes returns what the file may hold after a power cut now: the kernel may have
// written the names out by itself, or not; contents that were not synchronised may be
// there or lost.
func (d *simDisk) outcomes(name string) map[string]bool {
	out := map[string]bool{}
	for _, names := range []map[string]*simFile{d.names, d.durable} {
		if f, ok := names[name]; ok {
			out["file "+string(f.data)] = true
			out["file "+string(f.durable)] = true
		} else {
			out["missing"] = true
		}
	}
	return out
}

// TestCrash fails each step of each operation in turn, with the power cut at that moment
// or with the program running on, and looks at every state that can be found afterwards.
func TestCrash(t *testing.T) {
	t.Parallel()
	operations := map[string]struct {
		before string // "" for no file
		do     func(*Folder) error
		old    string
		new    string
	}{
		"write":   {"old", func(f *Folder) error { return f.Write("name", []byte("new")) }, "file old", "file new"},
		"new":     {"", func(f *Folder) error { return f.Write("name", []byte("new")) }, "missing", "file new"},
		"create":  {"", func(f *Folder) error { return f.Create("name", []byte("new")) }, "missing", "file new"},
		"removal": {"old", func(f *Folder) error { return f.Remove("name") }, "file old", "missing"},
	}
	for what, op := range operations {
		for _, cut := range []bool{true, false} {
			for step := 1; ; step++ {
				name := ""
				if op.before != "" {
					name = "name"
				}
				d := newSimDisk(name, op.before)
				d.failAt, d.cut = step, cut
				err := op.do(&Folder{disk: d})
				where := fmt.Sprintf("%s, step %d of %q, cut %v", what, step, d.trace, cut)
				for outcome := range d.outcomes("name") {
					if outcome != op.old && outcome != op.new {
						t.Errorf("%s: the file may be %q", where, outcome)
					}
					if err == nil && outcome != op.new {
						t.Errorf("%s: success was reported and the file may be %q", where, outcome)
					}
				}
				if d.step < step {
					if err != nil {
						t.Errorf("%s: %v without a fault", where, err)
					}
					break // no step is left to fail
				}
				if err == nil {
					t.Errorf("%s: the fault was not reported", where)
				}
			}
		}
	}
}

func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"a", "../a", ".tmp-x", "a/b", "MB2G-XH44.json"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) == nil && (filepath.Base(name) != name || !filepath.IsLocal(name) || isTemp(name)) {
			t.Errorf("%q is accepted", name)
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	f, err := OpenFolder(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 2000)
	b.ReportAllocs()
	for b.Loop() {
		if err := f.Write("name", data); err != nil {
			b.Fatal(err)
		}
	}
}
