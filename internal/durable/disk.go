package durable

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// disk is what writing needs of a file system, so that a test can cut the power
// between any two steps. Only sync makes contents, and syncFolder makes names, survive.
type disk interface {
	create(name string) (file, error) // mode 0600, must not exist
	rename(old, name string) error    // replaces name at once
	link(old, name string) error      // fs.ErrExist if name is there
	remove(name string) error
	syncFolder() error
}

type file interface {
	io.WriteCloser
	Sync() error
}

// rootDisk is a folder of the operating system.
type rootDisk struct{ root *os.Root }

func (d rootDisk) create(name string) (file, error) {
	return d.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
}

func (d rootDisk) rename(old, name string) error { return d.root.Rename(old, name) }
func (d rootDisk) link(old, name string) error   { return d.root.Link(old, name) }
func (d rootDisk) remove(name string) error      { return d.root.Remove(name) }

func (d rootDisk) syncFolder() (err error) {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.Sync()
}
