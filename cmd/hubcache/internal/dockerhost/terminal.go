package dockerhost

import (
	"os"

	"golang.org/x/sys/unix"
)

// terminal is the controlling terminal; tty is nil when there is none.
type terminal struct {
	tty   *os.File
	given bool // the command has it
}

func openTerminal() *terminal {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return &terminal{}
	}
	return &terminal{tty: tty}
}

// foreground reports whether this process's group has the terminal.
func (t *terminal) foreground() bool {
	if t.tty == nil {
		return false
	}
	group, err := unix.IoctlGetInt(int(t.tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

// give hands the terminal to the group of pid, if this process's group has it.
func (t *terminal) give(pid int) {
	if t.given = t.foreground(); t.given {
		_ = unix.IoctlSetPointerInt(int(t.tty.Fd()), unix.TIOCSPGRP, pid)
	}
}

// take takes the terminal back from the command.
func (t *terminal) take() {
	if t.given {
		_ = unix.IoctlSetPointerInt(int(t.tty.Fd()), unix.TIOCSPGRP, unix.Getpgrp())
		t.given = false
	}
}

func (t *terminal) close() {
	if t.tty != nil {
		_ = t.tty.Close()
	}
}
