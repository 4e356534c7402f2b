package dockerhost

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

// GuardCommand is the hidden sub-command of "hubcache docker" that has to call RunGuard: a
// hold starts this program again by that name.
const GuardCommand = "hold-guard"

// guardDone is what a hold tells its guard when the command has ended by itself.
const guardDone = "done"

// guard is a process that lives on when a hold is killed, and then kills the hold's
// command.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// startGuard starts a guard that has the hold's lock too.
func startGuard(hold *prune.Hold) (*guard, error) {
	g := &guard{cmd: exec.Command("/proc/self/exe", "docker", GuardCommand)}
	g.cmd.Args[0] = os.Args[0]
	g.cmd.ExtraFiles = []*os.File{hold.File()}
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's signals don't reach it
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

// dismiss ends the guard without killing anything. It returns when the guard has given up
// the lock.
func (g *guard) dismiss() {
	fmt.Fprintln(g.pipe, guardDone)
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}

// RunGuard is what the guard does: it reads what the hold writes, and if the hold ends
// without saying that it is done, it kills the process group of the command. The lock is
// inherited as file 3 and released when this process ends.
func RunGuard(stdin io.Reader) {
	// A service manager sends a signal to every process of a unit. The guard has to live
	// until the hold has ended.
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
		return // the hold had not told of a command, so none has begun
	}
	// A killed process exists until its parent has waited for it, so the group may remain for
	// a moment. Wait for that, but not for ever.
	for range 100 {
		if err := unix.Kill(-group, unix.SIGKILL); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
