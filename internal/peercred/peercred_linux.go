package peercred

import "golang.org/x/sys/unix"

func ofDescriptor(fd int) (Credentials, error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Credentials{}, err
	}
	return Credentials{UID: c.Uid, GID: c.Gid, PID: c.Pid}, nil
}
