//go:build integration

package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hubcache/hubcache/integration/hubtest"
)

// The account that hubcache has at the fake Hub. Tests search for the token in all that
// hubcache writes, so it must not look like anything else.
const (
	labUser = "alice"
	labPAT  = "dckr_pat_Zx81-Integration-qT7w"
)

// labDir is the folder of the built programs. TestMain removes it.
var labDir string

// TestMain makes the folder of programs, and keeps http.Get and the like inside the lab.
func TestMain(m *testing.M) {
	hubtest.LoopbackOnly(http.DefaultTransport.(*http.Transport)).DialContext = labDial
	var err error
	if labDir, err = os.MkdirTemp("", "hubcache-lab"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(labDir)
	os.Exit(code)
}

// program returns the path of a program, which may be in sbin. If it is missing, it fails the
// test and names the Debian package.
func program(t testing.TB, name, debianPackage string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	t.Fatalf("%s is missing: apt-get install %s", name, debianPackage)
	return ""
}

var buildHubcache = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("HUBCACHE_PROGRAM"); path != "" {
		return path, nil
	}
	path := filepath.Join(labDir, "hubcache")
	cmd := exec.Command("go", "build", "-o", path, "../cmd/hubcache")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/hubcache: %w\n%s", err, out)
	}
	return path, nil
})

// hubcacheProgram returns the path of hubcache, built once for all tests. HUBCACHE_PROGRAM may
// name another one to test, such as one built with the race detector.
func hubcacheProgram(t testing.TB) string {
	t.Helper()
	path, err := buildHubcache()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startHub starts a fake Hub on loopback sockets, with the account labUser unless the options
// name others. It is closed at the end of the test. The test fails if a client made a request
// that no well-behaved client makes.
func startHub(t testing.TB, o hubtest.Options) *hubtest.Hub {
	t.Helper()
	if o.Accounts == nil {
		o.Accounts = []hubtest.Account{{Username: labUser, PAT: labPAT, Private: []string{"*"}}}
	}
	hub := hubtest.New(o)
	if err := hub.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hub.Close()
		for _, v := range hub.Violations() {
			t.Errorf("the Hub reports a violation: %s", v)
		}
	})
	return hub
}

// serverOptions says how to start a server. Hub or Upstream must be set.
type serverOptions struct {
	Hub       *hubtest.Hub
	Upstream  string   // URL; "" is the Hub's
	Host      string   // address of the pull listener; "" is 127.0.0.1
	Data      string   // data folder; "" is a temporary one
	Anonymous bool     // without the account
	Args      []string // more flags of serve, which override those of the lab
	Env       []string // more environment
}

// server is a process that runs `hubcache serve`. Its methods must be called from the test's
// goroutine.
type server struct {
	Addr  string // host:port of the pull listener; the same after a restart
	URL   string // of the pull listener, without a slash at the end
	Admin string // host:port of the admin listener
	Data  string // data folder
	PID   int    // of the process, while it runs

	t       testing.TB
	options serverOptions
	dir     string // folder of log and password
	cmd     *exec.Cmd
	exited  chan struct{}
}

// startServer starts a server that logs at level debug, and waits until it answers. At the end
// of the test it is stopped, and its log must contain neither the access token nor a race or
// panic.
func startServer(t testing.TB, o serverOptions) *server {
	t.Helper()
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.Upstream == "" {
		o.Upstream = o.Hub.RegistryURL()
	}
	s := &server{t: t, options: o, dir: t.TempDir(), Data: o.Data}
	if s.Data == "" {
		s.Data = filepath.Join(s.dir, "data")
	}
	s.Addr, s.Admin = freeAddr(t, o.Host), freeAddr(t, "127.0.0.1")
	s.URL = "http://" + s.Addr
	if err := os.WriteFile(s.passwordFile(), []byte(labPAT+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Stop()
		for _, forbidden := range []string{labPAT, "DATA RACE", "panic: "} {
			if strings.Contains(s.Log(), forbidden) {
				t.Errorf("hubcache's log contains %q", forbidden)
			}
		}
		if t.Failed() {
			t.Logf("the end of hubcache's log:\n%s", lastLines(s.Log(), 60))
		}
	})
	s.Start()
	return s
}

func (s *server) passwordFile() string { return filepath.Join(s.dir, "pat") }

func (s *server) args() []string {
	args := []string{"serve", "--listen", s.Addr, "--admin-listen", s.Admin, "--data-dir", s.Data,
		"--upstream", s.options.Upstream, "--log-level", "debug", "--log-format", "json"}
	if !s.options.Anonymous {
		args = append(args, "--username", labUser, "--password-file", s.passwordFile())
	}
	return append(args, s.options.Args...)
}

// Start starts the server after Stop or Kill, with the same addresses and data.
func (s *server) Start() {
	s.t.Helper()
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(hubcacheProgram(s.t), s.args()...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}, s.options.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	s.cmd, s.exited, s.PID = cmd, exited, cmd.Process.Pid
	s.waitReady()
}

func (s *server) waitReady() {
	s.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if resp, err := http.Get("http://" + s.Admin + "/healthz"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && s.listens() {
				return
			}
		}
		select {
		case <-s.exited:
			s.t.Fatalf("hubcache ended before it was ready:\n%s", lastLines(s.Log(), 30))
		default:
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("hubcache does not answer:\n%s", lastLines(s.Log(), 30))
		}
	}
}

func (s *server) listens() bool {
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// Stop sends the server SIGTERM. It fails the test if the server has not ended with status 0
// after a minute. Stopping a stopped server does nothing.
func (s *server) Stop() {
	s.t.Helper()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended, and then its status is checked
	select {
	case <-s.exited:
		if code := s.cmd.ProcessState.ExitCode(); code != 0 {
			s.t.Errorf("hubcache ended with status %d after SIGTERM", code)
		}
	case <-time.After(time.Minute):
		s.t.Error("hubcache did not end within a minute after SIGTERM")
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	s.cmd, s.PID = nil, 0
}

// Kill ends the server with SIGKILL, as a crash does.
func (s *server) Kill() {
	s.t.Helper()
	_ = s.cmd.Process.Kill()
	<-s.exited
	s.cmd, s.PID = nil, 0
}

// Restart stops the server and starts it again.
func (s *server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}

// Empty restarts the server with an empty cache.
func (s *server) Empty() {
	s.t.Helper()
	s.Stop()
	if err := os.RemoveAll(s.Data); err != nil {
		s.t.Fatal(err)
	}
	s.Start()
}

func (s *server) logFile() string { return filepath.Join(s.dir, "log") }

// Log returns what the server has written so far.
func (s *server) Log() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Command runs a command of hubcache against this server and returns its standard output.
func (s *server) Command(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(hubcacheProgram(s.t), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "HUBCACHE_ADMIN=" + s.Admin}
	return runCommand(s.t, cmd)
}

// freeAddr returns host and a port on which nothing listens.
func freeAddr(t testing.TB, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// runCommand runs a program to its end and returns its standard output. If the program fails,
// the test fails and shows its output.
func runCommand(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, out, stderr.String())
	}
	return string(out)
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
