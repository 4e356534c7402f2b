package dockerhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// The socket and the directories of an ordinary containerd.
const (
	containerdSocket = "/run/containerd/containerd.sock"
	containerdCerts  = "/etc/containerd/certs.d"
)

// Since these releases containerd takes the capability referrers in a hosts.toml, and reads the
// directories of defaultConfigPath when its configuration names none.
var containerdReferrersSince = [3]int{2, 2, 0}

const defaultConfigPath = containerdCerts + ":" + defaultCerts

// containerd is a containerd that runs on this host.
type containerd struct {
	process daemonProcess
	version string
	release [3]int
	cri     bool     // Kubernetes can use it
	paths   []string // the directories in which it looks for a registry's directory; none: it asks no mirror
	legacy  bool     // its mirrors are in its own configuration, so it can't read the directories
}

// findContainerd asks the containerd behind a socket for its configuration. fs.ErrNotExist is
// returned if there is none.
func findContainerd(ctx context.Context, socket string) (containerd, error) {
	pid, err := listenerOf(socket)
	if err != nil {
		return containerd{}, err
	}
	if pid == 0 {
		return containerd{}, fmt.Errorf("containerd's process can't be seen from here, as from within a container (%s)", socket)
	}
	p, err := processOf(pid)
	if err != nil {
		return containerd{}, err
	}
	if name := commandOf(pid); !strings.HasPrefix(name, "containerd") {
		return containerd{}, fmt.Errorf("process %d, which listens at %s, is %s and not containerd", pid, socket, name)
	}
	c := containerd{process: p}
	program := fmt.Sprintf("/proc/%d/exe", pid)
	out, err := runFor(ctx, program, "--version")
	if err != nil {
		return c, fmt.Errorf("ask containerd (process %d) for its version: %w", pid, err)
	}
	c.version = versionIn(string(out))
	c.release = releaseOf(c.version)
	args := []string{"config", "dump"}
	if files := p.flag("--config", "-c"); len(files) > 0 {
		path, err := p.path(files[len(files)-1])
		if err != nil {
			return c, err
		}
		args = append([]string{"--config", path}, args...)
	}
	if out, err = runFor(ctx, program, args...); err != nil {
		return c, fmt.Errorf("ask containerd (process %d) for its configuration: %w", pid, err)
	}
	return c, c.readConfig(out)
}

// runFor runs a program that says something of itself.
func runFor(ctx context.Context, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && len(exit.Stderr) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}

// versionIn is the version in what containerd --version prints: v2.4.2, or 1.6.20~ds1.
func versionIn(line string) string {
	for word := range strings.FieldsSeq(line) {
		if v := strings.TrimPrefix(word, "v"); v != "" && v[0] >= '0' && v[0] <= '9' {
			return v
		}
	}
	return "of an unknown version"
}

// criConfig is the part of a plugin's configuration that says where the registries' mirrors are.
type criConfig struct {
	Registry struct {
		ConfigPath string         `toml:"config_path"`
		Mirrors    map[string]any `toml:"mirrors"`
		Configs    map[string]any `toml:"configs"`
	} `toml:"registry"`
}

// The plugins with that part, of containerd 2 and of containerd 1.
const (
	imagesPlugin = "io.containerd.cri.v1.images"
	criPlugin    = "io.containerd.grpc.v1.cri"
)

// readConfig reads what "containerd config dump" prints.
func (c *containerd) readConfig(dump []byte) error {
	var config struct {
		Disabled []string       `toml:"disabled_plugins"`
		Plugins  map[string]any `toml:"plugins"`
	}
	if err := toml.Unmarshal(dump, &config); err != nil {
		return fmt.Errorf("containerd's configuration can't be read: %w", err)
	}
	name := imagesPlugin
	if c.release[0] < 2 {
		name = criPlugin
	}
	c.cri = !slices.ContainsFunc(config.Disabled, func(d string) bool { return d == "cri" || d == name || d == criPlugin })
	var plugin criConfig
	if part, ok := config.Plugins[name]; ok {
		body, err := toml.Marshal(part)
		if err == nil {
			err = toml.Unmarshal(body, &plugin)
		}
		if err != nil {
			return fmt.Errorf("containerd's configuration of %s can't be read: %w", name, err)
		}
	}
	r := plugin.Registry
	path := r.ConfigPath
	if path == "" && len(r.Mirrors) == 0 && slices.Compare(c.release[:], containerdReferrersSince[:]) >= 0 {
		path = defaultConfigPath
	}
	c.legacy = r.ConfigPath == "" && len(r.Mirrors)+len(r.Configs) > 0
	if path != "" {
		c.paths = filepath.SplitList(path)
	}
	return nil
}

// setting is the lines for containerd's configuration that make it look into a directory.
func (c containerd) setting(dir string) string {
	plugin, files := criPlugin, "version = 2"
	if c.release[0] >= 2 {
		plugin, files = imagesPlugin, "version = 3 or 4"
	}
	return fmt.Sprintf("[plugins.%q.registry] # in a file with %s\n  config_path = %q\n", plugin, files, dir)
}

// dir is where the directory of a registry belongs: the one that containerd reads now, else the first
// of its directories.
func (c containerd) dir(registry string) string {
	for _, path := range c.paths {
		if isDir(registryDir(path, registry)) {
			return path
		}
	}
	return cmp.Or(append(slices.Clone(c.paths), containerdCerts)...)
}

// RunContainerd is Run for a containerd without Docker, as Kubernetes and nerdctl use it. It writes
// the hosts.toml of each registry, which containerd reads on every pull, so nothing is restarted.
// socket is that of containerd; "" is the usual one. containerd's own configuration is never changed:
// if that names no directory, what to add to it is said. Without a containerd it works too.
func (s *Setup) RunContainerd(ctx context.Context, socket string, apply, undo bool) error {
	if err := checkMirror(s.Mirror); err != nil && !undo {
		return s.wrongMirror(err)
	}
	if isNixOS(containerdCerts) {
		return errNixOS
	}
	c, err := findContainerd(ctx, cmp.Or(socket, containerdSocket))
	var plan setupPlan
	switch {
	case err != nil && s.Paths.Certs == "" && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("it can't be found out which directory containerd reads: %w. --certs-dir names it", err)
	case err != nil:
		plan.notes = append(plan.notes, fmt.Sprintf("no containerd could be asked (%v), so %s is taken for its directory of registries; --certs-dir names another one", err, cmp.Or(s.Paths.Certs, containerdCerts)))
	default:
		plan.notes = c.notes(cmp.Or(s.Paths.Certs, c.dir(hubName)), s.Paths.Certs != "")
	}
	if s.Paths.Certs != "" {
		c.paths = []string{s.Paths.Certs}
	}
	if len(c.paths) == 0 {
		c.paths = []string{containerdCerts}
	}
	if err := s.planContainerd(&plan, c, defaultCerts, undo); err != nil {
		return err
	}
	for _, change := range plan.changes {
		if c.process.pid == 0 {
			break
		}
		if err := c.process.checkSees(change.file.path); err != nil {
			return err
		}
	}
	return s.carryOut(ctx, plan, apply, undo)
}

// planContainerd adds to the plan what has to happen in each of containerd's directories. One of them
// may be Docker's.
func (s *Setup) planContainerd(plan *setupPlan, c containerd, dockers string, undo bool) error {
	byDir := map[string][]hostsFile{}
	if !undo {
		for _, r := range s.registries() {
			dir := c.dir(r.Name)
			byDir[dir] = append(byDir[dir], hostsFile{registry: r, mirrors: []string{s.Mirror}, referrers: c.takesReferrers(), certs: dir, planned: s.Certificates.planned()})
		}
	}
	for _, dir := range c.paths {
		if len(byDir[dir]) == 0 && (!undo || dir == dockers) {
			continue
		}
		if err := s.planCertificates(plan, dir, undo); err != nil {
			return err
		}
		if err := s.planHosts(plan, dir, byDir[dir]); err != nil {
			return err
		}
	}
	return nil
}

func (c containerd) takesReferrers() bool {
	return slices.Compare(c.release[:], containerdReferrersSince[:]) >= 0
}

// notes are what else the user should know about this containerd. given says that the user has named
// the directory.
func (c containerd) notes(dir string, given bool) (notes []string) {
	switch {
	case !c.cri:
		notes = append(notes, fmt.Sprintf("containerd %s has its part for Kubernetes (CRI) disabled; nerdctl reads %s by itself, and ctr with --hosts-dir", c.version, dir))
	case c.legacy:
		notes = append(notes, fmt.Sprintf("containerd %s has mirrors or registries in its own configuration, with which it reads no directory: move them there, and set\n%s", c.version, c.setting(dir)))
	case len(c.paths) == 0:
		notes = append(notes, fmt.Sprintf("containerd %s reads no directory of registries yet. Add this to its configuration (/etc/containerd/config.toml), and restart it:\n%s", c.version, c.setting(dir)))
	case given && !slices.Contains(c.paths, dir):
		notes = append(notes, fmt.Sprintf("containerd %s reads %s and not %s", c.version, strings.Join(c.paths, ", "), dir))
	}
	for _, path := range c.paths {
		if isDir(filepath.Join(path, "_default")) {
			notes = append(notes, fmt.Sprintf("%s is for registries without a directory of their own; those that get one here no longer use it", filepath.Join(path, "_default")))
		}
	}
	return notes
}
