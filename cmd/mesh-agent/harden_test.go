package main

import (
	"fmt"
	"log"

	"golang.org/x/sys/unix"
)

// showHardened hardens its process and prints what it is then: the program "harden" of the scripts.
func showHardened() {
	fd, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // as a file that a daemon is started with
	if err != nil {
		log.Fatal(err)
	}
	if err := harden(); err != nil {
		log.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		log.Fatal(err)
	}
	var core unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &core); err != nil {
		log.Fatal(err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("dumpable %d\ncore %d\npassed on %t\n", dumpable, core.Max, flags&unix.FD_CLOEXEC == 0)
}
