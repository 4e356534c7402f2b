package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long tests wait for what takes a moment: the machine may be slow, and have other
// work.
const patience = time.Minute

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
	rest  string     // the beginning of a line
}

// ordinary, in the environment of a server, makes it a process that may read only the files whose
// mode lets it, even if the tests run as root.
const ordinary = "TEST_ORDINARY=1"

// notStarted returns a server that can be started. Its listeners are on free ports and its
// upstream does not exist, unless config says otherwise. LISTEN_PID and WATCHDOG_PID are
// its own, as from systemd.
func notStarted(t *testing.T, config string, env ...string) *process {
	t.Helper()
	p := &process{t: t, config: filepath.Join(t.TempDir(), "config.yaml"), started: make(chan struct{}), ended: make(chan struct{})}
	p.configure(config)
	program := "hubcache"
	if slices.Contains(env, ordinary) && os.Geteuid() == 0 {
		program = "setpriv --bounding-set=-dac_override,-dac_read_search hubcache"
	}
	p.cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec `+program+` serve "$@"`, "sh", "--config", p.config)
	p.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HUBCACHE_DATA_DIR=" + filepath.Join(t.TempDir(), "data"),
	}, env...)
	p.cmd.Stderr = p
	return p
}

// startServer returns a server that is ready.
func startServer(t *testing.T, config string, env ...string) *process {
	t.Helper()
	p := notStarted(t, config, env...)
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

// start starts the server and waits until it is ready; launch doesn't wait.
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

// awaitLog waits for a line of the log with the text.
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

// ends waits for the process to end, with that exit code.
func (p *process) ends(code int) {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("still running after %s", patience)
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
	resp, err := (&http.Client{Transport: rt, Timeout: patience}).Get(url)
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

// overSocket returns a transport to a unix socket.
func overSocket(path string) *http.Transport {
	return &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}
}

// run runs a server that can't start, and returns what it logged.
func (p *process) run() (stderr string, err error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	err = p.cmd.Run()
	return strings.Join(p.logged(), "\n"), err
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); time.Since(began) < patience; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within %s", what, patience)
}

func exitCodeOf(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		t.Fatal(err)
	}
	return exit.ExitCode()
}
