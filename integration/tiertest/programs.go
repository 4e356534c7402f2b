package tiertest

import (
	_ "embed"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed versitygw.version
var versitygwVersion string

// Keys of what StartVersity starts.
const (
	AccessKey = "tester"
	SecretKey = "tester-secret"
)

// Program is a real server that a test has started, and may kill, stop and start again. It ends with
// the test.
type Program struct {
	Addr string // host:port

	t    testing.TB
	make func() *exec.Cmd
	cmd  *exec.Cmd
}

// StartVersity starts versitygw with the bucket BucketName, in a folder of the test. args are further
// global options.
func StartVersity(t testing.TB, args ...string) *Program {
	t.Helper()
	return StartVersityIn(t, t.TempDir(), args...)
}

// StartVersityIn is StartVersity in that folder, whose disk may be small.
func StartVersityIn(t testing.TB, dir string, args ...string) *Program {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(cache, "hubcache-test", "versitygw-"+strings.TrimSpace(versitygwVersion), "versitygw")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("versitygw is missing; integration/install-tools builds it: %v", err)
	}
	for _, d := range []string{"data/" + BucketName, "meta"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	addr := freeAddr(t)
	args = append([]string{"--access", AccessKey, "--secret", SecretKey, "--port", addr, "--quiet"}, args...)
	args = append(args, "posix", "--sidecar", filepath.Join(dir, "meta"), filepath.Join(dir, "data"))
	return start(t, addr, func() *exec.Cmd { return exec.Command(program, args...) })
}

// StartRedis starts redis-server, which keeps nothing on disk. args are further options.
func StartRedis(t testing.TB, args ...string) *Program {
	t.Helper()
	addr, dir := freeAddr(t), t.TempDir()
	_, port, _ := net.SplitHostPort(addr)
	args = append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", dir}, args...)
	return start(t, addr, func() *exec.Cmd { return exec.Command("redis-server", args...) })
}

// freeAddr returns an address of this machine that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func start(t testing.TB, addr string, command func() *exec.Cmd) *Program {
	t.Helper()
	p := &Program{Addr: addr, t: t, make: command}
	p.Start()
	t.Cleanup(p.Kill)
	return p
}

// Start starts the program, and returns when it listens.
func (p *Program) Start() {
	p.t.Helper()
	p.cmd = p.make()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stdout, p.cmd.Stderr = io.Discard, io.Discard
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("%v (integration/install-tools installs what is missing)", err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", p.Addr); err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s doesn't listen on %s", p.cmd.Path, p.Addr)
		}
	}
}

// Kill ends the program at once. One that has ended stays so.
func (p *Program) Kill() {
	if p.cmd.ProcessState == nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
}

// Stop makes the program do nothing until Continue. Connections to it are still accepted.
func (p *Program) Stop() { p.cmd.Process.Signal(syscall.SIGSTOP) }

// Continue ends what Stop has begun.
func (p *Program) Continue() { p.cmd.Process.Signal(syscall.SIGCONT) }
