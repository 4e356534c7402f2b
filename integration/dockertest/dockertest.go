// Package dockertest starts private Docker daemons for tests. Each has a data root and a socket
// of its own, and process, mount and network namespaces of its own, so it leaves nothing behind
// and does not touch the host's own Docker.
//
// It needs root, and the programs dockerd, containerd, runc, docker, ip, nsenter and mount in
// PATH (or sbin). If one is missing, the test fails and names it.
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

// startTimeout is how long a daemon may take until it answers. dockerd needs two to six seconds
// on two busy cores.
const startTimeout = 60 * time.Second

// stopTimeout is how long a daemon may take to end after SIGTERM before it is killed. Its
// --shutdown-timeout gives containers two seconds.
const stopTimeout = 30 * time.Second

// Options says how to start a daemon. The zero value is a daemon without a mirror, with a
// temporary data root and with no network but its own loopback interface.
type Options struct {
	// Mirrors become registry-mirrors in daemon.json.
	Mirrors []string
	// Config is merged into daemon.json and overrides what this package writes.
	Config map[string]any
	// ExtraArgs are appended to dockerd's command line.
	ExtraArgs []string
	// DataRoot is the daemon's data root; "" is a temporary directory.
	DataRoot string
	// Env is appended to dockerd's environment.
	Env []string
	// Network is the network that the daemon is attached to. With nil it has only its
	// loopback interface, and can be reached only by its unix socket.
	Network *Network
	// Dockerd is the program to run; "" is dockerd from PATH or /usr/sbin.
	Dockerd string
	// Certs is the daemon's directory with a directory for each registry; "" is that of the host.
	Certs string
	// Docker29 runs the dockerd 29 and containerd 2 that integration/install-tools builds. The
	// older docker client can use it.
	Docker29 bool
	// Docker28 runs the dockerd 28 that "integration/install-tools docker28" builds, with containerd's
	// image store, and with the containerd and the runc of Docker29.
	Docker28 bool
}

// Daemon is a running dockerd. Its methods must be called from the test's goroutine.
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
	stdin  io.Closer // closing it ends the daemon, as the end of the test process does
	exited chan struct{}
}

// Start starts a daemon and waits until it answers. At the end of the test the daemon is
// stopped and its files are removed.
func Start(t testing.TB, opts Options) *Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("dockertest: dockerd needs root")
	}
	// Paths of unix sockets are limited to 108 bytes, and t.TempDir may be longer.
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

// Host is the daemon's address in the form of DOCKER_HOST.
func (d *Daemon) Host() string { return "unix://" + d.Socket }

// Env is the test's environment, changed so that the docker client uses this daemon and no
// configuration or credentials of the user.
func (d *Daemon) Env() []string {
	return append(os.Environ(), "DOCKER_HOST="+d.Host(), "DOCKER_CONFIG="+filepath.Join(d.dir, "client"),
		"DOCKER_CONTEXT=", "DOCKER_TLS_VERIFY=")
}

// Command returns a docker client command that has not been started.
func (d *Daemon) Command(args ...string) *exec.Cmd {
	d.t.Helper()
	cmd := exec.Command(program(d.t, "docker"), args...)
	cmd.Env = d.Env()
	return cmd
}

// Docker runs the docker client and returns its standard output without surrounding white
// space. If the client fails, the test fails.
func (d *Daemon) Docker(args ...string) string {
	d.t.Helper()
	out, err := d.TryDocker(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// TryDocker is Docker for commands that may fail. The error contains the client's standard
// error.
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

// ImportBusybox makes an image without a registry, tags it with ref if that is not empty, and
// returns its ID. The image has /bin/busybox, /bin/sh and a file with content, by which it
// differs from other images. The changes are Dockerfile instructions.
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

// PID is the process ID of the running daemon.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

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

// Stop ends the daemon and its containers with SIGTERM, and with SIGKILL if that takes too
// long. Stopping a stopped daemon does nothing.
func (d *Daemon) Stop() {
	d.t.Helper()
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended, and then exited is closed
	select {
	case <-d.exited:
	case <-time.After(stopTimeout):
		d.t.Logf("dockertest: dockerd did not end within %v and was killed", stopTimeout)
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	_ = d.stdin.Close()
	d.cmd = nil
}

// Log returns what the daemon has logged so far.
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
	if d.opts.Docker28 {
		config["features"] = map[string]bool{"containerd-snapshotter": true}
	}
	if d.opts.Docker28 || d.opts.Docker29 {
		config["seccomp-profile"] = "unconfined" // its runc is built without libseccomp
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

// wrapper is process 1 of the daemon's namespaces. It waits for a line, which means that the
// network is ready. Then it starts a process that ends the daemon at the end of standard input,
// and so of the test process, and becomes dockerd.
const wrapper = `
mount --make-rprivate / && mount -t proc proc /proc && ip link set lo up || exit 1
if [ -n "$CERTS" ]; then
	mkdir -p /etc/docker && mount -t tmpfs none /etc/docker && mkdir /etc/docker/certs.d && mount --bind "$CERTS" /etc/docker/certs.d || exit 1
fi
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
	dockerd, path, env := d.opts.Dockerd, searchPath(), d.opts.Env
	switch {
	case d.opts.Docker28:
		dockerd, path = Docker28(d.t), Docker29(d.t)+":"+path
	case d.opts.Docker29:
		dir := Docker29(d.t)
		dockerd, path = filepath.Join(dir, "dockerd"), dir+":"+path // it starts the containerd of PATH
		env = append([]string{"DOCKER_MIN_API_VERSION=1.24"}, env...)
	case dockerd == "":
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
	cmd.Env = append(append(os.Environ(), "PATH="+path, "CERTS="+d.opts.Certs), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Setpgid:    true, // so that Ctrl-C on the terminal reaches only the test
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatalf("dockertest: start dockerd in namespaces of its own: %v", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // its exit status is in the log
	d.cmd, d.stdin, d.exited = cmd, stdin, exited
	if d.opts.Network != nil {
		d.opts.Network.attach(d.t, cmd.Process.Pid, d.Addr)
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
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
			d.t.Fatalf("dockertest: dockerd ended before it was ready:\n%s", tail(d.Log(), 20))
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("dockertest: dockerd does not answer after %v: %v\n%s", startTimeout, err, tail(d.Log(), 20))
		}
	}
}

// searchPath is PATH with the sbin directories, which a user's PATH may lack.
func searchPath() string { return os.Getenv("PATH") + ":/usr/local/sbin:/usr/sbin:/sbin" }

// program returns the path of a program. If it is missing, the test fails.
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

// run runs a program to its end. If the program fails, the test fails.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(program(t, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("dockertest: %s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// tail returns the end of a log without the messages of dockerd's gRPC library.
func tail(s string, lines int) string {
	all := slices.DeleteFunc(strings.Split(strings.TrimRight(s, "\n"), "\n"), func(line string) bool {
		return strings.Contains(line, "module=grpc")
	})
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func pidArg(pid int) string { return strconv.Itoa(pid) }
