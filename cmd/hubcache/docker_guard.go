package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/prune"
)

// guardCommand is the hidden sub-command of docker that is the guard.
const guardCommand = "hold-guard"

// guardDone is what a hold tells its guard when the command has ended by itself.
const guardDone = "done"

// guard is the process that outlives a hold which is killed, to kill the hold's command.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startGuard starts a guard that shares the hold's lock.
func startGuard(hold *prune.Hold) (*guard, error) {
	g := &guard{cmd: exec.Command("/proc/self/exe", "docker", guardCommand)}
	g.cmd.Args[0] = os.Args[0]
	g.cmd.ExtraFiles = []*os.File{hold.File()}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of the terminal
	var err error
	if g.pipe, err = g.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start the hold's guard: %w", err)
	}
	if err := g.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the hold's guard: %w", err)
	}
	return g, nil
}

// watch tells the guard which process group to kill if the pipe breaks.
func (g *guard) watch(pid int) { fmt.Fprintln(g.pipe, pid) }

// dismiss ends the guard, and its share of the lock, without killing anything.
func (g *guard) dismiss() {
	fmt.Fprintln(g.pipe, guardDone)
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}

// runGuard is the guard: it reads what the hold writes, and when the hold dies without a
// last word it kills the command's process group. The lock is inherited as file 3, and
// goes when this process does.
func runGuard(stdin io.Reader) {
	// A service manager stops all processes of a unit alike; the guard ends with the hold.
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGPIPE)
	group := 0
	lines := bufio.NewScanner(stdin)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == guardDone {
			return
		}
		group, _ = strconv.Atoi(line)
	}
	if group <= 1 {
		return // it had not started the command; Pdeathsig takes one that just had
	}
	// The dead are gone when their new parent has buried them: wait, but not for ever.
	for range 100 {
		if err := unix.Kill(-group, unix.SIGKILL); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
