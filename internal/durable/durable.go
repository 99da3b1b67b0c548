// Package durable writes small files so that after a crash or power cut each holds
// either its old contents or its new ones, in folders that only their owner may write.
//
// It does not lock (internal/store does), does not encrypt, and knows nothing of what
// the files hold. Files are read and written whole.
package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tempPrefix begins the names of files that are being written. No name that CheckName
// accepts begins so.
const tempPrefix = ".tmp-"

// maxName is the largest length of a file name in octets.
const maxName = 128

// Folder is one folder of files. Its methods may be called from several goroutines at
// once; of two writes to the same name the later one wins whole.
type Folder struct {
	path string
	root *os.Root
	disk disk
}

// OpenFolder opens the folder at path, which it creates with mode 0700 if it is missing,
// parents included. It refuses a folder that group or others may write, or that belongs
// to another user who is not root.
func OpenFolder(path string) (*Folder, error) {
	if err := makeFolder(path); err != nil {
		return nil, fmt.Errorf("create folder: %w", err)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open folder: %w", err)
	}
	if err := checkPrivate(root); err != nil {
		return nil, errors.Join(fmt.Errorf("folder %s: %w", path, err), root.Close())
	}
	return &Folder{path: path, root: root, disk: rootDisk{root}}, nil
}

// Path returns the path that the folder was opened with.
func (f *Folder) Path() string { return f.path }

// Close releases the folder. It leaves the files as they are.
func (f *Folder) Close() error { return f.root.Close() }

// Read returns the contents of a file. A file of more than limit octets is refused.
// A missing one is fs.ErrNotExist.
func (f *Folder) Read(name string, limit int) (data []byte, err error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := checkRegular(file); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	data, err = io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		clear(data)
		return nil, fmt.Errorf("read %s: larger than %d octets", name, limit)
	}
	return data, nil
}

// Stat returns what the system knows about a file. A missing one is fs.ErrNotExist.
func (f *Folder) Stat(name string) (fs.FileInfo, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	return f.root.Lstat(name)
}

// Write replaces or creates a file of mode 0600. When it returns nil, the new contents
// survive a power cut; after an error the file holds the old contents or the new ones.
func (f *Folder) Write(name string, data []byte) error {
	return f.put(name, data, f.disk.rename)
}

// Create is Write for a file that must not exist yet; else it is fs.ErrExist and the
// file is left alone.
func (f *Folder) Create(name string, data []byte) error {
	return f.put(name, data, func(temp, name string) error {
		if err := f.disk.link(temp, name); err != nil {
			return err
		}
		return f.disk.remove(temp)
	})
}

// Remove deletes a file for good: when it returns nil, the file does not come back with
// a power cut. A missing one is fs.ErrNotExist.
func (f *Folder) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	if err := f.disk.remove(name); err != nil {
		return err
	}
	return f.disk.syncFolder()
}

// Names returns the names of all files, sorted, without those that are being written.
func (f *Folder) Names() ([]string, error) {
	names, err := f.list()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(names, isTemp), nil
}

// RemoveLeftovers deletes what interrupted writes left behind. Nobody may be writing.
func (f *Folder) RemoveLeftovers() error {
	names, err := f.list()
	if err != nil {
		return err
	}
	for _, name := range slices.DeleteFunc(names, func(n string) bool { return !isTemp(n) }) {
		if err := f.disk.remove(name); err != nil {
			return fmt.Errorf("remove leftover: %w", err)
		}
	}
	return nil
}

// CheckName refuses names that are not plain: letters, digits, dot, dash and underscore,
// at most 128 octets, no dot at the start. No such name leaves its folder.
func CheckName(name string) error {
	ok := len(name) > 0 && len(name) <= maxName && name[0] != '.'
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '-', c == '_':
		default:
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("file name %q: %w", name, fs.ErrInvalid)
	}
	return nil
}

func isTemp(name string) bool { return strings.HasPrefix(name, tempPrefix) }

func (f *Folder) list() ([]string, error) {
	entries, err := fs.ReadDir(f.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list folder: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// put writes a synchronised temporary file, gives it its name and synchronises the folder.
func (f *Folder) put(name string, data []byte, place func(temp, name string) error) error {
	if err := CheckName(name); err != nil {
		return err
	}
	temp := tempPrefix + rand.Text()
	if err := f.writeTemp(temp, data); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), f.discard(temp))
	}
	if err := place(temp, name); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), f.discard(temp))
	}
	if err := f.disk.syncFolder(); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (f *Folder) writeTemp(temp string, data []byte) (err error) {
	file, err := f.disk.create(temp)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if _, err := file.Write(data); err != nil {
		return err
	}
	return file.Sync()
}

func (f *Folder) discard(temp string) error {
	if err := f.disk.remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// makeFolder is os.MkdirAll, durably.
func makeFolder(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := makeFolder(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncPath(parent)
}

func syncPath(path string) (err error) {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}

func checkRegular(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	return nil
}

func checkPrivate(root *os.Root) error {
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); perm&0o022 != 0 {
		return fmt.Errorf("mode %04o lets group or others write: %w", perm, fs.ErrPermission)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("it belongs to user %d: %w", st.Uid, fs.ErrPermission)
	}
	return nil
}
