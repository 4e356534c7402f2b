package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
)

// process is a running hubcache serve.
type process struct {
	t           *testing.T
	cmd         *exec.Cmd
	config      string        // its settings file
	pull, admin string        // base URLs, once it is ready
	started     chan struct{} // closed when cmd runs
	ended       chan struct{}

	mu    sync.Mutex // guards what follows
	lines []string   // of its log
	rest  string     // of a line that is not whole yet
}

// unborn is a server that is not started yet: its listeners are on ports of the kernel's
// choice and its upstream does not exist, unless config says otherwise. LISTEN_PID and
// WATCHDOG_PID are its own, as from systemd.
func unborn(t *testing.T, config string, env ...string) *process {
	t.Helper()
	p := &process{t: t, config: filepath.Join(t.TempDir(), "config.yaml"), started: make(chan struct{}), ended: make(chan struct{})}
	p.configure(config)
	p.cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec hubcache serve "$@"`, "sh", "--config", p.config)
	p.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HUBCACHE_DATA_DIR=" + filepath.Join(t.TempDir(), "data"),
	}, env...)
	p.cmd.Stderr = p
	return p
}

// serving is a server that is ready.
func serving(t *testing.T, config string, env ...string) *process {
	t.Helper()
	p := unborn(t, config, env...)
	p.start()
	return p
}

// configure writes the settings file.
func (p *process) configure(config string) {
	p.t.Helper()
	for key, line := range map[string]string{"listen:": "listen: 127.0.0.1:0\n", "admin:": "admin: {listen: 127.0.0.1:0}\n",
		"upstream:": "upstream: {url: 'http://127.0.0.1:1'}\n"} {
		if !strings.Contains("\n"+config, "\n"+key) {
			config += line
		}
	}
	if err := os.WriteFile(p.config, []byte(config), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// start returns when the server is ready, launch at once.
func (p *process) start() {
	p.t.Helper()
	p.launch()
	var ready struct{ Listen, Admin []string }
	if err := json.Unmarshal([]byte(p.awaitLog("hubcache is ready")), &ready); err != nil {
		p.t.Fatal(err)
	}
	p.pull, p.admin = ready.Listen[0], ready.Admin[0]
}

func (p *process) launch() {
	p.t.Helper()
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	close(p.started)
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if p.t.Failed() {
			p.t.Logf("its log:\n%s", strings.Join(p.logged(), "\n"))
		}
	})
}

// Write collects the log.
func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	whole := strings.Split(p.rest+string(b), "\n")
	p.lines = append(p.lines, whole[:len(whole)-1]...)
	p.rest = whole[len(whole)-1]
	return len(b), nil
}

func (p *process) logged() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string{}, p.lines...)
}

// awaitLog waits for a line of the log that holds text.
func (p *process) awaitLog(text string) (line string) {
	p.t.Helper()
	eventually(p.t, "log: "+text, func() bool {
		for _, line = range p.logged() {
			if strings.Contains(line, text) {
				return true
			}
		}
		return false
	})
	return line
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ends wants the process to end within d, with that exit code.
func (p *process) ends(d time.Duration, code int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(d):
		p.t.Fatalf("still running after %s", d)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("it ended with %s, want exit code %d", p.cmd.ProcessState, code)
	}
}

// get returns status and body.
func (p *process) get(url string) (int, string) {
	p.t.Helper()
	return fetchURL(p.t, http.DefaultTransport, url)
}

func fetchURL(t *testing.T, rt http.RoundTripper, url string) (int, string) {
	t.Helper()
	resp, err := (&http.Client{Transport: rt, Timeout: 10 * time.Second}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// overSocket asks a unix socket.
func overSocket(path string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
}

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

// told returns what the service says next, the watchdog's signs of life left out.
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
	if err := m.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		m.t.Fatal(err)
	}
	n, err := m.conn.Read(b)
	if err != nil {
		m.t.Fatalf("the service says nothing: %v", err)
	}
	return string(b[:n])
}

// TestSystemdIsTold runs through the life of a service of Type=notify-reload.
func TestSystemdIsTold(t *testing.T) {
	systemd, env := newManager(t)
	p := serving(t, "", env)
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
	p.ends(10*time.Second, 0)
}

// TestReloadRightAfterReady: systemd may send SIGHUP as soon as it has READY.
func TestReloadRightAfterReady(t *testing.T) {
	systemd, env := newManager(t)
	p := unborn(t, "", env)
	p.launch()
	if got := systemd.told(); got != "READY=1" {
		t.Fatalf("first it said %q", got)
	}
	p.signal(syscall.SIGHUP)
	p.awaitLog("settings read again")
}

func TestWatchdogHearsOften(t *testing.T) {
	systemd, env := newManager(t)
	p := serving(t, "", env, "WATCHDOG_USEC=600000")
	systemd.told()
	start := time.Now()
	for range 3 {
		if got := systemd.next(); got != "WATCHDOG=1" {
			t.Fatalf("it said %q", got)
		}
	}
	// Three times 0.3 s; three times the watchdog's own limit is a frozen server.
	if took := time.Since(start); took > 1800*time.Millisecond {
		t.Errorf("three signs of life took %s", took)
	}
	p.signal(syscall.SIGTERM)
	p.ends(10*time.Second, 0)
}

// TestSocketsFromSystemd: clients that connect before the server runs, or while it
// restarts, wait; they are not refused.
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

	for range 2 { // the second is a restart
		early := make(chan int)
		go func() {
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}).Get(url)
			if err != nil {
				early <- 0
				return
			}
			resp.Body.Close()
			early <- resp.StatusCode
		}()
		// The addresses of the settings are taken by the sockets: to listen there would fail.
		p := unborn(t, "listen: "+pull.Addr().String()+"\nadmin: {listen: 'unix:"+sock+"'}\n", "LISTEN_FDS=2", "LISTEN_FDNAMES=pull:admin")
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
			t.Errorf("who came early got %d", status)
		}
		if status, _ := fetchURL(t, overSocket(sock), "http://localhost/readyz"); status != http.StatusOK {
			t.Errorf("admin over its socket: %d", status)
		}
		if p.pull != "http://"+pull.Addr().String() || p.admin != "unix:"+sock {
			t.Errorf("it says it listens on %s and %s", p.pull, p.admin)
		}
		p.signal(syscall.SIGTERM)
		p.ends(10*time.Second, 0)
		if _, err := os.Stat(sock); err != nil {
			t.Errorf("systemd's socket is gone: %v", err)
		}
	}
}

// TestSocketsOfOneSide: what systemd does not hand over is opened from the settings.
func TestSocketsOfOneSide(t *testing.T) {
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
	p := unborn(t, "", "LISTEN_FDS=1", "LISTEN_FDNAMES=admin")
	p.cmd.ExtraFiles = []*os.File{f}
	p.start()
	if status, _ := p.get(p.pull + "/v2/"); status != http.StatusOK {
		t.Errorf("pulls: %d", status)
	}
	if status, _ := fetchURL(t, overSocket(sock), "http://localhost/readyz"); status != http.StatusOK {
		t.Errorf("admin: %d", status)
	}
}

func TestSocketWithoutAName(t *testing.T) {
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
	p := unborn(t, "", "LISTEN_FDS=1", "LISTEN_FDNAMES=hubcache.socket")
	p.cmd.ExtraFiles = []*os.File{f}
	out, err := p.run()
	if code := exitCodeOf(t, err); code != 1 || !strings.Contains(out, "FileDescriptorName=pull") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// run is for a server that won't start.
func (p *process) run() (stderr string, err error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	err = p.cmd.Run()
	return strings.Join(p.logged(), "\n"), err
}

// TestTwoPorts: what clients can reach shows and changes nothing of the cache itself.
func TestTwoPorts(t *testing.T) {
	p := serving(t, "")
	for _, path := range []string{"/api/v1/stats", "/metrics", "/healthz", "/readyz", "/debug/pprof/"} {
		if status, body := p.get(p.pull + path); status != http.StatusNotFound {
			t.Errorf("%s on the pull port: %d %.80s", path, status, body)
		}
	}
	for _, path := range []string{"/v2/", "/v2/library/redis/manifests/7"} {
		if status, _ := p.get(p.admin + path); status != http.StatusNotFound {
			t.Errorf("%s on the admin port: %d", path, status)
		}
	}
}

// TestStatsIsTheDocument: stats --json prints what the server answers, byte for byte.
func TestStatsIsTheDocument(t *testing.T) {
	p := serving(t, "")
	now := func(text string) string { // the one number that time changes
		before, rest, _ := strings.Cut(text, `"uptime_seconds": `)
		_, after, _ := strings.Cut(rest, ",")
		return before + after
	}
	_, want := p.get(p.admin + "/api/v1/stats")
	for _, addr := range []string{p.admin, strings.TrimPrefix(p.admin, "http://")} {
		got, err := exec.Command("hubcache", "stats", "--json", "--admin", addr).Output()
		if err != nil || now(string(got)) != now(want) {
			t.Errorf("--admin %s: %v\n%s\nwant\n%s", addr, err, got, want)
		}
	}
	out, err := exec.Command("hubcache", "stats", "--admin", p.pull).CombinedOutput()
	if exitCodeOf(t, err) != 1 || !strings.Contains(string(out), "is it the admin address?") {
		t.Errorf("asked at the pull port: %v %s", err, out)
	}
}
