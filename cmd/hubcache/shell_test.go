package main

import (
	"io"
	"os"
	"os/exec"
	"regexp"
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

// send types keys.
func (s *shell) send(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.stdin, keys); err != nil {
		s.t.Fatal(err)
	}
}

// expect waits until the terminal shows text, after what was expected before.
func (s *shell) expect(text string) {
	s.t.Helper()
	for began := time.Now(); time.Since(began) < patience; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		i := strings.Index(s.out[s.seen:], text)
		if i >= 0 {
			s.seen += i + len(text)
		}
		s.mu.Unlock()
		if i >= 0 {
			return
		}
	}
	s.t.Fatalf("the terminal never showed %q:\n%s", text, s.out[s.seen:])
}

// expectJob asks the shell for its jobs until it shows one in this state.
func (s *shell) expectJob(state string) {
	s.t.Helper()
	for began := time.Now(); time.Since(began) < patience; time.Sleep(300 * time.Millisecond) {
		s.send("jobs\n")
		s.mu.Lock()
		i := strings.LastIndex(s.out[s.seen:], state)
		if i >= 0 {
			s.seen += i + len(state)
		}
		s.mu.Unlock()
		if i >= 0 {
			return
		}
	}
	s.t.Fatalf("the shell never had a job that is %q:\n%s", state, s.text())
}

// shellPID finds what foreground has the shell say: the typed line has no digits there.
var shellPID = regexp.MustCompile(`shell=([0-9]+)\.`)

// foreground types fg and waits until another process group than the shell's has the terminal.
func (s *shell) foreground() {
	s.t.Helper()
	s.send("echo shell=$$.\n")
	var pid string
	eventually(s.t, "the shell says its process ID", func() bool {
		said := shellPID.FindStringSubmatch(s.text())
		if said != nil {
			pid = said[1]
		}
		return said != nil
	})
	s.send("fg\n")
	eventually(s.t, "the command has the terminal", func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			s.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		group, terminal := strings.Fields(rest)[2], strings.Fields(rest)[5]
		return group == pid && terminal != group
	})
}

// text returns all that the terminal has shown.
func (s *shell) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out
}

// shown reports whether the terminal ever showed text.
func (s *shell) shown(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.out, text)
}
