package dockerhost

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/hubcache/hubcache/admin"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/adminclient"
	"github.com/hubcache/hubcache/cmd/hubcache/internal/settings"
)

// Finding is what one check found. Its JSON form is stable.
type Finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // one of the Status constants
	Detail string `json:"detail"`
	Advice string `json:"advice,omitempty"`
}

// The values of Finding.Status.
const (
	StatusOK     = "ok"
	StatusNote   = "note"   // worth knowing
	StatusBroken = "broken" // doctor fails
)

// askWithin is how long the pull port and the upstream may take to answer.
const askWithin = 5 * time.Second

// Doctor checks the way from this host's Docker daemon through the cache to Docker Hub.
type Doctor struct {
	Settings *settings.Settings
	Host     string // the flag --host; "" to let Locate find the engine
	Image    string // a small image that the daemon is made to ask for
	Certs    string // the daemon's directory with a directory for each registry

	findings []Finding
}

// Examine makes all checks and returns what they found. It changes nothing on this host.
func (d *Doctor) Examine(ctx context.Context) []Finding {
	d.findings = nil
	d.checkServer(ctx)
	stats, err := d.stats(ctx)
	if err != nil {
		d.say("admin", StatusBroken, err.Error(), "start hubcache, or set admin.listen here as the server has it")
	} else {
		d.ok("admin", "version %s answers at %s", stats.Version, d.admin())
		d.checkUpstreams(stats)
	}
	d.checkClock(ctx)
	d.checkDaemon(ctx, err == nil)
	d.checkDisk(stats)
	d.checkFiles()
	return d.findings
}

// say adds a finding.
func (d *Doctor) say(check, status, detail, advice string) {
	d.findings = append(d.findings, Finding{check, status, detail, advice})
}

// ok adds a finding that needs no advice.
func (d *Doctor) ok(check, format string, args ...any) {
	d.say(check, StatusOK, fmt.Sprintf(format, args...), "")
}

// admin is the server's admin address; "" if it has none.
func (d *Doctor) admin() string {
	if addrs := d.Settings.Admin.Listen; len(addrs) > 0 {
		return addrs[0]
	}
	return ""
}

// stats asks the server for its figures.
func (d *Doctor) stats(ctx context.Context) (admin.Stats, error) {
	return adminclient.Stats(ctx, d.admin())
}

// checkServer asks the pull port for /v2/, as a daemon does first.
func (d *Doctor) checkServer(ctx context.Context) {
	url := MirrorURL(d.Settings) + "/v2/"
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	resp, err := get(ctx, url)
	switch {
	case err != nil:
		d.say("server", StatusBroken, err.Error(), "start hubcache (systemctl start hubcache), or set listen here as the server has it")
	case resp.StatusCode != http.StatusOK:
		d.say("server", StatusBroken, url+" answers "+resp.Status, "is it hubcache that listens there?")
	case resp.Header.Get("Docker-Distribution-Api-Version") != "registry/2.0":
		d.say("server", StatusBroken, url+" answers, but not as a registry does", "is it hubcache that listens there?")
	default:
		d.ok("server", "%s answers", url)
	}
}

// get returns the answer without its body.
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

// checkUpstreams reads what the server knows of its upstreams. Asking Docker Hub here
// would cost quota.
func (d *Doctor) checkUpstreams(stats admin.Stats) {
	for _, u := range stats.Upstreams {
		check := "upstream " + u.Registry
		switch u.State {
		case "denied":
			d.say(check, StatusBroken, "the access token is refused", "make a new one and put it into upstream.password_file; the server reads it within seconds")
		case "cooling":
			d.say(check, StatusBroken, "its limit is reached; only what is cached is served until it lifts", "a paid account has no pull limit; operations.md of the documentation says which requests count")
		case "down":
			d.say(check, StatusBroken, "it can't be reached; only what is cached is served", "check the network, DNS and HTTPS_PROXY of the server")
		default:
			d.ok(check, "%s", u.State)
		}
		switch {
		case u.Authenticated:
			d.ok("token", "requests to %s are authenticated", u.Registry)
		case d.Settings.Upstream.Username != "" && u.Registry == "docker.io":
			d.say("token", StatusNote, "a username is set, and no request has been authenticated yet", "pull something through the cache and look again")
		case u.Registry == "docker.io":
			d.say("token", StatusNote, "requests are anonymous: Docker Hub allows very few of them an hour", "set upstream.username and upstream.password_file")
		}
		if q := u.RateLimit; q != nil && q.Limit > 0 {
			status, advice := StatusOK, ""
			if q.Remaining*10 < q.Limit {
				status, advice = StatusNote, "less than a tenth is left"
			}
			d.say("quota", status, fmt.Sprintf("%d of %d pulls are left at %s", q.Remaining, q.Limit, u.Registry), advice)
		}
	}
	// A registry doesn't tell which repositories a token may see, except by asking for them.
	if len(d.Settings.Upstream.Private) > 0 {
		d.say("private", StatusNote, "these may be served although they are private: "+strings.Join(d.Settings.Upstream.Private, ", "),
			"whoever reaches the cache reads them; listen_allow narrows that")
	} else if d.Settings.Upstream.Username != "" {
		d.say("private", StatusOK, "private repositories are not served (upstream.private is empty)",
			"a token with the scope \"Public Repo Read-only\" can't see any; hubcache can't find out which scope this one has")
	}
}

// clockSkew is how far the clock may be off: Docker Hub's tokens are valid for five
// minutes.
const clockSkew = 2 * time.Minute

// checkClock compares this host's clock with the upstream's. The request costs no quota.
func (d *Doctor) checkClock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	resp, err := get(ctx, strings.TrimRight(string(d.Settings.Upstream.URL), "/")+"/v2/")
	if err != nil {
		d.say("clock", StatusNote, "the upstream can't be asked for the time: "+err.Error(), "")
		return
	}
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		d.say("clock", StatusNote, "the upstream doesn't say what time it is", "")
		return
	}
	if skew := time.Since(theirs); skew.Abs() > clockSkew {
		d.say("clock", StatusBroken, fmt.Sprintf("it is off by %v: tokens count as expired, or never do", skew.Round(time.Second)), "turn on NTP (timedatectl set-ntp true)")
		return
	}
	d.ok("clock", "agrees with the upstream's")
}
