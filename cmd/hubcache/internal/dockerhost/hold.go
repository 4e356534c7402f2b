package dockerhost

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

// HoldVariable is the environment variable that tells a command that it runs under a hold.
// Its value names the hold by process ID and start time, so that a hold that has ended
// isn't taken for one in force.
const HoldVariable = "HUBCACHE_HOLD"

// Exit codes of a hold whose command did not start, as env(1) and timeout(1) have them.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// Hold runs one command while no image of this host is pruned.
type Hold struct {
	Holds   prune.Holds
	MaxWait time.Duration // how long to wait for a prune that is running
	Stderr  io.Writer
}

// Run runs the command under a hold, with the standard streams of this process, and
// returns the command's exit code: 128 plus the signal if one ended it, 127 if there is no
// such program, 126 if it can't be run. An error means that there is no hold and that the
// command was not started. Inside another hold, Run replaces this process by the command.
//
// The command gets a process group of its own. A guard, a second process of this program,
// has the lock too and watches a pipe: when this process is killed, the guard kills that
// group. The command begins when the guard knows the group. The lock is released when both
// processes have ended.
func (h Hold) Run(ctx context.Context, argv []string) (int, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		fmt.Fprintf(h.Stderr, "hubcache: %v\n", err)
		if errors.Is(err, fs.ErrPermission) {
			return exitCannotRun, nil
		}
		return exitNotFound, nil
	}
	if holdInForce(os.Getenv(HoldVariable)) {
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

// enter takes the hold, and returns what ends it. ctx ends only the waiting for it.
func (h Hold) enter(ctx context.Context) (hold *prune.Hold, release func(), err error) {
	hold, err = h.Holds.Acquire(ctx, h.MaxWait, func() {
		fmt.Fprintf(h.Stderr, "hubcache: a prune is running; waiting for it, at most %v\n", h.MaxWait)
	})
	switch {
	case errors.Is(err, prune.ErrOverdue):
		fmt.Fprintf(h.Stderr, "hubcache: warning: waited %v for a prune; the command starts now, and the prune may still remove images\n", h.MaxWait)
		pursuit, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = hold.Wait(pursuit) }) // until the command ends
		return hold, func() { stop(); wg.Wait(); hold.Release() }, nil
	case err != nil && ctx.Err() != nil:
		return nil, nil, errors.New("interrupted while waiting for a prune; the command was not started")
	case err != nil:
		return nil, nil, err
	}
	return hold, func() { hold.Release() }, nil
}

// supervise starts the command, passes signals and the terminal on to it, and waits.
func (h Hold) supervise(path string, argv []string, guard *guard) (int, error) {
	// The kernel sends Pdeathsig when the thread that started the command ends, so this
	// goroutine has to stay on its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	term := openTerminal()
	defer term.close()
	// Before the command starts, so that an early signal is passed on too.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGWINCH)
	defer signal.Stop(signals)

	starter, err := newStarter(path, argv)
	if err != nil {
		return 0, err
	}
	cmd := starter.cmd
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), HoldVariable+"="+selfMark())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if term.given = term.foreground(); term.given {
		cmd.SysProcAttr.Foreground, cmd.SysProcAttr.Ctty = true, int(term.tty.Fd())
	}
	if err := starter.start(); err != nil {
		fmt.Fprintf(h.Stderr, "hubcache: %v\n", err)
		return exitCannotRun, nil
	}
	pid := cmd.Process.Pid
	guard.watch(pid)
	starter.goAhead() // not before: a hold that is killed here must leave nothing that runs
	// Without this, taking the terminal back from the background would stop this process.
	// It comes after the start because the command must not inherit it.
	signal.Ignore(unix.SIGTTOU)

	go func() {
		starter.wait() // the command has its own way with each signal
		for s := range signals {
			_ = unix.Kill(-pid, s.(syscall.Signal)) // fails when the command has ended
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

// wait waits for the command to end. When the terminal stops the command (Ctrl-Z), this
// process stops too, and when the shell continues this process, the command continues.
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
			_ = unix.Kill(0, unix.SIGTSTP) // returns when the shell continues this process
			term.give(pid)
			_ = unix.Kill(-pid, unix.SIGCONT)
		case !status.Stopped():
			return status, nil
		}
	}
}

// selfMark names this process for HoldVariable.
func selfMark() string { return processMark(os.Getpid()) }

// processMark is a process's ID and start time; "" if there is no such process.
func processMark(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The name, in parentheses, may have spaces; the start time is the 20th field after it.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return ""
	}
	return fmt.Sprintf("%d:%s", pid, fields[19])
}

// holdInForce reports whether the hold that a HoldVariable names still runs.
func holdInForce(mark string) bool {
	pid, _, _ := strings.Cut(mark, ":")
	n, err := strconv.Atoi(pid)
	return err == nil && n > 0 && processMark(n) == mark
}
