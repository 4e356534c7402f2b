package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/dockerhost"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
	"github.com/hubcache/hubcache/prune"
)

// holdDirVariable makes this test binary behave as "hubcache docker" with that hold_dir.
const holdDirVariable = "HUBCACHE_TEST_HOLD_DIR"

// init makes the test binary behave as the program, so that a hold, its guard and its
// command are real processes.
func init() {
	dockerhost.BecomeCommand(os.Args)
	dir := os.Getenv(holdDirVariable)
	if dir == "" {
		return
	}
	root := newDockerCommand(&settings.Loader{}, func() (*settings.Settings, error) {
		s := settings.Default()
		s.Docker.HoldDir, s.Docker.Prune.MaxWait = settings.Text(dir), settings.Duration(300*time.Millisecond)
		return s, nil
	})
	root.SetArgs(os.Args[2:])
	root.SilenceErrors, root.SilenceUsage = true, true
	err := root.ExecuteContext(context.Background())
	if code, ok := errors.AsType[exitCode](err); ok {
		os.Exit(int(code))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// hold is the command "hubcache docker hold -- argv…", with the test's hold_dir.
func hold(t *testing.T, holds prune.Holds, argv ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", append([]string{"docker", "hold", "--"}, argv...)...)
	cmd.Env = append(os.Environ(), holdDirVariable+"="+holds.Dir)
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

// held reports whether a hold is in force, so that a prune would not run.
func held(t *testing.T, holds prune.Holds) bool {
	t.Helper()
	probe := exec.Command("flock", "--exclusive", "--nonblock", filepath.Join(holds.Dir, "run"), "true")
	return probe.Run() != nil
}

func newHolds(t *testing.T) prune.Holds {
	t.Helper()
	h := prune.Holds{Dir: t.TempDir()}
	first, err := h.Acquire(t.Context(), 0, nil) // creates the files
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	return h
}

func TestHoldExitCodes(t *testing.T) {
	notExecutable := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notExecutable, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	notAProgram := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notAProgram, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		argv []string
		want int
	}{
		{[]string{notAProgram}, 126},
		{[]string{"true"}, 0},
		{[]string{"sh", "-c", "exit 42"}, 42},
		{[]string{"sh", "-c", "kill -TERM $$"}, 128 + 15},
		{[]string{"no-such-program-anywhere"}, 127},
		{[]string{notExecutable}, 126},
	} {
		holds := newHolds(t)
		if got := exitCodeOf(t, hold(t, holds, test.argv...).Run()); got != test.want {
			t.Errorf("%q: exit code %d, want %d", test.argv, got, test.want)
		}
		if held(t, holds) {
			t.Errorf("%q: the hold is still in force", test.argv)
		}
	}
}

// start runs a hold of a command that writes its process ID to a file, and waits for that.
func start(t *testing.T, cmd *exec.Cmd, pidFile string) (pid int) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	eventually(t, "the command starts", func() bool {
		body, _ := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(body)))
		return pid > 0
	})
	return pid
}

// hasEnded reports whether the process has ended, whether its parent has waited for it or not.
func hasEnded(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestHoldIsInForceWhileTheCommandRuns(t *testing.T) {
	holds, pidFile := newHolds(t), filepath.Join(t.TempDir(), "pid")
	cmd := hold(t, holds, "sh", "-c", "echo $$ > "+pidFile+"; read line")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd, pidFile)
	if !held(t, holds) {
		t.Error("no hold while the command runs")
	}
	stdin.Close()
	if err := cmd.Wait(); exitCodeOf(t, err) != 1 || held(t, holds) {
		t.Errorf("after the command: %v, held %v", err, held(t, holds))
	}
}

// TestHoldPassesSignalsOn: signals reach the whole process group, as they do from a
// terminal.
func TestHoldPassesSignalsOn(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1} {
		holds, pidFile := newHolds(t), filepath.Join(t.TempDir(), "pid")
		script := fmt.Sprintf("trap 'exit 7' %d; sleep 20 >/dev/null 2>&1 & echo $$ > %s; wait", int(sig), pidFile)
		cmd := hold(t, holds, "sh", "-c", script)
		start(t, cmd, pidFile)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if code := exitCodeOf(t, cmd.Wait()); code != 7 {
			t.Errorf("%v: exit code %d, want the trap's 7", sig, code)
		}
	}
}

// TestKilledHoldEndsItsCommand: SIGKILL can't be passed on, so the guard kills the
// command and its children. Until then the hold stays in force.
func TestKilledHoldEndsItsCommand(t *testing.T) {
	holds, dir := newHolds(t), t.TempDir()
	pidFile, childFile := filepath.Join(dir, "pid"), filepath.Join(dir, "child")
	cmd := hold(t, holds, "sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $! > "+childFile+"; echo $$ > "+pidFile+"; wait")
	pid := start(t, cmd, pidFile)
	body, err := os.ReadFile(childFile)
	if err != nil {
		t.Fatal(err)
	}
	child, _ := strconv.Atoi(strings.TrimSpace(string(body)))
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "command and child end", func() bool {
		if !hasEnded(child) && !held(t, holds) {
			t.Fatal("the hold ended before its command's child")
		}
		return hasEnded(pid) && hasEnded(child)
	})
	eventually(t, "the hold ends", func() bool { return !held(t, holds) })
}

// TestKilledGuardLeavesTheHold: without its guard, the hold still has the lock.
func TestKilledGuardLeavesTheHold(t *testing.T) {
	holds, pidFile := newHolds(t), filepath.Join(t.TempDir(), "pid")
	cmd := hold(t, holds, "sh", "-c", "echo $$ > "+pidFile+"; read line; exit 0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd, pidFile)
	out, err := exec.Command("pgrep", "-P", strconv.Itoa(cmd.Process.Pid), "-f", dockerhost.GuardCommand).Output()
	if err != nil {
		t.Fatalf("pgrep: %v", err)
	}
	guard, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	if err := syscall.Kill(guard, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !held(t, holds) {
		t.Error("the hold ended with its guard")
	}
	stdin.Close()
	if code := exitCodeOf(t, cmd.Wait()); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestBackgroundProcessesDontHold: what the command leaves in the background goes on,
// without the hold.
func TestBackgroundProcessesDontHold(t *testing.T) {
	holds, pidFile := newHolds(t), filepath.Join(t.TempDir(), "pid")
	cmd := hold(t, holds, "sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $! > "+pidFile)
	pid := start(t, cmd, pidFile)
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if held(t, holds) {
		t.Error("a background child keeps the hold in force")
	}
	if hasEnded(pid) {
		t.Error("the background child was killed")
	}
}

// TestNestedHoldIsTheCommandItself: a hold inside a hold becomes the command, without a process
// between, a lock or any waiting. If the outer hold has ended, it takes a lock.
func TestNestedHoldIsTheCommandItself(t *testing.T) {
	holds := newHolds(t)
	other := prune.Holds{Dir: filepath.Join(t.TempDir(), "nested")}
	inner := "exec env " + holdDirVariable + "=" + other.Dir + " /proc/" + strconv.Itoa(os.Getpid()) + "/exe docker hold -- sh -c 'echo $PPID; exit 5'"
	cmd := hold(t, holds, "sh", "-c", inner)
	var out bytes.Buffer
	cmd.Stdout = &out
	err := cmd.Run()
	if code := exitCodeOf(t, err); code != 5 {
		t.Errorf("exit code %d, want 5\n%s", code, cmd.Stderr)
	}
	if parent := strings.TrimSpace(out.String()); parent != strconv.Itoa(cmd.Process.Pid) {
		t.Errorf("the inner command's parent is %s, want the outer hold %d: there is a process in between", parent, cmd.Process.Pid)
	}
	if _, err := os.Stat(other.Dir); err == nil {
		t.Error("the nested hold took a lock")
	}

	stale := hold(t, other, "true")
	stale.Env = append(stale.Env, dockerhost.HoldVariable+"=1:1")
	if err := stale.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(other.Dir); err != nil {
		t.Errorf("a hold whose outer hold has ended took no lock: %v", err)
	}
}

// TestHoldStartsAfterMaxWait: after max_wait the command starts with a warning, and the hold
// comes into force as soon as it can.
func TestHoldStartsAfterMaxWait(t *testing.T) {
	holds, pidFile := newHolds(t), filepath.Join(t.TempDir(), "pid")
	gate := exec.Command("flock", "--exclusive", filepath.Join(holds.Dir, "gate"), "sleep", "100")
	gate.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := gate.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(-gate.Process.Pid, syscall.SIGKILL); _ = gate.Wait() }()
	eventually(t, "the gate closes", func() bool {
		return exec.Command("flock", "--shared", "--nonblock", filepath.Join(holds.Dir, "gate"), "true").Run() != nil
	})
	cmd := hold(t, holds, "sh", "-c", "echo $$ > "+pidFile+"; read line; exit 0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	start(t, cmd, pidFile)
	if waited := time.Since(began); waited < 300*time.Millisecond {
		t.Errorf("it waited %v only", waited)
	}
	eventually(t, "the hold comes into force", func() bool { return held(t, holds) })
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if stderr := cmd.Stderr.(*bytes.Buffer).String(); !strings.Contains(stderr, "warning") {
		t.Errorf("no warning: %q", stderr)
	}
}

// TestHoldFollowsTheTerminal: Ctrl-Z stops the job, fg continues it, Ctrl-C ends it, and what
// is typed reaches the command, also after it was in the background.
func TestHoldFollowsTheTerminal(t *testing.T) {
	holds := newHolds(t)
	s := newShell(t, holdDirVariable+"=")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.send("hold() { " + holdDirVariable + "=" + holds.Dir + " " + self + " docker hold -- \"$@\"; }\n")
	// With exec: a shell whose child is stopped between vfork and exec can't be stopped itself.
	s.send("hold sh -c 'echo be''gun; exec sleep 100'\n")
	s.expect("begun")
	s.send("\x1a")
	s.expect("Stopped")
	if !held(t, holds) {
		t.Error("a stopped run has lost its hold")
	}
	s.foreground()
	s.send("\x03")
	s.send("echo code=$?\n")
	s.expect("code=130")
	s.send("hold sh -c 'read line; echo got-$line' &\n")
	s.expectJob("Stopped") // it reads in the background, and the kernel stops it for that
	s.foreground()
	s.send("typed\n")
	s.expect("got-typed")
	eventually(t, "the hold ends", func() bool { return !held(t, holds) })
}

// TestHoldList shows whose hold is in force, since when, and for which command.
func TestHoldList(t *testing.T) {
	holds, pidFile := newHolds(t), filepath.Join(t.TempDir(), "pid")
	list := func() string {
		t.Helper()
		cmd := exec.Command("/proc/self/exe", "docker", "hold", "--list")
		cmd.Env = append(os.Environ(), holdDirVariable+"="+holds.Dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := list(); got != "No hold is in force.\n" {
		t.Errorf("without a hold: %q", got)
	}
	cmd := hold(t, holds, "sh", "-c", "echo $$ > "+pidFile+"; read line")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd, pidFile)
	got := list()
	for _, want := range []string{"COMMAND", strconv.Itoa(cmd.Process.Pid), time.Now().Format("2006-01-02"), "sh -c echo $$ > " + pidFile} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if lines := strings.Count(got, "\n"); lines != 2 {
		t.Errorf("%d lines:\n%s", lines, got)
	}
	stdin.Close()
	_ = cmd.Wait()
}
