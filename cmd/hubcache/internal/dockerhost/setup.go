package dockerhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// SetupPaths are the files that Setup reads and writes.
type SetupPaths struct {
	DaemonJSON string // the Docker daemon's configuration
	Certs      string // the daemon's directory with a directory for each registry
	PIDFile    string // the daemon's, to make it reload its configuration
	NixOS      string // a file that exists on NixOS only
}

// DefaultSetupPaths are the files of an ordinary host.
func DefaultSetupPaths() SetupPaths {
	return SetupPaths{"/etc/docker/daemon.json", "/etc/docker/certs.d", "/var/run/docker.pid", "/etc/NIXOS"}
}

// errNixOS refuses to write files that the next rebuild of the system would overwrite.
var errNixOS = errors.New("this is NixOS, where /etc is built from the configuration: set services.hubcache.registryMirror = true instead")

// Setup makes the Docker engine of this host pull through a mirror.
type Setup struct {
	Engine Location
	Mirror string // URL of the mirror as the engine reaches it, without a slash at the end
	Paths  SetupPaths
	Out    io.Writer // for what is, or would be, done
}

// Run says what has to change for this engine, and with apply does it. undo takes back
// what an earlier run did instead, and works without an engine. A file that can't be
// merged with what it should contain is an error, and nothing is written.
func (s *Setup) Run(ctx context.Context, apply, undo bool) error {
	if _, err := os.Stat(s.Paths.NixOS); err == nil {
		return errNixOS
	}
	if err := s.Engine.Local("docker setup"); err != nil {
		return err
	}
	engine, err := askEngine(ctx, s.Engine)
	if err != nil && !undo {
		return err
	}
	plan, err := s.plan(engine, undo)
	if err != nil {
		return err
	}
	for _, c := range plan.changes {
		fmt.Fprintf(s.Out, "%s: %s\n", c.path, c.what)
	}
	if len(plan.changes) == 0 {
		fmt.Fprintln(s.Out, "Nothing to change.")
	}
	for _, note := range plan.notes {
		fmt.Fprintln(s.Out, "Note:", note)
	}
	if apply || undo {
		return s.write(plan)
	}
	if len(plan.changes) > 0 {
		fmt.Fprintln(s.Out, "\nNothing was written; --apply does it.")
	}
	_, err = io.WriteString(s.Out, snippets(s.Mirror))
	return err
}

// setupPlan is what there is to write and to say.
type setupPlan struct {
	changes []change
	notes   []string
}

// change is the new content of one file; nil content removes it.
type change struct {
	path, what string
	content    []byte
}

// plan says which files have to change for this engine.
func (s *Setup) plan(engine engineFacts, undo bool) (setupPlan, error) {
	var plan setupPlan
	body, err := readOptional(s.Paths.DaemonJSON)
	if err != nil {
		return plan, err
	}
	config, err := parseObject(body)
	if err != nil {
		return plan, fmt.Errorf("%s is not valid: %w", s.Paths.DaemonJSON, err)
	}
	before, err := config.mirrors()
	if err != nil {
		return plan, fmt.Errorf("%s: %w", s.Paths.DaemonJSON, err)
	}
	wantMirror, wantHosts := !undo && engine.usesMirrors(s.Mirror), !undo && engine.needsHosts(s.Mirror)
	if wantMirror && len(before) == 0 && len(engine.mirrors) > 0 {
		return plan, fmt.Errorf("the daemon has mirrors (%s) that are not in %s: they were given on its command line, and it refuses to start with both; move them to the file first",
			strings.Join(engine.mirrors, ", "), s.Paths.DaemonJSON)
	}
	if after := withMirror(before, s.Mirror, wantMirror); len(after) != len(before) {
		config.setMirrors(after)
		what := "take " + s.Mirror + " out of registry-mirrors"
		if wantMirror {
			what = "put " + s.Mirror + " first in registry-mirrors"
		}
		plan.changes = append(plan.changes, change{s.Paths.DaemonJSON, what, config.bytes()})
	}
	if err := s.planHosts(&plan, wantHosts); err != nil {
		return plan, err
	}
	if !undo {
		plan.notes = engine.notes(s.Mirror)
	}
	return plan, nil
}

// hostsMark is the first line of each hosts.toml that Setup writes: it removes no other.
const hostsMark = "# Written by hubcache docker setup; --undo removes it.\n"

// planHosts adds to the plan what has to happen to Docker Hub's hosts.toml.
func (s *Setup) planHosts(plan *setupPlan, want bool) error {
	path := filepath.Join(s.Paths.Certs, "docker.io", "hosts.toml")
	body, err := readOptional(path)
	if err != nil {
		return err
	}
	ours, content := strings.HasPrefix(string(body), hostsMark), hostsTOML(s.Mirror)
	switch {
	case want && string(body) == hostsMark+content:
	case want && body != nil && !ours:
		return fmt.Errorf("%s is there already and was not written by hubcache; add to it:\n%s", path, content)
	case want:
		plan.changes = append(plan.changes, change{path, "ask " + s.Mirror + " first, then Docker Hub", []byte(hostsMark + content)})
	case ours:
		plan.changes = append(plan.changes, change{path, "remove", nil})
	}
	return nil
}

// write does what the plan says and makes the daemon read its configuration again.
func (s *Setup) write(plan setupPlan) error {
	reload := false
	for _, c := range plan.changes {
		backup, err := replaceFile(c.path, c.content)
		if err != nil {
			return err
		}
		if backup != "" {
			fmt.Fprintf(s.Out, "%s: the old one is %s\n", c.path, backup)
		}
		reload = reload || c.path == s.Paths.DaemonJSON
	}
	if !reload {
		return nil // hosts.toml is read on every pull
	}
	if err := reloadDaemon(s.Paths.PIDFile); err != nil {
		return fmt.Errorf("written, but the daemon has to be told (systemctl reload docker): %w", err)
	}
	fmt.Fprintln(s.Out, "The daemon was told to read its configuration again.")
	return nil
}
