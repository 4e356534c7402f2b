package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is systemd's end of NOTIFY_SOCKET.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

func newManager(t *testing.T) (m manager, env string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return manager{t, conn}, "NOTIFY_SOCKET=" + path
}

// told returns the next message of the service that is not for the watchdog.
func (m manager) told() string {
	m.t.Helper()
	for {
		if s := m.next(); s != "WATCHDOG=1" {
			return s
		}
	}
}

func (m manager) next() string {
	m.t.Helper()
	b := make([]byte, 4096)
	if err := m.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		m.t.Fatal(err)
	}
	n, err := m.conn.Read(b)
	if err != nil {
		m.t.Fatalf("the service says nothing: %v", err)
	}
	return string(b[:n])
}

// TestSystemdHearsOfEachState goes through the life of a service of
// Type=notify-reload.
func TestSystemdHearsOfEachState(t *testing.T) {
	systemd, env := newManager(t)
	p := startServer(t, "", env)
	if got := systemd.told(); got != "READY=1" {
		t.Fatalf("first it said %q", got)
	}
	if status, _ := p.get(p.admin + "/readyz"); status != http.StatusOK {
		t.Errorf("READY, and /readyz is %d", status)
	}
	p.signal(syscall.SIGHUP)
	var usec int64
	if n, err := fmt.Sscanf(systemd.told(), "RELOADING=1\nMONOTONIC_USEC=%d", &usec); n != 1 || usec <= 0 {
		t.Errorf("RELOADING without the time: %v", err)
	}
	if got := systemd.told(); got != "READY=1" {
		t.Errorf("after reloading it said %q", got)
	}
	p.signal(syscall.SIGTERM)
	if got := systemd.told(); got != "STOPPING=1" {
		t.Errorf("at the end it said %q", got)
	}
	p.ends(0)
}

// TestReloadRightAfterReady: systemd may send SIGHUP as soon as it has READY, and the
// server reloads.
func TestSystemdWaitsAsLongAsPrune(t *testing.T) {
	m, env := newManager(t)
	name, value, _ := strings.Cut(env, "=")
	t.Setenv(name, value)
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("docker: {host: unix:///does/not/exist.sock, prune: {max_wait: 5h}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run([]string{"--config", config, "docker", "prune", "--apply"}, nil, io.Discard, io.Discard)
	if got, want := m.next(), fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", int64(6.5*3600e6)); got != want {
		t.Errorf("systemd is told %q, want %q", got, want)
	}
}

func TestReloadRightAfterReady(t *testing.T) {
	systemd, env := newManager(t)
	p := notStarted(t, "", env)
	p.launch()
	if got := systemd.told(); got != "READY=1" {
		t.Fatalf("first it said %q", got)
	}
	p.signal(syscall.SIGHUP)
	p.awaitLog("settings read again")
}

func TestWatchdogHearsOften(t *testing.T) {
	systemd, env := newManager(t)
	p := startServer(t, "", env, "WATCHDOG_USEC=3000000")
	systemd.told()
	start := time.Now()
	for range 3 {
		if got := systemd.next(); got != "WATCHDOG=1" {
			t.Fatalf("it said %q", got)
		}
	}
	// Three messages are due within 4.5 s; the watchdog's limit is 3 s for each.
	if took := time.Since(start); took > 9*time.Second {
		t.Errorf("three signs of life took %s", took)
	}
	p.signal(syscall.SIGTERM)
	p.ends(0)
}

// TestSocketsFromSystemd: clients that connect before the server runs, or while it
// restarts, wait and are served.
func TestSocketsFromSystemd(t *testing.T) {
	pull, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pull.Close()
	sock := filepath.Join(t.TempDir(), "admin.sock")
	adm, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer adm.Close()
	url := "http://" + pull.Addr().String() + "/v2/"

	for range 2 { // the second time it is a restart
		early := make(chan int)
		go func() {
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}).Get(url)
			if err != nil {
				early <- 0
				return
			}
			resp.Body.Close()
			early <- resp.StatusCode
		}()
		// The sockets are on the addresses in the settings, so that listening there would fail.
		p := notStarted(t, "listen: "+pull.Addr().String()+"\nadmin: {listen: 'unix:"+sock+"'}\n", "LISTEN_FDS=2", "LISTEN_FDNAMES=pull:admin")
		for _, l := range []interface{ File() (*os.File, error) }{pull.(*net.TCPListener), adm.(*net.UnixListener)} {
			f, err := l.File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, f)
		}
		p.start()
		if status := <-early; status != http.StatusOK {
			t.Errorf("a client that came early got %d", status)
		}
		if status, _ := fetchURL(t, overSocket(sock), "http://localhost/readyz"); status != http.StatusOK {
			t.Errorf("admin over its socket: %d", status)
		}
		if p.pull != "http://"+pull.Addr().String() || p.admin != "unix:"+sock {
			t.Errorf("it says it listens on %s and %s", p.pull, p.admin)
		}
		p.signal(syscall.SIGTERM)
		p.ends(0)
		if _, err := os.Stat(sock); err != nil {
			t.Errorf("systemd's socket is gone: %v", err)
		}
	}
}

// TestMissingSocketsAreOpened: listeners that systemd doesn't hand over are
// opened as the settings say.
func TestMissingSocketsAreOpened(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "admin.sock")
	adm, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer adm.Close()
	f, err := adm.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := notStarted(t, "", "LISTEN_FDS=1", "LISTEN_FDNAMES=admin")
	p.cmd.ExtraFiles = []*os.File{f}
	p.start()
	if status, _ := p.get(p.pull + "/v2/"); status != http.StatusOK {
		t.Errorf("pulls: %d", status)
	}
	if status, _ := fetchURL(t, overSocket(sock), "http://localhost/readyz"); status != http.StatusOK {
		t.Errorf("admin: %d", status)
	}
}

func TestSocketWithAnotherNameIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := notStarted(t, "", "LISTEN_FDS=1", "LISTEN_FDNAMES=hubcache.socket")
	p.cmd.ExtraFiles = []*os.File{f}
	out, err := p.run()
	if code := exitCodeOf(t, err); code != 1 || !strings.Contains(out, "FileDescriptorName=pull") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
