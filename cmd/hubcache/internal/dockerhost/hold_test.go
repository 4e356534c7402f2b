package dockerhost

import (
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slowPipe is the pipe to a guard. It calls told before the guard is told a process.
type slowPipe struct{ told func(pid string) }

func (p slowPipe) Write(b []byte) (int, error) {
	if pid := strings.TrimSpace(string(b)); pid != guardDone {
		p.told(pid)
	}
	return len(b), nil
}

func (p slowPipe) Close() error { return nil }

// TestCommandBeginsWhenTheGuardKnowsIt: a hold that is killed before it has told the guard leaves
// nothing that runs, since the command hasn't begun.
func TestCommandBeginsWhenTheGuardKnowsIt(t *testing.T) {
	file := filepath.Join(t.TempDir(), "begun")
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	told := ""
	pipe := slowPipe{func(pid string) {
		told = pid
		time.Sleep(200 * time.Millisecond) // a command that is there already has time to begin
		if exe, err := os.Readlink("/proc/" + pid + "/exe"); err != nil || exe != self {
			t.Errorf("before the guard knows it, the process is %s (%v)", exe, err)
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("the command has begun before the guard knows it")
		}
	}}
	h := Hold{Stderr: io.Discard}
	code, err := h.supervise("/bin/sh", []string{"sh", "-c", "echo $$ >" + file + "; exit 5"}, &guard{pipe: pipe})
	if code != 5 || err != nil {
		t.Errorf("exit code %d, %v", code, err)
	}
	if body, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(body)) != told {
		t.Errorf("the command is process %q (%v), the guard was told %q", body, err, told)
	}
}

// TestStarterOfAKilledHoldEnds: the hold's end of the socket is closed without a go-ahead.
func TestStarterOfAKilledHoldEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "begun")
	s, err := newStarter("/bin/sh", []string{"sh", "-c", "echo >" + file})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	s.socket.Close()
	if err := s.cmd.Wait(); err == nil || s.cmd.ProcessState.ExitCode() != exitCannotRun {
		t.Errorf("it ended with %v", err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("the command has run")
	}
}

// ignored has what these tests were started with: nohup ignores SIGHUP, and so on. It is asked before
// any test changes that.
var ignored = map[unix.Signal]bool{unix.SIGINT: signal.Ignored(unix.SIGINT), unix.SIGHUP: signal.Ignored(unix.SIGHUP)}

// TestSignalsEndAStarter: a signal of a terminal or a service manager ends what is not a command
// yet, as it would the command.
func TestSignalsEndAStarter(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		if ignored[sig] {
			continue // the command would ignore it, too
		}
		s, err := newStarter("/bin/sh", []string{"sh", "-c", "exit 0"})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.start(); err != nil {
			t.Fatal(err)
		}
		if err := s.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err = s.cmd.Wait()
		if exit, ok := err.(*exec.ExitError); !ok || !strings.HasPrefix(exit.Error(), "signal: ") {
			t.Errorf("%v: it ended with %v", sig, err)
		}
		s.socket.Close()
	}
}

// TestCommandGetsWhatItWouldGetWithoutAStarter: the same arguments, environment, files and limits.
func TestCommandGetsWhatItWouldGetWithoutAStarter(t *testing.T) {
	t.Setenv("SEEN", "with spaces")
	see := func(run func(argv []string)) string {
		file := filepath.Join(t.TempDir(), "seen")
		script := `{ echo "$0|$1|$SEEN"; ls /proc/$$/fd; ulimit -a; } >` + file
		run([]string{"--", "-c", script, "zero", "--help"})
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(body), file, "FILE")
	}
	want := see(func(argv []string) {
		cmd := &exec.Cmd{Path: "/bin/sh", Args: argv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	})
	got := see(func(argv []string) {
		h := Hold{Stderr: io.Discard}
		if code, err := h.supervise("/bin/sh", argv, &guard{pipe: slowPipe{func(string) {}}}); code != 0 || err != nil {
			t.Fatalf("exit code %d, %v", code, err)
		}
	})
	if got != want || !strings.HasPrefix(got, "zero|--help|with spaces\n") {
		t.Errorf("it has\n%s\nwant\n%s", got, want)
	}
}
