package dockerhost

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// SetupPaths are the files that Setup reads and writes. An empty one is found out from the
// engine.
type SetupPaths struct {
	DaemonJSON string // the Docker daemon's configuration
	Certs      string // the daemon's directory with a directory for each registry
	PIDFile    string // the daemon's, to make it reload its configuration
}

// The files of an ordinary host.
const (
	defaultConfig = "/etc/docker/daemon.json"
	defaultCerts  = "/etc/docker/certs.d"
)

// Setup makes the Docker engine of this host pull through a mirror.
type Setup struct {
	Engine Location
	Mirror string // URL of the mirror as the engine reaches it, without a slash at the end
	// Registries are those that the cache serves; none is Docker Hub alone.
	Registries []Registry
	Paths      SetupPaths
	// Certificates are what the client gets for a mirror with https.
	Certificates Certificates
	Out          io.Writer // for what is, or would be, done
	// Patience is how long the engine may take until it has what was written; 0 is 15 s.
	Patience time.Duration
}

// Run says what has to change for this engine, and with apply does it. undo takes back
// what an earlier run did instead, and works without an engine. If the engine doesn't take
// what was written, the old files are put back. A file that can't be merged with what it
// should contain is an error, and nothing is written.
func (s *Setup) Run(ctx context.Context, apply, undo bool) error {
	if err := s.Engine.Local("docker setup"); err != nil {
		return err
	}
	if err := checkMirror(s.Mirror); err != nil && !undo {
		return s.wrongMirror(err)
	}
	plan, err := s.plan(ctx, undo)
	if e, ok := errors.AsType[elsewhere](err); ok && !apply {
		fmt.Fprintf(s.Out, "%s.\n", upperFirst(e.text))
		return s.others(undo)
	}
	if err != nil {
		return err
	}
	return s.carryOut(ctx, plan, apply, undo)
}

// carryOut shows the plan and, with apply, does it.
func (s *Setup) carryOut(ctx context.Context, plan setupPlan, apply, undo bool) error {
	for _, c := range plan.changes {
		fmt.Fprintf(s.Out, "%s: %s\n", c.file.path, c.what)
	}
	switch {
	case plan.unread != "":
		fmt.Fprintf(s.Out, "%s is right, and the engine hasn't read it yet: make it read it\n", plan.unread)
	case len(plan.changes) == 0:
		fmt.Fprintln(s.Out, "Nothing to change.")
	}
	for _, note := range plan.notes {
		fmt.Fprintln(s.Out, "Note:", note)
	}
	if apply {
		return s.write(ctx, plan)
	}
	if len(plan.changes) > 0 || plan.unread != "" {
		how := "--apply"
		if undo {
			how = "--undo --apply"
		}
		fmt.Fprintf(s.Out, "\nNothing was done; %s does it.\n", how)
	}
	return s.others(undo)
}

// others says how to see what other clients need, unless everything is to be taken back.
func (s *Setup) others(undo bool) error {
	if undo {
		return nil
	}
	_, err := fmt.Fprintf(s.Out, "\nOther clients have files of their own: docker setup --for %s prints them.\n", strings.Join(OtherClients(), ", "))
	return err
}

// registries are those that the cache serves.
func (s *Setup) registries() []Registry {
	if len(s.Registries) == 0 {
		return []Registry{NewRegistry(hubName, "")}
	}
	return s.Registries
}

func (s *Setup) wrongMirror(err error) error {
	return settings.UsageError{Err: fmt.Errorf("the mirror %q can't be used: %w", printable(s.Mirror), err)}
}

// setupPlan is what there is to write and to say.
type setupPlan struct {
	changes []change
	notes   []string
	process *daemonProcess // to be told; nil if the engine isn't running
	has     bool           // whether the engine has the mirror in its list before
	want    bool           // and whether it should have it after
	unread  string         // the daemon's file, if it is right and the engine hasn't read it yet
	config  string         // the daemon's file
	mirrors []string       // the engine's list before
}

// change is the new content of one file; nil content removes it.
type change struct {
	file    fileState
	what    string
	content []byte
	reload  bool // the daemon has to be told
}

// plan says which files have to change for this engine.
func (s *Setup) plan(ctx context.Context, undo bool) (setupPlan, error) {
	engine, err := askEngine(ctx, s.Engine)
	if err != nil && !undo {
		return setupPlan{}, err
	}
	var files daemonFiles
	if err == nil {
		if err := engine.refuses(s.Mirror); err != nil && !undo {
			return setupPlan{}, s.wrongMirror(err)
		}
		if files, err = s.findFiles(engine); err != nil {
			return setupPlan{}, err
		}
	} else {
		files = s.filesWithoutEngine(err)
		if isNixOS(files.config) {
			return setupPlan{}, errNixOS
		}
	}
	plan := setupPlan{process: files.process, notes: files.notes, mirrors: engine.mirrors, config: files.config,
		has: engine.uses(s.Mirror), want: !undo && engine.usesMirrors(s.Mirror)}
	var hosts []hostsFile
	if !undo {
		hosts = engine.hostsFiles(s.Mirror, s.registries(), files.certs, s.Certificates.planned())
	}
	if err := s.planCertificates(&plan, files.certs, undo); err != nil {
		return plan, err
	}
	if err := s.planHosts(&plan, files.certs, hosts); err != nil {
		return plan, err
	}
	if err := s.planMirrors(&plan, files, engine); err != nil {
		return plan, err
	}
	for _, c := range plan.changes {
		if plan.process == nil {
			break
		}
		if err := plan.process.checkSees(c.file.path); err != nil {
			return plan, err
		}
	}
	if !undo {
		plan.notes = append(plan.notes, engine.notes(s.Mirror, s.registries())...)
	}
	return plan, nil
}

// filesWithoutEngine are the files from which a mirror is taken out when no engine answers,
// which may be because of that mirror.
func (s *Setup) filesWithoutEngine(why error) daemonFiles {
	f := daemonFiles{config: s.Paths.DaemonJSON, certs: cmp.Or(s.Paths.Certs, defaultCerts)}
	if f.config == "" {
		f.config = defaultConfig
		f.notes = []string{fmt.Sprintf("no engine answers (%v), so %s is taken for its configuration; --daemon-json names another file", why, f.config)}
	}
	return f
}

// planMirrors adds to the plan what has to happen to the daemon's list of mirrors.
func (s *Setup) planMirrors(plan *setupPlan, files daemonFiles, engine engineFacts) error {
	file, err := readState(files.config)
	if err != nil {
		return err
	}
	config, err := parseDaemonJSON(file.body)
	if err != nil {
		return fmt.Errorf("%s can't be changed, and Docker may refuse it too: %w", file.path, err)
	}
	if err := s.checkEntries(file.path, config, engine, plan.want); err != nil {
		return err
	}
	done, err := s.onCommandLine(plan, file.path, config, engine)
	if err != nil || done {
		return err
	}
	content, changed := config.withMirror(s.Mirror, plan.want)
	if !changed && plan.has && !plan.want && plan.process != nil && config.end == 0 {
		// It has the mirror from an older file, and keeps it as long as the file has no list.
		content, changed = config.splice("[]"), true
	}
	if !changed {
		if plan.process != nil && plan.has != plan.want {
			plan.unread = file.path
		}
		return nil
	}
	what := "take " + printable(s.Mirror) + " out of registry-mirrors"
	if plan.want {
		what = "put " + s.Mirror + " first in registry-mirrors"
	}
	plan.changes = append(plan.changes, change{file, what, content, true})
	return nil
}

// checkEntries names the entries of the file that the engine refuses. With them it doesn't
// start, whatever is added. An entry that is to be taken out may be one of them.
func (s *Setup) checkEntries(path string, config daemonJSON, engine engineFacts, want bool) error {
	var wrong []string
	for _, m := range config.urls() {
		if !want && sameMirror(m, s.Mirror) {
			continue
		}
		if err := engine.refuses(m); err != nil {
			wrong = append(wrong, fmt.Sprintf("%q (%v)", printable(m), err))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%s has mirrors with which Docker doesn't start: %s. Correct or remove them; nothing was written", path, strings.Join(wrong, ", "))
}

// onCommandLine looks whether the daemon has mirrors by its command line. It refuses to
// start with such and with mirrors in its file too. Nothing is left to do if ours is there.
func (s *Setup) onCommandLine(plan *setupPlan, path string, config daemonJSON, engine engineFacts) (done bool, err error) {
	if plan.process == nil {
		return false, nil
	}
	given := plan.process.flag("--registry-mirror")
	if len(given) == 0 {
		return false, nil
	}
	const remedy = "take --registry-mirror off its command line (systemctl cat docker shows where it is)"
	switch {
	case config.end > 0:
		return false, fmt.Errorf("the daemon has mirrors on its command line (--registry-mirror) and in %s, and doesn't start with both: %s", path, remedy)
	case plan.want && plan.has:
		plan.notes = append(plan.notes, fmt.Sprintf("the engine has %s already, by --registry-mirror on its command line", s.Mirror))
		return true, nil
	case plan.want:
		return false, fmt.Errorf("the daemon has mirrors on its command line (--registry-mirror: %s), and doesn't start if %s has some too: move them to the file, or add --registry-mirror=%s there",
			strings.Join(given, ", "), path, s.Mirror)
	case plan.has:
		plan.notes = append(plan.notes, fmt.Sprintf("the engine has %s by its command line: to take it out, %s", s.Mirror, remedy))
	}
	return true, nil
}

// write does what the plan says and makes the daemon read its configuration again. All of
// it is done, or nothing.
func (s *Setup) write(ctx context.Context, plan setupPlan) error {
	var done []written
	reload := plan.unread != ""
	for _, c := range plan.changes {
		w, err := c.file.replace(c.content)
		if err != nil {
			return errors.Join(err, undoAll(done))
		}
		done, reload = append(done, w), reload || c.reload
	}
	if reload && plan.process != nil { // hosts.toml is read on every pull
		if err := s.reload(ctx, plan); err != nil {
			return s.putBack(ctx, plan, done, err)
		}
	}
	for _, w := range done {
		if w.content == nil && w.backup != "" {
			if err := os.Remove(w.backup); err != nil { // setup removes only what it wrote
				return err
			}
		} else if w.backup != "" {
			fmt.Fprintf(s.Out, "%s: the old one is %s\n", w.path, w.backup)
		}
	}
	switch {
	case reload && plan.process == nil:
		fmt.Fprintln(s.Out, "No engine answered. It reads the file when it starts, or when it is told (systemctl reload docker).")
	case reload && plan.want:
		fmt.Fprintln(s.Out, "The engine has read its configuration again, and has the mirror.")
	case reload:
		fmt.Fprintln(s.Out, "The engine has read its configuration again, and doesn't have the mirror in its list.")
	}
	return nil
}

// undoAll takes changes back, the last one first.
func undoAll(done []written) error {
	var errs []error
	for i := len(done) - 1; i >= 0; i-- {
		errs = append(errs, done[i].undo())
	}
	return errors.Join(errs...)
}

// upperFirst makes a sentence of an error's text.
func upperFirst(text string) string { return strings.ToUpper(text[:1]) + text[1:] }
