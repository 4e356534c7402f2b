package dockerhost

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
)

// daemonVariable has the daemonOptions of a process that behaves as dockerd.
const daemonVariable = "HUBCACHE_TEST_DAEMON"

// TestMain makes the test binary behave as a Docker daemon when it is called dockerd, so
// that a setup has a real process to find and to tell, and as the command of a hold.
func TestMain(m *testing.M) {
	BecomeCommand(os.Args)
	switch filepath.Base(os.Args[0]) {
	case "dockerd":
		runDaemon()
	case "systemd", "proxy":
		runActivator()
	default:
		os.Exit(m.Run())
	}
}

// daemonOptions are what a fake daemon says of itself, and how it is started.
type daemonOptions struct {
	Version    string // "" is 20.10.24
	Containerd bool
	Info       system.Info   // merged: system, root, security options, proxies
	Component  string        // the name of the engine in /version
	Deaf       bool          // it doesn't hear SIGHUP
	Late       time.Duration // how long a reload takes, in which nothing is answered
	Args       []string      // of its command line, beside --config-file
	NoFile     bool          // no --config-file on its command line
	Parent     string        // the process that listens and starts the daemon: systemd or proxy
	Env        []string

	Socket string // set by startDaemon
}

// fakeDaemon is a running fake daemon with a directory of its own.
type fakeDaemon struct {
	dir, config, certs string
	host               Location
	cmd                *exec.Cmd
}

// startDaemon starts a fake daemon with this configuration file; no file for "".
func startDaemon(t *testing.T, config string, o daemonOptions) *fakeDaemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &fakeDaemon{dir: dir, config: filepath.Join(dir, "docker", "daemon.json"), certs: filepath.Join(dir, "certs.d")}
	if config != "" {
		writeFile(t, d.config, config)
	}
	o.Socket = filepath.Join(dir, "s")
	d.host = Location{Host: "unix://" + o.Socket, Source: "the test"}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := "dockerd"
	for _, n := range []string{name, "systemd", "proxy"} {
		if err := os.Symlink(self, filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	if o.Parent != "" {
		name = o.Parent
	}
	args := o.Args
	if !o.NoFile {
		args = append([]string{"--config-file", d.config}, args...)
	}
	body, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command(filepath.Join(dir, name), args...)
	d.cmd.Env = append(append(os.Environ(), daemonVariable+"="+string(body)), o.Env...)
	d.cmd.Stderr = os.Stderr
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill(); _ = d.cmd.Wait() })
	for range 6000 {
		if conn, err := net.Dial("unix", o.Socket); err == nil {
			conn.Close()
			return d
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the fake daemon doesn't listen")
	return nil
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// runActivator listens at the socket and starts the daemon with it, as systemd does for
// docker.socket, and as a proxy of the socket would.
func runActivator() {
	o := optionsOfEnvironment()
	listener, err := net.Listen("unix", o.Socket)
	exitOn(err)
	file, err := listener.(*net.UnixListener).File()
	exitOn(err)
	cmd := exec.Command(filepath.Join(filepath.Dir(o.Socket), "dockerd"), os.Args[1:]...)
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	exitOn(cmd.Start())
	exitOn(os.WriteFile(filepath.Join(filepath.Dir(o.Socket), "pid"), fmt.Append(nil, cmd.Process.Pid), 0o644))
	exitOn(cmd.Wait())
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "fake daemon:", err)
		os.Exit(1)
	}
}

func optionsOfEnvironment() (o daemonOptions) {
	exitOn(json.Unmarshal([]byte(os.Getenv(daemonVariable)), &o))
	return o
}

// engineState is the state of a fake daemon.
type engineState struct {
	o          daemonOptions
	configFile string
	flags      []string // --registry-mirror

	mu      sync.Mutex // guards what follows
	mirrors []string
	reloads []time.Time
}

// runDaemon is the fake daemon. It takes its file as dockerd does: at the start a file that
// it refuses ends it, and at SIGHUP it keeps what it has.
func runDaemon() {
	e := &engineState{o: optionsOfEnvironment(), configFile: "/does/not/exist"}
	for i, arg := range os.Args {
		if arg == "--config-file" {
			e.configFile = os.Args[i+1]
		}
		if m, ok := strings.CutPrefix(arg, "--registry-mirror="); ok {
			e.flags = append(e.flags, m)
		}
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	exitOn(e.load())
	go func() {
		for range hup {
			if !e.o.Deaf {
				_ = e.load() // refused: it keeps what it has
			}
		}
	}()
	var listener net.Listener
	var err error
	if os.Getenv("LISTEN_FDS") != "" {
		listener, err = net.FileListener(os.NewFile(3, "socket"))
	} else {
		listener, err = net.Listen("unix", e.o.Socket)
	}
	exitOn(err)
	exitOn(http.Serve(listener, e))
}

// load reads the configuration file by dockerd's rules.
func (e *engineState) load() error {
	body, err := os.ReadFile(e.configFile)
	if err != nil {
		body = []byte("{}")
	}
	var all map[string]any
	var config struct {
		Mirrors []string `json:"registry-mirrors"`
	}
	if err := json.Unmarshal(body, &all); err != nil {
		return err
	}
	if err := json.Unmarshal(body, &config); err != nil {
		return err
	}
	known := []string{"registry-mirrors", "labels", "log-opts", "data-root", "debug"}
	for key := range all {
		if !slices.Contains(known, key) {
			return fmt.Errorf("%s doesn't match any configuration option", key)
		}
	}
	_, isSet := all["registry-mirrors"]
	if isSet && len(e.flags) > 0 {
		return fmt.Errorf("registry-mirrors is a flag and in the file")
	}
	mirrors := config.Mirrors
	if !isSet {
		mirrors = e.flags
	}
	for _, m := range mirrors {
		if err := engineTakes(m, e.o.Version); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reloads != nil {
		time.Sleep(e.o.Late)
	}
	if isSet || e.mirrors == nil {
		e.mirrors = mirrors
	}
	e.reloads = append(e.reloads, time.Now())
	return nil
}

// engineTakes is ValidateMirror of Docker's sources: of 28.5, with the rule about paths of
// 20.10 for the versions that have it.
func engineTakes(mirror, version string) error {
	if scheme, _, ok := strings.Cut(mirror, "://"); !ok || scheme == "" {
		return fmt.Errorf("no scheme in %q", mirror)
	}
	u, err := url.Parse(mirror)
	if err != nil {
		return err
	}
	old := strings.HasPrefix(version, "20.") || version == "" || version == "24.0.7"
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("scheme %q", u.Scheme)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("query or fragment in %q", mirror)
	case old && u.Path != "" && u.Path != "/":
		return fmt.Errorf("path in %q", mirror)
	case u.User != nil:
		return fmt.Errorf("user in %q", mirror)
	}
	return nil
}

// ServeHTTP answers what setup asks.
func (e *engineState) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w.Header().Set("API-Version", "1.41")
	w.Header().Set("Content-Type", "application/json")
	version := e.o.Version
	if version == "" {
		version = "20.10.24+dfsg1"
	}
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/version"):
		_ = json.NewEncoder(w).Encode(system.VersionResponse{Version: version, APIVersion: "1.41", Components: []system.ComponentVersion{{Name: e.o.Component}}})
	case strings.HasSuffix(path, "/info"):
		info := e.o.Info
		info.ServerVersion, info.RegistryConfig = version, &registry.ServiceConfig{}
		for _, m := range e.mirrors {
			info.RegistryConfig.Mirrors = append(info.RegistryConfig.Mirrors, strings.TrimSuffix(m, "/")+"/")
		}
		if e.o.Containerd {
			info.DriverStatus = [][2]string{{"driver-type", "io.containerd.snapshotter.v1"}}
		}
		_ = json.NewEncoder(w).Encode(info)
	case strings.HasSuffix(path, "/events"):
		var since float64
		_, _ = fmt.Sscan(r.URL.Query().Get("since"), &since)
		for _, at := range e.reloads[1:] { // the first is the start
			if float64(at.UnixNano())/1e9 >= since-1e-3 {
				_ = json.NewEncoder(w).Encode(events.Message{Type: events.DaemonEventType, Action: events.ActionReload})
			}
		}
	}
}
