// Package dockertest starts private Docker daemons for tests: each with its own data
// root, socket, and process, mount and network namespaces, so that nothing of it
// outlives the test and nothing of the host's own Docker is touched.
//
// It needs root, and the programs dockerd, containerd, runc, docker, ip, nsenter and
// mount in PATH (or sbin); a missing one fails the test by its name.
package dockertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startTimeout is how long a daemon may take to answer its first ping; on two busy
// cores dockerd needs two to six seconds.
const startTimeout = 60 * time.Second

// stopTimeout is how long a daemon may take to end on SIGTERM before it is killed.
// It is told to give containers two seconds.
const stopTimeout = 30 * time.Second

// Options says how a daemon is started. The zero value is a daemon with no mirror, a
// temporary data root and nothing but a loopback interface of its own.
type Options struct {
	// Mirrors become registry-mirrors in daemon.json.
	Mirrors []string
	// Config is merged into daemon.json over what this package writes.
	Config map[string]any
	// ExtraArgs are appended to dockerd's command line.
	ExtraArgs []string
	// DataRoot is the daemon's data root; "" is a temporary directory.
	DataRoot string
	// Env is appended to dockerd's environment.
	Env []string
	// Network is what the daemon is attached to; nil leaves it alone with its
	// loopback interface: it reaches nothing, and nothing reaches it but by its socket.
	Network *Network
	// Dockerd is the program to run; "" is dockerd from PATH or /usr/sbin.
	Dockerd string
}

// Daemon is a running dockerd. Its methods are for the test's goroutine.
type Daemon struct {
	// Socket is the path of the API's unix socket.
	Socket string
	// DataRoot is the directory that holds the images.
	DataRoot string
	// ConfigFile is the daemon.json in use; edit it and call Reload.
	ConfigFile string
	// Addr is the daemon's address on Options.Network; the zero Addr without one.
	Addr netip.Addr

	t      testing.TB
	opts   Options
	dir    string
	cmd    *exec.Cmd
	leash  io.Closer // closing it ends the daemon, as the end of the test process does
	exited chan struct{}
}

// Start starts a daemon and waits until it answers. It is stopped, and its files are
// removed, when the test ends.
func Start(t testing.TB, opts Options) *Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("dockertest: dockerd needs root")
	}
	// Unix socket paths are limited to 108 bytes: t.TempDir with a long test name isn't short enough.
	dir, err := os.MkdirTemp("", "dockertest")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{
		t: t, opts: opts, dir: dir,
		Socket:     filepath.Join(dir, "docker.sock"),
		DataRoot:   opts.DataRoot,
		ConfigFile: filepath.Join(dir, "daemon.json"),
	}
	if d.DataRoot == "" {
		d.DataRoot = filepath.Join(dir, "data")
	}
	if opts.Network != nil {
		d.Addr = opts.Network.take()
	}
	t.Cleanup(func() {
		d.Stop()
		if t.Failed() {
			t.Logf("the end of dockerd's log:\n%s", tail(d.Log(), 40))
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("dockertest: %v", err)
		}
	})
	d.writeConfig()
	d.start()
	return d
}

// Host is the daemon's address as DOCKER_HOST and client libraries take it.
func (d *Daemon) Host() string { return "unix://" + d.Socket }

// Env is the test's environment with the docker client pointed at this daemon, and at
// no configuration or credentials of the user's.
func (d *Daemon) Env() []string {
	return append(os.Environ(), "DOCKER_HOST="+d.Host(), "DOCKER_CONFIG="+filepath.Join(d.dir, "client"),
		"DOCKER_CONTEXT=", "DOCKER_TLS_VERIFY=")
}

// Command is a docker client command that has not been started yet.
func (d *Daemon) Command(args ...string) *exec.Cmd {
	d.t.Helper()
	cmd := exec.Command(program(d.t, "docker"), args...)
	cmd.Env = d.Env()
	return cmd
}

// Docker runs the docker client and returns its standard output without surrounding
// white space. A failure fails the test.
func (d *Daemon) Docker(args ...string) string {
	d.t.Helper()
	out, err := d.TryDocker(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// TryDocker is Docker for commands that may fail; the error carries the client's
// standard error.
func (d *Daemon) TryDocker(args ...string) (string, error) {
	d.t.Helper()
	cmd := d.Command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), err
}

// SwarmInit makes the daemon a swarm of one node.
func (d *Daemon) SwarmInit() {
	d.t.Helper()
	addr := "127.0.0.1"
	if d.Addr.IsValid() {
		addr = d.Addr.String()
	}
	d.Docker("swarm", "init", "--advertise-addr", addr, "--listen-addr", addr)
}

// ImportBusybox makes an image called ref of the static busybox binary, without any
// registry: /bin/busybox and /bin/sh and one file with content, which makes it unlike
// other images. It returns the image's ID.
func (d *Daemon) ImportBusybox(ref, content string, changes ...string) string {
	d.t.Helper()
	cmd := d.Command("import")
	for _, c := range changes {
		cmd.Args = append(cmd.Args, "--change", c)
	}
	cmd.Args = append(cmd.Args, "-")
	if ref != "" {
		cmd.Args = append(cmd.Args, ref)
	}
	cmd.Stdin = bytes.NewReader(busyboxRoot(d.t, content))
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("docker import %s: %v\n%s", ref, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Reload makes the daemon read ConfigFile again (SIGHUP).
func (d *Daemon) Reload() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		d.t.Fatal(err)
	}
}

// Restart stops the daemon and starts it again on the same data root and address.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.Stop()
	d.start()
}

// Stop ends the daemon with SIGTERM, or SIGKILL if that takes too long. Its containers
// end with it. Stopping a stopped daemon does nothing.
func (d *Daemon) Stop() {
	d.t.Helper()
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself: exited says so
	select {
	case <-d.exited:
	case <-time.After(stopTimeout):
		d.t.Logf("dockertest: dockerd did not end within %v and was killed", stopTimeout)
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	_ = d.leash.Close()
	d.cmd = nil
}

// Log is what the daemon has written to its log so far.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(d.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (d *Daemon) logFile() string { return filepath.Join(d.dir, "dockerd.log") }

func (d *Daemon) writeConfig() {
	d.t.Helper()
	config := map[string]any{}
	if len(d.opts.Mirrors) > 0 {
		config["registry-mirrors"] = d.opts.Mirrors
	}
	for k, v := range d.opts.Config {
		config[k] = v
	}
	b, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.ConfigFile, b, 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// wrapper becomes process 1 of the daemon's namespaces. It waits for a line (the
// network is ready), puts a watch on its standard input so that the daemon ends when
// the test process does, and turns into dockerd.
const wrapper = `
mount --make-rprivate / && mount -t proc proc /proc && ip link set lo up || exit 1
read -r go || exit 1
exec 3<&0
( read -r rest <&3; kill -TERM 1 ) >/dev/null 2>&1 &
exec 3<&-
exec "$@" </dev/null
`

func (d *Daemon) start() {
	d.t.Helper()
	for _, name := range []string{"containerd", "runc", "ip", "mount"} {
		program(d.t, name)
	}
	dockerd := d.opts.Dockerd
	if dockerd == "" {
		dockerd = program(d.t, "dockerd")
	}
	log, err := os.OpenFile(d.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	args := append([]string{"-c", wrapper, "dockerd", dockerd,
		"--config-file", d.ConfigFile, "--data-root", d.DataRoot, "--exec-root", filepath.Join(d.dir, "exec"),
		"--pidfile", filepath.Join(d.dir, "pid"), "--host", d.Host(),
		"--bridge=none", "--iptables=false", "--ip-masq=false", "--shutdown-timeout=2"}, d.opts.ExtraArgs...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Env = append(append(os.Environ(), "PATH="+searchPath()), d.opts.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Setpgid:    true, // a Ctrl-C on the terminal is the test's business
	}
	leash, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatalf("dockertest: start dockerd in namespaces of its own: %v", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // its exit status is in the log
	d.cmd, d.leash, d.exited = cmd, leash, exited
	if d.opts.Network != nil {
		d.opts.Network.attach(d.t, cmd.Process.Pid, d.Addr)
	}
	if _, err := io.WriteString(leash, "go\n"); err != nil {
		d.t.Fatalf("dockertest: %v\n%s", err, tail(d.Log(), 20))
	}
	d.waitReady()
}

func (d *Daemon) waitReady() {
	d.t.Helper()
	deadline := time.Now().Add(startTimeout)
	for {
		_, err := d.TryDocker("version", "--format", "{{.Server.Version}}")
		if err == nil {
			return
		}
		select {
		case <-d.exited:
			d.cmd = nil
			d.t.Fatalf("dockertest: dockerd ended at once:\n%s", tail(d.Log(), 20))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("dockertest: dockerd does not answer after %v: %v\n%s", startTimeout, err, tail(d.Log(), 20))
		}
	}
}

// searchPath is PATH with the sbin directories, which a user's PATH may lack.
func searchPath() string { return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin" }

// program finds a program, or fails the test with its name.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range filepath.SplitList(searchPath()) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && dir != "" {
			return path
		}
	}
	t.Fatalf("dockertest: the program %q is missing", name)
	return ""
}

// run runs a program to its end, and fails the test when it fails.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program(t, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("dockertest: %s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// tail is the end of a log, without what its gRPC library says.
func tail(s string, lines int) string {
	all := slices.DeleteFunc(strings.Split(strings.TrimRight(s, "\n"), "\n"), func(line string) bool {
		return strings.Contains(line, "module=grpc")
	})
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func pidArg(pid int) string { return strconv.Itoa(pid) }
