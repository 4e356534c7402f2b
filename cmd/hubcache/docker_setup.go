package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// setupPaths are the files that setup reads and writes.
type setupPaths struct {
	daemonJSON string // of the Docker daemon
	certs      string // directory with a directory for each registry
	pidFile    string // of the Docker daemon, to make it reload
	nixos      string // exists on NixOS
}

func defaultSetupPaths() setupPaths {
	return setupPaths{"/etc/docker/daemon.json", "/etc/docker/certs.d", "/var/run/docker.pid", "/etc/NIXOS"}
}

func newDockerSetupCommand(load func() (dockerSettings, error)) *cobra.Command {
	var apply, undo bool
	var mirror string
	paths := defaultSetupPaths()
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make this host's Docker pull through the cache",
		Long: `Looks at the Docker engine's version and image store and shows what makes it
pull through the cache; --apply writes it, after a backup, and makes the daemon
reload its configuration. No container restarts. --undo takes it back. It also
prints what containerd, podman and BuildKit need.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			if mirror == "" {
				mirror = s.Mirror
			}
			if mirror == "" {
				return settings.UsageError{Err: errors.New("the server listens on no TCP address: --mirror says by which URL the daemon reaches it")}
			}
			run := setupRun{host: s.Host, mirror: strings.TrimRight(mirror, "/"), paths: paths, out: cmd.OutOrStdout()}
			return run.run(cmd.Context(), apply, undo)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&apply, "apply", false, "write the files and reload the daemon")
	fs.BoolVar(&undo, "undo", false, "take the mirror out again")
	fs.StringVar(&mirror, "mirror", "", "the cache's URL as the daemon reaches it (default: from listen)")
	fs.StringVar(&paths.daemonJSON, "daemon-json", paths.daemonJSON, "the daemon's configuration file")
	fs.StringVar(&paths.certs, "certs-dir", paths.certs, "the daemon's directory of registries")
	fs.StringVar(&paths.pidFile, "docker-pidfile", paths.pidFile, "the daemon's pid file")
	cmd.MarkFlagsMutuallyExclusive("apply", "undo")
	return cmd
}

// errNixOS refuses to write files that the next rebuild would overwrite.
var errNixOS = errors.New("this is NixOS, where /etc is built from the configuration: set services.hubcache.registryMirror = true instead")

type setupRun struct {
	host, mirror string
	paths        setupPaths
	out          io.Writer
}

func (s *setupRun) run(ctx context.Context, apply, undo bool) error {
	if _, err := os.Stat(s.paths.nixos); err == nil {
		return errNixOS
	}
	engine, err := askEngine(ctx, s.host)
	if err != nil && !undo {
		return err
	}
	plan, err := s.plan(engine, undo)
	if err != nil {
		return err
	}
	for _, c := range plan.changes {
		fmt.Fprintf(s.out, "%s: %s\n", c.path, c.what)
	}
	if len(plan.changes) == 0 {
		fmt.Fprintln(s.out, "Nothing to change.")
	}
	for _, note := range plan.notes {
		fmt.Fprintln(s.out, "Note:", note)
	}
	if apply || undo {
		return s.write(ctx, plan)
	}
	if len(plan.changes) > 0 {
		fmt.Fprintln(s.out, "\nNothing was written; --apply does it.")
	}
	_, err = io.WriteString(s.out, snippets(s.mirror))
	return err
}

// setupPlan is what there is to write.
type setupPlan struct {
	changes []change
	notes   []string
}

// change is the new content of one file; nil removes it.
type change struct {
	path, what string
	content    []byte
}

// plan says which files have to change for this engine.
func (s *setupRun) plan(engine engineFacts, undo bool) (setupPlan, error) {
	var plan setupPlan
	body, err := readOptional(s.paths.daemonJSON)
	if err != nil {
		return plan, err
	}
	config, err := parseObject(body)
	if err != nil {
		return plan, fmt.Errorf("%s is not valid: %w", s.paths.daemonJSON, err)
	}
	before, err := config.mirrors()
	if err != nil {
		return plan, fmt.Errorf("%s: %w", s.paths.daemonJSON, err)
	}
	wantMirror, wantHosts := !undo && engine.usesMirrors(s.mirror), !undo && engine.needsHosts(s.mirror)
	if wantMirror && len(before) == 0 && len(engine.mirrors) > 0 {
		return plan, fmt.Errorf("the daemon has mirrors (%s) that are not in %s: they were given on its command line, and it refuses to start with both; move them to the file first",
			strings.Join(engine.mirrors, ", "), s.paths.daemonJSON)
	}
	if after := withMirror(before, s.mirror, wantMirror); len(after) != len(before) {
		config.setMirrors(after)
		what := "take " + s.mirror + " out of registry-mirrors"
		if wantMirror {
			what = "put " + s.mirror + " first in registry-mirrors"
		}
		plan.changes = append(plan.changes, change{s.paths.daemonJSON, what, config.bytes()})
	}
	if err := s.planHosts(&plan, wantHosts); err != nil {
		return plan, err
	}
	if !undo {
		plan.notes = engine.notes(s.mirror)
	}
	return plan, nil
}

// hostsMark is the first line of a hosts.toml that setup wrote and may remove.
const hostsMark = "# Written by hubcache docker setup; --undo removes it.\n"

func (s *setupRun) planHosts(plan *setupPlan, want bool) error {
	path := filepath.Join(s.paths.certs, "docker.io", "hosts.toml")
	body, err := readOptional(path)
	if err != nil {
		return err
	}
	ours, content := strings.HasPrefix(string(body), hostsMark), hostsTOML(s.mirror)
	switch {
	case want && string(body) == hostsMark+content:
	case want && body != nil && !ours:
		return fmt.Errorf("%s is there already and was not written by hubcache; add to it:\n%s", path, content)
	case want:
		plan.changes = append(plan.changes, change{path, "ask " + s.mirror + " first, then Docker Hub", []byte(hostsMark + content)})
	case ours:
		plan.changes = append(plan.changes, change{path, "remove", nil})
	}
	return nil
}

// write does what the plan says and makes the daemon notice.
func (s *setupRun) write(ctx context.Context, plan setupPlan) error {
	reload := false
	for _, c := range plan.changes {
		backup, err := replaceFile(c.path, c.content)
		if err != nil {
			return err
		}
		if backup != "" {
			fmt.Fprintf(s.out, "%s: the old one is %s\n", c.path, backup)
		}
		reload = reload || c.path == s.paths.daemonJSON
	}
	if !reload {
		return nil // hosts.toml is read on every pull
	}
	if err := reloadDaemon(s.paths.pidFile); err != nil {
		return fmt.Errorf("written, but the daemon has to be told (systemctl reload docker): %w", err)
	}
	fmt.Fprintln(s.out, "The daemon was told to read its configuration again.")
	return nil
}

// reloadDaemon sends SIGHUP to the daemon of the pid file, if it is one.
func reloadDaemon(pidFile string) error {
	body, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
	if err != nil {
		return fmt.Errorf("%s: %w", pidFile, err)
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return err
	}
	if name := strings.TrimSpace(string(comm)); name != "dockerd" {
		return fmt.Errorf("process %d of %s is %s and not dockerd", pid, pidFile, name)
	}
	return unix.Kill(pid, unix.SIGHUP)
}

// replaceFile writes the file atomically, through symlinks. What was there is kept beside
// it; the first such backup stays. When content is nil it removes the file, which setup
// does with its own only, and keeps nothing.
func replaceFile(path string, content []byte) (backup string, err error) {
	if content == nil {
		return "", os.Remove(path)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := fs.FileMode(0o644)
	old, err := readOptional(path)
	if err != nil {
		return "", err
	}
	if old != nil {
		info, err := os.Stat(path)
		if err != nil {
			return "", err
		}
		mode = info.Mode().Perm()
		backup = path + ".before-hubcache"
		if _, err := os.Stat(backup); err == nil {
			backup += "-" + time.Now().Format("20060102-150405")
		}
		if err := writeSynced(backup, old, mode); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	tmp := path + ".hubcache-new"
	if err := writeSynced(tmp, content, mode); err != nil {
		return "", err
	}
	return backup, os.Rename(tmp, path)
}

func writeSynced(path string, content []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// readOptional is the file's content; nil without an error when there is no file.
func readOptional(path string) ([]byte, error) {
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && body == nil {
		body = []byte{}
	}
	return body, err
}

// askEngine asks the engine what setup has to know.
func askEngine(ctx context.Context, host string) (engineFacts, error) {
	c, err := newEngine(host)
	if err != nil {
		return engineFacts{}, err
	}
	defer c.Close()
	info, err := c.Info(ctx, client.InfoOptions{})
	if err != nil {
		return engineFacts{}, fmt.Errorf("ask the Docker engine at %s: %w", host, err)
	}
	return factsOf(info.Info), nil
}
