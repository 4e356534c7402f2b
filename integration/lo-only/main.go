//go:build linux

// Lo-only runs a program in a network namespace of its own, in which the loopback interface
// is the only one and is up:
//
//	go test -exec "$PWD/bin/lo-only" ./...
//
// A test that dials anything else then fails at once with "network is unreachable", so no
// test can reach the internet, whatever it dials. Making the namespace needs root
// (CAP_SYS_ADMIN).
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: lo-only PROGRAM [ARGUMENT...]")
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "lo-only:", run(os.Args[1], os.Args[1:]))
	os.Exit(1)
}

// run replaces this process by the program. It returns only when that fails.
func run(program string, args []string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the namespace is that of one thread until it calls execve
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w (it needs root with CAP_SYS_ADMIN)", err)
	}
	if err := bringUp("lo"); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	return fmt.Errorf("starting %s: %w", path, syscall.Exec(path, args, os.Environ()))
}

// bringUp sets a network interface of this namespace to up. lo has its addresses then.
func bringUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
