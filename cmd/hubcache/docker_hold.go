package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/prune"
)

// holdVariable tells a command that it runs under a hold, and under which: the hold's
// process ID and start time, so that one that has ended isn't taken for one in force.
const holdVariable = "HUBCACHE_HOLD"

// Exit codes of a hold whose command did not start, as env(1) and timeout(1) have them.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// holdRun is one "docker hold -- CMD…".
type holdRun struct {
	holds   prune.Holds
	maxWait time.Duration
	stderr  io.Writer
}

// run runs the command under a hold and returns its exit code. An error means that there
// is no hold, and that the command was not started.
//
// The command gets a process group of its own. A guard, a second process of this program,
// shares the lock and watches a pipe: when this process is killed, the guard kills that
// group, and the lock is released when both have gone.
func (h holdRun) run(ctx context.Context, argv []string) (int, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		fmt.Fprintf(h.stderr, "hubcache: %v\n", err)
		if errors.Is(err, fs.ErrPermission) {
			return exitCannotRun, nil
		}
		return exitNotFound, nil
	}
	if holdInForce(os.Getenv(holdVariable)) {
		return exitCannotRun, syscall.Exec(path, argv, os.Environ())
	}
	hold, release, err := h.enter(ctx)
	if err != nil {
		return 0, err
	}
	defer release()
	guard, err := startGuard(hold)
	if err != nil {
		return 0, err
	}
	defer guard.dismiss()
	return h.supervise(path, argv, guard)
}

// enter takes the hold, and returns what ends it. A signal while it waits ends the
// waiting, by ctx.
func (h holdRun) enter(ctx context.Context) (hold *prune.Hold, release func(), err error) {
	hold, err = h.holds.Acquire(ctx, h.maxWait, func() {
		fmt.Fprintf(h.stderr, "hubcache: a prune is at work; waiting for it, at most %v\n", h.maxWait)
	})
	switch {
	case errors.Is(err, prune.ErrOverdue):
		fmt.Fprintf(h.stderr, "hubcache: warning: waited %v for a prune; the command starts, and images may still go while it does\n", h.maxWait)
		pursuit, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = hold.Wait(pursuit) }) // it ends with the command at the latest
		return hold, func() { stop(); wg.Wait(); hold.Release() }, nil
	case err != nil && ctx.Err() != nil:
		return nil, nil, errors.New("interrupted while waiting for a prune; the command was not started")
	case err != nil:
		return nil, nil, err
	}
	return hold, func() { hold.Release() }, nil
}

// supervise starts the command, hands signals and the terminal to it, and waits.
func (h holdRun) supervise(path string, argv []string, guard *guard) (int, error) {
	// The kernel sends Pdeathsig when the thread that started the command ends: it must
	// be this one, and it must stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	term := openTerminal()
	defer term.close()
	// Caught before the command starts: a signal that comes early is passed on, too.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGWINCH)
	defer signal.Stop(signals)

	cmd := &exec.Cmd{Path: path, Args: argv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	cmd.Env = append(os.Environ(), holdVariable+"="+selfMark())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if term.given = term.foreground(); term.given {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(term.tty.Fd())
	}
	if err := cmd.Start(); err != nil {
		fmt.Fprintf(h.stderr, "hubcache: %v\n", err)
		return exitCannotRun, nil
	}
	pid := cmd.Process.Pid
	guard.watch(pid)
	// Taking the terminal back from the background would stop us. The command must not
	// inherit this, so it comes after the start.
	signal.Ignore(unix.SIGTTOU)
	go func() {
		for s := range signals {
			_ = unix.Kill(-pid, s.(syscall.Signal)) // it may have ended
		}
	}()
	status, err := wait(pid, term)
	term.take()
	if err != nil {
		return 0, err
	}
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// wait waits for the command to end. When the terminal stops it (Ctrl-Z), this job stops
// as well, and when the shell continues the job, the command continues.
func wait(pid int, term *terminal) (unix.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, unix.WUNTRACED, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return status, fmt.Errorf("wait for the command: %w", err)
		case status.Stopped() && term.tty != nil:
			term.take()
			_ = unix.Kill(0, unix.SIGTSTP) // returns when the shell continues us
			term.give(pid)
			_ = unix.Kill(-pid, unix.SIGCONT)
		case !status.Stopped():
			return status, nil
		}
	}
}

// terminal is the controlling terminal; tty is nil when there is none.
type terminal struct {
	tty   *os.File
	given bool
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

// give hands the terminal to the group of pid, if it is ours to give.
func (t *terminal) give(pid int) {
	if t.given = t.foreground(); t.given {
		_ = unix.IoctlSetPointerInt(int(t.tty.Fd()), unix.TIOCSPGRP, pid)
	}
}

// take takes the terminal back.
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

// selfMark names this process for holdVariable.
func selfMark() string { return processMark(os.Getpid()) }

// processMark is a process's ID and start time; "" if there is no such process.
func processMark(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in parentheses, may hold spaces; the start time is the 20th field after it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fmt.Sprintf("%d:%s", pid, fields[19])
}

// holdInForce reports whether the hold that the variable names still runs.
func holdInForce(mark string) bool {
	pid, _, _ := strings.Cut(mark, ":")
	n, err := strconv.Atoi(pid)
	return err == nil && n > 0 && processMark(n) == mark
}
