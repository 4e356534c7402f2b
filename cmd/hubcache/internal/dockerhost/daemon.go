package dockerhost

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// daemonProcess is the process of a Docker daemon on this machine.
type daemonProcess struct {
	pid  int
	uid  int
	args []string // its command line
	// guessed says that it is the daemon of the default pid file, and that the kernel could not
	// say that it is the one behind the socket.
	guessed bool
}

// defaultPIDFile is where a daemon that systemd gave its socket writes its process ID.
const defaultPIDFile = "/var/run/docker.pid"

// findDaemon finds the daemon behind a unix socket. The kernel says which process listens
// there. If that is systemd, which gives the socket to the daemon, the pid file says it. A
// pid file that is named by the user goes before both.
func findDaemon(socket, pidFile string) (daemonProcess, error) {
	if pidFile != "" {
		return daemonOfFile(pidFile)
	}
	pid, err := listenerOf(socket)
	if err != nil {
		return daemonProcess{}, err
	}
	if pid == 0 {
		return daemonProcess{}, fmt.Errorf("the daemon's process can't be seen from here, as from within a container (%s)", socket)
	}
	if p, err := processOf(pid); err == nil && p.isDaemon() {
		return p, nil
	}
	name := commandOf(pid)
	if pid != 1 && name != "systemd" {
		return daemonProcess{}, fmt.Errorf("process %d, which listens at %s, is %s and not dockerd", pid, socket, name)
	}
	p, err := daemonOfFile(defaultPIDFile)
	p.guessed = true
	return p, err
}

// listenerOf is the process that listens at the socket; 0 if it is in another PID namespace.
func listenerOf(socket string) (pid int, err error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) { cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, optErr); err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// daemonOfFile is the daemon that a pid file names.
func daemonOfFile(pidFile string) (daemonProcess, error) {
	body, err := os.ReadFile(pidFile)
	if err != nil {
		return daemonProcess{}, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		return daemonProcess{}, fmt.Errorf("%s: %w", pidFile, err)
	}
	p, err := processOf(pid)
	if err != nil {
		return daemonProcess{}, err
	}
	if !p.isDaemon() {
		return daemonProcess{}, fmt.Errorf("process %d of %s is %s and not dockerd", pid, pidFile, commandOf(pid))
	}
	return p, nil
}

// processOf reads what /proc says of a process.
func processOf(pid int) (daemonProcess, error) {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return daemonProcess{}, err
	}
	p := daemonProcess{pid: pid, uid: -1, args: strings.Split(strings.TrimSuffix(string(body), "\x00"), "\x00")}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return daemonProcess{}, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Uid:" {
			p.uid, err = strconv.Atoi(f[1])
		}
	}
	return p, err
}

// commandOf is the name of the process's program, for people.
func commandOf(pid int) string {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(comm))
}

func (p daemonProcess) isDaemon() bool { return commandOf(p.pid) == "dockerd" }

// flag are the values of a flag on the daemon's command line.
func (p daemonProcess) flag(names ...string) (values []string) {
	for i, arg := range p.args {
		name, value, found := strings.Cut(arg, "=")
		switch {
		case !slices.Contains(names, name):
		case found:
			values = append(values, value)
		case i+1 < len(p.args):
			values = append(values, p.args[i+1])
		}
	}
	return values
}

// path makes a path of the daemon's command line absolute.
func (p daemonProcess) path(path string) (string, error) {
	if filepath.IsAbs(path) {
		return path, nil
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
	if err != nil {
		return "", fmt.Errorf("the daemon's configuration file %s is relative to its directory: %w", path, err)
	}
	return filepath.Join(dir, path), nil
}

// checkUser refuses a rootless daemon of another user: its files are in that user's home,
// and root must not make files there.
func (p daemonProcess) checkUser(engine engineFacts, uid int) error {
	if !engine.rootless || p.uid == uid {
		return nil
	}
	return elsewheref("the engine is rootless and belongs to %s: run this command as that user. Its configuration is ~/.config/docker/daemon.json of that user", userName(p.uid))
}

// home is the directory of the configuration of the user that runs a rootless daemon.
func (p daemonProcess) home() (string, error) {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
	if err != nil {
		return os.UserConfigDir() // this user's, who is the daemon's
	}
	var home string
	for v := range strings.SplitSeq(string(env), "\x00") {
		if dir, ok := strings.CutPrefix(v, "XDG_CONFIG_HOME="); ok && dir != "" {
			return dir, nil
		}
		if dir, ok := strings.CutPrefix(v, "HOME="); ok {
			home = dir
		}
	}
	if home == "" {
		return "", errors.New("the daemon has no home directory")
	}
	return filepath.Join(home, ".config"), nil
}

// sees reports whether the file is the same for the daemon as for this process, or, if there
// is none, the nearest directory above it that there is. A daemon in a container has files
// of its own.
func (p daemonProcess) sees(path string) bool {
	for {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			ours, err := os.Stat(real)
			if err != nil {
				return false
			}
			theirs, err := os.Stat(fmt.Sprintf("/proc/%d/root%s", p.pid, real))
			if errors.Is(err, os.ErrPermission) {
				return true // not to be known, and this user can't write there anyway
			}
			return err == nil && os.SameFile(ours, theirs)
		}
		if path = filepath.Dir(path); path == "/" {
			return true
		}
	}
}

// checkSees refuses a file that the daemon doesn't see.
func (p daemonProcess) checkSees(path string) error {
	if p.sees(path) {
		return nil
	}
	return elsewheref("the daemon (process %d) has another %s than this machine, as in a container: configure it there", p.pid, path)
}

// sharesNetwork reports whether a loopback address of the daemon is this machine's. It is
// true too if that can't be known.
func (p daemonProcess) sharesNetwork() bool {
	ours, err := os.Readlink("/proc/self/ns/net")
	theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", p.pid))
	return err != nil || err2 != nil || ours == theirs
}

// reload makes the daemon read its configuration again.
func (p daemonProcess) reload() error {
	if !p.isDaemon() {
		return fmt.Errorf("process %d is no longer dockerd", p.pid)
	}
	return unix.Kill(p.pid, unix.SIGHUP)
}

// daemonFiles is where an engine keeps its configuration.
type daemonFiles struct {
	config, certs string
	process       *daemonProcess // nil if the engine isn't running
	notes         []string
}

// elsewhere says that setup can't write an engine's configuration, and what to do instead.
type elsewhere struct{ text string }

func (e elsewhere) Error() string { return e.text }

func elsewheref(format string, args ...any) elsewhere { return elsewhere{fmt.Sprintf(format, args...)} }

// errNixOS refuses to write files that the next rebuild of the system would overwrite.
var errNixOS = elsewhere{"this is NixOS, where /etc is built from the configuration: set services.hubcache.registryMirror = true instead"}

// findFiles says where the engine keeps its configuration, from what the engine says of
// itself and from its process. The error is an elsewhere if it can't be written from here.
func (s *Setup) findFiles(engine engineFacts) (daemonFiles, error) {
	switch {
	case engine.podman:
		return daemonFiles{}, elsewheref("the engine at %s is Podman %s: it reads its mirrors from /etc/containers/registries.conf and the files in registries.conf.d, not from Docker's daemon.json; docker setup --for podman prints what to write there", s.Engine, engine.version)
	case strings.HasPrefix(engine.system, "NixOS"):
		return daemonFiles{}, errNixOS
	case engine.system == "Docker Desktop":
		return daemonFiles{}, elsewheref("the engine is Docker Desktop's, which has its configuration in its own settings: under Docker Engine there add \"registry-mirrors\": [%q]", s.Mirror)
	}
	p, err := findDaemon(s.Engine.socket(), s.Paths.PIDFile)
	if err != nil {
		return daemonFiles{}, elsewheref("it can't be found out which configuration file this engine reads: %v. %s", err, s.guess(engine))
	}
	if err := p.checkUser(engine, os.Geteuid()); err != nil {
		return daemonFiles{}, err
	}
	f := daemonFiles{process: &p}
	if err := s.fillPaths(&f, engine); err != nil {
		return f, err
	}
	if isNixOS(f.config) {
		return f, errNixOS
	}
	if err := p.checkSees(f.config); err != nil {
		return f, err
	}
	if isLoopback(s.Mirror) && !p.sharesNetwork() {
		f.notes = append(f.notes, fmt.Sprintf("the daemon is in another network namespace than this command, so %s may not be the cache there; an address of this machine that isn't loopback works", s.Mirror))
	}
	return f, nil
}

// isNixOS reports whether the system's configuration makes the file.
func isNixOS(path string) bool { return within(realPath(path), "/nix/store") }

// snapData is where the snap of Docker keeps its configuration. It has it bound over
// /etc/docker for itself.
const snapData = "/var/snap/docker/current"

// fillPaths sets the paths: those that the user named, or else the daemon's.
func (s *Setup) fillPaths(f *daemonFiles, engine engineFacts) error {
	f.config, f.certs = defaultConfig, defaultCerts
	switch {
	case engine.snap():
		f.config, f.certs = snapData+"/config/daemon.json", snapData+"/etc/docker/certs.d"
	case engine.rootless:
		home, err := f.process.home()
		if err != nil {
			return err
		}
		f.config, f.certs = filepath.Join(home, "docker", "daemon.json"), filepath.Join(home, "docker", "certs.d")
	}
	if files := f.process.flag("--config-file"); len(files) > 0 {
		path, err := f.process.path(files[len(files)-1])
		if err != nil {
			return err
		}
		f.config = path
	}
	if s.Paths.Certs != "" {
		f.certs = s.Paths.Certs
	}
	if s.Paths.DaemonJSON != "" && !samePath(s.Paths.DaemonJSON, f.config) {
		return elsewheref("the daemon (process %d) reads %s and not %s", f.process.pid, f.config, s.Paths.DaemonJSON)
	}
	if root := dataRoot(f); f.process.guessed && !within(realPath(engine.root), realPath(root)) {
		return elsewheref("it can't be found out which configuration file this engine reads: its data root is %s, and that of process %d, the only daemon found, is %s", engine.root, f.process.pid, root)
	}
	return nil
}

// within reports whether path is dir or below it. A daemon that remaps users has its data in
// a directory below its data root.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// dataRoot is the daemon's data root by its command line, its file or its default. It tells
// one daemon from another.
func dataRoot(f *daemonFiles) string {
	if roots := f.process.flag("--data-root", "--graph", "-g"); len(roots) > 0 {
		return roots[len(roots)-1]
	}
	var config struct {
		Root  string `json:"data-root"`
		Graph string `json:"graph"`
	}
	body, _ := readOptional(f.config) // the file is read, and what is wrong with it is said, later
	_ = json.Unmarshal(body, &config) // as above
	return cmp.Or(config.Root, config.Graph, "/var/lib/docker")
}

// guess says where such an engine usually has its file, for people.
func (s *Setup) guess(engine engineFacts) string {
	path := defaultConfig
	switch {
	case engine.snap():
		path = snapData + "/config/daemon.json (Docker is a snap)"
	case engine.rootless:
		path = "~/.config/docker/daemon.json of the user who runs it (it is rootless)"
	}
	return fmt.Sprintf("Usually that is %s: add \"registry-mirrors\": [%q] there, and reload the daemon", path, s.Mirror)
}

// samePath reports whether two paths are of one file.
func samePath(a, b string) bool {
	return realPath(a) == realPath(b)
}

// realPath is the path without symlinks, as far as there are files.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if dir := filepath.Dir(path); dir != path {
		return filepath.Join(realPath(dir), filepath.Base(path))
	}
	return path
}

// userName is the user, for people.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return "the user " + u.Username
	}
	return fmt.Sprintf("user %d", uid)
}
