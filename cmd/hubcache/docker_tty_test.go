package main

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// shell is an interactive bash on a terminal of its own.
type shell struct {
	t     *testing.T
	stdin io.Writer

	mu   sync.Mutex
	out  string // what the terminal showed
	seen int    // how much of it has been looked at
}

func newShell(t *testing.T, env ...string) *shell {
	t.Helper()
	cmd := exec.Command("script", "-qfec", "bash --norc -i", "/dev/null")
	cmd.Env = append(append(os.Environ(), "PS1=", "TERM=dumb"), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{t: t, stdin: stdin}
	cmd.Stdout = s
	if err := cmd.Start(); err != nil {
		t.Fatalf("script (of util-linux, or bsdutils) gives the test a terminal: %v", err)
	}
	t.Cleanup(func() { stdin.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return s
}

func (s *shell) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out += string(p)
	return len(p), nil
}

// send types keys; expect waits until the terminal shows text after what was expected before.
func (s *shell) send(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.stdin, keys); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shell) expect(text string) {
	s.t.Helper()
	for range 500 {
		s.mu.Lock()
		i := strings.Index(s.out[s.seen:], text)
		if i >= 0 {
			s.seen += i + len(text)
		}
		s.mu.Unlock()
		if i >= 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("the terminal never showed %q:\n%s", text, s.out[s.seen:])
}

// foreground types fg, and gives the command time to have the terminal.
func (s *shell) foreground() {
	s.t.Helper()
	s.send("fg\n")
	s.expect("fg")
	time.Sleep(500 * time.Millisecond)
}

// TestHoldOnATerminal: Ctrl-Z stops the job, fg goes on with it, Ctrl-C ends it, and what
// is typed reaches the command, from the background too.
func TestHoldOnATerminal(t *testing.T) {
	holds := newHolds(t)
	s := newShell(t, holdDirVariable+"=")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s.send("hold() { " + holdDirVariable + "=" + holds.Dir + " " + self + " docker hold -- \"$@\"; }\n")
	s.send("hold sh -c 'echo be''gun; sleep 100'\n")
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
	time.Sleep(time.Second) // it reads, and is stopped for it; the shell says so when asked
	s.send("jobs\n")
	s.expect("Stopped")
	s.foreground()
	s.send("typed\n")
	s.expect("got-typed")
	eventually(t, "the hold ends", func() bool { return !held(t, holds) })
}
