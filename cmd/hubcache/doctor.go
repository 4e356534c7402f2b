package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// doctorSettings are the settings that doctor looks at.
type doctorSettings struct {
	Docker       dockerSettings
	Admin        string // the server's admin address
	DataDir      string
	Budget       settings.Size
	MinFree      int64 // bytes
	UpstreamURL  string
	Username     string
	PasswordFile string   // resolved; "" for none
	Private      []string // upstream.private
}

// doctorSettingsOf is what doctor needs.
func doctorSettingsOf(s *settings.Settings) doctorSettings {
	d := doctorSettings{
		Docker: dockerSettingsOf(s), DataDir: string(s.DataDir), Budget: s.Budget, MinFree: s.MinFree.Bytes,
		UpstreamURL: string(s.Upstream.URL), Username: string(s.Upstream.Username),
		PasswordFile: string(s.Upstream.PasswordFile), Private: s.Upstream.Private,
	}
	if len(s.Admin.Listen) > 0 {
		d.Admin = s.Admin.Listen[0]
	}
	// A relative name is looked up where the service manager puts credentials.
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && d.PasswordFile != "" && !filepath.IsAbs(d.PasswordFile) {
		d.PasswordFile = filepath.Join(dir, d.PasswordFile)
	}
	return d
}

// finding is what one check found. Its JSON form is stable.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, note, broken
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

// The states of a finding. Only broken makes doctor fail.
const (
	statusOK     = "ok"
	statusNote   = "note"
	statusBroken = "broken"
)

func newDoctorCommand(load func() (doctorSettings, error)) *cobra.Command {
	var asJSON bool
	d := doctor{certs: defaultSetupPaths().certs}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check the way from Docker to Docker Hub, and say what is wrong",
		Long: `Checks the way from the Docker daemon through the cache to Docker Hub, and the
machine under it, and says in plain words what is wrong and what to do. Exits
with 1 when something is broken.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := load()
			if err != nil {
				return err
			}
			d.settings = s
			findings := d.examine(cmd.Context())
			broken := false
			for _, f := range findings {
				broken = broken || f.Status == statusBroken
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), map[string]any{"schema": 1, "broken": broken, "checks": findings})
			} else {
				err = writeFindings(cmd.OutOrStdout(), findings)
			}
			if err == nil && broken {
				return exitCode(1)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the findings as JSON")
	cmd.Flags().StringVar(&d.image, "image", "hello-world:latest", "the small image that the daemon is made to ask for")
	cmd.Flags().StringVar(&d.certs, "certs-dir", d.certs, "the daemon's directory of registries")
	return cmd
}

func writeFindings(out io.Writer, findings []finding) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Status, f.Check, f.Detail)
		if f.Advice != "" {
			fmt.Fprintf(w, "\t\t→ %s\n", f.Advice)
		}
	}
	return w.Flush()
}

// doctor is one examination.
type doctor struct {
	settings doctorSettings
	image    string
	certs    string
	findings []finding
}

func (d *doctor) say(check, status, detail, advice string) {
	d.findings = append(d.findings, finding{check, status, detail, advice})
}

func (d *doctor) ok(check, format string, args ...any) {
	d.say(check, statusOK, fmt.Sprintf(format, args...), "")
}

func (d *doctor) examine(ctx context.Context) []finding {
	d.checkServer(ctx)
	stats, err := adminclient.Stats(ctx, d.settings.Admin)
	if err != nil {
		d.say("admin", statusBroken, err.Error(), "start hubcache, or set admin.listen here as the server has it")
	} else {
		d.ok("admin", "version %s answers at %s", stats.Version, d.settings.Admin)
		d.checkUpstreams(stats)
	}
	d.checkClock(ctx)
	d.checkDaemon(ctx, err == nil)
	d.checkDisk(stats)
	d.checkFiles()
	return d.findings
}

// checkServer asks the pull port what a daemon asks first.
func (d *doctor) checkServer(ctx context.Context) {
	url := d.settings.Docker.Mirror + "/v2/"
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	resp, err := get(ctx, url)
	switch {
	case err != nil:
		d.say("server", statusBroken, err.Error(), "start hubcache (systemctl start hubcache), or set listen here as the server has it")
	case resp.StatusCode != http.StatusOK:
		d.say("server", statusBroken, url+" answers "+resp.Status, "is it hubcache that listens there?")
	case resp.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0":
		d.say("server", statusBroken, url+" answers, but not as a registry does", "is it hubcache that listens there?")
	default:
		d.ok("server", "%s answers", url)
	}
}

// get asks and throws the body away.
func get(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	return resp, resp.Body.Close()
}

// checkUpstreams reads what the server says of its upstreams: it knows best, and asking
// Hub again would cost quota.
func (d *doctor) checkUpstreams(stats admin.Stats) {
	for _, u := range stats.Upstreams {
		check := "upstream " + u.Registry
		switch u.State {
		case "denied":
			d.say(check, statusBroken, "the access token is refused", "make a new one and put it into upstream.password_file; the server reads it within seconds")
		case "cooling":
			d.say(check, statusBroken, "its limit is reached; only what is cached is served until it lifts", "a paid account has no pull limit; docs/operations.md has what counts")
		case "down":
			d.say(check, statusBroken, "it can't be reached; only what is cached is served", "check the network, DNS and HTTPS_PROXY of the server")
		default:
			d.ok(check, "%s", u.State)
		}
		switch {
		case u.Authenticated:
			d.ok("token", "requests to %s are authenticated", u.Registry)
		case d.settings.Username != "" && u.Registry == "docker.io":
			d.say("token", statusNote, "a username is set, and no request has been authenticated yet", "pull something through the cache and look again")
		case u.Registry == "docker.io":
			d.say("token", statusNote, "requests are anonymous: Docker Hub allows very few of them an hour", "set upstream.username and upstream.password_file")
		}
		if q := u.RateLimit; q != nil && q.Limit > 0 {
			status, advice := statusOK, ""
			if q.Remaining*10 < q.Limit {
				status, advice = statusNote, "less than a tenth is left: refresh and warm are paused"
			}
			d.say("quota", status, fmt.Sprintf("%d of %d pulls are left at %s", q.Remaining, q.Limit, u.Registry), advice)
		}
	}
	// No registry says what a token may see; only asking for a repository tells.
	if len(d.settings.Private) > 0 {
		d.say("private", statusNote, "these may be served although they are private: "+strings.Join(d.settings.Private, ", "),
			"whoever reaches the cache reads them; listen_allow narrows that")
	} else if d.settings.Username != "" {
		d.say("private", statusOK, "private repositories are not served (upstream.private is empty)",
			"a token with the scope \"Public Repo Read-only\" can't see any; hubcache can't find out which scope this one has")
	}
}

// askWithin is how long the pull port and the upstream may take to answer.
const askWithin = 5 * time.Second

// clockSkew is how far the clock may be off: Hub's tokens live for five minutes.
const clockSkew = 2 * time.Minute

// checkClock compares the clock with the upstream's. The question costs no quota.
func (d *doctor) checkClock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	resp, err := get(ctx, strings.TrimRight(d.settings.UpstreamURL, "/")+"/v2/")
	if err != nil {
		d.say("clock", statusNote, "the upstream can't be asked for the time: "+err.Error(), "")
		return
	}
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		d.say("clock", statusNote, "the upstream doesn't say what time it is", "")
		return
	}
	if skew := time.Since(theirs); skew.Abs() > clockSkew {
		d.say("clock", statusBroken, fmt.Sprintf("it is off by %v: tokens count as expired, or never do", skew.Round(time.Second)), "turn on NTP (timedatectl set-ntp true)")
		return
	}
	d.ok("clock", "agrees with the upstream's")
}

// checkDaemon looks whether the Docker daemon has the mirror, safely, and really asks it.
func (d *doctor) checkDaemon(ctx context.Context, haveStats bool) {
	engine, err := newEngine(d.settings.Docker.Host)
	if err != nil {
		d.say("docker", statusBroken, err.Error(), "")
		return
	}
	defer engine.Close()
	info, err := engine.Info(ctx, client.InfoOptions{})
	if err != nil {
		d.say("docker", statusNote, "no Docker engine answers: "+err.Error(), "without one there is nothing to check; docker.host says where it is")
		return
	}
	facts := factsOf(info.Info)
	mirror := d.settings.Docker.Mirror
	hosts, _ := os.ReadFile(filepath.Join(d.certs, "docker.io", "hosts.toml")) // absent is as good as empty
	inHosts := strings.Contains(string(hosts), mirror)
	inMirrors := len(withMirror(facts.mirrors, mirror, false)) < len(facts.mirrors)
	switch {
	case !inMirrors && !(inHosts && facts.major >= hostsSince):
		d.say("docker", statusBroken, fmt.Sprintf("engine %s does not have the mirror %s (it has: %s)", facts.version, mirror, orNone(facts.mirrors)), "hubcache docker setup --apply")
	case facts.unsafeLoopback() && !inHosts:
		d.say("docker", statusBroken, fmt.Sprintf("engine %s with a mirror on a loopback address accepts any certificate for Docker Hub when it falls back", facts.version),
			"hubcache docker setup --apply writes a hosts.toml instead; or let hubcache listen on another address")
	default:
		d.ok("docker", "engine %s has the mirror %s", facts.version, mirror)
	}
	if haveStats {
		d.checkUse(ctx, engine)
	}
}

// checkUse makes the daemon ask for a manifest and looks whether the cache was asked: a
// daemon that falls back to Hub says nothing.
func (d *doctor) checkUse(ctx context.Context, engine *client.Client) {
	before, err := adminclient.Stats(ctx, d.settings.Admin)
	if err != nil {
		d.say("pull", statusBroken, err.Error(), "")
		return
	}
	_, asked := engine.DistributionInspect(ctx, d.image, client.DistributionInspectOptions{})
	after, err := adminclient.Stats(ctx, d.settings.Admin)
	if err != nil {
		d.say("pull", statusBroken, err.Error(), "")
		return
	}
	switch {
	case after.Requests.Manifest.Total() == before.Requests.Manifest.Total():
		d.say("pull", statusBroken, "the daemon asked for "+d.image+" and not through the cache", "the daemon's log says why it passed over the mirror (journalctl -u docker)")
	case asked != nil:
		d.say("pull", statusBroken, "the daemon asked the cache for "+d.image+" and got: "+asked.Error(), "see the upstream above, or the server's log")
	default:
		d.ok("pull", "the daemon asked for %s through the cache", d.image)
	}
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// checkDisk compares budget and min_free with the disk.
func (d *doctor) checkDisk(stats admin.Stats) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.settings.DataDir, &st); err != nil {
		d.say("disk", statusBroken, (&os.PathError{Op: "statfs", Path: d.settings.DataDir, Err: err}).Error(), "data_dir must exist and belong to the server's user")
		return
	}
	budget, err := d.settings.Budget.In(d.settings.DataDir)
	if err != nil {
		d.say("disk", statusBroken, err.Error(), "")
		return
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	room := free + stats.Store.Bytes - d.settings.MinFree // what the cache can grow to
	switch {
	case budget > total:
		d.say("disk", statusBroken, fmt.Sprintf("the budget (%s) is larger than the disk (%s)", human(budget), human(total)), "lower budget, or give it as a percentage")
	case free < d.settings.MinFree:
		d.say("disk", statusBroken, fmt.Sprintf("%s are free, less than min_free (%s): the cache gives everything away", human(free), human(d.settings.MinFree)), "make room: hubcache docker prune --apply")
	case budget > room:
		d.say("disk", statusNote, fmt.Sprintf("the budget is %s, and the disk has room for %s", human(budget), human(max(0, room))), "lower budget, or make room")
	default:
		d.ok("disk", "%s free, budget %s", human(free), human(budget))
	}
}

// checkFiles looks at who may read the secret and write the data.
func (d *doctor) checkFiles() {
	if path := d.settings.PasswordFile; path != "" {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, os.ErrPermission):
			d.say("password file", statusNote, "it can't be looked at by this user", "run doctor as root")
		case err != nil:
			d.say("password file", statusBroken, err.Error(), "upstream.password_file names the file that holds the access token")
		case info.Size() == 0:
			d.say("password file", statusBroken, path+" is empty", "put the access token into it")
		case info.Mode().Perm()&0o007 != 0:
			d.say("password file", statusBroken, fmt.Sprintf("every user of this machine may read %s (mode %04o)", path, info.Mode().Perm()), "chmod 0400 "+path)
		default:
			d.ok("password file", "%s", path)
		}
	}
	d.checkDirectory("data_dir", d.settings.DataDir)
	d.checkDirectory("docker.hold_dir", d.settings.Docker.HoldDir)
	d.checkDirectory("docker.state", filepath.Dir(d.settings.Docker.State))
}

func (d *doctor) checkDirectory(name, dir string) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, os.ErrNotExist) && name != "data_dir":
		d.ok(name, "%s is made on first use", dir)
	case err != nil:
		d.say(name, statusBroken, err.Error(), "")
	case !info.IsDir():
		d.say(name, statusBroken, dir+" is not a directory", "")
	case info.Mode().Perm()&0o002 != 0:
		d.say(name, statusBroken, "every user may write to "+dir, "chmod o-w "+dir)
	default:
		d.ok(name, "%s", dir)
	}
}
